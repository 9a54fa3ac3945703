"""restore.py WHO [--gone] [--no-deps]: an environment of 16 distributions is recorded, its surroundings go on (a folder under git gets a new commit; with --gone one package leaves the index), and it is made again.
WHO is mlstack or freeze (`pip freeze`, then `pip install -r`, with --no-deps or not). Counted: distributions whose version and files are as they were, and how many of the others the tool named."""
import json, os, subprocess, sys, tempfile, time
from pathlib import Path
from mlstack.env.restoring import capture_in, restore
from tests.wheels import wheel

real = ['requests==2.32.3', 'idna==3.10', 'certifi==2025.1.31', 'urllib3==2.3.0', 'charset-normalizer==3.4.1', 'pyyaml==6.0.2', 'tqdm==4.67.1', 'setuptools==75.8.0', 'wheel==0.45.1', 'pip==25.0.1']
backend = '''
import os
from zipfile import ZipFile
def build_wheel(folder, *_, editable=False):
    name, info = 'mine-0.0.1-py3-none-any.whl', 'mine-0.0.1.dist-info'
    with ZipFile(f'{folder}/{name}', 'w') as z:
        if editable: z.writestr('mine.pth', os.getcwd())
        else: z.write('mine.py')
        z.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\\nName: mine\\nVersion: 0.0.1\\n')
        z.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\\nGenerator: bench\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
        z.writestr(f'{info}/RECORD', '')
    return name
def build_editable(folder, *_): return build_wheel(folder, editable=True)
'''

def call(*args, **kw): return subprocess.run([str(o) for o in args], capture_output=True, text=True, **kw)
def git(folder, *args): call('git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args, cwd=folder, check=True)

def source(folder, name):
    folder.mkdir()
    (folder/'pyproject.toml').write_text(f'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "{name}"\nversion = "0.0.1"\n')
    (folder/'backend.py').write_text(backend.replace('mine', name))
    (folder/f'{name}.py').write_text('lr = .1\n')
    git(folder, 'init', '-b', 'main'), git(folder, 'add', '.'), git(folder, 'commit', '-m', 'then')
    return folder

def make(folder, shop):
    "The environment of then: from an index, from a folder that is edited, from a repository, from a file, a build of its own, and a pair that contradicts itself."
    mine, fork = source(folder/'mine', 'mine'), source(folder/'fork', 'fork')
    for name, version, *requires in (('model', '1.0'), ('leaving', '1.0'), ('strict', '1.0', 'model>=2')): wheel(shop, name, version, requires)
    wheel(shop, 'model', '2.0')
    built = wheel(folder/'built', 'built-here', '0.3+cu130')
    call(sys.executable, '-m', 'venv', '--without-pip', folder/'then', check=True)
    for o in ([*real, 'model==1.0', 'leaving', 'strict'], ['-e', mine], [f'git+file://{fork}'], [built]):
        r = call(sys.executable, '-m', 'pip', '--python', folder/'then/bin/python', 'install', '-q', '--no-deps', *o)
        if r.returncode: raise SystemExit(r.stderr)
    return mine

def code_of(env, name): return call(env/'bin/python', '-c', f'import {name}; print(open({name}.__file__).read())').stdout

def frozen(then, now):
    "What people do: the lines of pip freeze into a new environment; what it said."
    lines = call(then/'bin/python', '-m', 'pip', 'freeze').stdout
    now.parent.joinpath('requirements.txt').write_text(lines)
    call(sys.executable, '-m', 'venv', now, check=True)
    call(now/'bin/python', '-m', 'pip', 'install', '-q', '--upgrade', 'pip')  # the one that venv brings cannot read all that freeze writes
    r = call(now/'bin/python', '-m', 'pip', 'install', '-q', *(['--no-deps'] if '--no-deps' in sys.argv else []), '-r', now.parent/'requirements.txt')
    return '\n'.join(o for o in (r.stdout + r.stderr).splitlines() if not o.startswith('WARNING'))

with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    shop, then, now = folder/'shop', folder/'then', folder/'now'
    os.environ['PIP_FIND_LINKS'] = f'{shop} {os.environ.get("PIP_FIND_LINKS", "")}'.strip()
    mine = make(folder, shop)
    record, was = capture_in(then), {o: code_of(then, o) for o in ('mine', 'fork')}
    (mine/'mine.py').write_text('lr = .2\n')
    git(mine, 'commit', '-am', 'now')
    if '--gone' in sys.argv: (shop/'leaving-1.0-py3-none-any.whl').unlink()
    began = time.monotonic()
    said = str(restore(record, now, tool='pip')) if sys.argv[1] == 'mlstack' else frozen(then, now)
    seconds, got = time.monotonic() - began, capture_in(now)
    same = {k for k, v in record['packages'].items() if got['packages'].get(k) == v and record['hashes'].get(k) == (got['hashes'].get(k) if k in record['hashes'] else None)}
    same = {k for k in same if k not in was} | {k for k in was if code_of(now, k) == was[k]}
    other = {*record['packages'], *got['packages']} - same
    print(json.dumps(dict(recorded=len(record['packages']), same=len(same), other=len(other & {*got['packages']}), missing=len(other - {*got['packages']}), told=sum(o in said for o in other), seconds=seconds)))
