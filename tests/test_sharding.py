"FSDP: equal to one process, checkpoints whole and in parts, any number of ranks, kills, bad input."
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from mlstack import workers
from mlstack.core import MlstackError, context
from mlstack.ddp import launch
from mlstack.trainer import EMA, Callback, Checkpoints, Data, Trainer, layer_decay


class Block(nn.Module):
    def __init__(self, width, drop=0.):
        super().__init__()
        self.norm,self.up,self.down,self.drop = nn.LayerNorm(width),nn.Linear(width,2*width),nn.Linear(2*width,width),nn.Dropout(drop)
    def forward(self, x): return x + self.drop(self.down(torch.tanh(self.up(self.norm(x)))))


class Words(nn.Module):
    def __init__(self, drop=0., words=11, width=8, layers=3, tied=True):
        super().__init__()
        self.words,self.blocks,self.head = nn.Embedding(words,width),nn.ModuleList([Block(width,drop) for _ in range(layers)]),nn.Linear(width,words,bias=False)
        if tied: self.head.weight = self.words.weight
    def forward(self, x):
        x = self.words(x)
        for b in self.blocks: x = b(x)
        return self.head(x)


def data(batch_size, n=96, valid=37):
    x = torch.randint(0, 11, (n+valid,5), generator=torch.Generator().manual_seed(0))
    return Data.from_tensors((x[:n], (x[:n]*3+1)%11), (x[n:], (x[n:]*3+1)%11), batch_size=batch_size)


def loss(out, y): return nn.functional.cross_entropy(out.flatten(0,1), y.flatten())


def seeded(**kw):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    return Words(**kw)


def weights(t):
    "All parameters as plain tensors, on every process."
    return torch.cat([t.parallel.whole(p.detach()).flatten() for p in t.model.parameters()])


def fsdp(**kw):
    from mlstack.ddp.sharding import FSDP
    return FSDP(**kw)


cases = dict(plain={}, accumulate=dict(accumulate=2), clip=dict(clip=.3), value=dict(clip=dict(value=.01)), schedule=dict(schedule='cosine'),
    frozen=dict(opt='frozen'), layers=dict(opt='layers'), bf16=dict(precision='bf16'), muon=dict(opt='muon'),
    sgd=dict(opt=lambda p, lr: torch.optim.SGD(p, lr, momentum=.9)), adamw=dict(opt=torch.optim.AdamW, ema=True))


def train(batch_size, parallel=None, ema=False, opt=None, epochs=2, **kw):
    model = seeded()
    if opt=='frozen': opt = [torch.optim.AdamW, ('words.*', None)]
    if opt=='layers': opt = [torch.optim.AdamW, *layer_decay(model, .5)]
    t = Trainer(model, data(batch_size), loss, lr=.01, opt=opt or torch.optim.AdamW, parallel=parallel, callbacks=[EMA(.9)] if ema else [], **kw)
    t.fit(epochs=epochs)
    out = t.predict(t.data.valid.tensors[0] if hasattr(t.data.valid,'tensors') else torch.arange(10).view(2,5))
    row = t.history.rows[-1]
    return dict(w=weights(t), val=t.validate()['val_loss'], steps=t.step, norm=row.get('grad_norm'), out=out, said=str(t.explain()), train=row['loss'])


def all_cases(names, n, **how): return {k: train(24//n, parallel=fsdp(**how), **cases[k]) for k in names}


@pytest.fixture(scope='module')
def alone(): return {k: train(24, **kw) for k,kw in cases.items()}


@pytest.mark.parametrize('n', [2,3])
def test_ranks_are_one_process_of_the_same_global_batch(n, alone):
    results = launch(all_cases, list(cases), n, nprocs=n, timeout=300)
    for k in cases:
        one,many = alone[k],[r[k] for r in results]
        for m in many:
            tolerance = dict(bf16=3e-2, muon=5e-3).get(k, 1e-5) # Muon orthogonalises in bf16
            torch.testing.assert_close(m['w'], one['w'], rtol=0, atol=tolerance, msg=lambda s: f'{k}: {s}')
            assert m['val']==many[0]['val'] and abs(m['val']-one['val'])<max(tolerance,1e-6), k
            assert m['steps']==one['steps'] and abs(m['train']-one['train'])<max(tolerance,1e-5)
            if one['norm'] is not None: assert abs(m['norm']-one['norm'])<1e-5
            torch.testing.assert_close(m['out'], one['out'], rtol=0, atol=10*tolerance)


# --- checkpoints

class Stop(Exception): pass


class Kill(Callback):
    "Ends this rank when a checkpoint's files are being written."
    def __init__(self, at): self.at = at
    def after_step(self, t):
        if t.step!=self.at or context().attempt: return
        import mlstack.trainer.checkpoints as c
        if t.parallel.number==1: c.readable = lambda *a: os.kill(os.getpid(), signal.SIGKILL)


def go(folder, n, epochs, save=None, resume=None, parallel=None, drop=.2, ema=True, callbacks=(), compare=None, **kw):
    t = Trainer(seeded(drop=drop), data(24//n), loss, lr=.01, schedule='cosine', parallel=parallel, callbacks=[EMA(.9)]*ema + list(callbacks), **kw)
    t.fit(epochs=epochs, save=save, resume=resume)
    val = t.validate()['val_loss']
    if save is None and folder: t.save(folder)
    mean = [t.parallel.whole(m) for m in t.callbacks[0].mean] if ema else []
    state = [t.parallel.whole(v) if isinstance(v, torch.Tensor) else v for s in t.optimizer.state.values() for v in s.values()]
    return dict(w=weights(t), val=val, step=t.step, mean=torch.cat([m.flatten() for m in mean]) if ema else None, state=torch.cat([torch.as_tensor(s).float().flatten() for s in state]), why=t._why.get('resume',''), said=str(t.explain()))


def take(paths, n, **how):
    "What a trainer has after it has loaded each of these checkpoints, and after two more epochs."
    out = []
    for path in paths:
        kind = how.get('kind')
        parallel = fsdp(**{k: v for k,v in how.items() if k!='kind'}) if kind=='fsdp' else kind
        t = Trainer(seeded(), data(24//n), loss, lr=.01, schedule='cosine', parallel=parallel, callbacks=[EMA(.9)])
        t.load(path)
        loaded = torch.cat([t.parallel.whole(torch.as_tensor(v)).float().flatten() for s in t.optimizer.state_dict()['state'].values() for v in s.values()])
        mean = torch.cat([t.parallel.whole(torch.as_tensor(m)).flatten() for m in t.callbacks[0].mean])
        w,val = weights(t),t.validate()['val_loss']
        t.fit(epochs=1)
        out.append(dict(w=w, val=val, state=loaded, mean=mean, more=weights(t)))
    return out


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "Checkpoints of the same training without dropout: whole and in parts, of 1 to 4 processes."
    folder = tmp_path_factory.mktemp('saved')
    def make(n, folder):
        out = {}
        for kind in 'full','sharded': out[kind] = go(f'{folder}/{kind}-{n}', n, 1, parallel=fsdp(checkpoint=kind), drop=0.)
        return out
    results = {n: launch(make, n, folder, nprocs=n, timeout=200)[0] for n in (2,3)}
    return folder, results, go(f'{folder}/single', 1, 1, drop=0.)


def test_whole_and_sharded_checkpoints_load_on_any_number_of_processes(saved):
    folder,results,single = saved
    paths = [folder/f'{kind}-{n}' for kind in ('full','sharded') for n in results] + [folder/'single']
    assert sorted(p.name for p in (folder/'sharded-3').iterdir())[-1]=='training.pt' and len(list((folder/'sharded-3').glob('shard-*')))==3
    assert sum(p.stat().st_size for p in (folder/'full-2').iterdir()) and (folder/'sharded-2'/'training.pt').stat().st_size < (folder/'full-2'/'training.pt').stat().st_size
    takers = dict(one=[take(paths, 1)], ddp=launch(take, paths, 2, kind='ddp', nprocs=2, timeout=200), fsdp2=launch(take, paths, 2, kind='fsdp', nprocs=2, timeout=200),
        fsdp3=launch(take, paths, 3, kind='fsdp', nprocs=3, timeout=200), fsdp4=launch(take, paths, 4, kind='fsdp', shard=2, checkpoint='sharded', nprocs=4, timeout=200))
    more = takers['one'][0][-1]['more']
    for name,ranks in takers.items():
        for rank in ranks:
            for path,got in zip(paths, rank):
                want = single if path.name=='single' else results[int(path.name[-1])][path.name.split('-')[0]]
                for k in 'w','state','mean': assert torch.equal(got[k], want[k]), (name, path.name, k)
                assert abs(got['val']-want['val'])<1e-6
                torch.testing.assert_close(got['more'], more, rtol=0, atol=2e-5)


@pytest.mark.parametrize('kind', ['full','sharded'])
def test_resumed_on_the_same_number_of_ranks_bit_for_bit(kind, tmp_path):
    def work(folder):
        how = lambda: dict(parallel=fsdp(checkpoint=kind), callbacks=())
        straight = go(None, 2, 3, save=Checkpoints(f'{folder}/a', every=3), **how())
        class Cut(Callback):
            def after_step(self, t):
                if t.step==7: raise Stop
        try: go(None, 2, 3, save=Checkpoints(f'{folder}/b', every=3), **(how() | dict(callbacks=[Cut()])))
        except Stop: pass
        again = go(None, 2, 3, save=Checkpoints(f'{folder}/b', every=3), resume=True, **how())
        return straight,again
    for straight,again in launch(work, str(tmp_path), nprocs=2, timeout=200):
        assert again['why']=='resumed at step 6: bit for bit' and again['step']==straight['step']
        for k in 'w','state','mean': assert torch.equal(again[k], straight[k]), k
        assert again['val']==straight['val']
