"Jobs through the official client of Kubernetes, against tests/kube.py: `python -m tests.kubernetes_interop FOLDER` in an environment that has the client and kubernetes-validate; see test_kubernetes.py."
import copy
import json
import os
import pickle
import sys
import time
from pathlib import Path

import cloudpickle
import jsonschema
import kubernetes_validate

from mlstack.core import MlstackError
from mlstack.resources import kubernetes
from mlstack.resources.kubernetes import Kubernetes, manifests, secret
from mlstack.resources.records import new_record
from tests import house
from tests.kube import Kube

folder = Path(sys.argv[1])
published = json.loads((house.root/'tests'/'data'/'kubernetes.json').read_text())


# Schemas

def of_kubernetes(body):
    try: kubernetes_validate.validate(body, '1.37', strict=True)
    except kubernetes_validate.ValidationError as e: raise ValueError(f'{".".join(map(str, e.path))}: {e.message}')

def as_job(template): return dict(apiVersion='batch/v1', kind='Job', metadata=dict(name='x'), spec=dict(template=copy.deepcopy(template)))

def validate(body):
    "Strictly, also the pods inside custom resources."
    if body['kind'] not in published: return of_kubernetes(body)
    try: jsonschema.validate(body['spec'], published[body['kind']]['spec'])
    except jsonschema.ValidationError as e: raise ValueError(f'{".".join(map(str, e.path))}: {e.message}')
    spec = body['spec']
    if body['kind'] == 'RayJob': templates = [o['template'] for o in (spec['rayClusterSpec']['headGroupSpec'], *spec['rayClusterSpec']['workerGroupSpecs'])]
    else:
        patch = copy.deepcopy(spec['runtimePatches'][0]['trainingRuntimeSpec']['template']['spec']['replicatedJobs'][0]['template']['spec']['template']['spec'])
        patch['containers'][0] |= dict(image=spec['trainer']['image'], env=spec['trainer']['env'], resources=spec['trainer']['resourcesPerNode'])
        templates = [dict(spec=patch)]
    for o in templates:
        o = copy.deepcopy(o)
        o['spec'].setdefault('restartPolicy', 'Never')
        of_kubernetes(as_job(o))

def make(fn=None, *args, command=None, name=None, **spec):
    secrets = spec.pop('secrets', {})
    spec = dict(name=name or fn.__name__, on='k8s', kind='command' if command else 'function', command=command, cwd=str(folder/'work'), runs=str(folder/'runs'), project='moons', python=sys.executable, path=sys.path, container='registry.example/moons:1',
        env=dict(os.environ, LR='0.1'), given=['LR'], secrets=list(secrets), want=dict(gpus=0, gpu_mem=0, cpus=1, mem=2**28), grace=5, code=dict(root=str(folder/'work'))) | spec
    return new_record(dict(spec, run=spec['name']), **(dict(call_pkl=cloudpickle.dumps((fn, args, {}))) if fn else {}), **(dict(secrets_json=json.dumps(secrets).encode()) if secrets else {}))

def wait(done, seconds=300):
    limit = time.monotonic()+seconds
    while not (said := done()) and time.monotonic() < limit: time.sleep(.05)
    assert said, 'it did not come'
    return said

def value(job):
    kind, said = pickle.loads((job/'result.pkl').read_bytes())
    return pickle.loads(said) if kind == 'done' else said

def until(job, *states, at=kubernetes):
    said = wait(lambda: (o := at.look(job))['state'] in states and o)
    return job.final or said

def refused(why, fn, *args):
    try: fn(*args)
    except MlstackError as e: assert why in str(e), e; return e
    raise AssertionError(f'it was not refused: {why}')


# The manifests

def schemas():
    for kind in ('Job', 'TrainJob', 'RayJob'):
        for nodes in (1, 2):
            for more in (dict(), dict(queue='gpus', volume='team', account='me', pull_secret='mine')):
                job = make(name=f"; rm -rf / $(x)\n'{kind}", command=['train', '$(x)\n'], nodes=nodes, want=dict(gpus=8, gpu_mem=0, cpus=4, mem=2**30), gpu='NVIDIA-H100-80GB-HBM3', constraint='zone=eu', requeue=nodes == 2, secrets=dict(TOKEN='very secret'))
                made = manifests(job.spec, Kubernetes(kind=kind, **more))
                for body in made: validate(body)
                validate(secret(job, made[0]['metadata']['name'], 'k'))
                assert 'very secret' not in json.dumps(made) and kubernetes.name_of(job.spec) == made[0]['metadata']['name']
                import yaml
                told = list(yaml.safe_load_all(Kubernetes(kind=kind, **more).text(job.spec)))
                assert told[1:] == made and 'very secret' not in json.dumps(told)
    body = manifests(job.spec, Kubernetes())[0]
    for wrong in (dict(backofLimit=1), dict(completions='two')):
        try: validate(body | dict(spec=body['spec'] | wrong)); raise AssertionError(f'{wrong} was taken')
        except ValueError: pass
    body = manifests(job.spec, Kubernetes(kind='TrainJob'))[0]
    try: validate(body | dict(spec=body['spec'] | dict(podTemplateOverrides=[]))); raise AssertionError('a field of another version was taken')
    except ValueError: pass
    print('schemas', flush=True)


# Jobs

def train(x):
    import os
    import mlstack.tracking as track
    from mlstack.core import context
    with track.init() as run: run.log(loss=x/2)
    print('rate', os.environ['LR'], flush=True)
    return x*2, os.environ['TOKEN'], context().attempt

def broken():
    print('#mlstack-parcel 1/1 aGk= '+'0'*64, flush=True)
    raise ValueError('no such moon')

def second():
    from mlstack.core import context
    if context().attempt == 0: raise RuntimeError('the first time')
    return context().attempt

def endless():
    import time
    import mlstack.tracking as track
    run = track.init()
    print('began', flush=True)
    while True: run.log(x=1); time.sleep(.05)

def rank():
    import os
    return os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ['MASTER_ADDR']

def jobs(cluster):
    one = make(train, 21, secrets=dict(TOKEN='very secret'))
    kubernetes.check(one.spec)
    assert not cluster.things, 'a dry run left something'
    kubernetes.start([one])
    final = until(one, 'finished', 'failed')
    assert final['state'] == 'finished', (final, one.log.read_text())
    assert value(one) == (42, 'very secret', 0) and one.log.read_text() == 'rate 0.1\n', (value(one), one.log.read_text())
    from mlstack.tracking.query import runs
    assert [(o.state, o.summary['loss']) for o in runs(project='moons', dir=str(folder/'runs'))] == [('finished', 10.5)]
    wait(lambda: not cluster.things)   # the Job, its pod, its Secret
    print('function', flush=True)
    bad = make(broken)
    kubernetes.start([bad])
    final = until(bad, 'finished', 'failed')
    assert (final['state'], final['reason']) == ('failed', 'ValueError: no such moon') and 'in broken' in value(bad)['text'] and '0'*64 in bad.log.read_text()
    print('failure', flush=True)
    again = make(second, retries=1, backoff=.1)
    command = make(command=['python', '-c', 'import os, sys; print(sys.argv[1:], os.getcwd())', '$(x)\n; y'], name='command')
    kubernetes.start([again, command])
    assert until(again, 'finished', 'failed')['state'] == 'finished' and value(again) == 1 and [o['state'] for o in again.attempts()] == ['failed', 'finished']
    assert until(command, 'finished', 'failed')['state'] == 'finished' and command.log.read_text() == f"['$(x)\\n; y'] {kubernetes._app}\n", command.log.read_text()
    print('retries', flush=True)
    two = make(rank, nodes=2)
    kubernetes.start([two])
    assert until(two, 'finished', 'failed')['state'] == 'finished' and value(two) == ('0', '2', f'{kubernetes.name_of(two.spec)}-0.{kubernetes.name_of(two.spec)}'), two.log.read_text()
    print('nodes', flush=True)
    for kind in ('TrainJob', 'RayJob'):
        at = Kubernetes(kind=kind)
        job = make(train, 1, name=kind, secrets=dict(TOKEN='t'))
        at.start([job])
        assert until(job, 'finished', 'failed', at=at)['state'] == 'finished' and value(job)[0] == 2
    print('kinds', flush=True)

def asked_to_end(cluster):
    job = make(endless)
    kubernetes.start([job])
    wait(lambda: (kubernetes.fetch(job), job.log.exists() and 'began' in job.log.read_text())[1])
    assert kubernetes.look(job)['state'] == 'running'
    kubernetes.cancel(job, 'no longer needed')
    assert (job.final['state'], job.final['reason']) == ('cancelled', 'no longer needed') and job.attempts()[0]['state'] == 'preempted', (job.final, job.attempts())
    wait(lambda: not cluster.things)
    print('cancelled', flush=True)
    killed = make(endless, name='killed')
    kubernetes.start([killed])
    until(killed, 'running')
    wait(lambda: (kubernetes.fetch(killed), killed.log.exists() and 'began' in killed.log.read_text())[1])
    cluster.kill(kubernetes.name_of(killed.spec))
    final = until(killed, 'failed', 'finished')
    assert final['state'] == 'failed' and 'OOMKilled' in final['reason'] and 'did not come home' in final['reason'], final
    assert 'began' in killed.log.read_text()
    print('killed', flush=True)

def queued(cluster):
    at = Kubernetes(queue='gpus')
    job, never = make(train, 1, secrets=dict(TOKEN='t')), make(train, 1, name='never', secrets=dict(TOKEN='t'))
    at.start([job, never])
    time.sleep(.3)
    assert at.look(job) == dict(state='waiting', why='waits for its turn in the queue', node=None)
    at.cancel(never, 'no')
    assert never.final['state'] == 'cancelled'
    cluster.admit('jobs', kubernetes.name_of(job.spec))
    assert until(job, 'finished', 'failed', at=at)['state'] == 'finished'
    late = make(train, 1, name='late', container='missing/image:1', secrets=dict(TOKEN='t'))
    at = Kubernetes()
    at.start([late])
    assert 'ImagePullBackOff' in wait(lambda: (o := at.look(late)) and 'Image' in o['why'] and o)['why']
    at.cancel(late, 'no')
    print('queued', flush=True)

def trouble(cluster):
    job = make(endless, name='trouble')
    kubernetes.start([job])
    until(job, 'running')
    for cluster.trouble in (500, 503, 429, 'gone'):
        said = kubernetes.look(job)
        assert said['state'] == 'running' and 'cannot reach' in said['why'] and not job.final, said
    cluster.trouble, cluster.token = None, 'another'
    said = kubernetes.look(job)
    assert said['state'] == 'running' and 'does not know who we are' in said['why'] and not job.final, said
    cluster.token, cluster.denied = 'a token', {'jobs'}
    assert 'we may not ask (403)' in kubernetes.look(job)['why'] and not job.final
    refused('we may not ask (403): jobs is forbidden', kubernetes.check, make(endless).spec)
    before = set(cluster.things)
    refused('jobs is forbidden', kubernetes.start, [make(endless)])
    assert set(cluster.things) == before, 'its Secret was left'
    cluster.denied = {'pods'}
    assert 'cannot reach' in kubernetes.look(job)['why'] and not job.final
    cluster.denied = set()
    refused('it is there already (409)', kubernetes.start, [job])
    assert kubernetes.look(job)['state'] == 'running', 'another start of it has ended it'
    with cluster.lock: cluster._delete('jobs', 'lab', kubernetes.name_of(job.spec), 'Background')
    assert kubernetes.look(job)['state'] == 'lost' and job.final['state'] == 'lost'
    refused('which image', kubernetes.check, make(endless, container=None).spec)
    refused('a Secret holds 1 MiB', kubernetes.start, [make(train, os.urandom(2**21))])
    refused('whole devices', kubernetes.check, make(endless, want=dict(gpus=1, gpu_mem=.5)).spec)
    refused('has not finished', kubernetes.check, make(endless, after=[make(endless).id]).spec)
    print('trouble', flush=True)

def nobody():
    "The API server is not there at all."
    job = make(endless, name='nobody')
    (job/'handle.json').write_text(json.dumps(dict(name='x', namespace='lab', context='', kind='Job', key='k', seen='running')))
    said = kubernetes.look(job)
    assert said['state'] == 'running' and 'cannot reach' in said['why'] and not job.final, said
    print('nobody', flush=True)

def volume(cluster):
    "On a volume the state outlives the pod."
    at = Kubernetes(volume='team')
    job = make(second, name='kept', retries=1, backoff=.1)
    at.start([job])
    assert until(job, 'finished', 'failed', at=at)['state'] == 'finished'
    assert (cluster.folder/'claim-team'/'jobs'/job.id/'final.json').exists()
    print('volume', flush=True)

def main():
    (folder/'work').mkdir(); (folder/'app').mkdir()
    kubernetes._app = str(folder/'app')
    schemas()
    with Kube(validate, dict(PYTHONPATH=os.environ['PYTHONPATH'], OMP_NUM_THREADS='1', MLSTACK_PROGRESS='no')) as cluster:
        os.environ['KUBECONFIG'] = str(cluster.kubeconfig)
        jobs(cluster); asked_to_end(cluster); queued(cluster); trouble(cluster); volume(cluster)
        cluster.server.shutdown(); cluster.server.server_close()
        nobody()

if __name__ == '__main__': main()
