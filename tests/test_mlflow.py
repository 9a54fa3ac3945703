"""MLflow, both ways, against the real one: what it writes we read bit for bit, from its database, its folder and its server; our runs appear on its server."""
import json, math, os, random, shutil, signal, socket, sqlite3, struct, subprocess, sys, time, warnings
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError
from mlstack.tracking.mlflow import Server
from mlstack.tracking.mlflow_sync import mlflow_name
from tests import house
from tests.bench.peers import python_of

WRITE = """
import json, math, random, sys, warnings, logging
warnings.simplefilter('ignore')
import mlflow
from mlflow.entities import Metric, Param
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment('digits')
client, rng = mlflow.MlflowClient(), random.Random(0)
with mlflow.start_run(run_name='first', tags={'team': 'a', 'empty': ''}, description='two\\nlines') as r:
    mlflow.log_params({'lr': .1, 'model/width': 64, 'act': 'relu', 'on': True, 'nothing': None, 'seven': '007', 'é:x y': '😀', 'long': 'z'*6000})
    points = [Metric('loss', rng.gauss(0, 1)*10**rng.randint(-300, 300), 1_700_000_000_000+i, i) for i in range(2500)]
    points += [Metric('deep/er', rng.random(), 1_700_000_000_000+i, i) for i in range(500)]
    points += [Metric('odd', v, 1_700_000_100_000+i, i) for i, v in enumerate((math.nan, math.inf, -math.inf, 5e-324, 0.1+0.2, 2.**53, -1.5))]
    points += [Metric('back', v, 1_700_000_200_000+i, s) for i, (s, v) in enumerate(((5, 1.), (3, 2.), (3, 3.), (3, 3.5), (-2, 4.), (2**40, 5.)))]
    points += [Metric('no time', 1., 0, 0)]
    for i in range(0, len(points), 900): client.log_batch(r.info.run_id, metrics=points[i:i+900])
    mlflow.log_text('hello', 'notes/a.txt')
    mlflow.log_text('{}', 'model/MLmodel')
    import pandas as pd
    mlflow.log_input(mlflow.data.from_pandas(pd.DataFrame({'x': [1., 2.]}), name='train-set'), context='training')
    with mlflow.start_run(nested=True, run_name='child'): mlflow.log_metric('loss', .5)
try:
    with mlflow.start_run(run_name='dies'): raise ValueError
except ValueError: pass
client.create_registered_model('digits-model')
for i in range(2):
    v = client.create_model_version('digits-model', r.info.artifact_uri+'/model', r.info.run_id)
client.set_registered_model_alias('digits-model', 'champion', v.version)
client.delete_run(client.create_run(r.info.experiment_id, run_name='deleted').info.run_id)
client.log_metric(client.create_run(r.info.experiment_id, run_name='live').info.run_id, 'loss', 1.)
told = {k: [[m.step, m.timestamp, m.value.hex()] for m in client.get_metric_history(r.info.run_id, k)] for k in ('loss', 'deep/er', 'odd', 'back', 'no time')}
json.dump(dict(id=r.info.run_id, points=told), open(sys.argv[2], 'w'))
"""

def python(code, cwd, *args, **env):
    p = subprocess.run([python_of('mlflow_server'), '-c', code, *map(str, args)], cwd=cwd, env=house.environment(MLFLOW_ALLOW_FILE_STORE='true', MLFLOW_DISABLE_TELEMETRY='true', **env), capture_output=True, text=True, timeout=240)
    assert p.returncode == 0, p.stderr[-3000:]
    return p.stdout

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def start(folder, port):
    "A real server; returns its process when it answers."
    command = [python_of('mlflow_server'), '-m', 'mlflow', 'server', '--host', '127.0.0.1', '--port', port, '--backend-store-uri', f'sqlite:///{folder}/server.db', '--artifacts-destination', folder/'mlartifacts', '--workers', 1]
    p = subprocess.Popen(list(map(str, command)), cwd=folder, env=house.environment(MLFLOW_DISABLE_TELEMETRY='true', MLFLOW_SERVER_ENABLE_JOB_EXECUTION='false'), stdout=subprocess.DEVNULL, stderr=open(folder/'server.log', 'a'), start_new_session=True)
    for _ in range(3000):
        try:
            urlopen(f'http://127.0.0.1:{port}/health', timeout=2).read()
            return p
        except OSError: time.sleep(.1)
        if p.poll() is not None: break
    stop(p)
    raise RuntimeError((folder/'server.log').read_text()[-2000:])

def stop(p):
    try: os.killpg(p.pid, signal.SIGKILL)
    except ProcessLookupError: pass
    p.wait()

@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "The address of a real MLflow server."
    folder, port = tmp_path_factory.mktemp('server'), free_port()
    p = start(folder, port)
    yield f'http://127.0.0.1:{port}'
    stop(p)

@pytest.fixture(scope='module')
def written(tmp_path_factory):
    "A database and a folder, as MLflow wrote them."
    folder = tmp_path_factory.mktemp('written')
    python(WRITE, folder, f'sqlite:///{folder}/mlflow.db', folder/'db.json')
    (folder/'files').mkdir()
    python(WRITE, folder/'files', (folder/'files'/'mlruns').as_uri(), folder/'mlruns.json')
    return folder

@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path/'runs'))
    for k in ('MLFLOW_TRACKING_URI', 'MLFLOW_TRACKING_TOKEN', 'MLFLOW_TRACKING_USERNAME'): monkeypatch.delenv(k, raising=False)
    core.set_process_context(None)
    yield tmp_path/'runs'
    core.set_process_context(None)

infinite = {(1.7976931348623157e308).hex(): math.inf, (-1.7976931348623157e308).hex(): -math.inf}

def same_points(r, told):
    "Every point that MLflow's own client names: step, time and value, bit for bit."
    for k, points in told.items():
        step, at, value = r.metric(k)
        mine = sorted((s, a, struct.pack('<d', v)) for s, a, v in zip(step.tolist(), [round(t*1000) for t in at.tolist()], value.tolist()))
        theirs = sorted((s, a, struct.pack('<d', infinite.get(v, float.fromhex(v)))) for s, a, v in points)
        assert len(mine) == len(theirs), k
        if k == 'no time': mine, theirs = [(s, v) for s, _, v in mine], [(s, v) for s, _, v in theirs]
        assert mine == theirs, k


# Reading what MLflow wrote

@pytest.mark.parametrize('kind', ['db', 'mlruns', 'server'])
def test_every_point_bit_for_bit(written, server, tmp_path, kind):
    if kind == 'server':
        told = tmp_path/'server.json'
        python(WRITE, tmp_path, server, told)
        rs = track.load(server)
    else:
        told = written/f'{kind}.json'
        rs = track.load(f'sqlite:///{written}/mlflow.db' if kind == 'db' else written/'files'/'mlruns')
    told = json.loads(told.read_text())
    assert {o.name for o in rs} >= {'first', 'child', 'dies', 'live'} and 'deleted' not in {o.name for o in rs}
    r = next(o for o in rs if o.id == told['id'])
    assert {k: len(v) for k, v in told['points'].items()} == {'loss': 2500, 'deep/er': 500, 'odd': 7, 'back': 6, 'no time': 1}
    same_points(r, told['points'])
    assert (r.name, r.project, r.state, r.notes) == ('first', 'digits', 'finished', 'two\nlines') and set(r.tags) == {'team=a', 'empty'}
    assert r.config == {'lr': .1, 'model/width': 64, 'act': 'relu', 'on': True, 'nothing': None, 'seven': '007', 'é:x y': '😀', 'long': 'z'*6000}
    assert r.summary['back'] == 5. and r.summary['loss'] == r.metric('loss')[2][-1] and r.seconds > 0  # of the highest step, as in MLflow
    states = {o.name: o.state for o in rs}
    assert (states['child'], states['dies'], states['live']) == ('finished', 'failed', 'killed') and next(o for o in rs if o.name == 'child').parent == r.id
    made = {(o['name'], o['version'], o['type']) for o in r.artifacts}
    assert made >= {('notes', 'v0', 'file'), ('model', 'v0', 'model')}
    if kind != 'server': assert ('digits-model', 'v0', 'model') in made
    from mlstack.tracking.artifacts import find_artifact
    assert find_artifact(r.path.parent/'.artifacts', 'notes').read('a.txt') == b'hello'
    if kind != 'server': assert find_artifact(r.path.parent/'.artifacts', 'digits-model:champion').read('MLmodel') == b'{}'
    assert [(o['name'], o['context']) for o in r.used] == [('train-set', 'training')] and not r.problems and r.env['tags']['mlflow.user']
    before = {p: p.stat().st_mtime_ns for o in rs for p in o.path.rglob('*') if p.is_file()}
    assert len(track.load(server if kind == 'server' else written/'mlflow.db' if kind == 'db' else written/'files')) == len(rs)
    assert {p: p.stat().st_mtime_ns for o in rs for p in o.path.rglob('*') if p.is_file()} == before and not list(Path(os.environ['MLSTACK_RUNS']).glob('.import*'))

def test_latest_metrics_are_the_summary(written):
    "What MLflow itself says is the latest value of each metric."
    r = next(o for o in track.load(written/'mlflow.db') if o.name == 'first')
    with sqlite3.connect(written/'mlflow.db') as db: latest = db.execute('select key, value, is_nan from latest_metrics where run_uuid=?', [r.id]).fetchall()
    for k, v, nan in latest: assert struct.pack('<d', math.nan if nan else infinite.get(v.hex(), v)) == struct.pack('<d', r.summary[k]), k

def test_a_live_database(written, tmp_path):
    "A run goes on while it is loaded: with a write-ahead log, in the middle of a transaction; then the rest comes."
    shutil.copy(written/'mlflow.db', tmp_path/'mlflow.db')
    db = sqlite3.connect(tmp_path/'mlflow.db', isolation_level=None)
    db.execute('pragma journal_mode=wal')
    id, = db.execute("select run_uuid from runs where name='live'").fetchone()
    db.execute('begin')
    for i in range(100): db.execute('insert into metrics values (?,?,?,?,?,0)', ['loss', i/3, 1_800_000_000_000+i, id, i+1])
    live = lambda: next(o for o in track.load(tmp_path/'mlflow.db') if o.id == id)
    assert len(live().metric('loss')[0]) == 1
    db.execute('commit')
    assert live().metric('loss')[2].tolist() == [1.]+[i/3 for i in range(100)]
    db.execute("update runs set status='FINISHED', end_time=1800000001000 where run_uuid=?", [id])
    assert live().state == 'finished' and len(track.runs(f"id == '{id}'")) == 1 and not live().problems
    db.execute('pragma journal_mode=delete')
    db.execute('begin exclusive')
    with pytest.MonkeyPatch.context() as patch:
        from mlstack.tracking import importing
        patch.setattr(importing.sqlite3, 'connect', lambda *a, real=sqlite3.connect, **kw: real(*a, **kw|dict(timeout=.1)))
        with pytest.raises(MlstackError, match='locked: another process is writing'): track.load(tmp_path/'mlflow.db')
    db.close()

def test_a_folder_that_cannot_be_written(written, tmp_path):
    shutil.copy(written/'mlflow.db', tmp_path/'ro.db')
    with sqlite3.connect(tmp_path/'ro.db') as db: db.execute('pragma journal_mode=wal')
    db.close()
    os.chmod(tmp_path/'ro.db', 0o444)
    os.chmod(tmp_path, 0o555)
    try: assert len(track.load(tmp_path/'ro.db', dir=written/'runs-ro')) == 4
    finally: os.chmod(tmp_path, 0o755)

def test_two_loads_at_once(written):
    code = 'import sys, mlstack.tracking as track; print(len(track.load(sys.argv[1])))'
    both = [subprocess.Popen([sys.executable, '-c', code, str(written/'mlflow.db')], env=os.environ | dict(PYTHONPATH=str(house.root)), stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [p.communicate(timeout=300)[0] for p in both] == ['4\n']*3
    r = next(o for o in track.runs() if o.name == 'first')
    assert len(track.runs()) == 4 and len(r.metric('loss')[0]) == 2500 and not r.problems and len(r.artifacts) == 3
    same_points(r, json.loads((written/'db.json').read_text())['points'])


# Damage

def test_truncated_and_flipped(written, tmp_path):
    "Whatever is done to the file: an error that names it, or runs whose points are among the right ones."
    data, told = (written/'mlflow.db').read_bytes(), json.loads((written/'db.json').read_text())['points']
    right = {k: {(s, struct.pack('<d', infinite.get(v, float.fromhex(v)))) for s, _, v in p} for k, p in told.items()}
    rng, outcomes = random.Random(1), []
    for i in range(12):
        if i < 6: damaged = data[:rng.randrange(1000, len(data))]
        else:
            damaged = bytearray(data)
            at = rng.randrange(len(data)//4096)*4096
            damaged[at:at+4096] = bytes(4096)  # a page is lost
        (tmp_path/f'{i}.db').write_bytes(damaged)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            try:
                rs = track.load(tmp_path/f'{i}.db', dir=tmp_path/f'runs{i}')
                outcomes.append('loaded')
            except MlstackError as e:
                assert f'{i}.db' in str(e)
                outcomes.append('error')
                continue
        for r in rs:
            for k in r.metric_names:
                step, _, value = r.metric(k)
                if r.name == 'first': assert {(s, struct.pack('<d', v)) for s, v in zip(step.tolist(), value.tolist())} <= right[k]
        first = [r for r in rs if r.name == 'first']
        if not first: assert said
    assert 'error' in outcomes and 'loaded' in outcomes

def test_other_files(written, tmp_path):
    (tmp_path/'a.db').write_bytes(b'')
    (tmp_path/'b.db').write_bytes(b'SQLite format 3\0'+bytes(2000))
    with sqlite3.connect(tmp_path/'c.db') as db: db.execute('create table runs (a)')
    for name in 'abc':
        with pytest.raises(MlstackError): track.load(tmp_path/f'{name}.db')
    with pytest.raises(MlstackError, match='no such database'): track.load(f'sqlite:///{tmp_path}/nowhere.db')
    with pytest.raises(MlstackError, match='nobody knows|Nobody knows'): track.load('postgresql://localhost/x')
    with pytest.raises(MlstackError, match='no server answers'): track.load(f'http://127.0.0.1:{free_port()}')
    shutil.copy(written/'mlflow.db', tmp_path/'old.db')
    with sqlite3.connect(tmp_path/'old.db') as db: db.execute('alter table runs rename column lifecycle_stage to stage')
    with pytest.raises(MlstackError, match='runs.lifecycle_stage.*mlflow db upgrade'): track.load(tmp_path/'old.db')

def test_damaged_folder(written, tmp_path):
    shutil.copytree(written/'files'/'mlruns', tmp_path/'mlruns')
    first = next(o.parent.parent for o in (tmp_path/'mlruns').glob('*/*/metrics/loss') if len(o.read_text().splitlines()) == 2500)
    with open(first/'metrics'/'loss', 'a') as f: f.write('1700 nonsense\n170')
    other = next(o for o in (tmp_path/'mlruns').glob('*/*/metrics') if o.parent != first).parent
    (other/'meta.yaml').write_text('a: [')
    with pytest.warns(UserWarning) as said: rs = track.load(tmp_path/'mlruns')
    assert len(next(r for r in rs if r.name == 'first').metric('loss')[0]) == 2500
    assert any('line 2501' in str(o.message) for o in said) and any('meta.yaml' in str(o.message) for o in said)


# Our runs on a real server

def on_server(server, record):
    "The run as MLflow's REST says, and its points."
    s = Server(server)
    e = s.get('experiments/get-by-name', experiment_name=record.project)['experiment']['experiment_id']
    runs = s.post('runs/search', experiment_ids=[e], filter=f"tags.`mlstack.run` = '{record.id}'")['runs']
    assert len(runs) == 1
    return runs[0], lambda k: [(int(o.get('step', 0)), int(o['timestamp']), float(o.get('value', 0))) for o in s.pages(s.get, 'metrics', 'metrics/get-history', run_id=runs[0]['info']['run_id'], metric_key=k, max_results=25000)]

def pairs(run, name): return {o['key']: o.get('value', '') for o in run['data'].get(name, ())}

def test_a_run_arrives_live(server, tmp_path):
    "While it is made, by a follower: parameters, every point, state, tags, notes, images and artifacts; then loaded back, it is the run."
    rng = random.Random(3)
    (tmp_path/'model.bin').write_bytes(b'weights'*1000)
    with track.init(project='live', name='ours <script>', config=dict(lr=.1, opt=dict(name='adam'), layers=[1, 2], on=True, nothing=None), tags=['team=vision', 'good'], notes='a\nnote', sinks=[f'mlflow:{server}']) as run:
        values = [rng.gauss(0, 1)*10**rng.randint(-300, 300) for _ in range(3000)]
        for i, v in enumerate(values): run.log({'loss': v, 'val/acc': i/3})
        for s, v in ((5, math.nan), (3, math.inf), (3, -math.inf), (-7, 5e-324)): run.log({'odd 😀': v}, step=s)
        run.log({'picture': track.Image(np.full((8, 8, 3), 200, np.uint8), caption='grey'), 'word': 'hello', 'big': 2**60+1})
        run.summary['best'] = .25
        run.config.lr = .2
        run.log_artifact(tmp_path/'model.bin', type='model')
    run.wait() if hasattr(run, 'wait') else track.sync(run, to=f'mlflow:{server}')
    r = track.runs(f"id == '{run.id}'")[0]
    there, history = on_server(server, r)
    params, tags = pairs(there, 'params'), pairs(there, 'tags')
    assert params | {'lr': ''} == {'lr': '', 'opt.name': 'adam', 'layers': '[1, 2]', 'on': 'True', 'nothing': 'None'} and '0.2' in (params['lr'], tags.get('config.lr'))
    assert (tags['team'], tags['good'], tags['mlflow.note.content'], tags['summary.word'], there['info']['run_name'], there['info']['status']) == ('vision', '', 'a\nnote', 'hello', 'ours <script>', 'FINISHED')
    assert json.loads(tags['mlstack.cut']) == {'big': 'rounded'} and int(there['info']['end_time']) >= int(there['info']['start_time'])
    for k in ('loss', 'val/acc', 'odd 😀'):
        step, at, value = r.metric(k)
        mine = sorted((s, round(a*1000), struct.pack('<d', v)) for s, a, v in zip(step.tolist(), at.tolist(), value.tolist()))
        theirs = sorted((s, a, struct.pack('<d', infinite.get(v.hex(), v))) for s, a, v in history(mlflow_name(k)))
        assert mine == theirs, k
    assert history('best')[0][2] == .25
    told = python("""
import mlflow, sys, json
mlflow.set_tracking_uri(sys.argv[1])
c = mlflow.MlflowClient()
id = sys.argv[2]
walk = lambda p=None: [x for o in c.list_artifacts(id, p) for x in (walk(o.path) if o.is_dir else [o.path])]
print(json.dumps([walk(), open(c.download_artifacts(id, 'model.bin'), 'rb').read().decode()]))
""", tmp_path, server, there['info']['run_id'])
    files, weights = json.loads(told.splitlines()[-1])
    assert weights == 'weights'*1000 and 'model.bin' in files and len([o for o in files if o.startswith('images/picture+step+')]) == 2

    back = next(o for o in track.load(server, dir=tmp_path/'back') if o.id == run.id)
    for k in ('loss', 'val/acc', 'odd 😀'):
        (s, a, v), (s2, a2, v2) = r.metric(k), back.metric(k)
        assert s.tolist() == s2.tolist() and np.abs(a-a2).max() <= 5.1e-4
        if k != 'odd 😀': assert v.tobytes() == v2.tobytes()
        else: assert sorted(map(repr, v.tolist())) == sorted(map(repr, v2.tolist()))
    assert (back.name, back.project, back.state, set(back.tags), back.notes, back.summary['best'], back.summary['word'], back.config) == ('ours <script>', 'live', 'finished', {'team=vision', 'good'}, 'a\nnote', .25, 'hello', {'lr': .2, 'opt.name': 'adam', 'layers': '[1, 2]', 'on': True, 'nothing': None})
    assert len(track.load(server)) and track.runs(f"id == '{run.id}'")[0].metric('loss')[2].tobytes() == r.metric('loss')[2].tobytes()  # here it stays ours

def test_states(server):
    for state, end in dict(FINISHED=lambda run: run.finish(), FAILED=lambda run: run.finish(1)).items():
        run = track.init(project='states', surroundings=False)
        run.log(a=1.)
        end(run)
        track.sync(run, to=f'mlflow:{server}')
        assert on_server(server, run)[0]['info']['status'] == state

def test_a_killed_training(server, tmp_path):
    "The follower sees the death, sends what was logged and says so."
    code = 'import sys, time, mlstack.tracking as track\nrun = track.init(project="killed", sinks=[f"mlflow:{sys.argv[1]}"])\nfor i in range(500): run.log(loss=i/3)\nprint(run.id, flush=True)\ntime.sleep(600)'
    p = subprocess.Popen([sys.executable, '-c', code, server], cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(house.root)), stdout=subprocess.PIPE, text=True)
    id = p.stdout.readline().strip()
    p.kill()
    p.wait()
    record = track.runs(f"id == '{id}'")[0]
    for _ in range(3000):
        try:
            there, history = on_server(server, record)
            if there['info']['status'] == 'KILLED': break
        except (MlstackError, AssertionError, KeyError): pass
        time.sleep(.1)
    assert there['info']['status'] == 'KILLED' and [v for _, _, v in history('loss')] == [i/3 for i in range(500)]

def test_a_server_that_is_away_and_dies(tmp_path):
    "An error says so; the server is killed in the middle of a copy, and in the end every point is there once."
    port = free_port()
    address = f'http://127.0.0.1:{port}'
    def made():
        run = track.init(project='late', surroundings=False)
        for i in range(4000): run.log({k: i/7 for k in 'abcd'})
        run.finish()
        return run
    run = made()
    with pytest.raises(MlstackError, match='no server answers'): track.sync(run, to=f'mlflow:{address}')
    p = start(tmp_path, port)
    try:
        code = 'import sys, mlstack.tracking as track; track.sync(sys.argv[1], to=sys.argv[2])'
        for _ in range(10):
            copy = subprocess.Popen([sys.executable, '-c', code, str(run.path), f'mlflow:{address}'], env=os.environ | dict(PYTHONPATH=str(house.root)), stderr=subprocess.PIPE, text=True)
            while copy.poll() is None and not any(json.loads(o.read_bytes())['rows'] for o in run.path.glob('sinks/*.json')): time.sleep(.002)
            stop(p)
            said = copy.communicate(timeout=300)[1]
            p = start(tmp_path, port)
            if said: break
            run = made()  # on a busy machine it was through before we looked
        assert 'did not take this run' in said
        track.sync(run, to=f'mlflow:{address}')
        there, history = on_server(address, run)
        assert all([v for _, _, v in sorted(history(k))] == [i/7 for i in range(4000)] for k in 'abcd') and there['info']['status'] == 'FINISHED'
    finally: stop(p)

def test_sync_again_and_what_was_deleted(server):
    run = track.init(project='again', surroundings=False, tags=['one', 'two'])
    for i in range(50): run.log(loss=i/3)
    run.finish()
    sync = lambda: track.sync(run, to=f'mlflow:{server}')
    place, = sync()
    assert sync() == [place] and len(on_server(server, run)[1]('loss')) == 50
    next(run.path.glob('sinks/*.json')).unlink()           # what was copied is forgotten: the run is found again by its tag
    assert sync() == [place] and len(on_server(server, run)[1]('loss')) == 50
    with track.init(project='again', id=run.id, resume=True, surroundings=False) as more:
        more.log(loss=99.)
        more.tags = ['two', 'three']
    assert sync() == [place]
    there, history = on_server(server, run)
    assert len(history('loss')) == 51 and {'two', 'three'} <= set(pairs(there, 'tags')) and 'one' not in pairs(there, 'tags')
    Server(server).post('runs/delete', run_id=there['info']['run_id'])
    new, = sync()
    assert new != place and len(on_server(server, run)[1]('loss')) == 51

def test_limits(server):
    "A thousand parameters, long values and names, many metrics in a row, names that no path would keep: all there, and what was cut is named."
    names = ['a//b', '/x', '..', 'a/../b', 'é', 'x'*400, 'tab\there', '日本'*50, "it's", '%s', 'a'*249+'é']
    config = {f'p{i}': 'v'*3000 for i in range(1000)} | {'long': 'ü'*9000, 'n'*300: 1}
    with track.init(project="limits 'quoted' ☃", config=config, notes='n'*9000, surroundings=False) as run:
        run.log({k: float(i) for i, k in enumerate(names)})
        run.log({f'm{i}': i/3 for i in range(2500)})
    track.sync(run, to=f'mlflow:{server}')
    there, history = on_server(server, run)
    params, tags = pairs(there, 'params'), pairs(there, 'tags')
    assert len(params) == 1002 and params['long'] == 'ü'*6000 and params[mlflow_name('n'*300)] == '1'
    assert {mlflow_name(k): float(i) for i, k in enumerate(names)}.items() <= {o['key']: o.get('value', 0.) for o in there['data']['metrics']}.items()
    assert len({mlflow_name(k) for k in names}) == len(names) and len(there['data']['metrics']) == 2500+len(names)
    cut = json.loads(tags['mlstack.cut'])
    assert cut['long'] == '9,000 characters cut to 6,000' and cut['mlflow.note.content'] == '9,000 characters cut to 8,000'

def test_needs_no_mlflow():
    "Neither reading nor copying imports it."
    r = house.python('import sys, mlstack.tracking.mlflow, mlstack.tracking.mlflow_sync\nassert not [o for o in sys.modules if o == "mlflow" or o.startswith("mlflow.")]', timeout=300)
    assert r.returncode == 0, r.stdout
