"Meshes: equal to one process with the same global batch, whatever the dimensions; states whole; what cannot be cut."
import math
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlstack.ddp import launch
from mlstack.ddp.meshes import Mesh, MeshError
from mlstack.trainer import Data, Trainer

WORDS, LONG = 20, 8


class Block(nn.Module):
    "The GPT of the tutorial: one projection for three, shapes from the input."
    def __init__(self, width, heads, drop=0.):
        super().__init__()
        self.heads,self.drop = heads,nn.Dropout(drop)
        self.norm1,self.norm2 = nn.LayerNorm(width),nn.LayerNorm(width)
        self.qkv,self.out = nn.Linear(width, 3*width),nn.Linear(width, width)
        self.up,self.down = nn.Linear(width, 4*width),nn.Linear(4*width, width)
    def attention(self, x):
        b,t,w = x.shape
        q,k,v = (o.view(b,t,self.heads,-1).transpose(1,2) for o in self.qkv(x).chunk(3,-1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1,2).reshape(b,t,w))
    def forward(self, x):
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    def __init__(self, width=16, layers=2, heads=4, words=WORDS, drop=0., tied=False):
        super().__init__()
        self.tok,self.pos = nn.Embedding(words, width),nn.Embedding(LONG, width)
        self.blocks = nn.Sequential(*(Block(width, heads, drop) for _ in range(layers)))
        self.norm,self.head = nn.LayerNorm(width),nn.Linear(width, words, bias=False)
        if tied: self.head.weight = self.tok.weight
    def forward(self, x): return self.head(self.norm(self.blocks(self.tok(x) + self.pos.weight[:x.shape[1]])))


def words_loss(out, y): return F.cross_entropy(out.flatten(0,1), y.flatten())


def momentum(params, lr): return torch.optim.SGD(params, lr, momentum=.9)


def data(batch_size, n=43, valid=13):
    x = torch.randint(WORDS, (n+valid, LONG), generator=torch.Generator().manual_seed(5))
    y = (x*3+1) % WORDS
    return Data.from_tensors((x[:n], y[:n]), (x[n:], y[n:]), batch_size=batch_size)


def train(batch_size, sizes=None, make=GPT, opt=momentum, lr=.1, epochs=2, loss=words_loss, items=(43,13), **kw):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    t = Trainer(make(), data(batch_size, *items), loss=loss, opt=opt, lr=lr, parallel=Mesh(**sizes) if sizes else None, **kw)
    t.fit(epochs=epochs)
    return t


def result(t):
    x = data(1).valid.cols[0] if hasattr(data(1).valid, 'cols') else None
    return dict(loss=t.history.steps('loss')[1], norm=t.history.steps('grad_norm')[1] if t.clip else [], val=t.validate()['val_loss'], state=t.parallel.model_state(t.model),
        optimizer=t.parallel.optimizer_state(t.model, t.optimizer), predicted=t.predict(x) if x is not None else None, main=t.parallel.main, rank=t.parallel.rank)


def same(found, alone, tol=1e-5):
    "Everything that one process and the main process of a mesh have in common."
    close = lambda a,b: torch.testing.assert_close(a, b, rtol=1e-4, atol=tol)
    main = found[0]
    assert main['state'].keys() == alone['state'].keys()
    for k in alone['state']: close(main['state'][k], alone['state'][k])
    for i,s in alone['optimizer']['state'].items():
        for k,v in s.items():
            if isinstance(v, torch.Tensor): close(main['optimizer']['state'][i][k], v)
    for r in found:
        close(torch.tensor(r['loss']), torch.tensor(alone['loss']))
        close(torch.tensor(r['norm']), torch.tensor(alone['norm']))
        assert abs(r['val']-alone['val']) < tol
