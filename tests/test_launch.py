"Ranks wherever they are started: a cell, a script, torchrun, srun, mpirun; what is said when one fails, hangs or leaves; killed, and on other numbers of ranks."
import json
import os
import re
import signal
import socket
import sys
import textwrap
import threading

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mlstack import core, workers
from mlstack.core import MlstackError, context
from mlstack.ddp import launch, leave_group, rendezvous
from mlstack.tracking import runs
from mlstack.trainer import Callback, Data, Trainer
from mlstack.trainer.checkpoints import Checkpoints
from tests import house

# Which rank is this? Tables of what launchers set; what srun and mpirun of this machine set is asked below.

_torchrun = dict(RANK='1', WORLD_SIZE='4', LOCAL_RANK='1', LOCAL_WORLD_SIZE='2', MASTER_ADDR='n1', MASTER_PORT='29500', TORCHELASTIC_RUN_ID='x', TORCHELASTIC_RESTART_COUNT='2')
_batch = dict(SLURM_JOB_ID='7', SLURM_PROCID='0', SLURM_NTASKS='4', SLURM_NODELIST='n[1-2]', SLURM_TASKS_PER_NODE='2(x2)', SLURM_LOCALID='0', SLURM_NODEID='0')
_step = _batch | dict(SLURM_STEP_ID='0', SLURM_STEP_NUM_TASKS='4', SLURM_PROCID='3', SLURM_LOCALID='1', SLURM_NODEID='1')
_mpi = dict(OMPI_COMM_WORLD_RANK='1', OMPI_COMM_WORLD_SIZE='2', OMPI_COMM_WORLD_LOCAL_RANK='1', OMPI_COMM_WORLD_LOCAL_SIZE='2', PMIX_NAMESPACE='9')
# as ray/train/torch/config.py sets it before it calls the training function
_ray = dict(RANK='1', WORLD_SIZE='2', LOCAL_RANK='0', LOCAL_WORLD_SIZE='1', NODE_RANK='1', MASTER_ADDR='10.0.0.1', MASTER_PORT='41000', ACCELERATE_TORCH_DEVICE='cpu')


@pytest.mark.parametrize('env,want', [
    ({}, None),
    (_torchrun, dict(by='torchrun', rank=1, world_size=4, local_rank=1, local=2, attempt=2, host='n1', port=29500)),
    (_torchrun | _step, dict(by='torchrun', rank=1, world_size=4)),
    (_torchrun | dict(SLURM_RESTART_COUNT='1'), dict(attempt=3)),
    (dict(RANK='0', WORLD_SIZE='1'), dict(by='variables', rank=0, world_size=1, local=1)),
    (dict(RANK='1', WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT='1'), dict(local_rank=1, local=2)),
    (_ray, dict(rank=1, local_rank=0, local=1, host='10.0.0.1', port=41000)),
    (_batch, None),
    (_step, dict(by='SLURM', rank=3, world_size=4, local_rank=1, local=2, host='n1', port=None)),
    (_step | dict(SLURM_STEP_ID='4294967290'), None),
    (_step | dict(SLURM_STEP_NUM_TASKS='1', SLURM_PROCID='0'), None),
    (_step | dict(MASTER_ADDR='h', MASTER_PORT='5'), dict(host='h', port=5)),
    (_step | dict(SLURM_RESTART_COUNT='2'), dict(attempt=2)),
    (_mpi, dict(by='Open MPI', rank=1, world_size=2, local_rank=1, local=2, host='127.0.0.1', port=None)),
    (_mpi | _step, dict(by='Open MPI', rank=1)),
    (_mpi | dict(OMPI_COMM_WORLD_LOCAL_SIZE='1') | _batch, dict(host='n1')),
    (dict(PMI_RANK='1', PMI_SIZE='2', MPI_LOCALRANKID='1', MPI_LOCALNRANKS='2'), dict(by='MPI', rank=1, local=2)),
    (_step | dict(PMI_RANK='3', PMI_SIZE='4'), dict(rank=3, world_size=4, host='n1')),
    (_batch | dict(PMI_RANK='0', PMI_SIZE='1'), None),
])
def test_which_rank(env, want):
    found = rendezvous.find(env)
    assert found is None if want is None else {k: getattr(found,k) for k in want} == want


@pytest.mark.parametrize('env,names', [
    (dict(WORLD_SIZE='2'), ['RANK','WORLD_SIZE=2']), (dict(RANK='0'), ['WORLD_SIZE','RANK=0']),
    (dict(RANK='2', WORLD_SIZE='2', MASTER_ADDR='x', MASTER_PORT='1'), ['RANK=2','WORLD_SIZE=2']),
    (dict(RANK='-1', WORLD_SIZE='2'), ["RANK='-1'"]), (dict(RANK='0', WORLD_SIZE='two'), ["WORLD_SIZE='two'"]), (dict(RANK='0', WORLD_SIZE='0'), ["WORLD_SIZE='0'"]),
    (dict(RANK='0', WORLD_SIZE='2', MASTER_PORT='1'), ['MASTER_ADDR']), (dict(RANK='0', WORLD_SIZE='2', MASTER_ADDR='x'), ['MASTER_PORT']),
    (dict(RANK='0', WORLD_SIZE='2', MASTER_ADDR='x', MASTER_PORT='http'), ["MASTER_PORT='http'"]),
    (_step | dict(RANK='0', WORLD_SIZE='1'), ['RANK=0','SLURM','rank 3 of 4']), (_mpi | dict(RANK='0', WORLD_SIZE='2', MASTER_ADDR='x', MASTER_PORT='1'), ['Open MPI','rank 1 of 2']),
    (_mpi | dict(OMPI_COMM_WORLD_LOCAL_SIZE='1'), ['MASTER_ADDR','mpirun -x']),
    (_step | dict(SLURM_PROCID='4'), ['SLURM_PROCID=4','SLURM_STEP_NUM_TASKS=4']),
])
def test_wrong_variables_are_named(env, names):
    with pytest.raises(MlstackError) as e: rendezvous.find(env)
    for n in names: assert n in str(e.value)


@pytest.mark.parametrize('env', [_torchrun, _ray, _batch, _step, _step | dict(SLURM_STEP_ID='4294967290'), _step | dict(SLURM_STEP_NUM_TASKS='1', SLURM_PROCID='0'), _mpi, _mpi | _step,
    dict(PMI_RANK='1', PMI_SIZE='2', MPI_LOCALRANKID='1', MPI_LOCALNRANKS='2'), _batch | dict(PMI_RANK='0', PMI_SIZE='1'), dict(RANK='0', WORLD_SIZE='1'), {}])
def test_the_context_knows_the_rank_before_anybody_has_joined(env):
    "What core reads of the launchers' variables is what ranks find when they meet."
    found, ctx = rendezvous.find(env), core._from_env(env)
    want = (0, 0, 1) if found is None or found.world_size == 1 else (found.rank, found.local_rank, found.world_size)
    assert (ctx.rank, ctx.local_rank, ctx.world_size) == want
    assert core._from_env(env | dict(MLSTACK_TRIAL='3')).world_size == (int(env['WORLD_SIZE']) if 'RANK' in env else 1) # srun starts agents, too


def test_lists_of_nodes():
    for text,want in {'n1': ['n1'], 'n[1-2]': ['n1','n2'], 'a-b[08-10,1],c': ['a-b08','a-b09','a-b10','a-b1','c'], 'r[1-2]n[1-2]': ['r1n1','r1n2','r2n1','r2n2'], 'x[1-2]-ib,y': ['x1-ib','x2-ib','y']}.items():
        assert rendezvous.hosts(text) == want


def test_a_port_in_use_is_passed_over_and_strangers_are_told_nothing():
    "On the first port of the job somebody else answers, with a number."
    key = f'test-{os.getpid()}-{threading.get_ident()}'
    first,second = (rendezvous.Rank('SLURM', i, 2, i, 2, host='127.0.0.1', key=key) for i in range(2))
    a,b,*_ = rendezvous._candidates(key)
    with socket.create_server(('127.0.0.1', a)) as other:
        threading.Thread(target=lambda: other.accept()[0].sendall(b'hello\n'), daemon=True).start()
        host,port = rendezvous.meet(first)
        with socket.create_connection(('127.0.0.1', b)) as s:
            s.sendall(b'GET / HTTP/1.1\n')
            assert s.recv(100) == b''
        assert rendezvous.meet(second) == (host,port)
    assert port not in (a,b)


def test_who_never_comes_is_missed():
    lone = rendezvous.Rank('SLURM', 1, 2, host='127.0.0.1', key=f'nobody-{os.getpid()}')
    with pytest.raises(MlstackError, match='rank 1 has not found rank 0'): rendezvous.meet(lone, patience=.1)


# In processes that a launcher started

_script = '''
    import json, os, sys, time
    import torch, torch.distributed as dist
    from torch import nn
    import mlstack.tracking as track
    from mlstack.core import context
    from mlstack.ddp import join_group, launch
    from mlstack.trainer import Callback, Data, Trainer
    what, out = sys.argv[1:3]
    def work(x):
        t = torch.tensor([x*(dist.get_rank()+1)]); dist.all_reduce(t)
        c = context()
        return dict(rank=c.rank, local_rank=c.local_rank, world_size=c.world_size, run=c.run, sum=t.item())
    class Fail(Callback):
        def before_step(self, t):
            if what == 'elastic' and context().attempt == 0 and context().rank == 1 and t.step == 6: raise ValueError('my shard is empty')
    if what in ('ok','elastic'):
        early = context()
        run = track.init(project='early', dir=out) # before anybody has met
        run.log({f'rank{early.rank}': 1.})
        if what == 'ok': results = launch(work, 10., nprocs=2) # in 'elastic' the Trainer finds the others by itself
        torch.manual_seed(0)
        x = torch.randn(64, 4)
        t = Trainer(nn.Linear(4,1), Data.from_tensors((x, x.sum(1,keepdim=True)), batch_size=16//context().world_size), loss=nn.functional.mse_loss, lr=.05, parallel='ddp', callbacks=[Fail()])
        t.fit(epochs=2, save=f'{out}/checkpoints')
        if what == 'elastic': results = launch(work, 10., nprocs=2)
        with open(f'{out}/{context().rank}.json','w') as f: json.dump(dict(results=results, steps=t.step, weight=t.model.weight.flatten().tolist(), why=t._why.get('resume'), early=[run.id, early.rank, early.world_size]), f)
        run.finish()
        if what == 'elastic': dist.destroy_process_group()
    else:
        join_group(timeout=float(sys.argv[3]))
        dist.all_reduce(torch.ones(1))
        if dist.get_rank() == 1:
            time.sleep(600)
        dist.all_reduce(torch.ones(3,2))
'''

@pytest.fixture(scope='module')
def script(tmp_path_factory):
    p = tmp_path_factory.mktemp('script')/'rank.py'
    p.write_text(textwrap.dedent(_script))
    return p

_weights = {}

def ran(out, done, ranks):
    "Every rank has every result, they share a run, the model is that of the other launchers, and only rank 0 has spoken."
    assert done.returncode == 0, done.stdout
    said = [json.loads((out/f'{r}.json').read_text()) for r in range(ranks)]
    for r in range(ranks):
        assert [o['rank'] for o in said[r]['results']] == list(range(ranks)) and said[r]['steps'] == 8
        assert {(o['world_size'],o['sum'],o['run']) for o in said[r]['results']} == {(ranks, 10.*ranks*(ranks+1)/2, said[0]['results'][0]['run'])}
    assert said[0]['results'][0]['run'] and all(o['weight'] == said[0]['weight'] for o in said)
    _weights.setdefault('first', said[0]['weight'])
    assert [o['early'] for o in said] == [[said[0]['results'][0]['run'], r, ranks] for r in range(ranks)] # all have opened one run
    assert len(list((out/'early').glob('*/meta.json'))) == 1
    assert said[0]['weight'] == pytest.approx(_weights['first'], rel=1e-4)
    assert len(re.findall(r'^epoch 2/2', done.stdout, re.M)) == 1, done.stdout
    return said

def torchrun(script, n, *args, restarts=0):
    return house.run(sys.executable, '-m', 'torch.distributed.run', f'--nproc-per-node={n}', f'--max-restarts={restarts}', '--rdzv-backend=c10d', '--rdzv-endpoint=127.0.0.1:0', '--local-addr=127.0.0.1', script, *args,
        timeout=300, leave_nothing=True)

def test_torchrun_with_one_process_simply_runs(script, tmp_path):
    done = torchrun(script, 1, 'ok', tmp_path)
    ran(tmp_path, done, 1)
    assert 'nprocs=2 was asked for, and 1 rank is here' in done.stdout


def test_a_failing_rank_under_torchrun(script, tmp_path):
    "It ends the others, its traceback is printed once; torchrun starts all again, and they go on from the checkpoint."
    done = torchrun(script, 2, 'elastic', tmp_path, restarts=1)
    said = ran(tmp_path, done, 2)
    assert [o['why'] for o in said] == ['resumed at step 4: bit for bit']*2
    assert done.stdout.count('Traceback (most recent call last)') == len(re.findall('^ValueError: my shard is empty', done.stdout, re.M)) == 1, done.stdout
    assert f'rank 1 of 2 on {socket.gethostname()}' in done.stdout


def once(text, error):
    "The traceback of the one that failed, and no other of the script."
    assert text.count('Traceback (most recent call last)') == 1 and len(re.findall(f'^{error}', text, re.M)) == 1, text


_mpirun = ['mpirun', '-np', 2, '--allow-run-as-root', '--oversubscribe', '--bind-to', 'none', '--mca', 'btl', 'self,vader', '--mca', 'oob_tcp_if_include', 'lo', '--mca', 'plm', 'isolated']

@pytest.mark.server('mpirun')
def test_mpirun(script, tmp_path):
    said = ran(tmp_path, house.run(*_mpirun, sys.executable, script, 'ok', tmp_path, timeout=200, leave_nothing=True), 2)
    assert [o['local_rank'] for o in said[0]['results']] == [0,1]


def test_srun_on_two_nodes(slurm, script, tmp_path):
    said = ran(tmp_path, slurm.run('srun', '-N2', '-n2', sys.executable, script, 'ok', tmp_path, timeout=200, leave_nothing=True), 2)
    assert [o['local_rank'] for o in said[0]['results']] == [0,0]


def test_a_hanging_collective_under_srun_is_reported_once(slurm, script, tmp_path):
    "srun ends nobody: the ranks do it themselves."
    def check(timeout):
        done = slurm.run('srun', '-N2', '-n2', sys.executable, script, 'hangs', tmp_path, timeout, timeout=300, leave_nothing=True)
        assert done.returncode
        once(done.stdout, 'RuntimeError')
        assert done.stdout.count('rank 0 waited in all_reduce number 2 of shape [3, 2] for rank 1, which never came') == 1, done.stdout
        assert 'rank 1 has done all_reduce number 1 of shape [1]' in done.stdout and 'time.sleep(600)' in done.stdout
    house.with_patience(check)


def test_what_is_a_rank_in_a_slurm_job(slurm, tmp_path):
    "A batch script, an allocation and a step of one task are none; the tasks of a step are."
    (tmp_path/'who.py').write_text('from mlstack.ddp.rendezvous import find; import sys; r = find(); print("rank", r and (r.by, r.rank, r.world_size, r.local_rank, r.local, r.host), "torch" in sys.modules)')
    who = sys.executable, tmp_path/'who.py'
    def said(*command): return sorted(re.findall(r'^rank .*', slurm.run(*command, cwd=tmp_path).stdout, re.M))
    (tmp_path/'job.sh').write_text(f'#!/bin/sh\n{who[0]} {who[1]}\nsrun -n1 -N1 {who[0]} {who[1]}\nsrun {who[0]} {who[1]}\n')
    slurm.run('sbatch', '-W', '-N2', '-n3', '--ntasks-per-node=2', '-o', tmp_path/'out.txt', tmp_path/'job.sh', cwd=tmp_path)
    lines = re.findall(r'^rank .*', (tmp_path/'out.txt').read_text(), re.M)
    assert lines[:2] == ['rank None False']*2
    assert sorted(lines[2:]) == [f"rank ('SLURM', {r}, 3, {l}, {n}, 'n1') False" for r,l,n in ((0,0,2),(1,1,2),(2,0,1))]
    assert said('salloc', '-n2', *who) == ['rank None False']
    assert said('srun', '-n1', *who) == ['rank None False']


# The same in warm processes, which pretend that somebody else has started them

def _pretend(env, timeout):
    "This worker forgets its caller: it has only the variables of a launcher."
    from mlstack.ddp import rendezvous
    os.environ.update({k: str(v) for k,v in env.items()})
    core.set_process_context(None)
    rendezvous._entered = None
    try:
        launch(lambda: dist.all_reduce(torch.ones(1)), collective_timeout=timeout)
        dist.all_reduce(torch.ones(1))
        leave_group()
        assert launch(dist.get_rank) == list(range(context().world_size)) # and again
        return context().rank, context().world_size, os.environ['MASTER_PORT']
    except BaseException: sys.excepthook(*sys.exc_info())

def pretend(*envs, timeout=300):
    "Run ranks with these variables; what happened to each and what they printed."
    said = []
    with workers.Pool(len(envs), output='all') as pool:
        tasks = [pool.submit(_pretend, env, timeout) for env in envs]
        said = [e.value[1] for e in pool.events(timeout=300) if e.kind=='output']
        return [t.value if t.state=='done' else t.state for t in tasks], ''.join(said)

def variables(rank, n=2, port=None): return dict(RANK=rank, WORLD_SIZE=n, LOCAL_RANK=rank, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)

def test_ranks_by_plain_variables():
    port = rendezvous.free_port()
    assert pretend(variables(0, port=port), variables(1, port=port))[0] == [(0,2,str(port)), (1,2,str(port))]


def test_ranks_that_disagree_are_told():
    port = rendezvous.free_port()
    states,said = pretend(variables(0, 2, port), variables(1, 3, port))
    assert states == ['died','died'] and re.search(r'told of \d ranks, and others of \d', said)
    port = rendezvous.free_port()
    states,said = pretend(variables(0, 3, port), variables(1, 3, port), variables(1, 3, port))
    assert states == ['died']*3 and 'two processes are rank 1' in said


def test_a_port_in_use_is_named():
    with socket.create_server(('', 0)) as taken:
        port = taken.getsockname()[1]
        states,said = pretend(variables(0, 2, port))
    assert f'port {port} is in use' in said and 'MASTER_PORT' in said


# Failures, as the caller of launch sees them

def test_what_the_caller_is_told():
    "Ranks that fail, die, hang, leave early and call different things, each with its rank and host."
    def work(what):
        dist.all_reduce(torch.ones(1))
        if dist.get_rank() == 1:
            if what == 'fails': raise ValueError('my shard is empty')
            if what == 'killed': os.kill(os.getpid(), signal.SIGKILL)
            if what == 'leaves': return
            if what == 'memory': raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')
            if what == 'host memory': bytearray(1<<60)
            threading.Event().wait(600)
        dist.all_reduce(torch.ones(3,2))
    def told(what, **kw):
        with pytest.raises(workers.WorkerError) as e: launch(work, what, nprocs=2, timeout=300, output='none', **kw)
        assert socket.gethostname() in str(e.value)
        return e.value
    e = told('fails')
    assert e.what == 'rank 1 failed: ValueError: my shard is empty' and isinstance(e.__cause__, ValueError) and 'raise ValueError' in e.remote
    e = told('killed')
    assert e.what == 'rank 1 was killed by SIGKILL' and e.index == 1
    e = told('leaves')
    assert e.what == 'rank 0 waited in all_reduce number 2 of shape [3, 2] for rank 1, which returned without it'
    assert 'rank 1 has returned' in e.remote
    def hangs(timeout):
        e = told('hangs', collective_timeout=timeout)
        assert e.what == 'rank 0 waited in all_reduce number 2 of shape [3, 2] for rank 1, which never came'
        assert 'rank 0 gave up all_reduce number 2' in e.remote and 'rank 1 has done all_reduce number 1' in e.remote and 'threading.Event().wait(600)' in e.remote
    house.with_patience(hangs)
    for what in ('memory','host memory'):
        e = told(what)
        assert e.what.startswith('rank 1 failed:') and 'batch_size' in e.do, str(e)


def test_a_deadline_says_who_is_waited_for():
    def work():
        if dist.get_rank() == 2: threading.Event().wait(600)
        dist.barrier()
    def check(timeout):
        with pytest.raises(workers.WorkerTimeout) as e: launch(work, nprocs=3, timeout=timeout)
        assert 'ranks 0, 1 waited in barrier number 1 for rank 2, which never came' in e.value.what and 'rank 2 has called no collective' in e.value.remote
    house.with_patience(check, 5)


def test_other_groups_are_named():
    def work():
        group = dist.new_group([0,1], group_desc='halves')
        if dist.get_rank() == 0: dist.all_reduce(torch.ones(4), group=group)
        else: threading.Event().wait(600)
    def check(timeout):
        with pytest.raises(workers.WorkerTimeout, match='did not answer') as e: launch(work, nprocs=2, timeout=timeout)
        assert 'waits in all_reduce number 1 of shape [4] in group halves' in e.value.remote
    house.with_patience(check, 5)


def test_what_cannot_be_started_or_sent_is_named():
    lock = threading.Lock()
    def uses(): return lock
    def takes(cfg, *rest, **named): pass
    for kw,said in ((dict(threads=0), 'threads=0'), (dict(timeout='10m'), "timeout='10m'"), (dict(collective_timeout=0), 'collective_timeout=0'), (dict(output='rank0'), "output='rank0'"), (dict(env='A=1'), 'env is a str'), (dict(nprocs='2'), "nprocs='2'"), (dict(nprocs=2.), 'nprocs=2.0'), (dict(nprocs=True), 'nprocs=True'), (dict(nprocs=0), 'nprocs=0'), (dict(max_restarts=-1), 'max_restarts=-1')):
        with pytest.raises(MlstackError, match=re.escape(said)): launch(takes, 1, **kw)
    if not torch.cuda.is_available():
        with pytest.raises(MlstackError, match='2 ranks with NCCL, and no GPUs'): launch(takes, 1, nprocs=2, backend='nccl')
    for args,kw,said in (((lock,), {}, 'argument cfg is a lock'), ((dict(data=[1,lock]),), {}, "argument cfg['data'][1] is a lock"), ((1,2,lock), {}, 'argument rest[1] is a lock'),
            ((1,), dict(extra=lock), "argument named['extra'] is a lock"), ((nn.ModuleDict(),lambda: lock), {}, 'argument rest[0] uses lock, which is a lock')):
        with pytest.raises(MlstackError, match=re.escape(said)): launch(takes, *args, nprocs=2, **kw)
    with pytest.raises(MlstackError, match='uses uses lock, which is a lock'): launch(uses, nprocs=2)
    def plain(cfg, lr=.1): return lr
    for args,kw,said in (((1,), dict(n_procs=2), 'neither launch nor plain(cfg, lr=0.1) takes n_procs= (launch). Did you mean nprocs=?'), ((1,), dict(world_size=2), 'Did you mean nprocs=?'), ((1,), dict(max_restart=2), 'Did you mean max_restarts=?'),
            ((1,), dict(Lr=.2), 'Did you mean lr=?'), ((), dict(args=(1,)), 'Give its arguments after it'), ((1,), dict(gpus=8), 'aunch takes nprocs=, timeout='), ((), {}, "missing a required argument: 'cfg'"), ((1,2,3), {}, 'too many positional')):
        with pytest.raises(MlstackError) as e: launch(plain, *args, **kw)
        assert said in str(e.value), str(e.value)
    with pytest.raises(MlstackError, match='a float cannot be called'): launch(plain(1), nprocs=2)
    assert launch(plain, 1, lr=.3, nprocs=1) == [.3] # the function's own still pass


# Signals

_signalled = """
    import os, signal, sys, torch
    from torch import nn
    from mlstack.core import context
    from mlstack.ddp import launch
    from mlstack.tracking import init
    from mlstack.trainer import Callback, Checkpoints, Data, Trainer
    class Ready(Callback):
        def after_step(self, t):
            if t.step == 3 and context().rank == 1: print('ready', os.getpid(), flush=True)
    def train(folder):
        init(project='p', name=os.path.basename(folder), dir=sys.argv[1]+'/runs')
        torch.set_num_threads(1)
        torch.manual_seed(0)
        x = torch.randn(10**6, 4) # an epoch lasts longer than this test
        t = Trainer(nn.Linear(4,1), Data.from_tensors((x, x), batch_size=4), loss=lambda out, y: out.square().mean(), parallel='ddp', callbacks=[Ready()])
        t.fit(epochs=10**6, save=Checkpoints(folder, every=10**9))
    def at(number, parent):
        def show(rank, name, text):
            sys.stdout.write(text)
            for line in text.splitlines():
                if line.startswith('ready'): os.kill(os.getpid() if parent else int(line.split()[1]), number)
        return show
    try: launch(train, sys.argv[1]+'/first', nprocs=2, output=at(signal.SIGUSR1, False))
    except Exception as e: print('of a rank:', e, flush=True)
    init(project='p', name='caller', dir=sys.argv[1]+'/runs') # the ranks' is a child of it
    launch(train, sys.argv[1]+'/second', nprocs=2, output=at(signal.SIGTERM, True))
    print('never')
"""

def test_a_signal_to_a_rank_and_to_who_has_launched(tmp_path):
    "All ranks end in one step and are saved, the signal keeps its name, the exit code and the state of the runs say it, and nothing is left."
    (tmp_path/'tmp').mkdir()
    (tmp_path/'job.py').write_text(textwrap.dedent(_signalled))
    done = house.run(sys.executable, tmp_path/'job.py', tmp_path, timeout=200, leave_nothing=True, env=house.environment() | dict(TMPDIR=str(tmp_path/'tmp')))
    assert 'of a rank: preempted by SIGUSR1' in done.stdout, done.stdout
    assert done.returncode == 128+signal.SIGTERM and 'never' not in done.stdout, done.stdout
    for name in ('first','second'):
        steps = Checkpoints(tmp_path/name).steps()
        assert steps and steps[0] >= 3, (name, steps, done.stdout)
    assert not list((tmp_path/'tmp').glob('mlstack-launch-*'))
    assert {r.name: r.state for r in runs(dir=tmp_path/'runs')} == dict(first='preempted', second='preempted', caller='preempted')
    assert [re.findall(rf'{name}: step \d+ is saved; leaving with exit code (\d+)', done.stdout) for name in ('SIGUSR1','SIGTERM')] == [['138'],['143']], done.stdout
    assert len(re.findall(r'^stopped in epoch 1/1000000  step \d+$', done.stdout, re.M)) == 2, done.stdout


def test_ranks_that_do_not_stop_are_ended_after_the_grace(monkeypatch):
    from mlstack.ddp import launching
    from mlstack.trainer.stopping import Preempted
    monkeypatch.setattr(launching, '_grace', .2)
    def deaf():
        print('here', flush=True)
        threading.Event().wait(600)
    with core.use(), pytest.raises(Preempted, match='SIGTERM') as e: launch(deaf, nprocs=1, output=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert e.value.code == 143 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_store_that_is_gone_is_no_error_and_all_others_are():
    from mlstack.ddp.trouble import Watch
    class Store:
        def __init__(self, e): self.e = e
        def set(self, *_): raise self.e
        compare_set = set
    w = Watch.__new__(Watch)
    w.rank,w.world_size = 1,2
    for e in (dist.DistNetworkError('gone'), dist.DistStoreError('late'), ConnectionResetError()):
        w.store = Store(e)
        w._ring('over')
        assert w._first()
    w.store = Store(TypeError('a mistake of ours'))
    for call in (lambda: w._ring('over'), w._first):
        with pytest.raises(TypeError): call()


def test_a_launch_inside_a_rank_simply_runs():
    def inner(): return context().rank, dist.get_world_size()
    def outer(): return launch(inner, nprocs=4)
    seen = []
    assert launch(outer, nprocs=2, output=lambda i,name,text: seen.append((i,text))) == [[(0,2),(1,2)]]*2
    assert [(i,'nprocs=4 was asked for, and 2 ranks are here' in t) for i,t in seen] == [(0,True)]


def test_output():
    def work(): print('line of', context().rank)
    for which,want in (('first', ['line of 0']), ('all', ['[0] line of 0','[1] line of 1']), ('none', [])):
        import io
        from contextlib import redirect_stdout
        with redirect_stdout(io.StringIO()) as out: launch(work, nprocs=2, output=which)
        assert sorted(out.getvalue().splitlines()) == want


# Killed, and on other numbers of ranks

def problem(n=240, valid=60):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n+valid, 6, generator=g)
    y = (x.sum(1) > 0).long()
    return (x[:n], y[:n]), (x[n:], y[n:])

def small(): torch.manual_seed(1); return nn.Sequential(nn.Linear(6,16), nn.Dropout(.3), nn.Tanh(), nn.Linear(16,2))

def test_killed_at_every_kind_of_moment():
    "In a step, in backward, in a validation, while rank 0 names a checkpoint and while rank 1 writes its part: the weights are bit-equal to those of an undisturbed run."
    moments = [None, ('step',1,3), ('name',0,8), ('valid',1,10), ('write',1,12), ('backward',0,14), ('step',0,21)]
    def work(moments):
        from mlstack.trainer import checkpoints
        ctx = context()
        what,rank,step = (moments[ctx.attempt] if ctx.attempt<len(moments) else None) or (None,None,None)
        def die(at): 
            if what==at and ctx.rank==rank and t.step>=step: os.kill(os.getpid(), signal.SIGKILL)
        class Die(Callback):
            def before_step(self, t): die('step')
            def before_validate(self, t): die('valid')
            def before_update(self, t): die('backward')
        name,write = checkpoints._name,checkpoints._write_part
        def dying_name(tmp, path): die('name'); name(tmp, path)
        def dying_write(path, obj): write(path, obj); die('write')
        checkpoints._name,checkpoints._write_part = dying_name,dying_write
        torch.set_num_threads(1)
        t = Trainer(small(), Data.from_tensors(*problem(), batch_size=12), loss=nn.functional.cross_entropy, lr=.01, callbacks=[Die()], parallel='ddp')
        t.fit(epochs=3, save=Checkpoints(ctx.checkpoints, every=4) if ctx.checkpoints else None)
        return ctx.attempt, t.step, torch.cat([p.detach().flatten() for p in t.model.parameters()]), [r['val_loss'] for r in t.history.rows]
    straight = launch(work, [], nprocs=2, output='none')
    killed = launch(work, moments[1:], nprocs=2, max_restarts=len(moments)-1, output='none')
    assert [r[0] for r in killed] == [len(moments)-1]*2 and killed[0][1] == straight[0][1] == 30
    for a,b in zip(straight, killed): assert torch.equal(a[2], b[2]) and a[3] == b[3]


def test_a_checkpoint_of_two_ranks_goes_on_on_one_three_and_four(tmp_path):
    "The same global batches in the same order: each item once an epoch, losses as on two ranks."
    def work(folder, ranks, resume, steps):
        seen,(train,_) = [],problem()
        torch.set_num_threads(1)
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6,16), nn.Tanh(), nn.Linear(16,2))
        class Note(Callback):
            def before_step(self, t): seen.append(t.batch[2].tolist())
        def step(model, batch): return nn.functional.cross_entropy(model(batch[0]), batch[1])
        t = Trainer(model, Data.from_tensors((*train, torch.arange(240)), batch_size=24//ranks), step=step, opt=lambda p,lr: torch.optim.SGD(p, lr, momentum=.9), lr=.1, callbacks=[Note()], parallel='ddp')
        t.fit(**(dict(steps=steps) if steps else dict(epochs=2)), save=folder, resume=resume)
        return seen, torch.cat([p.detach().flatten() for p in t.model.parameters()]), t.step
    def merged(results): return [sorted(sum(parts, [])) for parts in zip(*(r[0] for r in results))]
    whole = launch(work, None, 2, None, None, nprocs=2, output='none')
    first = launch(work, str(tmp_path), 2, None, 5, nprocs=2, output='none')
    assert merged(first) == merged(whole)[:5]
    saved = next(tmp_path.glob('step-*'))
    for ranks in (1,3,4):
        rest = launch(work, None, ranks, str(saved), 20, nprocs=ranks, output='none')
        assert rest[0][2] == 20 and merged(rest) == merged(whole)[5:]
        torch.testing.assert_close(rest[0][1], whole[0][1], rtol=1e-4, atol=1e-6)


# From a notebook's kernel

def test_a_real_kernel(tmp_path):
    "Functions of a cell, two launches, an error with its traceback, and nothing left when the kernel ends."
    import nbformat
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook
    cells = '''
        from mlstack.ddp import launch
        scale = 3
        def work(x):
            import torch, torch.distributed as dist
            t = torch.ones(1)*x*scale; dist.all_reduce(t)
            print('from rank', dist.get_rank())
            return t.item()
        import torch; torch.ones(600,600)@torch.ones(600,600)
        print(launch(work, 1., nprocs=2))
        ----
        print(launch(work, 2., nprocs=2))
        ----
        def broken(): raise KeyError('no such column')
        try: launch(broken, nprocs=2)
        except Exception as e: print(type(e).__name__, e.what, 'def broken()' in e.remote)
    '''
    nb = new_notebook(cells=[new_code_cell(c) for c in textwrap.dedent(cells).split('----\n')])
    client = NotebookClient(nb, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path))))
    client.execute(env=house.environment())
    said = [''.join(o.get('text','') for o in c.outputs) for c in nb.cells]
    assert said[0] == 'from rank 0\n[6.0, 6.0]\n' and said[1] == 'from rank 0\n[12.0, 12.0]\n', nbformat.writes(nb)
    assert said[2].startswith('WorkerError rank') and 'KeyError' in said[2] and said[2].endswith('True\n')
