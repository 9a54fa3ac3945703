"Pipelines: equal to one process, whatever the stages, schedules, copies, batches and checkpoints."
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlstack.core import MlstackError
from mlstack.ddp import launch
from mlstack.trainer import Data, Single, Trainer


class Block(nn.Module):
    def __init__(self, width, heads, drop=0.):
        super().__init__()
        self.heads, self.drop = heads, drop
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out, self.up, self.down = nn.Linear(width, 3*width), nn.Linear(width, width), nn.Linear(width, 2*width), nn.Linear(2*width, width)
    def forward(self, x, mask=None):
        b, t, w = x.shape
        q, k, v = (o.view(b, t, self.heads, -1).transpose(1, 2) for o in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, w))
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), self.drop, self.training)


class GPT(nn.Module):
    "Positions are a parameter, the mask is made in forward, and the head may be the embedding."
    def __init__(self, layers=4, width=16, tied=False, drop=0.):
        super().__init__()
        self.tok, self.pos = nn.Embedding(20, width), nn.Parameter(.1*torch.randn(8, width))
        self.blocks = nn.ModuleList(Block(width, 2, drop) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 20, bias=False)
        if tied: self.head.weight = self.tok.weight
    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        x = self.tok(x)+self.pos[:x.shape[1]]
        for b in self.blocks: x = b(x, mask)
        return self.head(self.norm(x))


def loss(out, y): return F.cross_entropy(out.flatten(0, 1), y.flatten())
def accuracy(out, y): return (out.argmax(-1) == y).float().mean()


def problem(n=70, valid=13):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (n+valid, 8), generator=g)
    y = (x+1) % 20
    return (x[:n], y[:n]), (x[n:], y[n:])


class OwnLoss(GPT):
    "Returns its loss, as the models of transformers do."
    def forward(self, x, labels):
        out = super().forward(x)
        return dict(loss=loss(out, labels), logits=out)


def counted(model, batch):
    x, y = batch
    y = torch.where(x > 3, y, -100)
    return dict(loss=F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction='sum')/(y >= 0).sum().clamp(min=1), count=(y >= 0).sum())


def train(pipe=None, batch_size=16, epochs=2, save=None, resume=None, opt=torch.optim.AdamW, tied=False, drop=0., steps=None, **kw):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    if pipe is not None:
        from mlstack.ddp.stages import Pipeline
        pipe = Pipeline(**pipe)
    kw = dict(loss=loss, metrics=dict(acc=accuracy), schedule='cosine') | kw
    own = kw.get('loss', loss) is None and 'step' not in kw
    t = Trainer((OwnLoss if own else GPT)(tied=tied, drop=drop), Data.from_tensors(*([dict(x=x, labels=y) for x, y in problem()] if own else problem()), batch_size=batch_size), opt=opt, lr=.01, parallel=pipe or Single('cpu'), **kw)
    t.fit(**(dict(steps=steps) if steps else dict(epochs=epochs)), **(dict(save=save) if save else {}), **(dict(resume=resume) if resume else {}))
    out = t.predict(t.data.valid)['logits'] if own else t.predict(problem()[1][0])
    state = t.parallel.model_state(t.model)
    return dict(losses=t.history.steps('loss')[1], norms=t.history.steps('grad_norm')[1] if 'clip' in kw else None, rows=[{k: v for k, v in r.items() if k != 'seconds'} for r in t.history.rows], out=out,
                state={k: v.clone() for k, v in state.items()}, step=t.step, main=t.parallel.main, held=sum(p.untyped_storage().nbytes() for p in t.model.parameters()))


def same(got, want, tol=2e-5):
    torch.testing.assert_close(torch.tensor(got['losses']), torch.tensor(want['losses']), rtol=tol, atol=tol)
    if want['norms'] is not None: torch.testing.assert_close(torch.tensor(got['norms']), torch.tensor(want['norms']), rtol=10*tol, atol=tol)
    for a, b in zip(got['rows'], want['rows'], strict=True):
        assert a.keys() == b.keys()
        for k in a: assert math.isclose(a[k], b[k], rel_tol=10*tol, abs_tol=tol), (k, a[k], b[k])
    torch.testing.assert_close(got['out'], want['out'], rtol=1e-3, atol=2e-3)
    assert got['step'] == want['step']
    if got['main']:
        assert list(got['state']) == list(want['state'])
        for k, v in want['state'].items(): torch.testing.assert_close(got['state'][k], v, rtol=1e-3, atol=1e-3, msg=lambda s, k=k: f'{k}: {s}')


cases = dict(
    gpipe=dict(pipe=dict(schedule='gpipe', microbatches=4)),
    f1b1=dict(pipe=dict(microbatches=4), clip=.5),
    accumulate=dict(pipe=dict(), accumulate=2, clip=.5),
    counted=dict(pipe=dict(), step=counted, loss=None, metrics=None, accumulate=2),
    tied=dict(pipe=dict(), tied=True, clip=.1),
    interleaved=dict(pipe=dict(schedule='interleaved', rounds=2, microbatches=4), clip=.5),
    zerobubble=dict(pipe=dict(schedule='zerobubble', microbatches=4)),
    own_loss=dict(pipe=dict(), loss=None, metrics=None),
    muon=dict(pipe=dict(split='blocks.1'), opt='muon'),
)


def plain(kw): return {k: v for k, v in kw.items() if k != 'pipe'}


def test_two_stages_are_one_process():
    def all_of_them(cases):
        return [train(**kw) for kw in cases]
    got = launch(all_of_them, list(cases.values()), nprocs=2, timeout=400, output='none')
    for i, (name, kw) in enumerate(cases.items()):
        want = train(**plain(kw))
        for rank in got:
            try: same(rank[i], want)
            except AssertionError as e: raise AssertionError(f'{name}: {e}') from None
            assert rank[i]['held'] < 4*sum(v.numel() for v in want['state'].values())


def test_four_processes_are_one(tmp_path):
    "Four stages; two pipelines of two stages; and a checkpoint that goes from layout to layout."
    kw = dict(clip=.5, batch_size=8, epochs=2)
    def all_of_them(folder):
        out = [train(pipe=dict(stages=4, microbatches=4), **(kw | dict(batch_size=16))), train(pipe=dict(stages=4, schedule='gpipe', microbatches=2), **(kw | dict(batch_size=16))),
               train(pipe=dict(stages=2, microbatches=4), tied=True, **kw), train(pipe=dict(stages=2), step=counted, loss=None, metrics=None, accumulate=2, **(kw | dict(batch_size=4)))]
        on = kw | dict(epochs=None, schedule=None)
        train(pipe=dict(stages=2), save=f'{folder}/run', steps=4, **on)
        return out, train(pipe=dict(stages=4), save=f'{folder}/run', resume=True, steps=9, **(on | dict(batch_size=16)))
    got = launch(all_of_them, str(tmp_path), nprocs=4, timeout=400, output='none')
    kw = kw | dict(batch_size=16)
    wants = [train(**kw), train(**kw), train(tied=True, **kw), train(step=counted, loss=None, metrics=None, accumulate=2, **(kw | dict(batch_size=8)))]
    straight = train(steps=9, **(kw | dict(epochs=None, schedule=None)))
    for outs, resumed in got:
        for i, (o, want) in enumerate(zip(outs, wants)):
            try: same(o, want)
            except AssertionError as e: raise AssertionError(f'case {i}: {e}') from None
        torch.testing.assert_close(torch.tensor(resumed['losses'][-3:]), torch.tensor(straight['losses'][-3:]), rtol=1e-4, atol=1e-4)
    # and on one process
    t = Trainer(GPT(), Data.from_tensors(*problem(), batch_size=16), loss=loss, lr=.01, parallel=Single('cpu'))
    t.load(tmp_path/'run')
    torch.testing.assert_close(t.predict(problem()[1][0]), straight['out'], rtol=1e-3, atol=2e-3)
    assert len(t.optimizer.state) == len(list(t.model.parameters()))


def test_dropout_is_reproducible_resumable_and_different_on_each_stage(tmp_path):
    def work(folder):
        kw = dict(pipe=dict(microbatches=4), drop=.3, epochs=3, schedule=None)
        a, b = train(**kw), train(**kw)
        train(save=folder, **(kw | dict(epochs=1)))
        c = train(save=folder, resume=True, **kw)
        return a, b, c
    for a, b, c in launch(work, str(tmp_path), nprocs=2, timeout=300, output='none'):
        assert a['losses'] == b['losses']
        assert a['losses'][-5:] == c['losses'][-5:]
        torch.testing.assert_close(a['out'], c['out'], rtol=0, atol=0)
    def masks():
        from mlstack.ddp.stages import Pipeline
        seen = []
        class Noise(nn.Module):
            def __init__(self): super().__init__(); self.lin = nn.Linear(8, 8)
            def forward(self, x):
                out = F.dropout(x, .5, self.training)
                if self.training: seen.append((out == 0).detach())
                return self.lin(out)
        torch.manual_seed(0)
        t = Trainer(nn.Sequential(Noise(), Noise()), Data.from_tensors((1+torch.rand(8, 8), torch.zeros(8, 8)), batch_size=8), loss=F.mse_loss, parallel=Pipeline(microbatches=2))
        t.fit(steps=1)
        return torch.cat(seen[-2:])
    a, b = launch(masks, nprocs=2, timeout=300)
    assert not torch.equal(a, b) and not torch.equal(a[:4], a[4:])


def averaged(pipe=None, batch_size=16, epochs=2, save=None, resume=None):
    "What an average of the weights validates and predicts, and how much of it is kept here."
    from mlstack.trainer import EMA
    torch.set_num_threads(1)
    torch.manual_seed(1)
    if pipe is not None:
        from mlstack.ddp.stages import Pipeline
        pipe = Pipeline(**pipe)
    t = Trainer(GPT(tied=True), Data.from_tensors(*problem(), batch_size=batch_size), opt=torch.optim.SGD, lr=.1, loss=loss, callbacks=[ema := EMA(.7)], parallel=pipe or Single('cpu'))
    t.fit(epochs=epochs, save=save, resume=resume)
    return dict(rows=[r['val_loss'] for r in t.history.rows], out=t.predict(problem()[1][0]), held=sum(m.numel() for m in ema.mean), n=ema.n)


def test_averaged_weights_of_stages(tmp_path):
    "Each stage averages its own; a checkpoint has all, and goes on with other stages, and alone."
    def work(folder):
        whole = averaged({})
        averaged({}, epochs=1, save=folder)
        return whole, averaged({}, save=folder, resume=True)
    alone = averaged()
    for whole, again in launch(work, str(tmp_path/'two'), nprocs=2, timeout=200, output='none'):
        for o in (whole, again):
            torch.testing.assert_close(torch.tensor(o['rows']), torch.tensor(alone['rows']), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(o['out'], alone['out'], rtol=1e-3, atol=1e-4)
            assert o['n'] == alone['n'] and o['held'] < .8*alone['held']
    averaged(epochs=1, save=str(tmp_path/'one'))
    for found in (averaged(save=str(tmp_path/'one'), resume=True), launch(averaged, {}, save=str(tmp_path/'one'), resume=True, nprocs=2, timeout=300, output='none')[1]):
        torch.testing.assert_close(found['out'], alone['out'], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_done_is_said():
    def refused(pipe=None, model=None, data=None, fit=True, **kw):
        from mlstack.ddp.stages import Pipeline
        try:
            t = Trainer(model or GPT(), data or Data.from_tensors(problem()[0], batch_size=15), parallel=Pipeline(**(pipe or {})), **(dict(loss=loss) | kw))
            t.fit(steps=1) if fit else t.setup()
        except MlstackError as e: return str(e)
        return 'fine'
    def twice(model, batch): return loss(model(batch[0]), batch[1])+loss(model(batch[0]), batch[1])
    def all_of_them():
        return [refused(pipe=dict(stages=3)), refused(pipe=dict(microbatches=4)), refused(pipe=dict(microbatches=1)), refused(pipe=dict(schedule='1b1f')), refused(pipe=dict(rounds=2)),
                refused(opt=None, loss=None, step=twice), refused(compile=True), refused(data=Data(iter([1])), fit=False), refused(model=nn.Linear(2, 2), data=Data.from_tensors((torch.randn(8, 2), torch.randn(8, 2)), batch_size=4), loss=F.mse_loss),
                refused(pipe=dict(split='blocks.9')), refused(step=twice, loss=None)]
    wants = ['2 processes are not a whole number of pipelines of 3 stages', '15 items are not 4 equal microbatches: 15 = 4 x 3 + 3', '1 microbatches are fewer than 2 stages', "schedule='1b1f' is not known", 'rounds=2 with schedule',
             'knows nothing of stages', 'compile=True does not go with stages', 'no batch that could be looked at', 'cannot be cut into 2 pieces', 'blocks.1, blocks.2', 'calls the model twice']
    for got in launch(all_of_them, nprocs=2, timeout=300, output='none'):
        for said, want in zip(got, wants, strict=True): assert want in said, (want, said)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_copies_with_more_and_fewer_items_are_one_process(accumulate):
    "51 items in batches of 24: of the last three one copy has two and the other one, so their means do not count alike."
    def fit(batch_size, **pipe):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        x = torch.randn(51, 8, generator=torch.Generator().manual_seed(0))
        model = nn.Sequential(nn.Linear(8,16), nn.Tanh(), nn.Linear(16,16), nn.Tanh(), nn.Linear(16,1))
        if pipe:
            from mlstack.ddp.stages import Pipeline
            pipe = dict(parallel=Pipeline(**pipe))
        t = Trainer(model, Data.from_tensors((x, x.sum(1,keepdim=True)), batch_size=batch_size//accumulate, drop_last=False), loss=F.mse_loss, opt=torch.optim.SGD, lr=.1, accumulate=accumulate, **(pipe or dict(parallel=Single('cpu'))))
        t.fit(epochs=2)
        state = t.parallel.model_state(model)
        return t.history.steps('loss')[1], torch.cat([v.flatten() for v in state.values()]) if t.parallel.main else None
    losses, weights = fit(24)
    got = launch(fit, 12, stages=2, nprocs=4, timeout=300, output='none')
    torch.testing.assert_close(got[0][1], weights, rtol=1e-4, atol=1e-6)
    for l, _ in got: torch.testing.assert_close(torch.tensor(l), torch.tensor(losses), rtol=1e-4, atol=1e-6)
