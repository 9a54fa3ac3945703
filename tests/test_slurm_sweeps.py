"Sweeps on a real SLURM: agents that are preempted, warned and killed, and a coordinator that is gone."
import json, os, subprocess, sys, threading
import pytest
from mlstack.resources import jobs, submit
from mlstack.sweeps import Sweep, SweepError, connect, read_sweep, serve
from tests import house
from tests.test_slurm_jobs import _place, until

SPEC = dict(method='random', metric=dict(name='loss'), run_cap=4, parameters=dict(lr=dict(min=0., max=1.)))

@pytest.fixture(scope='module')
def place(slurm, tmp_path_factory): yield from _place(slurm, tmp_path_factory)

@pytest.fixture
def runs(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place.work)
    return tmp_path/'runs'

def slow(config):
    "Keeps its epoch where its context says."
    import time
    from pathlib import Path
    import mlstack.tracking as track
    from mlstack.core import context
    saved = Path(context().checkpoints)/'epoch'
    start = int(saved.read_text()) if saved.exists() else 0
    for epoch in range(start, 20):
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_text(str(epoch))
        time.sleep(.25*(epoch > 3 and not context().attempt))
        track.log(dict(loss=config['lr']/(epoch+1)), step=epoch)

def by_value(fn):
    import types
    return types.FunctionType(fn.__code__, {'__builtins__': __builtins__, '__name__': '__main__'}, fn.__name__)

def behind(s, **kw):
    "The call of `run` on a thread of its own."
    def call():
        try: s.run(by_value(slow), on='slurm', progress=False, **kw)
        except BaseException as e: raised.append(e)
    raised = []
    t = threading.Thread(target=call, daemon=True)
    t.start()
    return t, raised

def elements(s): return [o for o in jobs() if o.name == f'sweep-{s.id}']

def test_the_trials_of_a_local_run(place, runs):
    def train(config): return config['lr']
    s = Sweep(SPEC, seed=3, runs_dir=runs)
    spied = []
    def spy():
        facts = s.folder/'coordinator.json'
        until(facts.exists)
        spied.append((json.loads(facts.read_text()), facts.stat().st_mode & 0o777))
    t = threading.Thread(target=spy)
    t.start()
    s.run(train, workers=2, on='slurm', progress=False)
    t.join()
    alone = Sweep(SPEC, seed=3, runs_dir=runs/'alone')
    assert [o.config for o in s.trials] == [alone.ask().config for _ in range(4)]
    assert [o.value for o in s.trials] == [o.config['lr'] for o in s.trials]
    (facts, mode), = spied
    assert mode == 0o600 and facts['address'].rpartition(':')[0] == os.uname().nodename
    found = elements(s)
    assert len(found) == 2 and all(o.over() for o in found) and 'failed' not in {o.state for o in found}
    for p in [*(place.folder/'state').rglob('*'), *(q for o in found for q in o.record.path.rglob('*'))]:
        if p.is_file(): assert facts['token'].encode() not in p.read_bytes(), p

@pytest.mark.parametrize('how', ['preempted', 'warned'])
def test_a_trial_goes_on_after_its_element_had_to_leave(place, runs, how):
    s = Sweep(SPEC | dict(run_cap=2), runs_dir=runs)
    t, raised = behind(s, workers=1, slurm=dict(partition='spot'), time='10m')
    until(lambda: raised or s.trials and len(s.trials[0].reports) > 5)
    o, = elements(s)
    at = json.loads((o.record/'handle.json').read_text())
    if how == 'warned': place.run('scancel', '--batch', '--signal=USR1', at['slurm'] if at['task'] is None else f'{at["slurm"]}_{at["task"]}')
    else: other = submit(['sleep', '1'], cpus=4, on='slurm', slurm=dict(partition='main', nodelist=place.run('squeue', '-h', '-j', at['slurm'], '-o', '%N').stdout.strip()))
    t.join(120)
    assert not raised and not t.is_alive(), (raised, s.trials, o.logs())
    first = s.trials[0]
    assert first.state == s.trials[1].state == 'DONE' and (first.attempt, first.losses) == (1, 0), (first, o.logs())
    assert [k for k, _ in first.reports] == [*range(20)]
    assert [a['state'] for a in o.attempts] == ['preempted' if how == 'preempted' else 'timeout', 'finished'], o.logs()
    if how == 'preempted': assert other.wait(60)

def test_an_element_that_is_killed(place, runs):
    s = Sweep(SPEC | dict(run_cap=3), runs_dir=runs)
    t, raised = behind(s, workers=2)
    until(lambda: raised or len(s.trials) > 1 and len(s.trials[0].reports) > 5)
    place.run('kill', '-9', s.trials[0].by['pid'])
    t.join(120)
    assert not raised and not t.is_alive(), (raised, s.trials)
    assert [o.state for o in s.trials] == ['DONE']*3 and (s.trials[0].losses, s.trials[0].attempt) == (1, 1)

def test_the_coordinator_is_killed(place, runs):
    code = '''if True:
        import sys
        from tests.test_slurm_sweeps import SPEC, by_value, slow
        from mlstack.sweeps import Sweep
        Sweep(SPEC, runs_dir=sys.argv[1]).run(by_value(slow), workers=2, on='slurm', count=3, progress=False)'''
    p = subprocess.Popen([sys.executable, '-c', code, str(runs)], env=os.environ | dict(PYTHONPATH=str(house.root)))
    try:
        path = until(lambda: next(runs.glob('*/sweeps/*/journal.jsonl'), None))
        until(lambda: path.read_text().count('"report"') > 12)
    finally:
        p.kill()
        p.wait()
    def done():
        s = read_sweep(path)
        return s if sum(o.state == 'DONE' for o in s.trials) == 3 else None
    s = until(done, 120)
    until(lambda: all(o['state'] not in ('waiting', 'running') for o in [dict(state=o.state) for o in elements(s)]), 60)
    assert len(s.trials) == 3 and not any(o.losses for o in s.trials)   # and not more than were asked for
    assert {o.state for o in elements(s)} == {'finished'}

def test_a_function_that_fails_at_once(place, runs, capsys):
    def broken(config): return config['learning_rate']
    s = Sweep(SPEC | dict(run_cap=9), runs_dir=runs)
    with pytest.raises(SweepError, match='the first 3 trials failed') as e: s.run(broken, workers=2, on='slurm', progress=False)
    assert 'learning_rate' in str(e.value) and 'go on with resume' in capsys.readouterr().out
    assert all(o.over() for o in elements(s))

def test_suspended_from_afar(tmp_path):
    s = Sweep(SPEC | dict(run_cap=1), runs_dir=tmp_path/'runs')
    with serve(s, '127.0.0.1:0') as server, connect(server.address, server.token) as far:
        a = far.ask()
        assert far.report(a, 0, .5) and not far.suspend(a, 'preempted') and s.trials[0].state == 'LOST'
        b = far.ask()
        assert (b.id, b.attempt) == (a.id, 1) and far.report(b, 0, .5)
        assert far.suspend(b, 'preempted', saved=True) and s.trials[0].state == b.state == 'PAUSED'
        assert not server.over()   # it waits for a place, not for the end
        c = far.ask()
        assert (c.id, c.attempt, s.trials[0].losses) == (a.id, 2, 0)
        far.tell(c, .1)
        with pytest.raises(SweepError, match='told once'): far.suspend(c)
    assert s.trials[0].value == .1
