"steps.py WHO [log] [fused]: calls and CPU time of a training step of the reference MLP, for one of raw, mlstack, accelerate, lightning."
import json, logging, os, sys, tempfile, threading, time, warnings
from functools import partial
import torch, torch.nn as nn, torch.nn.functional as F

who, log, fused = sys.argv[1], 'log' in sys.argv, 'fused' in sys.argv
torch.set_num_threads(1)
warnings.filterwarnings('ignore')
logging.disable(logging.WARNING)
torch.manual_seed(0)
batches = [(torch.randn(32, 64), torch.randint(0, 10, (32,))) for _ in range(50)]

def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

class Batches:
    "Ready batches, `n` of them, over and over."
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __iter__(self): return (batches[i % len(batches)] for i in range(self.n))

adamw = partial(torch.optim.AdamW, lr=1e-3, **(dict(fused=True) if fused else {}))
plain_adamw = partial(torch.optim.AdamW, lr=1e-3)

# Each makes fit(n): a whole fit of n steps. What is made once stands outside it.

def raw(adamw=adamw):
    model = mlp()
    opt = adamw(model.parameters())
    def fit(n):
        for x, y in Batches(n):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
    return fit

def mlstack():
    from mlstack.trainer import Trainer
    run = None
    if log:
        import mlstack.tracking as track
        run = track.init(project='bench', dir=tempfile.mkdtemp())
    def fit(n): Trainer(mlp(), Batches(n), loss=F.cross_entropy, opt=torch.optim.AdamW, lr=1e-3, run=run).fit(steps=n)
    fit.close = run.finish if run else lambda: None
    return fit

def accelerate():
    from accelerate import Accelerator
    acc = Accelerator(cpu=True)
    model = mlp()
    model, opt = acc.prepare(model, adamw(model.parameters()))
    def fit(n):
        for x, y in Batches(n):
            loss = F.cross_entropy(model(x), y)
            acc.backward(loss)
            opt.step()
            opt.zero_grad()
    return fit

def lightning():
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import CSVLogger
    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = mlp()
        def training_step(self, batch, i):
            x, y = batch
            loss = F.cross_entropy(self.model(x), y)
            if log: self.log('loss', loss)
            return loss
        def configure_optimizers(self): return adamw(self.parameters())
    def fit(n):
        more = dict(logger=CSVLogger(tempfile.mkdtemp()), log_every_n_steps=1) if log else dict(logger=False)
        pl.Trainer(max_steps=n, accelerator='cpu', devices=1, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **more).fit(Lit(), Batches(n))
    return fit

def calls(make, n):
    "Python and C calls from making the trainer to the end of n steps, in every thread that is started on the way."
    count = 0
    def tick(frame, event, arg):
        nonlocal count
        if event == 'call' or event == 'c_call': count += 1
    threading.setprofile(tick)
    sys.setprofile(tick)
    fit = make()
    fit(n)
    getattr(fit, 'close', lambda: None)()
    sys.setprofile(None)
    threading.setprofile(None)
    return count

def per_step(f, short, long): return (f(long) - f(short))/(long - short)

def seconds(fit, n):
    "CPU time of the whole process, every thread of it."
    start = time.process_time()
    fit(n)
    return time.process_time() - start

out, sys.stdout = sys.stdout, open(os.devnull, 'w')
make, make_plain = dict(raw=raw, mlstack=mlstack, accelerate=accelerate, lightning=lightning)[who], partial(raw, plain_adamw)
fit, plain, ratios = make(), make_plain(), []
for f in (fit, plain): f(30)
for _ in range(3):
    a = per_step(lambda n: seconds(plain, n), 50, 300)
    b = per_step(lambda n: seconds(fit, n), 50, 300)
    ratios.append(b/a)
getattr(fit, 'close', lambda: None)()
base, mine = per_step(lambda n: calls(make_plain, n), 20, 120), per_step(lambda n: calls(make, n), 20, 120)
sys.stdout = out
print(json.dumps(dict(calls=round(mine), extra=round(mine - base), ratio=sorted(ratios)[len(ratios)//2])))
