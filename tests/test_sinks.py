"""Sinks under fire: killed followers and killed trainings, full disks, several sinks at once, resumes, rewinds, forks; every point counted once."""
import json, os, random, signal, subprocess, sys, time, warnings
from pathlib import Path

import numpy as np
import pytest

import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError
from mlstack.tracking import recorder, sinks
from mlstack.tracking.columns import compact
from mlstack.tracking.sinks import Follower, Tail, copies
from tests import house

KILLS = house.moments(4, 40)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path/'runs'))
    monkeypatch.delenv('MLSTACK_SINKS', raising=False)
    core.set_process_context(None)
    yield tmp_path/'runs'
    while recorder._current: recorder._current[-1].finish()
    core.set_process_context(None)

def python(code, *args, **kw):
    env = {k: v for k, v in os.environ.items() if not k.startswith('MLSTACK_') or k == 'MLSTACK_RUNS'} | dict(PYTHONPATH=str(house.root))
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **kw)

def done(path, state='done', seconds=300):
    "Wait until every copy of a run has come that far."
    end = time.monotonic()+seconds
    while not (found := copies(path)) or any(o['state'] != state for o in found):
        assert time.monotonic() < end, (found, (Path(path)/'sync.log').read_text()[-2000:] if (Path(path)/'sync.log').exists() else '')
        time.sleep(.05)
    return found

def scalars(place, tag='loss'):
    "What TensorBoard's own reader finds."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return [(o.step, o.value) for o in EventAccumulator(str(place), size_guidance=dict(scalars=0)).Reload().Scalars(tag)]

def status(place):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata
    found = EventAccumulator(str(place)).Reload()
    try: return metadata.parse_session_end_info_plugin_data(found.SummaryMetadata('_hparams_/session_end_info').plugin_data.content).status
    except KeyError: return 0

def wanted(n, start=0): return [(i, float(np.float32(i/3))) for i in range(start, n)]

def alive(pid):
    try: return (Path('/proc')/str(pid)/'stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError: return False


# -- what is new in a run ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('seed', range(5))
def test_the_tail_gives_each_row_once_and_in_order(seed):
    "Rows of several lanes and files of lines come in pieces of any size, while they are written and compacted, with the reader begun anew now and then."
    rng, run = random.Random(seed), track.init(surroundings=False)
    want, got, cursor = [], [], {}
    def read(until=None):
        nonlocal cursor
        tail = Tail(run.path, cursor)
        while rows := tail.ahead(rng.choice([1, 2, 7, 100])):
            if rng.random() < .05: break  # these were not copied
            got.extend(rows)
            tail.take()
            if until and rng.random() < .1: break
        cursor = json.loads(json.dumps(tail.cursor))
        return not rows
    for i in range(400):
        row = rng.choice([{'a': i/3}, {'b': i, 'c': .5}, {'text': str(i)}, {'a': -1., 'note': 'x'}, {'b': i, 'c': .5, 'big': 2**60+i}])
        run.log(row)
        want.append((i, row))
        if rng.random() < .1: read(5)
    run.finish()
    read(5)
    compact(run.path)
    while not read(): pass
    assert [(step, row) for step, _, row in got] == want and [at for _, at, _ in got] == sorted(at for _, at, _ in got)

def test_long_lines_and_odd_clocks(monkeypatch):
    run, clock = track.init(surroundings=False), iter([1.7e9, 1.7e9-50, 1.7e9-49, 1.7e9+1, 1.7e9-60]+[1.7e9+2]*100)
    monkeypatch.setattr(time, 'time', lambda: next(clock))
    for i in range(5): run.log({'x': i/3} if i % 2 else {'s': 'y'*(3 << 20)})
    monkeypatch.undo()
    run.finish()
    for most in (1, 2, 100):
        tail, got = Tail(run.path, {}), []
        while rows := tail.ahead(most):
            got += rows
            tail.take()
        assert sorted(step for step, _, _ in got) == list(range(5)), most

def test_a_million_points_are_not_held_at_once():
    run = track.init(surroundings=False)
    for i in range(200_000): run.log({'a': 1., 'b': i/3})
    run.log(c=1.)
    run.finish()
    tail, sizes = Tail(run.path, {}), []
    while rows := tail.ahead():
        sizes.append(len(rows))
        tail.take()
    assert sum(sizes) == 200_001 and max(sizes) <= 2001


# -- live -------------------------------------------------------------------------------------------------------------------------

def test_rows_arrive_while_the_run_goes_on(tmp_path):
    run = track.init(project='p', name='n', config=dict(lr=1.), sinks=(f'tensorboard:{tmp_path}/logs',))
    for i in range(100): run.log(loss=i/3)
    end = time.monotonic()+300
    while not copies(run) or copies(run)[0]['rows'] < 100:
        assert time.monotonic() < end
        time.sleep(.05)
    place = Path(copies(run)[0]['place'])
    assert scalars(place) == wanted(100) and status(place) == 0 and run.state == 'running' and run._listeners == ()
    run.finish()
    run.copying.join()
    told, = copies(run)
    assert told['state'] == 'done' and scalars(place) == wanted(100) and status(place) == 1 and place.parent == tmp_path/'logs'

def test_the_training_imports_nothing_for_it(tmp_path):
    p = python(f'''
import sys, mlstack.tracking as track
run = track.init(sinks=['tensorboard:{tmp_path}/logs', 'wandb'], surroundings=False)
run.log(x=1.)
print([o for o in ('numpy', 'wandb', 'mlflow', 'mlstack.tracking.tensorboard', 'mlstack.tracking.wandb_sync', 'mlstack.tracking.query') if o in sys.modules], run.path)
''', cwd=tmp_path)
    out, err = p.communicate(timeout=300)
    assert p.returncode == 0 and out.startswith('[] '), (out, err)
    done(Path(out.split()[-1]))

def test_from_settings_and_the_environment(tmp_path, monkeypatch, folder):
    monkeypatch.setenv('MLSTACK_SINKS', f'tensorboard, tensorboard:{tmp_path}/b')
    run = track.init(project='p', surroundings=False)
    run.log(loss=0.)
    run.finish()
    run.copying.join()
    places = sorted(o['place'] for o in done(run))
    assert places == sorted([str(tmp_path/'b'/run.name), str(folder/'.tensorboard'/'p'/run.name)]) and all(scalars(o) == [(0, 0.)] for o in places)
    assert [o.id for o in track.runs()] == [run.id]  # the folder with TensorBoard's files is no project

@pytest.mark.parametrize('bad, says', [('tensorbord', 'not allowed'), (['wandb', 'csv:x'], 'not allowed'), ([3], 'is no sink'), ('wandb:sometimes', 'no mode')])
def test_bad_names(bad, says):
    with pytest.raises(MlstackError, match=says):
        track.init(sinks=bad) if 'sometimes' not in bad else track.sync(track.init(), to=bad)

def test_two_sinks_at_once_and_a_third_later(tmp_path):
    run = track.init(sinks=[f'tensorboard:{tmp_path}/a', f'tensorboard:{tmp_path}/b'], surroundings=False)
    for i in range(300): run.log(loss=i/3)
    run.finish()
    run.copying.join()
    c, = track.sync(run, to=f'tensorboard:{tmp_path}/c')
    for place in [*(o['place'] for o in done(run)), c]: assert scalars(place) == wanted(300)
    assert len(copies(run)) == 3


# -- kills ------------------------------------------------------------------------------------------------------------------------

TRAIN = """
import sys, time, mlstack.tracking as track
run = track.init(id='killed', project='p', sinks=['tensorboard:'+sys.argv[1]], resume=True, surroundings=False)
start = run.step
print(run.path, flush=True)
for i in range(start, start+10**6):
    run.log(loss=i/3)
    if i % 50 == 49: print(i+1, flush=True); time.sleep(.02)
"""

def test_a_killed_training_is_shown_as_killed_with_its_last_row(tmp_path):
    p = python(TRAIN, tmp_path/'logs', start_new_session=True)
    path, n = p.stdout.readline().strip(), 0
    while n < 1000: n = int(p.stdout.readline())
    os.killpg(p.pid, signal.SIGKILL)
    n = max([n, *(int(o) for o in p.communicate()[0].split())])
    told, = done(path)
    found = scalars(told['place'])
    assert len(found) >= n and found == wanted(len(found)) and status(told['place']) == 2
    assert len(found) == len(track.runs()[0].metric('loss')[0]) and track.runs()[0].state == 'killed'

def test_a_resumed_run_goes_on_where_it_stopped(tmp_path):
    n = 0
    for _ in range(3):
        p = python(TRAIN, tmp_path/'logs', start_new_session=True)
        path = p.stdout.readline().strip()
        for _ in range(10): p.stdout.readline()
        os.killpg(p.pid, signal.SIGKILL)
        p.communicate()
        if random.random() < .5: done(path)
    told, = done(path)
    end = time.monotonic()+300
    while len(found := scalars(told['place'])) < (n := len(track.runs()[0].metric('loss')[0])):
        assert time.monotonic() < end
        time.sleep(.1)
    assert found == wanted(n) and n >= 1500 and len(copies(path)) == 1

def test_a_follower_killed_at_any_moment_doubles_nothing(tmp_path):
    "Killed again and again while it copies; then sync brings the rest. TensorBoard's reader counts."
    to, rng, partly = f'tensorboard:{tmp_path}/logs', random.Random(7), 0
    for _ in range(10):  # on a busy machine it may be through before we look
        run = track.init(surroundings=False)
        for i in range(60_000): run.log(loss=i/3)
        run.finish()
        place = tmp_path/'logs'/run.name
        for i in range(KILLS):
            until = 60_000*(i+rng.random())/(KILLS+1)
            p = sinks._process('follow', to, [run.path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while p.poll() is None and sum(o['rows'] for o in copies(run)) <= until: time.sleep(.002)
            p.kill()
            p.wait()
            partly += 0 < copies(run)[0]['rows'] < 60_000
        if partly: break
    assert partly, 'no kill came in the middle'
    track.sync(run, to=to)
    found = scalars(place)
    assert len(found) == 60_000 and found == wanted(60_000)
    assert track.sync(run, to=to) == [place] and len(scalars(place)) == 60_000  # and once more

def test_a_dead_follower_is_started_again_at_the_end(tmp_path):
    run = track.init(sinks=f'tensorboard:{tmp_path}/logs', surroundings=False)
    pid = run._followers[0][1].pid
    for i in range(100): run.log(loss=i/3)
    os.kill(pid, signal.SIGKILL)
    while alive(pid): time.sleep(.01)
    run.log(loss=100/3)
    run.finish()
    run.copying.join()
    assert scalars(done(run)[0]['place']) == wanted(101)

def test_the_run_is_removed_under_the_follower(tmp_path):
    import shutil
    run = track.init(sinks=f'tensorboard:{tmp_path}/logs', surroundings=False)
    p = run._followers[0][1]
    run.log(loss=1.)
    run._followers = ()
    run.finish()
    while run.path.exists(): shutil.rmtree(run.path, ignore_errors=True) # the follower may write its state meanwhile
    assert p.wait(300) == 0


# -- sinks that do not work -------------------------------------------------------------------------------------------------------

def test_a_folder_that_cannot_be_written(tmp_path):
    "The training sees nothing of it but one warning at the end; when the cause is mended, sync brings everything."
    (tmp_path/'file').write_text('not a folder')
    to = f'tensorboard:{tmp_path}/file/logs'
    run = track.init(sinks=to, surroundings=False)
    for i in range(50): run.log(loss=i/3)
    done(run, 'failing')
    run.log(loss=50/3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always'); warnings.simplefilter('ignore', ResourceWarning) # of what other tests have left
        run.finish()
    assert len(told) == 1 and 'TensorBoard does not work (NotADirectoryError' in str(told[0].message) and 'track.sync' in str(told[0].message)
    assert 'NotADirectoryError' in (run.path/'sync.log').read_text() and run.state == 'finished'
    with pytest.raises(MlstackError, match='TensorBoard did not take this run: NotADirectoryError'): track.sync(run, to=to)
    (tmp_path/'file').unlink()
    place, = track.sync(run, to=to)
    assert scalars(place) == wanted(51)
    run._followers[0][1].wait(300)  # it found out by itself, and doubled nothing
    assert scalars(place) == wanted(51)

def test_it_mends_itself_while_the_run_goes_on(tmp_path):
    (tmp_path/'file').write_text('not a folder')
    run = track.init(sinks=f'tensorboard:{tmp_path}/file/logs', surroundings=False)
    run.log(loss=0.)
    done(run, 'failing')
    (tmp_path/'file').unlink()
    done(run, 'copying')
    run.finish()
    run.copying.join()
    assert scalars(done(run)[0]['place']) == wanted(1)

def test_a_package_that_is_missing(monkeypatch):
    "Not tried again: nothing would change."
    monkeypatch.setitem(sinks.SINKS, 'wandb', 'a_package_that_is_not_there:Sink')
    with track.init(surroundings=False) as run: run.log(x=1.)
    assert Follower(run.path, 'wandb').run() is False
    told, = copies(run)
    assert told['state'] == 'failed' and 'ModuleNotFoundError' in told['error']

@pytest.mark.probe('small_disk')
def test_a_full_disk_of_the_sink(tmp_path):
    "What fits is there, whole; with room made the rest follows and nothing twice."
    (tmp_path/'small').mkdir()
    code = f'''
import os, sys, time
sys.path.insert(0, {str(house.root)!r})
os.environ['MLSTACK_RUNS'] = {str(tmp_path/'runs')!r}
import mlstack.tracking as track
from mlstack.tracking import sinks
from mlstack.tracking.sinks import Follower, copies
filler = open({str(tmp_path/'small'/'filler')!r}, 'wb')
filler.write(b'x'*200_000); filler.close()
with track.init(surroundings=False) as run:
    for i in range(10_000): run.log(loss=i/3)
sinks.PATIENCE = 0
ok = Follower(run.path, 'tensorboard:{tmp_path}/small/logs').run()
print(ok, copies(run)[0]['state'], copies(run)[0]['error'])
os.unlink(filler.name)
place, = track.sync(run, to='tensorboard:{tmp_path}/small/logs')
back = track.load(place, dir={str(tmp_path/'back')!r})[0]
print(len(back.metric('loss')[0]), back.metric('loss')[0].tolist() == list(range(10_000)))
'''
    out = house.on_small_disk(code, tmp_path/'small', size='600k').stdout
    lines = out.splitlines()
    assert lines[-2].startswith('False failed OSError: [Errno 28]') and lines[-1] == '10000 True', out


# -- going back, forking ----------------------------------------------------------------------------------------------------------

def test_a_rewound_run_is_shown_as_it_is_now(tmp_path):
    to = f'tensorboard:{tmp_path}/logs'
    with track.init(project='p', surroundings=False) as run:
        for i in range(100): run.log(loss=i/3)
    place, = track.sync(run, to=to)
    again = track.init(project='p', resume_from=f'{run.id}?_step=49', sinks=to, surroundings=False)
    for i in range(50, 80): again.log(loss=i/3)
    again.finish()
    again.copying.join()
    assert scalars(place) == wanted(80) and len(copies(again)) == 1

def test_a_fork_has_a_copy_of_its_own(tmp_path):
    to = f'tensorboard:{tmp_path}/logs'
    with track.init(project='p', sinks=to, surroundings=False) as run:
        for i in range(100): run.log(loss=i/3)
    run.copying.join()
    fork = track.init(project='p', fork_from=f'{run.id}?_step=9', sinks=to, surroundings=False)
    fork.log(loss=10/3)
    fork.finish()
    fork.copying.join()
    assert scalars(done(run)[0]['place']) == wanted(100) and scalars(done(fork)[0]['place']) == wanted(11)

def test_rows_of_a_forked_child_and_of_another_rank(tmp_path):
    run = track.init(id='shared', project='p', sinks=f'tensorboard:{tmp_path}/logs', surroundings=False)
    for i in range(50): run.log(loss=i/3)
    if not (pid := os.fork()):
        for i in range(50): run.log(dict(child=i/3), step=i)
        run.finish()
        os._exit(0)
    os.waitpid(pid, 0)
    other = subprocess.run([sys.executable, '-c', "import mlstack.tracking as track\nwith track.init(surroundings=False) as run:\n  for i in range(50): run.log(rank1=i/3)\n  print(run._followers)"],
        env=os.environ | dict(MLSTACK_RUN='shared', MLSTACK_PROJECT='p', MLSTACK_RANK='1', MLSTACK_WORLD_SIZE='2', MLSTACK_SINKS='tensorboard', PYTHONPATH=str(house.root)), capture_output=True, text=True, timeout=300)
    assert other.stdout.strip() == '()', other.stderr  # only the owner has a follower
    run.finish()
    run.copying.join()
    place = done(run)[0]['place']
    for tag in ('loss', 'child', 'rank1'): assert scalars(place, tag) == wanted(50), tag


# -- objects ----------------------------------------------------------------------------------------------------------------------

class Kept:
    def __init__(self, fails_at=None): self.rows, self.fails_at = [], fails_at
    def log(self, metrics, step=None):
        if step == self.fails_at: raise ValueError('no more')
        self.rows.append((step, metrics))

def test_an_object_gets_every_row_before_finish_returns():
    kept = Kept()
    with track.init(sinks=[kept]) as run:
        for i in range(2000): run.log({'loss': i/3, 'n': i})
        run.log({'image': track.Image(np.zeros((2, 2))), 'x': 1.}, step=5)
    assert kept.rows[:2000] == [(i, {'loss': i/3, 'n': i}) for i in range(2000)]
    assert {step for step, _ in kept.rows[2000:]} == {5}
    row = {k: v for _, part in kept.rows[2000:] for k, v in part.items()} # number and image are in two files: on a slow machine, two calls
    assert row.keys() == {'x', 'image'} and row['x'] == 1. and isinstance(row['image'], track.Image)

def test_a_row_whose_other_half_is_on_its_way_is_left_to_become_whole(tmp_path):
    with track.init(surroundings=False) as run:
        for i in range(3): run.log(loss=i/3)
        tail = sinks.Tail(run.path, {})
        assert tail.ahead(young=60.) == []
        tail.take()
        assert not tail.cursor
        run.log(loss=1.)
        assert [step for step, _, _ in tail.ahead()] == [0, 1, 2, 3]
        assert [step for step, _, _ in tail.ahead(young=1e-9)] == [0, 1, 2, 3]

def test_an_object_that_raises_is_one_warning():
    kept = Kept(fails_at=10)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always'); warnings.simplefilter('ignore', ResourceWarning)
        with track.init(sinks=kept, surroundings=False) as run:
            for i in range(100): run.log(loss=i/3)
    assert [o for o in told if 'Kept.log failed: ValueError: no more' in str(o.message)] and len(told) == 1
    assert len(kept.rows) == 10 and len(run.record().metric('loss')[0]) == 100
    whole = Kept()
    track.sync(run, to=whole)
    assert [step for step, _ in whole.rows] == list(range(100))

def test_an_object_that_hangs_does_not_hold_the_training(monkeypatch):
    import threading
    gate = threading.Event()
    class Hangs:
        def log(self, metrics, step=None): gate.wait()
    monkeypatch.setattr(sinks, 'LAST', .2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        with track.init(sinks=Hangs(), surroundings=False) as run:
            for i in range(100): run.log(loss=i/3)
    gate.set()
    assert run.state == 'finished' and any('has not taken the last rows' in str(o.message) for o in told)

def test_a_resumed_run_is_not_shown_twice():
    first, second = Kept(), Kept()
    with track.init(id='r', sinks=first, surroundings=False) as run: run.log(x=1.)
    with track.init(id='r', resume=True, sinks=second, surroundings=False) as run: run.log(x=2.)
    assert first.rows == [(0, {'x': 1.})] and second.rows == [(1, {'x': 2.})]


# -- W&B, row by row --------------------------------------------------------------------------------------------------------------

def test_wandb_live_keeps_every_row(tmp_path, monkeypatch):
    "The online path, with the real SDK offline: steps that go back and metrics that come twice included."
    for k in [k for k in os.environ if k.startswith('WANDB')]: monkeypatch.delenv(k)
    monkeypatch.setenv('WANDB_DIR', str(tmp_path))
    monkeypatch.setenv('WANDB_SILENT', 'true')
    code = """
import sys
from mlstack.tracking.sinks import Follower
from mlstack.tracking.wandb_sync import WandbSink
class Live(WandbSink):
    def __init__(self): super().__init__('offline'); self.live = True
f = Follower(sys.argv[1], 'wandb')
f.given = Live()
f.copy()
print(f.told['state'], f.told['rows'])
"""
    run = track.init(project='p', name='live', config=dict(lr=1.), surroundings=False)
    for i in range(100): run.log(loss=i/3)
    p = python(code, run.path, cwd=tmp_path)
    while not copies(run) or copies(run)[0]['rows'] < 100: time.sleep(.05); assert p.poll() is None, p.communicate()
    run.config.later = 5
    for i in range(100, 150): run.log(loss=i/3)
    for s in (3, 3, 500): run.log({'back': s/7}, step=s)
    run.log({'image': track.Image(np.zeros((2, 2)))})
    run.finish()
    out, err = p.communicate(timeout=300)
    assert out.split()[-2:] == ['done', '154'], (out, err[-2000:])
    back, = track.load(tmp_path/'wandb', dir=tmp_path/'back')
    ours = run.record()
    for k in ('loss', 'back'): assert [o.tolist() for o in back.metric(k)] == [o.tolist() for o in ours.metric(k)], k
    assert back.config == ours.config and back.state == 'finished' and len(back.media('image')) == 1


# -- the command ------------------------------------------------------------------------------------------------------------------

def test_the_command(tmp_path, folder):
    def mlstack(*args): return subprocess.run([sys.executable, '-c', 'from mlstack.cli import main; main()', *map(str, args)], capture_output=True, text=True, timeout=300, cwd=house.root)
    for lr in (.1, .2):
        with track.init(project='p', config=dict(lr=lr), surroundings=False) as run: run.log(loss=0.)
    p = mlstack('runs', 'sync', f'tensorboard:{tmp_path}/logs', 'lr > .15')
    assert p.stdout.split() == [str(tmp_path/'logs'/run.name)] and scalars(p.stdout.strip()) == [(0, 0.)]
    assert 'done: tensorboard:' in mlstack('runs', 'show', run.id).stdout
    (tmp_path/'file').touch()
    p = mlstack('runs', 'sync', f'tensorboard:{tmp_path}/file/logs')
    assert p.returncode == 2 and 'TensorBoard did not take this run' in p.stderr
    p = mlstack('runs', 'sync', 'nowhere')
    assert p.returncode == 2 and 'Allowed: wandb, tensorboard, mlflow' in p.stderr
