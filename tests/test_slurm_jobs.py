"Jobs on a real SLURM: what its notebook cannot show without one."
import json, os, pickle, re, subprocess, sys, time
import cloudpickle, pytest
from mlstack.core import MlstackError, new_id
from mlstack.resources import records, slurm as room
from mlstack.resources.records import new_record
from tests import house

@pytest.fixture(scope='module')
def place(slurm, tmp_path_factory):
    "This process talks to the cluster, and keeps its jobs in a folder of their own."
    yield from _place(slurm, tmp_path_factory)

def _place(cluster, tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PATH', f'{cluster.tools}:{os.environ["PATH"]}')
        m.setenv('MLSTACK_STATE', str(tmp_path_factory.mktemp('state')))
        m.delenv('SLURM_CONF', raising=False)
        for k in [k for k in os.environ if k.startswith(('MLSTACK_SLURM_', 'SBATCH_', 'SLURM_'))]: m.delenv(k)
        m.setattr(room, '_patience', .5)
        room._heard.clear()
        _cluster.append(cluster)
        cluster.work = tmp_path_factory.mktemp('work')
        yield cluster
        cluster.run('scancel', '-u', 'root')

def spec(place, what, *args, **kw):
    "What `submit` writes for a function or a list of words."
    want = dict(gpus=0, gpu_mem=0, cpus=1, mem=0) | kw.pop('want', {})
    said = dict(kind='function') if callable(what) else dict(kind='command', command=[str(o) for o in what])
    return said | dict(id=new_id(), name='job', on='slurm', want=want, nodes=1, retries=0, backoff=.1, requeue=False, cwd=str(place.work), python=sys.executable, path=[str(house.root), *sys.path],
        env={k: v for k, v in house.environment().items() if not k.startswith('SLURM') and 'TOKEN' not in k}, runs=str(place.work/'runs'), project='p', threads=1) | kw

def make(place, what, *args, **kw):
    s = spec(place, what, *args, **kw)
    files = dict(call_pkl=cloudpickle.dumps((what, args, {}))) if callable(what) else {}
    return new_record(s, **files)

def by_value(fn):
    "A function of this file as one of a notebook's cells."
    import types
    return types.FunctionType(fn.__code__, {'__builtins__': __builtins__, '__name__': '__main__'}, fn.__name__)

def submitted(place, what, *args, **kw):
    o = make(place, what, *args, **kw)
    room.check(o.spec)
    room.start([o])
    return o

_cluster = []

def until(test, seconds=300, what='it'):
    end = time.monotonic()+seconds
    while not (got := test()):
        assert time.monotonic() < end, f'{what} did not come; {_cluster[-1].run("sh", "-c", "squeue -t all; sinfo -N -l").stdout}'
        time.sleep(.1)
    return got

def over(*found):
    "Wait for the last word, looking as a caller would."
    def done():
        said = room.looks(found)
        return said if all(o.final for o in found) else None
    try: until(done, what='the last word')
    except AssertionError as e: raise AssertionError(f'{e}: {room.looks(found)} {[o.log.read_text() if o.log.exists() else "" for o in found]}') from None
    return [o.final['state'] for o in found]

def value(o):
    kind, said = pickle.loads((o/'result.pkl').read_bytes())
    assert kind == 'done', said
    return pickle.loads(said)

def log(o): return o.log.read_text() if o.log.exists() else ''
def running(o, test=lambda: True):
    "Wait until it has begun, and for what it does then."
    def there():
        said = room.look(o)
        assert not o.final, (o.final, log(o))
        return said['state'] == 'running' and o.tried() and test() and said
    return until(there, what='its beginning')


def test_functions_and_commands_in_one_allocation_each(place):
    def fn(a):
        import os
        print('hello', a)
        return a, os.environ['CUDA_VISIBLE_DEVICES'], os.environ['SLURM_JOB_ID'], os.getcwd()
    one = submitted(place, fn, 'a b; $(touch /tmp/x)\n', want=dict(gpus=1, cpus=2, mem=100<<20), gpu='h100', time=600, name='; rm -rf ~\n$(id)')
    two = submitted(place, [sys.executable, '-c', 'import os, sys; print(sys.argv[1:], os.environ["CUDA_VISIBLE_DEVICES"]); sys.exit(7)', '; rm -rf ~', '$(id)\n'], want=dict(gpus=2))
    assert over(one, two) == ['finished', 'failed']
    a, devices, number, cwd = value(one)
    assert (a, devices, cwd) == ('a b; $(touch /tmp/x)\n', '0', str(place.work)) and number == room._handle(one)['slurm']
    assert "['; rm -rf ~', '$(id)\\n'] 0,1" in log(two) and '7' in two.final['reason']
    assert 'hello' in log(one)
    shown = until(lambda: 'JobState=COMPLETED' in (said := place.run('scontrol', 'show', 'job', '-d', number).stdout) and said)   # later than the last word
    assert 'gpu:h100:1' in shown and 'MinMemoryNode=100M' in shown and 'TimeLimit=00:10:00' in shown

@pytest.mark.server('shellcheck')
def test_the_script_is_sound(place, tmp_path):
    for i, kw in enumerate((dict(), dict(requeue=True, retries=2, slurm=dict(setup='ulimit -n 1024')), dict(group='g', count=3, name="a'b\n"))):
        (tmp_path/f'{i}.sh').write_text(room.text(spec(place, ['true'], **kw)))
        r = house.run('shellcheck', '--severity=warning', tmp_path/f'{i}.sh')
        assert r.returncode == 0, r.stdout

def test_submit(place):
    "From the call to the result, as a user has it."
    from mlstack.resources.submitting import submit
    def fn(a, b=0):
        if b == 3: raise ValueError('no three')
        return a*b
    shown = submit(fn, 2, on='slurm', gpus=2, slurm=dict(partition='spot', mail_type='END'), dry_run=True)
    assert all(f'#SBATCH --{o}\n' in shown for o in ('gres=gpu:2', 'partition=spot', 'mail-type=END'))
    with pytest.raises(MlstackError, match='2 × h100'): submit(fn, 2, on='slurm', gpus=3)
    found = submit(fn, 2, array=[1, 2, 3], on='slurm', project='p')
    assert found[:2].result(timeout=300) == [2, 4]
    with pytest.raises(MlstackError) as e: found[2].result(timeout=300)
    assert 'no three' in str(e.value) and isinstance(e.value.__cause__, ValueError) and found.states() == dict(finished=2, failed=1)

def test_an_array_is_one_sbatch(place):
    def fn(i):
        if i == 2: raise ValueError(f'no {i}')
        print('element', i)
        return i*i
    group = [make(place, fn, i, slurm=dict(at_once=3)) for i in range(4)]
    room.start(group)
    assert over(*group) == ['finished', 'finished', 'failed', 'finished']
    assert [value(o) for o in group if o.final['state'] == 'finished'] == [0, 1, 9]
    assert len({room._handle(o)['slurm'] for o in group}) == 1 and [room._handle(o)['task'] for o in group] == [0, 1, 2, 3]
    assert [f'element {i}' in log(o) for i, o in enumerate(group)] == [True, True, False, True] and 'no 2' in log(group[2])
    script = (records.state_folder('slurm', group[0].id)/'slurm.sh').read_text()
    assert '--array=0-3%3' in script

def test_two_nodes(place):
    def fn():
        import os
        import torch
        from mlstack.ddp import launch
        def rank():
            import torch.distributed as dist
            t = torch.tensor([float(dist.get_rank()+1)])
            dist.all_reduce(t)
            return dist.get_rank(), os.environ['SLURMD_NODENAME'], os.environ['CUDA_VISIBLE_DEVICES'], t.item()
        return launch(rank)
    one = submitted(place, fn, nodes=2, want=dict(gpus=1))
    words = [sys.executable, '-c', 'import os; print("NODE", *[os.environ[k] for k in ("NODE_RANK","MASTER_ADDR","MASTER_PORT","PET_NNODES","PET_NODE_RANK","PET_MASTER_PORT")], flush=True)']
    two = submitted(place, words, nodes=2)
    three = submitted(place, [sys.executable, '-c', 'import os; from mlstack.ddp.rendezvous import find; r = find(); print("RANK", r.rank, r.world_size, r.local_rank, r.by, flush=True)'], nodes=2, nprocs=2, want=dict(cpus=2))
    assert over(one, two, three) == ['finished']*3, (log(one), log(two), log(three))
    def bad():
        import os
        if os.environ['SLURM_PROCID'] == '1': raise ValueError('rank 1 is ill')
        import time
        time.sleep(600)
    four = submitted(place, bad, nodes=2)
    assert over(four) == ['failed'] and 'rank 1 is ill' in pickle.loads((four/'result.pkl').read_bytes())[1]['text']
    assert value(one) == [(0, 'n1', '0', 3.), (1, 'n2', '0', 3.)]
    said = sorted(re.findall('NODE (.*)', log(two)))
    port = str(10_000+int(room._handle(two)['slurm']) % 20_000)
    assert said == [f'{i} n1 {port} 2 {i} {port}' for i in (0, 1)]
    assert sorted(re.findall('RANK (.*)', log(three))) == [f'{i} 4 {i%2} SLURM' for i in range(4)]

def test_what_slurm_refuses_leaves_nothing(place):
    before = {o.id for o in records.records()}
    for kw, said in ((dict(want=dict(gpus=3)), r'2 × h100.*ask for less'), (dict(slurm=dict(partition='nope')), r"main has 2 nodes.*partition='(main|spot)'"), (dict(want=dict(gpus=1), gpu='a100'), '2 × h100'),
                     (dict(nodes=5), 'main has 2 nodes'), (dict(time=7*86400), r'7-00:00:00 is longer.*at most 1:00:00'), (dict(constraint='fast'), 'feature'), (dict(name='x', constraint='a\nb'), 'cannot stand')):
        with pytest.raises(MlstackError) as e: room.check(spec(place, ['true'], **kw))
        assert re.search(said, str(e.value), re.I | re.S), str(e.value)
    bad = [make(place, ['true'], slurm=dict(partition='nope')) for _ in range(2)]
    with pytest.raises(MlstackError, match='does not take'): room.start(bad)
    assert {o.id for o in records.records()} == before and not any(records.state_folder('slurm').glob(f'{bad[0].id}*'))

def test_one_after_another(place):
    first = submitted(place, ['sleep', '1'])
    second = submitted(place, ['true'], after=[first.id])
    bad = submitted(place, ['false'], after=[first.id])
    never = submitted(place, ['true'], after=[bad.id])
    assert over(first, second, bad, never) == ['finished', 'finished', 'failed', 'cancelled']
    assert 'comes before' in never.final['reason'] and not never.tried()
    assert second.attempts()[0]['began'] >= first.final['ended']
    with pytest.raises(MlstackError, match='is failed'): room.check(spec(place, ['true'], after=[bad.id]))

def test_cancelled_waiting_and_running(place):
    block = submitted(place, ['sleep', '600'], want=dict(cpus=4), nodes=2, requeue=True)
    waits = submitted(place, ['true'], want=dict(cpus=4), nodes=2)
    running(block)
    said = until(lambda: (s := room.look(waits))['why'] and 'looked' not in s['why'] and s)
    assert said['state'] == 'waiting' and ('free' in said['why'] or 'before it' in said['why'])
    room.cancel(waits, 'not needed')
    assert waits.final['state'] == 'cancelled' and waits.final['reason'] == 'not needed'
    room.cancel(block, 'enough')
    assert over(block) == ['cancelled'] and block.final['reason'] == 'enough'
    until(lambda: not place.run('squeue', '-h', '-u', 'root').stdout.strip())   # and it does not come back

def test_cancelled_by_hand_stays_cancelled(place):
    o = submitted(place, ['sleep', '600'], requeue=True)
    running(o)
    place.run('scancel', room._handle(o)['slurm'])
    assert over(o) == ['cancelled']
    assert not place.run('squeue', '-h', '-u', 'root', '-t', 'PD,R').stdout.strip()

def test_a_failure_is_tried_again_in_place(place):
    code = 'import os, sys; from pathlib import Path; p = Path("tries"); n = int(p.read_text()) if p.exists() else 0; p.write_text(str(n+1)); print("try", n, os.environ["SLURM_JOB_ID"]); sys.exit(n < 2)'
    o = submitted(place, [sys.executable, '-c', code], retries=2)
    assert over(o) == ['finished'] and o.tried() == 3
    assert len({*re.findall(r'try \d (\d+)', log(o))}) == 1   # one job of SLURM's

def test_a_long_array_is_cut(place, monkeypatch):
    monkeypatch.setattr(room, '_most', lambda: 2)
    group = [make(place, ['true'], name=f'{i}') for i in range(3)]
    for o in group: o.spec['name'] = 'same'
    room.start(group)
    assert over(*group) == ['finished']*3 and len({room._handle(o)['slurm'] for o in group}) == 2

def fit(pause, mark):
    "A training that lasts, and says what came out to the bit."
    import hashlib, time
    from pathlib import Path
    import torch
    from torch import nn
    from mlstack.core import context
    from mlstack.trainer import Callback, Data, Trainer
    class Slow(Callback):
        def after_step(self, t):
            time.sleep(pause*(not context().attempt))
            Path(mark).write_text(str(t.step))
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(.2), nn.Linear(16, 2))
    t = Trainer(model, Data.from_tensors((x, (x.sum(1) > 0).long()), batch_size=8), loss=nn.functional.cross_entropy, lr=1e-2, callbacks=[Slow()], seed=0)
    began = []
    class Began(Callback):
        def before_fit(self, t): began.append(t.step)
    t.callbacks.append(Began())
    t.fit(epochs=8)
    weights = b''.join(p.detach().numpy().tobytes() for p in model.parameters())
    return dict(weights=hashlib.sha256(weights).hexdigest(), losses=[float(o['train_loss']) for o in t.history] if 'train_loss' in t.history[0] else str(t.history), steps=t.step, began=began, attempt=context().attempt)

def test_preempted_and_resumed_to_the_bit(place):
    mark = place.work/'step'
    o = submitted(place, by_value(fit), .3, str(mark), slurm=dict(partition='spot'), requeue=True, want=dict(cpus=4))
    plain = submitted(place, by_value(fit), 0, str(place.work/'step2'))
    node = running(o, lambda: mark.exists() and int(mark.read_text() or 0) > 5)['node']
    other = submitted(place, ['true'], want=dict(cpus=4), slurm=dict(partition='main', nodelist=node))
    assert over(other, o, plain) == ['finished']*3, (log(o), log(plain))
    got, whole = value(o), value(plain)
    assert [a['state'] for a in o.attempts()] == ['preempted', 'finished'] and got['attempt'] == 1 and got['began'][0] > 5
    assert {k: got[k] for k in ('weights', 'losses', 'steps')} == {k: whole[k] for k in ('weights', 'losses', 'steps')}

def test_warned_before_the_time_limit(place):
    "SLURM's USR1 comes as it would before the limit; the job goes on in a new allocation."
    code = """if True:
        import os, signal, sys, time
        from pathlib import Path
        if os.environ.get('MLSTACK_ATTEMPT'): print('went on', os.environ['SLURM_RESTART_COUNT']); sys.exit()
        def leave(*_): print('saved'); sys.exit(138)
        signal.signal(signal.SIGUSR1, leave)
        Path('listens').touch()
        time.sleep(600)"""
    o = submitted(place, [sys.executable, '-c', code], requeue=True, time=600)
    running(o, (place.work/'listens').exists)
    place.run('scancel', '--batch', '--signal=USR1', room._handle(o)['slurm'])
    assert over(o) == ['finished'] and [a['state'] for a in o.attempts()] == ['timeout', 'finished'], log(o)
    assert 'saved' in log(o) and 'went on 1' in log(o)

def test_a_node_that_dies(place):
    code = 'import os, sys, time; n = os.environ.get("MLSTACK_ATTEMPT", "0"); print("attempt", n, flush=True); time.sleep(600*(n == "0"))'
    one = submitted(place, [sys.executable, '-c', code], requeue=True)
    node = running(one)['node']
    two = submitted(place, ['sleep', '600'], slurm=dict(nodelist=node))
    running(two)
    ids = '|'.join(room._handle(o)['slurm'] for o in (one, two))
    place.stop(f'slurmd-{node}')
    place.run('sh', '-c', f"""for s in STOP KILL; do for p in /proc/[0-9]*; do if grep -qzE '^SLURM_JOB_ID=({ids})$' $p/environ 2>/dev/null || grep -qE '^slurmstepd: \\[({ids})\\.' $p/cmdline 2>/dev/null; then kill -$s ${{p#/proc/}}; fi; done; done""")   # all at once: none may see another end
    try:
        place.run('scontrol', 'update', f'NodeName={node}', 'State=DOWN', 'Reason=test')
        assert over(one, two) == ['finished', 'lost'], (log(one), log(two))
        assert one.tried() == 2 and 'attempt 1' in log(one) and node in two.final['reason']
    finally:
        place.start(f'slurmd-{node}')
        place.run('scontrol', 'update', f'NodeName={node}', 'State=RESUME')

def test_forgotten_by_slurm(place):
    p, other = make(place, ['true']), submitted(place, ['true'])
    room._write_handle(p, slurm=room._handle(other)['slurm'], task=None, conf=None, comment='mine')   # its number is another's: this is a new SLURM that counts again
    said = until(lambda: (s := room.look(p))['state'] == 'lost' and s)
    assert 'does not know it any more' in said['why']

def test_the_controller_down_in_the_middle(place, monkeypatch):
    o = submitted(place, ['sh', '-c', 'until [ -e go ]; do sleep .1; done'])
    running(o)
    place.stop('slurmctld', 'TERM')
    room._heard.clear()
    try:
        said = room.look(o)
        assert said['state'] == 'running' and 'cannot reach SLURM' in said['why']
        doomed = make(place, ['true'])
        with pytest.raises(room.SlurmDown): room.start([doomed])
        assert not doomed.path.exists()
        other = make(place, ['true'])
        room._write_handle(other, slurm='999', task=None, conf=None)
        with pytest.raises(room.SlurmDown, match='as soon as it starts'): room.cancel(other, 'no')
        assert (other/'cancel').read_text() == 'no' and not other.final
        (place.work/'go').touch()
        until(lambda: o.final)
        assert o.final['state'] == 'finished'
    finally: place.start('slurmctld')
    assert over(submitted(place, ['true'])) == ['finished']

def test_found_again_from_another_process_and_after_a_broken_submission(place):
    o = submitted(place, ['sh', '-c', 'until [ -e found ]; do sleep .1; done'])
    handle = room._handle(o)
    room._write_handle(o, **{k: v for k, v in handle.items() if k != 'slurm'})   # we died before it was written down
    code = 'import json, sys; from mlstack.resources import slurm; from mlstack.resources.records import record; o = record(sys.argv[1]); print(json.dumps([slurm.look(o)["state"], slurm._handle(o)["slurm"]]))'
    r = subprocess.run([sys.executable, '-c', code, o.id], capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(house.root)))
    state, number = json.loads(r.stdout)
    assert state in ('waiting', 'running') and number == handle['slurm']
    (place.work/'found').touch()
    assert over(o) == ['finished']

def test_one_question_for_all(place, monkeypatch):
    found = [make(place, ['sh', '-c', 'until [ -e asked ]; do sleep .1; done']) for _ in range(4)]
    room.start(found)
    asked = []
    real = room._call
    monkeypatch.setattr(room, '_call', lambda *a, **kw: (asked.append((a[0], time.monotonic())), real(*a, **kw))[1])
    monkeypatch.setattr(room, '_gentle', 3600.)
    room._heard.clear()
    for o in found: room.look(o)
    room.looks(found)
    assert [a for a, _ in asked] == ['squeue']
    room._heard.clear()
    monkeypatch.undo()
    (place.work/'asked').touch()
    over(*found)

def test_no_secret_reaches_slurm(place, monkeypatch):
    monkeypatch.setenv('MY_API_TOKEN', 'sesame-4711')
    o = make(place, ['sh', '-c', 'echo "token ${MY_API_TOKEN:-none}"'])
    room.start([o])
    number = room._handle(o)['slurm']
    assert over(o) == ['finished'] and 'token none' in log(o)
    for p in [*(place.folder/'state').rglob('*'), o/'slurm.sh', o/'handle.json', o/'log']:
        if p.is_file(): assert b'sesame-4711' not in p.read_bytes(), p
    assert (o/'slurm.sh').stat().st_mode & 0o077 == 0 or o.path.stat().st_mode & 0o077 == 0
    assert number in place.run('squeue', '-h', '-t', 'all', '-o', '%i').stdout


@pytest.fixture
def booked(slurm_accounts, tmp_path_factory):
    yield from _place(slurm_accounts, tmp_path_factory)

def test_with_accounting(booked, monkeypatch):
    def fn(): return 42
    one = submitted(booked, fn)
    hand = submitted(booked, ['true'], not_before=time.time()+3600)
    assert over(one) == ['finished'] and value(one) == 42
    assert room.look(hand)['state'] == 'waiting'
    booked.run('scancel', room._handle(hand)['slurm'])
    monkeypatch.setattr(room, '_queue', lambda conf: ({}, {}))   # as if the controller had forgotten it, as it does after some minutes
    assert over(hand) == ['cancelled'] and hand.final['reason'] == 'cancelled in SLURM'
    late = make(booked, ['true'])
    room._write_handle(late, slurm='4711', task=None, conf=None)
    booked.stop('slurmdbd')
    room._heard.clear()
    said = room.look(late)
    assert said['state'] == 'waiting' and 'accounting does not answer' in said['why'] and not late.final
