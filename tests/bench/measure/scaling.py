"A training with DDP on N processes of this machine, and what the simulator says of it from a link fitted to other sizes."
import json, statistics, sys, time
import torch
from torch import nn
import torch.nn.functional as F
from mlstack.ddp import launch
from mlstack.ddp.simulation import Topology, buckets, collective, fit, measure

n = int(sys.argv[1])
fitted, held_out = [2**12, 2**16, 2**19, 2**21, 2**24], [2**14, 2**18, 2**20, 3*2**21, 2**23]

def network():
    torch.manual_seed(0)
    return nn.Sequential(*[o for _ in range(4) for o in (nn.Linear(1024, 1024), nn.ReLU())], nn.Linear(1024, 10))

def timed(model, opt, x, y, sync, steps):
    "Seconds of each step; all processes begin each together."
    import torch.distributed as dist
    out = []
    for _ in range(steps):
        if n > 1: dist.barrier()
        began = time.perf_counter()
        if sync or n == 1:
            F.cross_entropy(model(x), y).backward()
        else:
            with model.no_sync(): F.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()
        out.append(time.perf_counter() - began)
    return out

def slowest(times):
    "The median step of the slowest process."
    import torch.distributed as dist
    t = torch.tensor(times)
    if n > 1: dist.all_reduce(t, dist.ReduceOp.MAX)
    return t.median().item()

def rank():
    torch.set_num_threads(1)
    x, y = torch.randn(128, 1024), torch.zeros(128).long()
    model = network() if n == 1 else nn.parallel.DistributedDataParallel(network(), gradient_as_bucket_view=True)
    opt = torch.optim.SGD(model.parameters(), lr=1e-3)
    alone, together = [], []
    timed(model, opt, x, y, True, 3)
    for _ in range(6): # in turns, so that a machine that slows down slows both
        alone += timed(model, opt, x, y, False, 5)
        together += timed(model, opt, x, y, True, 5)
    sizes = measure(fitted + held_out, repeats=15) if n > 1 else {}
    return slowest(alone), slowest(together), sizes, sum(p.numel()*4 for p in model.parameters())

alone, step, sizes, gradients = launch(rank, nprocs=n, timeout=240, threads=1)[0]
out = dict(step=1e3*step, throughput=128*n/step)
if n > 1:
    link = fit({s: sizes[s] for s in fitted}, n)
    here = Topology(1, n, link, link, gpu=None, start=0.)
    off = [collective(here, 'all_reduce', s, n)/sizes[s] - 1 for s in held_out]
    shown = alone + sum(collective(here, 'all_reduce', b, n) for b in buckets(gradients))
    hidden = max(alone, shown - alone*2/3)
    out |= dict(bandwidth=link.bandwidth/1e6, latency=1e6*link.latency, sizes=100*statistics.median(map(abs, off)), predicted=1e3*shown, error=100*(shown/step - 1), hidden=1e3*hidden)
print(json.dumps(out))
