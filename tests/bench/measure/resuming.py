"""resuming.py WHO: a fit of 28 steps is ended after 10, in the middle of its epoch of 16, and resumed in new objects from what was saved; how many of the 18 other losses are bit for bit those of a fit without a break.
Three times: with dropout; with random augmentation in the dataset too; with two workers that read it. WHO is mlstack, hf, lightning, stateful (Lightning with torchdata's StatefulDataLoader), accelerate or accelerate_stateful."""
import json, logging, os, random, shutil, sys, tempfile, warnings
import numpy as np, torch, torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

who = sys.argv[1]
warnings.filterwarnings('ignore')
logging.disable(logging.WARNING)
torch.set_num_threads(1)
items, size, stop, end = 64, 4, 10, 28
X = torch.randn(items, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 4, (items,), generator=torch.Generator().manual_seed(2))

class Items(Dataset):
    def __init__(self, augment, named=False): self.augment, self.named = augment, named
    def __len__(self): return items
    def __getitem__(self, i):
        x = X[i] + .1*torch.randn(8) if self.augment else X[i]
        return dict(x=x, labels=Y[i]) if self.named else (x, Y[i])

def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

def network():
    seed()
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(.5), nn.Linear(32, 4))

class Noting(nn.Module):
    "The network and its loss, which it notes."
    def __init__(self, losses):
        super().__init__()
        self.layers, self.losses = network(), losses
    def forward(self, x, labels):
        loss = F.cross_entropy(self.layers(x), labels)
        self.losses.append(loss.item())
        return dict(loss=loss)

# Each runs new objects up to step `n` in `folder`, from what lies there if `resume`, and returns the losses it made.

def mlstack(folder, n, resume, augment, workers):
    from mlstack.trainer import Checkpoints, Trainer
    t = Trainer(network(), DataLoader(Items(augment), size, shuffle=True, num_workers=workers), loss=F.cross_entropy, lr=1e-2)
    t.fit(steps=n, save=Checkpoints(folder, every=stop), resume=resume)
    steps, losses = t.history.steps()
    return [l for s, l in zip(steps, losses) if not resume or s > stop]

def hf(folder, n, resume, augment, workers):
    from transformers import Trainer, TrainingArguments
    losses = []
    args = TrainingArguments(output_dir=folder, max_steps=n, per_device_train_batch_size=size, learning_rate=1e-2, lr_scheduler_type='constant', save_steps=stop, report_to='none', use_cpu=True, seed=0,
        dataloader_num_workers=workers, disable_tqdm=True, logging_strategy='no')
    Trainer(Noting(losses), args, train_dataset=Items(augment, named=True)).train(resume_from_checkpoint=resume)
    return losses

def lightning(folder, n, resume, augment, workers, loader=DataLoader):
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint
    pl.seed_everything(0)
    losses = []
    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network()
        def training_step(self, batch, i):
            x, y = batch
            loss = F.cross_entropy(self.model(x), y)
            losses.append(loss.item())
            return loss
        def configure_optimizers(self): return torch.optim.AdamW(self.parameters(), lr=1e-2)
    keep = ModelCheckpoint(folder, filename='{step}', every_n_train_steps=stop, save_top_k=-1)
    t = pl.Trainer(max_steps=n, accelerator='cpu', devices=1, logger=False, callbacks=[keep], enable_progress_bar=False, enable_model_summary=False)
    t.fit(Lit(), loader(Items(augment), size, shuffle=True, num_workers=workers), ckpt_path=os.path.join(folder, f'step={stop}.ckpt') if resume else None)
    return losses

def stateful(*args):
    from torchdata.stateful_dataloader import StatefulDataLoader
    return lightning(*args, loader=StatefulDataLoader)

def accelerate(folder, n, resume, augment, workers, stateful=False):
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, set_seed
    set_seed(0)
    acc = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_stateful_dataloader=True) if stateful else DataLoaderConfiguration(use_seedable_sampler=True))
    model = network()
    model, opt, loader = acc.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2), DataLoader(Items(augment), size, shuffle=True, num_workers=workers))
    losses, at = [], 0
    if resume:
        acc.load_state(folder)
        at = stop
    for epoch in range(at//len(loader), 2):
        loader.set_epoch(epoch)
        skip = at % len(loader) if epoch == at//len(loader) else 0
        for x, y in acc.skip_first_batches(loader, skip) if skip and not stateful else loader:
            loss = F.cross_entropy(model(x), y)
            acc.backward(loss)
            opt.step()
            opt.zero_grad()
            losses.append(loss.item())
            at += 1
            if at == stop: acc.save_state(folder)
            if at == n: return losses

def accelerate_stateful(*args): return accelerate(*args, stateful=True)

def equal(run, augment, workers):
    "How many of the losses after the break are those of the fit without one; None if the fit without one does not repeat itself."
    folders = [tempfile.mkdtemp() for _ in range(3)]
    try:
        straight, again = (run(f, end, False, augment, workers)[stop:] for f in folders[:2])
        if straight != again: return None
        run(folders[2], stop, False, augment, workers)
        resumed = run(folders[2], end, True, augment, workers)
        assert len(straight) == end - stop, f'{len(straight)} losses'
        return sum(a == b for a, b in zip(straight, resumed[-(end - stop):])) if len(resumed) >= end - stop else 0
    finally:
        for f in folders: shutil.rmtree(f, ignore_errors=True)

if __name__ == '__main__':
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    answer = dict(dropout=equal(globals()[who], False, 0), augmentation=equal(globals()[who], True, 0), workers=equal(globals()[who], True, 2))
    os.dup2(out, 1)
    print(json.dumps(answer))
