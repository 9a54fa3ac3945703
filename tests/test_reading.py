"Loaders and other series of batches: the same batches whoever reads them."
import multiprocessing
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, RandomSampler, Sampler, StackDataset, Subset, TensorDataset, WeightedRandomSampler, get_worker_info

from mlstack.trainer import Callback, Checkpoints, Data, Trainer
from mlstack.trainer.data import key_of
from mlstack.trainer.reading import Loader, own_states, seed_states


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
    for d,each in ((plain,False), (noisy,True), (Subset(noisy,[1]),True), (Subset(plain,[1]),False), (plain+noisy,True), (StackDataset(plain,noisy),True), (StackDataset(a=plain),False), (Whole(8),False), ([1,2],False)):
        assert Loader(DataLoader(d, batch_size=2)).loader.dataset.each is each


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
