"""W&B, both ways, against the real SDK offline: what it writes we read, what we write from our runs it accepts, and our names take its arguments."""
import json, math, os, random, shutil, signal, struct, subprocess, sys, time, warnings, zlib
from pathlib import Path

import numpy as np
import pytest

import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError
from mlstack.tracking import wandb_files
from mlstack.tracking.columns import compact
from mlstack.tracking.lanes import LaneFile
from mlstack.tracking.wandb_files import WandbFile

# One process of the real SDK writes all the runs that the tests read: its start is most of the cost.
WRITE = """
import math, random, sys, wandb
random.seed(0)

def run(id, **kw):
    settings = wandb.Settings(silent=True, x_stats_sampling_interval=.1, **kw.pop('settings', {}))
    return wandb.init(project=kw.pop('project','p'), id=id, settings=settings, reinit='finish_previous', **kw)

with run('plain', name='a name', tags=['x','y'], notes='two\\nlines', group='g', job_type='train', config={'lr': 1e-3, 'model': {'width': 64, 'act': ['relu', None]}, 'a.b': 'dot'}) as r:
    points = []
    for i in range(400):
        row = {'loss': random.gauss(0, 1)*10**random.randint(-300, 300), 'nested': {'acc': random.random()}, 'n': i}
        r.log(dict(row))
        points.append([row['loss'].hex(), row['nested']['acc'].hex()])
    r.log({'late': 1.5}, step=1000)
    r.summary['best'] = .25
    r.summary['deep'] = {'k': 'v'}
    r.config.update({'later': {'z': 3}})
    r.define_metric('loss', summary='min')
    r.alert('watch out', 'it diverges')
    print('a line of output')
    import json, time
    json.dump(points, open('points.json', 'w'))
    time.sleep(.5)

import numpy as np
with run('media') as r:
    r.log({'image': wandb.Image(np.full((4, 4, 3), 7, np.uint8), caption='seven'), 'many': [wandb.Image(np.full((4, 4), i, np.uint8), caption=str(i)) for i in range(2)]})
    r.log({'table': wandb.Table(columns=['a', 'b'], data=[[1, 'x'], [2, 'y']]), 'page': wandb.Html('<b>hi</b>', inject=False)})
    r.define_metric('loss', summary='min')
    r.log({'loss': 1.}); r.log({'loss': 2.})

with run('odd') as r:
    r.log({'x': float('nan'), 'big': 2**60+1, 'text': 'h\\u00e9 "q"', 'flag': True, 'none': None, 'list': [1, 2.5], 'zero': -0., 'tiny': 5e-324, 'huge': 1.7976931348623157e308})
    r.log({'x': float('inf')})
    r.log({'x': float('-inf'), 'h': wandb.Histogram([1., 2., 3.])})
    r.log({'long': 'z'*100_000})
    r.log({'a/b': 1., 'emoji \\U0001f600': 2.})

with run('typed', settings=dict(x_history_value_encoding='json,typed')) as r:
    for i in range(20): r.log({'f': float(i), 'i': -i, 's': 'x', 'b': False, 'l': [i], 'v': i/3, 'deep': {'er': i/7}})

for part in range(2):
    with run('twice', config={'part': part}) as r:
        for i in range(50): r.log({'y': i+part*.5}, step=part*50+i)
    time.sleep(1.1)

r = run('fails')
r.log({'x': 1.})
r.finish(3)
"""

def wandb_env(**kw):
    env = {k: v for k, v in os.environ.items() if not k.startswith(('WANDB', 'MLSTACK'))}
    return env | dict(WANDB_MODE='offline', WANDB_SILENT='true', OMP_NUM_THREADS='1') | kw

def python(code, cwd, *args, **env):
    p = subprocess.run([sys.executable, '-c', code, *map(str, args)], cwd=cwd, env=wandb_env(**env), capture_output=True, text=True, timeout=240)
    assert p.returncode == 0, p.stderr[-3000:]
    return p.stdout

@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('real')
    python(WRITE, folder)
    return folder

@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path/'runs'))
    core.set_process_context(None)
    yield tmp_path/'runs'
    core.set_process_context(None)

@pytest.fixture
def loaded(written): return {r.id: r for r in track.load(written/'wandb')}

def file_of(written, id): return sorted((written/'wandb').glob(f'offline-run-*-{id}/run-{id}.wandb'))[0]

def bits(values): return [struct.pack('<d', v) for v in values]


# Reading what W&B wrote

def test_every_point_bit_for_bit(written, loaded):
    r, points = loaded['plain'], json.loads((written/'points.json').read_text())
    step, at, loss = r.metric('loss')
    assert step.tolist() == list(range(400)) and (at[1:] >= at[:-1]).all() and at[0] > 1.7e9
    assert [v.hex() for v in loss.tolist()] == [o[0] for o in points]
    assert [v.hex() for v in r.metric('nested.acc')[2].tolist()] == [o[1] for o in points]
    assert r.metric('n')[2].tolist() == list(range(400)) and r.metric('late')[0].tolist() == [1000]
    assert r.metric_names == ['late', 'loss', 'n', 'nested.acc']
    assert len(list(r.path.glob('lanes/*.lane'))) == 2  # not one lane for every order of the names

def test_description_config_and_summary(loaded):
    r = loaded['plain']
    assert (r.name, r.project, r.group, r.job_type, r.notes, r.tags, r.state) == ('a name', 'p', 'g', 'train', 'two\nlines', ('x', 'y'), 'finished')
    assert r.config == {'lr': 1e-3, 'model': {'width': 64, 'act': ['relu', None]}, 'a.b': 'dot', 'later': {'z': 3}}
    assert r.summary['best'] == .25 and r.summary['deep.k'] == 'v' and r.summary['n'] == 399 and not any(k.startswith('_') for k in r.summary)
    assert r.seconds > 0 and r.host and track.runs("config.model.width == 64 and summary.best < 1")[0].id == 'plain'

def test_system_statistics_and_console(loaded):
    "Whatever W&B measured here, with its times; and what was printed."
    r = loaded['plain']
    lanes = [LaneFile(o) for o in r.path.glob('system/*.lane')]
    assert lanes and all(k.startswith('system/') for o in lanes for k in o.keys) and all(o.last()[2] > 1.7e9 for o in lanes)
    assert any('cpu' in k or 'memory' in k for o in lanes for k in o.keys)
    lines = [o.split(' ', 2) for p in r.path.glob('console/*.log') for o in p.read_text().splitlines()]
    assert [o[1:] for o in lines] == [['o', 'a line of output']] and float(lines[0][0]) > 1.7e9

def test_odd_values(loaded):
    r = loaded['odd']
    x = r.metric('x')[2].tolist()
    assert math.isnan(x[0]) and x[1:] == [math.inf, -math.inf]
    for k, v in dict(big=2**60+1, text='hé "q"', flag=True, none=None, list=[1, 2.5], long='z'*100_000).items(): assert r.metric(k)[2].tolist() == [v], k
    for k, v in dict(zero=-0., tiny=5e-324, huge=1.7976931348623157e308).items(): assert bits(r.metric(k)[2].tolist()) == bits([v]), k
    assert r.metric('a/b')[2].tolist() == [1.] and r.metric('emoji 😀')[2].tolist() == [2.]
    h = r.metric('h')[2][0]
    assert h['_type'] == 'histogram' and sum(h['values']) == 3  # one value, not three metrics
    assert not r.problems

def test_media(loaded):
    r = loaded['media']
    (step, image), = r.media('image')
    assert (step, image.caption, np.asarray(image.open()).tolist()) == (0, 'seven', [[[7]*3]*4]*4)
    assert [(o.caption, np.asarray(o.open())[0, 0]) for o in r.media('many')[0][1]] == [('0', 0), ('1', 1)]
    (_, table), = r.media('table')
    assert (table.columns, table.rows) == (['a', 'b'], [[1, 'x'], [2, 'y']]) and '<b>hi</b>' in r.media('page')[0][1].data.decode()
    assert (r.facts.defined['loss']['summary'], r.summary['loss.min']) == ('min', 1.)

def test_typed_values(loaded):
    r = loaded['typed']
    assert r.metric('f')[2].tolist() == [float(i) for i in range(20)] and r.metric('i')[2].tolist() == [-i for i in range(20)]
    assert r.metric('v')[2].tolist() == [i/3 for i in range(20)] and r.metric('deep.er')[2].tolist() == [i/7 for i in range(20)]
    assert r.metric('s')[2].tolist() == ['x']*20 and r.metric('b')[2].tolist() == [False]*20 and r.metric('l')[2].tolist() == [[i] for i in range(20)]

def test_exit_states(loaded): assert (loaded['fails'].state, loaded['fails'].error, loaded['odd'].state) == ('failed', 'exit code 3', 'finished')

def test_a_resumed_run_is_one_run(written, loaded):
    assert len(list((written/'wandb').glob('offline-run-*-twice'))) == 2
    step, _, y = loaded['twice'].metric('y')
    assert step.tolist() == list(range(100)) and y.tolist() == [i+part*.5 for part in range(2) for i in range(50)] and loaded['twice'].config.part == 1

def test_loading_twice_doubles_nothing(written, loaded):
    before = {p: p.stat().st_mtime_ns for r in loaded.values() for p in r.path.rglob('*') if p.is_file()}
    assert {r.id for r in track.load(written/'wandb')} == set(loaded)
    track.load(written)                                   # one folder up
    track.load(file_of(written, 'plain').parent)          # one run
    track.load((written/'wandb'/'latest-run'))            # the link
    assert {p: p.stat().st_mtime_ns for r in track.runs() for p in r.path.rglob('*') if p.is_file()} == before
    copy = written/'elsewhere'/'run-twice.wandb'
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(file_of(written, 'twice'), copy)
    assert len(track.load(copy)[0].metric('y')[0]) == 100
    assert not list(Path(os.environ['MLSTACK_RUNS']).glob('.import*'))

def test_what_somebody_wrote_since_is_kept(written, loaded):
    with track.init(project='p', id='plain', resume=True) as run: run.notes = 'mine'
    assert track.load(written/'wandb') and track.runs("id == 'plain'")[0].notes == 'mine'

def test_a_run_of_ours_is_not_overwritten(written):
    with track.init(project='p', id='odd') as run: run.log(x=1.)
    r = track.load(file_of(written, 'odd'))[0]
    assert r.metric('x')[2].tolist() == [1.] and len(track.runs()) == 1

def test_against_the_official_messages(written):
    "The number of rows and of points is that of W&B's own protobuf classes."
    count = python("""
import sys
from wandb.proto import wandb_internal_pb2 as pb
from mlstack.tracking.wandb_files import framed
rows = points = 0
for data in framed(sys.argv[1], []):
    r = pb.Record()
    r.ParseFromString(data)
    if r.WhichOneof('record_type') == 'history': rows, points = rows+1, points+len(r.history.item)
print(rows, points)
""", written, file_of(written, 'plain'), PYTHONPATH=os.environ.get('PYTHONPATH', os.getcwd()))
    rows = []
    WandbFile(file_of(written, 'plain')).read(lambda step, row: rows.append(len(wandb_files.flat(row))+1), lambda values, at: None)  # and _step
    assert [len(rows), sum(rows)] == [int(o) for o in count.split()] and len(rows) == 401


# Damage

def rows_of(path):
    rows, f = [], WandbFile(path)
    f.read(lambda step, row: rows.append((step, row.get('loss'))), lambda values, at: None)
    return rows, f.problems

def test_cut_anywhere(written, tmp_path):
    "A file of any length gives a beginning of the rows, and never an error."
    data, whole = file_of(written, 'plain').read_bytes(), rows_of(file_of(written, 'plain'))[0]
    lengths = random.Random(1).sample(range(7, len(data)), 30) + [7, 14, 1 << 15, (1 << 15)+3, len(data)-1]
    for n in lengths:
        (tmp_path/'run-c.wandb').write_bytes(data[:n])
        rows, problems = rows_of(tmp_path/'run-c.wandb')
        assert rows == whole[:len(rows)] and all('cut off at byte' in o or 'cut off:' in o for o in problems), n

def test_flipped_bits(written, tmp_path):
    "Nothing wrong is read, the damage is named, and other blocks are read."
    data, whole = file_of(written, 'plain').read_bytes(), rows_of(file_of(written, 'plain'))[0]
    assert len(data) > 3 << 15
    for seed in range(25):
        at = random.Random(seed).randrange(7, len(data))
        (tmp_path/'run-d.wandb').write_bytes(data[:at] + bytes([data[at] ^ 1 << seed % 8]) + data[at+1:])
        rows, problems = rows_of(tmp_path/'run-d.wandb')
        assert set(rows) <= set(whole) and rows == sorted(rows)
        assert len(rows) > 150 and (problems or len(rows) == len(whole)), at  # what is unused padding may be flipped unseen

def test_records_of_nonsense(written, tmp_path):
    "With right checksums and wrong content: named, left out, and never an error."
    rng, whole = random.Random(5), file_of(written, 'odd').read_bytes()
    def record(content):
        kind = bytes([1])
        return struct.pack('<IHB', zlib.crc32(content, zlib.crc32(kind)), len(content), 1)+content
    contents = [rng.randbytes(rng.randrange(1, 60)) for _ in range(200)]
    contents += [bytes([n << 3 | 2, len(o)])+o for n in (2, 3, 5, 7, 8, 10, 12, 13, 17, 18, 26) for o in (rng.randbytes(20) for _ in range(10))]
    contents += [bytes([n << 3, 7]) for n in (2, 3, 5, 7, 8, 10, 12, 13, 17, 18, 26)]
    (tmp_path/'run-n.wandb').write_bytes(whole[:7]+b''.join(map(record, contents)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        assert len(track.load(tmp_path/'run-n.wandb')) == 1
    assert any('was not understood and left out' in str(o.message) for o in told)

def test_a_damaged_run_is_loaded_with_a_warning(written, tmp_path):
    data = bytearray(file_of(written, 'plain').read_bytes())
    data[40_000] ^= 255
    (tmp_path/'run-plain.wandb').write_bytes(data)
    with pytest.warns(UserWarning, match=r'run-plain.wandb is damaged at byte [\d,]+: the records from there to byte 65,536 are lost'): r = track.load(tmp_path/'run-plain.wandb')[0]
    assert 100 < len(r.metric('loss')[0]) < 400 and r.state == 'finished'

def test_foreign_files(written, tmp_path):
    (tmp_path/'run-x.wandb').write_bytes(b'not one')
    with pytest.raises(MlstackError, match='no W&B file'): track.load(tmp_path/'run-x.wandb')
    shutil.copy(file_of(written, 'odd'), tmp_path)
    with pytest.warns(UserWarning, match='no W&B file'): assert [r.id for r in track.load(tmp_path)] == ['odd']
    with pytest.raises(MlstackError, match='nothing here to load'): track.load(tmp_path/'nowhere')

def test_a_killed_run_grows(tmp_path):
    "A run is killed in the middle; then the same is loaded again after more has been written."
    p = subprocess.Popen([sys.executable, '-c', """
import os, time, wandb
run = wandb.init(project='k', id='killed', settings=wandb.Settings(silent=True, x_disable_stats=True, x_transaction_log_flush_interval=.1))
for i in range(300): run.log({'loss': i/3})
print('written', flush=True)
time.sleep(600)
"""], cwd=tmp_path, env=wandb_env(), stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert p.stdout.readline().strip() == 'written'
    file, sizes = next(tmp_path.glob('wandb/offline-run-*/run-killed.wandb')), []
    while len(sizes) < 15 or sizes[-15] != sizes[-1] or sizes[-1] < 10_000: sizes.append(file.stat().st_size); time.sleep(.1)  # until W&B's own process has written the rows
    os.killpg(p.pid, signal.SIGKILL)
    p.communicate()
    data = file.read_bytes()
    file.write_bytes(data[:len(data)//2])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        first = track.load(tmp_path/'wandb')[0]
        n = len(first.metric('loss')[0])
        file.write_bytes(data)
        assert compact(first.path) == 1  # the columns of the first half go when the whole is loaded
        again = track.load(tmp_path/'wandb')[0]
        assert not list(again.path.glob('lanes/*.columns'))
    values = again.metric('loss')[2].tolist()
    assert first.state == again.state == 'killed' and 'killed or is still being written' in again.error
    assert 0 < n < len(values) and values == [i/3 for i in range(len(values))] and not again.problems and len(track.runs()) == 1

def test_reading_needs_no_wandb(written):
    out = python("import sys, mlstack.tracking as track\nsys.modules['wandb'] = None\nprint(len(track.load(sys.argv[1])))", written, written/'wandb',
        PYTHONPATH=os.environ.get('PYTHONPATH', os.getcwd()), MLSTACK_RUNS=str(written/'without'))
    assert out.split() == ['6']


# From ours to W&B, and back

def points_of(record):
    "Every point of a run: floats to the bit, and whole numbers as such."
    exact = lambda v: v.hex() if isinstance(v, float) else v
    return {k: [(s, exact(v)) for s, v in zip(step.tolist(), value.tolist())] for k in record.metric_names for step, _, value in [record.metric(k)]}

@pytest.fixture(scope='module')
def synced(tmp_path_factory):
    "Runs of ours, copied by one child, and what our reader makes of the copies."
    folder, rng = tmp_path_factory.mktemp('ours'), random.Random(3)
    core.set_process_context(None)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('MLSTACK_RUNS', str(folder/'runs'))
        made = {}
        with track.init(project='p', name='rich', group='g', job_type='eval', notes='two\nlines é', tags=['a', 'b c'], config={'lr': 1e-3, 'm': {'w': [1, None, 'x']}, 'd.ot': 1}) as run:
            made['rich'] = run
            for i in range(300): run.log({'loss': rng.gauss(0, 1)*10**rng.randint(-300, 300), 'n': i, 'part': {'acc': rng.random()}})
            for i, v in enumerate((math.nan, math.inf, -math.inf, -0., 5e-324)): run.log({'x': v}, step=400+i)
            run.log({'big': 2**60+1, 's': 'héé', 'yes': True, 'l': [1, 2.5], 'none': None, 'd': {'_type': 'histogram', 'values': [1], 'bins': [.5, 1.5]}}, step=500)
            run.log({'late': 1.}, step=10**9)
            run.summary['best'] = .125
        with track.init(project='p', name='back and forth') as run:
            made['odd steps'] = run
            for s in (5, 3, 3, -2, 4, 5): run.log({'loss': rng.random(), 'k': s}, step=s)
            run.log({'other': 1.}, step=3)
        run = made['failed'] = track.init(project='p')
        run.log(x=1.)
        run.finish(1, error='ValueError: no')
        run = made['killed'] = track.init(project='p')
        run.finish(state='killed')
        run = made['preempted'] = track.init(project='p')
        run.log(x=2.)
        run.finish(state='preempted')
        with track.init(project='p') as run:
            made['media'] = run
            x = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
            run.define_metric('loss', summary='min')
            run.log({'image': track.Image(x, caption='x'), 'two': [track.Image(x), track.Image(255-x)], 'page': track.Html('<i>p</i>'), 'h': track.Histogram([1., 2.]),
                'table': track.Table(columns=['n', 'what'], data=[[1, track.Image(x)], [2, None]]), 'sound': track.Audio(np.sin(np.arange(800)/9), 8000), 'loss': 1.})
            run.log(loss=2.)
        for variable in ('WANDB_PROJECT', 'WANDB_NAME', 'WANDB_RUN_ID'): m.setenv(variable, 'not-this')  # those of the training are not those of the copy
        places = track.sync(made.values(), to='wandb', dir=folder)
        back = {r.id: r for r in track.load(folder/'wandb', dir=folder/'back')}
        yield {k: (o.record(), back[o.id]) for k, o in made.items()}, places, folder

@pytest.mark.parametrize('name', ['rich', 'odd steps', 'failed', 'killed', 'preempted'])
def test_round_trip(synced, name):
    ours, back = synced[0][name]
    assert points_of(back) == points_of(ours) and not back.problems
    assert json.dumps(back.summary, sort_keys=True) == json.dumps(ours.summary, sort_keys=True)
    for k in ('id', 'project', 'name', 'group', 'job_type', 'notes', 'tags', 'config', 'state'): assert getattr(back, k) == getattr(ours, k), k
    assert abs((back.created-ours.created).total_seconds()) < .001

def test_media_round_trip(synced):
    (ours, back) = synced[0]['media']
    for name in ('image', 'two', 'table', 'page', 'sound', 'h'): assert len(back.media(name)) == len(ours.media(name)) == 1, name
    pixels = lambda r: [np.asarray(o.open()).tolist() for o in [r.media('image')[0][1], *r.media('two')[0][1]]]
    assert pixels(back) == pixels(ours) and back.media('image')[0][1].caption == 'x'
    a, b = back.media('table')[0][1], ours.media('table')[0][1]
    assert a.columns == b.columns and a.get_column('n') == b.get_column('n')
    assert back.media('sound')[0][1].data == ours.media('sound')[0][1].data and '<i>' in back.media('page')[0][1].data.decode()
    assert back.media('h')[0][1].histogram == ours.media('h')[0][1].histogram and back.summary['loss.min'] == ours.summary['loss.min'] == 1.

def test_times_survive(synced):
    ours, back = synced[0]['rich']
    for k in ('loss', 'x', 's', 'late'): assert back.metric(k)[1].tolist() == ours.metric(k)[1].tolist(), k

def test_the_copy_is_a_folder_of_wandb(synced):
    _, places, folder = synced
    assert len(places) == 6 and all(o.parent == folder/'wandb' and len(list(o.glob('run-*.wandb'))) == 1 for o in places)

def test_wandb_sync_reads_the_copy(synced):
    "`wandb sync` lists our folders among those it would upload."
    p = subprocess.run([sys.executable, '-m', 'wandb', 'sync', '--dry-run'], cwd=synced[2], env=wandb_env(WANDB_SILENT='false'), capture_output=True, text=True, timeout=300)
    text = p.stdout+p.stderr
    assert all(f'{next(o.glob("run-*.wandb")).name}' in text for o in synced[1]), text[-2000:]

def test_loading_a_copy_where_the_run_is_changes_nothing(synced):
    ours, _ = synced[0]['rich']
    before = points_of(ours)
    assert points_of(track.load(synced[1][0], dir=ours.path.parent.parent)[0]) == before

def test_online_without_an_account_is_an_error_that_loses_nothing(tmp_path, monkeypatch):
    for k in [k for k in os.environ if k.startswith('WANDB')]: monkeypatch.delenv(k)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('NETRC', str(tmp_path/'none'))
    monkeypatch.setenv('WANDB_BASE_URL', 'http://127.0.0.1:9')  # nobody listens there
    with track.init() as run: run.log(x=1.)
    with pytest.raises(MlstackError, match='W&B did not take this run'): track.sync(run, mode='online', dir=tmp_path)
    assert track.runs()[0].metric('x')[2].tolist() == [1.]

def test_a_sink_outlives_the_program(tmp_path, folder):
    "Nothing of W&B is imported by the training; the copy appears after it has ended."
    python("import sys, mlstack.tracking as track\nrun = track.init(project='s', id='sunk')\nfor i in range(50): run.log(loss=i/3)\nassert 'wandb' not in sys.modules", tmp_path,
        MLSTACK_SINKS='wandb', MLSTACK_RUNS=str(folder), PYTHONPATH=os.environ.get('PYTHONPATH', os.getcwd()))
    deadline = time.monotonic()+300
    while time.monotonic() < deadline and 'mlstack-sync:' not in (folder/'s'/'sunk'/'sync.log').read_text(): time.sleep(.1)
    assert track.load(tmp_path/'wandb', dir=tmp_path/'back')[0].metric('loss')[2].tolist() == [i/3 for i in range(50)]

def test_a_dead_sink_only_warns(monkeypatch, tmp_path):
    (tmp_path/'wandb.py').write_text('raise ImportError("a broken installation")')
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        with track.init(sinks='wandb') as run: run.log(x=1.)
        if run.copying: run.copying.join()
    assert any('W&B' in str(o.message) and 'sync.log' in str(o.message) for o in told)
    assert run.state == 'finished' and run.record().metric('x')[2].tolist() == [1.]


# The names of `import mlstack.tracking as wandb`

def test_every_name_of_wandb_is_covered_or_listed():
    "Against the signatures of the installed SDK."
    from mlstack.tracking.wandb_names import coverage
    found = coverage()
    assert not (unknown := [o[:2] for o in found if o[2] == 'unknown']), f'say in wandb_names whether these are accepted or missing: {unknown}'
    assert {'init', 'Run.log', 'Run.define_metric', 'Run.log_artifact', 'Table', 'Image', 'Histogram', 'Html', 'Audio', 'Artifact', 'wandb', 'Run'} <= {o[0] for o in found}
    assert sum(o[2] == 'covered' for o in found) > 100

def test_a_new_name_would_be_found(monkeypatch):
    import wandb
    from mlstack.tracking.wandb_names import coverage
    monkeypatch.setattr(wandb, 'init', lambda entity=None, something_new=None: None)
    monkeypatch.setattr(wandb.Run, 'another_method', lambda self: None, raising=False)
    assert {o[:2] for o in coverage() if o[2] == 'unknown'} == {('init', 'something_new'), ('Run', 'another_method')}

def test_what_is_listed_as_accepted_is_accepted(tmp_path):
    "Every argument of the real `init`, and every one that is listed as taken without effect."
    import inspect, wandb
    from mlstack.tracking import recorder
    from mlstack.tracking.wandb_names import ACCEPTED
    values = {k: None for k in inspect.signature(wandb.init).parameters} | {k: None for k in ACCEPTED['init']}
    recorder._told.clear()
    with pytest.warns(UserWarning, match='means nothing here'), track.init(**values) as run: run.log(data={'x': 1.})
    assert run.record().metric('x')[2].tolist() == [1.]
    x = np.zeros((4, 4), np.uint8)
    accept = lambda name: {k: True for k in ACCEPTED[name]}
    table = track.Table(columns=['a'], data=[[1]], **accept('Table'))
    table.add_column('b', [2], **accept('Table.add_column'))
    (tmp_path/'f').write_text('')
    artifact = track.Artifact('a', type='t', **accept('Artifact'))
    artifact.add_file(tmp_path/'f', **accept('Artifact.add_file'))
    artifact.add_dir(tmp_path, **accept('Artifact.add_dir'))
    with track.init() as run:
        run.log({'t': table, 'i': track.Image(x, **accept('Image')), 'h': track.Html('', **accept('Html'))})
        run.define_metric('x', **accept('Run.define_metric'))
        assert run.log_artifact(artifact, tags=['x']).files
        run.save(tmp_path/'f', **accept('Run.save'))
        run.watch([], **accept('Run.watch'))
