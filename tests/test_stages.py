"Pipelines: equal to one process, whatever the stages, schedules, copies, batches and checkpoints."
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlstack.core import MlstackError, context
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
    kw = dict(loss=loss, metrics=dict(acc=accuracy)) | kw
    t = Trainer(GPT(tied=tied, drop=drop), Data.from_tensors(*problem(), batch_size=batch_size), opt=opt, lr=.01, schedule='cosine', parallel=pipe or Single('cpu'), **kw)
    t.fit(**(dict(steps=steps) if steps else dict(epochs=epochs)), **(dict(save=save) if save else {}), **(dict(resume=resume) if resume else {}))
    out = t.predict(problem()[1][0])
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
    muon=dict(pipe=dict(split='blocks.1'), opt='muon'),
)


def plain(kw): return {k: v for k, v in kw.items() if k != 'pipe'}


def test_two_stages_are_one_process():
    def all_of_them(cases):
        return [train(**kw) for kw in cases]
    got = launch(all_of_them, list(cases.values()), nprocs=2, timeout=150, output='none')
    for i, (name, kw) in enumerate(cases.items()):
        want = train(**plain(kw))
        for rank in got:
            try: same(rank[i], want)
            except AssertionError as e: raise AssertionError(f'{name}: {e}') from None
            assert rank[i]['held'] < 4*sum(v.numel() for v in want['state'].values())
