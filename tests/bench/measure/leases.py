"""leases.py [--processes 50] [--total 10000] [--kills 100]: processes that race for the two devices of a made-up machine, some of which are killed at random moments.
A witness that knows nothing of leases, a lock of its own for each device, says whether two ever held one. Then the time from a holder's SIGKILL to the moment a waiter has the device."""
import argparse, json, os, random, signal, subprocess, sys, tempfile, time
from pathlib import Path

racer = '''
import fcntl, os, random, sys, time
from pathlib import Path
from mlstack.resources.leases import Machine, lease
folder, total = Path(sys.argv[1]), int(sys.argv[2])
of = Machine({'GPU-a': 1 << 30, 'GPU-b': 1 << 30}, (0,), 1 << 30, folder/'locks')
log = os.open(folder/'log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)
witness = {u: os.open(folder/f'witness-{u}', os.O_RDWR | os.O_CREAT) for u in of.gpus}
def alive(pid):
    try: return open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError: return False
def look(u):
    "Lock the witness: a living process that has it is a second holder."
    for _ in range(100):
        try: return fcntl.flock(witness[u], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError: other = int(os.pread(witness[u], 20, 0) or 0)
        time.sleep(.05)  # one that was killed may still be on its way out
        if other and alive(other): os.write(log, b'!'); return
while os.fstat(log).st_size < total:
    with lease(gpus=1, of=of, apply=False) as held:
        look(held.gpus[0])
        os.pwrite(witness[held.gpus[0]], b'%020d' % os.getpid(), 0)
        time.sleep(random.random()*.002)
        os.write(log, b'.')
        fcntl.flock(witness[held.gpus[0]], fcntl.LOCK_UN)
'''

def race(folder, processes, total, kills, seed=0):
    "Let them race; returns the acquisitions, the double holders, and how many were killed."
    start = lambda: subprocess.Popen([sys.executable, '-c', racer, str(folder), str(total)])
    rng, killed, log = random.Random(seed), 0, folder/'log'
    log.touch()
    running = [start() for _ in range(processes)]
    try:
        while True:
            at = log.stat().st_size
            if at >= total: break
            if killed < kills and at > killed*total//(kills + 1):
                i = rng.randrange(len(running))
                time.sleep(rng.random()*.003)
                running[i].kill(); running[i].wait()
                running[i] = start()
                killed += 1
            else: time.sleep(.002)
            if any(o.poll() not in (None, 0, -signal.SIGKILL) for o in running): raise RuntimeError('a racer failed')
        for o in running: o.wait()
    finally:
        for o in running: o.kill()
        for o in running: o.wait()
    said = log.read_bytes()
    return said.count(b'.'), said.count(b'!'), killed

def freed(folder, times):
    "Seconds from a holder's SIGKILL to the moment the one who waits has the device."
    from mlstack.resources.leases import Machine
    of = Machine({'GPU-a': 1 << 30}, (0,), 1 << 30, folder/'locks')
    code = f"import time\nfrom pathlib import Path\nfrom mlstack.resources.leases import Machine, lease\nheld = lease(gpus=1, of=Machine({of.gpus!r}, (0,), 1 << 30, Path({str(of.folder)!r})))\nprint(1, flush=True)\ntime.sleep(600)"
    waiter = f"import sys, time\nfrom pathlib import Path\nfrom mlstack.resources.leases import Machine, lease\nwith lease(gpus=1, of=Machine({of.gpus!r}, (0,), 1 << 30, Path({str(of.folder)!r})), tell=lambda _: print('waiting', flush=True)): print(time.monotonic(), flush=True)"
    took = []
    for _ in range(times):
        p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        q = subprocess.Popen([sys.executable, '-c', waiter], stdout=subprocess.PIPE, text=True)
        q.stdout.readline()
        time.sleep(random.random()*.2)
        at = time.monotonic()
        p.kill()
        took.append(float(q.stdout.readline()) - at)
        p.wait(); q.wait()
    return sorted(took)

def alone(folder, times=2000):
    "Seconds of CPU of taking a lease and giving it back, nobody else there."
    from mlstack.resources.leases import Machine, lease
    of = Machine({'GPU-a': 1 << 30}, (0,), 1 << 30, folder/'locks')
    start = time.process_time()
    for _ in range(times):
        with lease(gpus=1, of=of, apply=False): pass
    return (time.process_time() - start)/times

if __name__ == '__main__':
    a = argparse.ArgumentParser()
    for k, v in dict(processes=50, total=10000, kills=100, frees=50).items(): a.add_argument(f'--{k}', type=int, default=v)
    a = a.parse_args()
    with tempfile.TemporaryDirectory() as d:
        start = time.monotonic()
        n, double, killed = race(Path(d), a.processes, a.total, a.kills)
        each = (time.monotonic() - start)/n
        from mlstack.resources.leases import Machine, lease
        with lease(gpus=2, of=Machine({'GPU-a': 1 << 30, 'GPU-b': 1 << 30}, (0,), 1 << 30, Path(d)/'locks')): pass  # clears away what the last kill left
        left = [o for o in os.listdir(Path(d)/'locks') if o != 'door']
        took = freed(Path(d), a.frees)
        print(json.dumps(dict(acquired=n, double=double, killed=killed, left=len(left), each=each*1e3, median=took[len(took)//2]*1e3, most=took[-1]*1e3, alone=alone(Path(d))*1e6)))
