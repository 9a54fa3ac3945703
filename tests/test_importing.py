"""What other tools left, from the tools themselves: Trackio, Lightning, spreadsheets, Neptune's Parquet, our own export. Every point is counted; damage is named."""
import csv, json, math, os, random, shutil, sqlite3, struct, subprocess, sys, warnings

import numpy as np
import pytest

import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError
from mlstack.tracking.importing import Import, safe_id
from tests import house
from tests.bench.peers import python_of

@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path/'runs'))
    core.set_process_context(None)
    yield tmp_path/'runs'
    core.set_process_context(None)

def bits(values): return [struct.pack('<d', v) for v in values]

def odd_numbers(n, seed=0):
    "Numbers of every size, with the odd ones among them."
    rng = random.Random(seed)
    return [rng.choice((math.nan, math.inf, -math.inf, 0., -0., 5e-324, 1.7976931348623157e308)) if rng.random() < .1 else rng.gauss(0, 1)*10**rng.randint(-300, 300) for _ in range(n)]

def python(name, code, cwd, *args, **env):
    p = subprocess.run([python_of(name), '-c', code, *map(str, args)], cwd=cwd, env=house.environment(**env), capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stderr[-3000:]
    return p.stdout


# What every reader shares

def test_rows_and_arrays_are_the_same(tmp_path):
    "The same points row by row and at once, in any order and twice, read the same."
    rng = np.random.default_rng(0)
    steps, times, values = rng.integers(-50, 50, 3000), 1.7e9+rng.random(3000), np.array(odd_numbers(6000)).reshape(2, 3000)
    for name in ('rows', 'arrays'):
        with Import(name, tmp_path, 1, tmp_path/'runs', 'p', name) as o:
            if name == 'arrays': o.rows(steps, times, dict(a=values[0], b=values[1]))
            else:
                for i in range(3000): o.row(int(steps[i]), float(times[i]), dict(b=float(values[1, i]), a=float(values[0, i])))
            o.keep()
    a, b = track.runs("name == 'rows'")[0], track.runs("name == 'arrays'")[0]
    for k in 'ab':
        assert len(a.metric(k)[0]) == 3000 and all(x.tobytes() == y.tobytes() for x, y in zip(a.metric(k), b.metric(k)))
    assert bits([a.summary['a']]) == bits([b.summary['a']]) and not a.problems and not b.problems

def test_a_reader_that_dies_leaves_what_was_there(tmp_path):
    "Killed while it reads and while it moves in: the run is the old one or the new one, and the next load completes it."
    code = """
import os, sys, signal
from mlstack.tracking import importing
n, stop = int(sys.argv[1]), sys.argv[2]
if stop == 'moving':
    real, calls = os.replace, []
    def replace(a, b):
        calls.append(b)
        if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)
        real(a, b)
    os.replace = replace
with importing.Import('x', '.', n, os.environ['MLSTACK_RUNS'], 'p', 'r') as o:
    for i in range(n):
        for k in 'abcd': o.row(i, 1.7e9+i, {k: float(i)})
        if stop == 'reading' and i == n//2: os.kill(os.getpid(), signal.SIGKILL)
    o.keep()
"""
    run = lambda n, stop: subprocess.run([sys.executable, '-c', code, str(n), stop], env=os.environ | dict(PYTHONPATH=str(house.root)), cwd=tmp_path).returncode
    assert run(100, '') == 0
    for stop in ('reading', 'moving'):
        assert run(200, stop) == -9
        r = track.runs()[0]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert all(r.metric(k)[2].tolist() in ([float(i) for i in range(100)], [float(i) for i in range(200)]) for k in 'abcd')
    assert run(200, '') == 0
    r = track.runs()[0]
    assert all(r.metric(k)[2].tolist() == [float(i) for i in range(200)] for k in 'abcd') and not r.problems and len(track.runs()) == 1

def test_artifacts_double_as_little_as_points(tmp_path):
    "Two runs make versions of one name; each is loaded again after it has grown."
    def take(run, stamp, *contents):
        with Import('x', tmp_path, stamp, tmp_path/'runs', 'p', run) as o:
            for c in contents:
                (tmp_path/c).mkdir(exist_ok=True)
                (tmp_path/c/'w.bin').write_text(c)
                o.artifact(tmp_path/c, 'model', 'model')
            return [a['version'] for a in track.Record(o.keep()).artifacts]
    assert take('a', 1, 'one') == ['v0'] and take('b', 1, 'two') == ['v1']
    assert take('a', 2, 'one', 'three') == ['v0', 'v2'] and take('b', 2, 'two') == ['v1'] and take('b', 3, 'one') == ['v3']

def test_names_that_are_no_folders(tmp_path):
    names = ['a/b', 'a-b', '..', '../../x', 'x'*300, 'é😀', 'a\0b', '.hidden', 'x\ny']
    assert len({safe_id(o) for o in names}) == len(names)
    for o in names:
        with Import('x', tmp_path, 1, tmp_path/'runs', o, o, name=o.replace('\0', '')) as i:
            i.row(0, None, {o: 1., 'z'*100_000: 2.})
            path = i.keep()
        assert path.parent.parent == tmp_path/'runs' and track.Record(path).metric(o)[2].tolist() == [1.]

def test_a_full_disk_is_an_error_and_no_run(tmp_path):
    (tmp_path/'runs').write_text('a file, not a folder')
    (tmp_path/'m.csv').write_text('step,a\n0,1\n')
    with pytest.raises(MlstackError, match='could not be kept'): track.load(tmp_path/'m.csv')


# Tables

def test_csv_bit_for_bit(tmp_path):
    "Any number, NaN and infinities too, steps in any order and twice, empty cells, names with everything in them."
    values, names = odd_numbers(4000), ['a/b', 'emoji 😀', 'with, comma', 'dot.ted']
    rng = random.Random(1)
    rows = [[rng.randint(-20, 20), *(v if rng.random() < .8 else '' for v in values[i*4:i*4+4])] for i in range(1000)]
    with open(tmp_path/'log.csv', 'w', newline='') as f: csv.writer(f).writerows([['step', *names], *rows])
    r = track.load(tmp_path/'log.csv')[0]
    for j, k in enumerate(names, 1):
        want = sorted((o[0], struct.pack('<d', o[j])) for o in rows if o[j] != '')
        step, _, value = r.metric(k)
        assert sorted(zip(step.tolist(), bits(value.tolist()))) == want and len(want) > 700
    assert not r.problems

def test_real_lightning(tmp_path):
    "Two versions by the real CSVLogger: metrics that alternate, parameters beside them."
    python('lightning', """
import warnings, math; warnings.simplefilter('ignore')
from pytorch_lightning.loggers import CSVLogger
for version in range(2):
    log = CSVLogger('.', name='lightning_logs', version=version)
    log.log_hyperparams(dict(lr=.1*(version+1), model=dict(width=64)))
    for i in range(20):
        log.log_metrics({'train_loss': 1/(i+3), 'epoch': i//10}, step=i)
        if i % 10 == 9: log.log_metrics({'val_loss': math.inf if i == 9 else i/7, 'epoch': i//10}, step=i)
    log.save()
    log.finalize('success')
""", tmp_path)
    rs = track.load(tmp_path/'lightning_logs')
    assert {(r.name, r.config['lr'], r.config['model']['width']) for r in rs} == {('version_0', .1, 64), ('version_1', .2, 64)}
    for r in rs:
        assert r.metric('train_loss')[2].tolist() == [1/(i+3) for i in range(20)] and r.metric('val_loss')[2].tolist() == [math.inf, 19/7] and r.metric('epoch')[0].tolist().count(9) == 2
    assert len(track.load(tmp_path)) == 2 and len(track.runs()) == 2

def test_keras_logger_grows(tmp_path):
    "As Keras's CSVLogger writes, while it writes: a last line that is not whole is named, and comes with the next load."
    path = tmp_path/'training.csv'
    lines = ['epoch,accuracy,loss,val_loss\n', *(f'{i},{i/10},{1/(i+3)},NA\n'.replace('NA', 'nan') for i in range(10))]
    path.write_text(''.join(lines[:6])+'5,0.5')
    with pytest.warns(UserWarning, match='line 7 was left out'): r = track.load(path)[0]
    assert r.metric('loss')[2].tolist() == [1/(i+3) for i in range(5)] and r.name == tmp_path.name
    path.write_text(''.join(lines))
    r = track.load(path)[0]
    assert r.metric('loss')[2].tolist() == [1/(i+3) for i in range(10)] and len(track.runs()) == 1 and np.isnan(r.metric('val_loss')[2]).all()

def test_the_rule_and_what_overrides_it(tmp_path):
    def table(text, **how):
        (tmp_path/'t.csv').write_text(text)
        shutil.rmtree(tmp_path/'runs', ignore_errors=True)
        return track.load(tmp_path/'t.csv', **how)
    with pytest.raises(MlstackError, match="'epoch' never changes"): table('model,epoch,acc\na,5,.1\nb,5,.2\n')
    with pytest.raises(MlstackError, match="'epoch' does not count up"): table('model,epoch,acc\na,5,.1\nb,3,.2\n')
    assert len(table('model,epoch,acc\na,5,.1\nb,3,.2\n', step=None)) == 2
    with pytest.raises(MlstackError, match='which columns are results is not clear: quality'): table('name,lr,quality\na,.1,3\n')
    with pytest.raises(MlstackError, match='none looks like one'): table('name,lr\na,.1\n')
    with pytest.raises(MlstackError, match="id you mean 'quality'"): table('name,lr,quality\na,.1,3\n', metrics=['qualty'])
    with pytest.raises(MlstackError, match='no whole numbers: 0.5 in row 2'): table('step,loss\n0,1\n0.5,2\n')
    with pytest.raises(MlstackError, match="'lr' is no parameter: it has 2 values"): table('step,lr,loss\n0,1,1\n1,2,2\n', config=['lr'])
    with pytest.raises(MlstackError, match="names 1 rows a second time"): table('id,loss\na,1\na,2\n')
    with pytest.raises(MlstackError, match="'stp' means nothing for tables|no column|means nothing"): table('step,loss\n0,1\n', stp='x')
    with pytest.raises(MlstackError, match='first row holds numbers'): table('0,1\n1,2\n')
    with pytest.raises(MlstackError, match='have no name of their own'): table('step,a,a\n0,1,2\n')
    with pytest.raises(MlstackError, match='has no rows'): table('step,loss\n')
    with pytest.raises(MlstackError, match='empty'): table('')
    r, = table('Step;Loss;lr\n0;0,5;1\n') # a decimal comma is a text, not half a number
    assert r.metric('Loss')[2].tolist() == ['0,5']
    r, = table('batch,loss,model\n3,.5,cnn\n4,.4,cnn\n', step='batch', config='model')
    assert (r.config, r.metric('loss')[0].tolist(), r.metric_names) == ({'model': 'cnn'}, [3, 4], ['loss'])
    rs = table('run,step,loss,time\na,0,1,2024-01-01T00:00:00\nb,0,2,2024-01-01T00:00:01\na,1,3,2024-01-01T00:00:02\n')
    assert {r.name: r.metric('loss')[2].tolist() for r in rs} == {'a': [1, 3], 'b': [2]} and next(r for r in rs if r.name == 'a').metric('loss')[1].tolist() == [1704067200., 1704067202.]
    r, = table('step,loss,time\n0,1,0.5\n1,2,1.5\n')
    assert r.metric('time')[2].tolist() == [.5, 1.5]          # seconds since the start are a metric
    rs = table('name,config.depth,summary.size,when\na,3,4,x\n')
    assert (rs[0].config, dict(rs[0].summary)) == ({'depth': 3, 'when': 'x'}, {'size': 4})
    long = 'x'*1_000_000
    r, = table(f'step,loss,note\n0,1,{long}\n1,2,\n')
    assert r.metric('note')[2].tolist() == [long]
    r, = table('\ufeffstep\tloss\n0\t1\n'.replace('\t', ','))
    assert r.metric_names == ['loss']

def test_files_that_are_no_tables(tmp_path):
    (tmp_path/'a.csv').write_bytes(b'\x00\x01'*500)
    (tmp_path/'b.json').write_text('{"a": 1}')
    (tmp_path/'c.json').write_text('[{"step": 0')
    (tmp_path/'d.csv').write_bytes(b'step,\xff\xfe\n0,1\n')
    for name, match in dict(a='no text', b='no table', c='no JSON').items():
        with pytest.raises(MlstackError, match=match): track.load(next(tmp_path.glob(f'{name}.*')))
    assert len(track.load(tmp_path/'d.csv')[0].metric_names) == 1
    (tmp_path/'many').mkdir()
    shutil.copy(tmp_path/'a.csv', tmp_path/'many')
    (tmp_path/'many'/'b.csv').write_text('step,loss\n0,1\n')
    with pytest.warns(UserWarning, match='no text'): assert len(track.load(tmp_path/'many')) == 1

def test_our_export_comes_back(tmp_path):
    "CSV and JSON here, Parquet and XLSX where they can be written: all points but those that such a file does not hold."
    values = [v for v in odd_numbers(600) if v == v]
    for j in range(3):
        with track.init(project='p', id=f'run{j}', config=dict(lr=.1*j), surroundings=False, dir=tmp_path/'there') as run:
            for i, v in enumerate(values[j::3]):
                run.log({'loss': v, 'n': i} | ({'val/acc 😀': i/7} if i % 10 == 0 else {}), step=-i)
            run.log({'text': '=1+1', 'loss': 1.}, step=3)
            run.log({'loss': 2.}, step=3)
    there = track.runs(dir=tmp_path/'there')
    def same(back, exact=True):
        assert {r.id for r in back} == {'run0', 'run1', 'run2'}
        for r in back:
            mine = next(o for o in there if o.id == r.id)
            for k in ('loss', 'n', 'val/acc 😀'):
                assert all(a.astype(float).tobytes() == b.astype(float).tobytes() for a, b in zip(mine.metric(k), r.metric(k))), (r.id, k)
            if exact: assert r.metric('text')[2].tolist() == ['=1+1']
    for kind in ('csv', 'json'): same(track.load(there.export(tmp_path/f'out.{kind}', history=True), dir=tmp_path/kind))
    code = """
import os, sys, mlstack.tracking as track
there = track.runs(dir=sys.argv[1])
for kind in ('parquet', 'xlsx'):
    track.load(there.export(f'{sys.argv[2]}/out.{kind}', history=True), dir=f'{sys.argv[2]}/{kind}')
    print(len(track.runs(dir=f'{sys.argv[2]}/{kind}')))
"""
    assert python('tables', code, tmp_path, tmp_path/'there', tmp_path) == '3\n3\n'
    same(track.runs(dir=tmp_path/'parquet'))
    assert {r.id: len(r.metric('n')[0]) for r in track.runs(dir=tmp_path/'xlsx')} == {r.id: len(r.metric('n')[0]) for r in there}

def test_a_real_spreadsheet(tmp_path):
    "A row for each run, written by openpyxl; another sheet; a date; one that is cut off."
    out = python('tables', """
import openpyxl, datetime, sys
import mlstack.tracking as track
book = openpyxl.Workbook()
sheet = book.active
for row in (['name', 'model', 'lr', 'val acc', 'started'], ['A', 'cnn', .1, .93, datetime.datetime(2024, 1, 2)], ['B', 'vit', 1e-3, None, None], [None]*5): sheet.append(row)
other = book.create_sheet('steps')
for row in (['step', 'loss'], [0, .1], [1, 1/3], [2, None]): other.append(row)  # 16 digits are written
book.save('a.xlsx')
rs = track.load('a.xlsx')
print({r.name: (r.config, dict(r.summary)) for r in rs} == {'A': ({'model': 'cnn', 'lr': .1, 'started': '2024-01-02T00:00:00'}, {'val acc': .93}), 'B': ({'model': 'vit', 'lr': 1e-3}, {})})
print(track.load('a.xlsx', sheet='steps')[0].metric('loss')[2].tolist() == [.1, 1/3])
for sheet, data in (('nowhere', open('a.xlsx', 'rb').read()), (None, open('a.xlsx', 'rb').read()[:3000]), (None, b'PK')):
    open('b.xlsx', 'wb').write(data)
    try: track.load('b.xlsx', sheet=sheet)
    except track.importing.MlstackError as e: print('error', 'b.xlsx' in str(e))
""".replace('track.importing.MlstackError', '__import__("mlstack.core").core.MlstackError'), tmp_path, MLSTACK_RUNS=tmp_path/'x')
    assert out == 'True\nTrue\n'+'error True\n'*3
    (tmp_path/'t.xlsx').write_bytes(b'PK')
    with pytest.raises(MlstackError, match='needs openpyxl|cannot be read'): track.load(tmp_path/'t.xlsx')


# Trackio

TRACKIO = """
import os, sys, json, math, random, warnings
import trackio, numpy as np
rng = random.Random(0)
trackio.init(project='digits', name='first', group='g', config={'lr': .1, 'model': {'width': 64}, 'none': None})
points = []
for i in range(400):
    v = rng.gauss(0, 1)*10**rng.randint(-300, 300)
    trackio.log({'loss': v, 'deep': {'er': i/3}, 'n': i})
    points.append(v.hex())
for i, v in enumerate((math.nan, math.inf, -math.inf)): trackio.log({'odd 😀/x': v}, step=[7, 3, 3][i])
trackio.log({'text': 'hi', 'list': [1, 2.5], 'flag': True, 'none': None, 'image': trackio.Image(np.full((8, 8, 3), 7, 'uint8'), caption='seven'), 'hist': trackio.Histogram([1, 2, 3.])})
trackio.log_system({'gpu/util': 3.5})
trackio.alert(title='watch', text='out')
os.makedirs('folder'); open('folder/a.txt', 'w').write('a'); open('folder/b.txt', 'w').write('b'); open('m.bin', 'w').write('weights')
trackio.log_artifact('m.bin', name='model', type='model')
trackio.finish()
trackio.init(project='digits', name='second', config={'lr': .2}); trackio.log({'loss': 2.}); trackio.finish()
trackio.init(project='other', name='first'); trackio.log({'loss': 3.}); trackio.finish()
json.dump(points, open('points.json', 'w'))
"""

@pytest.fixture(scope='module')
def trackio(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trackio')
    python('trackio', TRACKIO, folder, TRACKIO_DIR=folder/'store')
    return folder

def test_real_trackio(trackio):
    rs = track.load(trackio/'store')
    assert rs.recognised == {'Trackio': 3} and {(r.project, r.name) for r in rs} == {('digits', 'first'), ('digits', 'second'), ('other', 'first')}
    r = next(o for o in rs if (o.project, o.name) == ('digits', 'first'))
    assert [v.hex() for v in r.metric('loss')[2].tolist()] == json.loads((trackio/'points.json').read_text())
    assert r.metric('deep.er')[2].tolist() == [i/3 for i in range(400)] and (r.config, r.group, r.state) == ({'lr': .1, 'model': {'width': 64}, 'none': None}, 'g', 'finished')
    step, _, value = r.metric('odd 😀/x')
    assert step.tolist() == [3, 3, 7] and sorted(map(repr, value.tolist())) == ['-inf', 'inf', 'nan']
    assert [r.metric(k)[2].tolist() for k in ('text', 'list', 'flag', 'none')] == [['hi'], [[1, 2.5]], [True], [None]]
    (_, image), = r.media('image')
    assert image.caption == 'seven' and np.asarray(image.open())[..., :3].tolist() == [[[7]*3]*8]*8 and sum(r.metric('hist')[2][0]['values']) == 3
    assert r.metric('system/gpu/util')[2].tolist() == [3.5] and r.alerts[0]['title'] == 'watch' and r.metric('loss')[1][0] > 1.7e9
    from mlstack.tracking.artifacts import find_artifact
    assert find_artifact(r.path.parent/'.artifacts', 'model').read() == b'weights' and not r.problems
    before = {p: p.stat().st_mtime_ns for o in rs for p in o.path.rglob('*') if p.is_file()}
    track.load(trackio/'store'/'digits.db')
    track.load(trackio/'store')
    assert {p: p.stat().st_mtime_ns for o in rs for p in o.path.rglob('*') if p.is_file()} == before

def test_damaged_trackio(trackio, tmp_path):
    data = (trackio/'store'/'digits.db').read_bytes()
    wal = trackio/'store'/'digits.db-wal'
    assert not wal.exists() or not wal.stat().st_size
    outcomes = set()
    for i in range(8):
        (tmp_path/'d.db').write_bytes(data[:random.Random(i).randrange(100, len(data))])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                rs = track.load(tmp_path/'d.db', dir=tmp_path/f'r{i}')
                outcomes.add('loaded')
                assert all(len(r.metric('loss')[0]) <= 400 for r in rs)
            except MlstackError: outcomes.add('error')
    assert 'error' in outcomes
    shutil.copy(trackio/'store'/'digits.db', tmp_path/'e.db')
    with sqlite3.connect(tmp_path/'e.db') as db: db.execute("update metrics set metrics='{broken' where run_name='first' and step=5")
    db.close()
    with pytest.warns(UserWarning, match='cannot be read'): assert [r.name for r in track.load(tmp_path/'e.db')] == ['second']


# Neptune

NEPTUNE = """
import sys, decimal, datetime, os, math, json, random
import pyarrow as pa, pyarrow.parquet as pq
stamp = pa.timestamp('ms', tz='UTC')
schema = pa.schema([('project_id', pa.string()), ('run_id', pa.string()), ('attribute_path', pa.string()), ('attribute_type', pa.string()), ('step', pa.decimal128(18, 6)), ('timestamp', stamp),
    ('int_value', pa.int64()), ('float_value', pa.float64()), ('string_value', pa.string()), ('bool_value', pa.bool_()), ('datetime_value', stamp), ('string_set_value', pa.list_(pa.string())),
    ('file_value', pa.struct([('path', pa.string())])), ('histogram_value', pa.struct([('type', pa.string()), ('edges', pa.list_(pa.float64())), ('values', pa.list_(pa.float64()))]))])
at = lambda i: datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc)+datetime.timedelta(milliseconds=i)
rng, values = random.Random(0), []
def row(path, kind, **kw): return dict(project_id='ws/proj', run_id='RUN-1', attribute_path=path, attribute_type=kind, **kw)
def step(x): return decimal.Decimal(str(x)).quantize(decimal.Decimal('0.000001'))
rows = [row('sys/name', 'string', string_value='first'), row('sys/tags', 'string_set', string_set_value=['a', 'b']), row('sys/failed', 'bool', bool_value=False), row('sys/creation_time', 'datetime', datetime_value=at(0)),
    row('sys/description', 'string', string_value='notes'), row('parameters/lr', 'float', float_value=.1), row('parameters/layers', 'int', int_value=3), row('parameters/on', 'bool', bool_value=True), row('when', 'datetime', datetime_value=at(5)),
    row('model/file', 'file', file_value=dict(path='ws_proj/model.bin')), row('gone', 'file', file_value=dict(path='ws_proj/gone.bin'))]
for i in range(3000):
    v = rng.choice((math.nan, math.inf, -math.inf)) if rng.random() < .05 else rng.gauss(0, 1)*10**rng.randint(-300, 300)
    values.append(v.hex())
    rows.append(row('metrics/loss', 'float_series', step=step(i), timestamp=at(i), float_value=v))
rows += [row('half', 'float_series', step=step(i/2), timestamp=at(i), float_value=float(i)) for i in range(4)] if len(sys.argv) > 1 else []
rows += [row('monitoring/abc/cpu', 'float_series', step=step(i), timestamp=at(i), float_value=float(i)) for i in range(5)]
rows += [row('monitoring/abc/stdout', 'string_series', step=step(i), timestamp=at(i), string_value=f'line {i}') for i in range(3)]
rows += [row('says', 'string_series', step=step(i), timestamp=at(i), string_value=f'text {i}') for i in range(3)]
rows += [row('hist', 'histogram_series', step=step(2), timestamp=at(2), histogram_value=dict(type='COUNTING', edges=[0., 1., 2.], values=[3., 4.]))]
rows += [row('pictures', 'file_series', step=step(1), timestamp=at(1), file_value=dict(path='ws_proj/p.png'))]
os.makedirs('data/ws_proj', exist_ok=True); os.makedirs('files/ws_proj', exist_ok=True)
open('files/ws_proj/model.bin', 'w').write('weights')
open('files/ws_proj/p.png', 'wb').write(bytes.fromhex('89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082'))
for n, part in enumerate((rows[:1500], rows[1500:])): pq.write_table(pa.Table.from_pylist(part, schema), f'data/ws_proj/RUN-1_part_{n}.parquet', compression='snappy')
json.dump(values, open('values.json', 'w'))
import mlstack.tracking as track, warnings
warnings.simplefilter('always')
if len(sys.argv) > 1:
    try: track.load('data')
    except Exception as e: print(e)
print(len(track.load('data' if len(sys.argv) == 1 else '.', **(dict(scale=2) if len(sys.argv) > 1 else {}))), len(track.load('data/ws_proj/RUN-1_part_0.parquet', **(dict(scale=2) if len(sys.argv) > 1 else {}))))
"""

def test_neptune(tmp_path):
    "Parquet with the exporter's own schema, in two parts."
    out = python('tables', NEPTUNE, tmp_path, MLSTACK_RUNS=tmp_path/'runs')
    r = track.runs("name == 'first'")[0]
    assert [v.hex() for v in r.metric('metrics/loss')[2].tolist()] == json.loads((tmp_path/'values.json').read_text()) and r.metric('metrics/loss')[0].tolist() == list(range(3000))
    assert out.split()[-2:] == ['1', '1'] and r.metric('metrics/loss')[1][5] == 1735689600.005
    assert (r.project, r.id, r.tags, r.notes, r.state, r.created.timestamp()) == ('ws-proj', 'RUN-1', ('a', 'b'), 'notes', 'finished', 1735689600.)
    assert r.config == {'parameters': {'lr': .1, 'layers': 3, 'on': True}, 'when': '2025-01-01T00:00:00.005000+00:00'}
    assert r.metric('system/abc/cpu')[2].tolist() == [0., 1., 2., 3., 4.] and 'line 2' in r.console and r.metric('says')[2].tolist() == ['text 0', 'text 1', 'text 2']
    assert r.metric('hist')[2][0]['values'] == [3., 4.] and r.media('pictures')[0][0] == 1
    from mlstack.tracking.artifacts import find_artifact
    assert find_artifact(r.path.parent/'.artifacts', 'model-file').read() == b'weights' and not r.problems

def test_neptune_half_steps(tmp_path):
    out = python('tables', NEPTUNE, tmp_path, 'half', MLSTACK_RUNS=tmp_path/'runs')
    assert 'not whole: 0.5' in out and 'scale=1000' in out
    assert track.runs("name == 'first'")[0].metric('half')[0].tolist() == [0, 1, 2, 3] and track.runs("name == 'first'")[0].metric('metrics/loss')[0].tolist()[-1] == 5998


def test_aim_says_what_to_do(tmp_path):
    (tmp_path/'.aim'/'seqs').mkdir(parents=True)
    (tmp_path/'.aim'/'run_metadata.sqlite').touch()
    with pytest.raises(MlstackError, match='RocksDB'): track.load(tmp_path)


# All of them

def test_a_folder_of_several_tools(trackio, tmp_path):
    shutil.copytree(trackio/'store', tmp_path/'all')
    (tmp_path/'all'/'log.csv').write_text('step,loss\n0,1\n')
    run = tmp_path/'all'/'mlruns'/'1'/'abc'
    (run/'metrics').mkdir(parents=True)
    (run/'meta.yaml').write_text('run_id: abc\nstatus: 3\nstart_time: 1700000000000\nlifecycle_stage: active\n')
    assert track.load(tmp_path/'all').recognised == {'MLflow': 1, 'Trackio': 3}  # tables are asked where nobody else knew

def test_readers_load_nothing_heavy():
    "To ask all readers whose a file is imports no library of theirs, and not torch."
    r = house.python("import sys, mlstack.tracking.importing as i\nfrom pathlib import Path\nPath('x.csv').write_text('step,a\\n0,1')\n[o[1](Path('x.csv')) for o in i._readers()]\nassert not {'torch', 'pandas', 'mlflow', 'wandb', 'pyarrow', 'openpyxl', 'yaml', 'tensorboard'} & set(sys.modules), set(sys.modules)\nPath('x.csv').unlink()", timeout=300)
    assert r.returncode == 0, r.stdout
