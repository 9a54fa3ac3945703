"""launches.py WHO: seconds to call a function on two ranks of a gloo group, the first time and the third, from a process that has imported torch and computed with it, as a notebook has.
WHO is mlstack, spawn, torchrun, accelerate or futures. The function adds a number up over the ranks."""
import json, os, socket, subprocess, sys, time
import torch, torch.distributed as dist

def add(*_):
    t = torch.ones(1)
    dist.all_reduce(t)
    return t.item()

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def in_group(rank, port):
    "What is written for bare processes by hand."
    os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=2)
    try: return add()
    finally: dist.destroy_process_group()

def debugged():
    dist.init_process_group('gloo')
    add()
    dist.destroy_process_group()

def mlstack():
    from mlstack.ddp import launch
    return lambda: launch(add, nprocs=2)

def spawn():
    import torch.multiprocessing as mp
    return lambda: mp.spawn(in_group, (free_port(),), nprocs=2)

def torchrun():
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node=2', '--rdzv-backend=c10d', '--rdzv-endpoint=127.0.0.1:0', '--local-addr=127.0.0.1', __file__, 'rank']
    return lambda: subprocess.run(command, check=True, capture_output=True)

def accelerate():
    from accelerate import debug_launcher
    return lambda: debug_launcher(add, num_processes=2) # it makes the group itself

def futures():
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    def call():
        port = free_port()
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('forkserver')) as pool: return [o.result() for o in [pool.submit(in_group, r, port) for r in (0, 1)]]
    multiprocessing.set_forkserver_preload(['torch', 'torch.distributed'])
    return call

if __name__ == '__main__':
    if sys.argv[1] == 'rank': debugged(); sys.exit()
    torch.nn.Linear(100, 100)(torch.ones(100, 100)).sum().backward()
    call, took = dict(mlstack=mlstack, spawn=spawn, torchrun=torchrun, accelerate=accelerate, futures=futures)[sys.argv[1]](), []
    for _ in range(3):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    print(json.dumps(dict(first=took[0], again=took[2])))
