"mnist.py WHO: 4,000 real digits, a small convolutional network, AdamW, until 97% of 1,000 others are read rightly; seconds of wall and CPU from process start and from fit start."
import json, logging, os, tempfile, sys, time, warnings
who, seed = sys.argv[1], int(os.environ.get('BENCH_TURN', 0))
warnings.filterwarnings('ignore')
logging.disable(logging.WARNING)
os.environ['TOKENIZERS_PARALLELISM'] = 'false'
import torch, torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from digits import load

goal, lr, size, most = .97, 3e-3, 64, 80

def network():
    torch.manual_seed(seed)
    block = lambda i, o, k, stride: [nn.Conv2d(i, o, k, stride, k//2, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*block(1, 12, 5, 2), *block(12, 24, 3, 2), *block(24, 48, 3, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(.2), nn.Linear(432, 10))

class Digits(Dataset):
    "As torchvision's MNIST with ToTensor: an item becomes a float tensor when it is read."
    def __init__(self, images, labels, named=False): self.images, self.labels, self.named = images, labels.tolist(), named
    def __len__(self): return len(self.labels)
    def __getitem__(self, i):
        x, y = torch.from_numpy(self.images[i]).unsqueeze(0).to(torch.float32).div(255), self.labels[i]
        return dict(x=x, labels=y) if self.named else (x, y)

marks = []  # CPU time of the process at the end of each epoch

def reached(acc):
    marks.append(time.process_time())
    return acc >= goal

def loaders(train, valid): return DataLoader(Digits(*train), batch_size=size, shuffle=True), DataLoader(Digits(*valid), batch_size=size)

def right(model, batches):
    "The share of these batches that the model reads rightly."
    model.eval()
    with torch.no_grad(): found = sum((model(x).argmax(1) == y).sum().item() for x, y in batches)
    model.train()
    return found/len(batches.dataset)

# Each imports what it needs and returns fit(train, valid) -> (epochs, accuracy); the arrays are uint8 images and labels.

def raw():
    def fit(train, valid):
        train, valid = loaders(train, valid)
        model = network()
        opt = torch.optim.AdamW(model.parameters(), lr=lr)
        for epoch in range(1, most + 1):  # noqa: B007
            for x, y in train:
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                opt.step()
                opt.zero_grad()
            if reached(acc := right(model, valid)): break
        return epoch, acc
    return fit

def mlstack():
    from mlstack.core import StopTraining
    from mlstack.trainer import Callback, Data, Trainer
    class Reached(Callback):
        def after_epoch(self, t):
            if reached(t.validated['val_acc']): raise StopTraining('good enough')
    def accuracy(out, y): return (out.argmax(1) == y).float().mean()
    def tensors(images, labels): return torch.from_numpy(images).unsqueeze(1).float().div(255), torch.from_numpy(labels)
    def fit(train, valid):
        data = Data.from_tensors(tensors(*train), tensors(*valid), batch_size=size)
        t = Trainer(network(), data, loss=F.cross_entropy, lr=lr, metrics=dict(acc=accuracy), callbacks=[Reached()], seed=seed, channels_last=True).fit(epochs=most)
        return len(t.history), t.history['val_acc'][-1]
    return fit

def accelerate():
    from accelerate import Accelerator
    def fit(train, valid):
        acc = Accelerator(cpu=True)
        model, (train, valid) = network(), loaders(train, valid)
        model, opt, train, valid = acc.prepare(model, torch.optim.AdamW(model.parameters(), lr=lr), train, valid)
        for epoch in range(1, most + 1):  # noqa: B007
            for x, y in train:
                loss = F.cross_entropy(model(x), y)
                acc.backward(loss)
                opt.step()
                opt.zero_grad()
            if reached(score := right(model, valid)): break
        return epoch, score
    return fit

def fabric():
    from lightning_fabric import Fabric
    def fit(train, valid):
        fab = Fabric(accelerator='cpu', devices=1)
        fab.launch()
        model = network()
        model, opt = fab.setup(model, torch.optim.AdamW(model.parameters(), lr=lr))
        train, valid = fab.setup_dataloaders(*loaders(train, valid))
        for epoch in range(1, most + 1):  # noqa: B007
            for x, y in train:
                opt.zero_grad()
                loss = F.cross_entropy(model(x), y)
                fab.backward(loss)
                opt.step()
            if reached(acc := right(model, valid)): break
        return epoch, acc
    return fit

def ignite():
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy
    def fit(train, valid):
        model, (train, valid) = network(), loaders(train, valid)
        trainer = create_supervised_trainer(model, torch.optim.AdamW(model.parameters(), lr=lr), F.cross_entropy)
        evaluator = create_supervised_evaluator(model, metrics=dict(acc=Accuracy()))
        @trainer.on(Events.EPOCH_COMPLETED)
        def validate(engine):
            evaluator.run(valid)
            if reached(evaluator.state.metrics['acc']): engine.terminate()
        trainer.run(train, max_epochs=most)
        return trainer.state.epoch, evaluator.state.metrics['acc']
    return fit

def hf():
    from transformers import Trainer, TrainerCallback, TrainingArguments
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network()
        def forward(self, x, labels=None):
            out = self.layers(x)
            return dict(logits=out) if labels is None else dict(loss=F.cross_entropy(out, labels), logits=out)
    class Reached(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kw):
            if reached(metrics['eval_acc']): control.should_training_stop = True
    def fit(train, valid):
        args = TrainingArguments(output_dir=tempfile.mkdtemp(), num_train_epochs=most, per_device_train_batch_size=size, per_device_eval_batch_size=size, learning_rate=lr, weight_decay=.01, lr_scheduler_type='constant',
            eval_strategy='epoch', save_strategy='no', report_to='none', disable_tqdm=True, use_cpu=True, seed=seed)
        t = Trainer(Model(), args, train_dataset=Digits(*train, named=True), eval_dataset=Digits(*valid, named=True), callbacks=[Reached()],
            compute_metrics=lambda p: dict(acc=(p.predictions.argmax(1) == p.label_ids).mean()))
        t.train()
        return round(t.state.epoch), [h['eval_acc'] for h in t.state.log_history if 'eval_acc' in h][-1]
    return fit

def lightning():
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import EarlyStopping
    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network()
        def training_step(self, batch, i):
            x, y = batch
            return F.cross_entropy(self.model(x), y)
        def validation_step(self, batch, i):
            x, y = batch
            self.log('acc', (self.model(x).argmax(1) == y).float().mean())
        def on_validation_epoch_end(self):
            if not self.trainer.sanity_checking: reached(0.)  # EarlyStopping judges
        def configure_optimizers(self): return torch.optim.AdamW(self.parameters(), lr=lr)
    def fit(train, valid):
        train, valid = loaders(train, valid)
        t = pl.Trainer(max_epochs=most, accelerator='cpu', devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[EarlyStopping('acc', mode='max', patience=most, stopping_threshold=goal)])
        t.fit(Lit(), train, valid)
        return t.current_epoch, t.callback_metrics['acc'].item()
    return fit

def fastai():
    from fastai.basics import Callback, CancelFitException, DataLoaders, Learner, accuracy
    from fastai.callback.progress import ProgressCallback
    class Reached(Callback):
        order = 60  # after the recorder
        def after_epoch(self):
            if reached(self.recorder.values[-1][-1]): raise CancelFitException()
    def fit(train, valid):
        torch.manual_seed(seed)
        dls = DataLoaders.from_dsets(Digits(*train), Digits(*valid), bs=size, num_workers=0, device='cpu')
        learn = Learner(dls, network(), loss_func=F.cross_entropy, metrics=accuracy, lr=lr, cbs=Reached())
        learn.remove_cb(ProgressCallback)
        learn.fit(most)  # Adam with decoupled decay, its default
        return len(learn.recorder.values), learn.recorder.values[-1][-1]
    return fit

def wall():
    "Seconds since this process began."
    began = int(open('/proc/self/stat').read().rsplit(')', 1)[1].split()[19])/os.sysconf('SC_CLK_TCK')
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began

torch.set_num_threads(1)
make = dict(raw=raw, mlstack=mlstack, accelerate=accelerate, fabric=fabric, ignite=ignite, hf=hf, lightning=lightning, fastai=fastai)[who]
out, err = os.dup(1), os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
fit, arrays = make(), load()
began, cpu = wall(), time.process_time()
epochs, acc = fit(*arrays)
ended, used = wall(), time.process_time()
os.dup2(out, 1)
assert acc >= goal, f'only {acc:.1%} after {epochs} epochs'
print(json.dumps(dict(wall=ended, cpu=used, fit_wall=ended - began, fit_cpu=used - cpu, epochs=epochs, epoch_cpu=sorted(b - a for a, b in zip(marks, marks[1:]))[(len(marks) - 1)//2])))
