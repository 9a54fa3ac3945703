"""slurm.py {mlstack,submitit} {plain,accounting}: three jobs on a real SLURM: a function, an array of four, and a job that is preempted and goes on from its checkpoint.
Seconds from the call to the result, at most 60 for each of the first two and 240 for the third, which computes for 30; the lines are those of the functions below, as a user writes them."""
import inspect, json, os, subprocess, sys, tempfile, threading, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from tests.slurm import Slurm

bound, long = 60., 240.  # seconds that are waited for the first two jobs, and for the third

class Mlstack:
    def setup():
        from mlstack.resources.submitting import submit
        return submit

    def function(submit):
        def add(a, b): return a + b
        return submit(add, 1, 2, on='slurm')

    def array(submit):
        def square(x): return x*x
        return submit(square, array=[0, 1, 2, 3], on='slurm')

    def preempted(submit):
        def count(upto):
            import time
            from pathlib import Path
            from mlstack.core import context
            saved = Path(context().checkpoints, 'step')
            saved.parent.mkdir(exist_ok=True)
            began = step = int(saved.read_text()) if saved.exists() else 0
            while step < upto:
                context().stop.check()
                time.sleep(.2)
                step += 1
                saved.write_text(str(step))
            return began, step
        return submit(count, 150, on='slurm', cpus=4, requeue=True, slurm=dict(partition='spot'))

    def result(job): return job.result(timeout=long)
    def number(job): return json.loads((job.record/'handle.json').read_text())['slurm']

class Submitit:
    def setup():
        import submitit
        executor = submitit.AutoExecutor(folder='logs')
        executor.update_parameters(timeout_min=5, slurm_partition='main')
        return executor

    def function(executor):
        def add(a, b): return a + b
        return executor.submit(add, 1, 2)

    def array(executor):
        def square(x): return x*x
        return executor.map_array(square, [0, 1, 2, 3])

    def preempted(executor):
        import submitit
        class Count:
            def __call__(self, upto, folder):
                import time
                from pathlib import Path
                saved = Path(folder, 'step')
                began = step = int(saved.read_text()) if saved.exists() else 0
                while step < upto:
                    time.sleep(.2)
                    step += 1
                    saved.write_text(str(step))
                return began, step
            def checkpoint(self, *args):
                return submitit.helpers.DelayedSubmission(self, *args)
        executor.update_parameters(slurm_partition='spot', cpus_per_task=4)
        return executor.submit(Count(), 150, os.getcwd())

    def result(job): return [o.result() for o in job] if isinstance(job, list) else job.result()
    def number(job): return job.job_id

def lines(who):
    "What a user writes for all three, without blank lines and this file's own frame."
    return sum(len([l for l in inspect.getsource(getattr(who, o)).splitlines() if l.strip()]) - 1 for o in ('setup', 'function', 'array', 'preempted'))

def within(get, seconds):
    "What `get` answers, or None after so many seconds: it may hang."
    found = []
    t = threading.Thread(target=lambda: found.append(get()), daemon=True)
    t.start()
    t.join(seconds)
    return found[0] if found else None

def slurm(*command): return subprocess.run(command, capture_output=True, text=True).stdout.strip()

def measure(who):
    handle, took = who.setup(), {}
    for name, expected in (('function', 3), ('array', [0, 1, 4, 9])):
        began = time.monotonic()
        job = getattr(who, name)(handle)
        if (got := within(lambda job=job: who.result(job), bound)) is not None:
            assert got == expected, got
            took[name] = time.monotonic() - began
    began = time.monotonic()
    job = who.preempted(handle)
    while slurm('squeue', '-h', '-j', who.number(job), '-o', '%T') != 'RUNNING': time.sleep(.2)
    time.sleep(2)
    slurm('sbatch', '-p', 'main', '-N2', '-c4', '-o', '/dev/null', '--wrap', 'sleep 1')
    if (got := within(lambda: who.result(job), long - (time.monotonic() - began))) is not None:
        assert got[1] == 150 and got[0] > 0, got
        took['preempted'] = time.monotonic() - began
    return dict(lines=lines(who), done=len(took), **took)

if __name__ == '__main__':
    who, accounting = dict(mlstack=Mlstack, submitit=Submitit)[sys.argv[1]], sys.argv[2] == 'accounting'
    with tempfile.TemporaryDirectory() as tmp, Slurm(nodes=2, cpus=4, accounting=accounting) as cluster:
        os.chdir(tmp)
        os.environ |= dict(PATH=f'{cluster.tools}:{os.environ["PATH"]}', MLSTACK_STATE=f'{tmp}/state', MLSTACK_RUNS=f'{tmp}/runs')
        found = measure(who)
        slurm('scancel', '-u', str(os.getuid()))
        print(json.dumps(found), flush=True)
        os.chdir('/')
    os._exit(0)  # a thread may still wait
