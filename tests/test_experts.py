"What experts add to a fit: memory that runs out, a profile, predictions to a file, callbacks that fail; as a user meets it, on real digits."
import gc
import json
import os
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
from mlstack.trainer import EMA, Callback, Checkpoints, Data, Histograms, Mixup, Rollback, SkipStep, Throughput, Trainer, TrainerError
from tests import house
from tests.bench.peers import python_of
from tests.test_trainer import Cut, CutAt, Gloo, quiet, same_weights, samples, tiny  # noqa: F401
from tests.test_trainer_expert import digits


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
    assert says in e.value.__notes__[-1] and t.step==0


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
    r = house.python(LIMITED, timeout=120, env=os.environ|dict(MLSTACK_PROGRESS='no'))
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
    r = subprocess.run([python_of('tables'),'-c',READ,*paths], capture_output=True, text=True, timeout=60)
    assert r.returncode==0, r.stderr
    return json.loads(r.stdout)


@pytest.fixture
def with_arrow(arrow, monkeypatch):
    "pyarrow in a worker of its own, since this interpreter must stay as the lock has it."
    def run(fn, *args, **kw): return workers.run(_with_arrow, arrow, fn, *args, timeout=90, **kw)
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
        t = Trainer(model, None, F.cross_entropy)
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
    attempt(nn.Identity(), x, folder+'/p.csv')
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
    t = Trainer(Wide(), None, F.mse_loss)
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
