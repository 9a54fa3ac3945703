"""jobs.py [--times 30]: milliseconds from a call to the first line of a job, each median of many, on a machine that does nothing else.
Kept: `keeping.start` of a job whose folder is there, warm, to the function's first line and to the command; and the command without the warm server. Submitted: the same through `submit` and the queue."""
import argparse, json, os, sys, tempfile, time
from pathlib import Path

def stamp(path):
    import time
    now = time.time()
    with open(path, 'w') as f: f.write(repr(now))

def median(times): return sorted(times)[len(times)//2]*1e3

def at(path, since):
    "Seconds until what `path` says, which the job writes when it begins."
    while not (path.exists() and path.read_text().strip()): time.sleep(.001)
    return float(path.read_text()) - since

def kept(folder, times, kind, warm=True):
    "Seconds from `start` to the first line."
    import cloudpickle
    from mlstack.resources.keeping import start
    from mlstack.resources.records import held, new_record
    took = []
    for i in range(times + 2):
        said = folder/f'{kind}-{warm}-{i}'
        common = dict(cwd=str(folder), env=dict(os.environ), path=sys.path, runs=str(folder/'runs'), project='bench', name='bench', on='bench')
        if kind == 'function': job = new_record(common | dict(kind=kind), call_pkl=cloudpickle.dumps((stamp, (said,), {})))
        else: job = new_record(common | dict(kind=kind, command=['sh', '-c', 'date +%s.%N > "$1"', 'sh', str(said)]))
        began = time.time()
        start(job, warm=warm)
        took.append(at(said, began))
        while not job.final or held(job): time.sleep(.001)
        time.sleep(.1)  # what it does after its last word is not the next one's
    return took[2:]

def submitted(folder, times, kind):
    "Seconds from `submit` to the first line."
    from mlstack.resources import submit
    took = []
    for i in range(times + 2):
        said = folder/f'submitted-{kind}-{i}'
        began = time.time()
        job = submit(stamp, said) if kind == 'function' else submit(['sh', '-c', 'date +%s.%N > "$1"', 'sh', str(said)])
        took.append(at(said, began))
        job.wait()
        time.sleep(.1)
    return took[2:]

if __name__ == '__main__':
    a = argparse.ArgumentParser()
    a.add_argument('--times', type=int, default=30)
    a.add_argument('--through', choices=['start', 'submit'], default='start')
    a = a.parse_args()
    from mlstack import workers
    with tempfile.TemporaryDirectory() as d:
        for o in ('STATE', 'QUEUE', 'LEASES', 'RUNS'): os.environ[f'MLSTACK_{o}'] = f'{d}/{o.lower()}'
        os.environ['MLSTACK_RUNNER_IDLE'] = '5'
        os.chdir(d)
        if a.through == 'start':
            workers.run(os.getpid)
            time.sleep(3)  # the server gets ready for forks while nobody asks
            print(json.dumps(dict(function=median(kept(Path(d), a.times, 'function')), command=median(kept(Path(d), a.times, 'command')), program=median(kept(Path(d), a.times, 'command', warm=False)))))
        else: print(json.dumps({kind: median(submitted(Path(d), a.times, kind)) for kind in ('function', 'command')}))
