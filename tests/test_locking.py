"Locks and restored environments: real resolvers and installers on wheels that are made here; no network."
import json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

from mlstack.core import MlstackError
from mlstack.env import lockfiles, locking, restoring
from mlstack.env.lockfiles import LockError, check_locks, drift, is_torchs, pins_of, plan_of, read_lock, wanted
from mlstack.env.locking import conflict_in, find_uv, pylock_problem
from mlstack.env.locking import lock as make_lock
from mlstack.env.restoring import RestoreError, capture_in, find_python, items_of, record_of, restore
from tests import house
from tests.wheels import wheel

tools = ['pip-compile', pytest.param('uv', marks=[pytest.mark.probe, pytest.mark.skipif(find_uv() is None, reason='uv is not installed')])]


@pytest.fixture(autouse=True)
def only_our_wheels(tmp_path, monkeypatch):
    "An index of a few wheels, and nothing else."
    shop = tmp_path/'shop'
    for name, version, *requires in (('base','1.0'), ('base','2.0'), ('model','1.0','base'), ('checker','1.0','base>=1'), ('old-tool','1.0','base<2'),
            ('torch','2.13.0','base'), ('nvidia-ml-py','12.0'), ('torchuser','1.0','torch>=2','nvidia-ml-py'), ('windows','1.0')):
        wheel(shop, name, version, requires)
    for k, v in dict(PIP_NO_INDEX='1', PIP_FIND_LINKS=str(shop), PIP_CONFIG_FILE=os.devnull, PIP_RETRIES='1').items(): monkeypatch.setenv(k, v)
    for k in ('PIP_INDEX_URL', 'PIP_EXTRA_INDEX_URL'): monkeypatch.delenv(k, raising=False)
    return shop


def project(folder, dependencies='["model"]', rest=''):
    folder.mkdir(exist_ok=True)
    (folder/'pyproject.toml').write_text(f'[project]\nname = "mine"\nversion = "0.1"\ndependencies = {dependencies}\n{rest}')
    return folder


dev = '[project.optional-dependencies]\ndev = ["checker"]\n'
def lock(folder, **kw): return make_lock(folder, **dict(tool='pip-compile', pylock=False) | kw)
def states(folder, **kw): return {Path(c.name).name: c.state for c in check_locks(plan_of(folder, **kw))}
def versions(folder, file): return {p.name: p.version for p in read_lock(folder/'requirements'/file).pins}
def texts(folder): return {p.name: p.read_text() for p in sorted((folder/'requirements').iterdir())}


# What is asked for

@pytest.mark.parametrize('text, says', [
    (None, 'no pyproject.toml'), ('[project', 'cannot be read'), ('[tool.x]\n', 'no [project]'), ('[project]\ndependencies = "numpy"\n', 'list of strings'),
    ('[project]\ndependencies = [1]\n', 'list of strings'), ('[project]\ndependencies = ["numpy>>1"]\n', "'numpy>>1' is no requirement"),
    ('[project]\ndynamic = ["dependencies"]\n[tool.setuptools.dynamic]\ndependencies = {attr = "x.y"}\n', 'computed when the project is built'),
    ('[project]\nrequires-python = ">=3.99"\n', 'requires-python = ">=3.99"'), ('[project]\nrequires-python = "three"\n', "'three' is no range"),
    ('[project]\n[tool.mlstack.lock]\nbackend = ["cpu"]\n', "unknown key 'backend'"), ('[project]\n[tool.mlstack.lock]\nbackends = ["cuda"]\n', "'cuda' is no backend"),
    ('[project]\n[tool.mlstack.lock.layers]\nproduction = []\n', "called 'production'"), ('[project]\n[tool.mlstack.lock.layers]\ndev = ["nothing"]\n', "no extra or dependency group 'nothing'")])
def test_a_source_that_is_wrong_is_named(tmp_path, text, says):
    (tmp_path/'p').mkdir()
    if text is not None: (tmp_path/'p'/'pyproject.toml').write_text(text)
    with pytest.raises(LockError) as e: lock(tmp_path/'p')
    assert says in str(e.value) and e.value.do and not (tmp_path/'p'/'requirements').exists()


def test_extras_groups_and_files_are_followed(tmp_path):
    p = project(tmp_path/'p', rest='[project.optional-dependencies]\nall = ["Mine[dev]", "mine[all]"]\ndev = ["checker"]\n[dependency-groups]\ntest = ["old-tool", {include-group = "lint"}]\nlint = ["base"]\n')
    assert wanted(plan_of(p).project, ['all', 'test']) == ['base', 'checker', 'model', 'old-tool']
    (p/'needs.txt').write_text('# ours\nmodel  # why\n-r other.txt\n\n')
    (p/'pyproject.toml').write_text('[project]\nname = "mine"\ndynamic = ["dependencies"]\n[tool.setuptools.dynamic]\ndependencies = {file = ["needs.txt"]}\n')
    assert wanted(plan_of(p).project) == ['model']


@pytest.mark.parametrize('name, yes', [('torch', 1), ('torchvision', 1), ('triton', 1), ('nvidia-cublas-cu12', 1), ('nvidia-nccl-cu13', 1), ('cuda-bindings', 1), ('nvidia-ml-py', 0), ('torchmetrics', 0), ('numpy', 0)])
def test_what_belongs_to_torch(name, yes): assert is_torchs(name) == bool(yes)


# Locks

@pytest.mark.parametrize('tool', tools)
def test_dev_is_locked_over_production(tmp_path, only_our_wheels, tool):
    p = project(tmp_path/'p', '["model", "base<2"]', dev)
    assert lock(p, tool=tool).ok
    assert versions(p, 'production.txt') == dict(base='1.0', model='1.0') and versions(p, 'dev.txt') == dict(base='1.0', model='1.0', checker='1.0')
    text = (p/'requirements/dev.txt').read_text()
    assert text.count('--hash=sha256:') == 3 and str(tmp_path) not in text and 'pyproject.toml' in text
    project(p, '["model", "base"]', dev)
    assert states(p) == {'production.txt': 'wrong', 'dev.txt': 'wrong'} and lock(p, tool=tool).ok
    assert versions(p, 'dev.txt')['base'] == '1.0' and set(states(p).values()) == {'ok'}, 'a pin that still fits stays'
    assert lock(p, tool=tool, upgrade=True).ok and versions(p, 'dev.txt')['base'] == versions(p, 'production.txt')['base'] == '2.0'


def test_the_same_again_writes_nothing(tmp_path):
    p = project(tmp_path/'p')
    lock(p)
    before = [(o.name, o.stat().st_mtime_ns, o.read_bytes()) for o in (p/'requirements').iterdir()]
    assert all('as it was' in c.detail for c in lock(p)) and [(o.name, o.stat().st_mtime_ns, o.read_bytes()) for o in (p/'requirements').iterdir()] == before


@pytest.mark.parametrize('tool', tools)
def test_a_conflict_is_shown_and_nothing_changes(tmp_path, tool):
    p = project(tmp_path/'p', '["model"]', dev)
    lock(p, tool=tool)
    before = texts(p)
    project(p, '["model"]', dev.replace('checker', 'old-tool'))
    with pytest.raises(LockError) as e: lock(p, tool=tool)
    said = ' '.join(e.value.conflict)
    assert 'old-tool' in said and 'base' in said and len(str(e.value).splitlines()) < 8 and 'Traceback' not in str(e.value) and 'dev' in e.value.where
    project(p, '["base>=7"]')
    with pytest.raises(LockError, match='base>=7'): lock(p, tool=tool)
    assert texts(p) == before


def test_no_dependencies(tmp_path):
    p = project(tmp_path/'p', '[]')
    assert lock(p).ok and versions(p, 'production.txt') == {} and states(p) == {'production.txt': 'ok'}
    assert subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--dry-run', '-r', p/'requirements/production.txt']).returncode == 0


def install(file, target, *options): return subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', target, '-r', file, *options], capture_output=True, text=True)

def test_a_hash_refuses_another_file(tmp_path, only_our_wheels):
    p = project(tmp_path/'p')
    for hashes, name in ((True, 'with'), (False, 'without')):
        lock(p, hashes=hashes)
        shutil.copy(p/'requirements/production.txt', tmp_path/f'{name}.txt')
    assert install(tmp_path/'with.txt', tmp_path/'a').returncode == 0
    wheel(only_our_wheels, 'base', '2.0', text='stolen = True\n')
    refused = install(tmp_path/'with.txt', tmp_path/'b')
    assert refused.returncode and 'HASH' in refused.stderr.upper() and not (tmp_path/'b'/'base').exists()
    assert install(tmp_path/'without.txt', tmp_path/'c').returncode == 0 and 'stolen' in (tmp_path/'c'/'base'/'__init__.py').read_text()


def torch_index(folder):
    "A small index like that of torch's builds."
    for name, version, *requires in (('torch', '2.13.0+cu130', 'nvidia-nccl-cu13==2.28', 'base'), ('nvidia-nccl-cu13', '2.28')):
        path = wheel(folder/name, name, version, requires)
        (folder/name/'index.html').write_text(f'<a href="{path.name.replace("+", "%2B")}">{path.name}</a>')
    return folder

@pytest.mark.parametrize('tool', ['pip-compile'])
def test_torch_is_locked_apart_for_each_backend(tmp_path, only_our_wheels, monkeypatch, tool):
    torch_index(tmp_path/'index'/'cu130')
    monkeypatch.delenv('PIP_NO_INDEX')
    (tmp_path/'empty').mkdir()
    monkeypatch.setenv('PIP_INDEX_URL', f'file://{tmp_path}/empty')
    p = project(tmp_path/'p', '["torchuser"]', f'[tool.mlstack.lock]\nbackends = ["cu130", "cpu"]\nindex = "file://{tmp_path}/index/{{backend}}"\n')
    report = lock(p, tool=tool)
    assert versions(p, 'production.txt') == {'base': '2.0', 'nvidia-ml-py': '12.0', 'torchuser': '1.0'}
    assert re.search(r'^torch==2\.13\.0$', (p/'requirements/torch.txt').read_text(), re.M)
    cuda, cpu = (read_lock(p/f'requirements/torch-{o}.txt') for o in ('cu130', 'cpu'))
    assert [(o.name, o.version) for o in cuda.pins] == [('nvidia-nccl-cu13', '2.28'), ('torch', '2.13.0+cu130')] and cuda.options == [f'--extra-index-url file://{tmp_path}/index/cu130']
    assert [(o.name, o.version) for o in cpu.pins] == [('torch', '2.13.0')] and report['requirements/torch-cpu.txt'].state == 'warning' and 'could not be reached' in report['requirements/torch-cpu.txt'].detail
    assert 'index = ' in report['requirements/torch-cpu.txt'].fix and 'no pylock' not in report['requirements/torch-cpu.txt'].detail
    assert states(p) == {'production.txt': 'ok', 'torch.txt': 'ok', 'torch-cu130.txt': 'ok', 'torch-cpu.txt': 'warning'}
    assert install(p/'requirements/torch-cu130.txt', tmp_path/'t').returncode == 0 and (tmp_path/'t'/'torch-2.13.0+cu130.dist-info').is_dir()
    (p/'requirements/torch.txt').unlink()
    assert 'torch.txt' not in states(p)


def test_pylock_is_valid_and_names_the_same_versions(tmp_path):
    p = project(tmp_path/'p')
    report = lock(p, pylock=True)
    text = (p/'requirements/pylock.toml').read_text()
    import tomllib
    assert {(o['name'], o['version']) for o in tomllib.loads(text)['packages']} == {('base', '2.0'), ('model', '1.0')}
    assert "only on this machine's disk" in report['requirements/pylock.toml'].detail
    there = text.replace('file://', 'https://host')
    assert pylock_problem(there) == ''
    for bad in (there.replace('lock-version = "1.0"', 'lock-version = "2.0"'), there.replace('created-by', 'made-by'), re.sub(r'sha256 = ', 'x = 1\nsha256 = 1#', there), there.replace('name = "base"', 'name = "Base"', 1), '[[packages'):
        assert pylock_problem(bad).startswith('not valid')


# Up to date?

def test_check_needs_no_network_and_no_process(tmp_path, monkeypatch):
    p = project(tmp_path/'p', rest=dev)
    lock(p)
    for o in (p/'requirements').iterdir(): os.utime(o, (0, 0)) # a clone makes times anew
    def never(*a, **k): raise AssertionError('a process was started')
    monkeypatch.setattr(locking, 'run_command', never)
    monkeypatch.setattr(subprocess, 'Popen', never)
    assert states(p) == {'production.txt': 'ok', 'dev.txt': 'ok'}
    (p/'pyproject.toml').write_text('# a comment\n[build-system]\nrequires = []\n'+(p/'pyproject.toml').read_text().replace('["model"]', '[\n  "model",\n]'))
    assert states(p) == {'production.txt': 'ok', 'dev.txt': 'ok'}, 'only requirements count'
    project(p, '["model", "base<2"]', dev)
    said = check_locks(plan_of(p))[0]
    assert said.state == 'wrong' and 'base<2 is asked for, it has 2.0' in said.detail and said.fix == 'mlstack env lock'
    project(p, '["model"]', dev.replace('checker', 'windows'))
    assert states(p) == {'production.txt': 'ok', 'dev.txt': 'wrong'} and 'windows is not in it' in check_locks(plan_of(p))[1].detail


def test_an_edited_lock_is_noticed(tmp_path):
    p = project(tmp_path/'p')
    lock(p)
    path = p/'requirements/production.txt'
    made = path.read_text()
    for text in (made.replace('base==2.0', 'base==1.0'), made+'windows==1.0\n', made.replace('--hash=sha256:', '--hash=sha256:0', 1), made.partition('\n')[2], '\x00\xff# mlstack-lock: {nonsense'):
        path.write_text(text)
        said = check_locks(plan_of(p))[0]
        assert said.state in ('wrong', 'warning') and said.fix, text
    path.write_text(made)
    assert states(p) == {'production.txt': 'ok'}


def test_drift(tmp_path):
    p = project(tmp_path/'p', '["model", "torchuser", "windows; sys_platform == \'win32\'"]', dev)
    (p/'requirements').mkdir()
    for layer, text in dict(production='base==2.0\nmodel==1.0\ntorchuser==1.0\nnvidia-ml-py==12.0\nwindows==1.0 ; sys_platform == "win32"\n', dev='base==2.0\nmodel==1.0\nchecker==1.0\n', torch='torch==2.13.0\n').items():
        (p/f'requirements/{layer}.txt').write_text(lockfiles.lock_text({}, [], pins_of(text)))
    plan, sound = plan_of(p, backends=[]), dict(base='2.0', model='1.0', torchuser='1.0', torch='2.13.0+cpu', checker='1.0', mine='0.1', pip='1', **{'nvidia-ml-py': '12.0', 'nvidia-nccl-cu13': '2'})
    assert drift(plan, sound) == [] == drift(plan, {k: v for k, v in sound.items() if k != 'checker'})
    assert drift(plan, sound|dict(torch='2.12.0', checker='0.9', stray='3')) == [('checker', '1.0', '0.9'), ('torch', '2.13.0', '2.12.0'), ('stray', None, '3')]
    assert drift(plan, {k: v for k, v in sound.items() if k != 'model'}) == [('model', '1.0', None)]
    installed = make_lock(p, check=True, backends=[])['installed']
    assert installed.state == 'wrong' and 'model is missing, locked 1.0' in installed.detail


def test_check_before_there_is_a_lock(tmp_path):
    "Nothing can be in no lock as long as there is none."
    said = make_lock(project(tmp_path/'p', rest=dev), check=True)
    assert [(c.detail, c.fix) for c in said] == [('is missing', 'mlstack env lock')]*2


def test_a_file_of_others_is_not_overwritten_but_may_be_adopted(tmp_path):
    p = project(tmp_path/'p')
    (p/'requirements').mkdir()
    (p/'requirements/production.txt').write_text('base==1.0\nmodel==1.0\n')
    assert states(p) == {'production.txt': 'warning'}
    with pytest.raises(LockError, match='was not made by'): lock(p)
    assert (p/'requirements/production.txt').read_text() == 'base==1.0\nmodel==1.0\n'
    assert lock(p, adopt=True).ok and versions(p, 'production.txt')['base'] == '1.0'


def killed_at(room, word, code, cwd):
    "Run `code` in a process of its own that stops where `room` is about to run a command with `word` in it, and kill it there."
    halt = f'''
import sys, time
from mlstack.env import {room} as room
real = room.run_command
def run_command(command, *args):
    if not any({word!r} in o for o in command): return real(command, *args)
    print('here', flush=True)
    time.sleep(600)
room.run_command = run_command
'''
    process = subprocess.Popen([sys.executable, '-c', halt+code], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ|dict(PYTHONPATH=str(house.root)))
    assert process.stdout.readline() == 'here\n'
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_killed_lock_leaves_the_old_one(tmp_path):
    p = project(tmp_path/'p', '["model"]', dev)
    lock(p)
    before = texts(p)
    project(p, '["model", "base<2"]', dev)
    killed_at('locking', 'dev.in', 'room.lock(tool="pip-compile", pylock=False)', p)
    assert texts(p) == before
    assert lock(p).ok and versions(p, 'dev.txt')['base'] == '1.0'


@pytest.mark.parametrize('text, says', [
    ('  × No solution found when resolving dependencies:\n  ╰─▶ Because a depends on b<2 and you require b>=2, we can conclude that\n      your requirements are unsatisfiable.\n', ['Because a depends on b<2 and you require b>=2, we can conclude that your requirements are unsatisfiable']),
    ('The conflict is caused by:\n    a 1 depends on b<1\n\nx\nThe conflict is caused by:\n    a 1 depends on b<2\n    The user requested (constraint) b==2\n\n', ['a 1 depends on b<2', 'the layer below holds b==2']),
    ('ERROR: Could not find a version that satisfies the requirement b>9 (from a) (from versions: 1.0, 2.0)\n', ['pyproject.toml or a package asks for b>9 (from a)', 'the index has 1.0, 2.0']),
    ('Segmentation fault\n', [])])
def test_conflicts_of_both_resolvers(text, says): assert conflict_in(text) == says


def test_an_index_that_cannot_be_reached_is_not_a_conflict(tmp_path, monkeypatch):
    monkeypatch.delenv('PIP_NO_INDEX')
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    with pytest.raises(LockError, match='cannot be reached') as e: lock(project(tmp_path/'p', '["nowhere"]'))
    assert 'PIP_FIND_LINKS' in e.value.do


@pytest.mark.parametrize('out, why, fix', [('ERROR: unknown command "lock"', 'pip 25.1', 'install --upgrade'), ('x\n[Errno 111] Connection refused\nno more\n', 'cannot be reached', 'PIP_INDEX_URL'), ('', 'not written', 'mend')])
def test_a_pylock_that_was_not_written_has_another_fix(tmp_path, monkeypatch, out, why, fix):
    "The command that has just failed would fail again."
    really = locking.run_command
    monkeypatch.setattr(locking, 'run_command', lambda command, *args: (1, out) if 'lock' in command else really(command, *args))
    p = project(tmp_path/'p')
    said = lock(p, pylock=True)['requirements/pylock.toml']
    assert why in said.detail and fix in said.fix and said.fix != 'mlstack env lock' and not (p/'requirements/pylock.toml').exists()


def test_without_torchs_index_no_pylock_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, 'reachable', lambda url: False)
    said = lock(project(tmp_path/'p', '["torchuser"]'), pylock=True)['requirements/torch-cpu.txt']
    assert 'no pylock.cpu.toml was written' in said.detail and said.fix != 'mlstack env lock' and not list((tmp_path/'p'/'requirements').glob('pylock*'))


def test_no_resolver(tmp_path, monkeypatch):
    import importlib.util
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(locking, 'find_uv', lambda: None)
    with pytest.raises(LockError, match='pip install pip-tools'): make_lock(project(tmp_path/'p'))
    with pytest.raises(LockError, match='no resolver'): make_lock(project(tmp_path/'p'), tool='conda')


# Restoring

backend = '''
import os
from zipfile import ZipFile
def build_wheel(folder, *_, editable=False):
    name, info = 'mine-0.0.1-py3-none-any.whl', 'mine-0.0.1.dist-info'
    with ZipFile(f'{folder}/{name}', 'w') as z:
        if editable: z.writestr('mine.pth', os.getcwd())
        else: z.write('mine.py')
        z.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\\nName: mine\\nVersion: 0.0.1\\n')
        z.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
        z.writestr(f'{info}/RECORD', '')
    return name
def build_editable(folder, *_): return build_wheel(folder, editable=True)
'''

def git(folder, *args): return subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

def source(folder):
    folder.mkdir(parents=True)
    (folder/'pyproject.toml').write_text('[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "mine"\nversion = "0.0.1"\n')
    (folder/'backend.py').write_text(backend)
    (folder/'mine.py').write_text('lr = .1\n')
    git(folder, 'init', '-b', 'main'), git(folder, 'add', '.'), git(folder, 'commit', '-m', 'first')
    return folder

def environment(folder, *installs):
    "A real environment, and its record."
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    for o in installs: subprocess.run([sys.executable, '-m', 'pip', '--python', folder/'bin/python', 'install', '-q', '--no-deps', *o], check=True, capture_output=True)
    return capture_in(folder)

def runs(folder, code): return subprocess.run([folder/'bin/python', '-c', code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize('tool', ['pip', pytest.param('uv', marks=tools[1].marks)])
def test_everything_comes_back(tmp_path, only_our_wheels, tool):
    code, local = source(tmp_path/'code'), wheel(tmp_path/'elsewhere', 'built-here', '0.3+local')
    rec = environment(tmp_path/'then', ['model==1.0', 'base==1.0', 'windows'], ['-e', code], [local])
    assert rec['sources']['mine']['editable'] and rec['sources']['mine']['commit'] == git(code, 'rev-parse', 'HEAD') and rec['sources']['built-here']['sha256']
    report = restore(rec, tmp_path/'now', tool=tool)
    now = capture_in(tmp_path/'now')
    assert report.ok and report['packages'].detail == 'all 5 are as they were' and now['packages'] == rec['packages'] and now['hashes'] == rec['hashes'] and now['sources']['mine']['editable']
    assert [c.name for c in report if c.state != 'ok'] == []


def test_what_cannot_come_back_is_told(tmp_path, only_our_wheels):
    code = source(tmp_path/'repo'/'part')
    rec = environment(tmp_path/'then', ['model', 'base', 'checker', 'windows'], ['-e', code])
    (code/'mine.py').write_text('lr = .2\n')
    git(code, 'commit', '-am', 'second')
    (only_our_wheels/'windows-1.0-py3-none-any.whl').unlink()
    wheel(only_our_wheels, 'checker', '1.0', ['base'], text='patched = True\n')
    rec = rec|dict(packages=rec['packages']|dict(torch='2.13.0+cu126'), conda={'cuda-nvcc': '13.0 h0', 'python': '3.11 x'}, driver=dict(version='580.1', cuda='13.0'), gpus=[dict(name='H100')],
        variables=dict(OMP_NUM_THREADS='7', HF_HOME='http://***@h'))
    report = restore(rec, tmp_path/'now', tool='pip', index=f'file://{tmp_path}/none/{{backend}}')
    assert report['packages'].detail == '4 of 6 are as they were' and not report.ok
    assert 'windows==1.0 cannot be had' in report['windows'].detail and report['checker'].detail == '1.0, but other files than then'
    assert report['torch'].detail.startswith('2.13.0+cu126 → 2.13.0; the build 2.13.0+cu126 cannot be had here')
    assert 'the folder has changed since' in report['mine'].detail and runs(tmp_path/'now', 'import mine; print(mine.lr)') == '0.1'
    assert 'cuda-nvcc' in report['conda'].detail and report['conda'].fix == 'conda install cuda-nvcc=13.0=h0'
    assert '580.1 then' in report['driver.version'].detail and 'H100' in report['gpus.0.name'].detail
    assert 'OMP_NUM_THREADS' in report['variables'].detail and 'HF_HOME' not in report['variables'].fix


def test_a_killed_restore_goes_on(tmp_path):
    rec = environment(tmp_path/'then', ['model', 'base'])
    (tmp_path/'rec.json').write_text(json.dumps(rec))
    killed_at('restoring', 'model==1.0', 'room.restore("rec.json", to="now", tool="pip")', tmp_path)
    assert json.loads((tmp_path/'now/mlstack-restore.json').read_text())['state'] == 'making'
    (tmp_path/'now'/'kept').touch()
    assert restore(tmp_path/'rec.json', tmp_path/'now', tool='pip').ok and (tmp_path/'now'/'kept').exists()
    assert json.loads((tmp_path/'now/mlstack-restore.json').read_text())['state'] == 'whole'


def test_only_our_folders_are_overwritten(tmp_path):
    one, two = (dict(packages=dict(base=o), python='.'.join(map(str, sys.version_info[:3])), implementation='cpython') for o in ('1.0', '2.0'))
    (tmp_path/'theirs').mkdir()
    (tmp_path/'theirs'/'file').write_text('precious')
    (tmp_path/'a file').write_text('precious')
    for o in ('theirs', 'a file'):
        with pytest.raises(RestoreError, match='was not made by restore'): restore(one, tmp_path/o, tool='pip')
    assert (tmp_path/'theirs'/'file').read_text() == (tmp_path/'a file').read_text() == 'precious' and len(os.listdir(tmp_path/'theirs')) == 1
    restore(one, tmp_path/'ours', tool='pip')
    assert restore(two, tmp_path/'ours', tool='pip')['packages'].state == 'ok' and capture_in(tmp_path/'ours')['packages'] == dict(base='2.0')


def test_python_that_is_not_here(tmp_path):
    here = '.'.join(map(str, sys.version_info[:3]))
    assert find_python(here)[1] == here
    rec = dict(packages=dict(base='1.0'), python='3.99.0', implementation='cpython')
    report = restore(rec, tmp_path/'now', tool='pip')
    assert report['python'].state == 'wrong' and '3.99.0 is not on this machine' in report['python'].detail and report['packages'].state == 'ok'
    near = '.'.join(map(str, sys.version_info[:2]))+'.999'
    assert restoring._python_check(dict(python=near), here).state == 'warning'


def test_an_index_that_cannot_be_reached_stops_and_goes_on_later(tmp_path, monkeypatch):
    rec = dict(packages=dict(base='1.0'), python='3.11.7')
    with monkeypatch.context() as m:
        m.delenv('PIP_NO_INDEX'), m.delenv('PIP_FIND_LINKS'), m.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
        with pytest.raises(RestoreError, match='goes on from here'): restore(rec, tmp_path/'now', tool='pip')
    assert restore(rec, tmp_path/'now', tool='pip')['packages'].state == 'ok'


@pytest.mark.parametrize('text, says', [('', 'empty or damaged'), ('{"pack', 'empty or damaged'), ('[]', 'empty or damaged'), ('{"source": "wandb"}', 'imported from wandb'), ('{"error": "x"}', 'empty or damaged'), ('{"packages": {}}', 'empty or damaged')])
def test_records_that_are_none(tmp_path, text, says):
    (tmp_path/'env.json').write_text(text)
    for o in (tmp_path, tmp_path/'env.json', str(tmp_path)):
        with pytest.raises(RestoreError, match=says): record_of(o)
    with pytest.raises(RestoreError, match='no such file'): record_of(tmp_path/'nowhere')


def test_the_record_of_a_real_run(tmp_path):
    import mlstack.tracking as track
    run = track.init(project='p', dir=tmp_path, surroundings=False)
    run.finish()
    saved = track.runs(project='p', dir=tmp_path)[0]
    one, two, three = (record_of(o)[0] for o in (run, saved, run.path))
    assert one == two == three and one['format'] == 2 and one['packages']['mlstack'] and len(items_of(one)) == len(one['packages'])
    a, b = (json.loads((Path(run.path)/'env.json').read_text()) for _ in range(2))
    old = {k: v for k, v in a.items() if k not in ('hashes', 'sources', 'installer', 'conda', 'build', 'abi', 'libc', 'container', 'cuda')}|dict(format=1, python='3.99.0')
    other = track.init(project='p', dir=tmp_path, surroundings=False)
    other.finish()
    (Path(other.path)/'env.json').write_text(json.dumps(old))
    first, second = (next(o for o in track.runs(project='p', dir=tmp_path) if o.id == r.id) for r in (run, other))
    assert first.diff(second).env == {'python': (b['python'], '3.99.0')}, 'an older record does not flood a diff'


@pytest.mark.parametrize('said, how, line', [
    (dict(url='https://h/x.whl', sha256='aa'), 'source', 'x @ https://h/x.whl#sha256=aa'),
    (dict(url='https://***@h/x.git', vcs='git', commit='c', subdirectory='s'), 'source', 'x @ git+https://h/x.git@c#subdirectory=s'),
    (dict(url='file:///nowhere', editable=True, commit='c'*40, remote='git@h:me/x.git', prefix='s'), 'source', f'x @ git+ssh://git@h/me/x.git@{"c"*40}#subdirectory=s'),
    (dict(url='file:///nowhere', editable=True, commit='c'*40, remote='https://***@h/x.git'), 'source', f'x @ git+https://h/x.git@{"c"*40}'),
    (dict(url='file:///nowhere', editable=True, commit='c'*40), 'lost', ''), (dict(url='file:///nowhere', editable=True), 'lost', ''),
    (dict(url='file:///nowhere/x-1-py3-none-any.whl'), 'index', 'x==1'), (dict(installer='conda'), 'index', 'x==1'), ({}, 'index', 'x==1')])
def test_where_a_package_comes_from(said, how, line):
    item, = items_of(dict(packages=dict(x='1'), sources=dict(x=said)))
    assert (item.how, item.line) == (how, line) and bool(item.note) == (bool(said) and how != 'source' or 'editable' in said)


def test_every_error_says_what_to_do():
    assert issubclass(LockError, MlstackError) and issubclass(RestoreError, MlstackError) and pins_of('') == [] and lockfiles.HEAD.startswith('#')

@pytest.mark.parametrize('said', ['name = 5', 'requires-python = 3', 'optional-dependencies = ["a"]', 'dynamic = ["dependencies"]\n[tool.setuptools.dynamic]\ndependencies = {file = ["missing.txt"]}', '\n[dependency-groups]\ndev = 5', '\n[tool.mlstack]\nlock = "yes"'])
def test_a_pyproject_of_wrong_kinds(tmp_path, said):
    (tmp_path/'pyproject.toml').write_text('[project]\nversion = "1"\n' + said)
    with pytest.raises(LockError): plan_of(tmp_path)
