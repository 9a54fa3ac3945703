"Data parallelism: equal to one process however the items fall, no collective more than raw DDP, and an error for what ranks disagree about."
import contextlib
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlstack import workers
from mlstack.core import MlstackError, StopTraining
from mlstack.ddp import launch
from mlstack.ddp.parallel import DDP
from mlstack.trainer import Callback, Data, Trainer
from mlstack.trainer.step import TrainerError


def net(kind='plain'):
    torch.manual_seed(1)
    if kind == 'norm': return nn.Sequential(nn.Linear(6,16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16,2))
    return nn.Sequential(nn.Linear(6,16), nn.Tanh(), nn.Linear(16,2))

def items(n):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 0).long()

def flat(model): return torch.cat([p.detach().flatten() for p in model.parameters()])

def tokens(model, batch):
    "A loss over the tokens that count: differently many in each item, in some none."
    x,y = batch
    keep = (x[:,0] > 0).float()
    each = F.cross_entropy(model(x), y, reduction='none')
    return dict(loss=(each*keep).sum()/keep.sum().clamp(min=1), count=keep.sum())

def ragged(world, sizes=(4,7,2,5,3,6,1,8)):
    "Batches of different sizes; for one process those that `world` ranks take in one turn, joined."
    x,y = items(sum(sizes))
    cut = list(zip(x.split(sizes), y.split(sizes)))
    return [tuple(map(torch.cat, zip(*cut[i:i+world]))) for i in range(0, len(cut), world)]

class Ordered(torch.utils.data.Sampler):
    "An order of the user's own, which the trainer may not replace."
    def __init__(self, n): self.n = n
    def __iter__(self): return iter(range(self.n-1, -1, -1))
    def __len__(self): return self.n

def own_order(n, size):
    "A loader with a sampler of its own, whose last batch is short."
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*items(n)), batch_size=size, sampler=Ordered(n))

#                        items, batch of all ranks together, arguments
cases = {
    'plain':            (96, 24, {}),
    'accumulate':       (96, 12, dict(accumulate=2)),
    'clip':             (96, 24, dict(clip=.1)),
    'one item left':    (97, 24, {}),
    'five left':        (101, 24, {}),
    'left, accumulate': (101, 12, dict(accumulate=3)),
    'fewer than one batch': (17, 24, {}),
    'fewer than ranks': (1, 24, {}),
    'tokens':           (96, 24, dict(loss=None, step=tokens)),
    'tokens, left':     (97, 24, dict(loss=None, step=tokens)),
    'tokens, accumulate': (97, 12, dict(loss=None, step=tokens, accumulate=2)),
}

def train(case, world, parallel=None, device_count=1, **more):
    torch.set_num_threads(1)
    if case == 'ragged': data,kw = Data(ragged(1 if parallel else world)),{}
    elif case == 'own order': data,kw = Data(own_order(49, 24//(world if parallel else 1))),{}
    else:
        n,size,kw = cases[case]
        data = Data.from_tensors(items(n), batch_size=size//(world if parallel else 1), drop_last=False)
    kw = dict(loss=F.cross_entropy, opt=lambda p, lr: torch.optim.SGD(p, lr, momentum=.9), lr=.1) | kw | more
    t = Trainer(net(), data, parallel=parallel, **kw)
    t.fit(epochs=3)
    return flat(t.model), [r['loss'] for r in t.history.rows], t.step

def each(names, world):
    return {name: train(name, world, parallel='ddp') for name in names}


@pytest.mark.parametrize('world', [2,3,4])
def test_ranks_are_one_process_with_the_same_global_batch(world):
    names = [*cases,'ragged','own order']
    ranks = launch(each, names, world, nprocs=world, output='none', timeout=300)
    for name in names:
        alone,losses,steps = train(name, world)
        for weights,seen,n in (r[name] for r in ranks):
            assert torch.equal(weights, ranks[0][name][0]) and n == steps, name
            assert torch.allclose(weights, alone, rtol=1e-4, atol=2e-6), (name, weights-alone)
            assert seen == pytest.approx(losses, rel=1e-5), name


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation

class Seen:
    "A metric that remembers which items it has seen."
    def __init__(self): self.reset()
    def reset(self): self.numbers = torch.zeros(0)
    def update(self, out, y): self.numbers = torch.cat([self.numbers, y.float()])
    def compute(self): return float(self.numbers.sum())
    def merge_state(self, others): self.numbers = torch.cat([self.numbers, *(o.numbers for o in others)])

class Stream(torch.utils.data.IterableDataset):
    "Items from front to back; nobody knows how many."
    def __init__(self, n): self.n = n
    def __iter__(self): return ((x,y) for x,y in zip(*items(self.n)))

def sources(n):
    numbered = items(n)[0],torch.arange(n)
    pairs = torch.utils.data.TensorDataset(*numbered)
    return {
        'tensors': Data.from_tensors(numbered, numbered, batch_size=8).valid,
        'loader': torch.utils.data.DataLoader(pairs, batch_size=8),
        'loader, own order': torch.utils.data.DataLoader(pairs, batch_size=8, sampler=Ordered(n)),
        'series': list(zip(numbered[0].split(8), numbered[1].split(8))),
    }

def evaluate(n, parallel=None):
    torch.set_num_threads(1)
    t = Trainer(net(), Data.from_tensors(items(8), items(8), batch_size=2), loss=lambda out,y: (out.sum(1)*(1+y)).mean(), metrics=dict(seen=Seen()), parallel=parallel)
    found = {name: t.validate(src) | dict(seen=sorted(gathered(t).tolist())) for name,src in sources(n).items()}
    t = Trainer(net(), Data.from_tensors(items(8), batch_size=2), loss=F.cross_entropy, parallel=parallel)
    return found | dict(stream=t.validate(torch.utils.data.DataLoader(Stream(n), batch_size=4)))

def gathered(t):
    m = t.metrics['seen']
    if t.parallel.world_size == 1: return m.numbers
    table = torch.zeros(1000)
    table.index_add_(0, m.numbers.long(), torch.ones(len(m.numbers)))
    table = t.parallel.sum(table)
    assert table.max() <= 1
    return table.nonzero()[:,0].float()

@pytest.mark.parametrize('world,n', [(2,37),(3,5)])
def test_every_item_is_evaluated_once(world, n):
    alone = evaluate(n)
    for found in launch(evaluate, n, parallel='ddp', nprocs=world, output='none', timeout=300):
        for name,values in alone.items():
            if name != 'stream': assert found[name]['seen'] == list(range(n)), name
            assert found[name]['val_loss'] == pytest.approx(values['val_loss'], rel=1e-6), name

def test_predictions_of_ranks_come_with_their_numbers(tmp_path):
    files = find_spec('pyarrow') is not None
    def work(folder):
        t = Trainer(net(), loss=F.cross_entropy, parallel='ddp')
        if files: t.predict(items(29)[0], to=f'{folder}/out.parquet')
        elif t.parallel.main: assert sorted(i for r in range(3) for at,b in t._numbered(items(29)[0], r, 3) for i in range(at, at+len(b))) == list(range(29))
        return torch.cat(t.predict(Data.from_tensors(items(29), items(29), batch_size=4), join=False))
    parts = launch(work, str(tmp_path), nprocs=3, output='none', timeout=300)
    whole = Trainer(net(), loss=F.cross_entropy).predict(items(29)[0])
    for part in parts: torch.testing.assert_close(part, whole) # all of them, on every rank
    if not files: return
    import pyarrow.parquet as pq
    table = pq.read_table(tmp_path/'out.parquet').sort_by('index')
    assert table['index'].to_pylist() == list(range(29))
    torch.testing.assert_close(torch.tensor(table['output'].to_pylist()), whole)


# ---------------------------------------------------------------------------------------------------------------------
# What a step costs

def collectives(run):
    from collections import Counter

    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as p: run()
    return Counter(e.name.split(':')[1] for e in p.events() if e.name.startswith('gloo:'))

class Counting(Callback):
    "Python and C calls of 16 steps in the middle."
    def __init__(self): self.calls,self.steps = 0,0
    def after_step(self, t):
        self.steps += 1
        if self.steps == 10: sys.setprofile(self.count)
        if self.steps == 26: sys.setprofile(None)
    def count(self, frame, event, arg): self.calls += event in ('call','c_call')

def costs(kind, accumulate=1, n=32):
    torch.set_num_threads(1)
    x,y = items(n*accumulate*8*4) # all fits are within one epoch
    model = net(kind)
    d = nn.parallel.DistributedDataParallel(model)
    opt = torch.optim.AdamW(model.parameters(), fused=True)
    batches = list(zip(x.split(4), y.split(4)))[:n*accumulate]
    def raw():
        for i in range(0, len(batches), accumulate):
            with d.no_sync() if accumulate > 1 else contextlib.nullcontext():
                for a,b in batches[i:i+accumulate-1]: (F.cross_entropy(d(a), b)/accumulate).backward()
            a,b = batches[i+accumulate-1]
            (F.cross_entropy(d(a), b)/accumulate).backward()
            opt.step()
            opt.zero_grad()
    calls = [0]
    def count(frame, event, arg): calls[0] += event in ('call','c_call')
    raw()
    of_raw = collectives(raw)
    sys.setprofile(count); raw(); sys.setprofile(None)
    t = Trainer(net(kind), Data.from_tensors((x,y), batch_size=4), loss=F.cross_entropy, accumulate=accumulate, parallel='ddp')
    t.fit(steps=n)
    fits = [collectives(lambda m=m: t.fit(steps=m)) for m in (n//2,n)] # a fit has some of its own, the steps between none
    t.callbacks.append(c := Counting())
    t.fit(steps=n)
    return of_raw, fits, calls[0]/n, c.calls/16

@pytest.mark.parametrize('kind,accumulate', [('plain',1),('norm',2)])
def test_a_step_has_no_collective_and_hardly_a_call_more_than_raw_ddp(kind, accumulate):
    raw,(half,whole),raw_calls,calls = launch(costs, kind, accumulate, nprocs=2, output='none', timeout=300)[0]
    assert raw['all_reduce'] == 32
    own = accumulate>1 # without a static graph nothing rides with the gradients, and with it the first step would round otherwise than after a restart
    assert whole['all_reduce']-half['all_reduce'] == 16+own, 'one a step, as raw DDP has'
    assert whole['broadcast'] == half['broadcast'] and (raw['broadcast'] > 0) == (kind == 'norm')
    assert whole['all_reduce'] <= 32+5 # a fit: what ranks were given, whether a callback ended it before it began, how its epoch ended
    assert calls <= raw_calls+20


def test_what_ranks_tell_each_other_is_the_same_with_and_without_the_gradients():
    def work(alone):
        torch.set_num_threads(1)
        t = Trainer(net(), Data.from_tensors(items(37*8), batch_size=4), loss=F.cross_entropy, lr=.01, parallel=DDP(static_graph=not alone))
        t.fit(epochs=1)
        return t.history.series['loss'][1], t.parallel.carrier is None
    with_gradients,by_itself = zip(*launch(lambda: (work(False),work(True)), nprocs=2, output='none', timeout=300))
    assert [w[1] for w in with_gradients+by_itself] == [False,False,True,True]
    assert len(with_gradients[0][0]) == 37 and with_gradients[0] == with_gradients[1]
    torch.testing.assert_close(with_gradients[0][0], by_itself[0][0])


# ---------------------------------------------------------------------------------------------------------------------
# Options

class Part(nn.Module):
    "Some of it is never used, some now and then; a step may checkpoint its middle."
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.first,self.middle,self.last,self.how,self.n = nn.Linear(6,8),nn.Linear(8,8),nn.Linear(8,2),how,0
        if how == 'unused': self.spare = nn.Linear(3,3)
    def forward(self, x):
        from torch.utils.checkpoint import checkpoint
        h = self.first(x).tanh()
        self.n += self.training
        if self.how == 'now and then' and self.n > 2: return self.last(h)
        h = checkpoint(self.middle, h, use_reentrant=self.how == 'reentrant') if self.how in ('checkpoint','reentrant') else self.middle(h)
        return self.last(h.tanh())

def with_options():
    torch.set_num_threads(1)
    def fit(how, accumulate=1, **options):
        t = Trainer(Part(how), Data.from_tensors(items(64), batch_size=4), loss=F.cross_entropy, opt=torch.optim.SGD, lr=.1, accumulate=accumulate, parallel=DDP(**options))
        t.fit(epochs=2)
        return flat(t.model), [*t.explain()]
    said = {}
    try: fit('now and then')
    except RuntimeError as e: said = '\n'.join(e.__notes__)
    return dict(plain=fit('plain', static_graph=False), static=fit('plain'), unused=fit('unused'), checkpoint=fit('checkpoint'), reentrant=fit('reentrant'), several=fit('plain', accumulate=2),
        several_plain=fit('plain', accumulate=2, static_graph=False), fp16=fit('plain', compress='fp16'), bf16=fit('plain', compress='bf16'), looking=fit('unused', find_unused_parameters=True)), said

def test_static_graphs_unused_parameters_and_compression():
    (found,said),(other,_) = launch(with_options, nprocs=2, output='none', timeout=300)
    for name,(weights,_) in found.items(): assert torch.equal(weights, other[name][0]), name
    plain = found['plain'][0]
    for name in ('static','checkpoint','reentrant'): torch.testing.assert_close(found[name][0], plain, rtol=1e-5, atol=1e-7)
    for name in ('unused','looking'): torch.testing.assert_close(found[name][0][:plain.numel()], plain, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found['several'][0], found['several_plain'][0], rtol=1e-5, atol=1e-7)
    for name,near in (('fp16',2e-3),('bf16',2e-2)):
        away = (found[name][0]-plain).abs().max()
        assert 0 < away < near, name
    assert any('no gradient has reached spare.weight, spare.bias' in s for s in found['unused'][1])
    assert any('sent as bf16' in s for s in found['bf16'][1]) and any('static graph' in s for s in found['static'][1])
    assert 'middle.weight, middle.bias had a gradient in some steps and not in others' in said and 'find_unused_parameters=True' in said


def test_powersgd():
    def work():
        from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
        torch.set_num_threads(1)
        state = PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2, min_compression_rate=1)
        t = Trainer(net(), Data.from_tensors(items(128), batch_size=8), loss=F.cross_entropy, lr=.01, parallel=DDP(compress=state))
        t.fit(epochs=4)
        return flat(t.model), [r['loss'] for r in t.history.rows], bool(state.q_memory_dict), t.explain()
    (a,losses,used,said),(b,*_) = launch(work, nprocs=2, output='none', timeout=300)
    assert torch.equal(a, b) and used and losses[-1] < losses[0]*.9
    assert any('PowerSGD of rank 1 from step 2' in s for s in said)


def norm_work(shape, sync, **kw):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Linear(6,8), nn.BatchNorm1d(8)] if shape == 1 else [nn.Conv2d(2,4,3), nn.BatchNorm2d(4, momentum=None), nn.Flatten(), nn.LazyLinear(8)]
    x,y = items(48)
    x = x if shape == 1 else torch.randn(48,2,5,5, generator=torch.Generator().manual_seed(2))
    model = nn.Sequential(*layers, nn.Tanh(), nn.Linear(8,2))
    model(x[:4]) # the lazy one gets its shape
    for m in model.modules():
        if hasattr(m,'reset_running_stats'): m.reset_running_stats()
    t = Trainer(model, Data.from_tensors((x,y), (x,y), **kw), loss=F.cross_entropy, opt=torch.optim.SGD, lr=.1, parallel=DDP(sync_batchnorm=sync) if sync is not None else None)
    t.fit(epochs=2)
    return torch.cat([o.detach().flatten().float() for o in t.model.state_dict().values()]), t.history.rows[-1]['val_loss'], [*t.explain()]

@pytest.mark.parametrize('shape', [1,2])
def test_batch_norm_over_all_ranks_is_that_of_one_process(shape):
    def both(): return norm_work(shape, True, batch_size=6), norm_work(shape, False, batch_size=6)
    alone,loss,_ = norm_work(shape, None, batch_size=12)
    ranks = launch(both, nprocs=2, output='none', timeout=300)
    for (synced,val,said),_ in ranks:
        torch.testing.assert_close(synced, alone, rtol=1e-4, atol=1e-5)
        assert val == pytest.approx(loss, rel=1e-4) and any('items of all ranks' in s for s in said)
    own = [own for _,own in ranks]
    assert torch.equal(own[0][0], own[1][0]), 'what batch norm remembers is that of rank 0 at the end'
    assert not torch.allclose(own[0][0], alone, atol=1e-4) and any('of its rank only' in s for s in own[0][2])


# ---------------------------------------------------------------------------------------------------------------------
# What ranks disagree about, and what fails on one of them

def misfit(kind):
    import torch.distributed as dist
    from mlstack.ddp.launching import join_group
    torch.set_num_threads(1)
    join_group()
    r = dist.get_rank()
    model,n,kw,fit = net(),64,{},dict(epochs=1)
    x,y = items(n)
    if kind == 'shape' and r: model = nn.Sequential(nn.Linear(6,12), nn.Tanh(), nn.Linear(12,2))
    if kind == 'layer' and r: model.append(nn.Linear(2,2))
    if kind == 'frozen' and r: model[0].weight.requires_grad_(False)
    if kind == 'length' and r: x,y = items(60)
    if kind == 'order' and r: x,y = x.flip(0),y.flip(0)
    if kind == 'rate': kw = dict(lr=.1 if r else .2)
    if kind == 'epochs': fit = dict(epochs=1+r)
    if kind == 'lazy': model = nn.Sequential(nn.LazyLinear(2))
    if kind == 'nothing': model.requires_grad_(False)
    if kind == 'later':
        class Late(nn.Module):
            def __init__(self): super().__init__(); self.a = nn.Linear(6,6)
            def forward(self, x):
                if not hasattr(self,'b'): self.b = nn.Linear(6,2)
                return self.b(self.a(x))
        model = Late()
    batch = 4+4*r if kind == 'batch size' else 4
    t = Trainer(model, Data.from_tensors((x,y), batch_size=batch), loss=F.cross_entropy, parallel='ddp', **kw)
    if kind == 'unfrozen':
        model[0].weight.requires_grad_(False)
        t.fit(epochs=1)
        model[0].weight.requires_grad_(True)
    t.fit(**fit)

disagreements = {
    'shape':      r'rank 1 has another model than rank 0 \(0.weight: float32\[12, 6\] there, float32\[16, 6\] on rank 0\)',
    'layer':      r'rank 1 has another model than rank 0 \(it has 3.weight, which rank 0 has not\)',
    'frozen':     r'0.weight: float32\[16, 6\] frozen there',
    'length':     r'rank 1 has another training data than rank 0 \(items: 60 there, 64 on rank 0\)',
    'order':      r'rank 1 has another training data than rank 0 \(item 0',
    'batch size': r'batch_size: 8 there, 4 on rank 0',
    'rate':       r"rank 1 has another plan for this fit",
    'epochs':     r'rank 1 has another plan for this fit than rank 0 \(last_step: 16 there, 8 on rank 0',
    'lazy':       r'the shape of 0 is known only when the model has seen a batch',
    'nothing':    r'the model has no parameter that can learn',
    'later':      r'b.weight, b.bias came after the model was made ready for 2 ranks',
    'unfrozen':   r'0.weight came after the model was made ready',
}

def say_all():
    "Every disagreement in turn, in one group of ranks."
    said = {}
    for kind in disagreements:
        try: misfit(kind)
        except (MlstackError,RuntimeError) as e: said[kind] = str(e)
    return said

def test_ranks_say_what_they_disagree_about():
    import re
    for said in launch(say_all, nprocs=2, output='none', timeout=300):
        for kind,pattern in disagreements.items(): assert re.search(pattern, said.get(kind,'nothing')), (kind,said.get(kind))


class Own(torch.utils.data.IterableDataset):
    "A stream that each rank has for itself, of its own length; divided by somebody else, or not."
    def __init__(self, sizes, divided):
        self.sizes = sizes
        if divided: self._distributed = True
    def __iter__(self):
        from mlstack.core import context
        for i in range(self.sizes[context().rank]): yield torch.full((4,6), float(i)),torch.zeros(4, dtype=torch.long)

def streams(kind, sizes, divided=True, **kw):
    "Ends with an error on the ranks that have not met: all of them, where nobody waits in a step."
    torch.set_num_threads(1)
    from mlstack.ddp.rarely import LocalSGD
    t = Trainer(net(), Own(sizes, divided), loss=F.cross_entropy, parallel=LocalSGD(every=100) if kind == 'rarely' else kind, **kw)
    try: t.fit(epochs=2)
    except MlstackError as e:
        if kind != 'rarely': raise
        return str(e)
    return t.step

def test_streams_of_different_lengths_say_which_rank_ended_first():
    for kind,sizes,divided,more,said in (('ddp', (2,9), True, {}, 'rank 0 ended after 2 batches, and that of rank 1 has more'), ('fsdp', (9,4), False, {}, 'rank 1 ended after 2 batches, and that of rank 0 has more'),
            ('ddp', (5,0), True, dict(accumulate=2), 'rank 1 ended after 0 batches, and that of rank 0 has more')):
        with pytest.raises(workers.WorkerError) as e: launch(streams, kind, sizes, divided, nprocs=2, output='none', timeout=300, **more)
        assert said in str(e.value) and 'itertools.islice' in str(e.value), str(e.value)
        assert isinstance(e.value.__cause__, MlstackError)
    def several(): return streams('rarely', (3,5)), streams('ddp', (5,5)), streams('ddp', (6,6), False), streams('ddp', (7,7), accumulate=2)
    for unequal,*steps in launch(several, nprocs=2, output='none', timeout=300):
        assert 'rank 0 ended after 3 batches, and that of rank 1 has 5' in unequal.replace('more', '5') and steps == [10,6,8]


def test_checkpoints_are_written_beside_the_training(tmp_path):
    def work(folder):
        import threading
        from mlstack.trainer import Checkpoints, checkpoints
        torch.set_num_threads(1)
        seen,write = [],checkpoints._write_part
        def noted(path, obj): seen.append(threading.current_thread().name); write(path, obj)
        checkpoints._write_part = noted
        t = Trainer(net(), Data.from_tensors(items(64), batch_size=4), loss=F.cross_entropy, lr=.01, parallel='ddp')
        t.fit(epochs=1, save=Checkpoints(folder, every=3))
        again = Trainer(net(), Data.from_tensors(items(64), batch_size=4), loss=F.cross_entropy, lr=.01, parallel='ddp')
        again.fit(epochs=1, save=Checkpoints(folder, every=3), resume=f'{folder}/step-000000006')
        return set(seen), t._why['saves'], torch.equal(flat(t.model), flat(again.model)), again._why['resume']
    for threads,said,equal,why in launch(work, str(tmp_path), nprocs=2, output='none', timeout=300):
        assert threads == {'mlstack-checkpoint'} and 'beside the training' in said and equal and why == 'resumed at step 6: bit for bit'
    for threads,said,equal,_ in launch(work, str(tmp_path/'again'), nprocs=2, output='none', timeout=300, max_restarts=1): # a write under way would be lost with its interval
        assert threads == {'MainThread'} and 'one interval at most' in said and equal


def failing(how):
    import torch.distributed as dist
    torch.set_num_threads(1)
    def loss(out, y):
        if how and dist.get_rank() == 1 and t.step == 5: raise StopTraining('enough') if how == 'stop' else ValueError('only here')
        return F.cross_entropy(out, y)
    class Enough(Callback):
        def after_step(self, t):
            if not how and dist.get_rank() == 1 and t.step == 20: raise StopTraining('enough')
    t = Trainer(net(), Data.from_tensors(items(800), batch_size=4), loss=loss, parallel='ddp', callbacks=[Enough()])
    t.fit(epochs=1)
    return t.step, t.stopped

def test_the_caller_gets_the_error_of_the_rank_that_failed():
    with pytest.raises(workers.WorkerError, match='only here') as e: launch(failing, 'error', nprocs=3, output='none', timeout=300)
    assert e.value.index == 1 and isinstance(e.value.__cause__, ValueError)
    with pytest.raises(workers.WorkerError, match='rank 1 was stopped in the middle of step 6, for which the others need it: enough'): launch(failing, 'stop', nprocs=2, output='none', timeout=300)

def test_a_callback_of_one_rank_stops_all_in_the_same_step():
    (a,said),(b,other) = launch(failing, None, nprocs=2, output='none', timeout=300)
    assert a == b and 20 < a <= 64 and other == 'enough' and 'another rank' in said


def test_a_seed_that_is_drawn_is_the_same_on_all_ranks():
    def work():
        torch.set_num_threads(1)
        t = Trainer(net(), Data.from_tensors(items(64), batch_size=4), loss=F.cross_entropy, seed=None, parallel='ddp')
        t.fit(epochs=1)
        return t.seed, flat(t.model)
    (a,wa),(b,wb) = launch(work, nprocs=2, output='none', timeout=300)
    assert a == b and torch.equal(wa, wb)


def test_wrappers_and_words():
    model = net()
    with pytest.warns(UserWarning, match='nn.DataParallel is left out.*parallel="ddp"'): t = Trainer(nn.DataParallel(model), Data.from_tensors(items(32), batch_size=8), loss=F.cross_entropy)
    assert t.model is model
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t.fit(epochs=1)
    with pytest.raises(TrainerError, match=r'Give an instance: DDP\(\)'): Trainer(model, parallel=DDP)
    with pytest.raises(MlstackError, match='is not known'): Trainer(model, parallel='dpp')
    with pytest.raises(TrainerError, match='has no rank'): Trainer(model, parallel=2)
    def wrapped(): Trainer(nn.parallel.DistributedDataParallel(net()), loss=F.cross_entropy)
    with pytest.raises(workers.WorkerError, match='DistributedDataParallel already'): launch(wrapped, nprocs=2, output='none', timeout=300)


# ---------------------------------------------------------------------------------------------------------------------
# Meeting rarely

def rare():
    from mlstack.ddp.rarely import DiLoCo, LocalSGD
    torch.set_num_threads(1)
    found = {}
    sgd = dict(opt=torch.optim.SGD, lr=.1)
    for case in ('plain','clip','one item left','ragged'):
        for name,p in dict(ddp=DDP(), one=LocalSGD(every=1)).items():
            if case == 'clip' and name == 'one': continue # each rank clips its own gradients
            found[case,name] = train(case, 2, parallel=p, **sgd)[0]
    class Apart(Callback):
        "In which steps the weights of the ranks differ."
        def __init__(self): self.steps = []
        def after_step(self, t):
            w = flat(t.model)
            if not torch.allclose(t.parallel.sum(w.clone())/2, w, rtol=0, atol=0): self.steps.append(t.step)
    for name,p in dict(local=LocalSGD(every=4, warmup=3), diloco=DiLoCo(every=4)).items():
        t = Trainer(net(), Data.from_tensors(items(80), items(20), batch_size=4), loss=F.cross_entropy, lr=.01, callbacks=[apart := Apart()], parallel=p)
        t.fit(steps=10)
        found[name] = apart.steps, flat(t.model), t.history.rows[-1]['val_loss']
    return found

def test_meeting_in_each_step_is_ddp_and_more_rarely_is_not():
    a,b = launch(rare, nprocs=2, output='none', timeout=300)
    for case in ('plain','one item left','ragged'): torch.testing.assert_close(a[case,'one'], a[case,'ddp'], rtol=1e-5, atol=1e-6)
    assert a['local'][0] == [5,6,7,9,10], 'apart but after the first three steps, the fourth and the eighth'
    assert a['diloco'][0] == [1,2,3,5,6,7,9,10]
    for name in ('local','diloco'): assert torch.equal(a[name][1], b[name][1]) and a[name][2] == b[name][2], 'together for validation and at the end'


def test_between_meetings_nothing_is_sent():
    def work():
        from mlstack.ddp.rarely import LocalSGD
        torch.set_num_threads(1)
        t = Trainer(net(), Data.from_tensors(items(32*64), batch_size=4), loss=F.cross_entropy, lr=.01, parallel=LocalSGD(every=32))
        t.fit(steps=64)
        return [collectives(lambda n=n: t.fit(steps=n)) for n in (32,64)]
    half,whole = launch(work, nprocs=2, output='none', timeout=300)[0]
    assert whole['all_reduce']-half['all_reduce'] == 2 and not whole['broadcast'], 'the weights, and what was measured'


# ---------------------------------------------------------------------------------------------------------------------
# One model, also where ranks have clocks, averages and wishes of their own

def alike():
    "What has to be the same on all ranks."
    import time
    from mlstack.core import context
    from mlstack.ddp.rarely import LocalSGD
    from mlstack.trainer import EMA
    torch.set_num_threads(1)
    rank = context().rank
    def job(kind='norm', valid=False, **kw):
        data = Data.from_tensors(items(97), items(13), batch_size=4) if valid else Data.from_tensors(items(97), batch_size=4)
        return Trainer(net(kind), data, loss=F.cross_entropy, opt=torch.optim.SGD, lr=.1, **{'parallel':'ddp'} | kw)
    class Later(Callback):
        def after_step(self, t): time.sleep(.004*rank)
    class First(Callback):
        def before_fit(self, t):
            if rank: raise StopTraining('not today')
    out = {}
    t = job(schedule='cosine', callbacks=[Later()]); t.fit(time=.5)
    out['schedule by time'] = flat(t.model)
    for name,kw in dict(averages={}, rarely=dict(parallel=LocalSGD(every=3))).items():
        t = job(callbacks=[EMA(.8)], **kw); t.fit(epochs=1)
        out[name] = t.predict(items(5)[0])
    t = job(valid=True); t.fit(epochs=1)
    whole = t.predict(items(13)[0])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        out['shares'],out['batches'] = t.predict(t.data),torch.cat(t.predict(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*items(13)), batch_size=3), join=False))
    assert torch.allclose(out['shares'], whole, atol=1e-6) and torch.allclose(out['batches'], whole, atol=1e-6), 'all items, in order'
    t = job(callbacks=[First()]); t.fit(epochs=1)
    out['stopped before it began'] = torch.tensor(t.step)
    return out

def test_ranks_end_with_one_model_and_the_same_predictions():
    a,b = launch(alike, nprocs=2, output='none', timeout=300)
    assert list(a) == list(b) and [k for k in a if not torch.equal(a[k], b[k])] == []
    assert a['stopped before it began'] == 0

def test_arguments_that_would_make_ranks_meet_in_different_places_are_compared(tmp_path):
    def work():
        from mlstack.core import context
        from mlstack.trainer import Checkpoints
        other,said = context().rank,{}
        def error(out, target): return (out.argmax(-1) != target).float().mean()
        for what in ('metrics','validate','saves'):
            t = Trainer(net(), Data.from_tensors(items(96), items(13), batch_size=4), loss=F.cross_entropy, metrics=dict(error=error) if what=='metrics' and other else None, parallel='ddp')
            try: t.fit(epochs=1, validate=3+other if what=='validate' else None, save=Checkpoints(tmp_path/what, every=3+other) if what=='saves' else None)
            except MlstackError as e: said[what] = str(e)
        return said
    for found in launch(work, nprocs=2, output='none', timeout=300):
        assert len(found) == 3 and all('another plan' in said and what in said for what,said in found.items()), found

def test_a_trainer_that_was_not_told_of_the_ranks_says_so():
    def work():
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            Trainer(net(), Data.from_tensors(items(8), batch_size=4), loss=F.cross_entropy)
        return [str(w.message) for w in seen]
    first,second = launch(work, nprocs=2, output='none', timeout=300)
    assert len(first) == 1 and 'each trains a model of its own: give Trainer(parallel="ddp")' in first[0] and second == []
