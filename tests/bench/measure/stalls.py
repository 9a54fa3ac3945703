"""stalls.py WHO [millions]: how long the loop stands still at a save, in seconds and in steps, for a model with that many million parameters (25) and AdamW.
WHO is mlstack, blocking (mlstack, written in the loop's way), hf, lightning, accelerate, or raw (torch.save). What is measured is the time between two steps, of which one is followed by a save."""
import json, logging, os, sys, tempfile, time, warnings
import torch, torch.nn.functional as F
from torch import nn

who, millions = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 25
warnings.filterwarnings('ignore')
logging.disable(logging.WARNING)
torch.set_num_threads(1)
steps, every = 16, 4
width = int((millions*1e6/4)**.5)
batch = torch.randn(32, width), torch.randn(32, width)
began, ended = [], []  # of each step

class Network(nn.Module):
    "Notes when its forward pass begins, that is when a step begins."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*[o for _ in range(4) for o in (nn.Linear(width, width), nn.ReLU())])
    def forward(self, x, labels=None):
        began.append(time.perf_counter())
        out = self.layers(x)
        return out if labels is None else dict(loss=F.mse_loss(out, labels))

class AdamW(torch.optim.AdamW):
    "Notes when its update is done, which is when a step ends."
    def step(self, closure=None):
        out = super().step(closure)
        ended.append(time.perf_counter())
        return out

class Batches:
    "The same batch over and over; a list would be several loaders to Lightning."
    def __len__(self): return steps + 2
    def __iter__(self): return (batch for _ in range(steps + 2))

def raw(folder, save=True):
    model = Network()
    opt = AdamW(model.parameters(), lr=1e-4, fused=True)
    for i in range(1, steps + 2):
        F.mse_loss(model(batch[0]), batch[1]).backward()
        opt.step()
        opt.zero_grad()
        if save and not i % every: torch.save(dict(model=model.state_dict(), opt=opt.state_dict()), os.path.join(folder, f'{i % (2*every)}.pt'))

def mlstack(folder, background=True):
    from mlstack.trainer import Checkpoints, Trainer
    saves = Checkpoints(folder, every=every, keep=1, background=background)
    class Waits(AdamW):  # the write before is over when the next begins, or the loop would wait for it
        def step(self, closure=None):
            if not (len(ended) + 1) % every: getattr(saves, 'join', lambda: None)()
            return super().step(closure)
    Trainer(Network(), Batches(), F.mse_loss, opt=Waits, lr=1e-4).fit(steps=steps + 1, save=saves)

def blocking(folder): mlstack(folder, False)

def lightning(folder):
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint
    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Network()
        def training_step(self, batch, i): return F.mse_loss(self.model(batch[0]), batch[1])
        def configure_optimizers(self): return AdamW(self.parameters(), lr=1e-4, fused=True)
    keep = ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=1)
    pl.Trainer(max_steps=steps + 1, accelerator='cpu', devices=1, logger=False, callbacks=[keep], enable_progress_bar=False, enable_model_summary=False).fit(Lit(), Batches())

def accelerate(folder):
    from accelerate import Accelerator
    acc = Accelerator(cpu=True)
    model = Network()
    model, opt = acc.prepare(model, AdamW(model.parameters(), lr=1e-4, fused=True))
    for i in range(1, steps + 2):
        acc.backward(F.mse_loss(model(batch[0]), batch[1]))
        opt.step()
        opt.zero_grad()
        if not i % every: acc.save_state(folder)

def hf(folder):
    from transformers import Trainer, TrainingArguments
    args = TrainingArguments(output_dir=folder, max_steps=steps + 1, save_steps=every, save_total_limit=1, lr_scheduler_type='constant', per_device_train_batch_size=32, max_grad_norm=0, report_to='none', use_cpu=True, disable_tqdm=True, logging_strategy='no')
    model = Network()
    opt = AdamW(model.parameters(), lr=1e-4, fused=True)
    Trainer(model, args, train_dataset=[dict(x=x, labels=y) for x, y in zip(*batch)]*(steps + 2), optimizers=(opt, None)).train()

middle = lambda v: sorted(v)[len(v)//2]
raw(None, save=False)
step = middle([e - b for b, e in zip(began[4:], ended[4:])])  # of a loop that nobody disturbs
began.clear()
ended.clear()
out = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
with tempfile.TemporaryDirectory() as folder: globals()[who](folder)
os.dup2(out, 1)
gaps = [b - e for e, b in zip(ended, began[1:])]
usual = middle([g for i, g in enumerate(gaps, 1) if i % every])
stall = middle([gaps[i - 1] - usual for i in range(2*every, steps + 1, every)])  # not the first, which makes the buffers
period = middle([began[i + every] - began[i] for i in range(every - 1, steps - every + 1, every)])  # a save and the steps until the next
print(json.dumps(dict(step=1000*step, stall=1000*stall, steps=stall/step, cost=1000*(period - every*(step + usual)))))
