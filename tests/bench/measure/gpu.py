"""gpu.py CASE WHO [--tiny] [--device cuda]: speed of training on one GPU, for a CASE of mlp, gpt, resnet, fp8, first and a WHO of raw, mlstack, lightning, accelerate, hf, and some of a case's own (see `extra`).

Each row in a process of its own; the device is synchronised only between chunks of steps; the figure is the median chunk. Every row has the same model, seed, batches and fused AdamW, the same bf16 and torch.compile; the mean loss of the last steps goes into the answer, since rows that do not agree cannot be compared.
--tiny with --device cpu runs the same code on small sizes, to see that it works; its figures mean nothing."""
import argparse, json, logging, os, sys, tempfile, time, warnings
from contextlib import nullcontext
from functools import partial

parse = argparse.ArgumentParser()
parse.add_argument('case', choices='mlp gpt resnet fp8 first'.split())
parse.add_argument('who')
parse.add_argument('--tiny', action='store_true')
parse.add_argument('--device', default='cuda')
args = parse.parse_args()
caches = tempfile.TemporaryDirectory()
if args.case == 'first': os.environ.update(TORCHINDUCTOR_CACHE_DIR=caches.name, TRITON_CACHE_DIR=caches.name)  # a cold start
began = time.perf_counter()
import torch, torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from gpt import GPT, next_token
from pictures import Pictures, ResNet18, crop_and_mirror, normalised
warnings.filterwarnings('ignore')
logging.disable(logging.WARNING)

tiny, device = args.tiny, torch.device(args.device)
cuda = device.type == 'cuda'
if cuda and not torch.cuda.is_available(): raise SystemExit('not measured: no GPU')
if cuda: torch.set_float32_matmul_precision('high')
backend = 'eager' if tiny else 'inductor'
peaks = dict(H100=989e12, H200=989e12, A100=312e12, L40S=362e12)  # dense bf16, operations a second

def settle():
    if cuda: torch.cuda.synchronize(device)

stamps, losses = [], []

class Batches:
    "Ready batches over and over; synchronises and notes the time every `chunk` of them."
    def __init__(self, ready, n): self.ready, self.n = ready, n
    def __len__(self): return self.n
    def __iter__(self):
        for i, batch in zip(range(self.n), self.source()):
            note(i)
            yield batch
    def source(self):
        while True: yield from self.ready

def note(i):
    if i % setup.chunk: return
    settle()
    stamps.append(time.perf_counter())

# What is trained: `model()`, `batches(n)`, loss, rate, and how many items a batch has.

class Setup:
    compiled, half, decay, opt_lr, steps, chunk, flops, named = True, True, .1, 3e-4, 1200, 50, None, False
    def loss(self, out, y): return next_token(out, y)
    def batches(self, n): return Batches(self.ready, n)

class MLP(Setup):
    compiled, half, opt_lr, steps, chunk = False, False, 1e-3, 4000, 250
    def __init__(self):
        if tiny: self.steps, self.chunk = 40, 10
        torch.manual_seed(0)
        self.size, self.ready = 32, [(torch.randn(32, 64).to(device), torch.randint(0, 10, (32,)).to(device)) for _ in range(50)]
    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    def loss(self, out, y): return F.cross_entropy(out, y)

class Text(Setup):
    def __init__(self, batch, **sizes):
        if tiny: batch, sizes, self.steps, self.chunk = 2, dict(vocabulary=96, context=16, layers=2, heads=2, width=32), 12, 3
        self.sizes, t = sizes, sizes.get('context', 1024)
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(0, sizes.get('vocabulary', 50304), (8, batch, t + 1), generator=g).to(device)
        self.size, self.ready = batch*t, [(o[:, :-1].contiguous(), o[:, 1:].contiguous()) for o in ids]
        with torch.device('meta'): self.flops = GPT(**sizes).flops(t)
    def model(self):
        torch.manual_seed(0)
        return GPT(**self.sizes)

class Images(Setup):
    opt_lr, decay, steps, chunk = 1e-3, .05, 1200, 50
    def __init__(self):
        n, self.size, self.workers, self.width = (96, 16, 0, 8) if tiny else (50_000, 512, min(os.cpu_count() or 1, 12), 64)
        if tiny: self.steps, self.chunk = 12, 3
        g = torch.Generator().manual_seed(0)
        self.y = torch.randint(0, 10, (n,), generator=g)
        self.x = (torch.randint(0, 200, (n, 32, 32, 3), generator=g) + 5*self.y[:, None, None, None]).to(torch.uint8)  # something to learn
    def model(self):
        torch.manual_seed(0)
        return ResNet18(self.width).to(memory_format=torch.channels_last)
    def loss(self, out, y): return F.cross_entropy(out, y)
    def batches(self, n):
        loader = DataLoader(Pictures(self.x, self.y), self.size, shuffle=True, drop_last=True, num_workers=self.workers, pin_memory=cuda, persistent_workers=self.workers > 0)
        moved = lambda: ((x.to(device, non_blocking=True, memory_format=torch.channels_last), y.to(device, non_blocking=True)) for x, y in loader)
        class Read(Batches):
            def source(self):
                while True: yield from moved()
        return Read(None, n)
    def data(self, n):
        from mlstack.trainer import Data
        return Data.from_tensors((self.x, self.y), batch_size=self.size, augment=crop_and_mirror, prepare=normalised)

setup = dict(mlp=MLP, gpt=partial(Text, 32), fp8=partial(Text, 8, layers=16, heads=16, width=2048), first=partial(Text, 32), resnet=Images)[args.case]()
if args.case == 'first': setup.steps, setup.chunk = 2 if args.who.startswith('raw') else 1200, 1  # a fit that is worth compiling; it is left at the second step

def made(fused=True): return partial(torch.optim.AdamW, lr=setup.opt_lr, weight_decay=setup.decay, fused=fused)
def half(): return torch.autocast(device.type, torch.bfloat16) if setup.half else nullcontext()

class Enough(Exception): "The second step has been made."

def count(loss):
    losses.append(loss.detach())
    if args.case == 'first' and len(losses) == 2: raise Enough

# Each trains setup.steps steps.

def raw(how='whole'):
    model = setup.model().to(device)
    opt = made()(model.parameters())
    if setup.compiled:
        for part in model.blocks if how == 'blocks' else [model]: part.compile(backend=backend)
    for x, y in setup.batches(setup.steps):
        with half(): loss = setup.loss(model(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        count(loss)

def raw_blocks(): raw('blocks')

def graph():
    "The whole step in a CUDA graph, made by hand; on a CPU the same function is called."
    model = setup.model().to(device)
    opt = torch.optim.AdamW(model.parameters(), lr=setup.opt_lr, weight_decay=setup.decay, fused=True, capturable=cuda)
    x, y = (o.clone() for o in setup.ready[0])
    def step():
        opt.zero_grad(set_to_none=False)
        loss = setup.loss(model(x), y)
        loss.backward()
        opt.step()
        return loss
    batches = iter(setup.batches(setup.steps))
    def fill():
        for to, o in zip((x, y), next(batches)): to.copy_(o, non_blocking=True)
    if cuda:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                fill()
                losses.append(step().detach().clone())
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded): loss = step()
        again = lambda: (recorded.replay(), loss)[1]
    else: again = step
    for _ in range(setup.steps - len(losses)):
        fill()
        losses.append(again().detach().clone())

def mlstack(**more):
    from mlstack.trainer import Callback, Trainer
    class Watch(Callback):
        def after_step(self, t):
            if noting: note(t.step)  # data of its own: the step is where one can look
            if args.case == 'first': count(t.values['loss'])
    noting = hasattr(setup, 'data')
    data = setup.data(setup.steps) if noting else setup.batches(setup.steps)
    watch = [Watch()] if noting or args.case == 'first' else []
    t = Trainer(setup.model(), data, loss=setup.loss, opt=partial(torch.optim.AdamW, weight_decay=setup.decay), lr=setup.opt_lr, callbacks=watch, **more)
    t.fit(steps=setup.steps)
    losses.extend(torch.tensor(t.history.steps()[1]))
    return t

def mlstack_fp8(): return mlstack(**({} if tiny else dict(precision='fp8')))
def mlstack_eager(): return mlstack(compile=False, graph=False)

def lightning():
    import pytorch_lightning as pl
    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = setup.model()
            if setup.compiled: self.model.compile(backend=backend)
        def training_step(self, batch, i):
            loss = setup.loss(self.model(batch[0]), batch[1])
            count(loss)
            return loss
        def configure_optimizers(self): return made()(self.parameters())
    pl.Trainer(max_steps=setup.steps, accelerator=device.type if not cuda else 'gpu', devices=1, precision='bf16-mixed' if setup.half else '32-true', logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False).fit(Lit(), setup.batches(setup.steps))

def accelerate():
    from accelerate import Accelerator
    acc = Accelerator(cpu=not cuda, mixed_precision='bf16' if setup.half else 'no')
    model = setup.model()
    if setup.compiled: model.compile(backend=backend)
    model, opt = acc.prepare(model, made()(model.parameters()))
    for x, y in setup.batches(setup.steps):
        with acc.autocast(): loss = setup.loss(model(x), y)
        acc.backward(loss)
        opt.step()
        opt.zero_grad()
        count(loss)

def hf():
    import transformers
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = setup.model()
            if setup.compiled: self.inner.compile(backend=backend)
        def forward(self, x, labels):
            loss = setup.loss(self.inner(x), labels)
            count(loss)
            return dict(loss=loss)
    class Named(Batches):
        def __iter__(self): return (dict(x=x, labels=y) for x, y in setup.batches(self.n))
    class Trainer(transformers.Trainer):
        def get_train_dataloader(self): return Named(None, setup.steps)
    a = transformers.TrainingArguments(output_dir=tempfile.mkdtemp(), max_steps=setup.steps, use_cpu=not cuda, bf16=setup.half, learning_rate=setup.opt_lr, weight_decay=setup.decay, lr_scheduler_type='constant', max_grad_norm=0,
        optim='adamw_torch_fused', report_to='none', save_strategy='no', logging_strategy='no', disable_tqdm=True)
    opt_all = Model()
    Trainer(opt_all, a, train_dataset=[0]*setup.steps, optimizers=(made()(opt_all.to(device).parameters()), None)).train()

extra = dict(raw_again=raw, raw_blocks=raw_blocks, graph=graph, mlstack_fp8=mlstack_fp8, mlstack_eager=mlstack_eager)
out = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
t = None
try: t = (extra | dict(raw=raw, mlstack=mlstack, lightning=lightning, accelerate=accelerate, hf=hf))[args.who]()
except Enough: pass
settle()
ended = time.perf_counter()
os.dup2(out, 1)
answer = dict(loss=float(torch.stack([o.float().cpu() for o in losses[-20:]]).mean()))
if args.case == 'first': answer['seconds'] = ended - began
else:
    took = sorted(b - a for a, b in zip(stamps[2:], stamps[3:]))  # the first two chunks compile, capture and warm up
    middle = took[len(took)//2]
    answer |= dict(speed=setup.size*setup.chunk/middle, ms=1000*middle/setup.chunk)
    peak = next((v for k, v in peaks.items() if cuda and k in torch.cuda.get_device_name(device)), None)
    if peak and setup.flops: answer['mfu'] = 100*answer['speed']*setup.flops/peak
    if cuda: answer['memory'] = torch.cuda.max_memory_allocated(device)/2**30
if t is not None: answer['explain'] = str(t.explain())
print(json.dumps(answer))
caches.cleanup()
sys.stdout.flush()
os._exit(0)  # loaders of a fit that was left in its middle
