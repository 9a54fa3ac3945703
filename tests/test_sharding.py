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
        self.scale = nn.Parameter(torch.ones(1)) # one row: most ranks have nothing of it
        if tied: self.head.weight = self.words.weight
    def forward(self, x):
        x = self.words(x)
        for b in self.blocks: x = b(x)
        return self.head(x)*self.scale


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
            torch.testing.assert_close(m['out'].float(), one['out'].float(), rtol=0, atol=10*tolerance)


# --- checkpoints

class Stop(Exception): pass


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


def test_a_rank_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path):
    def work(folder, mortal):
        import mlstack.trainer.checkpoints as c
        write = c.write_shards
        def die(tmp, shards, number):
            if mortal and context().attempt==0 and number==1 and 'step-000000006' in str(tmp): os.kill(os.getpid(), signal.SIGKILL)
            return write(tmp, shards, number)
        c.write_shards = die
        before = sorted(p.name for p in Path(folder).glob('*step*')) if Path(folder).exists() else []
        return go(None, 2, 3, save=Checkpoints(folder, every=3), resume=True, parallel=fsdp(checkpoint='sharded')), before, context().attempt
    straight = launch(work, str(tmp_path/'a'), False, nprocs=2, timeout=120)
    again = launch(work, str(tmp_path/'b'), True, nprocs=2, max_restarts=1, output='none', timeout=120)
    for (want,_,_),(got,before,attempt) in zip(straight, again):
        assert attempt==1 and [b for b in before if b!='.step-000000006.tmp']==['step-000000003','step-000000004'] # rank 0 may have cleared up
        assert torch.equal(got['w'], want['w']) and torch.equal(got['state'], want['state']) and got['val']==want['val']
    assert not list((tmp_path/'b').glob('.step*'))


def test_a_part_that_was_changed_or_is_missing_is_seen(saved, tmp_path):
    folder,results,_ = saved
    kept = Checkpoints(tmp_path)
    for step,n in ((4,2),(8,3)): shutil.copytree(folder/f'sharded-{n}', kept.path(step))
    part = next(kept.path(8).glob('shard-00002-*'))
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1]^1]))
    with pytest.warns(UserWarning, match='shard-00002.* is not what was written'): path,_ = kept.latest()
    assert path==kept.path(4)
    part.unlink()
    with pytest.warns(UserWarning, match='is missing'): assert kept.latest()[0]==kept.path(4)


def test_a_full_disk_ends_no_fit_and_no_rank_waits(tmp_path):
    def work(folder):
        import mlstack.trainer.checkpoints as c
        write = c._write_part
        def full(path, obj):
            if context().rank==1 and 'step-000000006' in str(path): raise OSError(28, 'No space left on device')
            write(path, obj)
        c._write_part = full
        import warnings
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            t = go(None, 2, 2, save=Checkpoints(folder, every=3), parallel=fsdp(), ema=False)
        return t['step'], [str(w.message) for w in said if 'goes on without' in str(w.message)]
    for rank,(step,said) in enumerate(launch(work, str(tmp_path), nprocs=2, timeout=120)):
        assert step==8 and len(said)==1 and ('No space left' if rank else 'another process') in said[0]
    assert [p.name for p in sorted(tmp_path.glob('*step*'))]==['step-000000003','step-000000004','step-000000008']


# --- options

def test_options_change_no_number(tmp_path):
    "Offload, groups, reshard, prefetch, checkpointed activations before and after, compiling: all as data parallelism has it."
    def work():
        from mlstack.ddp import checkpoint_activations
        import mlstack.trainer.modes as modes
        modes.backend = 'aot_eager'
        out = {}
        def one(name, spare=None, compile=False, **how):
            model = seeded(drop=.2)
            if spare: checkpoint_activations(model, spare)
            t = Trainer(model, data(6), loss, lr=.01, clip=.5, parallel='ddp' if name=='ddp' else fsdp(**how), compile=compile)
            t.fit(epochs=1)
            out[name] = weights(t), t.mode, t._why['device']
        one('ddp')
        for name,how in dict(plain={}, offload=dict(offload=True), groups=dict(shard=2), kept=dict(reshard=False), some=dict(reshard=2), ahead=dict(prefetch=1), whole=dict(blocks=[]) , named=dict(blocks=Block)).items(): one(name, **how)
        for spare in 'recompute','cpu': one(spare, spare=spare)
        one('compiled', compile='blocks')
        one('both', spare='recompute', compile='blocks')
        return out
    for rank in launch(work, nprocs=4, timeout=300):
        want = rank['ddp'][0]
        for name,(w,mode,_) in rank.items():
            torch.testing.assert_close(w, want, rtol=0, atol=1e-5, msg=lambda s: f'{name}: {s}')
            assert mode==('compiled' if name in ('compiled','both') else 'eager'), name
        assert 'in each of 2 groups' in rank['groups'][2] and '3 Block and the rest' in rank['plain'][2]
