"""ranks.py WHO [--ranks 2]: training steps of 2 processes (gloo) of WHO beside raw DDP in the same processes, fits of the two in turns.
WHO is raw, mlstack, lightning, accelerate or fabric. Prints JSON: steps a second over raw DDP's (wall and CPU time), Python calls and collectives of a step, and beyond raw DDP's."""
import json, logging, os, socket, subprocess, sys, threading, time, warnings
import torch, torch.distributed as dist, torch.nn as nn, torch.nn.functional as F

who = sys.argv[1]
ranks = int(sys.argv[sys.argv.index('--ranks') + 1]) if '--ranks' in sys.argv else 2
width, size, chunk, stamps, seen = 512, 64, 16, [], 0

def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

class Batches:
    "Ready batches, `n` of them."
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __iter__(self):
        for i in range(self.n): yield ready[i % len(ready)]

def loss_of(out, y):
    "The loss, and the time every `chunk` of them."
    global seen
    seen += 1
    if not seen % chunk: stamps.append((time.perf_counter(), time.process_time()))
    return F.cross_entropy(out, y)

def adamw(params): return torch.optim.AdamW(params, lr=1e-3)

# Each makes fit(n): a whole fit of n steps on every rank.

def raw():
    ddp = nn.parallel.DistributedDataParallel(mlp(), gradient_as_bucket_view=True, static_graph=True)
    opt = adamw(ddp.parameters())
    def fit(n):
        for x, y in Batches(n):
            loss = loss_of(ddp(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
    return fit

def mlstack():
    from functools import partial
    from mlstack.trainer import Trainer
    # an iterable of batches is dealt out to the ranks, so it has as many more
    def fit(n): Trainer(mlp(), Batches(n*ranks), loss=loss_of, opt=partial(torch.optim.AdamW, foreach=None), lr=1e-3, parallel='ddp').fit(steps=n)
    return fit

def accelerate():
    from accelerate import Accelerator
    acc = Accelerator(cpu=True)
    model = mlp()
    model, opt = acc.prepare(model, adamw(model.parameters()))
    def fit(n):
        for x, y in Batches(n):
            loss = loss_of(model(x), y)
            acc.backward(loss)
            opt.step()
            opt.zero_grad()
    return fit

def fabric():
    from lightning_fabric import Fabric
    fab = Fabric(accelerator='cpu', devices=ranks, strategy='ddp')
    fab.launch()
    model = mlp()
    model, opt = fab.setup(model, adamw(model.parameters()))
    def fit(n):
        for x, y in Batches(n):
            opt.zero_grad()
            loss = loss_of(model(x), y)
            fab.backward(loss)
            opt.step()
    return fit

def lightning():
    import pytorch_lightning as pl
    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = mlp()
        def training_step(self, batch, i): return loss_of(self.model(batch[0]), batch[1])
        def configure_optimizers(self): return adamw(self.parameters())
    def fit(n): pl.Trainer(max_steps=n, accelerator='cpu', devices=ranks, strategy='ddp', use_distributed_sampler=False, logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False).fit(Lit(), Batches(n))
    return fit

def counted(make, n):
    "Python and C calls of every thread, and collectives of the process group, from making the trainer to the end of n steps."
    count, before = 0, dist.group.WORLD._get_sequence_number_for_group()
    def tick(frame, event, arg):
        nonlocal count
        if event == 'call' or event == 'c_call': count += 1
    threading.setprofile(tick)
    sys.setprofile(tick)
    fit = make()
    fit(n)
    sys.setprofile(None)
    threading.setprofile(None)
    return count, dist.group.WORLD._get_sequence_number_for_group() - before

def of_a_step(make):
    few, many = counted(make, 20), counted(make, 120)
    return [(b - a)/100 for a, b in zip(few, many)]

def chunks(fit, n):
    "Wall and CPU time of each chunk of a fit; the first one, in which it starts, is left out."
    stamps.clear()
    fit(n)
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(stamps[1:], stamps[2:])]

def median(xs): return sorted(xs)[len(xs)//2]

def against(make, rounds=6, n=10*chunk):
    "Wall and CPU time of raw DDP over those of WHO, of the median chunk; each turn has its own ratio."
    fit, plain, ratios = make(), raw(), []
    for f in (fit, plain): f(2*chunk)
    for _ in range(rounds):
        a, b = chunks(plain, n), chunks(fit, n)
        ratios.append([median([x[i] for x in a])/median([x[i] for x in b]) for i in (0, 1)])
    return [median([r[i] for r in ratios]) for i in (0, 1)]

def rank():
    global ready
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    torch.manual_seed(int(os.environ['RANK']))
    ready = [(torch.randn(size, width), torch.randint(0, 10, (size,))) for _ in range(20)]
    make = globals()[who]
    if who in ('accelerate', 'fabric', 'lightning'): make()(1)  # each joins the group in its own way
    else: dist.init_process_group('gloo')
    of_a_step(raw)
    base = of_a_step(raw)
    of_a_step(make)
    mine = of_a_step(make)
    wall, cpu = against(make)
    if dist.get_rank() == 0: os.write(out, json.dumps(dict(speed=wall, cpu=cpu, calls=round(mine[0] - base[0]), collectives=mine[1] - base[1], raw_collectives=base[1])).encode())
    dist.barrier()
    os._exit(0)

if __name__ == '__main__':
    if 'RANK' in os.environ:
        out, err = os.dup(1), os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # their bars
        rank()
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = dict(os.environ, MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), GLOO_SOCKET_IFNAME='lo', OMP_NUM_THREADS='1')
    ps = [subprocess.Popen([sys.executable, *sys.argv], env=env | dict(RANK=str(r), LOCAL_RANK=str(r)), stdout=subprocess.PIPE if r == 0 else subprocess.DEVNULL) for r in range(ranks)]
    try: answer = ps[0].communicate(timeout=280)[0]
    finally:
        for p in ps: p.kill()
    print(answer.decode())
