"""Faults of the tracking chapter: kills, full and read-only disks, forks, many writers, odd values. The lessons are in nbs/tracking."""
import errno, json, math, os, random, shutil, subprocess, sys, threading, time, warnings
from contextlib import contextmanager
from pathlib import Path

import pytest

import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError, StopTraining
from mlstack.tracking import columns, lanes, query, recorder
from mlstack.tracking.query import Record, runs
from tests import house


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path/'runs'))
    yield tmp_path/'runs'
    while recorder._current: recorder._current[-1].finish()
    core.set_process_context(None)


def python(code, *args, **kw):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def ended(p, timeout=300):
    out, err = p.communicate(timeout=timeout)
    assert p.returncode == 0, err
    return out


@contextmanager
def tmpfs(path, *options):
    "A small file system of its own, or a skip where this machine does not let us mount one."
    path.mkdir(parents=True)
    p = subprocess.run(['mount', '-t', 'tmpfs', '-o', ','.join(options), 'none', str(path)], capture_output=True, text=True)
    if p.returncode: pytest.skip(f'probe: a tmpfs cannot be mounted here: {p.stderr.strip()}')
    try: yield path
    finally: subprocess.run(['umount', '-l', str(path)], check=True)


# -- kills ---------------------------------------------------------------------------------------------------------------------

BURST = """
import mlstack.tracking as track, sys
run = track.init(project='kill', config=dict(lr=.1))
print(run.path, flush=True)
i = 0
while True:
    run.log({'loss': i*1., 'epoch': i//100})
    if i%50==0: run.log({'acc': i*.5}, step=i)
    i += 1
    if i%500==0: print(i, flush=True)
"""


@pytest.mark.parametrize('moment', [random.Random(i).uniform(0, .25) for i in range(house.moments(4,100))])
def test_sigkill_in_a_burst_loses_no_step(moment):
    p = python(BURST)
    path = Path(p.stdout.readline().strip())
    p.stdout.readline()
    time.sleep(moment)
    p.kill()
    reported = int((p.communicate()[0].split() or ['500'])[-1])
    r = Record(path)
    step, _, value = r.metric('loss')
    assert r.state == 'killed' and len(step) >= reported
    assert value.tolist() == [float(i) for i in range(len(value))]  # every point, in order, none torn
    assert r.metric('acc')[1].all() and r.config == {'lr': .1} and not r.problems


@pytest.mark.parametrize('moment', [random.Random(i).uniform(.0, .12) for i in range(house.moments(4))])
def test_sigkill_in_init_or_finish_leaves_a_readable_folder(folder, moment):
    p = python("""
import mlstack.tracking as track
print('on', flush=True)
while True:
    with track.init(project='kill', config=dict(lr=.1)) as run: run.log(loss=1.)
""")
    p.stdout.readline()
    time.sleep(moment)
    p.kill()
    p.communicate()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for r in runs(project='kill'): assert r.state in ('killed', 'finished') and r.summary.get('loss', 1.) == 1.


def test_a_zombie_and_a_reused_pid_are_not_running(folder):
    p = python('import mlstack.tracking as track, os\nrun = track.init(project="z")\nprint(run.path, flush=True)\nos.kill(os.getpid(), 9)')
    path = p.stdout.readline().strip()
    deadline = time.monotonic()+300
    while Record(path).state == 'running' and time.monotonic() < deadline: time.sleep(.02)
    assert Record(path).state == 'killed'  # not yet waited for: a zombie
    p.communicate()
    file = next((Path(path)/'events').iterdir())
    event = json.loads(file.read_text().splitlines()[0])
    event['process']['pid'] = os.getpid()
    file.write_text(json.dumps(event)+'\n')
    assert Record(path).state == 'killed'


# -- disks ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.probe
def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path):
    with tmpfs(tmp_path/'small', 'size=600k') as small:
        run = track.init(project='full', dir=small, config=dict(lr=.1))
        run._origins.join()
        logged = 0
        with pytest.raises(MlstackError, match='(?i)no space left.*free some space') as e:
            while True:
                run.log({'loss': logged*1., 'acc': .5})
                logged += 1
        assert logged > 5000 and 'lane' in e.value.where
        with pytest.raises(MlstackError): run.log({'loss': 0., 'acc': .5})       # says so again, stores nothing
        (small/'full'/run.id/'env.json').write_bytes(b'')
        assert Record(run.path).metric('loss')[2].tolist() == [float(i) for i in range(logged)]
        run.finish()
        assert run.state == 'finished' and Record(run.path).state == 'finished'
        assert len(Record(run.path).metric('loss')[2]) == logged


@pytest.mark.probe
def test_a_disk_with_space_again_goes_on(tmp_path):
    with tmpfs(tmp_path/'small', 'size=400k') as small:
        (small/'ballast').write_bytes(b'x'*200_000)
        run = track.init(project='full', dir=small)
        run._origins.join()
        n = 0
        with pytest.raises(MlstackError):
            while True: run.log(loss=n*1.); n += 1
        (small/'ballast').unlink()
        for i in range(100): run.log(loss=n+i*1.)
        run.finish()
        assert Record(run.path).metric('loss')[2].tolist() == [float(i) for i in range(n+100)]


@pytest.mark.probe
def test_a_read_only_runs_folder_is_named(tmp_path):
    with tmpfs(tmp_path/'ro', 'size=1m', 'ro') as ro:
        with pytest.raises(MlstackError, match='cannot be written.*MLSTACK_RUNS') as e: track.init(dir=ro/'runs')
        assert str(ro) in str(e.value)


def test_a_runs_folder_below_a_file_is_named(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(MlstackError, match='cannot be written.*MLSTACK_RUNS'): track.init(dir=tmp_path/'file'/'runs')
    assert track.run is None and core.context().run == ''


@pytest.mark.parametrize('code', [errno.EOPNOTSUPP, errno.ENODEV])
def test_where_mapping_is_refused_rows_are_written(monkeypatch, code):
    def refuse(*args, **kw): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(lanes.os, 'posix_fallocate', refuse) if code == errno.EOPNOTSUPP else monkeypatch.setattr(lanes.mmap, 'mmap', refuse)
    run = track.init(project='written')
    for i in range(1000): run.log(loss=i*1., epoch=i)
    assert not next(iter(run._writers[0].lanes.values())).mapped and run.summary.epoch == 999
    run.finish()
    assert Record(run.path).metric('loss')[2].tolist() == [float(i) for i in range(1000)]


@contextmanager
def fuse(path):
    "A folder seen through a user-space file system, as a cloud drive is; with the folder behind it."
    for o in ('behind', 'seen'): (path/o).mkdir(parents=True)
    if not shutil.which('bindfs'): pytest.skip('probe: bindfs is not installed (requirements/debian.txt)')
    p = subprocess.run(['bindfs', str(path/'behind'), str(path/'seen')], capture_output=True, text=True, timeout=300)
    if p.returncode: pytest.skip(f'probe: no user-space file system can be mounted here: {p.stderr.strip()}')
    try: yield path/'seen', path/'behind'
    finally: subprocess.run(['umount', '-l', str(path/'seen')], check=True)


@pytest.mark.probe
def test_a_drive_behind_a_network_is_written_and_the_other_side_sees_it_at_once(tmp_path):
    with fuse(tmp_path) as (seen, behind):
        p = python(BURST.replace("project='kill'", f"project='kill', dir={str(seen)!r}"))
        path = Path(p.stdout.readline().strip())
        reported = int(p.stdout.readline())
        there = Record(behind/path.relative_to(seen))  # as another machine reads it, nothing was flushed by hand
        assert len(there.metric('loss')[0]) >= reported
        p.kill()
        reported = int((p.communicate()[0].split() or [str(reported)])[-1])
        value = Record(path).metric('loss')[2]
        assert len(value) >= reported and value.tolist() == [float(i) for i in range(len(value))] and Record(path).state == 'killed'
        with track.init(project='kill', id=path.name, resume=True, dir=seen) as run:
            run.log(loss=-1.)
            assert not any(o.mapped for o in run._writers[0].lanes.values())


def test_a_full_disk_where_mapping_is_refused(monkeypatch, tmp_path):
    "Half a record, left by a short write, is overwritten by the next."
    lane = lanes.WrittenLane(tmp_path/'a.lane', ('loss',), {})
    lane.append(0, (0.,), 1.7e9)
    real = os.pwrite
    monkeypatch.setattr(lanes.os, 'pwrite', lambda fd, data, pos: real(fd, data[:10], pos))
    with pytest.raises(OSError): lane.append(1, (1.,), 1.7e9)
    assert lanes.LaneFile(lane.path).count() == 1
    monkeypatch.undo()
    lane.append(1, (2.,), 1.7e9)
    lane.close()
    assert lanes.LaneFile(lane.path).column('loss').tolist() == [0., 2.]


# -- many writers --------------------------------------------------------------------------------------------------------------

def test_four_processes_into_one_run(folder):
    run = track.init(project='many', config=dict(lr=.1))
    code = "import mlstack.tracking as track, sys\nrun = track.init()\nfor i in range(5000): run.log({'loss': i*1., 'acc': .5})"
    ps = [python(code, env=os.environ | core.context().replace(rank=r, world_size=4).env()) for r in range(4)]
    for p in ps: ended(p)
    run.finish()
    r = runs(project='many')[0]
    assert len(r.metric('loss')[0]) == 20_000 and r.state == 'finished' and len(runs()) == 1
    assert sorted(r.history()['rank'].unique()) == [0, 1, 2, 3]


def test_ranks_without_a_first_process_make_one_run(folder):
    ctx = core.Context(run='shared', project='ranks')
    code = "import mlstack.tracking as track\nwith track.init(config=dict(lr=.1)) as run: run.log(loss=1.)"
    ps = [python(code, env=os.environ | ctx.replace(rank=r, world_size=3).env()) for r in range(3)]
    for p in ps: ended(p)
    r = runs()[0]
    assert (len(runs()), r.id, r.state, len(r.metric('loss')[0]), r.config) == (1, 'shared', 'finished', 3, {'lr': .1})


def test_a_failing_rank_is_the_reason_of_a_killed_run(folder):
    run = python('import mlstack.tracking as track, time\nrun = track.init(project="p", id="it")\nprint(1, flush=True)\ntime.sleep(600)')
    run.stdout.readline()
    p = python('import mlstack.tracking as track\ntrack.init()\n1/0', env=os.environ | core.Context(run='it', project='p', rank=1, world_size=2).env())
    p.communicate()
    assert runs()[0].state == 'running'
    run.kill()
    run.communicate()
    assert (runs()[0].state, runs()[0].error) == ('failed', 'ZeroDivisionError: division by zero')


def test_a_forked_child_has_files_of_its_own(folder):
    code = """
import os, sys, mlstack.tracking as track
run = track.init(project='fork')
for i in range(100): run.log(loss=i*1.)
pid = os.fork()
for i in range(100, 200): run.log(loss=i*1.)
if pid: os.waitpid(pid, 0)
else: run.finish(); os._exit(0)
run.log(loss=1e6)
"""
    ended(python(code))
    r = runs()[0]
    assert r.state == 'finished' and not r.problems
    assert sorted(r.metric('loss')[2].tolist()) == sorted([*range(100), *range(100, 200), *range(100, 200), 1e6])


def test_a_forked_child_that_logs_nothing_makes_no_file(folder):
    ended(python("""
import os, sys, mlstack.tracking as track
run = track.init(project='fork')
for i in range(3):
    pid = os.fork()
    if not pid: sys.exit(0)
    os.waitpid(pid, 0)
run.log(loss=1.)
"""))
    r = runs()[0]
    assert (r.state, len(r.facts.writers), len(list((r.path/'lanes').iterdir()))) == ('finished', 1, 1)


def test_threads_come_and_go_without_a_file_each(folder):
    run = track.init(project='threads')
    def work(i): run.log(loss=float(i))
    for i in range(50):
        t = threading.Thread(target=work, args=(i,))
        t.start()
        t.join()
    run.finish()
    assert len(list((run.path/'lanes').iterdir())) <= 2
    assert Record(run.path).metric('loss')[2].tolist() == [float(i) for i in range(50)]


def test_a_reader_beside_a_fast_writer(folder):
    "What is read while it is written is a prefix of what was written, and reading never disturbs the end."
    p = python("import mlstack.tracking as track\nrun = track.init(project='live')\nprint(1, flush=True)\nfor i in range(400_000): run.log(a=float(i), b=2.*i)")
    p.stdout.readline()
    seen = 0
    while p.poll() is None:
        r = runs()[0]
        if 'a' not in r.metric_names: continue
        step, _, value = r.metric('a')
        assert len(value) >= seen and (value == step).all() and (not len(value) or value[-1] == len(value)-1)
        seen = len(value)
    p.communicate()
    assert p.returncode == 0 and len(runs()[0].metric('b')[0]) == 400_000 and not runs()[0].problems


# -- clocks and sizes -----------------------------------------------------------------------------------------------------------

def test_a_clock_that_goes_backwards_loses_no_point(folder, monkeypatch):
    real, shift = time.time, [0.]
    monkeypatch.setattr(lanes.time, 'time', lambda: real()+shift[0])
    with track.init(project='clock') as run:
        for i in range(300):
            shift[0] = -3600.*(i % 3)  # an hour back, again and again
            run.log(loss=i*1.)
            run.log(word=str(i), n=i)
    shift[0] = -7200.
    with track.init(project='clock', id=run.id, resume=True) as again: again.log(loss=300.)
    r = Record(run.path)
    step, at, value = r.metric('loss')
    assert len(value) == 301 and sorted(value) == [float(i) for i in range(301)] and (step[1:] > step[:-1]).all()
    assert r.metric('word')[2].tolist() == [str(i) for i in range(300)] and r.state == 'finished' and not r.problems


@pytest.mark.parametrize('resume', [None, 'allow'])
def test_processes_that_open_one_id_at_once(folder, resume):
    "Without resume= one has it and the others are told; with it they all log into one run. A name may be had by many."
    code = f"import mlstack.tracking as t\nwith t.init(project='twins', id='same', resume={resume!r}, config=dict(lr=.1)) as run:\n for i in range(2000): run.log(loss=i*1.)"
    started = [python(code) for _ in range(4)]
    errors = [p.communicate(timeout=300)[1] for p in started]
    won = [p.returncode == 0 for p in started]
    assert sum(won) == (4 if resume else 1) and all('there is a run with this id' in e for w, e in zip(won, errors) if not w), errors
    r, = runs(project='twins')
    step, _, value = r.metric('loss')
    assert sorted(value) == sorted([float(i) for i in range(2000)]*sum(won)) and r.config == {'lr': .1} and not r.problems
    for p in [python("import mlstack.tracking as t\nwith t.init(project='names', name='one name') as run: run.log(loss=1.)") for _ in range(3)]: ended(p)
    assert [o.name for o in runs(project='names')] == ['one name']*3 and len({o.id for o in runs(project='names')}) == 3


def test_ten_million_points(folder):
    "Every one is kept, and read back as it was, also as columns."
    np = pytest.importorskip('numpy')
    rows = house.moments(200_000, 2_000_000)
    with track.init(project='many') as run:
        row = dict.fromkeys('abcde', 0.)
        for _ in range(100): run.log(row)

        for i in range(100, rows):
            row['a'] = i*1.
            row['e'] = -i*.5
            run.log(row)
    r = Record(run.path)
    step, _, value = r.metric('a')
    assert len(step) == rows and (step == np.arange(rows)).all() and (value[100:] == step[100:]).all() and (r.metric('e')[2][100:] == -.5*step[100:]).all()
    columns.compact(run.path)
    assert (Record(run.path).metric('a')[2] == value).all()


# -- values --------------------------------------------------------------------------------------------------------------------

def test_every_kind_of_value_comes_back(folder):
    np = pytest.importorskip('numpy')
    torch = pytest.importorskip('torch')
    logged = {'nan': math.nan, 'inf': -math.inf, 'tiny': 5e-324, 'int': 7, 'big': 2**70, 'true': True, 'none': None, 'text': 'é🦊', 'long': 'x'*1_000_000,
        'np32': np.float32(.5), 'np64': np.float64(.25), 'npint': np.int64(3), 'np0d': np.array(1.5), 'tensor': torch.tensor(2.5), 'vector': torch.arange(3), 'list': [1, 2],
        'a/b.c d': 1., '🦊': 2., '': 3., 7: 4., 'nested': {'x': 1., 'y': {'z': 2.}}}
    with track.init(project='values') as run:
        run.log(logged)
        run.log({'changes': 1.}); run.log({'changes': 'now text'}); run.log({'changes': None}); run.log({'changes': 2})
    s = Record(run.path).summary
    assert math.isnan(s.pop('nan')) and s.pop('changes') == 2
    assert s == {'inf': -math.inf, 'tiny': 5e-324, 'int': 7, 'big': 2**70, 'true': True, 'none': None, 'text': 'é🦊', 'long': 'x'*1_000_000, 'np32': .5, 'np64': .25, 'npint': 3,
        'np0d': 1.5, 'tensor': 2.5, 'vector': [0, 1, 2], 'list': [1, 2], 'a/b.c d': 1., '🦊': 2., '': 3., '7': 4., 'nested.x': 1., 'nested.y.z': 2.}
    assert [str(o) for o in Record(run.path).metric('changes')[2]] == ['1.0', 'now text', 'None', '2.0']


def test_rows_of_thousands_of_keys(folder):
    with track.init(project='wide') as run:
        for i in range(20): run.log({f'layer {k}/grad': k+i*1. for k in range(3000)})
    assert Record(run.path).metric('layer 2999/grad')[2].tolist() == [2999+i*1. for i in range(20)]


def test_a_config_may_hold_anything(folder):
    torch = pytest.importorskip('torch')
    class Rude:
        def __repr__(self): raise RuntimeError('no')
    with track.init(project='config', config=dict(fn=lambda x: x, t=torch.zeros(3), rude=Rude(), path=Path('a/b'), keys=dict(items=1), many=torch.zeros(5000))) as run:
        run.config['keys']['items'] = 2
        run.config.update({'n': 1}, allow_val_change=True)
    c = Record(run.path).config
    assert c['t'] == [0, 0, 0] and c['path'] == 'a/b' and c['keys']['items'] == 2 and 'lambda' in c['fn'] and 'Rude' in c['rude'] and c['many'] == 'torch.Tensor of shape (5000,)'


def test_steps_may_do_anything_but_be_no_number(folder):
    import numpy as np
    with track.init(project='steps') as run:
        for s in (5, 3, 3, -2, 2**62, np.int64(9), 4.0): run.log({'a': 1.}, step=s)
        for s in (.5, 'x', 2**64, math.nan):
            with pytest.raises((MlstackError, TypeError)): run.log({'a': 1.}, step=s)
    assert Record(run.path).metric('a')[0].tolist() == [-2, 3, 3, 4, 5, 9, 2**62]


def test_a_stop_is_raised_after_the_point_is_stored(folder):
    with core.use() as ctx:
        with pytest.raises(StopTraining, match='worse half'):
            with track.init(project='stop') as run:
                heard = []
                run.listen(lambda metrics, step: (heard.append((metrics, step)), ctx.stop.set('in the worse half') if step == 2 else None))
                for i in range(10): run.log(loss=i*1.)
    assert (run.state, run.error, len(heard), heard[-1], Record(run.path).summary) == ('finished', 'in the worse half', 3, ({'loss': 2.}, 2), {'loss': 2.})


# -- imports -------------------------------------------------------------------------------------------------------------------

def test_logging_imports_nothing_heavy():
    code = """
import sys, tempfile, mlstack.tracking as track
run = track.init(project='light', dir=tempfile.mkdtemp(), config=dict(a=1))
run._origins.join()
before = set(sys.modules)
run.log(a=1., b=2, c='x'); run.summary['d'] = 1; run.finish()
print([m for m in ('numpy','pandas','torch','fastcore','rich','typer','yaml','IPython') if m in sys.modules], sorted(set(sys.modules)-before))
"""
    assert ended(python(code)).split('[')[1].startswith(']'), 'logging imported something heavy'


SCRIPT = """
import mlstack.tracking as wandb, random
wandb.init(project="drop-in", entity="team", mode="offline", config={"learning_rate": .02, "epochs": 10}, tags=["a"], save_code=True)
config = wandb.config
for epoch in range(config["epochs"]):
    wandb.log({"acc": 1-2**-(epoch+1), "loss": 2**-(epoch+1)})
wandb.run.summary["best_acc"] = .99
wandb.summary.update({"n": 3})
wandb.config.update({"extra": 1}, allow_val_change=True)
wandb.run.name = "renamed"
wandb.finish()
for lr in (.1, .2):
    with wandb.init(project="drop-in", config=dict(lr=lr), reinit=True) as run:
        run.log({"loss": lr})
assert wandb.run is None
"""


def test_a_wandb_script_runs_unchanged(folder):
    ended(python(SCRIPT))
    rs = runs(project='drop-in')
    first = rs['renamed']
    assert len(rs) == 3 and first.config == {'learning_rate': .02, 'epochs': 10, 'extra': 1} and first.tags == ('a',)
    assert (first.summary['best_acc'], first.summary['n'], len(first.metric('loss')[0])) == (.99, 3, 10)
    assert sorted(r.config.lr for r in runs('lr > 0')) == [.1, .2] and all(r.state == 'finished' for r in rs)


def test_an_open_run_can_be_read_and_compared(folder):
    a = track.init(project='open', config=dict(lr=.1))
    a.log(loss=1.)
    b = track.init(project='open', config=dict(lr=.2), reinit='create_new')
    assert a.diff(b).config == {'lr': (.1, .2)} and a.record().state == 'running' and a.record().summary == {'loss': 1.}
    assert a.name in a._repr_html_()


def test_a_second_init_ends_the_first_run(folder):
    a = track.init(project='twice')
    b = track.init(project='twice')
    c = track.init(project='twice', reinit='create_new')
    assert (a.state, b.state, c.state, track.run is c) == ('finished', 'running', 'running', True)
    c.finish()
    assert track.run is b


# -- damage --------------------------------------------------------------------------------------------------------------------

def test_any_damaged_byte_is_reported_or_harmless(folder):
    with track.init(project='damage', config=dict(lr=.1)) as run:
        for i in range(200): run.log({'loss': i*1.})
        run.log(note='text')
    rng = random.Random(0)
    for path in [o for d in ('events', 'lanes') for o in (run.path/d).iterdir()]:
        good = path.read_bytes()
        for _ in range(30):
            data = bytearray(good)
            if rng.random() < .5: data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            else: del data[rng.randrange(len(data)):]
            path.write_bytes(data)
            query._cache.pop(run.path, None)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                r = Record(run.path)
                r.summary, r.history(), r.seconds, repr(runs()), r.code
        path.write_bytes(good)
    query._cache.pop(run.path, None)
    assert len(Record(run.path).metric('loss')[0]) == 200 and not Record(run.path).problems


def test_foreign_files_and_a_damaged_description_do_not_hide_the_rest(folder):
    for i in range(3):
        with track.init(project='p', id=f'run{i}') as run: run.log(a=i*1.)
    (folder/'p'/'run1'/'meta.json').write_text('{"id"')
    (folder/'readme.txt').write_text('hello')
    (folder/'p'/'a folder').mkdir()
    (folder/'p'/'a file').write_text('')
    with pytest.warns(UserWarning, match='meta.json is damaged.*run1'): found = list(runs())
    assert [r.id for r in found] == ['run2', 'run0']


# -- power ----------------------------------------------------------------------------------------------------------------------

def test_what_was_logged_is_sent_to_the_disk_each_second(folder, monkeypatch):
    sent = []
    monkeypatch.setattr(recorder, '_datasync', lambda fd: (os.fdatasync(fd), sent.append(os.readlink(f'/proc/self/fd/{fd}'))))
    run = track.init(project='sync')
    run.log(loss=1.)
    path = next(iter(run._writers[0].lanes.values())).path
    deadline = time.monotonic()+300
    while str(path) not in sent and time.monotonic() < deadline: time.sleep(.05)
    assert str(path) in sent
    time.sleep(2.5)
    assert sent.count(str(path)) == 1  # nothing new, nothing to write


# -- a device ------------------------------------------------------------------------------------------------------------------

@pytest.mark.gpu
def test_a_cuda_tensor_does_not_make_the_caller_wait(folder):
    torch = pytest.importorskip('torch')
    if not torch.cuda.is_available(): pytest.skip('no GPU')
    run = track.init(project='cuda')
    run.log(loss=torch.zeros((), device='cuda'))
    torch.cuda.synchronize()
    loss, side = torch.zeros((), device='cuda'), torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(2_000_000_000)  # about a second of the device
        loss += 1
        begin = time.perf_counter()
        for _ in range(5):
            run.log({'loss': loss, 'lr': .1})
            loss += 1                      # in place: what was logged must not change
        assert not side.query()            # all five calls returned while the device was still busy
        called = time.perf_counter()-begin
    run.finish()
    assert Record(run.path).metric('loss')[2].tolist() == [0., 1., 2., 3., 4., 5.], called
