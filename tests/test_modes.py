"Compiled and recorded steps compute what eager ones do; whatever goes wrong costs no update; formats are what they say."
import copy
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mlstack.trainer.formats as formats
import mlstack.trainer.graphs as graphs
import mlstack.trainer.modes as modes
from mlstack import workers
from mlstack.core import StopTraining, context, use
from mlstack.trainer import EMA, Callback, Checkpoints, Data, Mixup, Rollback, StepError, Trainer, TrainerError
from tests import house
from tests.test_trainer import Cut, CutAt, Gloo, Log, quiet, same_weights  # noqa: F401

pytestmark = pytest.mark.usefixtures('quiet')


class Block(nn.Module):
    def __init__(self, width, dropout=0.):
        super().__init__()
        self.norm,self.up,self.drop,self.down = nn.BatchNorm1d(width),nn.Linear(width,2*width),nn.Dropout(dropout),nn.Linear(2*width,width)
    def forward(self, x): return x+self.down(self.drop(self.up(self.norm(x)).relu()))


class Tower(nn.Module):
    def __init__(self, depth=3, width=16, dropout=0.):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.ModuleDict(dict(begin=nn.Linear(8,width), blocks=nn.ModuleList(Block(width,dropout) for _ in range(depth))))
        self.head = nn.Linear(width,4)
    def forward(self, x):
        x = self.inner['begin'](x)
        for b in self.inner['blocks']: x = b(x)
        return self.head(x)


def items(n=64):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n,8,generator=g),torch.randint(0,4,(n,),generator=g)


def job(model=None, data=None, n=64, **kw): return Trainer(Tower() if model is None else model, data or Data.from_tensors(items(n), batch_size=16), F.cross_entropy, **dict(lr=2**-8)|kw)  # this rate is the same in float32


@pytest.fixture
def traced(monkeypatch):
    "The compiler without code generation."
    torch._dynamo.reset()
    monkeypatch.setattr(modes, 'backend', 'aot_eager')


class Again:
    "Stands for a CUDA graph on a CPU: a replay runs the recorded function again."
    kind,made = 'cpu',[]
    def __init__(self, device): self.replays,self.fn = 0,None
    def warm(self, fn): return fn()
    def capture(self, fn): self.fn = fn; self.made.append(self)
    def replay(self): self.replays += 1; self.fn()


@pytest.fixture
def replayed(monkeypatch):
    class Fresh(Again): made = []
    monkeypatch.setattr(graphs, 'recorder', Fresh)
    return Fresh


def close(a, b, **kw): return all(torch.allclose(p,q,**dict(atol=1e-5)|kw) for p,q in zip(a.state_dict().values(), b.state_dict().values()))


# What is compiled

def test_repeated_blocks_are_found_the_outermost_ones():
    pair = lambda: nn.Sequential(nn.Sequential(nn.Linear(4,4),nn.ReLU()), nn.Sequential(nn.Linear(4,4),nn.ReLU()))
    nested = nn.ModuleList([pair(),pair()])
    assert modes.repeated_blocks(nn.ModuleDict(dict(h=nested)))==list(nested)
    mixed = nn.Sequential(nn.Linear(4,8), *(nn.Sequential(nn.Linear(8,8),nn.ReLU()) for _ in range(3)), nn.Sequential(nn.Linear(8,2),nn.ReLU()))
    assert modes.repeated_blocks(mixed)==list(mixed[1:4])
    assert modes.repeated_blocks(nn.Sequential(*(nn.Linear(4,4) for _ in range(4))))==[]
    assert modes.repeated_blocks(nn.Sequential(nn.Sequential(nn.ReLU(),nn.ReLU()), nn.Sequential(nn.ReLU(),nn.ReLU())))==[]


def test_blocks_where_they_hold_most_of_the_model_else_the_whole():
    def how(model, want=True):
        t = job(model)
        t.setup()
        return modes.choose_compile(t, want)[0]
    few = nn.Sequential(nn.Linear(8,99), nn.Linear(99,16), Block(16), Block(16), nn.Linear(16,4))
    assert [how(Tower()),how(few),how(few,'blocks'),how(Tower(),'whole')]==['blocks','whole','blocks','whole']
    with pytest.raises(TrainerError, match='no repeated blocks'): how(nn.Linear(8,4), 'blocks')


@pytest.mark.parametrize('kw', [dict(compile='fast'), dict(compile=1), dict(graph='maybe'), dict(graph=0), dict(threads=0), dict(threads='all'), dict(channels_last=2), dict(deterministic='yes')], ids=str)
def test_what_is_no_mode_is_refused(kw):
    with pytest.raises(TrainerError): job(**kw)


def test_a_cpu_is_left_alone_and_says_why():
    t = job().fit(epochs=1)
    assert t.mode=='eager' and 'not compiled: on a CPU' in str(t.explain()) and 'this is a CPU' in str(t.explain())
    t = job(compile=False, graph=False)
    assert 'next fit: not compiled, as asked; no graph, as asked' in t.explain()


class Card:
    "A trainer on a card, as far as the choice looks at it."
    def __init__(self, n, last_step=None, limit=None): self.device,self.model,self.optimizer,self.step,self.last_step,self.limit = torch.device('cuda'),nn.Linear(n,1000,bias=False),'some',0,last_step,limit


def test_on_a_card_a_long_fit_of_a_large_model_is_compiled(monkeypatch):
    monkeypatch.setattr(modes, 'no_compiler', lambda kind: '')
    said = lambda *a,**kw: modes.choose_compile(Card(*a,**kw), 'auto')[2]
    assert said(2000, 5000)=='compiled whole, since no repeated blocks hold most of it'==said(2000)
    assert 'too few to gain' in said(10, 5000) and '20 steps are too few' in said(2000, 20) and '60 seconds are too few' in said(2000, limit=60)
    assert modes.choose_compile(Card(10, 20), True)[0]=='whole'
    monkeypatch.setattr(modes, 'no_compiler', lambda kind: 'triton is not installed')
    assert said(2000, 5000)=='not compiled: triton is not installed'


# Compiled steps

def test_twelve_blocks_are_one_graph_and_every_key_stays(traced):
    eager,t = job(Tower(12)).fit(epochs=2),job(Tower(12), compile=True).fit(epochs=2)
    assert t.mode=='compiled' and t.modes.graphs in (1,2) and '12 Block' in str(t.explain())
    assert list(t.model.state_dict())==list(eager.model.state_dict()) and close(t.model, eager.model)
    assert all(m._compiled_call_impl is None for m in t.model.modules()) # plain again after the fit
    again = job(Tower(12), compile=True).fit(epochs=1)
    assert again.mode=='compiled' and again.modes.graphs==0 # the next one of its kind takes the same code
    copy.deepcopy(t.model)


@pytest.mark.parametrize('kw', [dict(accumulate=2, clip=.1), dict(schedule='cosine', precision='bf16'), dict(metrics=dict(acc=lambda out,y: (out.argmax(1)==y).float().mean()), compile='whole')], ids=['accumulate','bf16','whole'])
def test_a_compiled_fit_is_the_eager_one_within_rounding(traced, kw):
    eager,t = job(**kw|dict(compile=False)).fit(epochs=3),job(**dict(compile=True)|kw).fit(epochs=3)
    assert t.mode=='compiled' and close(t.model, eager.model, atol=2e-2 if kw.get('precision') else 1e-5)
    for a,b in zip(t.history.steps()[1], eager.history.steps()[1]): assert abs(a-b)<(.05 if kw.get('precision') else 1e-4)


def test_many_models_of_one_class_are_all_compiled(traced):
    for width in range(8,80,8): assert job(Tower(2,width), compile=True).fit(steps=2).mode=='compiled' # torch's own limit is 8


def test_validation_and_the_short_batch_are_eager(traced):
    data = Data.from_tensors(items(40), items(24), batch_size=16, drop_last=False)
    t,eager = [job(data=data, compile=c).fit(epochs=2) for c in (True,False)]
    assert t.modes.graphs in (1,2) and len(t.modes.shapes)==1 and t.step==6 and close(t.model, eager.model)
    for a,b in zip(t.history['val_loss'], eager.history['val_loss']): assert abs(a-b)<1e-4


class Lengths:
    "Batches of many sizes, so that nothing is a short last one."
    def __init__(self, sizes): self.sizes = sizes
    def __len__(self): return len(self.sizes)
    def __iter__(self): return ((items()[0][:n],items()[1][:n]) for n in self.sizes)


def test_many_shapes_end_in_one_graph_for_all(traced):
    sizes = [*range(20,30)]*2
    t,eager = [job(data=Data(Lengths(sizes)), compile=c).fit(epochs=1) for c in (True,False)]
    assert t.mode=='compiled' and t.modes.dynamic and t.modes.graphs<=2*4+4 and close(t.model, eager.model)


class Picky(Block):
    "Another program for every batch size."
    def forward(self, x):
        for n in range(64):
            if x.shape[0]==n: return super().forward(x)*(1+n/1000)


def test_a_model_that_is_never_done_compiling_goes_on_eagerly(traced):
    model = lambda: nn.Sequential(nn.Linear(8,16), *(Picky(16) for _ in range(2)), nn.Linear(16,4))
    def fit(compile):
        torch.manual_seed(0)
        return job(model(), data=Data(Lengths(range(20,34))), compile=compile).fit(epochs=1)
    with pytest.warns(UserWarning, match='shapes of batches took'): t = fit(True)
    eager = fit(False)
    assert t.mode=='eager' and 'pad them' in str(t.explain()) and t.step==14 and close(t.model, eager.model)


def test_on_a_gpu_the_loss_is_compiled_too(traced):
    class On(modes.Stepping):
        def __init__(self, device, compiled): self.device,self.loss,self.model,self.modes = torch.device(device),F.cross_entropy,Tower(),modes.Modes(); self.modes.compiled = compiled
    c,out,y = modes.Compiled([]),torch.randn(4,5,requires_grad=True),torch.arange(4)
    fn,before = On('cuda',c)._training_loss(),modes.graphs_made()
    assert torch.allclose(fn(out,y), F.cross_entropy(out,y)) and modes.graphs_made()==before+1
    c.on = False
    assert torch.equal(fn(out,y), F.cross_entropy(out,y))
    assert On('cpu',c)._training_loss() is On('cuda',None)._training_loss() is F.cross_entropy
    evaluating = On('cuda',c)
    evaluating.model.eval()
    assert evaluating._training_loss() is F.cross_entropy


# What does not work

class Refused(Exception): pass


def refusing(when):
    "A compiler that fails in the forward or in the backward pass, at its `n`-th graph."
    from torch._dynamo.backends.common import aot_autograd
    seen = []
    def fail(gm, inputs):
        seen.append(1)
        if len(seen)>=when[1]: raise Refused('not today')
        return gm.forward
    keep = lambda gm,inputs: gm.forward
    return aot_autograd(fw_compiler=fail if when[0]=='forward' else keep, bw_compiler=fail if when[0]=='backward' else keep)


class Counted:
    "A metric with a state, which a step changes too."
    def __init__(self): self.reset()
    def reset(self): self.n = 0
    def update(self, out, y): self.n += len(y)
    def compute(self): return self.n


@pytest.mark.parametrize('when', [('forward',1),('forward',2),('backward',1)], ids=str)
@pytest.mark.parametrize('accumulate', [1,2])
def test_a_failing_compiler_costs_no_update(monkeypatch, when, accumulate):
    torch._dynamo.reset()
    model = lambda: nn.Sequential(nn.Linear(8,16), Block(16,.5), Block(16,.5), nn.ReLU(), nn.Linear(16,16), Block(16,.5), Block(16,.3), nn.Linear(16,4))
    def fit(compile):
        torch.manual_seed(0)
        log = Log()
        t = job(model(), compile=compile, accumulate=accumulate, metrics=dict(n=Counted()), run=log, callbacks=[EMA()]).fit(epochs=2)
        return t,log
    eager,log = fit(False)
    monkeypatch.setattr(modes, 'backend', refusing(when))
    with pytest.warns(UserWarning, match='Refused: not today.*run again eagerly'): t,mine = fit('blocks')
    assert t.mode=='eager' and same_weights(t.model, eager.model) and mine.seen==log.seen and t.history['n']==eager.history['n']
    assert 'Refused: not today' in str(t.explain())


def test_automatic_compiling_fails_without_a_word(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(modes, '_unwise', lambda t: '')
    monkeypatch.setattr(modes, 'backend', refusing(('forward',1)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        t = job().fit(epochs=1)
    assert not [w for w in said if 'not compiled' in str(w.message)]
    assert t.mode=='eager' and t.step==4 and 'Refused' in str(t.explain())


def test_an_error_of_the_model_is_not_the_compilers(traced):
    t = job(nn.Sequential(nn.Linear(9,16), Block(16), Block(16), nn.Linear(16,4)), compile='blocks')
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied') as e: t.fit(epochs=1)
    assert 'in the first step, with a batch (float32[16, 8], int64[16])' in e.value.__notes__ and t.step==0
    class Half(nn.Module):
        def forward(self, x): raise ValueError('this model is not finished')
    with pytest.raises(ValueError, match='not finished'): job(nn.Sequential(nn.Linear(8,4), Half()), compile='whole').fit(epochs=1)


@pytest.mark.parametrize('error', [StopTraining('enough'), RuntimeError('a hook')])
def test_an_error_after_the_gradients_is_not_tried_again(traced, error):
    class Late(Callback):
        calls = 0
        def before_update(self, t): self.calls += 1; raise error
    late = Late()
    t = job(compile=True, callbacks=[late])
    if isinstance(error, StopTraining): t.fit(epochs=1)
    else:
        with pytest.raises(RuntimeError, match='a hook'): t.fit(epochs=1)
    assert late.calls==1 and t.step==0 and same_weights(t.model, Tower()) is False # only the running statistics have moved
    assert all(torch.equal(p,q) for p,q in zip(t.model.parameters(), Tower().parameters()))


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.warns(UserWarning, match=r'not compiled: there is no compiler \(no-such-compiler\)'): t = job(compile=True).fit(epochs=1)
    assert t.mode=='eager' and t.step==4 and modes.no_compiler('cpu')
    monkeypatch.setattr(modes, 'find_spec', lambda name: None)
    assert modes.no_compiler('cuda')=='triton is not installed'


def test_a_compiler_that_turns_out_to_be_missing(monkeypatch):
    import torch._inductor.config as config
    torch._dynamo.reset()
    monkeypatch.setattr(modes, 'no_compiler', lambda kind: '')
    eager = job().fit(epochs=1)
    with config.patch({'cpp.cxx':('no-such-compiler',)}), pytest.warns(UserWarning, match='compiling failed'): t = job(compile=True).fit(epochs=1)
    assert t.mode=='eager' and same_weights(t.model, eager.model)


def test_a_step_with_its_own_updates_and_a_model_that_came_compiled_are_left_alone(traced):
    def own(model, batch):
        loss = F.cross_entropy(model(batch[0]),batch[1])
        loss.backward()
        with torch.no_grad():
            for p in model.parameters(): p -= .01*p.grad; p.grad = None
        return loss
    with pytest.warns(UserWarning, match='makes its own updates'): t = Trainer(Tower(), Data.from_tensors(items(), batch_size=16), step=own, opt=None, compile=True, graph=True).fit(epochs=1)
    assert t.mode=='eager' and t.step==4
    model = Tower()
    model.compile(backend='aot_eager')
    kept = model._compiled_call_impl
    with pytest.warns(UserWarning, match='came compiled'): job(model, compile=True).fit(epochs=1)
    assert model._compiled_call_impl is kept


# Ends and resumes

@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_while_compiling_ends_the_fit_and_loses_nothing(tmp_path, monkeypatch, number):
    torch._dynamo.reset()
    sent = []
    def slow(gm, inputs):
        if not sent: sent.append(1); os.kill(os.getpid(), number)
        return gm.forward
    monkeypatch.setattr(modes, 'backend', slow)
    with use():
        t = job(compile=True)
        with pytest.raises(KeyboardInterrupt if number==signal.SIGINT else StopTraining): t.fit(epochs=2, save=tmp_path)
        assert t.mode=='compiled' and (t.step,Checkpoints(tmp_path).steps())==((1,[1]) if number==signal.SIGINT else (0,[]))  # a signal leaves at once where nothing would be lost
        assert number==signal.SIGINT or context().stop.reason==signal.Signals(number).name
    straight = job(compile=True).fit(epochs=2)
    resumed = job(compile='auto' if number==signal.SIGINT else True).fit(epochs=2, save=tmp_path, resume=True)
    assert resumed.mode=='compiled' and (number!=signal.SIGINT or 'bit for bit' in resumed._why['resume']) and same_weights(resumed.model, straight.model)


@pytest.mark.parametrize('mode', ['compiled','graph','compiled + graph'])
@pytest.mark.parametrize('accumulate', [1,2])
def test_two_cuts_and_a_resume_are_bit_exact(tmp_path, traced, replayed, mode, accumulate):
    kw = dict(accumulate=accumulate, clip=1., schedule='cosine')
    asked = dict(compile='compiled' in mode, graph='graph' in mode)
    data = lambda: Data.from_tensors(items(100), items(20), batch_size=8, drop_last=False)
    make = lambda *cut,**more: job(Tower(dropout=.5), data(), callbacks=[EMA(.9),*cut], **kw|more)
    straight = make(**asked).fit(epochs=3)
    assert straight.mode==mode
    for at in (4,11):
        with pytest.raises(Cut): make(CutAt(at), **asked).fit(epochs=3, save=Checkpoints(tmp_path, every=3), resume=True)
    resumed = make(**{k: 'auto' for k,v in asked.items() if v}|{k: v for k,v in asked.items() if not v}).fit(epochs=3, save=Checkpoints(tmp_path, every=3), resume=True)
    assert resumed.mode==mode and 'bit for bit' in resumed._why['resume']
    assert resumed.history.steps()==straight.history.steps() and resumed.history.table()==straight.history.table() and same_weights(resumed.model, straight.model)


def test_a_resume_in_another_mode_says_so(tmp_path, traced):
    job(compile=True).fit(steps=2, save=tmp_path)
    parts = Checkpoints(tmp_path).latest()[1]['training']['chosen']
    assert parts['compile']=='blocks' and parts['graph'] is False and parts['precision']=='fp32' and parts['threads']==1
    t = job(compile=False).fit(steps=4, save=tmp_path, resume=True)
    assert t.mode=='eager' and 'within tolerance (compile blocks then, False now)' in t._why['resume']
    t = job().fit(steps=4, save=tmp_path, resume=True)
    assert t.step==4
    t.fit(epochs=1) # the next fit chooses by itself again
    assert t.mode=='eager' and t.modes.why['compile'].startswith('not compiled: on a CPU')


def test_another_device_and_an_older_checkpoint_decide_nothing(tmp_path):
    t = job()
    t.setup()
    assert modes.take(t, {})==modes.take(t, dict(device='cuda', compile='blocks', graph=True, precision='bf16', threads=64))==[]
    assert t.modes.taken=={} and t.precision=='fp32' and torch.get_num_threads()==1
    t.device = torch.device('cuda')
    assert modes.take(t, dict(device='cuda', deterministic=False))==['two runs on a GPU differ in the last bits without deterministic=True']
    t.deterministic = True
    assert modes.take(t, dict(device='cuda', deterministic=True))==[]


def test_the_last_batch_is_short_by_its_place(traced):
    few = job(n=10, compile=True).fit(epochs=3) # ten items are one batch, and that is no short one
    assert few.modes.graphs in (1,2) and few.step==3
    def times(model, batch): return F.cross_entropy(model(batch[0].flatten(0,1)),batch[1].flatten())
    x,y = items(160)
    data = Data(torch.utils.data.DataLoader(list(zip(x,y)), batch_size=32, collate_fn=lambda o: tuple(torch.stack(v).unflatten(0,(-1,8)) for v in zip(*o)))) # the first size is 4, and a batch has 32
    t = Trainer(Tower(), data, step=times, compile=True).fit(epochs=2)
    assert t.mode=='compiled' and t.modes.graphs in (1,2) and t.step==10


def test_precision_layout_and_threads_are_taken_again(tmp_path, monkeypatch):
    pictures = lambda **kw: Trainer(nn.Sequential(nn.Conv2d(1,4,3), nn.Flatten(), nn.Linear(4*36,4)), [(torch.randn(4,1,8,8),torch.randint(0,4,(4,)))]*8, F.cross_entropy, **kw)
    for name in ('OMP_NUM_THREADS','MKL_NUM_THREADS'): monkeypatch.delenv(name, raising=False)
    pictures(precision='bf16', channels_last=True).fit(steps=2, save=tmp_path)
    t = pictures().fit(steps=4, save=tmp_path, resume=True)
    assert t.precision=='bf16' and t.layout and t.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert 'bit for bit' in t._why['resume'] and 'as in the checkpoint' in str(t.explain())
    t = pictures(precision='fp32', channels_last=False, deterministic=True).fit(steps=6, save=tmp_path, resume=True)
    assert all(o in t._why['resume'] for o in ('precision bf16 then, fp32 now','channels_last True then, False now','deterministic False then, True now'))


def _rank(file, compile):
    os.environ['MLSTACK_PROGRESS'],modes.backend,graphs.recorder = 'no','aot_eager',Again
    p = Gloo().start(file)
    t = job(data=Data.from_tensors(items(72), items(20), batch_size=8, drop_last=False), compile=compile, graph=compile, accumulate=2, parallel=p).fit(epochs=2)
    out = t.mode,t.modes.why['graph'],[w.detach().clone() for w in t.model.parameters()],t.history['val_loss']
    del t.module, t # as in test_trainer
    gc.collect()
    p.dist.destroy_process_group()
    return out


def test_two_processes_compile_the_same(tmp_path):
    (mode,why,mine,loss),other = workers.run(_rank, str(tmp_path/'compiled'), True, nprocs=2)
    (eager,_,plain,val),_ = workers.run(_rank, str(tmp_path/'eager'), False, nprocs=2)
    assert (mode,eager)==('compiled','eager') and why=='no graph: several processes train together'
    assert all(torch.equal(a,b) for a,b in zip(mine,other[2])) and all(torch.allclose(a,b,atol=1e-5) for a,b in zip(mine,plain))
    for a,b in zip(loss,val): assert abs(a-b)<1e-4


# Recorded steps

def fused(kind, **kw): return partial(kind, fused=True, **kw)


@pytest.mark.parametrize('kw', [dict(), dict(clip=.1, schedule='cosine'), dict(accumulate=2), dict(opt=fused(torch.optim.SGD, momentum=.9)), dict(schedule=partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=.5)),
    dict(callbacks=lambda: [Mixup(4)]), dict(callbacks=lambda: [EMA(.9)], metrics=dict(acc=lambda out,y: (out.argmax(-1)==y).float().mean())), dict(opt=[torch.optim.AdamW,('*.bias',dict(lr_scale=.5,weight_decay=0.))])], ids=lambda kw: '-'.join(kw) or 'plain')
def test_a_recorded_fit_is_the_eager_one_bit_for_bit(replayed, kw):
    def fit(graph):
        log = Log()
        return job(Tower(dropout=.3), Data.from_tensors(items(72), batch_size=16, drop_last=False), graph=graph, run=log, **kw|dict(callbacks=kw['callbacks']() if 'callbacks' in kw else [])).fit(epochs=4),log
    (t,mine),(eager,log) = fit(True),fit(False)
    assert t.mode=='graph' and t.step==eager.step
    whole = [8,8,12][0 if kw.get('accumulate') else 2] # groups with a short or a missing batch are eager: 5 batches make 2 whole groups and one of the short batch
    assert sum(r.replays for r in replayed.made)==(whole if kw.get('accumulate') else 16)-1 # all but the first
    if isinstance(kw.get('schedule'), str): assert close(t.model, eager.model, atol=1e-6) # a rate on the device is a float32
    else: assert same_weights(t.model, eager.model) and [(s,m) for s,m in mine.seen]==[(s,m) for s,m in log.seen]
    assert t.history.names()==eager.history.names()


class Keep(Callback):
    def __init__(self): self.seen = []
    def after_step(self, t): self.seen.append(t.values['loss'])


def test_values_that_somebody_keeps_stay_what_they_were(replayed):
    kept,plain = Keep(),Keep()
    a,b = job(graph=True, callbacks=[kept]).fit(epochs=40),job(graph=False, callbacks=[plain]).fit(epochs=40)
    assert len(kept.seen)==160 and [v.item() for v in kept.seen]==[v.item() for v in plain.seen] and a.history.steps()==b.history.steps()
    assert job(graph=True).fit(epochs=40).history.steps()==b.history.steps() # also from the ring alone, which is shorter


class Tinker(Callback):
    "Changes the optimizer in the middle of a fit, as people do."
    def before_step(self, t):
        if t.step in (5,6): t.optimizer.param_groups[0]['lr'] = 2**-6
        if t.step==9: t.optimizer.param_groups[0]['weight_decay'] = .5
        if t.step==13: t.model.head.weight.requires_grad_(False)


def test_what_a_callback_changes_counts(replayed):
    kw = dict(data=Data.from_tensors(items(), batch_size=16), callbacks=[Tinker()])
    t,eager = [job(graph=g, **kw).fit(epochs=3) for g in (True,False)]
    assert t.mode=='graph' and same_weights(t.model, eager.model) and len(replayed.made)==2
    def freeze_between(graph):
        t = job(graph=graph).fit(epochs=2)
        t.model.head.weight.requires_grad_(False)
        return t.fit(epochs=2)
    assert same_weights(freeze_between(True).model, freeze_between(False).model)


def test_a_rollback_records_anew(tmp_path, replayed):
    class Spoil(Callback):
        done = False
        def after_step(self, t):
            if t.step==22 and not self.done:
                self.done = True
                with torch.no_grad(): t.model.head.weight.mul_(1e4)
    def fit(graph):
        t = job(graph=graph, callbacks=[Spoil(),Rollback()])
        return t.fit(epochs=10, save=Checkpoints(tmp_path/str(graph), every=4))
    t,eager = fit(True),fit(False)
    assert t.callbacks[1].events==eager.callbacks[1].events!=[] and t.mode=='graph' and len(replayed.made)==2 and same_weights(t.model, eager.model)


def test_lr_find_and_validation_between_fits_do_no_harm(replayed):
    def fit(graph):
        t = job(data=Data.from_tensors(items(), items(20), batch_size=16), graph=graph).fit(epochs=2)
        t.lr_find(steps=5)
        return t.fit(epochs=2)
    assert same_weights(fit(True).model, fit(False).model)


class Hooked(Tower):
    def __init__(self):
        super().__init__()
        self.head.register_forward_hook(lambda m,a,o: None)


class Look(Callback):
    def before_update(self, t): pass


class Draws(Tower):
    def forward(self, x): return super().forward(x)*(1. if random.random()<.5 else .5)


class Counts(Tower):
    n = 0
    def forward(self, x): self.n += 1; return super().forward(x)*self.n


cyclic = partial(torch.optim.lr_scheduler.CyclicLR, base_lr=1e-3, max_lr=1e-2)


def on_host(model, batch): return dict(loss=F.cross_entropy(model(batch[0]),batch[1]), number=3.)


@pytest.mark.parametrize('kw,why', [
    (dict(callbacks=[Look()]), 'Look.before_update runs on the host'), (dict(model=Hooked()), 'head has a hook'), (dict(metrics=dict(n=Counted())), 'n keeps its state on the host'),
    (dict(opt='muon'), 'Joined reads numbers on the host'), (dict(opt=torch.optim.SGD(Tower().parameters(),lr=.1)), 'no parameter of this model'), (dict(opt=partial(torch.optim.SGD,foreach=True)), 'SGD reads numbers'),
    (dict(opt=fused(torch.optim.SGD,momentum=.9), schedule=cyclic), 'CyclicLR changes the momentum'), (dict(model=Draws()), 'draws random numbers on the host'), (dict(step=on_host), 'number is made on the host'),
], ids=lambda o: o if isinstance(o,str) else '')
def test_who_says_no(replayed, kw, why):
    if why=='no parameter of this model':
        model = Tower()
        kw,why = dict(model=model, opt=torch.optim.AdamW(model.parameters(),lr=2**-8)),'the optimizer was given ready made'
    kw = dict(model=Tower())|kw
    if 'step' in kw: t = Trainer(kw['model'], Data.from_tensors(items(), batch_size=16), step=kw['step'], graph=True)
    else: t = job(graph=True, **kw)
    with pytest.warns(UserWarning, match=f'no graph: .*{why}'): t.fit(epochs=3)
    assert t.mode=='eager' and t.step==12 and why in str(t.explain())
    quietly = job(**kw|dict(graph='auto')) if 'step' not in kw else None
    if quietly:
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            assert quietly.fit(epochs=2).mode=='eager'


def test_auto_leaves_a_step_of_the_users_and_a_large_model_alone(replayed, monkeypatch):
    t = Trainer(Tower(), Data.from_tensors(items(), batch_size=16), step=lambda model,batch: F.cross_entropy(model(batch[0]),batch[1])).fit(epochs=2)
    assert t.mode=='eager' and 'graph=True records it' in str(t.explain())
    monkeypatch.setattr(graphs, '_small', 100)
    t = job().fit(epochs=2)
    assert t.mode=='eager' and 'keep the device busy' in str(t.explain()) and job(graph=True).fit(epochs=2).mode=='graph'


def wrong(name):
    "Recorders that fail in one way each."
    class Fails(Again):
        made = []
        def capture(self, fn):
            if name=='capture': raise RuntimeError('operation not permitted when stream is capturing\nmore')
            super().capture(fn)
        def replay(self):
            if name=='replay' and self.replays==1: raise RuntimeError('replay went wrong')
            if name=='nothing': return
            if name=='twice': self.fn()
            super().replay()
            if name=='stale' and self.replays==1: # as if the inputs had been baked in
                stay,body = [x.clone() for x in self.inputs],self.fn
                def again():
                    for x,was in zip(self.inputs,stay): x.copy_(was)
                    body()
                self.fn = again
    return Fails


@pytest.mark.parametrize('name,why', [('capture','recording failed .RuntimeError: operation not permitted when stream is capturing'), ('replay','replay went wrong'), ('nothing','a replay gave'), ('twice','a replay gave'), ('stale','a replay gave'), ('memory','no room')])
def test_a_graph_that_does_not_work_costs_no_update(monkeypatch, name, why):
    eager = job(Tower(dropout=.3), graph=False).fit(epochs=3)
    kind = wrong(name)
    monkeypatch.setattr(graphs, 'recorder', kind)
    if name=='stale':
        init = graphs.Recorded.__init__
        def spy(self, *a):
            init(self, *a)
            self.graph.inputs = self.inputs
        monkeypatch.setattr(graphs.Recorded, '__init__', spy)
    if name=='memory':
        def full(t): raise torch.OutOfMemoryError('out of memory')
        monkeypatch.setattr(graphs, 'State', full)
    with pytest.warns(UserWarning, match=why): t = job(Tower(dropout=.3), graph=True).fit(epochs=3)
    assert t.mode=='eager' and same_weights(t.model, eager.model) and t.history.steps()==eager.history.steps()


def test_memory_that_runs_out_while_compiling_leaves_it_compiled(monkeypatch):
    "The host says so with a RuntimeError, which is none of the compiler's."
    monkeypatch.setattr(modes, 'backend', 'aot_eager')
    class Look(Callback):
        def before_fit(self, t): self.on = []
        def after_step(self, t): self.on.append(t.modes.compiled.on)
    def loss(out, y):
        if out.requires_grad and len(out)>8: raise RuntimeError("can't allocate memory")
        return F.cross_entropy(out, y)
    look = Look()
    with pytest.warns(UserWarning, match='memory ran out at step 1'): t = Trainer(Tower(), Data.from_tensors(items(64), batch_size=16), loss, compile=True, callbacks=[look]).fit(steps=3)
    assert t.mode=='compiled' and t.micro==8 and look.on==[True]*3


def test_a_count_in_python_is_caught(replayed):
    with pytest.warns(UserWarning, match='a replay gave'): t = job(Counts(), graph=True).fit(epochs=3)
    assert t.mode=='eager' and t.step==12


def test_shapes_have_graphs_of_their_own_up_to_a_bound(replayed):
    sizes = [16,24,32,40,48,56]*4
    t,eager = [job(data=Data(Lengths(sizes)), graph=g).fit(epochs=1) for g in (True,False)]
    assert t.mode=='graph' and len(replayed.made)==4 and same_weights(t.model, eager.model)


def test_rates_and_counts_go_back_where_there_is_no_graph(tmp_path, replayed):
    t = job(graph=True).fit(epochs=1, save=tmp_path)
    g = t.optimizer.param_groups[0]
    assert isinstance(g['lr'], torch.Tensor) and g['capturable'] and g['initial_lr']==2**-8
    t = job(graph=False, opt=partial(torch.optim.AdamW, fused=False)).fit(epochs=2, save=tmp_path, resume=True)
    g = t.optimizer.param_groups[0]
    assert g['lr']==2**-8 and not isinstance(g['lr'], torch.Tensor) and not g['capturable'] and t.step==8


# Formats

def emulated(x, w, g):
    "A linear layer and its gradients, of numbers rounded to 8 bits and multiplied exactly."
    def rounded(v, kind):
        q,f = formats.quantized(v, kind)
        return q.float()*f
    x,w,g = rounded(x,formats.e4m3),rounded(w,formats.e4m3),rounded(g,formats.e5m2)
    return x@w.t(),g@w,g.t()@x


@pytest.mark.parametrize('scale', [1e-6,1.,1e4])
def test_products_in_8_bits_are_what_the_scaling_says(scale):
    torch.manual_seed(0)
    x,w,g = torch.randn(32,48)*scale,torch.randn(64,48)/scale,torch.randn(32,64)*scale
    x.requires_grad_(); w.requires_grad_()
    out = formats._Float8.apply(x, w)
    out.backward(g.bfloat16())
    with torch.no_grad(): want = emulated(x, w, g.bfloat16())
    for got,exact in zip((out,x.grad,w.grad), want): assert torch.allclose(got.float(), exact, rtol=1e-2, atol=1e-2*exact.abs().max().item())
    assert x.grad.dtype==w.grad.dtype==torch.float32 and out.dtype==torch.bfloat16


def test_nothing_that_is_no_number_is_hidden_by_8_bits():
    x = torch.zeros(16,16)
    assert formats.quantized(x, formats.e4m3)[0].float().abs().sum()==0
    x[3,3] = float('inf')
    assert not torch.isfinite(formats._Float8.apply(x, torch.eye(16)).float()).all()


def wide(): return nn.Sequential(nn.Linear(8,16), *(nn.Sequential(nn.Linear(16,64),nn.ReLU(),nn.Linear(64,16)) for _ in range(2)), nn.Linear(16,20), nn.Linear(20,4))


def test_which_layers_compute_in_8_bits():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed,self.mid,self.head,self.after = nn.Embedding(32,16),nn.Linear(16,16),nn.Linear(16,32,bias=False),nn.Linear(16,16)
            self.head.weight = self.embed.weight
    model = Tied()
    assert formats.float8_layers(model)==[model.mid] # the last one is taken for the head
    model = wide()
    keys,params = list(model.state_dict()),list(model.parameters())
    assert formats.to_float8(model).startswith('4 of 7 linear layers in 8 bits')
    assert list(model.state_dict())==keys and all(a is b for a,b in zip(model.parameters(),params)) and formats.to_float8(model).startswith('4 of')
    with pytest.raises(StepError, match='no linear layer'): formats.to_float8(nn.Linear(16,16))


def test_fp8_on_a_machine_without_it_is_an_error():
    with pytest.raises(ValueError, match='a CPU has no fp8'): job(precision='fp8').fit(epochs=1)


@pytest.mark.parametrize('compile', [False,'blocks'])
def test_a_fit_in_8_bits_learns_as_one_in_bf16(monkeypatch, traced, compile):
    monkeypatch.setattr(formats, 'choose_precision', lambda device,want: (want,'asked for'))
    def fit(precision):
        torch.manual_seed(0)
        return job(wide(), Data.from_tensors(items(), items(20), batch_size=16), precision=precision, compile=compile).fit(epochs=10)
    eight,sixteen = fit('fp8'),fit('bf16')
    assert 'linear layers in 8 bits' in str(eight.explain()) and eight.mode==('compiled' if compile else 'eager')
    assert sixteen.history['loss'][-1]<sixteen.history['loss'][0]-.05
    for a,b in zip(eight.history['loss'], sixteen.history['loss']): assert abs(a-b)<.05
    assert eight.history['loss']!=sixteen.history['loss']


def test_rows_that_do_not_fill_a_block_and_evaluation_are_not_in_8_bits():
    plain,layer = nn.Linear(16,32),formats.Float8Linear(16,32)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(24,16)
    assert torch.equal(layer(x), plain(x)) and not torch.equal(layer(x[:16]).float(), plain(x[:16])) and torch.equal(layer.eval()(x[:16]), plain(x[:16]))
    assert layer.train()(torch.randn(2,8,16)).shape==(2,8,32) and layer(torch.randn(0,16)).shape==(0,32)


def test_determinism_is_for_the_fit_and_ends_with_it(monkeypatch):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    class Seen(Callback):
        on = None
        def after_step(self, t): self.on = torch.are_deterministic_algorithms_enabled(),torch.backends.cudnn.deterministic,torch.backends.cudnn.benchmark
    seen = Seen()
    before = torch.backends.cudnn.deterministic,torch.backends.cudnn.benchmark
    t = job(deterministic=True, callbacks=[seen,CutAt(3)])
    with pytest.raises(Cut): t.fit(epochs=1)
    assert seen.on==(True,True,False) and not torch.are_deterministic_algorithms_enabled() and (torch.backends.cudnn.deterministic,torch.backends.cudnn.benchmark)==before
    assert os.environ['CUBLAS_WORKSPACE_CONFIG']==':4096:8' and 'deterministic: the same bits' in str(t.explain())
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')


def test_layouts():
    class On:
        def __init__(self, device, precision, *layers): self.device,self.precision,self.model = torch.device(device),precision,nn.Sequential(*layers)
    two,one = nn.Conv2d(1,1,1),nn.Conv1d(1,1,1)
    said = [formats.choose_layout(On(*a), 'auto')[0] for a in (('cuda','bf16',two),('cuda','fp16',two),('cuda','fp32',two),('cpu','fp32',two),('cuda','bf16',two,one),('cuda','bf16',one))]
    assert said==[True,True,False,False,False,False]
    assert formats.choose_layout(On('cpu','fp32',two), True)==(True,'channels last, as asked') and formats.choose_layout(On('cuda','bf16',one), 'auto')[1]==''


def test_threads_are_lowered_to_the_quota_where_nobody_said():
    code = ('import torch, os; from torch import nn; from mlstack.trainer import Trainer; from mlstack.hardware import cpus; n = torch.get_num_threads();'
        't = Trainer(nn.Linear(2,2), [], nn.functional.mse_loss); t.setup(); print(n, cpus(), torch.get_num_threads(), t._why["threads"], sep="|")')
    env = {k: v for k,v in house.environment().items() if k not in ('OMP_NUM_THREADS','MKL_NUM_THREADS')}
    before,allowed,now,why = subprocess.run([sys.executable,'-c',code], env=env, capture_output=True, text=True, check=True).stdout.strip().split('|')
    assert int(now)==min(int(before),int(allowed)) and now in why
    assert job(threads=1).explain() and torch.get_num_threads()==1


# The real compiler

@pytest.mark.server('g++')
def test_the_real_compiler(tmp_path, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path/'cache'))
    make = lambda *cut,**kw: job(Tower(6), Data.from_tensors(items(), items(20), batch_size=16), callbacks=cut, **kw)
    straight,eager = make(compile=True).fit(epochs=3),make().fit(epochs=3)
    assert straight.mode=='compiled', straight.explain()
    assert straight.modes.graphs in (1,2) and close(straight.model, eager.model, atol=1e-4)
    for a,b in zip(straight.history['val_loss'], eager.history['val_loss']): assert abs(a-b)<1e-3
    with pytest.raises(Cut): make(CutAt(6), compile=True).fit(epochs=3, save=Checkpoints(tmp_path/'saved', every=5))
    resumed = make().fit(epochs=3, save=Checkpoints(tmp_path/'saved', every=5), resume=True)
    assert resumed.mode=='compiled', resumed.explain()
    assert 'bit for bit' in resumed._why['resume']
    assert resumed.history.steps()==straight.history.steps() and same_weights(resumed.model, straight.model)
    assert shutil.which('g++')


# On a card: written with care and not yet run on one

@pytest.mark.gpu
def test_a_real_graph_is_the_eager_fit():
    t,eager = [job(Tower(dropout=.3), Data.from_tensors(items(72), batch_size=16, drop_last=False), graph=g, compile=False, precision='fp32', clip=1., schedule='cosine').fit(epochs=6) for g in ('auto',False)]
    assert t.mode=='graph', t.explain()
    assert close(t.model, eager.model, atol=1e-3)
    for a,b in zip(t.history.steps()[1], eager.history.steps()[1]): assert abs(a-b)<1e-2


@pytest.mark.gpu
def test_a_real_compiled_step_and_one_recorded_on_top():
    fits = [job(Tower(6,64), graph=g, compile=c, precision='fp32').fit(epochs=6) for c,g in ((False,False),(True,False),(True,True))]
    assert [t.mode for t in fits]==['eager','compiled','compiled + graph'], [t.explain() for t in fits]
    for t in fits[1:]: assert close(t.model, fits[0].model, atol=1e-2)


@pytest.mark.gpu
def test_real_products_in_8_bits():
    from mlstack.hardware import generation
    if 'fp8' not in generation(torch.cuda.get_device_capability()).formats: pytest.skip('probe: this card has no fp8')
    eight,sixteen = [job(wide(), precision=p, compile=False, graph=False).fit(epochs=10) for p in ('fp8','bf16')]
    for a,b in zip(eight.history['loss'], sixteen.history['loss']): assert abs(a-b)<.05


@pytest.mark.parametrize('kind', ['tensors','loader','series'])
def test_a_layout_is_tried_before_anybody_holds_a_weight(monkeypatch, kind):
    choose = formats.choose_layout
    monkeypatch.setattr(formats, 'choose_layout', lambda t,want: (True,'as on a GPU') if want=='auto' else choose(t,want))
    x,y = torch.randn(64,3,8,8,generator=torch.Generator().manual_seed(0)),torch.arange(64)%4
    class Views(nn.Module):
        def __init__(self): super().__init__(); self.conv,self.out = nn.Conv2d(3,8,3),nn.Linear(8*36,4)
        def forward(self, x): h = self.conv(x); return self.out(h.view(len(h),-1))
    def run(model, **kw):
        torch.manual_seed(0)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x,y), batch_size=16)
        data = dict(tensors=lambda: Data.from_tensors((x,y), (x,y), batch_size=16, augment=lambda b: (b[0]+torch.rand(()), b[1])), loader=lambda: Data(loader, loader), series=lambda: Data(list(loader), list(loader)))[kind]()
        return Trainer(model(), data, F.cross_entropy, callbacks=[EMA(.5)], seed=0, **kw).fit(epochs=2)
    flat = lambda: nn.Sequential(nn.Conv2d(3,8,3), nn.BatchNorm2d(8), nn.Dropout(.1), nn.Flatten(), nn.Linear(8*36,4))
    chosen,asked,plain = run(flat),run(flat, channels_last=kind!='series'),run(Views)
    assert chosen.layout==(kind!='series') and not plain.layout
    assert chosen.history.steps()==asked.history.steps() and chosen.history['val_loss']==asked.history['val_loss']
    assert plain._why['layout'].startswith('channels first: ' + ('what the batches are like' if kind=='series' else 'it calls .view()'))
