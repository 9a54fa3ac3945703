"FSDP: equal to one process, checkpoints whole and in parts, any number of ranks, kills, bad input."
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

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


cases = dict(plain={}, accumulate=dict(accumulate=2), clip=dict(clip=.3, schedule='cosine'),
    frozen=dict(opt='frozen'), layers=dict(opt='layers'), bf16=dict(precision='bf16'), muon=dict(opt='muon'),
    sgd=dict(opt=lambda p, lr: torch.optim.SGD(p, lr, momentum=.9), clip=dict(value=.01)), adamw=dict(opt=torch.optim.AdamW, ema=True))


def train(batch_size, parallel=None, ema=False, opt=None, epochs=2, **kw):
    model = seeded()
    if opt=='frozen': opt = [torch.optim.AdamW, ('words.*', None)]
    if opt=='layers': opt = [torch.optim.AdamW, *layer_decay(model, .5)]
    t = Trainer(model, data(batch_size, 101, 25), loss, lr=.01, opt=opt or torch.optim.AdamW, parallel=parallel, callbacks=[EMA(.9)] if ema else [], **kw)
    t.fit(epochs=epochs)
    out = t.predict(torch.arange(10).view(2,5))
    row = t.history.rows[-1]
    return dict(w=weights(t), val=t.validate()['val_loss'], steps=t.step, norm=row.get('grad_norm'), out=out, said=str(t.explain()), train=row['loss'])


def all_cases(names, n, **how): return {k: train(24//n, parallel=fsdp(**how), **cases[k]) for k in names}


@pytest.fixture(scope='module')
def alone(): return {k: train(24, **kw) for k,kw in cases.items()}


@pytest.mark.parametrize('n', [2,3])
def test_ranks_are_one_process_of_the_same_global_batch(n, alone):
    some = list(cases) if n==2 else ['plain','accumulate','clip','adamw']
    results = launch(all_cases, some, n, nprocs=n, timeout=300)
    for k in some:
        one,many = alone[k],[r[k] for r in results]
        for m in many:
            tolerance = dict(bf16=3e-2, muon=5e-3).get(k, 1e-5) # Muon orthogonalises in bf16
            torch.testing.assert_close(m['w'], one['w'], rtol=0, atol=tolerance, msg=k)
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
        if path.name in ('sharded-3','single'): t.fit(epochs=1)
        out.append(dict(w=w, val=val, state=loaded, mean=mean, more=weights(t) if path.name in ('sharded-3','single') else None))
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
    takers = dict(one=[take(paths, 1)], ddp=launch(take, paths, 2, kind='ddp', nprocs=2, timeout=200), fsdp3=launch(take, paths, 3, kind='fsdp', nprocs=3, timeout=200), fsdp4=launch(take, paths, 4, kind='fsdp', shard=2, checkpoint='sharded', nprocs=4, timeout=200))
    more = takers['one'][0][-1]['more']
    for name,ranks in takers.items():
        for rank in ranks:
            for path,got in zip(paths, rank):
                want = single if path.name=='single' else results[int(path.name[-1])][path.name.split('-')[0]]
                for k in 'w','state','mean': assert torch.equal(got[k], want[k]), (name, path.name, k)
                assert abs(got['val']-want['val'])<1e-6
                if got['more'] is not None: torch.testing.assert_close(got['more'], more, rtol=0, atol=2e-5)


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
        def die(tmp, shards, number, group):
            if mortal and context().attempt==0 and number==1 and 'step-000000006' in str(tmp): os.kill(os.getpid(), signal.SIGKILL)
            return write(tmp, shards, number, group)
        c.write_shards = die
        before = sorted(p.name for p in Path(folder).glob('*step*')) if Path(folder).exists() else []
        return go(None, 2, 3, save=Checkpoints(folder, every=3), resume=True, parallel=fsdp(checkpoint='sharded')), before, context().attempt
    straight = launch(work, str(tmp_path/'a'), False, nprocs=2, timeout=300)
    again = launch(work, str(tmp_path/'b'), True, nprocs=2, max_restarts=1, output='none', timeout=300)
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
    for rank,(step,said) in enumerate(launch(work, str(tmp_path), nprocs=2, timeout=300)):
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
            out[name] = weights(t), t.mode, str(t.explain())
        one('ddp')
        for name,how in dict(plain={}, offload=dict(offload=True), groups=dict(shard=2), kept=dict(reshard=False, prefetch=1), some=dict(reshard=2, blocks=Block), whole=dict(blocks=[])).items(): one(name, **how)
        one('cpu', spare='cpu')
        one('both', spare='recompute', compile='blocks')
        return out
    for rank in launch(work, nprocs=4, timeout=300):
        want = rank['ddp'][0]
        for name,(w,mode,_) in rank.items():
            torch.testing.assert_close(w, want, rtol=0, atol=1e-5, msg=name)
            assert mode==('compiled' if name=='both' else 'eager'), name
        assert 'in each of 2 groups' in rank['groups'][2] and '3 Block and the rest' in rank['plain'][2]


def test_models_on_meta_weights_of_files_and_exports(tmp_path):
    def work(folder):
        from safetensors.torch import load_file
        from mlstack.trainer.exporting import ExportError
        def fit(meta=False, **how):
            torch.manual_seed(1)
            with torch.device('meta' if meta else 'cpu'): model = Words()
            t = Trainer(model, data(8), loss, lr=.01, parallel=fsdp(**how), callbacks=[EMA(.9)])
            t.setup()
            began = weights(t)
            t.fit(epochs=1)
            return t,began
        (a,wa),(b,wb) = fit(),fit(True, init=lambda m: m._parameters['scale'].fill_(1.) if 'scale' in m._parameters else None)
        out = dict(same=torch.equal(wa, wb) and torch.equal(weights(a), weights(b)))
        file = a.save(f'{folder}/w.safetensors')
        torch.distributed.barrier()
        mean = torch.cat([a.parallel.whole(m).flatten() for m in a.callbacks[0].mean])
        c,wc = fit(True, weights=file)
        out['read'] = torch.equal(wc, mean) and sorted(load_file(file))==sorted(a.model.state_dict())
        b.load(file)
        out['loaded'] = torch.equal(weights(b), mean)
        try: a.export(f'{folder}/m.pt2')
        except ExportError as e: out['said'] = str(e)
        try: a.callbacks[0].averaged(a.model)
        except MlstackError as e: out['copy'] = str(e)
        return out
    for out in launch(work, str(tmp_path), nprocs=3, timeout=200):
        assert out['same'] and out['read'] and out['loaded'] and 'cannot be traced' in out['said'] and 'cannot be copied' in out['copy']


def test_running_statistics_blocks_used_twice_and_frozen_models():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first,self.norm = nn.Linear(5,8,bias=False),nn.BatchNorm1d(8)
            self.blocks = nn.ModuleList([Block(8),Block(8)])
        def forward(self, x):
            x = self.norm(self.first(x))
            for b in (*self.blocks, *self.blocks): x = b(x)
            return x
    def run(batch_size, parallel=None):
        torch.set_num_threads(1)
        torch.manual_seed(2)
        x = torch.randn(48,5)
        t = Trainer(Normed(), Data.from_tensors((x,x.repeat(1,2)[:,:8]), (x[:7],x[:7].repeat(1,2)[:,:8]), batch_size=batch_size), nn.functional.mse_loss, lr=.01, parallel=parallel() if parallel else None)
        t.fit(epochs=2)
        out = t.predict(x[:7])
        t.model.requires_grad_(False)
        return weights(t), t.model.norm.running_mean.clone(), t.validate()['val_loss'], out
    def both(): return [run(12, kind) for kind in (lambda: 'ddp', fsdp)]
    ranks = launch(both, nprocs=2, timeout=300)
    for ddp,ours in ranks:
        torch.testing.assert_close(ours[0], ddp[0], rtol=0, atol=1e-5) # each rank normalises by its own batch, as data parallelism does
        torch.testing.assert_close(ours[1], ranks[0][0][1], rtol=0, atol=1e-6) # and keeps the statistics of rank 0
        assert ours[2]==ranks[0][1][2] and torch.equal(ours[3], ranks[0][1][3])


def test_sixteen_bits():
    def work():
        out = {}
        for name,how,precision in (('own',{},'bf16'), ('pure',dict(precision='bf16'),'fp32'), ('half',dict(precision='fp16'),'fp32'), ('full',dict(precision='fp32'),'bf16')):
            model = seeded()
            seen = {}
            model.blocks[0].up.register_forward_pre_hook(lambda m, args, seen=seen: seen.setdefault('w', m.weight.dtype) and None)
            model.blocks[0].norm.register_forward_pre_hook(lambda m, args, seen=seen: seen.setdefault('x', args[0].dtype) and None)
            t = Trainer(model, data(12, 101, 25), loss, lr=.01, parallel=fsdp(**how), precision=precision)
            t.fit(epochs=1)
            out[name] = weights(t), [str(seen[k]).removeprefix('torch.') for k in 'xw']
        return out
    one = train(24, epochs=1)['w']
    for rank in launch(work, nprocs=2, timeout=300):
        for name,(w,_) in rank.items(): torch.testing.assert_close(w, one, rtol=0, atol=.03, msg=name)
        assert {k: v[1] for k,v in rank.items()}==dict(own=['bfloat16','bfloat16'], pure=['bfloat16','bfloat16'], half=['float16','float16'], full=['float32','float32'])


def test_bad_input():
    def work():
        said = {}
        def refused(name, make):
            try: make()
            except MlstackError as e: said[name] = str(e)
            else: said[name] = 'nothing'
        rank = context().rank
        model = seeded()
        refused('optimizer', lambda: Trainer(model, data(12), loss, opt=torch.optim.SGD(model.parameters(), .1), parallel='fsdp').fit(steps=1))
        Trainer(model, data(12), loss, parallel='fsdp').fit(steps=1)
        refused('again', lambda: Trainer(model, data(12), loss, parallel='fsdp').fit(steps=1))
        refused('differs', lambda: Trainer(Words(width=8 if rank==0 else 6), data(12), loss, parallel='fsdp').fit(steps=1))
        refused('missing', lambda: Trainer(Words(tied=rank==0), data(12), loss, parallel='fsdp').fit(steps=1))
        refused('groups', lambda: fsdp(shard=3))
        refused('kind', lambda: fsdp(checkpoint='parts'))
        refused('few', lambda: Trainer(nn.Linear(1,1,bias=False), Data.from_tensors((torch.zeros(8,1),torch.zeros(8,1)), batch_size=2), nn.functional.mse_loss, parallel='fsdp').fit(steps=1))
        refused('wrapped', lambda: Trainer(nn.parallel.DistributedDataParallel(seeded()), data(12), loss, parallel='fsdp').fit(steps=1))
        with torch.device('meta'): empty = Words()
        refused('meta', lambda: Trainer(empty, data(12), loss, parallel='fsdp').fit(steps=1))
        with torch.device('meta'): empty = Words()
        refused('file', lambda: Trainer(empty, data(12), loss, parallel=fsdp(weights='nowhere.safetensors')).fit(steps=1))
        t = Trainer(seeded(), data(12), loss, parallel='fsdp')
        t.fit(steps=1)
        t.model.late = nn.Linear(2,2)
        refused('late', lambda: t.save('never'))
        return said
    expected = dict(optimizer='made before the model is cut.*the class or a partial', again='has been cut before', differs='rank 1 has another model than rank 0.*words.weight', missing='rank 1 has another model.*head.weight',
        groups='2 ranks cannot be groups of shard=3.*use one of 1, 2', kind='use "full" or "sharded"', few='1 parameters cannot be cut over 2 ranks', wrapped='in DistributedDataParallel already', meta='scale of Words got no contents.*init=function', file='there are no weights here', late='late.weight, late.bias came into the model after it was cut')
    import re
    for said in launch(work, nprocs=2, timeout=300):
        for name,pattern in expected.items(): assert re.search(pattern, said[name], re.I), (name, said[name])


def test_without_ranks_the_error_says_how_to_start():
    with pytest.raises(MlstackError, match='launch\\(fn, nprocs=2\\)'): Trainer(seeded(), data(12), loss, parallel='fsdp')


def test_one_rank_alone():
    assert torch.equal(launch(lambda: train(24, parallel='fsdp')['w'], nprocs=1, timeout=300)[0], train(24)['w'])
