"Sequences that are cut: equal to one process, whatever the ranks, copies, blocks and steps."
import math

import torch
import torch.nn.functional as F
from torch import nn

from mlstack.ddp import launch
from mlstack.trainer import Data, Single, Trainer


def turned(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x*cos + torch.cat([-b, a], -1)*sin


class Block(nn.Module):
    def __init__(self, width, heads, causal=True, drop=0.):
        super().__init__()
        self.heads, self.causal, self.drop = heads, causal, drop
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out, self.mlp = nn.Linear(width, 3*width), nn.Linear(width, width), nn.Sequential(nn.Linear(width, 2*width), nn.GELU(), nn.Linear(2*width, width))
    def forward(self, x, angles=None):
        b, t, w = x.shape
        q, k, v = (o.view(b, t, self.heads, -1).transpose(1, 2) for o in self.qkv(self.norm1(x)).chunk(3, -1))
        if angles is not None: q, k = (turned(o, *(a[:, None] for a in angles)) for o in (q, k))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).reshape(b, t, w))
        return x + F.dropout(self.mlp(self.norm2(x)), self.drop, self.training)


class Encoder(nn.Module):
    "torch's own layers, which are given the causal mask as a tensor; positions are a parameter."
    def __init__(self, width=16, context=24, batch_first=True, kind='causal', padded=False):
        super().__init__()
        self.kind, self.padded, self.batch_first = kind, padded, batch_first
        self.tok, self.pos, self.head = nn.Embedding(20, width), nn.Parameter(.1*torch.randn(context, width)), nn.Linear(width, 20)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 2, 32, dropout=0., batch_first=batch_first), 2, enable_nested_tensor=False)
    def forward(self, x):
        t = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(t) if self.kind == 'causal' else torch.ones(t, t).tril(3).log() if self.kind == 'other' else None
        h = self.tok(x)+self.pos[:t]
        h = self.layers(h if self.batch_first else h.transpose(0, 1), mask=mask, **(dict(src_key_padding_mask=x == 0) if self.padded else {}))
        return self.head(h if self.batch_first else h.transpose(0, 1))


class Masked(Block):
    "A causal mask that was made outside, as nanoGPT and many others have it."
    def forward(self, x, angles=None):
        mask = self.mask(self.long)
        b, t, w = x.shape
        q, k, v = (o.view(b, t, self.heads, -1).transpose(1, 2) for o in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, w))
        return x + self.mlp(self.norm2(x))
    def mask(self, t): return torch.ones(1, 1, t, t, dtype=torch.bool).tril()


class GPT(nn.Module):
    def __init__(self, width=16, layers=2, context=24, rotary=False, **kw):
        super().__init__()
        self.rotary, self.tok, self.pos = rotary, nn.Embedding(20, width), None if rotary else nn.Parameter(.1*torch.randn(context, width))
        self.blocks, self.norm, self.head = nn.ModuleList(Block(width, 2, **kw) for _ in range(layers)), nn.LayerNorm(width), nn.Linear(width, 20)
    def forward(self, x):
        h = self.tok(x)
        if self.rotary:
            turn = torch.outer(torch.arange(x.shape[1]).float(), 1/10**torch.linspace(0, 1, 4)).repeat(1, 2)[None]
            angles = turn.cos(), turn.sin()
        else: h, angles = h+self.pos[:x.shape[1]], None
        for b in self.blocks: h = b(h, angles=angles)
        return self.head(self.norm(h))


def loss(out, y): return F.cross_entropy(out.flatten(0, 1), y.flatten())
def accuracy(out, y): return (out.argmax(-1) == y).float().mean()


def counted(model, batch):
    x, y = batch
    y = torch.where(x > 3, y, -100)
    return dict(loss=F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction='sum')/(y >= 0).sum().clamp(min=1), count=(y >= 0).sum())


def problem(n=30, valid=7):
    ids = torch.randint(0, 20, (n+valid, 25), generator=torch.Generator().manual_seed(0))
    ids[:, 1::2] = (ids[:, ::2][:, :12]+1) % 20
    return (ids[:n, :-1], ids[:n, 1:]), (ids[n:, :-1], ids[n:, 1:])


def make(kw):
    kind = kw.get('of', 'gpt')
    kw = {k: v for k, v in kw.items() if k != 'of'}
    if kind == 'encoder': return Encoder(**kw)
    m = GPT(**kw)
    if kind == 'masked':
        m.blocks = nn.ModuleList(Masked(16, 2) for _ in range(2))
        def long(module, args):
            for b in m.blocks: b.long = args[0].shape[1]
        m.register_forward_pre_hook(long)
    return m


def train(cut=None, model=None, batch_size=8, checkpointed=False, save=None, resume=None, epochs=2, **kw):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    if cut is not None:
        from mlstack.ddp.sequences import Sequences
        cut = Sequences(**cut)
    kw = dict(loss=loss, metrics=dict(acc=accuracy), clip=.5) | kw
    m = make(model or {})
    if checkpointed:
        from mlstack.ddp import checkpoint_activations
        checkpoint_activations(m)
    t = Trainer(m, Data.from_tensors(*problem(), batch_size=batch_size), lr=.01, parallel=cut or Single('cpu'), **kw)
    t.fit(epochs=epochs, **(dict(save=save) if save else {}), **(dict(resume=resume) if resume else {}))
    return dict(losses=t.history.steps('loss')[1], norms=t.history.steps('grad_norm')[1], rows=[{k: v for k, v in r.items() if k != 'seconds'} for r in t.history.rows],
                out=t.predict(problem()[1][0]), short=t.predict(problem()[1][0][:, :5]), state={k: v.clone() for k, v in m.state_dict().items()})


def same(got, want, tol=5e-5):
    for k in ('losses', 'norms'): torch.testing.assert_close(torch.tensor(got[k]), torch.tensor(want[k]), rtol=10*tol, atol=tol)
    for a, b in zip(got['rows'], want['rows'], strict=True):
        assert a.keys() == b.keys()
        for k in a: assert math.isclose(a[k], b[k], rel_tol=20*tol, abs_tol=tol), (k, a[k], b[k])
    for k in ('out', 'short'): torch.testing.assert_close(got[k], want[k], rtol=5e-3, atol=5e-3)
    for k, v in want['state'].items(): torch.testing.assert_close(got['state'][k], v, rtol=2e-3, atol=2e-3)


cases = dict(
    causal=dict(cut={}),
    full=dict(cut={}, model=dict(causal=False)),
    rotary=dict(cut={}, model=dict(rotary=True)),
    accumulate=dict(cut={}, accumulate=2),
    counted=dict(cut={}, accumulate=2, step=counted, loss=None, metrics=None),
    checkpointed=dict(cut={}, checkpointed=True),
    encoder=dict(cut={}, model=dict(of='encoder'), opt=torch.optim.SGD), # a bias of keys has no gradient but noise, which AdamW makes large
    encoder_full=dict(cut={}, model=dict(of='encoder', kind=None), opt=torch.optim.SGD),
    masked=dict(cut={}, model=dict(of='masked'), opt=torch.optim.SGD),
)


def all_of_them(cases): return [train(**kw) for kw in cases]


def check(got, cases, **other):
    for i, (name, kw) in enumerate(cases.items()):
        want = train(**{k: v for k, v in kw.items() if k != 'cut'} | other)
        for rank in got:
            try: same(rank[i], want)
            except AssertionError as e: raise AssertionError(f'{name}: {e}') from None


def test_two_parts_are_one_process(): check(launch(all_of_them, list(cases.values()), nprocs=2, timeout=400, output='none'), cases)


def test_four_parts_and_two_copies_of_two_parts():
    four = {k: cases[k] for k in ('causal', 'rotary')}
    check(launch(all_of_them, list(four.values()), nprocs=4, timeout=400, output='none'), four)
    copies = {k: cases[k] | dict(cut=dict(n=2), batch_size=4) for k in ('causal', 'counted')}
    check(launch(all_of_them, list(copies.values()), nprocs=4, timeout=400, output='none'), copies, batch_size=8)


def test_dropout_is_reproducible_and_resumes(tmp_path):
    def work(folder):
        kw = dict(cut={}, model=dict(drop=.3))
        a, b = train(**kw), train(**kw)
        train(epochs=1, save=folder, **kw)
        return a, b, train(save=folder, resume=True, **kw)
    for a, b, c in launch(work, str(tmp_path), nprocs=2, timeout=300, output='none'):
        assert a['losses'] == b['losses'] and a['losses'][-4:] == c['losses'][-4:]
        for k in a['state']: assert torch.equal(a['state'][k], c['state'][k])


def test_what_cannot_be_cut_is_said():
    def refused(model=None, cut=None, **kw):
        from mlstack.core import MlstackError
        from mlstack.ddp.sequences import Sequences
        try: Trainer(model or GPT(), Data.from_tensors(problem()[0], batch_size=8), parallel=Sequences(**(cut or {})), **(dict(loss=loss) | kw)).setup()
        except MlstackError as e: return str(e)
        return 'fine'
    class Drops(Block):
        def forward(self, x, angles=None): return F.scaled_dot_product_attention(*[x[:, None]]*3, dropout_p=.1, is_causal=True)[:, 0]
    class Own(GPT):
        def forward(self, x, labels): return dict(loss=loss(super().forward(x), labels))
    class Other(Block): # attention that is not torch's
        def forward(self, x, angles=None): return x + (x @ x.transpose(1, 2)).tril() @ x
    def several():
        out = [refused(cut=dict(n=3)), refused(cut=dict(dim=-1)), refused(compile=True), refused(Encoder(batch_first=False)), refused(Encoder(kind='other')), refused(Encoder(padded=True)), refused(Encoder(kind=None, padded=True))]
        for kind in (Drops, Other):
            m = GPT()
            m.blocks = nn.ModuleList(kind(16, 2) for _ in range(2))
            out.append(refused(m))
        ids = problem()[0][0]
        t = Trainer(Own(), Data.from_tensors(dict(x=ids, labels=ids), batch_size=8), parallel=__import__('mlstack.ddp.sequences', fromlist=['Sequences']).Sequences())
        try: t.setup(); out.append('fine')
        except Exception as e: out.append(str(e))
        return out
    for got in launch(several, nprocs=2, timeout=300, output='none'):
        for said, want in zip(got, ('2 processes are not a whole number of groups of 3', 'dim=-1', 'compile=True does not go', 'batch_first=True', 'targets of -100', 'targets of -100', 'targets of -100', 'drops 10%', 'is not the same with its sequence cut', 'is not the same with its sequence cut'), strict=True): assert want in said, (want, said)
