"What experts add to a fit: memory that runs out, a profile, predictions to a file, callbacks that fail; as a user meets it, on real digits."
import gc
import json
import math
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mlstack import workers
from mlstack.trainer.data import source
from mlstack.trainer import EMA, Callback, Checkpoints, Data, Histograms, NonFiniteLoss, SkipStep, Throughput, Trainer, TrainerError, layer_decay, locate, replay
from tests import house
from tests.bench.peers import python_of
from tests.test_trainer import Cut, CutAt, Gloo, quiet, same_weights, samples, tiny  # noqa: F401


# Out of memory

class Card(nn.Module):
    "A device with room for `items` items; the error is the one that CUDA raises, in forward or in backward."
    def __init__(self, items=1000, backward=False): super().__init__(); self.items,self.backward,self.seen = items,backward,[]
    def forward(self, x):
        if not self.training: return x
        self.seen.append(len(x))
        if len(x)<=self.items: return x
        if not self.backward: raise torch.OutOfMemoryError('CUDA out of memory')
        x = x.clone()
        def fails(grad): raise torch.OutOfMemoryError('CUDA out of memory')
        x.register_hook(fails)
        return x


def net(items=1000, dropout=0., backward=False):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64,32), nn.ReLU(), Card(items,backward), nn.Dropout(dropout), nn.Linear(32,10))


def job(model=None, batch_size=16, **kw):
    return Trainer(model or net(), Data.from_tensors(samples(96), samples(33,1), batch_size=batch_size), F.cross_entropy, **dict(lr=3e-3)|kw)


def near(a, b, **kw):
    for p,q in zip(a.state_dict().values(), b.state_dict().values()): torch.testing.assert_close(p, q, **dict(rtol=1e-4, atol=1e-5)|kw)


@pytest.mark.parametrize('backward', [False,True])
@pytest.mark.parametrize('accumulate', [1,3])
def test_a_batch_that_is_too_large_is_trained_in_parts(accumulate, backward):
    kw = dict(accumulate=accumulate, opt=torch.optim.SGD, lr=.1, clip=1., metrics=dict(acc=lambda o,y: (o.argmax(1)==y).float().mean()))
    whole = job(**kw).fit(epochs=2)
    with pytest.warns(UserWarning, match='memory ran out at step 1: micro-batches have at most 4 items') as said: small = job(net(5,backward=backward), **kw).fit(epochs=2)
    assert len(said)==1 and small.micro==4 and small.step==whole.step
    near(small.model, whole.model)
    for k in ('loss','val_loss','val_acc'): np.testing.assert_allclose(small.history[k], whole.history[k], rtol=1e-4)
    np.testing.assert_allclose(small.history.steps('grad_norm')[1], whole.history.steps('grad_norm')[1], rtol=1e-3)
    assert set(small.model[2].seen[-12*4:])=={4} # it stays so
    assert 'memory ran out' in str(small.explain())


def test_memory_that_runs_out_late_loses_no_update_and_doubles_none():
    class Shrink(Callback):
        def after_step(self, t):
            if t.step==3: t.model[2].items = 7
    seen = []
    class Count(Callback):
        def before_step(self, t): seen.append((t.epoch,t.at))
    whole = job(opt=torch.optim.SGD, lr=.1).fit(epochs=1)
    with pytest.warns(UserWarning, match='memory ran out at step 4'): small = job(opt=torch.optim.SGD, lr=.1, callbacks=[Shrink(),Count()]).fit(epochs=1)
    assert seen==[(0,i) for i in range(6)] and small.history.steps()[0]==[1,2,3,4,5,6]
    near(small.model, whole.model)


def test_counted_losses_stay_exact_in_parts():
    def step(model, batch):
        x,y = batch
        known = y>=5
        return dict(loss=F.cross_entropy(model(x)[known],y[known]) if known.any() else model(x).sum()*0., count=known.sum())
    kw = dict(opt=torch.optim.SGD, lr=.1, step=step, loss=None)
    whole = Trainer(net(), Data.from_tensors(samples(96), batch_size=16), **kw|dict(accumulate=2)).fit(epochs=2)
    with pytest.warns(UserWarning, match='memory'): small = Trainer(net(3), Data.from_tensors(samples(96), batch_size=16), **kw|dict(accumulate=2)).fit(epochs=2)
    near(small.model, whole.model)
    assert small.history.steps('count')[1]==whole.history.steps('count')[1]


def test_smaller_parts_are_kept_in_the_checkpoint(tmp_path):
    def make(items, *more): return job(net(items,.5), callbacks=more)
    with pytest.warns(UserWarning, match='memory'): straight = make(5).fit(epochs=2)
    with pytest.raises(Cut), pytest.warns(UserWarning, match='memory'): make(5, CutAt(7)).fit(epochs=2, save=Checkpoints(tmp_path, every=2))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        resumed = make(1000).fit(epochs=2, save=Checkpoints(tmp_path, every=2), resume=True) # on a machine with more memory, and yet the same
    assert resumed.micro==4 and 'as in the checkpoint: micro-batches have at most 4 items' in str(resumed.explain())
    assert same_weights(resumed.model, straight.model) and resumed.history.steps()==straight.history.steps()


def test_a_cut_before_memory_runs_out_is_bit_exact_too(tmp_path):
    class Shrink(Callback):
        def before_step(self, t): t.model[2].items = 5 if t.step>=5 else 1000
    def make(*more): return job(net(1000,.5), callbacks=[Shrink(),*more])
    with pytest.warns(UserWarning, match='at step 6'): straight = make().fit(epochs=2)
    with pytest.raises(Cut): make(CutAt(4)).fit(epochs=2, save=Checkpoints(tmp_path, every=2))
    with pytest.warns(UserWarning, match='at step 6'): resumed = make().fit(epochs=2, save=Checkpoints(tmp_path, every=2), resume=True)
    assert same_weights(resumed.model, straight.model)


class Greedy(torch.optim.SGD):
    def step(self, closure=None): raise torch.OutOfMemoryError('CUDA out of memory')


@pytest.mark.parametrize('make,says', [
    (lambda: job(net(0)), 'a single item does not fit'),
    (lambda: job(opt=Greedy), 'memory ran out in the update'),
    (lambda: job(net(5), opt=None, data=None), 'makes its own updates'),
    (lambda: Trainer(net(5), [dict(x=torch.randn(16,64), odd=torch.randn(3,2))], step=lambda m,b: m(b['x']).mean()), 'cannot be cut into parts: a tensor of 3 rows in a batch of 16 items')])
def test_what_smaller_parts_cannot_help_is_said(make, says):
    if says=='makes its own updates': make = lambda: Trainer(net(5), [samples(16)], opt=None, step=lambda m,b: m(b[0]).mean())
    t = make()
    with pytest.raises(torch.OutOfMemoryError) as e: t.fit(steps=2)
    assert any(says in n for n in e.value.__notes__) and t.step==0


def test_another_error_goes_up_as_it_is():
    class Odd(nn.Linear):
        def forward(self, x): raise RuntimeError('something else')
    with pytest.raises(RuntimeError, match='something else') as e: Trainer(nn.Sequential(Odd(64,10)), [samples(8)], F.cross_entropy).fit(steps=1)
    assert not any(o.name.startswith(('_recover','_lower','_can')) for o in e.traceback)


LIMITED = """
import resource, warnings, torch, torch.nn.functional as F
from torch import nn
from mlstack.trainer import Data, Trainer
torch.set_num_threads(1); torch.manual_seed(0)
def train():
    x,y = torch.randn(4096,8),torch.randint(0,4,(4096,))
    t = Trainer(nn.Sequential(nn.Linear(8,8192), nn.ReLU(), nn.Linear(8192,4)), Data.from_tensors((x,y), batch_size=4096, shuffle=False), F.cross_entropy, opt=torch.optim.SGD, lr=.01)
    used = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used+(150<<20),)*2) # an activation of the whole batch is 128 MiB, and there are several
    return t.fit(steps=2)
warm = Trainer(nn.Sequential(nn.Linear(8,4)), [(torch.randn(8,8),torch.randint(0,4,(8,)))], F.cross_entropy, opt=torch.optim.SGD).fit(steps=1) # threads and libraries are there
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    t = train()
print(len(said), t.micro, t.step, [round(v,4) for v in t.history.steps()[1]])
"""

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='RLIMIT_AS is Linux')
def test_a_real_limit_of_the_hosts_memory():
    r = house.python(LIMITED, timeout=300, env=os.environ|dict(MLSTACK_PROGRESS='no'))
    assert r.returncode==0, r.stdout
    said,micro,steps,*losses = r.stdout.splitlines()[-1].replace('[','').replace(']','').replace(',','').split()
    assert int(said)>=1 and steps=='2' and int(micro)<4096 and all(np.isfinite(float(o)) for o in losses)


# The largest batch

def test_the_largest_batch_leaves_the_trainer_as_it_was():
    t = Trainer(nn.Sequential(nn.Linear(64,16), nn.BatchNorm1d(16), nn.Dropout(.5), Card(40), nn.Linear(16,10)), Data.from_tensors(samples(200), batch_size=16), F.cross_entropy, opt='adamw', schedule='cosine').fit(steps=5)
    weights,state,rng = {k: v.clone() for k,v in t.model.state_dict().items()},[{k: v.clone() for k,v in s.items()} for s in t.optimizer.state.values()],torch.get_rng_state()
    n = t.largest_batch(limit='1G')
    assert 38<=n<=40 and f'{int(n)} items fit' in repr(n)
    assert all(torch.equal(v, weights[k]) for k,v in t.model.state_dict().items()) and torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(a[k],b[k]) for a,b in zip(state,t.optimizer.state.values()) for k in a) and all(p.grad is None for p in t.model.parameters())
    straight = Trainer(nn.Sequential(nn.Linear(64,16), nn.BatchNorm1d(16), nn.Dropout(.5), Card(40), nn.Linear(16,10)), t.data, F.cross_entropy)
    assert straight.largest_batch(most=10)==10


def test_a_limit_in_bytes_is_kept_and_used():
    t = Trainer(nn.Sequential(nn.Linear(64,512), nn.ReLU(), nn.Linear(512,10)), Data.from_tensors(samples(4096), batch_size=16), F.cross_entropy, opt=torch.optim.SGD)
    small,large = t.largest_batch(limit=2<<20),t.largest_batch(limit=4<<20)
    assert small<large and small.tried[int(small)]<=2<<20 and large.tried[int(large)]<=4<<20
    assert large.tried[int(large)] > 3<<20 # not much is left unused


# Predictions in a file

@pytest.fixture(scope='module')
def arrow():
    "A folder with pyarrow, for the path of Python."
    env = python_of('tables').parent.parent
    return str(next(env.glob('lib/python*/site-packages')))


READ = """
import json, sys, pyarrow.parquet as pq
from pathlib import Path
def table(p):
    t = pq.read_table(p)
    return dict(columns=t.to_pydict(), meta={f.name: {k.decode(): v.decode() for k,v in (f.metadata or {}).items()} for f in t.schema}, groups=Path(p).is_file() and pq.ParquetFile(p).num_row_groups)
print(json.dumps([table(p) for p in sys.argv[1:]]))
"""

def read(paths):
    "What is in these files, read by another process."
    r = subprocess.run([python_of('tables'),'-c',READ,*paths], capture_output=True, text=True, timeout=300)
    assert r.returncode==0, r.stderr
    return json.loads(r.stdout)


@pytest.fixture
def with_arrow(arrow, monkeypatch):
    "pyarrow in a worker of its own, since this interpreter must stay as the lock has it."
    def run(fn, *args, **kw): return workers.run(_with_arrow, arrow, fn, *args, timeout=300, **kw)
    return run


def _with_arrow(folder, fn, *args):
    sys.path.append(folder)
    os.environ['MLSTACK_PROGRESS'] = 'no'
    torch.set_num_threads(1)
    return fn(*args)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(64,6)
    def forward(self, x):
        out = self.body(x)
        return dict(logits=out, best=out.argmax(1), map=out.reshape(-1,2,3), pair=(out[:,0].bfloat16(),out[:,1]>0), loss=None)


def loader(x, y):
    made = DataLoader(TensorDataset(x,y), batch_size=7, shuffle=True)
    whole = next(iter(source(made).valid()))[0].shape==(7,64)
    return made if whole else [(x,y)] # an older reader gave a validation loader's batches without their items


def _predicted(folder, small_groups):
    from mlstack.trainer import evaluating
    if small_groups: evaluating._group = 2000
    x,y = samples(100)
    t = Trainer(Several(), Data.from_tensors((x,y), batch_size=16), step=lambda m,b: m(b[0])['logits'].mean())
    kinds = dict(tensor=x, array=x.numpy(), batch=(x,y), data=Data.from_tensors((x,y), batch_size=16), loader=loader(x,y), batches=[(x[i:i+9],y[i:i+9]) for i in range(0,100,9)])
    return [str(t.predict(d, to=os.path.join(folder,f'{k}.parquet'))) for k,d in kinds.items()]


def test_predictions_in_a_file_are_those_in_memory(tmp_path, with_arrow):
    paths, = with_arrow(_predicted, tmp_path, True)
    assert sorted(os.listdir(tmp_path))==sorted(os.path.basename(p) for p in paths) # nothing else is left
    with torch.no_grad(): want = Several()(samples(100)[0])
    for p,got in zip(paths, read(paths)):
        columns = got['columns']
        assert columns['index']==list(range(100)) and list(columns)==['index','logits','best','map','pair_0','pair_1'] and got['meta']['map']=={'shape':'2,3'}
        torch.testing.assert_close(torch.tensor(columns['logits']), want['logits'])
        assert columns['best']==want['best'].tolist() and columns['pair_1']==want['pair'][1].tolist() and columns['map'][3]==pytest.approx(want['map'][3].flatten().tolist())
        assert got['groups']>1 or 'loader' in p


def _bad_predictions(folder):
    x,y = samples(20)
    said = []
    def attempt(model, data, to):
        t = Trainer(model, None, F.cross_entropy, opt=None)
        try: t.predict(data, to=to)
        except Exception as e: said.append(f'{type(e).__name__}: {e}')
        else: said.append('')
    class Grows(nn.Module):
        def forward(self, x): return x[:, :int(x[0,0]>0)+2]
    class One(nn.Module):
        def forward(self, x): return x.mean()
    class Index(nn.Module):
        def forward(self, x): return dict(index=x[:,0])
    to = os.path.join(folder,'p.parquet')
    attempt(nn.Identity(), x, to)
    kept = open(to,'rb').read()
    attempt(One(), x, to)
    attempt(Index(), x, to)
    attempt(Grows(), [torch.ones(2,4),-torch.ones(2,4)], to)
    attempt(nn.Identity(), [], to)
    attempt(nn.Identity(), x, os.path.join(folder,'p.csv'))
    os.mkdir(os.path.join(folder,'q.parquet'))
    attempt(nn.Identity(), x, os.path.join(folder,'q.parquet'))
    return said,open(to,'rb').read()==kept,sorted(os.listdir(folder))


def test_bad_predictions_leave_the_old_file(tmp_path, with_arrow):
    (said,kept,there), = with_arrow(_bad_predictions, tmp_path)
    for got,want in zip(said, ['', 'has shape [] for 20 items', 'returns a column index itself', 'changed its shape at item 2', 'gave no batch', 'does not say a format', 'q.parquet is a folder']): assert (want in got) if want else got=='', got
    assert kept and there==['p.parquet','q.parquet']


def _predicting_rank(folder, file, sharded=False):
    p = Gloo().start(file)
    x,y = samples(101)
    t = Trainer(Several(), Data.from_tensors((x,y), batch_size=8), step=lambda m,b: m(b[0])['logits'].mean(), parallel=p)
    out,said = [],''
    kinds = dict(data=t.data, tensor=x, loader=loader(x,y), batches=[(x[i:i+9],y[i:i+9]) for i in range(0,101,9)])
    for k,d in kinds.items(): out.append(str(t.predict(d, to=os.path.join(folder,f'{k}.parquet'))))
    class Fails(nn.Module):
        def forward(self, x):
            if p.rank==1: raise ValueError('this rank fails')
            return x
    t.model = Fails()
    try: t.predict(x, to=os.path.join(folder,'data.parquet'))
    except ValueError as e: said = f'{type(e).__name__}: {e}'
    del t.module, t
    gc.collect()
    p.dist.destroy_process_group()
    return out,said


def test_ranks_write_every_item_once(tmp_path, with_arrow):
    (paths,said),(_,other) = with_arrow(_predicting_rank, tmp_path, tmp_path/'store', nprocs=2)
    with torch.no_grad(): want = Several()(samples(101)[0])
    for p,got in zip(paths, read(paths)):
        assert sorted(os.listdir(p))==['part-00000.parquet','part-00001.parquet']
        columns = got['columns']
        assert sorted(columns['index'])==list(range(101))
        torch.testing.assert_close(torch.tensor(columns['logits'])[torch.tensor(columns['index']).argsort()], want['logits'])
    assert 'another rank could not write' in said and 'this rank fails' in other and not [o for o in os.listdir(tmp_path) if o.startswith('.')]


def _flat(folder):
    import resource
    class Wide(nn.Module):
        def forward(self, x): return x.expand(-1,20_000)
    t = Trainer(Wide(), None, F.mse_loss, opt=None)
    class Many:
        def __init__(self, n): self.n = n
        def __iter__(self): return (torch.zeros(50,1) for _ in range(self.n)) # 4 MB of outputs each
    t.predict(Many(10), to=os.path.join(folder,'a.parquet'))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    t.predict(Many(150), to=os.path.join(folder,'b.parquet'))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)<<10


def test_memory_stays_flat_while_predicting(tmp_path, with_arrow):
    grown, = with_arrow(_flat, tmp_path)
    assert grown < 200<<20 # 600 MB have gone through


def test_without_pyarrow_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    from mlstack.trainer import evaluating
    monkeypatch.setattr(evaluating, 'find_spec', lambda name: None)
    with pytest.raises(TrainerError, match=r"pip install 'mlstack\[data\]'"): job().predict(samples(4)[0], to=tmp_path/'x.parquet')


# A profile

class Thread(Callback):
    "What cannot be copied."
    def __init__(self):
        import threading
        self.lock = threading.Lock()
    def after_step(self, t): pass


def test_a_profile_leaves_everything_as_it_was():
    def make(): return Trainer(tiny(.5), Data.from_tensors(samples(96), samples(33,1), batch_size=8), F.cross_entropy, accumulate=2, clip=1., schedule=lambda done: 1-done, callbacks=[EMA(.9),Histograms(every=2),Thread()])
    plain = make().fit(epochs=1).fit(epochs=1) # one after the other: they share the random states of this process
    looked = make().fit(epochs=1)
    p = looked.profile(steps=4)
    assert {r.phase for r in p.rows}=={'data','forward','backward','optimizer','callbacks','rest'} and p.left_out==['Thread']
    assert set(p.callbacks)=={'EMA','Histograms'} and looked.step==6 and len(looked.history)==1
    looked.fit(epochs=1)
    assert same_weights(plain.model, looked.model) and plain.history.steps()==looked.history.steps()
    assert all(torch.equal(a,b) for a,b in zip(plain.callbacks[0].mean, looked.callbacks[0].mean))


def test_a_profile_winds_a_torch_scheduler_back():
    from functools import partial
    t = job(schedule=partial(torch.optim.lr_scheduler.StepLR, step_size=2)).fit(steps=3)
    before = dict(t.scheduler.state_dict()),[g['lr'] for g in t.optimizer.param_groups]
    t.profile(steps=3); t.largest_batch(most=8); t.lr_find(steps=5)
    assert (dict(t.scheduler.state_dict()),[g['lr'] for g in t.optimizer.param_groups])==before


def test_a_profile_of_an_own_step_and_of_skipped_batches():
    class Skip(Callback):
        def before_step(self, t):
            if t.at==1: raise SkipStep
    model = nn.Linear(64,10)
    sgd = torch.optim.SGD(model.parameters(), lr=.1)
    def step(model, batch):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward(); sgd.step(); sgd.zero_grad()
        return loss
    before = model.weight.detach().clone()
    p = Trainer(model, [samples(8,i) for i in range(5)], opt=None, step=step, callbacks=[Skip()]).profile(steps=6)
    assert [r.phase for r in p.rows]==['data','step','callbacks','rest'] and torch.equal(model.weight, before)


def test_a_profile_that_fails_leaves_no_profiler_running():
    class Bad(nn.Linear):
        seen = 0
        def forward(self, x):
            self.seen += 1
            if self.seen>6: raise ValueError('enough')
            return super().forward(x)
    t = Trainer(nn.Sequential(Bad(64,10)), [samples(8)]*4, F.cross_entropy)
    for _ in range(2):
        t.model[0].seen = 0
        with pytest.raises(ValueError, match='enough'): t.profile(steps=4, warm=1)
    assert job().profile(steps=2).operators


# Throughput

def test_operations_are_counted_without_a_trace():
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.embed,self.head = nn.Embedding(50,16),nn.Linear(16,50)
        def forward(self, x): return self.head(self.embed(x)).flatten(0,1)
    def make(*more):
        torch.manual_seed(0)
        x = torch.randint(0,50,(64,9))
        return Trainer(nn.Sequential(Own(), nn.Dropout(.1)), Data.from_tensors((x[:,:-1],x[:,1:]), batch_size=16), lambda out,y: F.cross_entropy(out,y.flatten()), callbacks=more)
    meter = Throughput(peak=1e12)
    a,b = make().fit(epochs=2),make(meter).fit(epochs=2)
    assert meter.flops==8*2*3*16*50 and same_weights(a.model, b.model) # 8 tokens; an embedding multiplies nothing
    assert 'counted' in b._why['throughput'] and b.history['mfu']
    norms = Trainer(nn.Sequential(nn.Linear(64,8), nn.BatchNorm1d(8), nn.Linear(8,10)), Data.from_tensors(samples(64), batch_size=16), F.cross_entropy)
    running = norms.model[1].running_mean.clone()
    from mlstack.trainer.transforming import flops_of
    norms.setup()
    flops,how = flops_of(norms, samples(16))
    assert how=='counted' and torch.equal(running, norms.model[1].running_mean) and all(p.grad is None for p in norms.model.parameters())


def test_what_cannot_be_counted_is_reckoned():
    class Strange(nn.Linear):
        def forward(self, x):
            if len(x)<8: raise ValueError('only whole batches')
            return super().forward(x)
    meter = Throughput(peak=1e12)
    t = Trainer(nn.Sequential(Strange(64,10)), Data.from_tensors(samples(64), batch_size=16), F.cross_entropy, callbacks=[meter]).fit(epochs=2)
    assert meter.flops==6*650 and 'reckoned as 6 a parameter' in t._why['throughput']
    assert 'give Throughput(peak=)' in Trainer(nn.Linear(64,10), Data.from_tensors(samples(64), batch_size=16), F.cross_entropy, callbacks=[Throughput()]).fit(steps=1)._why['throughput']


# Callbacks that fail

class Fails(Callback):
    "Fails in one hook."
    def __init__(self, hook, at=1): self.hook,self.at = hook,at
    def _fail(self, t, hook):
        if hook==self.hook and t.step>=self.at: raise KeyError('what a callback may do')
    def before_fit(self, t): self._fail(t,'before_fit')
    def before_epoch(self, t): self._fail(t,'before_epoch')
    def before_step(self, t): self._fail(t,'before_step')
    def before_update(self, t): self._fail(t,'before_update')
    def after_step(self, t): self._fail(t,'after_step')
    def before_validate(self, t): self._fail(t,'before_validate')
    def after_validate(self, t): self._fail(t,'after_validate')
    def after_epoch(self, t): self._fail(t,'after_epoch')


class Bye(Callback):
    def __init__(self): self.said = 0
    def after_fit(self, t): self.said += 1


@pytest.mark.parametrize('hook,saved', [('before_epoch',6),('before_step',None),('before_update',None),('after_step',4),('before_validate',6),('after_validate',6),('after_epoch',6)])
def test_a_callback_that_fails_is_named_and_a_whole_step_is_kept(tmp_path, hook, saved):
    bye,at = Bye(),6 if hook=='before_epoch' else 4
    def make(*more): return job(net(dropout=.5), callbacks=[EMA(.9),*more])
    straight = make().fit(epochs=2)
    with pytest.raises(KeyError, match='may do') as e: make(Fails(hook,at),bye).fit(epochs=2, save=Checkpoints(tmp_path))
    assert any(f'raised in the callback Fails.{hook}, after step {6 if saved==6 else 4}, in epoch' in n for n in e.value.__notes__) and bye.said==1
    assert Checkpoints(tmp_path).steps()==([saved] if saved else [])
    resumed = make().fit(epochs=2, save=tmp_path, resume=True)
    assert same_weights(resumed.model, straight.model) and resumed.history.table()==straight.history.table()
    assert all(torch.equal(a,b) for a,b in zip(resumed.callbacks[0].mean, straight.callbacks[0].mean))


def test_a_step_that_somebody_has_missed_is_not_kept(tmp_path):
    with pytest.raises(KeyError): job(callbacks=[Fails('after_step',4),EMA(.9)]).fit(epochs=2, save=Checkpoints(tmp_path))
    assert Checkpoints(tmp_path).steps()==[] # the average has not seen step 4


def test_every_goodbye_is_said_and_the_first_error_goes_up():
    class Rude(Callback):
        def after_fit(self, t): raise ValueError('no goodbye')
    bye = Bye()
    with pytest.raises(ValueError, match='no goodbye') as e: job(callbacks=[Rude(),bye]).fit(epochs=1)
    assert bye.said==1 and e.value.__notes__==['in Rude.after_fit']
    with pytest.raises(KeyError) as e: job(callbacks=[Fails('after_step'),Rude(),bye]).fit(epochs=1)
    assert bye.said==2 and 'afterwards, in Rude.after_fit: ValueError: no goodbye' in e.value.__notes__
    try: raise OSError('somebody else is in trouble')
    except OSError:
        with pytest.raises(ValueError, match='no goodbye'): job(callbacks=[Rude()]).fit(epochs=1)


def test_a_failed_trainer_is_let_go():
    import weakref
    def failed():
        t = job(callbacks=[Fails('after_step')])
        try: t.fit(epochs=1)
        except KeyError: pass
        return weakref.ref(t)
    gone = failed()
    gc.collect()
    assert gone() is None


# A step that is taken again

@pytest.mark.parametrize('accumulate', [1,2])
def test_a_located_step_is_replayed(tmp_path, accumulate):
    class Explodes(nn.Module):
        def forward(self, x): return x*math.inf if x.abs().sum()>limit else x
    limit = 1e9
    def make(): return Trainer(nn.Sequential(nn.Linear(64,32), nn.BatchNorm1d(32), nn.Dropout(.5), Explodes(), nn.Linear(32,10)), Data.from_tensors(samples(96), batch_size=8), F.cross_entropy, accumulate=accumulate, callbacks=[EMA(.9)])
    t = make()
    class Trouble(Callback):
        def before_step(self, t):
            if t.step==3: b = t.batch; t.batch = [(x*1e30,y) for x,y in b] if accumulate>1 else (b[0]*1e30,b[1])
    t.model[1] = nn.Identity()
    t.callbacks.append(Trouble())
    with pytest.raises(NonFiniteLoss): t.fit(epochs=1, save=Checkpoints(tmp_path/'c', every=2))
    found = locate(t)
    assert '3 (Explodes)' in found.where and found.step==4 and found.path is None
    path = found.save(tmp_path/'bad.pt')
    assert sorted(os.listdir(tmp_path))==['bad.pt','c'] and 'saved as bad.pt' in repr(found)
    other = make()
    other.model[1] = nn.Identity()
    before = {k: v.clone() for k,v in other.model.state_dict().items()}
    again = replay(other, path)
    assert (again.where,again.step)==(found.where,found.step)
    assert all(torch.equal(v,before[k]) for k,v in other.model.state_dict().items()) and not other.optimizer.state
    limit = math.inf
    other.model[3] = nn.Identity()
    assert 'finite' in repr(replay(other, path) or 'finite')


# Layers' rates

def test_layer_decay_reaches_the_groups():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos,self.embed = nn.Parameter(torch.zeros(32)),nn.Linear(64,32)
            self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(32), nn.Linear(32,32), nn.GELU()) for _ in range(4))
            self.norm,self.head = nn.LayerNorm(32),nn.Linear(32,10)
        def forward(self, x):
            x = self.embed(x)+self.pos
            for b in self.blocks: x = x+b(x)
            return self.head(self.norm(x))
    model = Net()
    t = job(model, opt=[torch.optim.AdamW, *layer_decay(model,.5), (nn.LayerNorm,dict(weight_decay=0.))], schedule='cosine').fit(epochs=2)
    rate = {n: g['initial_lr']/3e-3 for g in t.optimizer.param_groups for p in g['params'] for n,q in model.named_parameters() if q is p}
    assert [rate[n] for n in ('pos','embed.weight','blocks.0.0.weight','blocks.3.1.bias','norm.weight','head.bias')]==pytest.approx([.5**5,.5**5,.5**4,.5,1.,1.])
    assert t.history['loss'][-1]<t.history['loss'][0]
    found = t.lr_find(steps=20)
    assert found.lr>0


# The bar

class Screen:
    "A terminal's screen of one line, as far as the bar uses it."
    def __init__(self): self.line,self.at,self.lines,self.widest = [],0,[],0
    def feed(self, text):
        for part in re.findall(r'\x1b\[[0-9;]*[a-zA-Z]|.|\n', text, re.S):
            if part=='\r': self.at = 0
            elif part=='\n': self.lines.append(''.join(self.line)); self.line,self.at = [],0
            elif part=='\x1b[K': del self.line[self.at:]
            elif part[0]=='\x1b': assert part[-1]=='m', part
            else: self.line[self.at:self.at+1] = [part]; self.at += 1; self.widest = max(self.widest,self.at)


def _in_a_terminal(columns, narrower):
    "A fit in a pseudo-terminal of that width; what it wrote before and after it was made narrower."
    import fcntl, pty, struct, termios
    parent,child = pty.openpty()
    def size(n): fcntl.ioctl(parent, termios.TIOCSWINSZ, struct.pack('HHHH',24,n,0,0))
    size(columns)
    p = subprocess.Popen([sys.executable,'-c',FIT], stdin=subprocess.PIPE, stdout=child, stderr=child, env={k: v for k,v in os.environ.items() if k!='NO_COLOR'}|dict(TERM='xterm-256color', MLSTACK_PROGRESS='yes'))
    os.close(child)
    seen = ['']
    while True:
        try: data = os.read(parent, 65536)
        except OSError: break # its other end is closed
        if not data: break
        seen[-1] += data.decode(errors='replace')
        if len(seen)==1 and seen[0].count('\r')>3: # it goes on when it is told
            size(narrower)
            seen.append('')
            p.stdin.write(b'\n'); p.stdin.flush()
    os.close(parent)
    assert p.wait()==0, seen
    return seen


FIT = """
import sys, time, torch, torch.nn.functional as F
from torch import nn
from mlstack.trainer import Callback, Data, Progress, Trainer
torch.set_num_threads(1)
x,y = torch.randn(320,64),torch.randint(0,10,(320,))
class Wait(Callback):
    def after_step(self, t):
        if t.step==10: sys.stdin.readline(); sys.stderr.write('MARK'); sys.stderr.flush() # the screen was looked at, and is narrower now
        if t.step==15:
            n = p.n
            while p.n<n+4: time.sleep(.01)
class Counted(Progress):
    n = 0
    def bar(self, width=10_000): self.n += 1; return super().bar(width)
p = Counted(every=.02)
Trainer(nn.Linear(64,10), Data.from_tensors((x,y),(x,y),batch_size=16), F.cross_entropy, clip=1., metrics=dict(a_metric_with_a_long_name=lambda o,y: (o.argmax(1)==y).float().mean()), callbacks=[Wait(),p]).fit(epochs=2)
"""

def test_the_bar_keeps_to_the_terminal_also_when_that_changes():
    before,after = (o.replace('\r\n','\n') for o in _in_a_terminal(100, 44))
    drawings = after.split('MARK',1)[1].split('\r')[2:] # one may have been under way
    one,two,last = Screen(),Screen(),Screen()
    one.feed(before); two.feed('\r'.join(['',*drawings[:-1]])); last.feed(drawings[-1])
    assert len(drawings)>2 and 44<one.widest<100 and 0<two.widest<44 and not one.lines and not two.lines
    assert '\x1b[36m' in before and 'epoch' in ''.join(one.line) and '━' in ''.join(one.line)
    assert len(last.lines)==1 and last.lines[0].startswith('epoch 2/2  step 40  loss') and 'val_a_metric_with_a_long_name' in last.lines[0]


def test_a_terminal_that_can_do_nothing_gets_lines(monkeypatch):
    from mlstack.trainer.callbacks import Progress
    class Dumb:
        def __init__(self): self.text = ''
        def isatty(self): return True
        def write(self, text): self.text += text
        def flush(self): pass
    monkeypatch.setenv('TERM', 'dumb')
    out = Dumb()
    job(callbacks=[Progress(out=out)]).fit(epochs=2)
    assert out.text.count('\n')==2 and '\r' not in out.text and '\x1b' not in out.text


def test_the_picture_is_drawn_while_numbers_arrive():
    "From another thread, as the bar does it: nothing is locked and nothing is lost."
    import threading
    from mlstack.trainer.callbacks import History, loss_picture
    h,stop,drawn = History(),threading.Event(),[]
    def draw():
        while not stop.is_set(): drawn.append(loss_picture(h))
    thread = threading.Thread(target=draw); thread.start()
    try:
        i = 0
        while i<20_000 or not drawn: h.add_step(i:=i+1, dict(loss=1/i))
    finally: stop.set(); thread.join()
    assert len(h.steps()[0])==i and loss_picture(h).count('<polyline')==1
