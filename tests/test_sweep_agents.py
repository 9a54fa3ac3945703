"Agents of a sweep over a socket: kills at any moment, take-overs, strangers; sweeps that are held, edited, extended."
import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mlstack.core import MlstackError
from mlstack.sweeps import Sweep, SweepError
from mlstack.sweeps import serving
from mlstack.sweeps.serving import connect, serve
from tests import house
from tests.house import wait_for as until

GOOD = '''
method: random
metric: {name: loss, goal: minimize}
run_cap: 8
project: trials
parameters:
  lr: {min: 0.0, max: 1.0}
'''


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    for name in ('STATE','LEASES','QUEUE'): monkeypatch.setenv(f'MLSTACK_{name}', str(tmp_path/name.lower()))
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path/'runs'))
    monkeypatch.delenv('MLSTACK_LEASED', raising=False)


def script(folder, code, *args):
    path = folder/f'script-{abs(hash(code))}.py'
    if not path.exists(): path.write_text(textwrap.dedent(code)) # another process may just be reading it
    return subprocess.Popen([sys.executable,str(path),*map(str,args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)


def lines(s): return [json.loads(o) for o in (s.folder/'journal.jsonl').read_text().splitlines(True) if o.endswith('\n')]


def begun(spec, tmp_path, **kw):
    "A sweep that nobody has."
    s = Sweep(spec, runs_dir=tmp_path/'runs', **kw)
    s.close()
    return s


# one loop of one's own; each call of a trial leaves a line
HAND = '''
    import os, sys, time
    from mlstack.sweeps.serving import connect
    id,pause,most = sys.argv[1],float(sys.argv[2]),int(sys.argv[3])
    def open_gate(s):
        while most and len(s.status()['trials'])>=most and not os.path.exists('hurry'): time.sleep(.01)
        return True
    with connect(id, coordinate=True) as s:
        while open_gate(s) and (t := s.ask()):
            with open('calls','a') as f: f.write(f'{t.number}\\n')
            if t.fresh: s.restart(t)
            for k in range(4):
                time.sleep(pause)
                if not s.report(t, k, t['lr']*(4-k)): break
            s.tell(t)
'''


def undisturbed(spec, tmp_path):
    s = Sweep(spec, runs_dir=tmp_path/'alone')
    while t := s.ask():
        for k in range(4):
            if not s.report(t, k, t['lr']*(4-k)): break
        s.tell(t)
    s.close()
    return s


STOPPING = 'early_terminate: {type: hyperband, min_iter: 2, strict: true}\n'


@pytest.mark.parametrize('method', ['random','grid'])
def test_kills_at_random_moments_lose_and_repeat_nothing(tmp_path, method):
    "Agents are killed in any order, the one that coordinates among them; in the end every trial is there once, with all its reports."
    kills = house.moments(12,100)
    n = 3*kills
    spec = GOOD.replace('run_cap: 8',f'run_cap: {n}') if method=='random' else GOOD.replace('run_cap: 8\n','').replace('random','grid').replace('min: 0.0, max: 1.0','values: ['+', '.join(f'0.{k:03}' for k in range(n))+']')
    s,rng = begun(spec, tmp_path),random.Random(method)
    agents,killed = [],0
    size = lambda: len((s.folder/'journal.jsonl').read_bytes())
    while killed<kills:
        agents = [p for p in agents if p.poll() is None]
        while len(agents)<3: agents.append(script(tmp_path, HAND, s.id, .005, n-10))
        at,more = size(),rng.randrange(100,900)
        end = time.monotonic()+1 # near its end the sweep waits for the last kill
        while size()<at+more and time.monotonic()<end: time.sleep(.005)
        for p in agents: assert p.poll() is None, (p.stdout.read(), p.stderr.read())
        chosen = agents if rng.random()<.15 else [rng.choice(agents)]
        for p in chosen: p.send_signal(signal.SIGKILL)
        for p in chosen: p.wait()
        killed += len(chosen)
    (tmp_path/'hurry').touch()
    for p in agents:
        if p.poll() is None: assert p.wait(300)==0, p.stderr.read()
    last = script(tmp_path, HAND, s.id, 0, 0)
    out,err = last.communicate(timeout=300)
    assert last.returncode==0, err
    told = [o['n'] for o in lines(s) if o['event']=='tell']
    assert sorted(told)==list(range(n))
    after = Sweep(resume=s.id, runs_dir=tmp_path/'runs')
    assert [t.config for t in after.trials]==[t.config for t in undisturbed(spec, tmp_path).trials]
    for t in after.trials: assert t.state=='DONE' and t.reports==[(k,t['lr']*(4-k)) for k in range(4)], (t,t.reports)
    calls = (tmp_path/'calls').read_text().split()
    assert len(calls)<=n+sum(o['event']=='requeue' for o in lines(s)) # who was finished was not called again
    after.close()


def test_one_agent_killed_again_and_again_gives_the_undisturbed_sweep(tmp_path):
    spec = GOOD+STOPPING
    s,rng = begun(spec, tmp_path),random.Random(5)
    for _ in range(house.moments(4,30)):
        p = script(tmp_path, HAND, s.id, .01, 0)
        more = (s.folder/'journal.jsonl').stat().st_size+rng.randrange(50,700)
        until(lambda p=p,more=more: (s.folder/'journal.jsonl').stat().st_size>=more or p.poll() is not None)
        p.kill(); p.wait()
    p = script(tmp_path, HAND, s.id, 0, 0)
    assert p.wait(300)==0, p.stderr.read()
    after = Sweep(resume=s.id, runs_dir=tmp_path/'runs')
    facts = lambda o: [(t.config,t.state,t.value,t.reports) for t in o.trials]
    assert facts(after)==facts(undisturbed(spec, tmp_path))
    after.close()


def test_a_killed_agent_has_lost_its_trial_and_another_has_it_at_once(tmp_path):
    s = Sweep(GOOD, runs_dir=tmp_path/'runs')
    with serve(s):
        p = script(tmp_path, '''
            import sys, time
            from mlstack.sweeps.serving import connect
            s = connect(sys.argv[1])
            t = s.ask(); s.report(t, 0, .5)
            print('has it', flush=True)
            time.sleep(600)
        ''', s.id)
        assert p.stdout.readline()=='has it\n'
        with connect(s.id) as other:
            first = other.ask()
            assert first.number==1
            p.kill(); p.wait()
            again = until(lambda: (t := other.ask(wait=False)) and t.number==0 and t)
            assert (again.attempt,again.reports,again.fresh)==(1,[(0,.5)],True)
            other.restart(again); other.report(again, 0, .4); other.tell(again)
            assert s.trials[0].reports==[(0,.4)] and s.trials[0].state=='DONE'
        assert 'its agent is gone' in next(o['why'] for o in lines(s) if o['event']=='lost')
    s.close()


def test_those_who_wait_are_given_what_is_lost(tmp_path):
    s = Sweep(GOOD.replace('run_cap: 8','run_cap: 1'), runs_dir=tmp_path/'runs')
    with serve(s), connect(s.id) as waits:
        has = connect(s.id)
        assert has.ask().number==0
        found = []
        thread = threading.Thread(target=lambda: found.append(waits.ask()))
        thread.start() # the sweep is not over while somebody may lose the last trial
        until(lambda: any(p.idle for p in list(server_of(s).peers.values())))
        has.close()
        thread.join(300)
        assert found[0].number==0 and found[0].attempt==1
        waits.tell(found[0], .5)
        assert waits.ask() is None and 'run_cap' in waits.over
    s.close()


def server_of(s):
    import gc
    return next(o for o in gc.get_objects() if isinstance(o,serving.Server) and o.sweep is s)


def test_reports_and_tells_that_are_sent_again_count_once(tmp_path):
    "The coordinator wrote them down and died before it answered."
    s = Sweep(GOOD, runs_dir=tmp_path/'runs')
    server = serve(s)
    far = connect(s.id)
    t = far.ask()
    far.report(t, 0, .9)
    s.report(0, 1, .8) # written down, not answered
    server.close(); s.close()
    s = Sweep(resume=s.id, runs_dir=tmp_path/'runs')
    server = serve(s)
    far.report(t, 1, .8)
    far.report(t, 2, .7)
    assert s.trials[0].reports==[(0,.9),(1,.8),(2,.7)]
    s.tell(0) # written down, not answered
    server.close(); s.close()
    s = Sweep(resume=s.id, runs_dir=tmp_path/'runs')
    with serve(s):
        far.tell(t)
        assert (t.state,t.value)==('DONE',.7) and [o['event'] for o in lines(s)].count('tell')==1
        far.close()
    s.close()


def test_who_comes_too_late_has_lost_his_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, '_grace', 0)
    s = Sweep(GOOD, runs_dir=tmp_path/'runs')
    server = serve(s)
    late = connect(s.id)
    t = late.ask()
    server.close(); s.close()
    s = Sweep(resume=s.id, runs_dir=tmp_path/'runs')
    with serve(s), connect(s.id) as other:
        assert other.ask().number==0 # given to another before we came back
        assert late.report(t, 0, .1) is False and 'another agent' in t.stopping
        late.tell(t, .1)
        assert t.state=='LOST' and s.trials[0].reports==[] and s.trials[0].state=='RUNNING'
        late.close()
    s.close()


def test_over_tcp_with_token_and_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, 'BEAT', .2)
    s = Sweep(GOOD, runs_dir=tmp_path/'runs')
    with serve(s, '127.0.0.1:0', token='right') as server:
        for token in ('wrong',None,'','right '):
            with pytest.raises(SweepError, match='token is wrong'): connect(server.address, token=token)
        with connect(server.address, token='right') as lives:
            silent = serving._Lines(serving._dial_tcp(server.address)) # a host that falls silent: no end of file comes
            silent.send(dict(id=1, do='hello', token='right', protocol=serving.PROTOCOL, who='silent'))
            serving._first(silent)
            silent.send(dict(id=2, do='ask', n=1))
            assert serving._first(silent)[0]['trials'][0]['number']==0
            monkeypatch.setattr(serving, 'BEAT', .2)
            again = until(lambda: (t := lives.ask(wait=False)) and t.number==0 and t)
            assert again.attempt==1
            assert lives.status()['peers']
            silent.close()
    s.close()


@pytest.mark.parametrize('said', [b'nonsense\n', b'[]\n', b'{}\n', b'{"do":"ask","id":1}\n', b'{"do":"hello","id":1}\n', b'{"do":"hello","protocol":1,"id":1,"mine":3}\n', b'\x00\xff'*100+b'\n',
    b'{"do":"_lose","id":1}\n', b'{"do":"hello","protocol":1,"id":1}\n{"do":"tell","n":0,"id":2}\n{"do":"report","n":"x","id":3}\n{"do":"ask","n":"many","id":4}\n{"do":"_drop","id":5}\n'])
def test_strangers_do_no_harm(tmp_path, said):
    s = Sweep(GOOD, runs_dir=tmp_path/'runs')
    with serve(s) as server, connect(s.id) as far:
        t = far.ask()
        sock = serving._dial(server.path)
        sock.sendall(said)
        sock.settimeout(300)
        nonsense,got = said[:1] in b'n[\x00',b'' # is not answered, the others are told what is wrong, perhaps after a greeting
        while b'error' not in got and (more := sock.recv(1<<16)) and not nonsense: got += more
        assert nonsense or b'error' in got
        sock.close()
        assert far.report(t, 0, .5)
        far.tell(t)
        assert s.trials[0].value==.5 and len(s.trials)==1
    s.close()


def test_another_version_is_told_so(tmp_path, monkeypatch):
    s = Sweep(GOOD, runs_dir=tmp_path/'runs')
    with serve(s):
        def call():
            with monkeypatch.context() as m:
                m.setattr(serving, '__version__', '9.9')
                lines = serving._Lines(serving._dial(serving._socket_path(s.id)))
                lines.send(dict(id=0, do='hello', protocol=2, version='9.9'))
                return serving._first(lines)[0]['error']
        what,_,do = call()
        assert 'mlstack 9.9 and speaks protocol 2' in what and 'same version' in do
    s.close()


def test_nobody_there_and_a_sweep_that_answers_nobody(tmp_path, monkeypatch):
    s = begun(GOOD, tmp_path)
    with pytest.raises(MlstackError, match='mlstack agent'): connect(s.id)
    with pytest.raises(SweepError, match='there is no sweep'): connect('nope')
    with pytest.raises(SweepError, match='host:port'): connect('nope:port')
    with socket.create_server(('127.0.0.1',0)) as free: port = free.getsockname()[1]
    with pytest.raises(MlstackError, match='nobody answers'): connect(f'127.0.0.1:{port}', token='x')


def test_a_very_long_state_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_STATE', str(tmp_path/('x'*100)/'state'))
    s = Sweep(GOOD, runs_dir=tmp_path/'runs')
    with serve(s), connect(s.id) as far: assert far.ask().number==0
    s.close()


def test_many_agents_at_once(tmp_path):
    s = begun(GOOD.replace('run_cap: 8','run_cap: 60'), tmp_path)
    agents = [script(tmp_path, HAND, s.id, .001, 0) for _ in range(4)]
    for p in agents: assert p.wait(300)==0, p.stderr.read()
    after = Sweep(resume=s.id, runs_dir=tmp_path/'runs')
    assert sorted(map(int,(tmp_path/'calls').read_text().split()))==list(range(60)) and all(t.state=='DONE' for t in after.trials)
    assert [t.config for t in after.trials]==[t.config for t in undisturbed(GOOD.replace('run_cap: 8','run_cap: 60'), tmp_path).trials]
    after.close()


# agents with workers

WORKS = '''
    import sys, time
    import mlstack.tracking as track
    from mlstack.core import context
    from mlstack.sweeps import Sweep
    from mlstack.sweeps.agents import agent
    def train(config):
        with open('calls','a') as f: f.write(context().trial+'\\n')
        for k in range(4):
            time.sleep(.05)
            track.log(loss=config['lr']*(4-k))
    if sys.argv[1]=='run': Sweep(resume=sys.argv[2]).run(train, workers=1)
    else: print(len(agent(sys.argv[2], train, workers=1, progress=False)))
'''


def test_an_agent_takes_over_from_a_killed_coordinator_with_workers(tmp_path):
    s = begun(GOOD, tmp_path)
    first = script(tmp_path, WORKS, 'run', s.id)
    until(lambda: any(o['event']=='ask' for o in lines(s)))
    second = script(tmp_path, WORKS, 'agent', s.id)
    until(lambda: any(o.get('by') for o in lines(s)) or second.poll() is not None)
    first.kill(); first.wait()
    out,err = second.communicate(timeout=300)
    assert second.returncode==0, err
    after = Sweep(resume=s.id, runs_dir=tmp_path/'runs')
    assert [(t.config,t.value,t.reports) for t in after.trials]==[(t.config,t.value,t.reports) for t in undisturbed(GOOD, tmp_path).trials]
    assert sorted(o['n'] for o in lines(s) if o['event']=='tell')==list(range(8)) and int(out)>=1
    after.close()


def test_agents_join_a_run_and_leave_it(tmp_path):
    "From a thread of this process, as from a notebook: one goes after two trials, the run finishes the rest."
    from mlstack.sweeps.agents import agent
    s,had = Sweep(GOOD, runs_dir=tmp_path/'runs'),[]
    def join():
        until(lambda: (s.folder/'coordinator.json').exists())
        had.extend(agent(s.id, lambda c: c['lr'], count=2, progress=False))
    thread = threading.Thread(target=join)
    thread.start()
    def slow(config):
        end = time.monotonic()+120
        while not done.exists() and time.monotonic()<end: time.sleep(.01)
        return config['lr']
    done = tmp_path/'done'
    finisher = threading.Thread(target=lambda: (thread.join(180), done.touch()))
    finisher.start()
    s.run(slow, workers=1, progress=False)
    finisher.join()
    assert len(had)==2 and [t.state for t in s.trials]==['DONE']*8 and [t.value for t in s.trials]==[t['lr'] for t in s.trials]
    assert {o['n'] for o in lines(s) if o.get('by')}=={t.number for t in had}
    s.close()


def test_count_is_for_all_agents_of_a_run(tmp_path):
    s = Sweep(GOOD.replace('run_cap: 8\n',''), runs_dir=tmp_path/'runs')
    errors = []
    def join():
        until(lambda: (s.folder/'coordinator.json').exists())
        try:
            with connect(s.id, patience=0) as far:
                while t := far.ask(): far.tell(t, t['lr'])
        except MlstackError as e: errors.append(e) # the run was over before it could ask
    thread = threading.Thread(target=join)
    thread.start()
    s.run(lambda c: c['lr'], workers=1, count=5, progress=False)
    assert len(s.trials)==5
    s.close()
    thread.join(300)


def test_a_lost_trial_does_not_use_up_the_count(tmp_path):
    "Its worker is killed when all that were asked for have been given out; an old one that was lost is counted as any other."
    def train(config):
        from mlstack.core import context
        if context().attempt==0: os.kill(os.getpid(), signal.SIGKILL)
        return config['lr']
    s = Sweep(GOOD, runs_dir=tmp_path).run(train, workers=2, count=2, progress=False)
    assert [(t.state,t.attempt) for t in s.trials]==[('DONE',1)]*2
    s.lost(s.ask())
    s.run(train, workers=1, count=2, progress=False)
    assert [(t.state,t.attempt) for t in s.trials]==[('DONE',1)]*4
    s.close()
    from mlstack.sweeps.agents import agent
    had = agent(s.id, train, count=1, progress=False, runs_dir=tmp_path)
    assert [t.state for t in had]==['DONE'] and sum(t.state=='DONE' for t in Sweep(resume=s.id, runs_dir=tmp_path).trials)==5


def test_pause_resume_and_cancel_from_another_process(tmp_path):
    s = Sweep(GOOD, runs_dir=tmp_path/'runs')
    log = []
    def control():
        until(lambda: (s.folder/'coordinator.json').exists())
        with connect(s.id) as far:
            until(lambda: any(t.reports for t in s.trials))
            far.control('pause', 'lunch')
            (tmp_path/'go').touch()
            until(lambda: all(t.state=='DONE' for t in s.trials)) # those that ran are finished, and no more begun
            log.append((len(s.trials), far.status()['held']))
            far.control('resume')
            until(lambda: len(s.trials)>log[0][0])
            log.append(far.status()['held'])
            (tmp_path/'go').unlink()
            until(lambda: any(t.state=='RUNNING' and t.reports for t in s.trials))
            far.control('cancel', 'enough')
    def train(config):
        import mlstack.tracking as track
        for _ in range(3):
            track.log(loss=config['lr'])
            end = time.monotonic()+120
            while not (tmp_path/'go').exists() and time.monotonic()<end: time.sleep(.01); track.log(other=1)
    tmp = tmp_path
    thread = threading.Thread(target=control)
    thread.start()
    s.run(train, workers=1, progress=False)
    thread.join(300)
    assert log==[(1,'paused'),''] and 'enough' in s.over and len(s.trials)<8
    s.close()
    s = Sweep(resume=s.id, runs_dir=tmp/'runs')
    with pytest.raises(SweepError, match='stopped'): s.run(lambda c: c['lr'], progress=False)
    s.resume()
    s.run(lambda c: c['lr'], progress=False)
    assert [t.state for t in s.trials]==['DONE']*8
    s.close()


def test_a_function_that_fails_three_times_ends_an_agent_and_not_the_sweep(tmp_path):
    from mlstack.sweeps.agents import agent
    s = begun(GOOD, tmp_path)
    with pytest.raises(SweepError, match="the first 3 trials failed.*KeyError: 'nope'"): agent(s.id, lambda c: c['nope'], progress=False)
    assert len(agent(s.id, lambda c: c['lr'], progress=False))==5
    after = Sweep(resume=s.id, runs_dir=tmp_path/'runs')
    assert [t.state for t in after.trials]==['FAILED']*3+['DONE']*5 and all("c['nope']" in t.error for t in after.trials[:3])
    after.close()


def test_memory_that_is_not_enough_is_no_bad_value(tmp_path):
    def train(config):
        if config['width']>2: raise MemoryError('cannot allocate')
        return config['width']
    s = Sweep(dict(method='grid', metric=dict(name='loss'), parameters=dict(width=dict(values=[3,4,5,6,1,2]))), runs_dir=tmp_path/'runs')
    s.run(train, workers=1, progress=False) # three of these would else end the sweep
    assert [(t.state,t.infeasible) for t in s.trials]==[('FAILED',True)]*4+[('DONE',False)]*2
    assert 'infeasible' in s.trials[0].why
    s.close()
    assert Sweep(resume=s.id, runs_dir=tmp_path/'runs').trials[0].infeasible


def test_slots_are_leases_that_do_not_overlap(tmp_path, monkeypatch):
    from mlstack.resources import leases
    from mlstack.sweeps.agents import slots
    cores = tuple(sorted(os.sched_getaffinity(0)))
    monkeypatch.setattr(leases, 'this_machine', lambda: leases.Machine({'GPU-a':80<<30,'GPU-b':80<<30}, (0,1,2,3), 64<<30, tmp_path/'locks'))
    monkeypatch.setattr(leases, 'strangers', lambda held: {})
    with slots(4, dict(gpus=.5, cpus=1, mem='4G')) as (envs,threads):
        assert sorted(o['CUDA_VISIBLE_DEVICES'] for o in envs)==['GPU-a','GPU-a','GPU-b','GPU-b'] and sorted(o['MLSTACK_CORES'] for o in envs)==['0','1','2','3'] and threads==1
        assert len(leases.holders(tmp_path/'locks'))==4
    assert not leases.holders(tmp_path/'locks')
    with pytest.raises(MlstackError, match='cannot be had beside'), slots(3, dict(gpus=1)): pass
    monkeypatch.setenv('MLSTACK_LEASED', 'job') # within a job: of what it has, and nobody else is asked
    with slots(2, dict(gpus=1)) as (envs,_):
        assert {o['CUDA_VISIBLE_DEVICES'] for o in envs}=={'GPU-a','GPU-b'} and not leases.holders(tmp_path/'locks')
    assert cores


def test_workers_keep_their_slot_also_when_they_are_replaced(tmp_path):
    def train(config):
        from mlstack.core import context
        if config['k'] in (0,3) and context().attempt==0: os.kill(os.getpid(), signal.SIGKILL)
        return dict(loss=float(os.environ['MLSTACK_CORES']), n=1) if [*os.sched_getaffinity(0)]==[int(os.environ['MLSTACK_CORES'])] and os.environ['OMP_NUM_THREADS']=='1' else None
    cores = sorted(os.sched_getaffinity(0))
    s = Sweep(dict(method='grid', metric=dict(name='loss'), parameters=dict(k=dict(values=list(range(6))))), runs_dir=tmp_path/'runs')
    s.run(train, workers=min(2,len(cores)), cpus=1, progress=False)
    assert all(t.state=='DONE' and t.value in cores for t in s.trials), s.trials
    s.close()


# sweeps that live long

def test_a_raised_cap_continues_where_it_was(tmp_path):
    def go(s):
        while t := s.ask(): s.tell(t, t['lr'])
        s.close()
        return [t.config for t in s.trials]
    first = Sweep(GOOD, runs_dir=tmp_path/'runs')
    go(first)
    more = Sweep(GOOD.replace('run_cap: 8','run_cap: 12'), resume=True, runs_dir=tmp_path/'runs')
    assert more.id==first.id
    assert go(more)==go(Sweep(GOOD.replace('run_cap: 8','run_cap: 12'), runs_dir=tmp_path/'other'))


@pytest.mark.parametrize('method', ['random','bayes'])
def test_an_edit_keeps_what_fits_and_replays_the_same(tmp_path, method):
    spec = f'''
method: {method}
metric: {{name: loss}}
run_cap: 4
parameters:
  lr: {{min: 0.0, max: 1.0}}
  opt: {{values: [sgd, adam]}}
'''
    def go(s, n):
        for _ in range(n):
            if (t := s.ask()) is None: break
            s.tell(t, (t['lr']-.3)**2)
        return s
    s = go(Sweep(spec, runs_dir=tmp_path/'runs'), 4)
    s.close()
    narrow = spec.replace('max: 1.0','max: 0.5').replace('[sgd, adam]','[sgd, adam, lion]').replace('run_cap: 4','run_cap: 7')
    e = go(Sweep(narrow, resume=s.id, runs_dir=tmp_path/'runs'), 2)
    assert [t.point is not None for t in e.trials[:4]]==[t['lr']<=.5 for t in e.trials[:4]]
    assert all(t['lr']<=.5 for t in e.trials[4:])
    e.close()
    again = Sweep(resume=s.id, runs_dir=tmp_path/'runs')
    assert [(t.config,t.point) for t in again.trials]==[(t.config,t.point) for t in e.trials] and again.search.points==e.search.points and again.search.scores==e.search.scores
    go(again, 99)
    assert len(again.trials)==7 and 'before it was edited' in ''.join(again.explain(t) for t in again.trials)
    again.close()


def test_an_edit_of_constraints_and_of_what_is_conditional(tmp_path):
    spec = dict(method='random', metric=dict(name='loss'), parameters=dict(opt=dict(values=['sgd','adam']), m=dict(min=0., max=1., condition=dict(opt='sgd')), w=dict(values=[1,2,4]), d=dict(values=[1,2,4])))
    s = Sweep(spec, runs_dir=tmp_path/'runs')
    for _ in range(12): s.tell(s.ask(), 1.)
    assert {t['opt'] for t in s.trials}=={'sgd','adam'} and {t['w']*t['d']<=4 for t in s.trials}=={True,False}
    s.edit(spec|dict(constraints=['w * d <= 4']))
    assert [t.point is not None for t in s.trials]==[t['w']*t['d']<=4 for t in s.trials]
    for _ in range(12): s.tell(t := s.ask(), 1.); assert t['w']*t['d']<=4
    s.close()
    again = Sweep(resume=s.id, runs_dir=tmp_path/'runs')
    assert [(t.config,t.point) for t in again.trials]==[(t.config,t.point) for t in s.trials]
    several = {k:v for k,v in spec.items() if k!='metric'}|dict(metrics=[dict(name='loss'),dict(name='size')])
    with pytest.raises(SweepError, match='the metric differs'): again.edit(several)
    again.close()


def test_a_trial_is_trained_further_from_its_checkpoint(tmp_path):
    def train(config):
        import mlstack.tracking as track
        from mlstack.core import context
        saved = Path(context().checkpoints)/'epoch'
        begin = int(saved.read_text()) if saved.exists() else 0
        for epoch in range(begin, config['epochs']):
            track.log(dict(loss=1/(epoch+1)), step=epoch)
            saved.parent.mkdir(parents=True, exist_ok=True)
            saved.write_text(str(epoch+1))
        with open(config['log'],'a') as f: f.write(f'{begin}\n')
    spec = dict(method='grid', metric=dict(name='loss'), parameters=dict(k=dict(values=[1,2]), epochs=dict(value=3), log=dict(value=str(tmp_path/'log'))))
    s = Sweep(spec, runs_dir=tmp_path/'runs').run(train, workers=1, progress=False)
    s.extend(1, epochs=6)
    s.run(train, workers=1, progress=False)
    assert s.trials[1].reports==[(k,1/(k+1)) for k in range(6)] and s.trials[1].value==1/6 and s.trials[0].value==1/3
    assert (tmp_path/'log').read_text().split()==['0','0','3']
    s.close()
    again = Sweep(resume=s.id, runs_dir=tmp_path/'runs')
    assert again.trials[1].config['epochs']==6 and again.ask() is None
    again.close()


def test_a_journal_of_a_newer_version_is_refused_and_unknown_lines_are_kept(tmp_path):
    s = begun(GOOD, tmp_path)
    path = s.folder/'journal.jsonl'
    with path.open('a') as f: f.write('{"event": "remark", "text": "by a newer version"}\n')
    Sweep(resume=s.id, runs_dir=tmp_path/'runs').close()
    assert 'remark' in path.read_text()
    path.write_text(path.read_text().replace('"format": 1','"format": 2'))
    with pytest.raises(SweepError, match='newer mlstack'): Sweep(resume=s.id, runs_dir=tmp_path/'runs')


@pytest.mark.parametrize('durable', [True,False])
def test_what_is_told_survives_sigkill_also_without_waiting_for_the_disk(tmp_path, durable):
    p = script(tmp_path, f'''
        import os
        from mlstack.sweeps import Sweep
        s = Sweep({GOOD.replace('run_cap: 8','run_cap: 500')!r}, durable={durable})
        while t := s.ask():
            s.tell(t, t['lr'])
            print(t.number, flush=True)
    ''')
    for _ in range(50): last = int(p.stdout.readline())
    p.kill(); p.wait()
    s = Sweep(GOOD.replace('run_cap: 8','run_cap: 500'), resume=True, runs_dir=tmp_path/'runs')
    assert sum(t.state=='DONE' for t in s.trials)>last>=49
    s.close()


@pytest.mark.probe('small_disk')
def test_a_full_disk_is_said_to_agents_too(tmp_path):
    r = house.on_small_disk(f'''
from mlstack.sweeps import Sweep
from mlstack.sweeps.serving import connect, serve
s = Sweep({GOOD.replace('run_cap: 8','run_cap: 100000')!r}, runs_dir={str(tmp_path/'disk')!r})
with serve(s), connect(s.id, runs_dir={str(tmp_path/'disk')!r}) as far:
    try:
        while t := far.ask(): far.tell(t, t['lr'])
    except Exception as e: print(type(e).__name__, str(e)[:29])
    whole = (s.folder/'journal.jsonl').read_bytes()
    print(whole.endswith(b'\\n'), len(far.trials)>10)
''', small(tmp_path), MLSTACK_STATE=tmp_path/'state')
    assert r.stdout=='SweepError the journal cannot be written\nTrue True\n', r


def small(tmp_path):
    (tmp_path/'disk').mkdir()
    return tmp_path/'disk'
