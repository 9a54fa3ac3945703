"Meshes: equal to one process with the same global batch, whatever the dimensions; states whole; what cannot be cut."
import math
import os
import subprocess
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
    return dict(loss=t.history.steps('loss')[1], norm=t.history.steps('grad_norm')[1] if t.clip else [], val=t.validate()['val_loss'], state=t.parallel.model_state(t.model),
        optimizer=t.parallel.optimizer_state(t.model, t.optimizer), predicted=t.predict(data(1).valid.cols[0]), main=t.parallel.main, rank=t.parallel.rank)


def same(found, alone, tol=1e-5):
    "Everything that one process and the main process of a mesh have in common."
    close = lambda a,b: torch.testing.assert_close(a, b, rtol=1e-4, atol=tol)
    main = found[0]
    assert main['state'].keys() == alone['state'].keys()
    close(main['predicted'], alone['predicted'])
    for k in alone['state']: close(main['state'][k], alone['state'][k])
    for i,s in alone['optimizer']['state'].items():
        for k,v in s.items():
            if isinstance(v, torch.Tensor): close(main['optimizer']['state'][i][k], v)
    for r in found:
        close(torch.tensor(r['loss']), torch.tensor(alone['loss']))
        close(torch.tensor(r['norm']), torch.tensor(alone['norm']))
        assert abs(r['val']-alone['val']) < tol


# other people's blocks: names, shapes and code as in the libraries, sizes for a test

class Conv1D(nn.Module):
    "As transformers has it for GPT-2: a linear layer with its weight the other way round."
    def __init__(self, nf, nx):
        super().__init__()
        self.nf,self.nx = nf,nx
        self.weight,self.bias = nn.Parameter(torch.randn(nx, nf)*.2),nn.Parameter(torch.randn(nf)*.1)
    def forward(self, x): return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(x.size()[:-1] + (self.nf,))


class GPT2Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads,self.head_dim,self.split_size = heads,width//heads,width
        self.c_attn,self.c_proj = Conv1D(3*width, width),Conv1D(width, width)
    def forward(self, x):
        q,k,v = (o.view((*o.shape[:-1], -1, self.head_dim)).transpose(1,2) for o in self.c_attn(x).split(self.split_size, dim=2))
        weights = q@k.transpose(-1,-2)/math.sqrt(self.head_dim)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() # a plain tensor between parts
        weights = torch.where(mask, weights, torch.finfo(weights.dtype).min).softmax(-1)
        out = (weights@v).transpose(1,2)
        return self.c_proj(out.reshape(*out.shape[:-2], -1))


class GPT2Block(nn.Module):
    def __init__(self, width=16, heads=4):
        super().__init__()
        self.ln_1,self.ln_2,self.attn,self.mlp = nn.LayerNorm(width),nn.LayerNorm(width),GPT2Attention(width, heads),nn.Module()
        self.mlp.c_fc,self.mlp.c_proj = Conv1D(4*width, width),Conv1D(width, 4*width)
    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))


class LlamaAttention(nn.Module):
    "Grouped queries and rotary positions."
    def __init__(self, width, heads, kv):
        super().__init__()
        self.head_dim,self.num_key_value_groups = width//heads,heads//kv
        self.q_proj,self.k_proj,self.v_proj = nn.Linear(width, width, bias=False),nn.Linear(width, kv*self.head_dim, bias=False),nn.Linear(width, kv*self.head_dim, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
    def forward(self, x, cos, sin):
        shape = (*x.shape[:-1], -1, self.head_dim)
        q,k,v = (p(x).view(shape).transpose(1,2) for p in (self.q_proj,self.k_proj,self.v_proj))
        turned = lambda o: torch.cat((-o[...,o.shape[-1]//2:], o[...,:o.shape[-1]//2]), -1)
        q,k = (o*cos + turned(o)*sin for o in (q,k))
        b,h,t,d = k.shape
        k,v = (o[:,:,None].expand(b, h, self.num_key_value_groups, t, d).reshape(b, h*self.num_key_value_groups, t, d) for o in (k,v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1,2).reshape(*x.shape[:-1], -1))


class LlamaBlock(nn.Module):
    def __init__(self, width=16, heads=4, kv=2):
        super().__init__()
        self.input_layernorm,self.post_attention_layernorm = nn.RMSNorm(width),nn.RMSNorm(width)
        self.self_attn,self.mlp = LlamaAttention(width, heads, kv),nn.Module()
        self.mlp.gate_proj,self.mlp.up_proj,self.mlp.down_proj = nn.Linear(width, 24, bias=False),nn.Linear(width, 24, bias=False),nn.Linear(24, width, bias=False)
    def forward(self, x):
        angle = torch.arange(x.shape[1])[:,None]*torch.tensor([1.,.1]).repeat(2)
        x = x + self.self_attn(self.input_layernorm(x), angle.cos(), angle.sin())
        h = self.post_attention_layernorm(x)
        return x + self.mlp.down_proj(F.silu(self.mlp.gate_proj(h))*self.mlp.up_proj(h))


class TitanBlock(nn.Module):
    "torchtitan's names."
    def __init__(self, width=16, heads=4):
        super().__init__()
        self.attention,self.feed_forward,self.attention_norm,self.ffn_norm = nn.Module(),nn.Module(),nn.RMSNorm(width),nn.RMSNorm(width)
        a,f = self.attention,self.feed_forward
        a.n_heads,a.head_dim = heads,width//heads
        a.wq,a.wk,a.wv,a.wo = (nn.Linear(width, width, bias=False) for _ in range(4))
        f.w1,f.w2,f.w3 = nn.Linear(width, 32, bias=False),nn.Linear(32, width, bias=False),nn.Linear(width, 32, bias=False)
    def forward(self, x):
        a,f,h = self.attention,self.feed_forward,self.attention_norm(x)
        q,k,v = (w(h).view(*x.shape[:2], -1, a.head_dim).transpose(1,2) for w in (a.wq,a.wk,a.wv))
        x = x + a.wo(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1,2).contiguous().view(*x.shape[:2], -1))
        h = self.ffn_norm(x)
        return x + f.w2(F.silu(f.w1(h))*f.w3(h))


class OddBlock(Block):
    "A fused projection used in a way that no plan foresees: right, if not fast. And a norm inside of a pair."
    def __init__(self, width=16, heads=4):
        super().__init__(width, heads)
        self.inner = nn.LayerNorm(4*width)
    def attention(self, x):
        b,t,w = x.shape
        q,k,v = self.qkv(x).view(b,t,3,self.heads,-1).permute(2,0,3,1,4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1,2).reshape(b,t,w))
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.inner(F.gelu(self.up(self.norm2(x)))))


class Words(nn.Module):
    "Any blocks between an embedding, perhaps tied, and a head; a parameter of its own, too."
    def __init__(self, block, words=WORDS, tied=False):
        super().__init__()
        self.embed,self.first,self.layers = nn.Embedding(words, 16),nn.Parameter(torch.randn(16)*.1),nn.ModuleList([block(),block()])
        self.lm_head = nn.Linear(16, words, bias=False)
        if tied: self.lm_head.weight = self.embed.weight
    def forward(self, x):
        x = self.embed(x) + self.first
        for b in self.layers: x = b(x)
        return self.lm_head(x)


def encoder_block(): return nn.TransformerEncoderLayer(16, 4, 32, dropout=0., batch_first=True)
def sequential_block(): return nn.Sequential(nn.LayerNorm(16), nn.Sequential(nn.Linear(16,32), nn.GELU(), nn.Linear(32,16)))

FAMILIES = dict(gpt=GPT, tied=lambda: GPT(tied=True), gpt2=lambda: Words(GPT2Block, tied=True), gpt2_odd=lambda: Words(GPT2Block, words=21), llama=lambda: Words(LlamaBlock), titan=lambda: Words(TitanBlock),
    odd=lambda: Words(OddBlock), encoder=lambda: Words(encoder_block), sequential=lambda: Words(sequential_block))


def jobs_of(jobs):
    "The results of several trainings on one launch."
    return [result(train(b, sizes, **kw)) for b,sizes,kw in jobs]


def check_jobs(nprocs, jobs, tol=1e-5):
    found = launch(jobs_of, jobs, nprocs=nprocs, timeout=400)
    for i,(b,sizes,kw) in enumerate(jobs):
        alone = result(train(b*sizes.get('dp',1)*sizes.get('shard',1), **kw))
        try: same([f[i] for f in found], alone, tol)
        except AssertionError as e: raise AssertionError(f'{sizes} {kw}: {e}') from e


def test_every_family_is_one_process_in_two_parts():
    check_jobs(2, [(8, dict(tp=2), dict(make=make, epochs=1, clip=.5)) for make in FAMILIES.values()])


def test_dimensions_together_are_one_process():
    check_jobs(4, [(4, dict(dp=2,tp=2), dict(clip=.5)), (2, dict(dp=2,tp=2), dict(accumulate=2, epochs=1)), (4, dict(shard=2,tp=2), dict(clip=.5)),
        (2, dict(shard=2,tp=2), dict(accumulate=2, clip=.5, epochs=1)), (8, dict(tp=4), dict(epochs=1)), (2, dict(dp=2,shard=2), dict(clip=.5, epochs=1)), (4, dict(dp=2,pp=2), dict(epochs=1)), (4, dict(dp=2,cp=2), dict(epochs=1))])


def test_two_processes_of_each_kind_and_adamw():
    unbiased = lambda: Words(LlamaBlock) # a bias of keys has no gradient but noise, which AdamW makes large
    check_jobs(2, [(4, dict(dp=2), dict(clip=.5)), (4, dict(shard=2), dict(clip=.5)), (8, dict(tp=2, apart=True), dict(accumulate=2)), (8, dict(tp=2), dict(make=unbiased, opt=torch.optim.AdamW, lr=1e-3, clip=.5)), (8, dict(pp=2), dict(epochs=1))], 3e-5)


# states

def saved(sizes, folder, resume=None, epochs=2, batch_size=8):
    t = Trainer((torch.manual_seed(1), Words(LlamaBlock, tied=True))[1], data(batch_size), loss=words_loss, opt=torch.optim.AdamW, lr=1e-3, parallel=Mesh(**sizes) if sizes else None)
    if resume: t.load(resume)
    t.fit(epochs=epochs)
    if folder: t.save(Path(folder)/'one')
    return dict(state=t.parallel.model_state(t.model), optimizer=t.parallel.optimizer_state(t.model, t.optimizer), loss=t.history.steps('loss')[1], step=t.step)


def test_a_checkpoint_of_any_mesh_goes_on_with_any_other(tmp_path):
    "Saved on tp 2 x shard 2, gone on with alone and on tp 2; saved alone, gone on with on the mesh."
    straight = saved(None, None, epochs=2)
    launch(saved, dict(tp=2,shard=2), str(tmp_path/'mesh'), epochs=1, batch_size=4, nprocs=4, timeout=200)
    saved(None, tmp_path/'alone', epochs=1)
    ways = [saved(None, None, resume=tmp_path/'mesh'/'one', epochs=1), launch(saved, dict(tp=2), None, resume=str(tmp_path/'mesh'/'one'), epochs=1, nprocs=2, timeout=200)[0],
        launch(saved, dict(tp=2,dp=2), None, resume=str(tmp_path/'alone'/'one'), epochs=1, batch_size=4, nprocs=4, timeout=200)[0]]
    for way in ways:
        assert way['step'] == straight['step']
        for k,v in straight['state'].items(): torch.testing.assert_close(way['state'][k], v, rtol=1e-3, atol=2e-5)
        for i,s in straight['optimizer']['state'].items():
            for k,v in s.items(): torch.testing.assert_close(way['optimizer']['state'][i][k], v, rtol=1e-2, atol=2e-5)


def test_dropout_outside_of_parts_is_the_same_everywhere():
    def work():
        t = train(8, dict(tp=2), make=lambda: GPT(drop=.3), epochs=2)
        from torch.distributed.tensor import Replicate
        return {n: p.to_local().detach() for n,p in t.model.named_parameters() if p.placements == (Replicate(),)}, t.history.steps('loss')[1]
    (a,la),(b,lb) = launch(work, nprocs=2, timeout=200)
    assert la == lb and set(a) == set(b) and any('norm' in n for n in a)
    for n in a: assert torch.equal(a[n], b[n]), n


def test_everybody_starts_with_the_weights_of_process_0():
    def work():
        import torch.distributed as dist
        torch.manual_seed(dist.get_rank())
        t = Trainer(GPT(), data(8), loss=words_loss, parallel=Mesh(tp=2))
        t.setup()
        return t.parallel.whole(t.model.state_dict())
    torch.manual_seed(0)
    start = GPT().state_dict()
    for got in launch(work, nprocs=2, timeout=200):
        for k,v in start.items(): assert torch.equal(got[k], v), k


def test_a_plan_of_the_user():
    "Words, and torch's own styles, whose code has to know the shapes of parts."
    def work():
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
        out = []
        for plan in ({'blocks.*.up': 'columns', 'blocks.*.down': 'rows'}, {'blocks.*.up': ColwiseParallel(), 'blocks.*.down': RowwiseParallel()}, {'blocks.*.qkv': 'columns', 'blocks.*.out': 'rows'}):
            out.append(result(train(8, dict(tp=2, plan=plan), epochs=1)))
        return out
    alone = result(train(8, epochs=1))
    found = launch(work, nprocs=2, timeout=200)
    for i in range(3): same([f[i] for f in found], alone)


def test_a_word_that_is_not_in_the_vocabulary():
    def work():
        t = Trainer(GPT(), data(8), loss=words_loss, parallel=Mesh(tp=2))
        t.setup()
        try: t.model(torch.full((1,LONG), WORDS))
        except RuntimeError as e: return str(e)
    assert all('out of range' in said for said in launch(work, nprocs=2, timeout=200))


@pytest.mark.server
def test_families_of_transformers(tmp_path):
    "The models themselves, where the libraries are installed; torchrun starts the processes."
    from tests import house
    from tests.bench import peers
    try: python = peers.python_of('libraries')
    except (RuntimeError, OSError) as e: pytest.skip(f'transformers cannot be installed here: {e}')
    env = dict(os.environ, PYTHONPATH=str(house.root), HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path), OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false')
    p = subprocess.run([python, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'tests.meshes_interop'], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert p.returncode == 0 and 'all equal' in p.stdout, p.stdout[-1000:] + p.stderr[-3000:]


# what cannot be

@pytest.mark.parametrize('kw,said', [(dict(heads=6), '6 = 4 x 1 + 2'), (dict(kv_heads=2), '2 = 4 x 0 + 2'), (dict(hidden=30), '30 = 4 x 7 + 2'), (dict(sequence=1026), '1026 = 4 x 256 + 2'), (dict(batch=9), '9 = 4 x 2 + 1'), (dict(layers=1), 'too few for pp 2')])
def test_check(kw, said):
    with pytest.raises(MeshError, match=said.replace('+', r'\+')): Mesh(dp=2, shard=2, tp=4, pp=2, cp=2).check(**kw)


@pytest.mark.parametrize('sizes,said', [(dict(dp=2, tp=2, pp=2), 'pp 2 and tp 2 do not go together yet: a stage of a pipeline keeps its layers whole'), (dict(dp=2, tp=2, pp=2), 'make of these 8 processes tp 2 x dp 4, or pp 2 x dp 4'),
    (dict(shard=2, cp=4), 'make of these 8 processes shard 2 x dp 4, or cp 4 x dp 2'), (dict(shard=2, tp=2, cp=2), 'shard 2 and cp 2 and tp 2'), (dict(pp=2, cp=2), 'pp 2 and cp 2')])
def test_what_does_not_go_together_is_refused_before_anybody_is_waited_for(sizes, said):
    with pytest.raises(MeshError) as e: Trainer(GPT(), data(8), loss=words_loss, parallel=Mesh(**sizes))
    assert said in str(e.value).replace('Make', 'make')


def test_plans_that_cannot_be():
    from mlstack.ddp.plans import PlanError, plan_for
    for make,tp,said in [(lambda: Words(LlamaBlock), 4, '2 heads of keys and values'), (lambda: GPT(heads=2), 4, '2 heads'), (lambda: Words(sequential_block), 5, '32 hidden features'), (lambda: nn.Sequential(nn.Linear(3,4)), 2, 'nothing in Sequential')]:
        with pytest.raises(PlanError, match=said): plan_for(make(), tp)
    plan = plan_for(Words(encoder_block), 2)
    assert plan.styles['layers.0.self_attn'][0] == 'whole' and 'one call' in repr(plan) and plan.styles['layers.1.linear2'][0] == 'rows'


def test_too_many_processes_for_the_gpus():
    def work():
        torch.distributed.barrier() # who returns at once leaves the others at the door
        torch.cuda.is_available,torch.cuda.device_count = lambda: True,lambda: 1
        try: return Mesh(dp=2).rank
        except MeshError as e: return str(e)
    assert all('has 1 GPUs' in said for said in launch(work, nprocs=2, backend='gloo', timeout=200))


def test_a_mesh_is_a_description_until_there_are_processes():
    import cloudpickle
    import pickle
    mesh = Mesh(dp=2, tp=2)
    again = pickle.loads(cloudpickle.dumps(mesh))
    assert repr(again) == repr(mesh) == 'Mesh(dp=2, tp=2): dp 2 x tp 2 = 4' and again.size == 4
    with pytest.raises(MeshError, match='launch'): Trainer(GPT(), data(8), loss=words_loss, parallel=mesh)
