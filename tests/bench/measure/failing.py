"""failing.py WHO [--tries 100] [--seed 0]: one of two ranks fails at a random moment while the other waits for it in a collective; how long until the caller knows, and what is left of the ranks and of a process that each has started.
WHO is mlstack, spawn, torchrun or accelerate. Each way of failing in turn: an exception, an exception while there is no memory left, os._exit, SIGKILL, a segmentation fault, sys.exit."""
import argparse, ctypes, json, os, random, signal, subprocess, sys, tempfile, time
import psutil
import torch
import torch.distributed as dist

ways = 'raised', 'no memory', 'exit', 'killed', 'segmentation fault', 'sys.exit'

def fail(how, folder, name, after):
    "Note the moment, then go."
    time.sleep(after)
    with open(os.path.join(folder, f'{name}.at'), 'w') as f: f.write(repr(time.monotonic()))
    if how == 'raised': raise ValueError('the reason')
    if how == 'no memory': torch.empty(1 << 60)
    if how == 'exit': os._exit(7)
    if how == 'killed': os.kill(os.getpid(), signal.SIGKILL)
    if how == 'segmentation fault': ctypes.string_at(0)
    if how == 'sys.exit': sys.exit(3)

def work(how, folder, name, who, after):
    "On each rank: collectives, until one of them does not come any more."
    rank = dist.get_rank()
    child = subprocess.Popen(['sleep', '600'])  # as a loader's worker would be
    for who_is, pid in ((rank, os.getpid()), (f'{rank}.child', child.pid)):
        with open(os.path.join(folder, f'{name}.{who_is}.pid'), 'w') as f: f.write(str(pid))
    t = torch.ones(1000)
    dist.all_reduce(t)
    if rank == who: fail(how, folder, name, after)
    dist.all_reduce(t)
    return rank

def in_group(rank, port, *job):
    "What is written for torch.multiprocessing by hand."
    os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=2)
    work(*job)

def free_port():
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

# Each makes call(job), which raises when it knows that a rank has failed.

def mlstack():
    from mlstack.ddp import launch
    from mlstack.workers import WorkerTimeout
    def call(job):
        try: launch(work, *job, nprocs=2, timeout=60, output='none')
        except WorkerTimeout: raise SystemExit('nobody noticed')
    return call

def spawn():
    import torch.multiprocessing as mp
    return lambda job: mp.spawn(in_group, (free_port(), *job), nprocs=2)

def torchrun():
    def call(job):
        command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node=2', '--rdzv-backend=c10d', '--rdzv-endpoint=127.0.0.1:0', '--local-addr=127.0.0.1', __file__, 'rank']
        if subprocess.run([*command, json.dumps(job)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode: raise RuntimeError('a rank failed')
    return call

def accelerate():
    from accelerate import debug_launcher
    return lambda job: debug_launcher(debugged, tuple(job), num_processes=2)

def debugged(*job):
    dist.init_process_group('gloo')
    work(*job)

def left(folder, name):
    "How many processes were started in this try, and those that still run."
    pids = [int(open(os.path.join(folder, f)).read()) for f in os.listdir(folder) if f.startswith(f'{name}.') and f.endswith('.pid')]
    def alive(pid):
        try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess: return False
    return len(pids), [p for p in pids if alive(p)]

def one(call, how, folder, name, rng):
    "Seconds until the caller knew, and how many of the processes were still there then, and a second later."
    job = [how, folder, name, rng.randrange(2), rng.random()*.05]
    try: call(job)
    except Exception: known = time.monotonic()
    else: raise AssertionError(f'{how}: the caller was told that all went well')
    (started, dying), end = left(folder, name), known + 1
    while (still := left(folder, name)[1]) and time.monotonic() < end: time.sleep(.002)
    for pid in still: os.kill(pid, signal.SIGKILL)
    assert started == 4, f'{how}: {started} processes had started'
    return known - float(open(os.path.join(folder, f'{name}.at')).read()), len(dying), len(still)

def quantile(xs, q): return sorted(xs)[min(int(q*len(xs)), len(xs) - 1)]

if __name__ == '__main__':
    torch.set_num_threads(1)
    if sys.argv[1] == 'rank':
        dist.init_process_group('gloo')
        work(*json.loads(sys.argv[2]))
        sys.exit()
    parse = argparse.ArgumentParser()
    parse.add_argument('who')
    parse.add_argument('--tries', type=int, default=100)
    parse.add_argument('--seed', type=int, default=0)
    args = parse.parse_args()
    rng, seconds, dying, still, by_way = random.Random(args.seed), [], 0, 0, {}
    out, err = os.dup(1), os.dup(2)
    for fd in (1, 2): os.dup2(os.open(os.devnull, os.O_WRONLY), fd)  # tracebacks of ranks
    try:
        call = dict(mlstack=mlstack, spawn=spawn, torchrun=torchrun, accelerate=accelerate)[args.who]()
        with tempfile.TemporaryDirectory() as folder:
            for i in range(args.tries):
                took, now, later = one(call, ways[i % len(ways)], folder, f'try{i}', rng)
                seconds.append(took)
                by_way.setdefault(ways[i % len(ways)], []).append(took)
                dying, still = dying + now, still + later
    finally:
        os.dup2(out, 1)
        os.dup2(err, 2)
    print(json.dumps(dict(tries=args.tries, seconds=quantile(seconds, .5), p95=quantile(seconds, .95), most=max(seconds), dying=dying, left=still, ways={k: max(v) for k, v in by_way.items()})))
