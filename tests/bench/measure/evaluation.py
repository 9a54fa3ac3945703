"""evaluation.py WHO: validation of 101 items on two ranks (gloo): how many items the model sees, how many of them twice, and how far loss and accuracy are from those of one process.
WHO is mlstack, sampler (DistributedSampler by hand), lightning, accelerate or gathered (Accelerate with gather_for_metrics)."""
import json, logging, os, socket, subprocess, sys, warnings
import torch, torch.distributed as dist, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

who, n, size = sys.argv[1], 101, 8

def problem():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=g, dtype=torch.float64)
    x[:, 0] = torch.arange(n)  # every item bears its number
    return x, (x[:, 1:].sum(1) > .3).long()

class Model(nn.Module):
    "Notes which items it is given in evaluation."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.seen = nn.Linear(5, 2, dtype=torch.float64), []
    def forward(self, x):
        if not self.training: self.seen += x[:, 0].int().tolist()
        return self.layer(x[:, 1:])

def right(out, y): return (out.argmax(-1) == y).double().mean()

# Each returns the loss and the accuracy that it would report, and the model.

def mlstack():
    from mlstack.trainer import Data, Trainer
    x, y = problem()
    model = Model()
    found = Trainer(model, Data.from_tensors((x, y), (x, y), batch_size=size), F.cross_entropy, metrics=dict(acc=right), parallel='ddp', precision='fp32').validate()
    return found['val_loss'], found['val_acc'], model

def mean(sums): return (sums[:2]/sums[2]).tolist()

def measure(model, loader):
    sums = torch.zeros(3, dtype=torch.float64)
    for x, y in loader:
        out = model(x)
        sums += torch.stack([F.cross_entropy(out, y)*len(y), right(out, y)*len(y), torch.tensor(float(len(y)))]).detach()
    return sums

def sampler():
    from torch.utils.data.distributed import DistributedSampler
    dist.init_process_group('gloo')
    data, model = TensorDataset(*problem()), Model().eval()
    sums = measure(model, DataLoader(data, batch_size=size, sampler=DistributedSampler(data, shuffle=False)))
    dist.all_reduce(sums)
    return *mean(sums), model

def lightning():
    import pytorch_lightning as pl
    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()
        def validation_step(self, batch, i):
            out = self.model(batch[0])
            self.log_dict(dict(loss=F.cross_entropy(out, batch[1]), acc=right(out, batch[1])), sync_dist=True)
    lit = Lit()
    trainer = pl.Trainer(accelerator='cpu', devices=2, strategy='ddp', logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0)
    found = trainer.validate(lit, DataLoader(TensorDataset(*problem()), batch_size=size), verbose=False)[0]
    return found['loss'], found['acc'], lit.model

def accelerate(gathered=False):
    from accelerate import Accelerator
    acc = Accelerator(cpu=True)
    mine = Model()
    model, loader = acc.prepare(mine, DataLoader(TensorDataset(*problem()), batch_size=size))
    model.eval()
    if not gathered: return *mean(acc.reduce(measure(model, loader))), mine
    outs, ys = zip(*[acc.gather_for_metrics((model(x), y)) for x, y in loader])
    out, y = torch.cat(outs), torch.cat(ys)
    return F.cross_entropy(out, y).item(), right(out, y).item(), mine

def rank():
    loss, acc, model = accelerate(True) if who == 'gathered' else globals()[who]()
    found = [None, None]
    dist.all_gather_object(found, model.seen)
    x, y = problem()
    alone = model.eval()(x)
    seen = sum(found, [])
    answer = dict(seen=len(seen), twice=len(seen) - len(set(seen)), missing=n - len(set(seen)), loss_error=abs(float(loss) - F.cross_entropy(alone, y).item()), acc_error=abs(float(acc) - right(alone, y).item()))
    if dist.get_rank() == 0: os.write(out, json.dumps(answer).encode())
    dist.barrier()
    os._exit(0)

if __name__ == '__main__':
    if 'RANK' in os.environ:
        out = os.dup(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        torch.set_num_threads(1)
        warnings.filterwarnings('ignore')
        logging.disable(logging.WARNING)
        rank()
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = dict(os.environ, MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', GLOO_SOCKET_IFNAME='lo')
    ps = [subprocess.Popen([sys.executable, *sys.argv], env=env | dict(RANK=str(r), LOCAL_RANK=str(r)), stdout=subprocess.PIPE if r == 0 else subprocess.DEVNULL) for r in (0, 1)]
    try: answer = ps[0].communicate(timeout=200)[0]
    finally:
        for p in ps: p.kill()
    print(answer.decode())
