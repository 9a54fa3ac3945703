"Metrics that keep a state: exact over an epoch, over ranks, and through a kill; with objects of three methods, and with torchmetrics where it is installed."
import gc
import importlib.util
import os
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlstack import workers
from mlstack.trainer import Checkpoints, Data, Trainer, TrainerError
from tests.test_trainer import Cut, CutAt, Gloo, OwnLoss, quiet, same_weights, samples, tiny  # noqa: F401

def missing(): return None if importlib.util.find_spec('torchmetrics') else 'torchmetrics is not installed'
torchmetrics = pytest.mark.probe.with_args(missing)


class Macro:
    "Recall averaged over the classes: nothing that a mean of batch means could give."
    def __init__(self): self.reset()
    def reset(self): self.right,self.all = torch.zeros(10),torch.zeros(10)
    def update(self, out, y):
        self.right += torch.bincount(y[out.argmax(1)==y], minlength=10)
        self.all += torch.bincount(y, minlength=10)
    def compute(self): return (self.right/self.all.clamp(min=1)).mean()
    def merge_state(self, others):
        for o in others: self.right,self.all = self.right+o.right,self.all+o.all


class Largest:
    "A state that is a maximum, kept as a plain number, and a list of all that was seen."
    def __init__(self): self.reset()
    def reset(self): self.top,self.seen = -1e9,[]
    def update(self, out, y): self.top = max(self.top, out.max().item()); self.seen.append(out.sum(1))
    def compute(self): return dict(top=self.top, median=torch.cat(self.seen).median())
    def merge_state(self, others):
        for o in others: self.top,self.seen = max(self.top,o.top),self.seen+o.seen


def whole(model, x, y):
    with torch.no_grad(): out = model.eval()(x)
    metrics = dict(macro=Macro(), largest=Largest())
    for m in metrics.values(): m.update(out, y)
    return {'macro': metrics['macro'].compute().item()} | {f'largest_{k}': float(v) for k,v in metrics['largest'].compute().items()}


def close(a, b): return all(a[k]==pytest.approx(v, rel=1e-5) for k,v in b.items())


def test_validation_is_that_of_all_items_at_once():
    x,y = samples(101,1)
    t = Trainer(tiny(), Data.from_tensors(samples(100),(x,y),batch_size=8), F.cross_entropy, metrics=dict(macro=Macro(), largest=Largest(), acc=lambda out,y: (out.argmax(1)==y).float().mean()))
    t.fit(epochs=2)
    assert close(t.history.rows[-1], {f'val_{k}': v for k,v in whole(t.model,x,y).items()}) and 'val_acc' in t.history.rows[-1]
    assert set(t.history.series)=={'loss'} # nothing of them in the steps


def test_training_measures_the_epoch_where_there_is_no_validation():
    x,y = samples(96)
    t = Trainer(tiny(), Data.from_tensors((x,y),batch_size=8), F.cross_entropy, lr=0., metrics=[Macro()])
    t.fit(epochs=2)
    assert t.history['Macro'] == pytest.approx([whole(t.model,x,y)['macro']]*2)


@pytest.mark.parametrize('accumulate', [1,3])
def test_a_resume_within_an_epoch_goes_on_measuring_it(tmp_path, accumulate):
    def job(**kw): return Trainer(tiny(.5), Data.from_tensors(samples(100),batch_size=8), F.cross_entropy, metrics=dict(macro=Macro(),largest=Largest()), accumulate=accumulate, **kw)
    straight = job().fit(epochs=2)
    for cut in (straight.step//2+1, straight.step//2+3):
        with pytest.raises(Cut): job(callbacks=[CutAt(cut)]).fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    resumed = job().fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    assert resumed.history.table()==straight.history.table() and same_weights(resumed.model, straight.model)


def test_validating_in_between_leaves_the_epochs_metrics_alone():
    x,y = samples(96)
    class Look(CutAt):
        def after_step(self, t): t.validate([samples(8,3)])
    t = Trainer(tiny(), Data.from_tensors((x,y),batch_size=8), F.cross_entropy, lr=0., metrics=[Macro()], callbacks=[Look(0)]).fit(epochs=1)
    assert t.history['Macro'] == pytest.approx([whole(t.model,x,y)['macro']])


def test_metrics_of_a_model_that_returns_its_loss():
    x,y = samples(100)
    data = Data.from_tensors(dict(x=x,labels=y), dict(x=x[:30],labels=y[:30]), batch_size=8)
    t = Trainer(OwnLoss(), data, metrics=dict(macro=Macro(), acc=lambda out,y: (out.argmax(1)==y).float().mean())).fit(epochs=1)
    assert t.history['val_macro'][0]==pytest.approx(whole(t.model.net,x[:30],y[:30])['macro']) and 0<=t.history['val_acc'][0]<=1


def test_what_is_no_number_is_said_and_can_be_read():
    class Confusion(Macro):
        def compute(self): return torch.stack([self.right,self.all])
    t = Trainer(tiny(), Data.from_tensors(samples(100),samples(30,1),batch_size=8), F.cross_entropy, metrics=dict(table=Confusion()))
    with pytest.warns(UserWarning, match=r'table is float32\[2, 10\]: not a number, so not in the history'): t.fit(epochs=1)
    assert t.metrics['table'].compute()[1].sum()==30 and 'val_table' not in t.history.rows[0]


@pytest.mark.parametrize('bad,says', [(dict(m=Macro),'class.*Macro\\(\\)'), (dict(m=3),'int'), (3,'int')])
def test_what_is_no_metric_is_named(bad, says):
    with pytest.raises(TrainerError, match='(?s)'+says): Trainer(tiny(), [samples(8)], F.cross_entropy, metrics=bad)


def _rank(file, kind, validate, items):
    os.environ['MLSTACK_PROGRESS'] = 'no'
    p = Gloo().start(file)
    metrics = dict(macro=Macro(), largest=Largest())
    if kind=='torchmetrics':
        import torchmetrics.classification as tm
        metrics = dict(f1=tm.MulticlassF1Score(10, average='macro'), auc=tm.MulticlassAUROC(10))
    elif kind=='no merge':
        class Plain(Macro): merge_state = property()
        metrics = dict(macro=Plain())
    train,valid = samples(96),samples(items,1)
    try: t = Trainer(tiny(), Data.from_tensors(train, valid if validate else None, batch_size=8), F.cross_entropy, lr=0., metrics=metrics, parallel=p).fit(epochs=2)
    except TrainerError as e: out = str(e)
    else:
        out = {k: v for k,v in t.history.rows[-1].items() if k!='seconds'}
        del t.module, t
    gc.collect()
    p.dist.destroy_process_group()
    return out


@pytest.mark.parametrize('validate,items', [(True,33),(True,1),(False,33)])
def test_ranks_measure_as_one_process(tmp_path, validate, items):
    a,b = workers.run(_rank, tmp_path/'r', 'own', validate, items, nprocs=2, timeout=300)
    x,y = samples(items,1) if validate else samples(96)
    assert a==b and close(a, {('val_' if validate else '')+k: v for k,v in whole(tiny(),x,y).items()})


def test_ranks_refuse_what_cannot_be_put_together(tmp_path):
    a,b = workers.run(_rank, tmp_path/'r', 'no merge', True, 33, nprocs=2, timeout=300)
    assert a==b and 'Give it merge_state(others)' in a


# torchmetrics itself

def tm_whole(x, y):
    import torchmetrics.classification as tm
    with torch.no_grad(): out = tiny().eval()(x)
    return dict(f1=tm.MulticlassF1Score(10, average='macro')(out,y).item(), auc=tm.MulticlassAUROC(10)(out,y).item())


@torchmetrics
@pytest.mark.parametrize('validate,items', [(True,33),(True,1),(False,33)])
def test_torchmetrics_over_ranks(tmp_path, validate, items):
    a,b = workers.run(_rank, tmp_path/'r', 'torchmetrics', validate, items, nprocs=2, timeout=300)
    x,y = samples(items,1) if validate else samples(96)
    assert a==b and close(a, {('val_' if validate else '')+k: v for k,v in tm_whole(x,y).items()})


@torchmetrics
def test_torchmetrics_through_a_kill(tmp_path):
    import torchmetrics as tmm
    import torchmetrics.classification as tm
    def job(**kw):
        metrics = dict(few=tmm.MetricCollection([tm.MulticlassF1Score(10), tm.MulticlassPrecision(10)]), auc=tm.MulticlassAUROC(10), mean=tmm.MinMaxMetric(tm.MulticlassAccuracy(10)))
        return Trainer(nn.Sequential(tiny(.5), nn.Softmax(1)), Data.from_tensors(samples(100),batch_size=8), F.cross_entropy, metrics=metrics, **kw)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        straight = job().fit(epochs=2)
        for cut in (14,17):
            with pytest.raises(Cut): job(callbacks=[CutAt(cut)]).fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
        resumed = job().fit(epochs=2, save=Checkpoints(tmp_path, every=1), resume=True)
    assert resumed.history.table()==straight.history.table() and {'few_MulticlassF1Score','few_MulticlassPrecision','auc','mean_raw'}<=set(straight.history.rows[0])


@torchmetrics
def test_torchmetrics_collection_and_confusion():
    import torchmetrics as tmm
    import torchmetrics.classification as tm
    x,y = samples(45,1)
    t = Trainer(tiny(), Data.from_tensors(samples(100),(x,y),batch_size=8), F.cross_entropy, lr=0., metrics=tmm.MetricCollection([tm.MulticlassF1Score(10), tm.MulticlassConfusionMatrix(10)]))
    with pytest.warns(UserWarning, match=r'MulticlassConfusionMatrix is int64\[10, 10\]'): t.fit(epochs=2)
    assert t.history['val_MulticlassF1Score'][-1]==pytest.approx(tm_whole(x,y)['f1']) and t.metrics['MulticlassConfusionMatrix'].compute().sum()==45
    assert np.isfinite(t.history['val_loss']).all()
