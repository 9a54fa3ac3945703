"Jobs in Kubernetes: manifests against published schemas, the official client against a stand-in that runs the pods (tests/kube.py); a real cluster is not here."
import json, os, re
import pytest
from mlstack.core import MlstackError
from mlstack.resources import kubernetes
from mlstack.resources.kubernetes import Kubernetes, _standing, _why_ended, _why_waiting, manifests, name_of
from mlstack.resources.records import new_record
from tests import house
from tests.bench import peers

@pytest.mark.server
def test_jobs_through_the_official_client(tmp_path):
    "Schemas, functions, failure, retries, several pods, TrainJob and RayJob, cancel, Kueue, a volume; and a cluster that says 401, 403, 409, 429, 5xx or nothing."
    try: python = peers.python_of('kubernetes')
    except (RuntimeError, OSError) as e: pytest.skip(f"Kubernetes' client cannot be installed here: {e}")
    env = {k: v for k, v in house.environment(MLSTACK_STATE=tmp_path/'state', MLSTACK_PROGRESS='no').items() if 'proxy' not in k.lower() and k != 'KUBECONFIG'}
    r = house.run(python, '-m', 'tests.kubernetes_interop', tmp_path, env=env, timeout=400, leave_nothing=True)
    assert r.returncode == 0, r.stdout[-4000:]
    every = 'schemas function failure retries nodes kinds cancelled killed queued trouble volume nobody'.split()
    assert [o for o in r.stdout.split() if o in every] == every, r.stdout

spec = dict(id='1m84abc', name='moons', kind='function', cwd='/data/moons', container='r/moons:1', want=dict(gpus=0, gpu_mem=0, cpus=1, mem=0))

@pytest.mark.parametrize('name', ['; rm -rf /', '$(id)', 'a\nb', 'Ünïcode', '', '-', '3', 'x'*200, '../..', None])
def test_a_name_is_a_label(name):
    made = name_of(spec | dict(name=name))
    assert re.fullmatch(r'[a-z]([-a-z0-9]*[a-z0-9])?', made) and len(made) <= 52 and made.endswith('-1m84abc')   # 63, less what is put behind it

def test_secrets_are_only_named():
    text = Kubernetes(image='x').text(spec | dict(env=dict(TOKEN='very secret', PATH='/bin', LR='1'), secrets=['TOKEN'], given=['LR']))
    assert 'very secret' not in text and '/bin' not in text and 'secretKeyRef' in text and 'LR' in text

def test_what_is_said_in_variables(monkeypatch):
    monkeypatch.setenv('MLSTACK_K8S_QUEUE', 'gpus')
    monkeypatch.setenv('MLSTACK_K8S_KIND', 'TrainJob')
    made = manifests(spec, Kubernetes().whole())[0]
    assert made['kind'] == 'TrainJob' and made['metadata']['labels']['kueue.x-k8s.io/queue-name'] == 'gpus' and made['spec']['suspend']
    assert Kubernetes(queue='other').whole().queue == 'other'
    monkeypatch.setenv('MLSTACK_K8S_KIND', 'PyTorchJob')
    with pytest.raises(MlstackError, match="'PyTorchJob' is no kind.*TrainJob"): kubernetes.text(spec)

def test_a_disruption_starts_again_only_what_says_so():
    action = lambda **more: manifests(spec | more, Kubernetes())[0]['spec']['podFailurePolicy']['rules'][0]['action']
    assert action() == 'FailJob' and action(requeue=True) == 'Ignore'

@pytest.mark.parametrize('more, why', [(dict(container=None), 'which image'), (dict(container=True), 'which image'), (dict(constraint='a b'), 'rite a label'), (dict(want=dict(gpus=1, gpu_mem=.5)), 'whole devices')])
def test_bad_wishes(more, why):
    with pytest.raises(MlstackError, match=why): kubernetes.text(spec | more)

def test_without_the_client(monkeypatch, tmp_path):
    monkeypatch.setenv('MLSTACK_STATE', str(tmp_path))
    monkeypatch.setattr('builtins.__import__', lambda name, *a, real=__import__, **k: (_ for _ in ()).throw(ImportError(name)) if name == 'kubernetes' else real(name, *a, **k))
    with pytest.raises(MlstackError, match="client is not installed.*pip install kubernetes"): kubernetes.check(spec)
    job = new_record(dict(spec, on='k8s'), handle_json=json.dumps(dict(name='x', namespace='n', context='', kind='Job', key='k')).encode())
    assert kubernetes.look(job)['state'] == 'waiting' and 'not installed' in kubernetes.look(job)['why'] and not job.final
    assert os.stat(job/'handle.json').st_mode & 0o077 == 0

def test_what_a_job_says_of_itself():
    said = lambda *types, **more: _standing('Job', dict(conditions=[dict(type=o, status='True', reason='R', message='m') for o in types], **more), False)
    assert said('Complete') == ('finished', '') and said('Failed') == ('failed', 'R m') and said('Suspended')[0] == 'waiting'
    assert said('SuccessCriteriaMet', ready=1)[0] == 'running' and said(active=1, ready=0) == ('waiting', '')
    assert _standing('Job', dict(conditions=[dict(type='Complete', status='False')]), False)[0] == 'waiting'
    ray = lambda job, end: _standing('RayJob', dict(jobStatus=job, jobDeploymentStatus=end), False)[0]
    assert [ray('SUCCEEDED', 'Complete'), ray('FAILED', 'Failed'), ray('', 'Failed'), ray('PENDING', 'Initializing')] == ['finished', 'failed', 'failed', 'waiting']
    assert _standing('TrainJob', dict(jobsStatus=[dict(name='node', ready=0, active=0)]), False)[0] == 'waiting'
    assert _why_waiting([]) == 'no pod yet' and _why_ended([]) == ''

def test_a_class_of_priority():
    pod = lambda at, **more: manifests(spec | more, at)[0]
    assert pod(Kubernetes(priority='high'), priority=3)['spec']['template']['spec']['priorityClassName'] == 'high'
    queued = pod(Kubernetes(priority='high', queue='gpus'))
    assert queued['metadata']['labels']['kueue.x-k8s.io/priority-class'] == 'high' and 'priorityClassName' not in queued['spec']['template']['spec']
    with pytest.raises(MlstackError, match='classes of them.*MLSTACK_K8S_PRIORITY'): pod(Kubernetes(), priority=3)
    with pytest.raises(MlstackError, match='no PriorityClass'): pod(Kubernetes(kind='TrainJob', priority='high'))

def test_what_kubernetes_does_not_have(monkeypatch, tmp_path):
    monkeypatch.setenv('MLSTACK_STATE', str(tmp_path))
    first = new_record(dict(spec, on='k8s', command=['true']))
    with pytest.raises(MlstackError, match='k8s has no after'): kubernetes.check(spec | dict(after=[first.id]))
    with pytest.raises(MlstackError, match='room for'): kubernetes.check(spec | dict(at_once=2))

@pytest.mark.parametrize('value', ['$(FIRST)', '$$', '$$(FIRST)', '$', 'a$b$(', '; rm -rf $HOME', '$(touch pwned)'])
def test_a_variable_arrives_as_it_was_given(value):
    from tests.kube import expanded
    env = manifests(spec | dict(env=dict(FIRST='1', X=value), given=['FIRST', 'X']), Kubernetes())[0]['spec']['template']['spec']['containers'][0]['env']
    assert expanded(next(o['value'] for o in env if o['name'] == 'X'), dict(FIRST='1')) == value
