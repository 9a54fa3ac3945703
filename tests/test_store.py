"""The store behind the runs: columns and index, while they are killed, raced, damaged and deleted. The lessons are in nbs/tracking."""
import json, os, random, struct, subprocess, sys, time, warnings
from pathlib import Path

import pytest

import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError
from mlstack.tracking import columns, recorder
from mlstack.tracking.columns import compact, read_lanes
from mlstack.tracking.lanes import LaneFile
from mlstack.tracking.query import Record

np = pytest.importorskip('numpy')
KILLS = int(os.environ.get('MLSTACK_TEST_KILLS', 6))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path/'runs'))
    yield tmp_path/'runs'
    while recorder._current: recorder._current[-1].finish()
    core.set_process_context(None)


def python(code, *args, **kw):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def a_run(rows=3000, seed=0, **kw):
    "A finished run with two lanes and one file of lines."
    noise = np.random.default_rng(seed).normal(size=(rows, 2)).tolist()
    with track.init(project='store', reinit='create_new', **kw) as run:
        for i, (a, b) in enumerate(noise):
            run.log({'a': a, 'b': b, 'n': i})
            if i % 100 == 0: run.log({'val': a-b}, step=i)
        run.log(note='done')
    return run


def files(run, end=''): return sorted(o.name for o in (Path(run.path)/'lanes').iterdir() if o.name.endswith(end))
def points(path): return {o.name: o.rows().tobytes() for o in read_lanes(path)}


# -- columns: every bit ----------------------------------------------------------------------------------------------------------

def words(rng, n):
    "64-bit words of every shape a column has."
    kinds = [lambda: rng.integers(0, 2**64, n, 'u8'), lambda: np.arange(n, dtype='u8')*np.uint64(rng.integers(1, 2**40)), lambda: np.full(n, rng.integers(0, 2**64, dtype='u8')),
        lambda: rng.normal(size=n).view('u8'), lambda: rng.normal(size=n).astype('f4').astype('f8').view('u8'), lambda: rng.integers(-5, 5, n).astype('f8').view('u8'),
        lambda: (1.7e9+np.cumsum(rng.uniform(0, 1, n))).view('u8'), lambda: np.where(rng.uniform(size=n) < .1, np.nan, rng.normal(size=n)).view('u8'),
        lambda: np.array([0x7ff8000000000001, 0xfff0000000000000, 1 << 63, 0x7ff0dead00000000, 1], 'u8')[rng.integers(0, 5, n)]]
    return kinds[rng.integers(len(kinds))]()


@pytest.mark.parametrize('seed', range(60))
def test_a_block_comes_back_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    w = words(rng, [0, 1, 2, 3, 255, 256, 257, 3000][seed % 8])
    heads, kinds, data = columns.pack(w.view('f8'))
    heads, kinds = json.loads(json.dumps([heads, kinds]))
    assert columns.unpack(heads, kinds, data, len(w)).tobytes() == w.tobytes()
    assert len(data) <= 8*len(w)


def test_more_rows_than_a_block(monkeypatch, folder):
    monkeypatch.setattr(columns, 'ROWS', 700)
    run = a_run(3000)
    before = points(run.path)
    assert compact(run.path) == 3-1 and files(run, '.lane') == [] and points(run.path) == before


def test_any_reader_reads_the_same_from_columns(folder):
    run = a_run()
    r = Record(run.path)
    before = r.history(), {k: r.metric(k) for k in r.metric_names}, r.summary, r.seconds, [o.last() for o in r.lanes]
    assert compact(run.path) == 2 and len(files(run)) == 2
    after = Record(run.path)
    assert after.history().equals(before[0]) and after.summary == before[2] and after.seconds == before[3] and [o.last() for o in after.lanes] == before[4]
    assert all(x.tolist() == y.tolist() for k in before[1] for x, y in zip(before[1][k], after.metric(k))) and not after.problems
    assert r.metric('a')[2].tolist() == before[1]['a'][2].tolist()  # a record that still knows the lanes


def test_bytes_a_point_of_noise_and_of_float32(folder):
    for cast, most in ((float, 8), (lambda v: float(np.float32(v)), 5)):
        with track.init(project='size', reinit='create_new') as run:
            for row in np.random.default_rng(0).normal(size=(20_000, 3)).tolist(): run.log({k: cast(v) for k, v in zip('abc', row)})
        live = sum((run.path/'lanes'/o).stat().st_size for o in files(run))
        compact(run.path)
        assert live/60_000 < 14 and sum((run.path/'lanes'/o).stat().st_size for o in files(run))/60_000 <= most


# -- columns: only what is over, only what is whole ------------------------------------------------------------------------------

def test_a_live_writer_is_left_alone(folder):
    run = track.init(project='live')
    for i in range(100): run.log(a=i*1.)
    assert compact(run.path) == 0 and len(files(run, '.lane')) == 1
    run.log(a=100.)
    run.finish()
    assert compact(run.path) == 1 and Record(run.path).metric('a')[2].tolist() == [i*1. for i in range(101)]


def test_a_killed_run_becomes_columns_and_can_be_resumed(folder):
    p = python('import mlstack.tracking as track, os\nrun = track.init(project="k", id="k")\nfor i in range(2000): run.log(a=i*1.)\nos.kill(os.getpid(), 9)')
    p.communicate()
    path = folder/'k'/'k'
    assert compact(path) == 1 and Record(path).state == 'killed' and Record(path).summary == {'a': 1999.} and len(Record(path).metric('a')[0]) == 2000
    with track.init(project='k', id='k', resume=True) as run: run.log(a=-1.)
    step, _, value = Record(path).metric('a')
    assert (step[-1], value[-1], len(value)) == (2000, -1., 2001) and compact(path) == 1 and len(Record(path).metric('a')[0]) == 2001


@pytest.mark.filterwarnings('ignore:.*is missing')
def test_what_is_not_whole_stays_a_lane(folder):
    run = a_run()
    cut, other = (run.path/'lanes'/o for o in files(run, '.lane'))
    cut.write_bytes(cut.read_bytes()[:-40])
    assert compact(run.path) == 1 and files(run, '.lane') == [cut.name]
    with pytest.warns(UserWarning, match='its last 1 records are missing'): Record(run.path).metric('a')
    data = bytearray(cut.read_bytes())
    data[100] ^= 1
    cut.write_bytes(data)
    assert compact(run.path) == 0 and files(run, '.lane') == [cut.name]
    with pytest.warns(UserWarning, match='header is damaged'): assert len(Record(run.path).metric('val')[0]) == 30


def test_columns_that_differ_are_not_taken(folder, monkeypatch):
    run = a_run()
    before = files(run)
    monkeypatch.setattr(columns, 'unpack', lambda heads, kinds, data, n: np.zeros(n, 'u8'))
    with pytest.raises(MlstackError, match='differ from the lanes'): compact(run.path)
    assert files(run) == before


def test_a_longer_lane_beside_columns_is_the_truth(folder):
    "As after a copy of the folder was put over a newer one."
    run = a_run()
    kept = {o: (run.path/'lanes'/o).read_bytes() for o in files(run, '.lane')}
    whole = points(run.path)
    short = next(iter(kept))
    size = LaneFile(run.path/'lanes'/short).size
    (run.path/'lanes'/short).write_bytes(kept[short][:-size])
    events = next((run.path/'events').iterdir())
    good = events.read_text()
    events.write_text(good.replace('"finish"', '"finisx"').replace('{"k":"start"', '{"k":"start"'))
    start = json.loads(good.splitlines()[0])
    start['process']['pid'] = 2**22+1  # gone
    events.write_text(json.dumps(start)+'\n')
    assert compact(run.path) == 2
    for o, data in kept.items(): (run.path/'lanes'/o).write_bytes(data)
    assert points(run.path) == whole
    columns._clean(run.path/'lanes')
    assert files(run, '.lane') == [short] and points(run.path) == whole


# -- columns: damage -------------------------------------------------------------------------------------------------------------

def test_a_flipped_byte_anywhere_is_found_and_named(folder):
    run = a_run(500)
    good = {k: Record(run.path).metric(k) for k in 'ab'}
    compact(run.path)
    file = run.path/'lanes'/files(run, '.columns')[0]
    data, rng = file.read_bytes(), random.Random(0)
    anchors = columns._anchor.size
    start, size = struct.unpack('<QI', data[8:20])
    for _ in range(120):
        at = rng.randrange(len(data))
        file.write_bytes(data[:at]+bytes([data[at] ^ 1 << rng.randrange(8)])+data[at+1:])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            r = Record(run.path)
            got = {k: r.metric(k) for k in 'ab'}
            r.history()
        if anchors <= at < start: assert r.problems and str(file) in r.problems[0] and len(said) == len(r.problems), at
        else: assert not r.problems and all(x.tobytes() == y.tobytes() for k in 'ab' for x, y in zip(got[k], good[k])), at
        for k in 'ab':  # whatever is there is true
            known = dict(zip(good[k][0].tolist(), good[k][2].tolist()))
            assert all(known[s] == v for s, v in zip(got[k][0].tolist(), got[k][2].tolist()))
    file.write_bytes(data)


@pytest.mark.filterwarnings('ignore:.*is missing')
def test_a_cut_file_of_columns_is_named(folder):
    run = a_run(500)
    compact(run.path)
    file = run.path/'lanes'/files(run, '.columns')[0]
    file.write_bytes(file.read_bytes()[:len(file.read_bytes())//3])
    with pytest.warns(UserWarning, match='copies of its directory are damaged'): assert Record(run.path).metric_names == ['note']


# -- columns: kills and races ----------------------------------------------------------------------------------------------------

WORK = """
import sys, shutil
from mlstack.tracking.columns import compact
import numpy
for path in sys.argv[1:]: print(path, flush=True); compact(path)
"""


@pytest.mark.parametrize('seed', range(KILLS))
def test_sigkill_while_compacting_loses_and_doubles_nothing(folder, seed):
    rng = random.Random(seed)
    made = [a_run(rng.randrange(1, 4000), seed=i) for i in range(6)]
    before = {o.id: points(o.path) for o in made}
    tables = {o.id: len(Record(o.path).history()) for o in made}
    rounds = 0
    while any(files(o, '.lane') for o in made) and rounds < 30:
        p = python(WORK, *(o.path for o in made))
        p.stdout.readline()
        time.sleep(rng.uniform(0, .06))
        p.kill()
        p.communicate()
        assert {o.id: points(o.path) for o in made} == before
        rounds += 1
    for o in made: compact(o.path)
    assert {o.id: points(o.path) for o in made} == before and not any(files(o, '.lane') for o in made)
    assert {o.id: len(Record(o.path).history()) for o in made} == tables


@pytest.mark.parametrize('call', ['write', 'fsync', 'rename', 'folder', 'unlink'])
def test_sigkill_at_each_step_of_compacting(folder, call):
    "The moments between two steps, one by one: the process kills itself in place of the call."
    run = a_run(500)
    before = points(run.path)
    where = dict(write='columns._column', fsync='os.fsync', rename='os.rename', folder='columns._sync_folder', unlink='Path.unlink')[call]
    p = python(f'import os, sys\nfrom pathlib import Path\nfrom mlstack.tracking import columns\n{where} = lambda *a, **k: os.kill(os.getpid(), 9)\ncolumns.compact(sys.argv[1])', run.path)
    p.communicate()
    assert p.returncode == -9
    assert points(run.path) == before and len(Record(run.path).metric('a')[0]) == 500
    compact(run.path)
    assert points(run.path) == before and files(run, '.lane') == []


def test_what_a_killed_compaction_left_is_removed_an_hour_later(folder):
    run = a_run(10)
    part = run.path/'lanes'/'.x.part'
    part.write_bytes(b'half')
    compact(run.path)
    assert part.exists()
    os.utime(part, (time.time()-4000,)*2)
    compact(run.path)
    assert not part.exists() and len(files(run)) == 2


def test_four_compact_at_once_while_others_read(folder):
    made = [a_run(800, seed=i) for i in range(5)]
    before = {o.id: points(o.path) for o in made}
    ps = [python(WORK, *(o.path for o in made)) for _ in range(3)]
    while any(p.poll() is None for p in ps):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            for o in made: assert len(Record(o.path).metric('a')[0]) == 800 and len(Record(o.path).history()) == 801 and Record(o.path).summary['n'] == 799
    assert not any(p.returncode for p in ps), [p.stderr.read() for p in ps]
    for o in made: compact(o.path)
    assert {o.id: points(o.path) for o in made} == before and not any(files(o, '.lane') for o in made)


def test_a_reader_compacts_what_has_been_over_for_a_minute(folder, monkeypatch):
    fresh, old = a_run(50), a_run(50)
    for o in (*(old.path/'lanes').iterdir(), *(old.path/'events').iterdir()): os.utime(o, (time.time()-100,)*2)
    monkeypatch.setattr(columns, '_seen', set())
    for o in (old, fresh): Record(o.path).metric('a')
    end = time.monotonic()+60
    while files(old, '.lane') and time.monotonic() < end: time.sleep(.05)
    assert not files(old, '.lane') and len(files(fresh, '.lane')) == 2 and len(Record(old.path).metric('a')[0]) == 50
    columns._waiting.clear()


def test_finish_does_not_compact_and_imports_nothing(folder):
    p = python('import mlstack.tracking as track, sys\nrun = track.init(project="f")\nfor i in range(100): run.log(a=1.)\nrun.finish()\nprint([o for o in ("numpy","pandas","sqlite3","mlstack.tracking.columns") if o in sys.modules])')
    out, err = p.communicate()
    assert out.strip() == '[]', err
