"""steps.py WHO [plain|fused] [first]: calls and CPU time of a training step of the reference MLP, bare and with its loss recorded.
WHO is raw, mlstack, fabric, accelerate, ignite, hf, lightning or fastai. With `first`: CPU time of this process up to the end of its first step."""
import json, logging, os, sys, tempfile, threading, time, warnings
from functools import partial
import torch, torch.nn as nn, torch.nn.functional as F

who, how, first = sys.argv[1], 'fused' if 'fused' in sys.argv else 'plain' if 'plain' in sys.argv else 'own', 'first' in sys.argv
torch.set_num_threads(1)
warnings.filterwarnings('ignore')
logging.disable(logging.WARNING)
torch.manual_seed(0)
batches = [(torch.randn(32, 64), torch.randint(0, 10, (32,))) for _ in range(50)]
named = [dict(x=x, labels=y) for x, y in batches]
chunk, stamps = 32, []

def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

class Batches:
    "Ready batches, `n` of them, over and over; notes the CPU time of the process every `chunk` of them."
    def __init__(self, n, ready=batches): self.n, self.ready = n, ready
    def __len__(self): return self.n
    def __iter__(self):
        for i in range(self.n):
            if not i % chunk: stamps.append(time.process_time())
            yield self.ready[i % len(self.ready)]

adamw = partial(torch.optim.AdamW, lr=1e-3, **(dict(fused=True) if how == 'fused' else {}))
plain_adamw = partial(torch.optim.AdamW, lr=1e-3)

# Each makes fit(n): a whole fit of n steps. What is made once stands outside it. `log`: record the loss of every step.

def raw(log, adamw=adamw):
    model, losses = mlp(), []
    opt = adamw(model.parameters())
    def fit(n):
        for x, y in Batches(n):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if log: losses.append(loss.item())
    return fit

def accuracy(out, y): return (out.argmax(-1) == y).float().mean()

def mlstack(log, metrics=None):
    from mlstack.trainer import Trainer
    run = None
    if log:
        import mlstack.tracking as track
        run = track.init(project='bench', dir=tempfile.mkdtemp())
    opt = torch.optim.AdamW if how == 'own' else partial(torch.optim.AdamW, foreach=None)  # a choice of one's own is left alone
    def fit(n): Trainer(mlp(), Batches(n), loss=F.cross_entropy, opt=opt, lr=1e-3, metrics=metrics, run=run).fit(steps=n)
    fit.close = run.finish if run else lambda: None
    return fit

def measured(log): return mlstack(log, dict(acc=accuracy))

def fabric(log):
    from lightning_fabric import Fabric
    fab, losses = Fabric(accelerator='cpu', devices=1), []
    fab.launch()
    model = mlp()
    model, opt = fab.setup(model, adamw(model.parameters()))
    def fit(n):
        for x, y in Batches(n):
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y)
            fab.backward(loss)
            opt.step()
            if log: losses.append(loss.item())
    return fit

def accelerate(log):
    from accelerate import Accelerator
    acc, losses = Accelerator(cpu=True), []
    model = mlp()
    model, opt = acc.prepare(model, adamw(model.parameters()))
    def fit(n):
        for x, y in Batches(n):
            loss = F.cross_entropy(model(x), y)
            acc.backward(loss)
            opt.step()
            opt.zero_grad()
            if log: losses.append(loss.item())
    return fit

def ignite(log):
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import ProgressBar
    from ignite.metrics import RunningAverage
    def fit(n):
        model = mlp()
        trainer = create_supervised_trainer(model, adamw(model.parameters()), F.cross_entropy)
        if log:
            RunningAverage(output_transform=lambda loss: loss).attach(trainer, 'loss')
            ProgressBar().attach(trainer, ['loss'])
        trainer.run(Batches(n), max_epochs=1)
    return fit

def hf(log):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp()
        def forward(self, x, labels):
            out = self.layers(x)
            return dict(loss=F.cross_entropy(out, labels), logits=out)
    class Trainer(transformers.Trainer):
        def get_train_dataloader(self): return Batches(self.args.max_steps, named)
    def fit(n):
        args = transformers.TrainingArguments(output_dir=tempfile.mkdtemp(), max_steps=n, use_cpu=True, learning_rate=1e-3, weight_decay=.01, lr_scheduler_type='constant', max_grad_norm=0, report_to='none',
            optim='adamw_torch_fused' if how == 'fused' else 'adamw_torch', save_strategy='no', logging_strategy='steps' if log else 'no', logging_steps=1, disable_tqdm=not log)
        Trainer(Model(), args, train_dataset=batches).train()
    return fit

def lightning(log):
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import CSVLogger
    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = mlp()
        def training_step(self, batch, i):
            x, y = batch
            loss = F.cross_entropy(self.model(x), y)
            if log: self.log('loss', loss, prog_bar=True)
            return loss
        def configure_optimizers(self): return adamw(self.parameters())
    def fit(n):
        more = dict(logger=CSVLogger(tempfile.mkdtemp()), log_every_n_steps=1) if log else dict(logger=False, enable_progress_bar=False)
        pl.Trainer(max_steps=n, accelerator='cpu', devices=1, enable_checkpointing=False, enable_model_summary=False, **more).fit(Lit(), Batches(n))
    return fit

def fastai(log):
    from fastai.basics import DataLoaders, Learner, OptimWrapper
    from fastai.callback.progress import ProgressCallback
    def fit(n):
        learn = Learner(DataLoaders(Batches(n), Batches(0)), mlp(), loss_func=F.cross_entropy, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW), lr=1e-3)
        if not log: learn.remove_cb(ProgressCallback)
        learn.fit(1)
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

def calls_a_step(make): return (calls(make, 120) - calls(make, 20))/100

def chunks(fit, n):
    "CPU time of the process, every thread of it, for each chunk of a fit; the first one, in which it starts, is left out."
    stamps.clear()
    fit(n)
    return [b - a for a, b in zip(stamps[1:], stamps[2:])]

def quantile(xs, q): return sorted(xs)[int(q*(len(xs) - 1))]

def against(fit, plain, rounds=4, n=10*chunk):
    "The CPU time of `fit` over that of the raw loop, in turns: of the median chunk, and of the chunk that a fifth of them are faster than."
    theirs, base = [], []
    for f in (fit, plain): f(2*chunk)
    for _ in range(rounds):
        base += chunks(plain, n)
        theirs += chunks(fit, n)
    return [quantile(theirs, q)/quantile(base, q) for q in (.5, .2)]

makers = dict(raw=raw, mlstack=mlstack, measured=measured, fabric=fabric, accelerate=accelerate, ignite=ignite, hf=hf, lightning=lightning, fastai=fastai)
out, err = os.dup(1), os.dup(2)
for fd in (1, 2): os.dup2(os.open(os.devnull, os.O_WRONLY), fd)  # their bars
answer = {}
try:
    if first:
        fit = makers[who](False)
        fit(1)
        answer['first'] = time.process_time()
    else:
        plain = partial(raw, False, plain_adamw)
        calls_a_step(plain)  # what is imported and made on the way is no part of a step
        base = calls_a_step(plain)
        for log, end in ((False, ''), (True, '_log')):
            make = partial(makers[who], log)
            calls_a_step(make)
            mine, fit = calls_a_step(make), make()
            ratio, low = against(fit, plain())
            getattr(fit, 'close', lambda: None)()
            answer |= {f'calls{end}': round(mine), f'extra{end}': round(mine - base), f'ratio{end}': ratio, f'p20{end}': low}
finally:
    os.dup2(out, 1)
    os.dup2(err, 2)
print(json.dumps(answer))
