"Jobs on a real Ray cluster of one node: `python -m tests.ray_jobs_interop FOLDER` in an environment that has Ray, on a machine that hears nobody else; see test_ray_jobs.py."
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle

from mlstack.core import MlstackError
from mlstack.resources import ray_jobs
from mlstack.resources.records import Record, new_record, state_folder

folder = Path(sys.argv[1])
port = int(os.environ.get('RAY_ADDRESS', '').rpartition(':')[2] or 6400+os.getpid()%500) # Ray looks for clusters of the same address among all processes


def head():
    "A cluster that belongs to nobody: four cores, two GPUs that are only counted."
    command = [str(Path(sys.executable).parent/'ray'), 'start', '--head', '--block', '--node-ip-address=127.0.0.1', f'--port={port}', '--include-dashboard=false', '--num-cpus=4', '--num-gpus=2', '--object-store-memory=100000000',
        f'--temp-dir={folder}/ray']
    p = subprocess.Popen(command, stdout=open(folder/'head.log', 'w'), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={k: v for k, v in os.environ.items() if k != 'RAY_ADDRESS'})
    wait(lambda: 'Ray runtime started' in (folder/'head.log').read_text() or p.poll() is not None)
    assert p.poll() is None, (folder/'head.log').read_text()
    return p

def wait(done, seconds=300):
    limit = time.monotonic()+seconds
    while not (said := done()) and time.monotonic() < limit: time.sleep(.1)
    assert said, 'it did not come'
    return said


# In the driver, which ends

def half(x):
    import os
    print('on', os.environ['CUDA_VISIBLE_DEVICES'], flush=True)
    return x*2, os.environ['CUDA_VISIBLE_DEVICES']

def broken(): raise ValueError('no such moon')

def slow():
    import time
    print('began', flush=True)
    time.sleep(2)
    return 'the driver was gone'

def endless():
    import time
    print('began', flush=True)
    while True: time.sleep(.1)

def at_second(marks):
    from pathlib import Path
    from mlstack.core import context
    Path(marks, str(context().attempt)).touch()
    if context().attempt == 0: raise RuntimeError('the first time')
    return context().attempt

def make(fn=None, *args, command=None, name=None, want=None, **spec):
    spec = dict(name=name or fn.__name__, on='ray', kind='command' if command else 'function', command=command, cwd=str(folder/'work'), runs=str(folder/'runs'), project='moons', run=name or fn.__name__, python=sys.executable, path=sys.path,
        env={k: v for k, v in os.environ.items() if not k.startswith(('MLSTACK_', 'RAY_'))}, want=dict(gpus=0, gpu_mem=0, cpus=1, mem=0) | (want or {}), grace=5) | spec
    secrets = {k: 'very secret' for k in spec.get('secrets', ())}
    ray_jobs.check(spec)
    return new_record(spec, **(dict(call_pkl=cloudpickle.dumps((fn, args, {}))) if fn else {}), **(dict(secrets_json=json.dumps(secrets).encode()) if secrets else {}))

def driver():
    (folder/'work').mkdir(exist_ok=True)
    (folder/'marks').mkdir(exist_ok=True)
    jobs = {f'half{i}': make(half, i, name=f'half{i}', want=dict(gpus=1, gpu_mem=.5)) for i in range(4)}
    ray_jobs.start(list(jobs.values()))
    jobs |= dict(broken=make(broken), slow=make(slow), endless=make(endless), again=make(at_second, str(folder/'marks'), retries=1, backoff=.1),
        command=make(command=[sys.executable, '-c', 'import os, sys; print(sys.argv[1:], os.environ["TOKEN"], os.environ.get("CUDA_VISIBLE_DEVICES"))', '$(x); y'], name='command', secrets=['TOKEN']))
    for o in list(jobs.values())[4:]: ray_jobs.start([o])
    after = make(half, 3, name='after', after=[jobs['slow'].id], want=dict(gpus=1, gpu_mem=.5))
    ray_jobs.start([after])
    never = make(half, 3, name='never', after=[jobs['endless'].id], want=dict(gpus=1, gpu_mem=.5))
    ray_jobs.start([never])
    for wrong, why in ((dict(want=dict(gpus=3)), 'most that one has: 4 CPU, 2 GPU'), (dict(nodes=2), '2 machines'), (dict(container='x'), 'image of its node'), (dict(gpu='h100', want=dict(gpus=1)), 'accelerator_type:H100')):
        try: make(half, name='wrong', **wrong); raise AssertionError(f'{wrong} was taken')
        except MlstackError as e: assert why in str(e), e
    (folder/'jobs.json').write_text(json.dumps({k: o.id for k, o in (jobs | dict(after=after, never=never)).items()}))


# And in another process

def value(job):
    kind, said = pickle.loads((job/'result.pkl').read_bytes())
    return pickle.loads(said) if kind == 'done' else said

def until(job, *states):
    said = wait(lambda: (o := ray_jobs.look(job))['state'] in states and o)
    return job.final or said

def travelled(jobs):
    "As if the machines had no common disk: the job's own folder is not what the task sees."
    job = make(half, 21, name='travelled', want=dict(gpus=1, gpu_mem=.5), secrets=['TOKEN'])
    pack, place = ray_jobs.pack, ray_jobs._place
    ray_jobs.pack, ray_jobs._place = lambda job: pack(job, cwd=str(folder/'work'), runs=str(folder/'far runs')), lambda job: '/nowhere'
    try: ray_jobs.start([job])
    finally: ray_jobs.pack, ray_jobs._place = pack, place
    assert until(job, 'finished', 'failed')['state'] == 'finished', (job.final, job.log.read_text() if job.log.exists() else '')
    assert value(job)[0] == 42 and job.log.exists() and 'on ' in job.log.read_text() and not (job/'ray.out').exists(), (os.listdir(job.path), job.log.exists() and job.log.read_text())
    assert (folder/'runs'/'moons'/'travelled'/'meta.json').exists(), 'its run did not come home'
    assert not os.listdir(state_folder('ray', 'jobs')), 'its folder was left there'

def checks():
    jobs = {k: Record(state_folder('jobs')/v) for k, v in json.loads((folder/'jobs.json').read_text()).items()}
    got = [value(jobs[f'half{i}']) for i in range(4) if until(jobs[f'half{i}'], 'finished', 'failed')['state'] == 'finished']
    assert [o[0] for o in got] == [0, 2, 4, 6], (got, [(jobs[f'half{i}'].final, *(o.read_text()[-1500:] for o in (jobs[f'half{i}'].log, jobs[f'half{i}']/'ray.out') if o.exists())) for i in range(4)])
    assert {o[1] for o in got} <= {'0', '1'} and all(o[1] in jobs[f'half{i}'].log.read_text() for i, o in enumerate(got)), got
    print('fractions', flush=True)
    final = until(jobs['broken'], 'finished', 'failed')
    assert final['state'] == 'failed' and final['reason'] == 'ValueError: no such moon', final
    assert 'in broken' in value(jobs['broken'])['text']
    print('failure', flush=True)
    assert until(jobs['slow'], 'finished', 'failed')['state'] == 'finished' and value(jobs['slow']) == 'the driver was gone'
    assert until(jobs['again'], 'finished', 'failed')['state'] == 'finished' and value(jobs['again']) == 1 and [o['state'] for o in jobs['again'].attempts()] == ['failed', 'finished']
    assert sorted(os.listdir(folder/'marks')) == ['0', '1']
    print('retries', flush=True)
    assert until(jobs['command'], 'finished', 'failed')['state'] == 'finished' and "['$(x); y'] very secret \n" in jobs['command'].log.read_text(), jobs['command'].log.read_text()
    assert until(jobs['after'], 'finished', 'failed')['state'] == 'finished' and jobs['after'].attempts()[0]['began'] >= jobs['slow'].attempts()[0]['ended']
    print('needs', flush=True)
    until(jobs['endless'], 'running')
    assert ray_jobs.look(jobs['never']) == dict(state='waiting', why='waits for another job', node=None)
    wait(lambda: jobs['endless'].log.exists() and 'began' in jobs['endless'].log.read_text())
    (jobs['endless']/'cancel').write_text('no longer needed')
    ray_jobs.cancel(jobs['endless'], 'no longer needed')
    assert until(jobs['endless'], 'cancelled', 'failed')['state'] == 'cancelled' and jobs['endless'].final['reason'] == 'no longer needed', jobs['endless'].final
    assert until(jobs['never'], 'cancelled', 'finished')['state'] == 'cancelled' and not jobs['never'].attempts()
    print('cancelled', flush=True)
    travelled(jobs)
    print('travelled', flush=True)
    import ray
    wait(lambda: not ray.util.list_named_actors(all_namespaces=True)) # no box is left
    idle = make(endless, name='left')
    ray_jobs.start([idle])
    until(idle, 'running')
    ray.shutdown()
    return idle

def main():
    os.environ['RAY_ADDRESS'] = f'127.0.0.1:{port}'
    p = head()
    try:
        done = subprocess.run([sys.executable, '-m', 'tests.ray_jobs_interop', str(folder), 'driver'])
        assert done.returncode == 0
        left = checks()
    except BaseException: # before the end of the cluster ends this process
        import traceback
        traceback.print_exc()
        sys.stderr.flush()
        p.terminate()
        os._exit(1)
    p.terminate(); p.wait(300)
    wait(lambda: ray_jobs._reachable(os.environ['RAY_ADDRESS'])) # its servers end a little later
    said = ray_jobs.look(left)
    assert said['state'] == 'running' and 'cannot reach Ray' in said['why'] and not left.final, said
    from ray._private.services import find_gcs_addresses
    wait(lambda: os.environ['RAY_ADDRESS'] not in find_gcs_addresses())
    p = head()
    try: said = ray_jobs.look(left)
    finally: p.terminate(); p.wait(300)
    assert said['state'] == 'lost' and 'started anew' in said['why'], said
    print('gone', flush=True)

if __name__ == '__main__': driver() if 'driver' in sys.argv else main()
