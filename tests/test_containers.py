"Jobs in containers: real podman with the image of a generated Dockerfile, and the arguments for engines that are not here."
import importlib.util, json, os, re, shutil, sys, time
from pathlib import Path
import cloudpickle, pytest
from mlstack.core import MlstackError
from mlstack.env.recipes import files, source
from mlstack.resources.containers import Engine, check_container, contained, engine, variables, why_ended, wish
from mlstack.resources.keeping import start
from mlstack.resources.records import held, new_record
from tests import house, images

site = str(Path(importlib.util.find_spec('cloudpickle').origin).parents[1])


# What is asked of an engine

@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_STATE', str(tmp_path/'state'))
    for o in ('CUDA_VISIBLE_DEVICES', 'MLSTACK_CONTAINERS'): monkeypatch.delenv(o, raising=False)
    (tmp_path/'work').mkdir()
    return tmp_path

def record(state, container, **spec):
    given = spec.pop('env', {})
    return new_record(dict(dict(name='moons', on='local', kind='command', command=['true'], cwd=str(state/'work'), project='moons', runs=str(state/'runs'), run='r', python=sys.executable, container=container, grace=5,
        env=dict(PATH=os.environ['PATH'], HOME=str(state)) | given, given=list(given)), **{k: v for k, v in spec.items() if not k.endswith('_pkl') and k != 'secrets'}) | (dict(secrets=list(spec['secrets'])) if 'secrets' in spec else {}),
        **{k: v for k, v in spec.items() if k.endswith('_pkl')}, **(dict(secrets_json=json.dumps(spec['secrets']).encode()) if 'secrets' in spec else {}))

nasty = ['; rm -rf /', '$(touch x)', 'a\nb', "it's", '--privileged', '`id`']

@pytest.mark.parametrize('kind', ['podman', 'docker', 'apptainer'])
def test_nothing_is_read_by_a_shell_and_no_secret_is_on_the_command_line(state, kind):
    job = record(state, 'moons', command=['train', *nasty], env=dict(NAME='a b; $(x)', LINES='a\nb'), secrets=dict(TOKEN='very secret'))
    box = contained(job, job.spec['command'], dict(job.spec['env'], TOKEN='very secret', LINES='a\nb'), by=Engine(kind, kind))
    assert box.command[-len(nasty):] == nasty
    assert not any('very secret' in o for o in box.command) and 'very secret' in Path(box.file).read_text()
    assert os.stat(box.file).st_mode & 0o777 == 0o600
    assert not any('PATH=' in o for o in box.command) and 'PATH=' not in Path(box.file).read_text()
    box._replace(removal=None).remove()
    assert not Path(box.file).exists()

def after(command, flag): return [command[i+1] for i, o in enumerate(command) if o == flag]

def test_gpus_of_the_lease_and_no_others(state):
    job = record(state, 'moons')
    gpus = dict(CUDA_VISIBLE_DEVICES='GPU-1,MIG-2')
    of = lambda kind, env, **more: contained(record(state, dict(image='moons', **more)), ['true'], env, by=Engine(kind, kind)).command
    assert after(of('podman', gpus), '--device') == ['nvidia.com/gpu=GPU-1', 'nvidia.com/gpu=MIG-2']
    assert after(of('docker', gpus), '--gpus') == ['"device=GPU-1,MIG-2"']
    assert '--nv' in of('apptainer', gpus) and '--nv' not in of('apptainer', {})
    assert after(of('docker', gpus, gpus='amd'), '--device') == ['/dev/kfd', '/dev/dri'] and '--rocm' in of('apptainer', gpus, gpus='amd')
    for kind in ('podman', 'docker'): assert after(of(kind, {}), '--env') == ['NVIDIA_VISIBLE_DEVICES=void'] and '--gpus' not in of(kind, {}) and '--device' not in of(kind, {})
    assert 'CUDA_VISIBLE_DEVICES=GPU-1,MIG-2\n' in (job.path.parent/sorted(os.listdir(job.path.parent))[1]/'variables.1').read_text()

def test_user_memory_network_and_folders(state, monkeypatch):
    data = state/'two moons, "old"'
    data.mkdir()
    job = record(state, dict(image='moons', network='none', data=str(data), shm='2G'), want=dict(gpus=0, gpu_mem=0, cpus=1, mem=2**30))
    command = contained(job, ['true'], {}, by=Engine('docker', 'docker')).command
    assert after(command, '--network') == ['none'] and after(command, '--shm-size') == ['2g'] and after(command, '--memory') == [str(2**30)] and after(command, '--workdir') == [job.spec['cwd']]
    mounts = after(command, '--mount')
    assert f'type=bind,source={job.path},destination={job.path}' in mounts and any(o.endswith(',readonly') and '""old""' in o for o in mounts) and len(mounts) == 4
    assert after(command, '--user') == [f'{os.getuid()}:{os.getgid()}']
    monkeypatch.setattr(os, 'geteuid', lambda: 1000)
    assert after(contained(job, ['true'], {}, by=Engine('podman', 'podman')).command, '--userns') == ['keep-id']
    assert after(contained(record(state, 'docker.io/x:1'), [sys.executable, 'x'], {}, by=Engine('apptainer', 'apptainer')).command, '--pwd')
    assert contained(record(state, 'x:1'), [sys.executable, 'x'], {}, by=Engine('apptainer', 'apptainer')).command[-3:] == ['docker://x:1', 'python', 'x']

@pytest.mark.parametrize('said, why', [(dict(image='a b'), 'no name of an image'), (dict(image='a', network='x y'), 'no name of a network'), (dict(image='a', shm='lots'), 'not a size'), (dict(image='a', gpu=1), "'gpu' is nothing"),
    (dict(image='-v/:/x'), 'no name of an image'), (dict(image='a', gpus='intel'), 'whose GPUs')])
def test_bad_wishes(said, why):
    with pytest.raises(MlstackError, match=re.escape(why)): wish(said)

def test_a_folder_that_would_hide_the_image(state):
    with pytest.raises(MlstackError, match='would hide'): check_container(record(state, 'moons', cwd='/usr').spec, by=Engine('podman', 'podman'))

def test_no_engine(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(MlstackError, match='nothing that runs containers is installed.*podman'): engine()
    with pytest.raises(MlstackError, match='docker is not installed'): engine('docker')
    with pytest.raises(MlstackError, match="'rkt' runs no"): engine('rkt')

def test_a_docker_without_its_daemon_is_passed_over(monkeypatch, tmp_path):
    for o in ('docker', 'apptainer'): (tmp_path/o).write_text('#!/bin/sh\n'); (tmp_path/o).chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('DOCKER_HOST', f'unix://{tmp_path}/none')
    monkeypatch.delenv('MLSTACK_CONTAINERS', raising=False)
    assert engine().kind == 'apptainer' and engine('docker').kind == 'docker'

def test_what_an_exit_code_means():
    assert 'could not start' in why_ended(125, 'docker') and 'SIGKILL' in why_ended(137, 'podman') and not why_ended(3, 'podman')
    assert variables(dict(), dict(PATH='x')) == dict(HOME='/tmp')


# Real podman

def podman_runs():
    "Why podman runs nothing here, or None."
    if house.programs_missing(['podman', 'buildah']): return None
    if why := images.probe(): return why
    with images.Builder() as b:
        os.mkdir(b.folder/'root')
        images._copy_programs(b.folder/'root', ['sh'])
        for o in ('proc', 'dev', 'sys', 'tmp', 'etc'): (b.folder/'root'/o).mkdir(exist_ok=True)
        b.check('from', '--name', 'new', 'scratch'); b.check('add', 'new', b.folder/'root', '/'); b.check('commit', '--signature-policy', b.folder/'policy.json', '--rm', 'new', 'localhost/try')
        r = house.run('podman', 'run', '--rm', '--pull', 'never', '--network', 'host', '--ulimit', 'nofile=1024:1024', '--ulimit', 'nproc=1024:1024', 'localhost/try', 'sh', '-c', 'exit 7', env=house.environment(**podman_variables(b)))
    return None if r.returncode == 7 else f'podman cannot run a container: {r.stdout.strip()[-150:]}'

def podman_variables(b):
    "Podman on the store of a `Builder`, without systemd."
    (b.folder/'storage.conf').write_text(f'[storage]\ndriver = "{b.driver}"\nrunroot = "{b.folder}/run"\ngraphroot = "{b.folder}/store"\n')
    runtime = 'runc' if shutil.which('runc') else 'crun'
    (b.folder/'containers.conf').write_text(f'[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "{runtime}"\n')
    return dict(CONTAINERS_STORAGE_CONF=b.folder/'storage.conf', CONTAINERS_CONF=b.folder/'containers.conf')

house.probes['podman'] = podman_runs
real = [pytest.mark.server('podman', 'buildah', 'useradd', 'ldd'), pytest.mark.probe('podman')]
def really(f):
    for o in real: f = o(f)
    return f

@pytest.fixture(scope='module')
def podman(tmp_path_factory):
    "The image of a generated Dockerfile, and the variables with which podman finds it."
    project = tmp_path_factory.mktemp('project')/'moons'
    project.mkdir()
    (project/'pyproject.toml').write_text('[project]\nname = "moons"\nrequires-python = ">=3.11"\n[tool.mlstack.files]\nbase = "localhost/base"\ndebian = []\ndebian_dev = []\n')
    (project/'two_moons.py').write_text('answer = 1\n')
    with images.Builder() as b:
        b.base()
        files(project, which='docker')
        b.build(project, 'localhost/moons')
        yield project, {k: str(v) for k, v in podman_variables(b).items()}

@pytest.fixture
def job(podman, state, monkeypatch):
    project, env = podman
    for k, v in env.items(): monkeypatch.setenv(k, v)
    monkeypatch.setenv('MLSTACK_CONTAINERS', 'podman')
    made = []
    def make(container='localhost/moons', **spec):
        made.append(record(state, container, **spec))
        start(made[-1], warm=False)
        return made[-1]
    yield make
    for o in made:
        if not o.final and held(o): (o/'cancel').write_text('the test is over'); wait(lambda o=o: o.final)
    assert not house.run('podman', 'ps', '--all', '--quiet', env=house.environment(**env)).stdout.split()

def wait(done, seconds=300):
    limit = time.monotonic()+seconds
    while not (said := done()) and time.monotonic() < limit: time.sleep(.02)
    assert said, 'it did not come'
    return said

def wait_for_line(j, line):
    wait(lambda: j.final or j.log.exists() and line in j.log.read_text())
    assert not j.final, j.log.read_text()

look = r'''
import json, os, sys
print(json.dumps(dict(user=os.getuid(), folder=os.getcwd(), image=os.environ.get('MLSTACK_IMAGE'), argv=sys.argv[1:], token=os.environ.get('TOKEN'), lines=os.environ.get('LINES'), name=os.environ.get('NAME'),
    job=os.environ.get('MLSTACK_JOB'), path=os.environ.get('PYTHONPATH'), home=os.listdir(os.environ['HOME']), shm=os.statvfs('/dev/shm').f_blocks*os.statvfs('/dev/shm').f_frsize, here=sorted(os.listdir('/data')) if os.path.exists('/data') else None)))
open('made', 'w').write('x')
'''

@really
def test_a_command_in_its_image(job, state):
    (state/'work'/'look.py').write_text(look)
    j = job(command=[sys.executable, 'look.py', *nasty], env=dict(NAME='a b; $(x) "q"', LINES='a\nb'), secrets=dict(TOKEN='very secret'), want=dict(gpus=0, gpu_mem=0, cpus=1, mem=2**28))
    wait(lambda: j.final)
    assert j.final['state'] == 'finished', j.log.read_text()
    seen = json.loads(j.log.read_text().splitlines()[0])
    assert seen == dict(user=os.getuid(), folder=str(state/'work'), image='moons', argv=nasty, token='very secret', lines='a\nb', name='a b; $(x) "q"', job=j.id, path='/app', home=[state.parts[2]], shm=2**28, here=None)
    assert (state/'work'/'made').stat().st_uid == os.getuid()
    assert not list(j.path.glob('variables*')) and not (j/'secrets.json').exists()

def call(job, fn, *args, **spec):
    env = dict(PYTHONPATH=f'{house.root}:{site}', **spec.pop('env', {}))
    return job(dict(image=True, data=[str(house.root), site]), kind='function', command=None, call_pkl=cloudpickle.dumps((fn, args, {})), env=env, **spec)

def result(j):
    import pickle
    kind, said = pickle.loads((j/'result.pkl').read_bytes())
    return pickle.loads(said) if kind == 'done' else said

@really
def test_a_function_in_the_image_of_the_project(job, podman):
    project, _ = podman
    def train(x):
        import os, two_moons
        from mlstack.core import context
        import mlstack.tracking as track
        with track.init() as run: run.log(loss=1/x)
        return os.environ['MLSTACK_IMAGE'], two_moons.answer, x*2, context().job, os.getcwd()
    j = call(job, train, 21, cwd=str(project))
    wait(lambda: j.final)
    assert j.final['state'] == 'finished', j.log.read_text()
    assert result(j) == ('moons', 1, 42, j.id, str(project))
    from mlstack.tracking.query import runs
    found = runs(project='moons', dir=j.spec['runs'])
    assert [(o.id, o.state) for o in found] == [('r', 'finished')] and found[0].summary['loss'] == 1/21

@really
def test_a_function_that_fails_says_why(job, podman):
    def train(): raise ValueError('no such moon')
    j = call(job, train, cwd=str(podman[0]))
    wait(lambda: j.final)
    assert j.final['state'] == 'failed' and j.final['reason'] == 'ValueError: no such moon', j.log.read_text()
    assert 'no such moon' in result(j)['text'] and 'in train' in result(j)['text']

@really
def test_a_fit_in_the_image(job, podman):
    "The packages of this environment are mounted: the whole image, with its own, is built in the bench."
    def train():
        import torch
        from mlstack.trainer import Data, Trainer
        torch.manual_seed(0)
        x = torch.randn(64, 4)
        t = Trainer(torch.nn.Linear(4, 1), Data.from_tensors((x, x.sum(1, keepdim=True)), batch_size=16), loss=torch.nn.functional.mse_loss, lr=.05)
        t.fit(epochs=2)
        return t.step
    j = call(job, train, cwd=str(podman[0]), env=dict(OMP_NUM_THREADS='1'))
    wait(lambda: j.final)
    assert j.final['state'] == 'finished', j.log.read_text()
    assert result(j) == 8

polite = '''
import signal, sys, time
def ask(*_): print('was asked', flush=True); sys.exit(3)
signal.signal(signal.SIGTERM, ask)
print('up', flush=True)
time.sleep(600)
'''

@really
def test_a_cancelled_job_is_told(job):
    j = job(command=['python', '-c', polite])
    wait_for_line(j, 'up')
    (j/'cancel').write_text('no longer needed')
    assert wait(lambda: j.final)['state'] == 'cancelled'
    assert 'was asked' in j.log.read_text()

@really
def test_one_that_does_not_listen_is_ended_and_its_container_removed(job, podman):
    j = job(command=['python', '-c', 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print("up", flush=True); time.sleep(600)'], grace=1)
    wait_for_line(j, 'up')
    (j/'cancel').write_text('')
    assert wait(lambda: j.final)['state'] == 'cancelled'   # the fixture finds no container

@really
def test_a_function_stops_at_its_stop_file(job, podman):
    def train():
        import time, mlstack.tracking as track
        run = track.init()
        print('up', flush=True)
        while True: run.log(x=1); time.sleep(.05)
    j = call(job, train, cwd=str(podman[0]))
    wait_for_line(j, 'up')
    (j/'preempt').write_text('somebody needs it')
    last = wait(lambda: [o for o in j.attempts() if o['state'] != 'running'])
    wait(lambda: not held(j))
    assert last[0]['state'] == 'preempted' and j.final is None

@really
def test_the_engine_is_the_one_that_its_submitter_had(job, podman, monkeypatch):
    "A runner, which another shell has started, looks where the submitter's variables say."
    for k in ('MLSTACK_CONTAINERS', *podman[1]): monkeypatch.delenv(k, raising=False)
    j = job(command=['sh', '-c', 'exit 0'], env=dict(podman[1], MLSTACK_CONTAINERS='podman'))
    assert wait(lambda: j.final)['state'] == 'finished', j.log.read_text()

@really
def test_a_program_that_the_image_does_not_have(job):
    j = job(command=['no-such-program'])
    assert wait(lambda: j.final)['state'] == 'failed' and 'failed to exec' in j.log.read_text() or 'no such command' in j.final['reason']

@really
def test_the_project_s_image_has_to_be_there_and_of_its_lock(job, podman, tmp_path):
    project, _ = podman
    spec = dict(container=True, cwd=str(project))
    assert check_container(spec).kind == 'podman'
    shutil.copytree(project, tmp_path/'moons')
    (tmp_path/'moons'/'requirements.txt').write_text('alpha==1.0\n')
    with pytest.raises(MlstackError, match='another lock.*podman build -t localhost/moons'): check_container(spec | dict(cwd=str(tmp_path/'moons')))
    (tmp_path/'moons'/'pyproject.toml').write_text((project/'pyproject.toml').read_text().replace('"moons"', '"suns"'))
    with pytest.raises(MlstackError, match='no image localhost/suns'): check_container(spec | dict(cwd=str(tmp_path/'moons')))
    assert source(project).name == 'moons'
