"Jobs on rented machines: the task for SkyPilot, and its program replaced by a stand-in that runs the task's last line; no machine was ever rented."
import json, os, pickle, shlex, sys
import cloudpickle, pytest, yaml
from mlstack.core import MlstackError
from mlstack.resources import clouds
from mlstack.resources.clouds import Sky, task
from mlstack.resources.records import new_record
from tests import house

spec = dict(name='two moons', on='sky', kind='function', gpu='h100', want=dict(gpus=1, gpu_mem=0, cpus=4, mem=2**34), project='moons', run='r', given=['LR'], secrets=['TOKEN'])

stand_in = '''
import json, os, subprocess, sys, yaml
from pathlib import Path
here = Path(os.environ['STAND_IN'])
if (here/'trouble').exists(): sys.exit('not now')
words = sys.argv[2:]
if words[0] == 'launch':
    said = yaml.safe_load(open(words[-1]))
    (here/'asked.json').write_text(json.dumps(dict(words=words, task=said)))
    given = [words[i+1] for i, o in enumerate(words) if o == '--secret']
    assert set(given) == set(said['secrets']), given
    home = here/'home'
    (home/'sky_workdir').mkdir(parents=True)
    (home/'.mlstack-parcel').write_bytes(Path(said['file_mounts']['~/.mlstack-parcel']).read_bytes())
    env = dict(PATH=os.environ['PATH'], HOME=str(home), PYTHONPATH=os.environ['PYTHONPATH'], OMP_NUM_THREADS='1', **said['envs'], **{k: os.environ[k] for k in given})
    line = said['run'].splitlines()[-1].removeprefix('exec python').replace('~', str(home))
    out = open(here/'log', 'w')
    p = subprocess.Popen([sys.executable, *line.split()], env=env, cwd=home/'sky_workdir', stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    (here/'job.json').write_text(json.dumps(dict(name=said['name'], pid=p.pid)))
    p.wait()
    (here/'code').write_text(str(p.returncode))
elif words[0] == 'queue': print(json.dumps([dict(job_name=json.loads((here/'job.json').read_text())['name'], status=(here/'status').read_text() if (here/'status').exists() else 'SUCCEEDED' if (here/'code').read_text() == '0' else 'FAILED', failure_reason=None)] if (here/'job.json').exists() else []))
elif words[0] == 'logs': print(''.join(f'(two-moons, pid=12) {o}' for o in (here/'log').open()), end='')
elif words[0] == 'cancel': (here/'cancelled').write_text(' '.join(words))
'''

@pytest.fixture
def sky(tmp_path, monkeypatch):
    (tmp_path/'sky.py').write_text(stand_in)
    (tmp_path/'sky').write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(tmp_path/"sky.py"))} "$@"\n')
    (tmp_path/'sky').chmod(0o755)
    for k, v in dict(MLSTACK_STATE=tmp_path/'state', MLSTACK_SKY_PROGRAM=tmp_path/'sky', STAND_IN=tmp_path, PYTHONPATH=house.root).items(): monkeypatch.setenv(k, str(v))
    (tmp_path/'work').mkdir()
    def make(fn=None, *args, **more):
        full = spec | dict(cwd=str(tmp_path/'work'), runs=str(tmp_path/'runs'), env=dict(os.environ, LR='0.1'), code=dict(root=str(tmp_path/'work')), grace=5) | more
        return new_record(full, secrets_json=b'{"TOKEN": "very secret"}', **(dict(call_pkl=cloudpickle.dumps((fn, args, {}))) if fn else {}))
    return tmp_path, make

def value(job):
    kind, said = pickle.loads((job/'result.pkl').read_bytes())
    return pickle.loads(said) if kind == 'done' else said

def train(x):
    import os
    print('rate', os.environ['LR'], os.environ['TOKEN'] == 'very secret', flush=True)
    return x*2, os.getcwd()

def test_a_job_goes_there_and_comes_home(sky):
    folder, make = sky
    job = make(train, 21)
    clouds.check(job.spec)
    clouds.start([job])
    said = json.loads((folder/'asked.json').read_text())
    assert 'very secret' not in json.dumps(said) and said['task']['resources']['accelerators'] == dict(H100=1) and said['words'][:3] == ['launch', '--yes', '--detach-run']
    assert os.stat(job/'task.yaml').st_mode & 0o077 == 0 and 'very secret' not in (job/'task.yaml').read_text()
    assert clouds.look(job)['state'] == 'finished', (folder/'log').read_text()
    assert value(job) == (42, str(folder/'home'/'sky_workdir')) and job.log.read_text() == 'rate 0.1 True\n'
    assert (folder/'runs'/'moons'/'r'/'meta.json').exists() and not (job/'secrets.json').exists()

def test_a_failure_says_why(sky):
    _, make = sky
    def broken(): raise ValueError('no such moon')
    job = make(broken)
    clouds.start([job])
    assert clouds.look(job)['state'] == 'failed' and job.final['reason'] == 'ValueError: no such moon' and 'in broken' in value(job)['text']

def test_sky_that_cannot_be_asked_says_nothing_about_the_job(sky):
    folder, make = sky
    job = make(train, 1)
    clouds.start([job])
    (folder/'trouble').touch()
    said = clouds.look(job)
    assert said['state'] == 'waiting' and 'cannot reach SkyPilot' in said['why'] and 'not now' in said['why'] and not job.final
    with pytest.raises(MlstackError, match='cannot reach'): clouds.start([make(train, 1)])
    (folder/'trouble').unlink()
    (folder/'status').write_text('RUNNING')
    assert clouds.look(job)['state'] == 'running'
    (folder/'status').write_text('RECOVERING')
    assert clouds.look(job) == dict(state='waiting', why='recovering')
    (folder/'status').write_text('A_NEW_WORD')
    assert clouds.look(job)['state'] == 'running' and not job.final
    clouds.cancel(job, 'no longer needed')
    assert job.final['state'] == 'cancelled' and 'two-moons-' in (folder/'cancelled').read_text()

def test_a_log_that_is_lost(sky):
    folder, make = sky
    job = make(train, 1)
    clouds.start([job])
    (folder/'log').write_text('nothing of ours\n')
    (folder/'status').write_text('FAILED_NO_RESOURCE')
    assert clouds.look(job)['state'] == 'failed' and job.final['reason'] == 'failed no resource (its record did not come home)'

@pytest.mark.parametrize('more, why', [(dict(gpu=None), 'which GPU'), (dict(want=dict(gpus=1, gpu_mem=.5)), 'whole GPUs'), (dict(container=True), 'cannot see the image')])
def test_bad_wishes(more, why, tmp_path):
    with pytest.raises(MlstackError, match=why): clouds.text(spec | dict(cwd=str(tmp_path)) | more)

def test_without_skypilot(monkeypatch, tmp_path):
    monkeypatch.setenv('MLSTACK_SKY_PROGRAM', 'no-such-program')
    with pytest.raises(MlstackError, match='SkyPilot is not installed.*pip install'): clouds.check(spec | dict(cwd=str(tmp_path)))

def test_nothing_reaches_a_shell_unquoted(tmp_path):
    folder = tmp_path/"a; rm -rf $(x) 'b'"
    folder.mkdir()
    (folder/'requirements.txt').write_text('')
    made = task(spec | dict(id='x', name='; rm -rf /', cwd=str(folder), env=dict(LR='$(id)\n; y')), Sky())
    assert made['name'] == 'rm-rf-x' and made['workdir'] == str(folder) and 'rm -rf' not in made['run'] + made['setup'] and '$(id)' not in made['run'] and made['envs']['LR'] == '$(id)\n; y'
    assert yaml.safe_load(Sky().text(spec | dict(cwd=str(folder))))['secrets'] == dict(TOKEN=None, MLSTACK_KEY_HOME=None)
