"""The store behind the runs: columns and index, while they are killed, raced, damaged and deleted. The lessons are in nbs/tracking."""
import json, math, os, random, struct, subprocess, sys, time, warnings
from pathlib import Path

import pytest

import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError
from mlstack.tracking import columns, index, query, recorder
from mlstack.tracking.columns import compact, read_lanes
from mlstack.tracking.lanes import LaneFile
from mlstack.tracking.query import Record, runs
from tests import house

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


def test_the_columns_of_one_writer_can_go(folder):
    first = a_run(rows=300, id='two')
    (writer,) = {o.rpartition('-')[0] for o in files(first, '.lane')}
    with track.init(project='store', id='two', resume=True, reinit='create_new') as run: run.log(a=1., step=1000)
    old = points(run.path)
    assert compact(run.path) == 3
    columns.drop_lanes(run.path, f'{writer}-')
    assert points(run.path) == {k: v for k, v in old.items() if not k.startswith(f'{writer}-')} != {} and files(run, '.lane') == []
    columns.drop_lanes(run.path, '')
    assert files(run, '.columns') == files(run, '.part') == []


@pytest.mark.parametrize('size', [0, 4096, 1 << 16])
def test_a_lane_without_a_header_yet_is_empty(folder, size):
    "Its writer was killed between opening it and writing the header."
    run = a_run()
    name = files(run, '.lane')[0].rpartition('-')[0]+'-9.lane'
    before = Record(run.path).history()
    (run.path/'lanes'/name).write_bytes(bytes(size))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(2): # as a lane, and when the others are columns
            r = Record(run.path)
            assert r.history().equals(before) and len(r.metric('a')[0]) == 3000 and r.metric_names == ['a', 'b', 'n', 'note', 'val'] and not r.problems
            assert recorder._last_step(run.path) == 2999 and r.seconds > 0 and r.summary['note'] == 'done'
            compact(run.path)
    assert not files(run, '.lane')


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
    end = time.monotonic()+300
    while files(old, '.lane') and time.monotonic() < end: time.sleep(.05)
    assert not files(old, '.lane') and len(files(fresh, '.lane')) == 2 and len(Record(old.path).metric('a')[0]) == 50
    columns._waiting.clear()


def test_finish_does_not_compact_and_imports_nothing(folder):
    p = python('import mlstack.tracking as track, sys\nrun = track.init(project="f")\nfor i in range(100): run.log(a=1.)\nrun.finish()\nprint([o for o in ("numpy","pandas","sqlite3","mlstack.tracking.columns") if o in sys.modules])')
    out, err = p.communicate()
    assert out.strip() == '[]', err


def test_compacting_beside_a_rewind(folder):
    "Whichever is faster, the run holds what was logged up to the step, once."
    import threading
    from mlstack.tracking.forking import make_rewind
    for i in range(house.moments(12, 100)):
        run = a_run(2000, seed=i, id=f'r{i}')
        halt = threading.Event()
        def work(path, halt):
            while not halt.is_set():
                try: compact(path)
                except MlstackError: pass
        threads = [threading.Thread(target=work, args=(run.path, halt)) for _ in range(2)]
        for o in threads: o.start()
        time.sleep(random.Random(i).uniform(0, .03))
        make_rewind(run.path, 999)
        halt.set()
        for o in threads: o.join()
        compact(run.path)
        step, _, value = Record(run.path).metric('a')
        want = np.random.default_rng(i).normal(size=(2000, 2))[:1000, 0]
        assert step.tolist() == list(range(1000)) and (value == want).all() and not Record(run.path).problems, i


# -- index: the same answers -----------------------------------------------------------------------------------------------------

def make(folder, n, rng, project='many'):
    "Runs of all kinds, written as the recorder writes them, ten minutes ago."
    odd = [None, True, float('nan'), float('inf'), 2**70, 'text', 'é\udc80', [1, 'a'], {'deep': {'x': 1}}, -0., '']
    for i in range(n):
        id = f'{project}-{rng.randrange(10**9):09}'
        path = folder/project/id
        for o in ('events', 'lanes'): (path/o).mkdir(parents=True)
        t = 1.7e9+i*rng.random()
        (path/'meta.json').write_text(json.dumps(dict(id=id, name=rng.choice(['calm', 'keen', id]), project=project, created=t, tags=rng.sample(['a', 'b', 'c'], rng.randrange(3)), group=rng.choice(['', 'g']))))
        config = {k: rng.choice([rng.random(), rng.randrange(5), *odd]) for k in rng.sample(['lr', 'a.b', 'opt', 'state', 'name', 'x y'], rng.randrange(5))} | {'opt': {'name': rng.choice(['adam', 'sgd']), 'lr': rng.random()}}
        events = [dict(k='start', t=t, owner=True, process=dict(host='elsewhere', pid=1), command=['python', 'x.py'], rank=0)]
        events += [dict(k='config', t=t, p=[k], v=v) for k, v in config.items()]
        if rng.random() < .3: events.append(dict(k='summary', t=t, v={'loss': rng.random(), 'best.acc': 1}))
        if rng.random() < .9: events.append(dict(k='finish', t=t+9, state=rng.choice(['finished', 'failed']), error=rng.choice(['', 'ValueError: x']), last={'loss': rng.choice([rng.random(), *odd]), 'acc': rng.random()}, lanes={}))
        (path/'events'/'w.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in events))
        os.utime(path/'events', (time.time()-600,)*2)


names = ['lr', 'a.b', 'opt', 'opt.name', 'opt.lr', 'state', 'name', '`x y`', 'loss', 'acc', 'best.acc', 'config.lr', 'config.state', 'summary.loss', 'run.name', 'run.state', 'run.nothing', 'tags', 'group',
    'error', 'seconds', 'created', 'command', 'host', 'id', 'opt.nothing', 'config.opt.name']
constants = ['.5', '2', "'adam'", "'finished'", 'None', 'True', "'2023-11-14'", "'calm'", "''", '0']


def sentence(rng, depth=0):
    "A random question."
    o = rng.random()
    if depth < 2 and o < .4: return f'({sentence(rng, depth+1)} {rng.choice(["and", "or"])} {sentence(rng, depth+1)})'
    if o < .5: return f'not {sentence(rng, depth+1)}' if depth < 3 else 'lr > 0'
    if o < .6: return f'{rng.choice(names)}.{rng.choice(["has", "contains", "startswith"])}({rng.choice(constants)})'
    if o < .66: return f'len({rng.choice(names)}) > 2'
    if o < .72: return f'{rng.choice(names)} in [{rng.choice(constants)}, {rng.choice(names)}]'
    if o < .78: return f'{rng.choice(constants)} < {rng.choice(names)} <= {rng.choice(constants)}'
    if o < .84: return f'{rng.choice(names)}*2 {rng.choice("+-*/%")} 1 < {rng.choice(names)}'
    return f'{rng.choice(names)} {rng.choice(["<", "<=", ">", ">=", "==", "!=", "in", "not in", "is", "is not"])} {rng.choice(constants+names)}'


def slowly(question, project=None):
    "The ids without an index, and what was warned of."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        match, names = query.parse_query(question)
        found = query._from_folders(core.settings().runs, project, match, names, question)
    return sorted(o.id for o in found), sorted(str(o.message).split(';')[0] for o in said)


def quickly(question, project=None):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        found = list(runs(question, project=project))
    return sorted(o.id for o in found), sorted(str(o.message).split(';')[0] for o in said)


def file(folder): return index.index_file(folder)


@pytest.mark.filterwarnings('ignore::SyntaxWarning')
@pytest.mark.parametrize('seed', range(3))
def test_random_questions_are_answered_alike(folder, seed):
    rng = random.Random(seed)
    make(folder, 80, rng)
    make(folder, 20, rng, 'other')
    (folder/'many'/'foreign').mkdir()
    assert len(runs()) == 100 and file(folder).exists()
    assert sum('facts' not in vars(o) for o in runs()) > 70  # most came from the index
    some = 0
    for _ in range(150):
        q = sentence(rng)
        project = rng.choice([None, None, 'many', 'other', 'nowhere'])
        want = slowly(q, project)
        assert quickly(q, project) == want, q
        some += 0 < len(want[0]) < 80
    assert some > 30


def test_what_changes_is_seen_at_once(folder):
    rng = random.Random(1)
    make(folder, 60, rng)
    made = [track.init(project='many', id=f'own{i}', config=dict(lr=1.), reinit='create_new') for i in range(3)]
    for _ in range(2): assert len(runs('state == "running" and lr == 1 and id.startswith("own")')) == 3
    for o in made: o.log(loss=1.)
    made[0].finish()
    assert [o.id for o in runs('id == "own0" and state == "finished" and loss == 1')] == ['own0']
    for o in made[1:]: o.finish()
    for o in made: os.utime(o.path/'events', (time.time()-600,)*2)
    for _ in range(2): assert len(runs('id.startswith("own") and state == "finished"')) == 3
    assert all(o.row for o in runs('id.startswith("own")'))
    with track.init(project='many', id='own1', resume=True) as again:  # gone on with
        assert [o.id for o in runs('state == "running" and id == "own1"')] == ['own1']
        again.tags = ['tagged']
        again.summary['loss'] = 7.
    assert [o.id for o in runs('tags.has("tagged") and loss == 7')] == ['own1'] and len(runs()) == 63
    import shutil
    shutil.rmtree(made[2].path)
    assert len(runs()) == 62 and not runs('id == "own2"')
    with pytest.warns(UserWarning, match="none of the 62 runs has a 'lrr'.*did you mean 'lr'"): assert not runs('lrr > 1')
    (folder/'many'/'own0'/'meta.json').write_text('{')
    os.utime(folder/'many'/'own0'/'events')
    query._cache.clear()
    with pytest.warns(UserWarning, match='meta.json is damaged'): assert len(runs()) == 61


@pytest.fixture
def looks(monkeypatch):
    "The projects whose runs were all looked at."
    seen, times = [], index._times
    monkeypatch.setattr(index, '_times', lambda folder, project, runs=None: (seen.append(project) if runs is None else None, times(folder, project, runs))[1])
    return seen


def quiet(folder):
    "As if nothing had happened for ten minutes, and known to the index."
    for o in folder.glob('[!.]*'):
        if o.is_dir():
            for run in o.glob('[!.]*/events'): os.utime(run, (time.time()-600,)*2)
            os.utime(o, (time.time()-600-random.random(),)*2)
    for _ in range(2): list(runs())


def test_one_look_at_a_project_where_nothing_has_changed(folder, looks):
    make(folder, 60, rng := random.Random(3))
    make(folder, 5, rng, 'other')
    quiet(folder)
    looks.clear()
    questions = ['', 'acc > .5', 'state == "finished" and opt.name == "adam"']
    for q in questions: assert quickly(q) == slowly(q)
    assert not looks  # the runs were taken from the index unseen
    live = track.init(project='many', id='live', config=dict(lr=5.), reinit='create_new')
    assert [o.id for o in runs('lr == 5')] == ['live'] and looks == ['many']
    quiet(folder)
    looks.clear()
    live.log(acc=.9)
    live.config['lr'] = 6.
    assert [o.id for o in runs('lr == 6 and acc == .9')] == ['live'] and not looks  # one that goes on is always read
    live.finish()
    assert [o.id for o in runs('lr == 6 and state == "finished"')] == ['live'] and not looks


@pytest.mark.parametrize('change', ['tag', 'resume', 'remove', 'rewind', 'join'])
def test_what_changes_in_a_quiet_project_is_seen_at_once(folder, change, looks):
    from mlstack.tracking import housekeeping
    with track.init(project='many', id='own', reinit='create_new') as own:
        for i in range(9): own.log(loss=9.-i)
    make(folder, 60, random.Random(4))
    quiet(folder)
    assert runs('id == "own"')[0].row and len(runs()) == 61
    looks.clear()
    assert [o.id for o in runs('id == "own" and loss == 1')] == ['own'] and not looks
    if change == 'tag': housekeeping.describe(own.path, tags=['new'])
    if change == 'resume':
        with track.init(project='many', id='own', resume=True) as run: run.log(loss=.5)
    if change == 'remove': housekeeping.remove_run(own.path)
    if change == 'rewind': track.init(project='many', resume_from='own?_step=3').finish()
    if change == 'join':
        import subprocess
        subprocess.run([sys.executable, '-c', 'import mlstack.tracking as t\nwith t.init(project="many") as run: run.log(loss=.25)'], check=True, env=os.environ | dict(MLSTACK_RUN=''),
            capture_output=True)
    for q in ('', 'loss < .6', 'tags.has("new")', 'id == "own" and loss == 6', 'id == "own"'): assert quickly(q) == slowly(q), q
    assert looks


def test_a_file_of_events_from_elsewhere_is_seen_a_minute_later(folder, monkeypatch):
    make(folder, 60, random.Random(5))
    quiet(folder)
    path = next((folder/'many').iterdir())
    (path/'events'/'copied.jsonl').write_text(json.dumps(dict(k='set', t=2e9, v=dict(tags=['copied'])))+'\n')
    monkeypatch.setattr(index, 'LOOK', 0)
    assert [o.id for o in runs('tags.has("copied")')] == [path.name]


def test_a_killed_run_is_kept_and_its_summary_is_its_last_row(folder):
    make(folder, 60, random.Random(0))
    p = python('import mlstack.tracking as track, os\nrun = track.init(project="many", id="dead")\nfor i in range(50): run.log(val=i*1.)\nos.kill(os.getpid(), 9)')
    p.communicate()
    os.utime(folder/'many'/'dead'/'events', (time.time()-600,)*2)
    for _ in range(2): assert [o.id for o in runs('state == "killed" and val == 49')] == ['dead']
    assert runs('id == "dead"')[0].row and runs('id == "dead"').best('val', 'max').id == 'dead'


def test_best_from_the_index_is_the_best(folder):
    for i in range(55):
        with track.init(project='best', id=f'b{i}', reinit='create_new') as run:
            for s in range(20): run.log(loss=((i*7+s*3) % 101)/10 if i else math.nan, n=i)
            if i == 9: run.summary['loss'] = -1.
            if i == 11: run.log(loss='text')
        os.utime(run.path/'events', (time.time()-600,)*2)
    want = {(m, mode): min(((v if mode == 'min' else -v), o.id) for o in runs() if (v := query.best_value(Record(o.path), m, mode)) is not None)[0] for m in ('loss', 'n') for mode in ('min', 'max')}
    for _ in range(3):
        for (m, mode), v in want.items():
            best = runs().best(m, mode)
            assert query.best_value(best, m, mode) == (v if mode == 'min' else -v)
    assert runs().best('loss', 'min').id == 'b9' and all(o.row for o in runs())
    with pytest.raises(MlstackError, match="(?i)did you mean 'loss'"): runs().best('losss', 'min')


# -- index: damage, kills, races -------------------------------------------------------------------------------------------------

def test_a_damaged_index_is_made_anew(folder):
    rng = random.Random(0)
    make(folder, 60, rng)
    questions = ['', 'acc > .5', 'state == "finished" and opt.name == "adam"']
    want = [slowly(q) for q in questions]
    assert [quickly(q) for q in questions] == want
    for i in range(40):
        path = file(folder)
        data = bytearray(path.read_bytes()) if path.exists() else bytearray()
        for o in (path.with_name(path.name+'-wal'), path.with_name(path.name+'-shm')):
            if rng.random() < .5: o.unlink(missing_ok=True)
        if i % 4 == 0: path.unlink(missing_ok=True)
        elif i % 4 == 1: path.write_bytes(data[:rng.randrange(len(data)+1)])
        elif i % 4 == 2: path.write_bytes(os.urandom(rng.randrange(20000)))
        else:
            at = rng.randrange(0, max(1, len(data)-4096))//4096*4096  # a page of rubbish
            path.write_bytes(data[:at]+os.urandom(4096)+data[at+4096:])
        assert [quickly(q) for q in questions] == want, i


def test_an_index_of_another_version_or_none_at_all(folder):
    import sqlite3
    make(folder, 60, random.Random(0))
    want = quickly('acc > .5')
    con = sqlite3.connect(file(folder))
    con.execute('PRAGMA user_version=99')
    con.close()
    assert quickly('acc > .5') == want
    import shutil
    shutil.rmtree(folder/'.index')
    (folder/'.index').write_text('in the way')
    assert quickly('acc > .5') == want


def test_a_locked_index_is_done_without(folder, monkeypatch):
    import sqlite3
    make(folder, 60, random.Random(0))
    want = quickly('acc > .5')
    real = sqlite3.connect
    monkeypatch.setattr(index.sqlite3, 'connect', lambda *a, **k: real(*a, **(k | dict(timeout=.05))))
    make(folder, 5, random.Random(5))
    con = real(file(folder), isolation_level=None)
    con.execute('BEGIN EXCLUSIVE')
    assert quickly('acc > .5') == slowly('acc > .5') != want
    con.execute('ROLLBACK')
    assert quickly('acc > .5') == slowly('acc > .5')


ASK = """
import sys
from mlstack.tracking.query import runs
print('on', flush=True)
while True: print(len(runs(sys.argv[1])), flush=True)
"""


@pytest.mark.parametrize('seed', range(max(2, KILLS//3)))
def test_sigkill_while_indexing(folder, seed):
    rng = random.Random(seed)
    make(folder, 150, rng)
    want = slowly('acc > .5')
    for i in range(4):
        if i % 2: file(folder).unlink(missing_ok=True)
        p = python(ASK, 'acc > .5')
        p.stdout.readline()
        time.sleep(rng.uniform(0, .15))
        p.kill()
        said = p.communicate()[0].split()
        assert set(said[:-1]) <= {str(len(want[0]))}
        assert quickly('acc > .5') == want


def test_four_ask_at_once_while_the_index_is_deleted(folder):
    make(folder, 120, random.Random(0))
    want = str(len(slowly('acc > .5')[0]))
    ps = [python(ASK, 'acc > .5') for _ in range(4)]
    for p in ps: p.stdout.readline()
    for _ in range(10):
        time.sleep(.1)
        index._remove(folder)
    said = [p.stdout.readline().strip() for p in ps]
    for p in ps: p.kill()
    for p, first in zip(ps, said):
        out, err = p.communicate()
        assert {first, *out.split()[:-1]} == {want}, err


def test_tracking_is_imported_without_sqlite():
    p = python("import sys, mlstack.tracking as track\nfrom mlstack.tracking.query import runs\nprint([o for o in ('sqlite3', 'numpy', 'pandas') if o in sys.modules])")
    out, err = p.communicate()
    assert out.strip() == '[]', err
