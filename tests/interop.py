"Models and data of other libraries under the trainer; run in an environment that has them: `python -m tests.interop transformers`, see test_interop.py."
import random
import sys
import tempfile
import warnings
from importlib import abc
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mlstack.trainer import Callback, Checkpoints, Data, Trainer

torch.set_num_threads(1)


class Cut(Exception): pass


class CutAt(Callback):
    def __init__(self, step): self.at = step
    def after_step(self, t):
        if t.step == self.at: raise Cut


def equal(a, b): return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))

def resumes(job, cuts, epochs=2):
    "The training `job()`, and the same stopped at `cuts` and gone on with in fresh objects, bit for bit."
    straight = job().fit(epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        for cut in cuts:
            t = job()
            t.callbacks.append(CutAt(cut))
            random.seed(), np.random.seed(), torch.seed()
            try: t.fit(epochs=epochs, save=Checkpoints(folder, every=1), resume=True); raise AssertionError('it was not cut')
            except Cut: pass
        t = job().fit(epochs=epochs, save=Checkpoints(folder, every=1), resume=True)
    assert 'bit for bit' in t._why['resume'] and 'perhaps' not in t._why['resume'], t._why['resume']
    assert t.history.steps() == straight.history.steps() and equal(t.model, straight.model), 'a resumed training is another one'
    return straight

def accuracy(out, y): return (out.argmax(-1) == y).float()[y != -100].mean()


# transformers

text = 'the quick brown fox jumps over the lazy dog and runs away from it again '*30
vocabulary = sorted(set(text))
tokens = torch.tensor([vocabulary.index(c) for c in text])
rows = tokens[:len(tokens)//16*16].reshape(-1, 16)

def transformers_causal():
    "GPT-2 (tied weights, dropout) and Llama return their loss; metrics see their logits."
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    def gpt2(): return GPT2LMHeadModel(GPT2Config(vocab_size=len(vocabulary), n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0))
    def llama(): return LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16, attention_dropout=.1))
    for make in (gpt2, llama):
        def job(make=make):
            torch.manual_seed(0)
            data = Data.from_tensors(dict(input_ids=rows[:96], labels=rows[:96]), dict(input_ids=rows[96:], labels=rows[96:]), batch_size=16)
            return Trainer(make(), data, lr=1e-2, clip=1., metrics=dict(acc=lambda out, y: accuracy(out[:, :-1], y[:, 1:])))
        t = resumes(job, (2, 4))
        assert t.history['val_loss'][-1] < t.history['val_loss'][0] and 0 < t.history['val_acc'][-1] <= 1
    tied = gpt2()
    assert tied.lm_head.weight is tied.transformer.wte.weight
    again = Trainer(gpt2(), Data.from_tensors(dict(input_ids=rows, labels=rows)))
    with tempfile.TemporaryDirectory() as folder:
        t.save(Path(folder)/'llama')
        with_tied = Trainer(tied, Data.from_tensors(dict(input_ids=rows, labels=rows), batch_size=16), lr=1e-2).fit(steps=2)
        with_tied.save(Path(folder)/'gpt2')
        again.load(Path(folder)/'gpt2')
    assert equal(again.model, tied) and again.model.lm_head.weight is again.model.transformer.wte.weight, 'weights that were tied have to stay so'

def transformers_planned():
    "Models from their config, without weights: planned with masks, tied weights, shared keys and their own loss."
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    from mlstack.hardware import plan
    def ids(*shape): return torch.zeros(*shape, dtype=torch.long, device='meta')
    small = dict(vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    bert, llama = lambda: BertForSequenceClassification(BertConfig(**small)), lambda: LlamaForCausalLM(LlamaConfig(**small, num_key_value_heads=2))
    gpt2 = lambda: GPT2LMHeadModel(GPT2Config(vocab_size=500, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))
    for make, labels in ((bert, ids(8)), (llama, ids(8, 64)), (gpt2, ids(8, 64))):
        with torch.device('meta'): model = make()
        for mask in ({}, dict(attention_mask=ids(8, 64))):
            for precision in ('fp32', 'bf16'):
                p = plan(model, dict(input_ids=ids(8, 64), labels=labels) | mask, precision=precision, gpu='H100')
                weights = sum(-(-t.numel()*t.element_size()//512)*512 for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
                assert p.parts['weights'] == weights and p.peak > p.parts['weights'] + p.parts['optimizer'] and p.flops > 0, p
                assert bool(p.assumed) == bool(mask) and all('masking' in o for o in p.assumed), p.assumed

def transformers_bert():
    "Classification by BERT, as the model's own loss and by a loss of ours; a collator that masks at random resumes."
    from transformers import BatchEncoding, BertConfig, BertForMaskedLM, BertForSequenceClassification, DataCollatorForLanguageModeling, DataCollatorWithPadding
    import transformers
    config = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=20, num_labels=2)
    ids = rows[:64] + 5
    y = (rows[:64].float().mean(1) > rows.float().mean()).long()
    def job(loss):
        torch.manual_seed(0)
        return Trainer(BertForSequenceClassification(config), Data.from_tensors(dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=y), dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=y), batch_size=16), loss, lr=1e-3, metrics=dict(acc=accuracy))
    own, ours = job(None).fit(epochs=1), job(F.cross_entropy).fit(epochs=1)
    assert torch.allclose(torch.tensor(own.history.steps()[1]), torch.tensor(ours.history.steps()[1])), 'the model does not compute the cross-entropy'

    # a tokenizer made of our own letters: nothing is loaded from anywhere
    from tokenizers import Tokenizer, models
    names = ['[PAD]', '[MASK]', '[CLS]', '[SEP]', '[UNK]', *vocabulary]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token='[UNK]')), pad_token='[PAD]', mask_token='[MASK]', cls_token='[CLS]', sep_token='[SEP]', unk_token='[UNK]')
    items = [dict(input_ids=r[:8 + i % 8].tolist()) for i, r in enumerate(ids)]
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=.3)
    def masked(workers=0):
        torch.manual_seed(0)
        return Trainer(BertForMaskedLM(config), torch.utils.data.DataLoader(items, batch_size=16, shuffle=True, collate_fn=collate, num_workers=workers), lr=1e-3)
    assert isinstance(collate(items[:2]), BatchEncoding)
    straight = resumes(masked, (2, 3))
    assert masked(2).fit(epochs=2).history.steps() == straight.history.steps(), 'masks of workers are others'
    loader = torch.utils.data.DataLoader([o | dict(labels=i % 2) for i, o in enumerate(items)], batch_size=16, collate_fn=DataCollatorWithPadding(tokenizer))
    t = Trainer(BertForSequenceClassification(config), Data(loader, loader), metrics=dict(acc=accuracy)).fit(epochs=1)
    assert t.history['val_loss'] and t.predict(loader)['logits'].shape == (len(items), 2)


# timm

class Anything(type):
    def __getattr__(cls, name):
        if name.startswith('__'): raise AttributeError(name)
        return name

class NoTorchvision(abc.MetaPathFinder, abc.Loader):
    "Names in the place of torchvision's, which timm's models import and do not use: its wheel on PyPI is linked against CUDA and does not load where torch is without it."
    def find_spec(self, name, path=None, target=None): return ModuleSpec(name, self, is_package=True) if name.split('.')[0] == 'torchvision' else None
    def create_module(self, spec): return type('Module', (ModuleType,), dict(__getattr__=lambda m, name: Anything(name, (), {}) if not name.startswith('__') else Anything.__getattr__(m, name)))(spec.name)
    def exec_module(self, module): pass

def timm_images():
    "timm's models on tiny images, held as bytes and augmented on the device."
    sys.meta_path.insert(0, NoTorchvision())
    import timm
    x, y = torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 4
    def augment(batch): return torch.where(torch.rand(len(batch[0]), 1, 1, 1) < .5, batch[0], batch[0].flip(3)), batch[1]
    def prepare(batch): return batch[0].float()/255, batch[1]
    models = dict(resnet18=lambda: timm.create_model('resnet18', num_classes=4), vit=lambda: timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, depth=2, num_classes=4, drop_rate=.1))
    for name, make in models.items():
        def job(make=make):
            torch.manual_seed(0)
            return Trainer(make(), Data.from_tensors((x, y), (x[:16], y[:16]), batch_size=16, augment=augment, prepare=prepare), F.cross_entropy, lr=1e-3, metrics=dict(acc=accuracy))
        t = resumes(job, (2, 4))
        assert t.predict(prepare((x[:3], None))[0]).shape == (3, 4), name


# Keras

def keras_model():
    "A Keras 3 model on torch is an nn.Module."
    import keras
    assert keras.backend.backend() == 'torch'
    x = torch.randn(96, 8)
    y = (x[:, 0] > 0).long()
    def job():
        keras.utils.clear_session() # or its layers would be numbered on: sequential_1, and so would the names in a checkpoint
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(16, activation='relu'), keras.layers.BatchNormalization(), keras.layers.Dense(2)])
        return Trainer(model, Data.from_tensors((x, y), (x, y), batch_size=16), F.cross_entropy, lr=1e-2, metrics=dict(acc=accuracy))
    t = resumes(job, (4, 8))
    assert t.history['val_loss'][-1] < t.history['val_loss'][0], t.history


# Hugging Face datasets and torchdata

def linear(): torch.manual_seed(0); return nn.Sequential(nn.Linear(4, 16), nn.Dropout(.3), nn.Linear(16, 3))

def datasets_map():
    "A Dataset with torch's format, with a random transform, filtered; read in order, shuffled, by workers."
    from datasets import Dataset
    g = torch.Generator().manual_seed(0)
    ds = Dataset.from_dict(dict(x=torch.randn(60, 4, generator=g).tolist(), y=[i % 3 for i in range(60)]))
    def noisy(batch): return dict(x=[torch.tensor(v) + torch.rand(4) for v in batch['x']], y=torch.tensor(batch['y']))
    def step(model, batch): return F.cross_entropy(model(batch['x']), batch['y'])
    for made in (ds.with_format('torch'), ds.with_transform(noisy), ds.filter(lambda o: o['y'] > 0).with_format('torch')):
        def job(workers=0, made=made): return Trainer(linear(), torch.utils.data.DataLoader(made, batch_size=8, shuffle=True, num_workers=workers), step=step)
        straight = resumes(job, (3, 5))
        assert job(2).fit(epochs=2).history.steps() == straight.history.steps()
    whole = ds.with_format('numpy')[:]
    assert Trainer(linear(), Data.from_tensors((whole['x'].astype('float32'), whole['y'])), F.cross_entropy).fit(epochs=1).step == 1

def datasets_iterable():
    "An IterableDataset gives its batches by itself, or through a loader; shuffled by its own buffer."
    from datasets import Dataset
    ds = Dataset.from_dict(dict(x=np.random.default_rng(0).normal(size=(64, 4)).astype('float32').tolist(), y=[i % 3 for i in range(64)])).to_iterable_dataset(num_shards=2)
    def step(model, batch): return F.cross_entropy(model(batch['x']), batch['y'])
    kinds = dict(batched=lambda: ds.with_format('torch').batch(8), loader=lambda: torch.utils.data.DataLoader(ds.with_format('torch'), batch_size=8),
        shuffled=lambda: torch.utils.data.DataLoader(ds.shuffle(seed=3, buffer_size=20).with_format('torch'), batch_size=8), workers=lambda: torch.utils.data.DataLoader(ds.with_format('torch'), batch_size=8, num_workers=2))
    for name, make in kinds.items():
        t = resumes(lambda make=make: Trainer(linear(), make(), step=step), (3, 5, 11))
        assert t.step == 16, (name, t.step)

def torchdata_stateful():
    "A StatefulDataLoader goes on from its own state where it can only be read from front to back, and is keyed where it has indices."
    from torch.utils.data import IterableDataset, TensorDataset
    from torchdata.stateful_dataloader import StatefulDataLoader
    class Stream(IterableDataset):
        "Items whose reading is counted."
        def __init__(self): self.at, self.read = 0, 0
        def __iter__(self):
            while self.at < 64:
                self.at, self.read = self.at + 1, self.read + 1
                yield torch.full((4,), self.at/64), self.at % 3
            self.at = 0
        def state_dict(self): return dict(at=self.at)
        def load_state_dict(self, state): self.at = state['at']
    for workers in (0, 2): resumes(lambda workers=workers: Trainer(linear(), StatefulDataLoader(Stream(), batch_size=8, num_workers=workers), F.cross_entropy), (3, 5))
    with tempfile.TemporaryDirectory() as folder:
        try: Trainer(linear(), StatefulDataLoader(Stream(), batch_size=8), F.cross_entropy, callbacks=[CutAt(7)]).fit(epochs=1, save=Checkpoints(folder, every=1)) # cut before its save
        except Cut: pass
        stream = Stream()
        Trainer(linear(), StatefulDataLoader(stream, batch_size=8), F.cross_entropy).fit(epochs=1, save=folder, resume=True)
        assert stream.read == 64 - 7*8, f'{stream.read} items were read, and there were {64 - 7*8} left'
    x, y = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    keyed = lambda kind, **kw: resumes(lambda: Trainer(linear(), kind(TensorDataset(x, y), batch_size=8, shuffle=True, **kw), F.cross_entropy), (3, 5))
    assert keyed(StatefulDataLoader, num_workers=2).history.steps() == keyed(torch.utils.data.DataLoader).history.steps()


# torchmetrics

def torchmetrics_objects():
    import torchmetrics
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    def job():
        metrics = dict(acc=torchmetrics.Accuracy('multiclass', num_classes=3), f1=torchmetrics.F1Score('multiclass', num_classes=3, average='macro'))
        return Trainer(linear(), Data.from_tensors((x, y), (x, y), batch_size=16), F.cross_entropy, lr=1e-2, metrics=metrics)
    t = resumes(job, (2, 4))
    out = t.predict(x)
    assert abs(t.history['val_acc'][-1] - (out.argmax(1) == y).float().mean().item()) < 1e-6


groups = dict(transformers=(transformers_causal, transformers_bert, transformers_planned), timm=(timm_images,), keras=(keras_model,), data=(datasets_map, datasets_iterable, torchdata_stateful), metrics=(torchmetrics_objects,))

if __name__ == '__main__':
    warnings.simplefilter('ignore')
    for name in sys.argv[1:] or groups:
        for check in groups[name]: print(check.__name__, flush=True); check()
