"workers.py WHO: seconds to run a function in two processes, the first time and the third."
import json, os, sys, time
import torch  # noqa: F401  (as in a notebook that trains)

def own():
    from mlstack.workers import run
    return lambda: run(os.getpid, nprocs=2)

def futures():
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    def call():
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('forkserver')) as pool: return [o.result() for o in [pool.submit(os.getpid) for _ in range(2)]]
    return call

def nothing(rank): return rank

def spawn():
    import torch.multiprocessing as mp
    return lambda: mp.spawn(nothing, nprocs=2)

if __name__ == '__main__':
    call, took = dict(mlstack=own, futures=futures, spawn=spawn)[sys.argv[1]](), []
    for _ in range(3):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    print(json.dumps(dict(first=took[0], again=took[2])))
