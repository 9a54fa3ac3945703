"Loaders and other series of batches: the same batches whoever reads them."
import multiprocessing
import random
import warnings
from collections import UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, StackDataset, Subset, TensorDataset, WeightedRandomSampler, get_worker_info

from mlstack.trainer import Callback, Checkpoints, Data, Trainer
from mlstack.trainer.data import key_of
from mlstack.trainer.reading import Loader, ahead, own_states, seed_states


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv('MLSTACK_PROGRESS', 'no')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def states(): return random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
def same_states(a, b): return a[0]==b[0] and str(a[1])==str(b[1]) and torch.equal(a[2],b[2])


class Noisy(Dataset):
    "Items with augmentation from all three generators, of a varying number of draws."
    def __init__(self, n=24): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i):
        x = torch.full((4,), float(i))
        for _ in range(random.randrange(3)): x = x + np.random.randn() # normal: numpy keeps every second one
        return x + torch.rand(4), i % 3


class Whole(Noisy):
    "Reads whole batches, as datasets of Hugging Face do."
    def __getitems__(self, rows): return [(torch.full((4,),float(i)) + torch.rand(4) + random.random(), i%3) for i in rows]


class Lengths(Sampler):
    "Batches of its own making, drawn batch by batch from Python's generator."
    def __init__(self, n): self.n = n
    def __len__(self): return self.n//4
    def __iter__(self):
        left = list(range(self.n))
        while left: yield [left.pop(random.randrange(len(left))) for _ in range(min(4,len(left)))]


def masking(items):
    "Draws while it collates, as a collator that masks words does."
    x,y = torch.utils.data.default_collate(items)
    return x*(torch.rand(x.shape)<.8), y


def entered(number): get_worker_info().dataset.opened = number # what torch's documentation does


class Opened(Noisy):
    def __getitem__(self, i):
        info = get_worker_info()
        assert info is None or info.dataset is self and self.opened==info.id
        return super().__getitem__(i)


loaders = dict(
    shuffled=lambda **kw: DataLoader(Noisy(), batch_size=4, shuffle=True, **kw),
    in_order=lambda **kw: DataLoader(Noisy(), batch_size=5, **kw),
    masking=lambda **kw: DataLoader(Noisy(), batch_size=4, shuffle=True, collate_fn=masking, **kw),
    whole=lambda **kw: DataLoader(Whole(), batch_size=4, shuffle=True, **kw),
    opened=lambda **kw: DataLoader(Opened(), batch_size=4, shuffle=True, worker_init_fn=entered, **kw),
    weighted=lambda **kw: DataLoader(Noisy(), batch_size=4, sampler=WeightedRandomSampler([1.]*12+[3.]*12, 24), **kw),
    again=lambda **kw: DataLoader(Noisy(), batch_size=4, sampler=RandomSampler(range(24), replacement=True, num_samples=32), **kw),
    lengths=lambda **kw: DataLoader(Noisy(), batch_sampler=Lengths(24), **kw),
    subset=lambda **kw: DataLoader(Subset(Noisy(40), range(3,27)), batch_size=4, shuffle=True, **kw),
    several=lambda **kw: DataLoader(ConcatDataset([Noisy(10),Noisy(14)]), batch_size=4, shuffle=True, **kw),
    single=lambda **kw: DataLoader(Noisy(), batch_size=None, sampler=RandomSampler(range(24)), **kw),
    chosen=lambda **kw: DataLoader(TensorDataset(torch.arange(24.)), batch_size=None, sampler=BatchSampler(RandomSampler(range(24)), 4, False), **kw))


def read(loader, seed=0, epoch=0, start=0, **kw): return [tuple(torch.as_tensor(c).tolist() for c in b) for b in Data(loader).train.train(seed, epoch, start, **kw)]


@pytest.mark.parametrize('kind', loaders)
def test_batches_are_the_same_whoever_reads_them_and_from_wherever(kind):
    before = states()
    whole = read(loaders[kind]())
    assert same_states(states(), before), 'reading moved the random states of its caller'
    torch.rand(7), random.random(), np.random.rand()
    for workers in (0,1,2): assert read(loaders[kind](num_workers=workers))==whole
    assert read(loaders[kind](num_workers=2), start=3)==whole[3:]
    assert read(loaders[kind](), start=2)==whole[2:]
    if kind!='in_order': assert read(loaders[kind](), epoch=1)!=whole and read(loaders[kind](), seed=1)!=whole


@pytest.mark.parametrize('kind', ['shuffled','weighted','lengths'])
def test_workers_that_persist_are_told_the_epoch(kind):
    src = Data(loaders[kind](num_workers=2, persistent_workers=True)).train
    seen = [[x.tolist() for x,_ in src.train(0,e)] for e in (0,1,0)]
    assert seen[0]==seen[2]!=seen[1]
    assert seen[1]==[x for x,_ in read(loaders[kind](), epoch=1)]


def test_an_item_is_the_same_on_any_number_of_ranks():
    items = lambda batches: sorted(tuple(v) for x,_ in batches for v in x)
    halves = [read(DataLoader(Noisy(), batch_size=2, shuffle=True), rank=r, world_size=2) for r in (0,1)]
    assert items(halves[0]+halves[1])==items(read(loaders['shuffled']()))


def test_ranks_take_turns_in_an_order_of_the_samplers_own():
    whole = read(loaders['weighted']())
    assert [read(loaders['weighted'](), rank=r, world_size=2) for r in (0,1)]==[whole[0::2],whole[1::2]]


def test_an_item_that_comes_twice_is_not_augmented_alike():
    x = torch.tensor(sum((b[0] for b in read(DataLoader(Noisy(1), batch_size=4, sampler=WeightedRandomSampler([1.],8)))), []))
    assert len(x.unique(dim=0))==8


def test_validation_reads_the_same_each_time_and_moves_nothing():
    src,before = Data(DataLoader(Noisy(), batch_size=4)).train,states()
    first = [x.tolist() for x,_ in src.valid()]
    assert same_states(states(), before) and sum(map(len,first))==24
    assert [x.tolist() for x,_ in src.valid()]==first
    assert [x.tolist() for r in (0,1) for x,_ in Data(DataLoader(Noisy(), batch_size=4)).train.valid(r,2)]==first


def test_an_item_that_raises_leaves_the_states_alone():
    class Broken(Noisy):
        def __getitem__(self, i): raise KeyError(random.random())
    before = states()
    with pytest.raises(KeyError): read(DataLoader(Broken(), batch_size=4))
    assert same_states(states(), before)


def test_workers_that_do_not_fork():
    "The dataset, its collate function and its `worker_init_fn` reach them by pickle."
    loader = DataLoader(Opened(), batch_size=4, shuffle=True, worker_init_fn=entered, collate_fn=masking, num_workers=1, multiprocessing_context=multiprocessing.get_context('spawn'))
    assert read(loader)==read(DataLoader(Noisy(), batch_size=4, shuffle=True, collate_fn=masking))


def test_numpy_and_torch_do_not_draw_the_same_numbers():
    with own_states():
        seed_states(key_of(3))
        a,b = np.random.randint(0, 2**32, 8, dtype=np.uint32), torch.randint(0, 2**32, (8,)).numpy()
    assert not set(a.tolist()) & set(b.tolist())


def test_pieces_of_torchs_own_are_looked_through():
    plain,noisy = TensorDataset(torch.arange(8.)),Noisy(8)
    for d,draws in ((plain,None), (noisy,'item'), (Subset(noisy,[1]),'item'), (Subset(plain,[1]),None), (plain+noisy,'item'), (StackDataset(plain,noisy),'item'), (StackDataset(a=plain),None), (Whole(8),'batch'), (Whole(8)+plain,'batch'), ([1,2],None)):
        assert Loader(DataLoader(d, batch_size=2)).loader.dataset.draws==draws


# Through a trainer

class Cut(Exception): pass


class CutAt(Callback):
    def __init__(self, step): self.at = step
    def after_step(self, t):
        if t.step==self.at: raise Cut


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4,16), nn.Dropout(.5), nn.ReLU(), nn.Linear(16,3))


@pytest.mark.parametrize('workers', [0,2])
@pytest.mark.parametrize('kind', ['shuffled','masking','weighted','lengths'])
def test_augmentation_in_workers_resumes_twice_in_one_epoch(tmp_path, kind, workers):
    def job(workers, **kw): return Trainer(model(), Data(loaders[kind](num_workers=workers), DataLoader(Noisy(9), batch_size=4)), F.cross_entropy, lr=3e-3, **kw)
    straight = job(0).fit(epochs=2)
    for at in (8,10):
        random.seed(), np.random.seed(), torch.seed()
        with pytest.raises(Cut): job(workers, callbacks=[CutAt(at)]).fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    resumed = job(workers).fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    assert 'bit for bit' in resumed._why['resume'] and 'unless' not in resumed._why['resume']
    assert resumed.history.steps()==straight.history.steps() and resumed.history['val_loss']==straight.history['val_loss']
    assert all(torch.equal(a,b) for a,b in zip(resumed.model.parameters(), straight.model.parameters()))


def test_a_loader_validates_as_its_tensors_do():
    x,y = torch.randn(9,4),torch.arange(9)%3
    t = Trainer(model(), loss=F.cross_entropy)
    assert t.validate(DataLoader(TensorDataset(x,y), batch_size=4))==t.validate(Data.from_tensors((x,y), batch_size=4))


# On the device

def flip(batch):
    x,y = batch
    return torch.where(torch.rand(len(x),1)<.5, x, -x),y


def halve(batch): return batch[0]/2,batch[1]


def whole():
    g = torch.Generator().manual_seed(0)
    return torch.randn(50,4,generator=g),torch.arange(50)%3


kept = dict(tensors=lambda **kw: Data.from_tensors(whole(), whole(), batch_size=8, **kw),
    loader=lambda **kw: Data(DataLoader(TensorDataset(*whole()), batch_size=8, shuffle=True), DataLoader(TensorDataset(*whole()), batch_size=8), **kw),
    series=lambda **kw: Data(list(zip(*(c.split(8) for c in whole()))), Data.from_tensors(whole()).train, **kw))


@pytest.mark.parametrize('kind', kept)
def test_augmentation_on_the_device_resumes_twice_in_one_epoch(tmp_path, kind):
    def job(**kw): return Trainer(model(), kept[kind](augment=flip, prepare=halve), F.cross_entropy, lr=3e-3, **kw)
    straight = job().fit(epochs=2)
    plain = Trainer(model(), kept[kind](prepare=halve), F.cross_entropy, lr=3e-3).fit(epochs=2)
    assert plain.history.steps()!=straight.history.steps()
    for at in (9,11):
        random.seed(), np.random.seed(), torch.seed()
        with pytest.raises(Cut): job(callbacks=[CutAt(at)]).fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    resumed = job().fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    assert 'bit for bit' in resumed._why['resume'] and resumed.history.steps()==straight.history.steps() and resumed.history['val_loss']==straight.history['val_loss']
    assert 'augment flip and prepare halve on the device' in str(resumed.explain())


def test_augmentation_does_not_shift_dropout():
    "The random state of a fit is the same whether its batches are augmented or not."
    after = lambda **kw: (Trainer(model(), kept['tensors'](**kw), F.cross_entropy).fit(epochs=1), torch.get_rng_state())[1]
    assert torch.equal(after(), after(augment=flip))


def test_validation_is_prepared_and_not_augmented():
    x,y = whole()
    t = Trainer(model(), kept['tensors'](augment=flip, prepare=halve), F.cross_entropy)
    found = t.validate()['val_loss']
    assert abs(found-F.cross_entropy(t.model.eval()(x/2), y).item())<1e-6


def test_a_source_of_ones_own_changes_its_batches_itself():
    class Mine:
        def train(self, *a): pass
        valid = count = train
    with pytest.raises(ValueError, match='brings its batches itself'): Data(Mine(), augment=flip)


class Stream:
    "Copies as a GPU's stream would: one after another, complete at the latest when somebody waits."
    def __init__(self): self.said = []
    def start(self, batch): self.said.append(f'copy {batch}'); return batch,f'event {batch}'
    def finish(self, batch, event): self.said.append(f'wait for {event}'); return batch


@pytest.mark.parametrize('n', [1,2,5])
def test_copies_run_ahead_of_the_step(n):
    s = Stream()
    for b in ahead(range(4), torch.device('cpu'), n, s): s.said.append(f'step {b}')
    for b in range(4):
        at = s.said.index(f'step {b}')
        assert s.said.index(f'copy {b}')<s.said.index(f'wait for event {b}')<at
        assert sum(o.startswith('copy') for o in s.said[:at])==min(b+n,4)


@pytest.mark.gpu
@pytest.mark.parametrize('prefetch', [0,2])
def test_batches_copied_ahead_are_those_that_were_read(prefetch):
    loader = DataLoader(TensorDataset(torch.arange(4000.).reshape(-1,4)), batch_size=10, num_workers=1)
    src = Data(loader, prefetch=prefetch).train
    src.place('cuda')
    seen = [(x*2).cpu() for x, in src.train(0,0)]
    assert torch.equal(torch.cat(seen), torch.arange(4000.).reshape(-1,4)*2)


# What went wrong, and where

def failing(data, loss=F.cross_entropy, **kw):
    with pytest.raises(Exception) as e: Trainer(model(), data, loss, **kw).fit(epochs=1)
    return '\n'.join([str(e.value), *getattr(e.value,'__notes__',())])


def late(n, bad):
    x,y = whole()
    return [(x[:8],y[:8])]*n + [bad(x[:8],y[:8])]


@pytest.mark.parametrize('data,says', [
    (lambda: Data.from_tensors((whole()[0], whole()[1].index_fill(0,torch.tensor(41),3)), batch_size=8), r'label 3 (item 41 of the data) is none of the 3 classes'),
    (lambda: Data.from_tensors((whole()[0], whole()[1]-1), batch_size=50), 'number the classes from 0'),
    (lambda: late(2, lambda x,y: (x,y+7)), 'label 7 (item 0 of batch 3 of the epoch)'),
    (lambda: late(2, lambda x,y: (x,None)), 'its target is None'),
    (lambda: late(2, lambda x,y: (x[:,:3],y)), 'in step 3, batch 3 of epoch 1: (float32[8, 3], int64[8])'),
    (lambda: late(0, lambda x,y: (x[:,:3],y)), 'layer 0 (Linear, weight float32[16, 4]) does not take float32[8, 3]'),
    (lambda: late(0, lambda x,y: (x,y[:5])), 'one label for each row'),
    (lambda: late(0, lambda x,y: (x,y.float())), 'whole numbers as labels'),
    (lambda: [], 'gave no batch in epoch 1')])
def test_what_is_wrong_with_the_data_is_named(data, says): assert says.lower() in failing(data()).lower()


def test_targets_that_would_be_broadcast_are_refused():
    said = failing([(torch.zeros(8,4),torch.zeros(8))], F.mse_loss)
    assert 'the model gives float32[8, 3] and the target is float32[8]' in said


class Dies(nn.Module):
    "A model whose device dies of a label, and is heard of a few steps later."
    def __init__(self, after):
        super().__init__()
        self.net,self.after = model(),after
    def forward(self, x):
        self.after -= 1
        if self.after<0: raise RuntimeError('CUDA error: device-side assert triggered')
        return self.net(x)


@pytest.mark.parametrize('bad', [True,False])
def test_a_label_a_device_has_died_of_is_looked_for(bad):
    x,y = whole()
    if bad: y = y.index_fill(0,torch.tensor(29),11)
    loss = lambda out,y: F.cross_entropy(out, y.clamp(max=2)) # the kernel goes on, as one on a device does
    src = Data(DataLoader(TensorDataset(x,y), batch_size=8))
    src.train.classes = 3,-100 # as the first step with torch's own loss would have noted
    with pytest.raises(RuntimeError) as e: Trainer(Dies(6), src, loss).fit(epochs=2)
    said = '\n'.join(e.value.__notes__)
    assert ('label 11 (item 5 of batch 4 of the epoch)' in said) if bad else ('no label is outside' in said)


def test_parameters_unused_and_shared_are_no_error():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.unused,self.out = nn.Linear(4,4),nn.Linear(4,4),nn.Linear(3,3),nn.Linear(4,3)
            self.b.weight = self.a.weight
        def forward(self, x): return self.out(self.b(self.a(x)))
    t = Trainer(Odd(), Data.from_tensors(whole(), batch_size=8), F.cross_entropy, clip=1., accumulate=2).fit(epochs=2)
    assert t.model.b.weight is t.model.a.weight and t.model.unused.weight.grad is None


# Batches of any kind

@dataclass(frozen=True)
class Pair: input: torch.Tensor; target: torch.Tensor; name: str = 'a'


Named = namedtuple('Named', 'target input')


class Graphs:
    "What a batch of graphs looks like to a trainer: it moves itself, and the model takes it whole."
    def __init__(self, x, y): self.x,self.y,self.num_graphs = x,y,len(y)
    def to(self, device): return Graphs(self.x.to(device), self.y.to(device))


class OfGraphs(nn.Module):
    def __init__(self): super().__init__(); self.net = model()
    def forward(self, batch): return self.net(batch.x)


class Takes(nn.Module):
    "A model that is called by name, and takes what may be None."
    def __init__(self): super().__init__(); self.net = model()
    def forward(self, input, mask=None, name=None): return self.net(input)


kinds = dict(tuple=lambda x,y: (x,y), list=lambda x,y: [x,y], numpy=lambda x,y: (x.numpy(),y.numpy()), dict=lambda x,y: dict(input=x, label=y, mask=None), mapping=lambda x,y: UserDict(input=x, labels=y), dataclass=lambda x,y: Pair(x,y),
    namedtuple=lambda x,y: Named(y,x), graphs=Graphs)


@pytest.mark.parametrize('kind', kinds)
def test_a_batch_may_be_of_any_kind(kind):
    def fit(make, net): return Trainer(net, Data([make(*b) for b in parts], [make(*b) for b in parts]), F.cross_entropy, metrics=dict(acc=lambda out,y: (out.argmax(1)==y).float().mean())).fit(epochs=2)
    parts = list(zip(*(c.split(8) for c in whole())))
    t,same = fit(kinds[kind], OfGraphs() if kind=='graphs' else Takes()), fit(kinds['tuple'], Takes())
    assert t.history.steps()==same.history.steps() and t.history['val_loss']==same.history['val_loss'] and t.history['val_acc']==same.history['val_acc']
    if kind!='graphs': assert torch.equal(t.predict(t.data), same.predict(same.data))


# Series that are read from front to back

class Drawn(IterableDataset):
    "Each worker reads its share, and draws."
    def __iter__(self):
        info = get_worker_info()
        for i in range(info.id if info else 0, 48, info.num_workers if info else 1): yield torch.full((4,),i/48)+torch.rand(4)+random.random()+np.random.rand(), i%3


@pytest.mark.parametrize('workers', [0,2])
def test_what_workers_draw_for_a_series_is_drawn_again(tmp_path, workers):
    def job(**kw): return Trainer(model(), DataLoader(Drawn(), batch_size=8, num_workers=workers), F.cross_entropy, **kw)
    straight = job().fit(epochs=2)
    for at in (8,10):
        random.seed(), np.random.seed(), torch.seed()
        with pytest.raises(Cut), warnings.catch_warnings(): warnings.simplefilter('ignore'); job(callbacks=[CutAt(at)]).fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); resumed = job().fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    assert resumed.history.steps()==straight.history.steps()


class Counted:
    "Batches read from front to back, with a state; how many were read is counted."
    def __init__(self): self.at,self.read = 0,0
    def __iter__(self):
        x,y = whole()
        while self.at<6:
            k,self.at,self.read = self.at,self.at+1,self.read+1
            yield x[8*k:8*k+8],y[8*k:8*k+8]
        self.at = 0
    def state_dict(self): return dict(at=self.at)
    def load_state_dict(self, state): self.at = state['at']


class Unkept(Counted):
    "Its state is nothing a checkpoint could hold."
    def state_dict(self): return dict(at=object())


@pytest.mark.parametrize('kind,read', [(Counted,6*2-8),(Unkept,6*2-6)])
def test_a_series_that_knows_its_place_is_not_read_again(tmp_path, kind, read):
    def job(data, **kw): return Trainer(model(), data, F.cross_entropy, **kw)
    straight = job(kind()).fit(epochs=2)
    for at in (8,9):
        with pytest.raises(Cut): job(kind(), callbacks=[CutAt(at)]).fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    data = kind()
    resumed = job(data).fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    assert resumed.history.steps()==straight.history.steps() and 'bit for bit' in resumed._why['resume']
    assert data.read==read
    assert ('goes to the place' in str(resumed.explain()))
