"The files of `mlstack env files`: this repository's own, hand-edited ones, a real image, a real SLURM job."
import base64, hashlib, json, re, sys, zipfile
from pathlib import Path
import pytest, yaml
from mlstack.core import MlstackError
from mlstack.env.recipes import conda, devcontainer, docker, files, recipes, source
from tests import house, images

every = list(recipes)

def make(folder, deps=('alpha', 'beta'), lock='alpha==1.0\nbeta==2.0\n', table='', build='requires = ["setuptools"]', name='moons'):
    "A project with a lock."
    (folder/'requirements').mkdir(parents=True)
    (folder/'pyproject.toml').write_text(f'[project]\nname = "{name}"\nversion = "1.0"\nrequires-python = ">=3.11"\ndependencies = {json.dumps(deps)}\n'
        + (f'[build-system]\n{build}\n' if build else '') + f'[tool.mlstack.files]\n{table}\n')
    if lock: (folder/'requirements'/'production.txt').write_text(lock)
    return folder

def text(folder, name): return (folder/name).read_text()


# This repository

def test_the_files_of_this_repository_are_up_to_date():
    differ = files(house.root, check=True)
    assert not differ, f'{differ}\nrun `mlstack env files`'

def test_the_image_of_this_repository_holds_its_lock_and_no_browser():
    s = source(house.root)
    run = docker(s).split('AS packages')[1].split('FROM packages AS dev')[0]
    assert 'chromium' not in run and 'chromium' in docker(s)
    assert s.torch == [text(house.root, 'requirements/torch.txt').strip()]
    assert '--no-build-isolation' in s.install and f'pip install --no-deps -r {s.lock[0]}' in run


# What may be overwritten

def test_each_file_says_what_it_is(tmp_path):
    make(tmp_path)
    assert [str(o.relative_to(tmp_path)) for o in files(tmp_path)] == every
    for o in every:
        first = text(tmp_path, o).splitlines()[:3]
        assert '`mlstack env files`' in first[0] and 'requirements/production.txt' in first[1] and source(tmp_path).digest in first[1], o

@pytest.mark.parametrize('name', every)
def test_an_edited_file_is_kept_and_nothing_else_is_written(tmp_path, name):
    make(tmp_path)
    files(tmp_path)
    mine = text(tmp_path, name).replace('moons', 'mine', 1) if 'moons' in text(tmp_path, name) else text(tmp_path, name) + '\n# mine\n'
    (tmp_path/name).write_text(mine)
    (tmp_path/'requirements'/'production.txt').write_text('alpha==1.1\nbeta==2.0\n')
    before = {o: text(tmp_path, o) for o in every}
    assert files(tmp_path, check=True).why == {o: 'edited' if o == name else 'stale' for o in every}
    with pytest.raises(MlstackError, match='edited by hand.*nothing was written.*--force'): files(tmp_path)
    assert {o: text(tmp_path, o) for o in every} == before
    files(tmp_path, force=True)
    assert files(tmp_path, check=True) == [] and text(tmp_path, name) != mine

def test_a_file_of_somebody_else_is_kept(tmp_path):
    make(tmp_path)
    (tmp_path/'Dockerfile').write_text('FROM scratch\n')
    assert files(tmp_path, check=True).why['Dockerfile'] == 'foreign'
    with pytest.raises(MlstackError, match='not made by this command'): files(tmp_path)
    assert not (tmp_path/'environment.yml').exists()
    assert [o.name for o in files(tmp_path, which='conda slurm')] == ['environment.yml', 'prologue.sh']
    assert text(tmp_path, 'Dockerfile') == 'FROM scratch\n'

def test_another_digest_in_the_header_counts_as_an_edit(tmp_path):
    make(tmp_path)
    files(tmp_path)
    (tmp_path/'Dockerfile').write_text(re.sub('source (.*) sha256:....', r'source \1 sha256:0000', text(tmp_path, 'Dockerfile')))
    assert files(tmp_path, check=True).why == {'Dockerfile': 'edited'}

def test_line_ends_of_another_system_are_no_edit(tmp_path):
    make(tmp_path)
    files(tmp_path)
    for o in every: (tmp_path/o).write_bytes((tmp_path/o).read_bytes().replace(b'\n', b'\r\n'))
    assert files(tmp_path, check=True) == []

def test_check_writes_nothing(tmp_path):
    make(tmp_path)
    assert set(files(tmp_path, check=True).why.values()) == {'missing'}
    assert sorted(o.name for o in tmp_path.iterdir()) == ['pyproject.toml', 'requirements']

def test_found_from_a_folder_inside(tmp_path, monkeypatch):
    make(tmp_path)
    (tmp_path/'a'/'b').mkdir(parents=True)
    monkeypatch.chdir(tmp_path/'a'/'b')
    assert files(which='conda') == [tmp_path/'environment.yml']


# Bad input

@pytest.mark.parametrize('table,said', [
    ('bass = "x"', r"unknown option 'bass'.*\[tool.mlstack.files\].*base"), ('backend = "cuda"', "'cuda' is no build of torch.*cu130"), ('which = ["docker", "nix"]', "'nix'.*conda, devcontainer, docker, slurm"),
    ('lock = "../all.txt"', 'outside of the project'), ('lock = "locks/all.txt"', 'cannot be read: No such file.*locks/all.txt'), ('debian = ["git; rm"]', "'git; rm' is no name"), ('debian = "packages.txt"', 'cannot be read.*option debian'),
    ('venv = "$HOME/env"', 'cannot be written into a shell script')])
def test_bad_options(tmp_path, table, said):
    make(tmp_path, table=table)
    with pytest.raises(MlstackError, match=said): files(tmp_path)
    assert not any((tmp_path/o).exists() for o in every)

@pytest.mark.parametrize('toml,said', [
    ('[project', 'cannot be read.*pyproject.toml.*[Mm]end the line'), ('[project]\nname = "x"\ndependencies = ["numpy"]', 'no lock.*mlstack env lock'),
    ('[project]\nname = "x"\n', 'for which Python.*requires-python'), ('[project]\nname = "x"\ndynamic = ["dependencies"]', 'no lock')])
def test_bad_projects(tmp_path, toml, said):
    (tmp_path/'pyproject.toml').write_text(toml)
    with pytest.raises(MlstackError, match=said): files(tmp_path)

def test_a_folder_in_the_place_of_a_file(tmp_path):
    (make(tmp_path)/'Dockerfile').mkdir()
    with pytest.raises(MlstackError, match='not made by this command'): files(tmp_path)
    with pytest.raises(MlstackError, match='Dockerfile cannot be written.*[Mm]ove away'): files(tmp_path, which='docker', force=True)

def test_no_project(tmp_path):
    with pytest.raises(MlstackError, match='no pyproject.toml'): files(tmp_path)

def test_a_wish_is_not_a_lock(tmp_path):
    make(tmp_path, lock='alpha>=1\n')
    with pytest.raises(MlstackError, match="'alpha>=1' leaves open.*pip-compile"): files(tmp_path)


# Projects of others

@pytest.mark.parametrize('build,install', [('requires = ["hatchling"]', '--no-deps '), ('requires = ["poetry-core>=2"]', '--no-deps '), ('requires = ["alpha>=1"]', '--no-deps --no-build-isolation '), ('', '')])
def test_how_the_project_is_installed(tmp_path, build, install):
    s = source(make(tmp_path, build=build))
    assert s.install == install
    assert ('pip install .' in docker(s).replace(install, '')) == bool(install) == ('postCreateCommand' in devcontainer(s))

def test_a_lock_of_uv_with_hashes_and_torch_in_it(tmp_path):
    make(tmp_path, lock=None)
    (tmp_path/'requirements.txt').write_text('''# This file was autogenerated by uv
alpha==1.0 ; python_full_version >= '3.11' \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via moons
torch==2.13.0+cpu \\
    --hash=sha256:cc
''')
    s = source(tmp_path, backend='cu130')
    assert s.torch == ['torch==2.13.0'] and s.lock[0] == 'requirements.txt'
    pip = yaml.safe_load(conda(s))['dependencies'][-1]['pip']
    assert pip == ['--extra-index-url https://download.pytorch.org/whl/cu130', 'torch==2.13.0', "alpha==1.0 ; python_full_version >= '3.11'"]

def test_a_development_lock_is_only_in_the_development_stage(tmp_path):
    make(tmp_path)
    (tmp_path/'requirements'/'dev.txt').write_text('-r production.txt\npytest==9.2.0\n')
    (tmp_path/'requirements'/'debian.txt').write_text('git # for the record\n\nffmpeg\n')
    whole = docker(source(tmp_path, debian_dev=['vim']))
    packages, dev, run = re.split('FROM packages AS (?:dev|run)', whole)
    assert '-r requirements/production.txt' in packages and 'dev.txt' not in packages and 'ffmpeg git' in packages and 'vim' not in packages
    assert 'COPY requirements/dev.txt requirements/production.txt requirements/\n' in dev and '-r requirements/dev.txt' in dev and 'vim' in dev
    assert 'dev.txt' not in run

# https://containers.dev/implementors/json_reference/, read 2026-11-23; the whole schema (devcontainers/spec, c95ffee, 2026-03-20) accepted this repository's file on that day
documented = set('''name forwardPorts portsAttributes otherPortsAttributes containerEnv remoteEnv containerUser remoteUser updateRemoteUserUID userEnvProbe overrideCommand shutdownAction init
    privileged capAdd securityOpt mounts features overrideFeatureInstallOrder customizations image build appPort workspaceMount workspaceFolder runArgs initializeCommand onCreateCommand
    updateContentCommand postCreateCommand postStartCommand postAttachCommand waitFor hostRequirements secrets'''.split())

def test_devcontainer_has_the_documented_keys(tmp_path):
    make(tmp_path)
    files(tmp_path)
    told = json.loads(''.join(o for o in text(tmp_path, '.devcontainer/devcontainer.json').splitlines(True) if not o.startswith('//')))
    assert set(told) <= documented and set(told['build']) <= {'dockerfile', 'context', 'target', 'args', 'cacheFrom', 'options'}
    assert (tmp_path/'.devcontainer'/told['build']['dockerfile']).resolve() == tmp_path/'Dockerfile' and (tmp_path/'.devcontainer'/told['build']['context']).resolve() == tmp_path
    assert f'FROM packages AS {told["build"]["target"]}\n' in text(tmp_path, 'Dockerfile') and f' {told["remoteUser"]} &&' in text(tmp_path, 'Dockerfile')

def wheel(folder, name, version, requires=(), code=''):
    "A wheel made by hand."
    info = f'{name}-{version}.dist-info'
    parts = {f'{name}.py': code or f'version = {version!r}\n', f'{info}/METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n' + ''.join(f'Requires-Dist: {o}\n' for o in requires),
        f'{info}/WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n'}
    record = ''.join(f'{k},sha256={base64.urlsafe_b64encode(hashlib.sha256(v.encode()).digest()).rstrip(b"=").decode()},{len(v.encode())}\n' for k, v in parts.items())
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder/f'{name}-{version}-py3-none-any.whl', 'w') as z:
        for k, v in (parts | {f'{info}/RECORD': record + f'{info}/RECORD,,\n'}).items(): z.writestr(k, v)

def test_pip_understands_the_section_of_conda(tmp_path):
    wheels = tmp_path/'wheels'
    for o in '1.0', '1.1': wheel(wheels, 'alpha', o, ['beta>=1'])
    wheel(wheels, 'beta', '2.0')
    make(tmp_path/'p', lock='alpha==1.0 ; python_version >= "3.8"\nbeta==2.0 # via alpha\nabsent==1.0 ; sys_platform == "none"\n')
    told = yaml.safe_load(conda(source(tmp_path/'p')))
    assert set(told) <= {'name', 'channels', 'dependencies', 'prefix', 'variables'}   # conda's VALID_KEYS
    assert all(isinstance(o, str) for o in told['dependencies'][:-1]) and all(isinstance(o, str) for o in told['dependencies'][-1]['pip'])
    (tmp_path/'condaenv.requirements.txt').write_text('\n'.join(told['dependencies'][-1]['pip']))   # what conda hands to pip
    r = house.run(sys.executable, '-m', 'pip', '--isolated', 'install', '--dry-run', '--ignore-installed', '--no-index', '--find-links', wheels, '-r', tmp_path/'condaenv.requirements.txt',
        env=house.environment(PIP_CONFIG_FILE='/dev/null'))
    assert 'Would install alpha-1.0 beta-2.0\n' in r.stdout, r.stdout


# A real image

@pytest.fixture(scope='module')
def builder():
    with images.Builder() as b:
        b.base()
        yield b

backend = '''
import base64, hashlib, os, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = 'moons-1.0-py3-none-any.whl'
    parts = {'two_moons.py': open('two_moons.py').read(), 'moons-1.0.dist-info/METADATA': 'Metadata-Version: 2.1\\nName: moons\\nVersion: 1.0\\nRequires-Dist: alpha\\n',
        'moons-1.0.dist-info/WHEEL': 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'}
    record = ''.join(f'{k},,\\n' for k in parts) + 'moons-1.0.dist-info/RECORD,,\\n'
    with zipfile.ZipFile(os.path.join(folder, name), 'w') as z:
        for k,v in (parts | {'moons-1.0.dist-info/RECORD': record}).items(): z.writestr(k, v)
    return name
'''

look = '''
import json, os, sys
sys.path.insert(0, '/mlstack-source')
from mlstack import env
import alpha, beta, torch, two_moons
r = env.capture()
def may(path):
    try: open(path, 'w').close()
    except OSError: return False
    return True
print(json.dumps(dict(packages=r['packages'], container=r.get('container', dict(image='moons')), variables=r['variables'], user=os.getuid(), home=os.environ.get('HOME'), folder=os.getcwd(), prefix=sys.prefix, answer=two_moons.answer,
    here=sorted(os.listdir('.')), runs=may('/runs/x'), venv=may(alpha.__file__), app=may('/app/x'), config=os.path.exists('/etc/pip.conf') and os.path.getsize('/etc/pip.conf'))))
'''

@pytest.mark.server('buildah', 'useradd', 'ldd')
@pytest.mark.probe("images")
def test_the_image_is_built_run_and_built_again_from_its_layers(tmp_path, builder):
    wheels, project = tmp_path/'wheels', make(tmp_path/'two moons', lock=None, build='requires = ["backend_of_moons"]\nbuild-backend = "backend_of_moons"', table='lock = "locks of mine/all.txt"\nbase = "localhost/base"\ndebian = []\ndebian_dev = []')
    (project/'requirements'/'torch-cpu.txt').write_text('--extra-index-url https://download.pytorch.org/whl/cpu\ntorch==2.13.0+cpu\n')
    (project/'locks of mine').mkdir()
    (project/'locks of mine'/'all.txt').write_text('alpha==1.0\nbackend_of_moons==1.0\nbeta==2.0\n')
    wheel(wheels, 'alpha', '1.0', ['beta>=1']); wheel(wheels, 'alpha', '1.1', ['beta>=1']); wheel(wheels, 'beta', '2.0'); wheel(wheels, 'torch', '2.13.0+cpu'); wheel(wheels, 'backend_of_moons', '1.0', code=backend)
    (project/'two_moons.py').write_text('answer = 1\n')
    (project/'look.py').write_text(look)
    (project/'.gitignore').write_text('*.pt\n/data/\n')
    (project/'deep').mkdir()
    for o in ('data', '.git'): (project/o).mkdir(); (project/o/'x').write_text('x')
    for o in ('a.pt', 'deep/b.pt', '.env'): (project/o).write_text('secret')
    (tmp_path/'pip.conf').write_text('[global]\nno-index = true\nfind-links = /wheels\n')
    files(project)
    build = lambda *more: builder.build(project, 'moons', '--volume', f'{wheels}:/wheels:ro', '--secret', f'id=pip,src={tmp_path/"pip.conf"}', *more).stdout
    again = lambda steps: '\n'.join(o for o in steps.split(' STEP ') if 'Using cache' not in o)   # what was not taken from the cache
    def run():
        r = builder.run('moons', 'python', '/app/look.py', options=('--volume', f'{house.root}:/mlstack-source:ro'))
        assert r.returncode == 0, r.stdout
        return json.loads(r.stdout.splitlines()[-1])

    build()
    seen = run()
    assert seen['packages'] == {'alpha': '1.0', 'beta': '2.0', 'torch': '2.13.0+cpu', 'backend-of-moons': '1.0', 'moons': '1.0'}   # the lock, the project, nothing else
    assert seen['variables']['MLSTACK_IMAGE'] == seen['container']['image'] == 'moons' and seen['variables']['MLSTACK_IMAGE_LOCK'] == f'sha256:{source(project).digest}'
    assert (seen['user'], seen['home'], seen['folder'], seen['prefix']) == (1000, '/home/user', '/app', '/opt/venv')
    assert seen['runs'] and not seen['venv'] and not seen['app'] and not seen['config']
    assert seen['here'] == ['.gitignore', 'deep', 'locks of mine', 'look.py', 'pyproject.toml', 'requirements', 'slurm', 'two_moons.py']   # no data, no secret, no history
    labels = json.loads(builder.check('inspect', '--type', 'image', 'moons').stdout)['OCIv1']['config']['Labels']
    assert labels['mlstack.lock'] == seen['variables']['MLSTACK_IMAGE_LOCK'] and labels['org.opencontainers.image.base.name'] == 'localhost/base'

    (project/'two_moons.py').write_text('answer = 2\n')
    steps = build()
    assert steps.count('Successfully installed') == 1 and 'Successfully installed moons-1.0' in steps
    assert all(o in again(steps) for o in ('COPY . .', 'pip install --no-deps --no-build-isolation .')) and 'all.txt' not in again(steps) and 'useradd' not in again(steps)
    assert run()['answer'] == 2
    (project/'locks of mine'/'all.txt').write_text('alpha==1.1\nbackend_of_moons==1.0\nbeta==2.0\n')
    files(project)
    steps = build()
    assert 'Successfully installed alpha-1.1' in steps and 'torch' not in again(steps) and 'useradd' not in again(steps) and 'python3 -m venv' in steps
    assert run()['packages']['alpha'] == '1.1'

    builder.build(project, 'moons-dev', '--target', 'dev')
    install = "import alpha, os, sys; open(os.path.join(os.path.dirname(alpha.__file__), 'moons.pth'), 'w').write('/work'); print(os.getuid(), 'app' in os.listdir('/'))"
    r = builder.run('moons-dev', 'python', '-c', install, options=('--user', '4321:4321'))   # whoever mounts the project, an editable install can write
    assert r.stdout.split() == ['4321', 'False'], r.stdout

@pytest.mark.server('buildah', 'useradd', 'ldd')
@pytest.mark.probe("images")
def test_a_lock_that_is_not_complete_fails_the_build(tmp_path, builder):
    make(tmp_path/'p', lock='alpha==1.0\n', table='base = "localhost/base"\ndebian_dev = []')
    wheel(tmp_path/'wheels', 'alpha', '1.0', ['beta>=1'])
    (tmp_path/'pip.conf').write_text('[global]\nno-index = true\nfind-links = /wheels\n')
    files(tmp_path/'p')
    r = builder.call('build', '--layers', '--isolation', 'chroot', '--pull-never', '--target', 'packages', '--volume', f'{tmp_path/"wheels"}:/wheels:ro', '--secret', f'id=pip,src={tmp_path/"pip.conf"}', tmp_path/'p')
    assert r.returncode != 0 and 'alpha 1.0 requires beta, which is not installed' in r.stdout


# A real SLURM job

show = r'''
echo "job $(basename "$VIRTUAL_ENV") $OMP_NUM_THREADS $MKL_NUM_THREADS $MASTER_ADDR $MASTER_PORT $SLURM_JOB_ID $(ulimit -Sc) $(ulimit -Sn) $(ulimit -Hn)"
echo "caches $TORCHINDUCTOR_CACHE_DIR $TRITON_CACHE_DIR"
stat -c 'scratch %a' "$(dirname "$TRITON_CACHE_DIR")"
srun python -c "from mlstack.ddp.rendezvous import find; r = find(); print('rank', r.by, r.rank, r.world_size, r.host, r.port)"
srun -l sh -c 'echo "task $OMP_NUM_THREADS $SLURM_CPUS_PER_TASK $MASTER_ADDR $MASTER_PORT $SRUN_CPUS_PER_TASK"'
false | true
echo "not strict"
'''

def job(slurm, folder, script, *options, **env):
    (folder/'job.sh').write_text(f'#!/bin/bash\nsource "$SLURM_SUBMIT_DIR/slurm/prologue.sh"\n{script}')
    r = slurm.run('sbatch', '-W', '-o', folder/'out.txt', *options, 'job.sh', cwd=folder, env=env)
    return r.returncode, text(folder, 'out.txt')

def test_prologue_in_a_job_on_two_nodes(tmp_path, slurm):
    folder = make(tmp_path/'two moons', table=f'venv = {json.dumps(sys.prefix)}')
    files(folder, which='slurm')
    code, out = job(slurm, folder, show, '-N2', '--ntasks-per-node=1', '--cpus-per-task=3', TMPDIR=tmp_path, MLSTACK_DOCTOR='warn', MASTER_PORT='', PYTHONNOUSERSITE='', TORCHINDUCTOR_CACHE_DIR='', TRITON_CACHE_DIR='')
    said = {o.split()[0]: o.split()[1:] for o in out.splitlines() if o.strip()}
    assert code != 0 and 'not strict' not in out, out      # `false | true` ended the job
    venv, omp, mkl, host, port, id, core, soft, hard = said['job']
    assert (venv, omp, mkl, host, core) == (Path(sys.prefix).name, '3', '3', 'n1', '0')
    assert int(port) == 10000 + int(id) % 20000 and (hard == 'unlimited' or int(soft) == min(int(hard), 65536) or int(soft) >= 65536)
    assert re.search(r'^(ok|warning|wrong) +torch ', out, re.M), out   # what mlstack doctor found on the node
    tasks = re.findall(r'^\d: task (.*)$', out, re.M)
    assert sorted(re.findall(r'^rank (.*)$', out, re.M)) == [f'SLURM {i} 2 n1 {port}' for i in range(2)], out   # as `launch` sees it
    assert tasks == [f'3 3 n1 {port} 3']*2, out
    assert all(o.startswith(str(tmp_path)) for o in said['caches']) and said['scratch'] == ['700']

def test_prologue_ends_a_job_that_cannot_go_well(tmp_path, slurm):
    folder = make(tmp_path/'p', table='modules = ["cuda/13.0"]\nvenv = "none"')
    files(folder, which='slurm')
    code, out = job(slurm, folder, 'echo went on')
    assert code and 'no command module' in out and 'loads cuda/13.0' in out and 'went on' not in out
    files(folder, which='slurm', modules=[])
    code, out = job(slurm, folder, 'echo went on')
    assert code and f'no environment in {folder}/none' in out and 'went on' not in out
    files(folder, which='slurm', modules=[], venv='env')
    (folder/'env'/'bin').mkdir(parents=True)
    (folder/'env'/'bin'/'activate').write_text('export VIRTUAL_ENV=env; PS1="$UNSET $PS1"; PATH="$mlstack_folder/env/bin:$PATH"\n')
    (folder/'env'/'bin'/'mlstack').write_text('#!/bin/sh\necho "looked with $1"; exit 1\n')
    (folder/'env'/'bin'/'mlstack').chmod(0o755)
    code, out = job(slurm, folder, 'echo went on')
    assert code and 'looked with doctor' in out and 'MLSTACK_DOCTOR=warn' in out and 'went on' not in out
    code, out = job(slurm, folder, 'echo went on', MLSTACK_DOCTOR='warn')
    assert code == 0 and 'looked with doctor' in out and 'went on' in out

def test_prologue_outside_a_job(tmp_path):
    folder = make(tmp_path/'p', table=f'venv = {json.dumps(sys.prefix)}')
    files(folder, which='slurm')
    env = house.environment(TMPDIR=tmp_path, MLSTACK_DOCTOR='off')
    r = house.run('bash', '-c', 'source slurm/prologue.sh; echo $OMP_NUM_THREADS ${MASTER_ADDR:-none} $(nproc)', cwd=folder, env={k: v for k, v in env.items() if not k.startswith('SLURM_') and k != 'OMP_NUM_THREADS'})
    threads, host, cores = r.stdout.split()
    assert (threads, host) == (cores, 'none')
    r = house.run('bash', '--norc', '-i', '-c', 'source slurm/prologue.sh; echo still here', cwd=folder, env=env)
    assert 'is for job scripts' in r.stdout and 'still here' in r.stdout

@pytest.mark.parametrize('table', ['', 'modules = ["gcc", "cuda/13.0"]\nvenv = "/opt/my env"'])
@pytest.mark.server('shellcheck')
def test_prologue_is_clean(tmp_path, table):
    files(make(tmp_path, table=table), which='slurm')
    r = house.run('shellcheck', '--shell=bash', '--severity=style', tmp_path/'slurm'/'prologue.sh')
    assert r.returncode == 0, r.stdout
