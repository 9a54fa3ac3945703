"The trainer under load: what a step costs, what survives a kill, and whether ranks agree."
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mlstack import workers
from mlstack.core import StopTraining, context, use
from tests import house
from mlstack.trainer import Callback, CallbackError, Checkpoints, Data, EarlyStopping, NonFiniteLoss, Progress, StepError, StopEpoch, SkipStep, Trainer
from mlstack.trainer.checkpoints import CheckpointError, read_checkpoint
from mlstack.trainer.data import Tensors
from mlstack.trainer.reading import Loader


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv('MLSTACK_PROGRESS', 'no')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(dropout=0.):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64,64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64,64), nn.ReLU(), nn.Linear(64,10))


def samples(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n,64,generator=g), torch.randint(0,10,(n,),generator=g)


def accuracy(out, y): return (out.argmax(1)==y).float().mean()
def same_weights(a, b): return all(torch.equal(p,q) for p,q in zip(a.state_dict().values(), b.state_dict().values()))


# What a step costs

class Calls:
    def __enter__(self):
        self.n = 0
        def count(frame, event, arg): self.n += event in ('call','c_call')
        sys.setprofile(count)
        return self
    def __exit__(self, *e): sys.setprofile(None)


class Log:
    def __init__(self): self.seen = []
    def log(self, metrics, step): self.seen.append((step,metrics))


def reference(): return nn.Sequential(nn.Linear(64,64), nn.ReLU(), nn.Linear(64,64), nn.ReLU(), nn.Linear(64,10))


def calls_raw(batches):
    model = reference()
    optimizer = torch.optim.AdamW(model.parameters())
    def loop(batches):
        for x,y in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    loop(batches[:20])
    with Calls() as c: loop(batches)
    return c.n/len(batches)


def calls_trainer(batches, **kw):
    "Calls a step, as the difference of two fits so that what happens once a fit does not count."
    model = reference()
    t = Trainer(model, batches, F.cross_entropy, opt=torch.optim.AdamW(model.parameters()), **kw)
    t.fit(steps=20)
    with Calls() as short: t.fit(steps=160)
    with Calls() as long: t.fit(steps=320)
    return (long.n-short.n)/160


def test_calls_per_step():
    batches = [tuple(t.clone() for t in samples(32,i)) for i in range(520)]
    raw = calls_raw(batches[:160])
    bare = calls_trainer(batches)-raw
    logged = calls_trainer(batches, run=Log(), metrics=dict(acc=accuracy))-raw
    print(f'raw {raw:.0f}, trainer {bare:+.1f} bare, {logged:+.1f} with a metric and a run')
    assert bare <= 20 and logged <= 40


def test_hooks_nobody_overrides_are_not_called():
    class Idle(Callback):
        def after_fit(self, t): pass
    batches = [samples(32,i) for i in range(520)]
    assert calls_trainer(batches, callbacks=[Idle() for _ in range(20)]) == calls_trainer(batches)


def test_no_value_is_read_between_steps(monkeypatch):
    "No .item(), .tolist(), float() or bool() of a tensor in a step: reading happens once in 16 steps."
    reads,t = [],None
    for name in ('item','tolist','__float__','__bool__','numpy'):
        def read(self, *a, real=getattr(torch.Tensor,name), **kw): reads.append(t.step); return real(self, *a, **kw)
        monkeypatch.setattr(torch.Tensor, name, read)
    t = Trainer(reference(), [samples(32,i) for i in range(70)], F.cross_entropy, clip=1., schedule='cosine', run=Log(), metrics=dict(acc=accuracy),
        opt=lambda ps: torch.optim.SGD(ps, lr=.1, momentum=.9)) # Adam's own step counters are read by torch
    t.fit(steps=64)
    assert set(reads) <= {0,16,32,48,64}, reads # 0: the first step looks at the labels


# Resuming

class Noisy(Dataset):
    "A dataset with random augmentation."
    def __init__(self): self.x,self.y = samples(100)
    def __len__(self): return 100
    def __getitem__(self, i): return self.x[i] + random.random() + np.random.rand() + torch.rand(1), self.y[i]


class Cut(BaseException): "A kill, as far as a test can play one: nothing is saved because of it."


class CutAt(Callback):
    def __init__(self, step): self.at = step
    def after_step(self, t):
        if t.step==self.at: raise Cut


def sources():
    x,y = samples(100)
    yield 'tensors', lambda: Data.from_tensors((x,y), samples(30,1), batch_size=8)
    yield 'not dropped', lambda: Data.from_tensors((x,y), batch_size=8, drop_last=False)
    yield 'list', lambda: list(zip(x.split(8), y.split(8)))
    yield 'loader', lambda: DataLoader(TensorDataset(x,y), batch_size=8, shuffle=True)
    yield 'workers', lambda: Data(DataLoader(TensorDataset(x,y), batch_size=8, shuffle=True, num_workers=1))
    yield 'augmented', lambda: DataLoader(Noisy(), batch_size=8, shuffle=True)


@pytest.mark.parametrize('accumulate', [1,3])
@pytest.mark.parametrize('data', [d for _,d in sources()], ids=[n for n,_ in sources()])
def test_two_resumes_in_one_epoch_are_bit_exact(tmp_path, data, accumulate):
    def job(): return Trainer(tiny(.5), data(), F.cross_entropy, lr=3e-3, schedule='one_cycle', accumulate=accumulate, metrics=dict(acc=accuracy), clip=1.)
    straight = job().fit(epochs=3)
    an_epoch = straight.step//3
    for cut in (an_epoch+1, an_epoch+3):
        t = job()
        t.callbacks.append(CutAt(cut))
        random.seed(); torch.seed() # whatever happened before the resume
        with pytest.raises(Cut): t.fit(epochs=3, save=Checkpoints(tmp_path, every=1), resume=True)
    resumed = job().fit(epochs=3, save=Checkpoints(tmp_path, every=1), resume=True)
    assert resumed.step==straight.step and 'bit for bit' in resumed._why['resume']
    assert resumed.history.steps()==straight.history.steps() and resumed.history.table()==straight.history.table()
    assert same_weights(resumed.model, straight.model)


@pytest.mark.parametrize('cut', [12,24])
def test_cut_after_the_last_step_before_validation(tmp_path, cut):
    "The checkpoint of an epoch's last step is older than its validation: the row must come once, and come."
    def job(): return Trainer(tiny(.5), Data.from_tensors(samples(100), samples(30,1), batch_size=8), F.cross_entropy)
    straight = job().fit(epochs=2)
    class CutValidation(Callback):
        def before_validate(self, t):
            if t.step==cut: raise Cut
    t = job()
    t.callbacks.append(CutValidation())
    with pytest.raises(Cut): t.fit(epochs=2, save=Checkpoints(tmp_path, every=4))
    resumed = job().fit(epochs=2, save=Checkpoints(tmp_path, every=4), resume=True)
    assert resumed.history.table()==straight.history.table() and same_weights(resumed.model, straight.model)


def test_resuming_what_is_finished_does_nothing(tmp_path):
    def job(): return Trainer(tiny(), Data.from_tensors(samples(100), batch_size=8), F.cross_entropy)
    first = job().fit(epochs=2, save=tmp_path)
    again = job().fit(epochs=2, save=tmp_path, resume=True)
    assert again.step==first.step and same_weights(first.model, again.model)
    assert job().fit(epochs=3, save=tmp_path, resume=True).step==first.step*3//2


def test_resuming_a_fit_of_steps_that_ended_within_an_epoch(tmp_path):
    def job(): return Trainer(tiny(.5), Data.from_tensors(samples(100), samples(30,1), batch_size=8), F.cross_entropy)
    first = job().fit(steps=17, save=tmp_path)
    again = job().fit(steps=17, save=tmp_path, resume=True)
    assert (again.step,again.at,len(again.history))==(17,5,2) and same_weights(first.model, again.model)
    assert again.fit(epochs=1).history.rows[-1]['step']==24


def test_order_does_not_depend_on_where_the_data_lives():
    x = torch.arange(100)
    tensors = Tensors(x, batch_size=8)
    for n in (0,2):
        loader = Loader(DataLoader(TensorDataset(x), batch_size=8, shuffle=True, drop_last=True, num_workers=n))
        for start in (0,5): assert [b[0].tolist() for b in loader.train(3,1,start)] == [b.tolist() for b in tensors.train(3,1,start)]


# Kills

def _save_for_ever(folder, size):
    os.environ['MLSTACK_PROGRESS'] = 'no'
    model = nn.Linear(size,size)
    workers.send('ready')
    Trainer(model, [(torch.ones(2,size),torch.ones(2,size))], F.mse_loss).fit(steps=10**6, save=Checkpoints(folder, every=1, keep=2))


@pytest.mark.parametrize('seed', range(house.moments(6)))
def test_kill_at_any_moment_leaves_a_checkpoint_that_loads(tmp_path, seed):
    with workers.Pool(1) as pool:
        task = pool.submit(_save_for_ever, tmp_path, 300)
        while len(Checkpoints(tmp_path).steps())<2: time.sleep(.005)
        time.sleep(random.Random(seed).random()*.3)
        os.kill(task.pid, signal.SIGKILL)
        task.wait(300)
    with warnings.catch_warnings():
        warnings.simplefilter('error') # not even the newest may be damaged
        path,parts = Checkpoints(tmp_path).latest()
    step = parts['training']['step']
    assert path.name==f'step-{step:09d}' and step>=2
    t = Trainer(nn.Linear(300,300), [(torch.ones(2,300),torch.ones(2,300))], F.mse_loss).fit(steps=step+2, save=Checkpoints(tmp_path, every=1, keep=2), resume=True)
    assert t.step==step+2 and sorted(p.name for p in tmp_path.iterdir())==[f'step-{s:09d}' for s in (step+1,step+2)]


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path):
    def job(): return Trainer(tiny(.5), Data.from_tensors(samples(100), batch_size=8), F.cross_entropy)
    straight = job().fit(epochs=2, save=Checkpoints(tmp_path, every=5))
    newest = Checkpoints(tmp_path).path(Checkpoints(tmp_path).steps()[0])
    whole = (newest/'model.pt').read_bytes()
    (newest/'model.pt').write_bytes(whole[:-200]+bytes(200))
    with pytest.warns(UserWarning, match=f'{newest.name} is skipped: the checkpoint is damaged: model.pt'):
        resumed = job().fit(epochs=2, save=Checkpoints(tmp_path, every=5), resume=True)
    assert same_weights(resumed.model, straight.model)
    read_checkpoint(newest) # written again


def _fill_the_disk(folder):
    import resource
    os.environ['MLSTACK_PROGRESS'] = 'no'
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    def job(): return Trainer(nn.Linear(300,300), [(torch.ones(2,300),torch.ones(2,300))], F.mse_loss)
    job().fit(steps=2, save=Checkpoints(folder, every=1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,resource.RLIM_INFINITY))
    try: job().fit(steps=4, save=Checkpoints(folder, every=1), resume=True)
    except Exception as e: return type(e).__name__,str(e)


def test_a_full_disk_is_said_and_earlier_checkpoints_stay(tmp_path):
    kind,said = workers.run(_fill_the_disk, tmp_path)[0]
    assert kind=='CheckpointError' and 'could not be written' in said and 'earlier checkpoints are untouched' in said
    assert sorted(p.name for p in tmp_path.iterdir())==['step-000000001','step-000000002']
    assert Checkpoints(tmp_path).latest()[1]['training']['step']==2


# Stopping

def test_a_stop_from_another_thread_saves_and_is_raised(tmp_path):
    with use(checkpoints=str(tmp_path)) as ctx:
        threading.Timer(.2, ctx.stop.set, ['enough']).start()
        t = Trainer(tiny(), [samples(8)]*5, F.cross_entropy)
        with pytest.raises(StopTraining, match='enough'): t.fit(epochs=10**6)
    assert Checkpoints(tmp_path).steps()[0]==t.step and t.stopped=='enough'


def test_a_run_that_asks_to_stop_loses_no_point():
    class Run(Log):
        def log(self, metrics, step):
            super().log(metrics, step)
            if step>=5: context().stop.set('worse than the others'); context().stop.check()
    run = Run()
    with use():
        t = Trainer(tiny(), [samples(8)]*50, F.cross_entropy, run=run)
        with pytest.raises(StopTraining, match='worse'): t.fit(epochs=2)
    assert [s for s,_ in run.seen]==list(range(1,17)) and t.step==16


def test_a_stop_by_the_run_is_saved_too(tmp_path):
    class Run(Log):
        def log(self, metrics, step): context().stop.set('enough'); context().stop.check()
    with use():
        with pytest.raises(StopTraining): Trainer(tiny(), [samples(8)]*20, F.cross_entropy, run=Run()).fit(epochs=1, save=tmp_path)
    assert Checkpoints(tmp_path).steps()==[16]


def test_callbacks_end_cleanly_when_one_raises():
    class Bad(Callback):
        def after_step(self, t):
            if t.step==3: raise ValueError('mine')
    class Closed(Callback):
        def after_fit(self, t): self.stopped = t.stopped
    closed = Closed()
    before = {*threading.enumerate()}
    os.environ['MLSTACK_PROGRESS'] = 'yes'
    t = Trainer(tiny(), [samples(8)]*9, F.cross_entropy, callbacks=[Bad(),closed])
    with pytest.raises(ValueError, match='mine'): t.fit(epochs=1)
    assert closed.stopped=='ValueError: mine' and len(t.history.steps()[0])==3 and not {*threading.enumerate()}-before


def test_a_callback_may_skip_change_and_stop():
    class Meddle(Callback):
        def __init__(self): self.sizes = []
        def before_step(self, t):
            if t.at==1: raise SkipStep
            t.batch = tuple(b[:4] for b in t.batch)
        def before_update(self, t): self.grads = [p.grad.abs().sum() for p in t.model.parameters()]
        def after_step(self, t):
            self.sizes.append(len(t.batch[0]))
            if t.at==5: raise StopEpoch
    m = Meddle()
    t = Trainer(tiny(), [samples(8)]*9, F.cross_entropy, callbacks=[m]).fit(epochs=2)
    assert m.sizes==[4]*8 and t.epoch==2 and t.step==8 and all(g>0 for g in m.grads)


def test_a_trainer_goes_when_nobody_holds_it(monkeypatch):
    "No reference cycle: a DDP module must be gone before its process group is."
    monkeypatch.setenv('MLSTACK_PROGRESS', 'yes')
    class Peek(Callback):
        def before_update(self, t): pass
    torch.optim.AdamW(tiny().parameters()) # the first one of a process leaves frames of torch's own imports in a cycle
    gc.collect(); gc.disable()
    try:
        t = Trainer(tiny(), [samples(8)]*9, F.cross_entropy, schedule='linear', clip=1., callbacks=[Peek()]).fit(epochs=2)
        gone = weakref.ref(t)
        del t
        assert gone() is None
    finally: gc.enable()


def test_time_ends_a_fit():
    t = Trainer(tiny(), [samples(8)]*5, F.cross_entropy, schedule='linear').fit(time=.3)
    assert t.step>0 and t.optimizer.param_groups[0]['lr']<1e-3


# Bad input

@pytest.mark.parametrize('data,loss,error,says', [
    ([(torch.ones(4,64),torch.zeros(4,dtype=torch.long)), 'oops'], F.cross_entropy, ValueError, 'unpack'),
    (['oops'], F.cross_entropy, StepError, 'a batch is a str'),
    ([(torch.ones(4,64),None)], F.cross_entropy, StepError, 'target of the batch is None'),
    ([samples(4)], lambda out,y: F.cross_entropy(out,y,reduction='none'), StepError, r'the loss has shape \[4\]'),
    ([samples(4)], lambda out,y: F.cross_entropy(out,y).item(), StepError, 'the loss is a float'),
    ([samples(4)]*40, lambda out,y: F.cross_entropy(out,y)/0, NonFiniteLoss, r'the loss is inf \(step 1\)'),
    ([(torch.ones(4,63),torch.zeros(4,dtype=torch.long))], F.cross_entropy, RuntimeError, '63'),
])
def test_bad_input_is_named(data, loss, error, says):
    with pytest.raises(error, match=says): Trainer(tiny(), data, loss).fit(epochs=1)


def test_the_first_step_tells_the_shapes():
    with pytest.raises(RuntimeError) as e: Trainer(tiny(), [(torch.ones(4,63),torch.zeros(4).long())], F.cross_entropy).fit(epochs=1)
    assert 'float32[4, 63]' in e.value.__notes__[0]


def test_a_loader_shorter_than_accumulation_still_updates():
    t = Trainer(tiny(), [samples(8,i) for i in range(3)], F.cross_entropy, accumulate=8).fit(epochs=2)
    assert t.step==2


def test_an_iterator_that_is_used_up_is_named():
    with pytest.raises(ValueError, match='no batch in epoch 2'): Trainer(tiny(), iter([samples(8)]*3), F.cross_entropy).fit(epochs=2)


# Models that return their loss

class OwnLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = tiny()
    def forward(self, x, labels=None):
        logits = self.net(x)
        return dict(logits=logits) if labels is None else dict(loss=F.cross_entropy(logits,labels), logits=logits)


def test_a_model_that_returns_its_loss():
    x,y = samples(100)
    data = Data.from_tensors(dict(x=x,labels=y), dict(x=x[:30],labels=y[:30]), batch_size=8)
    t = Trainer(OwnLoss(), data, lr=3e-3).fit(epochs=2)
    assert t.history['val_loss'][1]<t.history['val_loss'][0]


def test_half_precision_step_on_cpu():
    t = Trainer(tiny(), Data.from_tensors(samples(100), samples(30,1), batch_size=8), F.cross_entropy, precision='bf16').fit(epochs=1)
    assert t.precision=='bf16' and next(t.model.parameters()).dtype==torch.float32 and t.history['val_loss'][0]>0


# Several ranks

class Gloo:
    "The methods the loop asks for, over real gloo processes."
    def __init__(self):
        import torch.distributed as dist
        self.dist,self.rank,self.world_size,self.device = dist,context().rank,context().world_size,torch.device('cpu')
    def start(self, file):
        self.dist.init_process_group('gloo', init_method=f'file://{file}', rank=self.rank, world_size=self.world_size)
        return self
    def wrap(self, model): return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    def no_sync(self, model): return model.no_sync()
    def sum(self, tensor): self.dist.all_reduce(tensor); return tensor
    def broadcast(self, model): pass
    def barrier(self): self.dist.barrier()


def _rank(file, folder, accumulate=1, cut=None, stop_rank=None, epochs=2):
    os.environ['MLSTACK_PROGRESS'] = 'no'
    p = Gloo().start(file)
    data = Data.from_tensors(samples(96), samples(33,1), batch_size=8)
    class Stop(Callback):
        def after_step(self, t):
            if t.step==3 and p.rank==stop_rank: context().stop.set('one of us')
    t = Trainer(tiny(.5 if folder else 0.), data, F.cross_entropy, lr=3e-3, metrics=dict(acc=accuracy), parallel=p, accumulate=accumulate, callbacks=[Stop()]+([CutAt(cut)] if cut else []))
    said = ''
    try: t.fit(epochs=epochs, save=folder and Checkpoints(folder, every=2), resume=bool(folder))
    except (Cut,StopTraining) as e: said = str(e)
    out = t.step, said, t.history.rows and {k:v for k,v in t.history.rows[-1].items() if k!='seconds'}, t.history.steps()[1], {k:v.clone() for k,v in t.model.state_dict().items()}
    del t.module, t # DDP's reducer must not be what ends gloo's threads: it holds the GIL while it waits for them
    gc.collect()
    p.dist.destroy_process_group()
    return out


@pytest.mark.parametrize('accumulate', [1,2])
def test_two_ranks_are_one_process_with_twice_the_batch(tmp_path, accumulate):
    a,b = workers.run(_rank, tmp_path/'rendezvous', None, accumulate, nprocs=2, timeout=300)
    one = Trainer(tiny(), Data.from_tensors(samples(96), samples(33,1), batch_size=16), F.cross_entropy, lr=3e-3, metrics=dict(acc=accuracy), accumulate=accumulate).fit(epochs=2)
    assert a[0]==one.step and all(torch.equal(a[4][k],b[4][k]) for k in a[4])
    assert len(a[3])==one.step
    np.testing.assert_allclose(a[3], one.history.steps()[1], rtol=1e-4)
    for k,v in one.history.rows[-1].items():
        if k!='seconds': assert a[2][k]==pytest.approx(v, rel=1e-4) and a[2][k]==b[2][k]


def test_ranks_resume_bit_for_bit_each_with_its_own_dropout(tmp_path):
    straight = workers.run(_rank, tmp_path/'r1', tmp_path/'a', nprocs=2, timeout=300)
    workers.run(_rank, tmp_path/'r2', tmp_path/'b', 1, 5, nprocs=2, timeout=300)
    assert {p.name for p in Checkpoints(tmp_path/'b').path(4).iterdir()} == {'model.pt','training.pt','rank-1.pt','manifest.json'}
    resumed = workers.run(_rank, tmp_path/'r3', tmp_path/'b', nprocs=2, timeout=300)
    for s,r in zip(straight,resumed):
        assert s[:4]==r[:4] and all(torch.equal(s[4][k],r[4][k]) for k in s[4])


@pytest.mark.parametrize('stop_rank', [0,1])
def test_one_rank_is_asked_and_all_stop_in_the_same_step(tmp_path, stop_rank):
    a,b = workers.run(_rank, tmp_path/'rendezvous', None, 1, None, stop_rank, 50, nprocs=2, timeout=300)
    assert a[0]==b[0] and 3<a[0]<=48 and a[1] and b[1]


# Laws

def test_the_front_page_is_cheap_and_tracking_is_not_known():
    code = 'import sys, mlstack.trainer; a = "torch" in sys.modules; import mlstack.trainer.loop; print(a, any(m.startswith("mlstack.tracking") for m in sys.modules), "IPython" in sys.modules)'
    assert subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, check=True).stdout.split()==['False']*3


def test_numbers_of_numpy_are_kept_as_plain_ones_and_other_things_refused_when_saving(tmp_path):
    def job(**kw):
        x = torch.ones(16,2)
        return Trainer(nn.Linear(2,1), Data.from_tensors((x,x[:,:1]), batch_size=8), nn.functional.mse_loss, **({'lr': np.float64(.01), 'schedule': lambda done: np.cos(done)} | kw))
    job().fit(epochs=1, save=tmp_path/'a')
    assert job().fit(epochs=2, save=tmp_path/'a', resume=True).epoch == 2
    class Keeper(Callback):
        def state_dict(self): return dict(folder=tmp_path)
    with pytest.raises(CheckpointError, match=r'PosixPath cannot be kept .*callbacks.folder'): job(callbacks=[Keeper()]).fit(epochs=1, save=tmp_path/'b')


def test_the_newest_checkpoint_is_the_one_written_last(tmp_path):
    def job(lr):
        x = torch.ones(16,2)
        return Trainer(nn.Linear(2,1), Data.from_tensors((x,x[:,:1]), batch_size=8), nn.functional.mse_loss, lr=lr)
    job(.1).fit(epochs=5, save=tmp_path)
    with pytest.warns(UserWarning, match='held checkpoints of another training'): second = job(.2).fit(epochs=1, save=tmp_path)
    assert job(.2).load(tmp_path).step == second.step == 2
    folder = Checkpoints(tmp_path/'by hand') # where nothing was put aside the time decides, not the step
    for step in (5,2): folder.save(step, dict(model=dict(step=step)))
    assert folder.latest()[0].name == 'step-000000002'


def _simple(seed=0, epochs=1, **kw):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 2, generator=g)
    torch.manual_seed(seed)
    return Trainer(nn.Linear(2,1), Data.from_tensors((x,x[:,:1]), batch_size=8), nn.functional.mse_loss, **kw)


def test_a_second_fit_goes_on_also_where_the_first_resumed(tmp_path):
    t = _simple()
    for _ in range(2): t.fit(epochs=1, save=tmp_path/'a', resume=True)
    assert t.epoch == 2
    with use(checkpoints=str(tmp_path/'b'), attempt=0):
        straight = _simple()
        straight.fit(epochs=1); straight.fit(epochs=2)
    for steps in (1,6):
        folder = Checkpoints(tmp_path/f'c{steps}', every=2)
        class Cut(Callback):
            def after_step(self, t, steps=steps):
                if t.step == steps+1: raise KeyboardInterrupt
        t = _simple(callbacks=[Cut()])
        with pytest.raises(KeyboardInterrupt):
            for n in (1,2): t.fit(epochs=n, save=folder, resume=True)
        t = _simple()
        for n in (1,2): t.fit(epochs=n, save=folder, resume=True)
        assert t.epoch == 3 and torch.equal(t.model.weight, straight.model.weight)


def test_trainers_of_one_call_do_not_take_over_each_others_checkpoints(tmp_path):
    def folds(n): return [_simple(seed=k).fit(epochs=k+1).model.weight.detach().clone() for k in range(n)]
    straight = folds(3)
    with use(checkpoints=str(tmp_path), attempt=0): folds(2)
    with use(checkpoints=str(tmp_path), attempt=1): again = folds(3)
    for a,b in zip(straight, again): assert torch.equal(a, b)


def test_a_checkpoint_made_before_any_fit_can_be_resumed(tmp_path):
    assert _simple().fit(epochs=1, resume=_simple().save(tmp_path/'early')).epoch == 1


# Resuming what was changed meanwhile

def changed(**kw):
    batch_size,n = kw.pop('batch_size',8),kw.pop('n',100)
    return Trainer(tiny(.5), Data.from_tensors(samples(n), samples(30,1), batch_size=batch_size), F.cross_entropy, **kw)


@pytest.mark.parametrize('cut', [12,17])
@pytest.mark.parametrize('other,says,end', [
    (dict(batch_size=4), 'batch size 8 then, 4 now', (62,57)), (dict(batch_size=25), 'batch size 8 then, 25 now', (20,24)), (dict(n=50), 'number of items 100 then, 50 now', (24,24)),
    (dict(accumulate=3), 'accumulate 1 then, 3 now', (20,24)), (dict(seed=1), 'seed 0 of the checkpoint is used, not 1', (36,36))])
def test_a_resume_with_other_batches_ends_by_epochs_and_says_so(tmp_path, cut, other, says, end):
    t = changed(callbacks=[CutAt(cut+1)])
    with pytest.raises(Cut): t.fit(epochs=3, save=Checkpoints(tmp_path, every=cut))
    with pytest.warns(UserWarning, match=says):
        resumed = changed(**other, callbacks=[CutAt(cut+2)])
        with pytest.raises(Cut): resumed.fit(epochs=3, save=Checkpoints(tmp_path, every=1), resume=True)
    assert 'bit for bit' not in str(resumed.explain()) and says in str(resumed.explain())
    with warnings.catch_warnings():
        if 'seed' not in other: warnings.simplefilter('error') # compared with what was used last
        again = changed(**other).fit(epochs=3, save=tmp_path, resume=True)
    assert again.epoch==3 and again.step==again.last_step==end[cut==17]


@pytest.mark.parametrize('other,says', [(dict(lr=3e-2), 'lr 0.003 of the checkpoint is used, not 0.03'), (dict(schedule='linear'), 'schedule linear is used, not None of the checkpoint'),
    (dict(opt='sgd'), 'SGD starts anew, the checkpoint has the state of AdamW')])
def test_a_resume_with_another_optimizer_says_so(tmp_path, other, says):
    changed(lr=3e-3).fit(epochs=1, save=tmp_path)
    with pytest.warns(UserWarning, match=says): resumed = changed(**dict(lr=3e-3)|other).fit(epochs=2, save=tmp_path, resume=True)
    assert resumed.step==24 and says in str(resumed.explain()) and 'bit for bit' not in str(resumed.explain())
    if 'lr' in other: assert resumed.optimizer.param_groups[0]['lr']==3e-3


def test_an_older_checkpoint_is_not_compared(tmp_path):
    from mlstack.trainer.checkpoints import write_checkpoint
    t = changed()
    t.fit(epochs=1)
    parts = t._state()
    del parts['training']['plan']
    write_checkpoint(tmp_path/'old', parts, t._note())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert changed(lr=3e-2).fit(epochs=2, resume=tmp_path/'old').step==24


# Several trainings, one folder

def test_a_fresh_fit_puts_another_trainings_checkpoints_aside(tmp_path):
    changed().fit(epochs=3, save=tmp_path)
    with pytest.warns(UserWarning, match='held checkpoints of another training, which are now in aside-'):
        fresh = changed(lr=.5).fit(epochs=1, save=tmp_path)
    assert 'aside-' in str(fresh.explain()) and Checkpoints(tmp_path).steps()==[12]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert same_weights(changed(lr=.5).fit(epochs=1, save=tmp_path, resume=True).model, fresh.model)
        went_on = changed(lr=.5).fit(epochs=2, save=tmp_path, resume=True)
        assert went_on._lineage==fresh._lineage and Checkpoints(tmp_path).steps()==[24,12]
        fresh.fit(epochs=0, save=tmp_path) # nothing is saved, so nothing is moved
        aside, = tmp_path.glob('aside-*')
        assert changed().fit(epochs=4, resume=aside).step==48


def test_going_on_from_an_earlier_checkpoint_leaves_its_old_future_aside(tmp_path):
    changed().fit(epochs=3, save=tmp_path)
    with pytest.warns(UserWarning, match='aside-'): changed().fit(epochs=2, save=tmp_path, resume=Checkpoints(tmp_path).path(12))
    assert Checkpoints(tmp_path).steps()==[24,12]
    with pytest.warns(UserWarning, match='aside-'): changed().fit(epochs=2, save=tmp_path, resume=Checkpoints(tmp_path).path(12))
    assert sorted(p.relative_to(tmp_path).parts[1] for p in tmp_path.glob('aside-*/*'))==['step-000000024','step-000000024','step-000000036']


# Signals

class Signal(Callback):
    "Sends a signal to this process in the middle of a step."
    def __init__(self, step, number): self.at,self.number = step,number
    def before_update(self, t):
        if t.step==self.at-1: os.kill(os.getpid(), self.number)


class Raise(Callback):
    "A Ctrl-C that arrives in the hook `name` of step 17."
    def __init__(self, name): setattr(self, name, self.go)
    def go(self, t):
        if t.step==17: raise KeyboardInterrupt
    def before_update(self, t): pass
    def after_step(self, t): pass


@pytest.mark.parametrize('number,error', [(signal.SIGINT,KeyboardInterrupt), (signal.SIGTERM,StopTraining)])
def test_an_interrupted_fit_saves_its_step_and_goes_on_bit_for_bit(tmp_path, number, error):
    straight,before = changed().fit(epochs=3),signal.getsignal(number)
    with use():
        t = changed(callbacks=[Signal(17,number)])
        with pytest.raises(error): t.fit(epochs=3, save=tmp_path)
        assert t.step==17 and Checkpoints(tmp_path).steps()==[17,12] and signal.getsignal(number)==before
        assert error is KeyboardInterrupt or context().stop.reason=='SIGTERM'
    resumed = changed().fit(epochs=3, save=tmp_path, resume=True)
    assert resumed.step==36 and resumed.history.table()==straight.history.table() and same_weights(resumed.model, straight.model)


@pytest.mark.parametrize('hook,steps', [('after_step',[17,12]), ('before_update',[12])])
def test_only_a_whole_step_is_saved(tmp_path, hook, steps):
    t = changed(callbacks=[Raise(hook)])
    with pytest.raises(KeyboardInterrupt): t.fit(epochs=3, save=tmp_path)
    assert Checkpoints(tmp_path).steps()==steps


def test_handlers_of_others_are_left_alone():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try: assert changed(callbacks=[Signal(3,signal.SIGTERM)]).fit(epochs=1).step==12 and seen==[1]
    finally: signal.signal(signal.SIGTERM, before)


# An optimizer made outside

def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match='holds no parameter of this model'): changed(opt=torch.optim.SGD(tiny().parameters(), lr=.1)).fit(epochs=1)


@pytest.mark.parametrize('lr', [1e-3,.5])
def test_what_an_optimizer_made_outside_leaves_out_is_said(lr):
    model = tiny()
    data = Data.from_tensors(samples(100), batch_size=8)
    with pytest.warns(UserWarning, match=r'does not update 4 parameters of the model: 3.weight, 3.bias, 5.weight, …'):
        Trainer(model, data, F.cross_entropy, opt=torch.optim.SGD(model[0].parameters(), lr=.1)).fit(epochs=1)
    with pytest.warns(UserWarning, match=rf'lr={lr} is not used: the optimizer was given ready made, with lr 0.1'):
        Trainer(model, data, F.cross_entropy, opt=torch.optim.SGD(model.parameters(), lr=.1), lr=lr).fit(epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Trainer(model, data, F.cross_entropy, opt=torch.optim.SGD(model.parameters(), lr=.1)).fit(epochs=1)


# What is said

class Timed(list):
    "A stream that knows the epoch in which each line was written."
    def __init__(self): self.t,self.flushed = None,0
    def __bool__(self): return True
    def isatty(self): return False
    def write(self, text): self.append((self.t.epoch,text))
    def flush(self): self.flushed += 1


def test_a_file_gets_a_line_an_epoch_as_it_ends():
    out = Timed()
    out.t = changed(callbacks=[Progress(out=out)])
    out.t.fit(epochs=3)
    assert [e for e,_ in out]==[0,1,2] and out.flushed==3 and [o.split('  ')[0] for _,o in out]==['epoch 1/3','epoch 2/3','epoch 3/3'] and all('val_loss' in o for _,o in out)


def test_a_fit_that_is_cut_off_repeats_no_numbers():
    out = Timed()
    out.t = changed(callbacks=[Progress(out=out), Signal(17,signal.SIGTERM)])
    with use(), pytest.raises(StopTraining): out.t.fit(epochs=3)
    assert [o for _,o in out][1:]==['stopped in epoch 2/3  step 17\n'] and 'val_loss' in out[0][1]
    out.t = changed(callbacks=[Progress(out=out)])
    out.t.fit(steps=17) # what is validated at the end of the steps is shown
    assert out[-1][1].startswith('epoch 2  step 17') and 'val_loss' in out[-1][1]


def test_a_file_gets_lines_within_a_long_epoch():
    out = Timed()
    class Wait(Callback):
        def after_step(self, t):
            before = len(out)
            while t.step<4 and len(out)==before: time.sleep(.005)
    out.t = changed(callbacks=[Wait(), Progress(out=out, quiet=.02)])
    out.t.fit(epochs=1)
    assert [o.split('  ')[0] for _,o in out[:4]]==['epoch 1/1']*4


def test_a_resumed_fit_says_where_it_goes_on(tmp_path, monkeypatch, capsys):
    changed().fit(epochs=2, save=tmp_path/'checkpoints')
    monkeypatch.setenv('MLSTACK_PROGRESS', 'yes')
    changed().fit(epochs=2, save=tmp_path/'checkpoints', resume=True)
    assert capsys.readouterr().out.splitlines()[0]=='already done: epoch 2 of 2'
    changed().fit(epochs=3, save=tmp_path/'checkpoints', resume=True)
    assert capsys.readouterr().out.splitlines()[0]=='going on from checkpoints/step-000000024, epoch 3 of 3'


def test_ranks_are_told_their_common_batch():
    class Two:
        rank,world_size,device = 0,2,torch.device('cpu')
        def wrap(self, model): return model
        def no_sync(self, model): raise NotImplementedError
        def sum(self, tensor): return tensor
        def broadcast(self, model): pass
        def barrier(self): pass
    assert 'batch 8 x 2 ranks = 16 a step' in changed(parallel=Two()).explain()


# A newcomer's mistakes

class Frame:
    def to_numpy(self): return np.ones((4,2))
    def __iter__(self): return iter('ab')


x,y = samples(8)
@pytest.mark.parametrize('bad,says', [
    (lambda: Data.from_tensors(x, y), r'write Data.from_tensors\(\(x,y\)\)'),
    (lambda: Data.from_tensors((Frame(),y)), r'\.to_numpy\(\)'),
    (lambda: Data(Frame()), r'\.to_numpy\(\)'),
    (lambda: changed(lr='1e-3'), r"lr is '1e-3', a str.*lr=float\('1e-3'\)"),
    (lambda: Trainer(tiny(), [(x,y)], nn.CrossEntropyLoss), r'class.*CrossEntropyLoss\(\)'),
    (lambda: Trainer(tiny(), [(x,y)], 'mse'), "the loss is 'mse'.*cross_entropy"),
    (lambda: Trainer(tiny(), [(x,y)]).fit(epochs=1), r'there is no loss, and the model does not take the whole batch \(float32\[8, 64\], int64\[8\]\)'),
    (lambda: Trainer(tiny(), [x]).fit(epochs=1), 'give loss='),
    (lambda: Trainer(tiny(), [(x,y)], F.cross_entropy, metrics=dict(acc=lambda out,y: out.argmax(1)==y)).fit(epochs=1), r"metric 'acc' returned bool\[8\]"),
    (lambda: changed(metrics=dict(acc=lambda out,y: 'good')).fit(epochs=1), "metric 'acc' returned str"),
    (lambda: changed().fit(epochs=1, resume='/nowhere/at/all'), 'nothing here to go on from'),
])
def test_a_newcomers_mistake_is_named(bad, says):
    with pytest.raises((StepError,ValueError,RuntimeError), match='(?si)'+says): bad()


def test_two_arrays_of_one_kind_are_training_and_validation():
    assert Data.from_tensors(x, x.clone()).valid.n==8


def test_a_type_error_within_the_model_is_left_alone():
    class Broken(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(1))
        def forward(self, x, y): return x+None
    with pytest.raises(TypeError, match='NoneType'): Trainer(Broken(), [(x,y)]).fit(epochs=1)


def test_predict_takes_numpys_float64():
    t,wide = changed(),x.numpy().astype(np.float64)
    for given in (wide, (wide,y.numpy()), (wide,y)): assert torch.equal(t.predict(given), t.predict(x))


# A stop is remembered, and shared

class StopAt(Callback):
    "Ends the fit at `step`, as early stopping does, with the hook `name`, on one rank if that is asked for."
    def __init__(self, name, step, rank=None, error=StopTraining): self.step,self.rank,self.error = step,rank,error; setattr(self, name, self.go)
    def go(self, t):
        if t.step==self.step and self.rank in (None,t.parallel.rank): raise self.error('good enough')
    def before_step(self, t): pass
    def after_step(self, t): pass
    def after_epoch(self, t): pass


@pytest.mark.parametrize('step', [4,10])
def test_a_retry_remembers_which_fit_a_callback_ended(tmp_path, step):
    "Two fits of one trainer, the first or the second ended by a callback; then the job is tried again."
    def job():
        t,ends = _simple(callbacks=[StopAt('after_step',step)]),[]
        for n in (2,3): t.fit(epochs=n); ends.append((t.step,t.stopped))
        return t,ends
    with use(checkpoints=str(tmp_path), attempt=0): first,ends = job()
    assert [w for _,w in ends]==(['good enough',None] if step==4 else [None,'good enough'])
    with use(checkpoints=str(tmp_path), attempt=1): again,ends2 = job()
    assert [w for _,w in ends2]==[w for _,w in ends] and again.step==first.step and same_weights(again.model, first.model)


@pytest.mark.parametrize('name,rank,error', [('after_step',0,StopTraining), ('after_step',1,StopTraining), ('before_step',1,StopTraining), ('after_epoch',1,StopTraining), ('after_step',1,StopEpoch)])
def test_a_callbacks_stop_on_one_rank_ends_all_in_the_same_step(tmp_path, name, rank, error):
    a,b = workers.run(_stopping_rank, tmp_path/'rendezvous', name, rank, error, nprocs=2, timeout=300)
    assert a[:2]==b[:2] and a[0]<600
    if error is StopTraining: assert {a[2],b[2]}=={'good enough','a callback of another rank ended it'}
    else: assert a[1]==2 and a[0]<12*50*2 and a[2] is None


def _stopping_rank(file, name, rank, error):
    os.environ['MLSTACK_PROGRESS'] = 'no'
    p = Gloo().start(file)
    data = Data.from_tensors(samples(800), batch_size=8)
    t = Trainer(tiny(), data, F.cross_entropy, parallel=p, callbacks=[StopAt(name, 50 if name=='after_epoch' else 3, rank, error)]).fit(epochs=2 if error is StopEpoch else 20)
    out = t.step, t.epoch, t.stopped
    del t.module, t
    gc.collect()
    p.dist.destroy_process_group()
    return out


# Batches in an order of their own

class Weighted(DataLoader):
    "A loader whose order is drawn from torch's global generator, as a WeightedRandomSampler does."
    def __init__(self, generator=None, dataset=None):
        super().__init__(dataset or TensorDataset(*samples(100)), batch_size=8, drop_last=True, sampler=torch.utils.data.WeightedRandomSampler(torch.ones(100), 100, generator=generator))


class Shuffled:
    "Batches in an order drawn when an epoch begins, from Python's or numpy's generator; or, with `steps`, batch by batch."
    def __init__(self, draw): self.draw = draw
    def __iter__(self):
        x,y = samples(96)
        for i in self.draw(12): yield x[8*i:8*i+8],y[8*i:8*i+8]


def by_buffer(n): # as a shuffle buffer does
    left = list(range(n))
    while left: yield left.pop(random.randrange(len(left)))
def by_torch(n):
    for _ in range(n): yield int(torch.randint(n,()))


own = dict(weighted=lambda: Weighted(), generator=lambda: Weighted(torch.Generator().manual_seed(3)), augmented=lambda: Weighted(dataset=Noisy()),
    python=lambda: Shuffled(lambda n: random.sample(range(n),n)), numpy=lambda: Shuffled(np.random.permutation), buffer=lambda: Shuffled(by_buffer))


@pytest.mark.parametrize('kind', own)
@pytest.mark.parametrize('cut', [14,17])
def test_an_order_drawn_from_global_generators_is_resumed(tmp_path, kind, cut):
    def job(**kw): return Trainer(tiny(.5), own[kind](), F.cross_entropy, lr=3e-3, **kw)
    straight = job().fit(epochs=3)
    for at in (cut,cut+3):
        random.seed(); np.random.seed(); torch.seed()
        with pytest.raises(Cut), warnings.catch_warnings(): warnings.simplefilter('ignore'); job(callbacks=[CutAt(at)]).fit(epochs=3, save=Checkpoints(tmp_path, every=1), resume=True)
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); resumed = job().fit(epochs=3, save=Checkpoints(tmp_path, every=1), resume=True)
    assert resumed.history.steps()==straight.history.steps() and same_weights(resumed.model, straight.model)
    assert 'perhaps not' not in resumed._why['resume']


def test_an_order_drawn_batch_by_batch_is_doubted(tmp_path):
    def job(**kw): return Trainer(tiny(.5), Shuffled(by_torch), F.cross_entropy, **kw)
    with pytest.raises(Cut): job(callbacks=[CutAt(17)]).fit(steps=30, save=Checkpoints(tmp_path, every=1))
    with pytest.warns(UserWarning, match='draw from the generator of torch while they are read'): resumed = job().fit(steps=30, save=Checkpoints(tmp_path, every=1), resume=True)
    assert 'perhaps not bit for bit' in str(resumed.explain())


def test_opening_a_loader_leaves_dropout_alone():
    "The masks depend on the seed alone, not on whether a loader draws when it is opened."
    def masks(data):
        seen = []
        t = Trainer(nn.Sequential(nn.Dropout(.5), nn.Linear(64,10)), data, F.cross_entropy)
        t.model[0].register_forward_hook(lambda m,i,o: seen.append((o==0).sum().item()) if m.training else None)
        t.fit(steps=5)
        return seen
    x,y = samples(8)
    assert masks([(x,y)]*5)==masks(DataLoader(TensorDataset(x.repeat(5,1),y.repeat(5)), batch_size=8, sampler=list(range(40))))


def test_directions_are_read_from_words():
    from mlstack.trainer.callbacks import direction
    assert [direction(n) for n in ('val_loss','val_nll','val_answer_f1','val_power_acc','wer','top1')] == [-1,-1,1,1,-1,1]
    for name in ('val_power','val_thing'):
        with pytest.raises(CallbackError, match='say mode|Say mode'): direction(name)
    assert direction('val_thing','min') == -1

def test_a_column_that_will_not_be_there_is_named_before_the_first_step(tmp_path):
    x,y = torch.randn(32,4),torch.randint(0,2,(32,))
    def job(data, *callbacks): return Trainer(nn.Linear(4,2), data, F.cross_entropy, callbacks=list(callbacks))
    for run in (lambda: job(Data.from_tensors((x,y)), EarlyStopping()).fit(epochs=1), lambda: job(Data.from_tensors((x,y),(x,y)), EarlyStopping('val_acc')).fit(epochs=1),
        lambda: job(Data.from_tensors((x,y),(x,y))).fit(epochs=1, save=Checkpoints(tmp_path, best='val_acc'))):
        with pytest.raises(CallbackError, match='to watch'): run()

def test_early_stopping_counts_validations_between_epochs():
    x,y = torch.randn(64,4),torch.randint(0,2,(64,))
    t = Trainer(nn.Linear(4,2), Data.from_tensors((x,y),(x,y), batch_size=4), F.cross_entropy, lr=0., callbacks=EarlyStopping(patience=2))
    t.fit(epochs=5, validate=2)
    assert t.step==6 and 'has not improved in 2 validations' in t.stopped

def test_a_loaders_worker_obeys_once_the_fit_is_over():
    t = Trainer(nn.Linear(4,1), DataLoader(TensorDataset(torch.randn(64,4),torch.randn(64,1)), 16, num_workers=1, persistent_workers=True), F.mse_loss).fit(epochs=1)
    worker, = t.data.train.loader._iterator._workers
    worker.terminate() # as multiprocessing does when the process ends; during a fit it would wait a minute for the step
    worker.join()
    assert worker.exitcode==0
