"""queue.py {mlstack,submitit,tsp}: what a submit costs, how soon a job runs; of mlstack also what a decision with 10,000 waiting jobs costs, and what is lost when runners, keepers, jobs and whole machines are killed."""
import argparse, json, os, random, signal, subprocess, sys, tempfile, time
from pathlib import Path

def processes(folder):
    "The live processes that belong to a queue in this folder: runners, keepers, and what they started."
    found, mark = [], f'MLSTACK_STATE={folder}/state'.encode()
    for p in os.listdir('/proc'):
        if not p.isdigit() or int(p) == os.getpid(): continue
        try:
            if mark in Path('/proc', p, 'environ').read_bytes().split(b'\0') and Path('/proc', p, 'stat').read_text().rpartition(')')[2].split()[0] not in 'ZX': found.append(int(p))
        except OSError: pass
    return found

def kill_one(pid):
    try: os.kill(pid, signal.SIGKILL)
    except ProcessLookupError: pass

def runner_of(folder):
    "The number of the runner's process, from its lock; None if there is none."
    from mlstack.resources import plans
    for o in Path(folder, 'queue').glob('*.runner'):
        if plans._locked(o):
            try: return json.loads(o.read_text())['pid']
            except (ValueError, KeyError): pass

def use(folder):
    "Let this process use a queue of its own on a made-up machine of four cores."
    for k, v in dict(STATE='state', QUEUE='queue', LEASES='locks').items(): os.environ[f'MLSTACK_{k}'] = str(Path(folder, v))
    from mlstack.resources import running
    running.made_folder()
    Path(folder, 'queue', 'policy.json').write_text(json.dumps(dict(machine=dict(gpus={}, cores=[0, 1, 2, 3], memory=8 << 30))))

def spec(folder, command, **kw):
    from mlstack.resources.records import environment_key
    return dict(name='bench', kind='command', on='local', command=command, want=dict(cpus=1), cwd=str(folder), runs=f'{folder}/runs', project='bench', python=sys.executable,
        path=[o for o in sys.path if o], environment=environment_key(), grace=1) | kw

def clear(folder):
    for _ in range(200):
        if not (left := processes(folder)): break
        for p in left: kill_one(p)
        time.sleep(.02)

worker = 'echo "$2" >> "$1/begun"; exec 9>"$1/lock-$2"; flock -n 9 || echo "$2" >> "$1/double"; sleep 0.0$3; echo "$2" >> "$1/ended"'

def storm(folder, jobs, kills, seed=0, patience=300):
    """Submit jobs one after another, every third of which may be run again, while runners, keepers, jobs, or all at once together with the board are killed at random moments.
    Returns what became of them: `lost` without a last word, `twice` begun again without being asked, `double` at the same time."""
    from mlstack.resources import running
    from mlstack.resources.records import new_record
    folder, rng, made, killed = Path(folder), random.Random(seed), [], dict(runner=0, keeper=0, all=0)
    use(folder)
    for o in ('begun', 'ended', 'double'): (folder/o).touch()
    def submit():
        i = len(made)
        made.append(new_record(spec(folder, ['sh', '-c', worker, 'sh', str(folder), str(i), str(rng.randrange(1, 10))], requeue=i % 3 == 0, id=None), sync=False))
        running.start(made[-1:])
    def kill():
        kind = rng.choice(['runner', 'runner', 'keeper', 'keeper', 'all'])
        if kind == 'runner':
            if (pid := runner_of(folder)) is None: return
            kill_one(pid)
        elif kind == 'keeper':
            found = [p for p in processes(folder) if name(p) in ('mlstack-keeper', 'mlstack-job', 'sh')]
            if not found: return
            kill_one(rng.choice(found))
        else: # power fails, and what was not flushed is gone
            clear(folder)
            for o in (folder/'queue').glob('*.*.*.*'):
                if rng.random() < .5: o.unlink(missing_ok=True)
            running.ensure_runners(again=True)
        killed[kind] += 1
    end = time.monotonic() + patience
    try:
        while time.monotonic() < end:
            if len(made) < jobs: submit()
            if sum(killed.values()) < kills and sum(killed.values()) <= kills*len(made)/jobs:
                time.sleep(rng.random()*.05)
                kill()
                running.ensure_runners()
            elif len(made) == jobs:
                if all((o/'final.json').exists() for o in made): break
                running.ensure_runners()
                time.sleep(.02)
        counts = {}
        for o in (folder/'begun').read_text().split(): counts[int(o)] = counts.get(int(o), 0) + 1
        states = [(o.final or {}).get('state') for o in made]
        return dict(jobs=jobs, killed=sum(killed.values()), finished=states.count('finished'), said=states.count('lost') + states.count('failed'), lost=states.count(None), twice=sum(n > 1 for i, n in counts.items() if i % 3),
            double=len((folder/'double').read_text().split()), without=[i for i, s in enumerate(states) if s == 'finished' and not counts.get(i)], kinds=killed)
    finally: clear(folder)

def name(pid):
    try: return Path('/proc', str(pid), 'comm').read_text().strip()
    except OSError: return ''


def middle(xs): return sorted(xs)[len(xs)//2]*1e3

def stamp(): return time.time()

def latencies(submit_function, submit_command, folder, times):
    "Milliseconds of a submit, to the moment at which the function or command is there, and to the result of the function."
    took = dict(submit=[], function=[], result=[], command=[])
    for i in range(-3, times): # the first ones warm up
        at = time.time()
        if submit_function:
            job = submit_function(stamp)
            submitted, began = time.time(), job.result()
            got = dict(submit=submitted - at, function=began - at, result=time.time() - at)
        else: got = {}
        if submit_command:
            out, at = folder/f'out-{i}', time.time()
            submit_command(['sh', '-c', f'date +%s.%N > {out}.tmp && mv {out}.tmp {out}'])
            got.setdefault('submit', time.time() - at)
            while not out.exists():
                if time.time() > at + 60: raise RuntimeError('the command did not run')
                time.sleep(.001)
            got['command'] = float(out.read_text()) - at
        if i >= 0:
            for k, v in got.items(): took[k].append(v)
        time.sleep(.05)
    return {k: middle(v) for k, v in took.items() if v}

def decisions(folder, many, times):
    "Milliseconds of each of `many` in one submit, and of one step of a runner with so many on the board: what has changed, what has ended, and what is to start, under the lock."
    from mlstack.resources import runners, running
    from mlstack.resources.leases import lease
    from mlstack.resources.records import new_record
    from mlstack.resources.submitting import submit
    use(folder)
    wake, running.wake = running.wake, lambda *a: True
    try:
        at = time.monotonic()
        submit(['true'], array=list(range(many)), project='bench')
        each = (time.monotonic() - at)/many*1e3
        asked = spec(folder, ['true'])
        runner = runners.Runner(key := running.key_of(asked), running._lock(key))
        runners._step(runner) # nothing fits: the machine is leased
        took, cpu = [], []
        with lease(cpus=4, of=runner.machine()[0], apply=False):
            for _ in range(times):
                running.start([new_record(asked, sync=False)]) # so that there is something new
                at, c = time.monotonic(), time.process_time()
                runners._step(runner)
                took.append(time.monotonic() - at); cpu.append(time.process_time() - c)
        os.close(runner.lock)
    finally: running.wake = wake
    return dict(array=each, decision=middle(took), decision_cpu=middle(cpu))

def ours(folder, times, many, kills):
    from mlstack.resources.submitting import submit
    for o in ('a', 'b', 'c'): (folder/o).mkdir()
    use(folder/'a')
    try: found = latencies(lambda f: submit(f, project='bench'), lambda c: submit(c, project='bench'), folder/'a', times)
    finally: clear(folder/'a')
    got = storm(folder/'c', kills + kills//2, kills)
    return found | decisions(folder/'b', many, times) | dict(killed=got['killed'], lost=got['lost'] + len(got['without']), twice=got['twice'] + got['double'])

def with_submitit(folder, times):
    import submitit
    executor = submitit.AutoExecutor(folder=folder/'logs', cluster='local')
    executor.update_parameters(timeout_min=5)
    return latencies(executor.submit, None, folder, times)

def with_tsp(folder, times):
    env = os.environ | dict(TS_SOCKET=str(folder/'socket'), TMPDIR=str(folder))
    tsp = lambda *a: subprocess.run(['tsp', *a], env=env, check=True, stdout=subprocess.DEVNULL)
    tsp('-S', '4')
    try: return latencies(None, lambda c: tsp(*c), folder, times)
    finally: tsp('-K')

if __name__ == '__main__':
    a = argparse.ArgumentParser()
    a.add_argument('who', choices=['mlstack', 'submitit', 'tsp'])
    for k, v in dict(times=21, many=10000, kills=100).items(): a.add_argument(f'--{k}', type=int, default=v)
    a = a.parse_args()
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        print(json.dumps(ours(d, a.times, a.many, a.kills) if a.who == 'mlstack' else with_submitit(d, a.times) if a.who == 'submitit' else with_tsp(d, a.times)))
