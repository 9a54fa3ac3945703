"""equality.py PARALLEL [--ranks 2] [--items 96] [--accumulate 1] [--clip X]: a small GPT trained for 4 epochs on several processes (gloo) and on one with the same global batch; how far are the weights from each other?
PARALLEL is what Trainer(parallel=) gets (ddp, fsdp, "Mesh(tp=2)", …), or raw: DistributedDataParallel in a loop by hand. The answer is the largest difference of a parameter, of a loss of a step, and of the validation loss."""
import argparse, json, os
import torch, torch.nn as nn, torch.nn.functional as F

words, long, size = 20, 8, 12  # the global batch

class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3*width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4*width), nn.Linear(4*width, width)
    def attention(self, x):
        b, t, w = x.shape
        q, k, v = (o.view(b, t, self.heads, -1).transpose(1, 2) for o in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, w))
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

class GPT(nn.Module):
    def __init__(self, width=16, layers=4, heads=4):
        super().__init__()
        self.tok, self.pos = nn.Embedding(words, width), nn.Embedding(long, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
    def forward(self, x): return self.head(self.norm(self.blocks(self.tok(x) + self.pos.weight[:x.shape[1]])))

def loss(out, y): return F.cross_entropy(out.flatten(0, 1), y.flatten())
def momentum(params, lr): return torch.optim.SGD(params, lr, momentum=.9)

def tensors(items, valid=13):
    x = torch.randint(words, (items + valid, long), generator=torch.Generator().manual_seed(5))
    y = (x*3 + 1) % words
    return (x[:items], y[:items]), (x[items:], y[items:])

def fit(parallel, ranks, items, accumulate, clip):
    "Weights, losses and validation loss of this process. The shares of the data are parallel.world_size, which is known when it is made."
    from mlstack.trainer import Data, Trainer
    torch.set_num_threads(1)
    torch.manual_seed(1)
    if parallel == 'raw': return by_hand(items)
    if parallel and '(' in parallel:
        from mlstack.ddp.meshes import Mesh
        parallel = eval(parallel, dict(Mesh=Mesh))
    t = Trainer(GPT(), None, loss=loss, opt=momentum, lr=.1, accumulate=accumulate, clip=clip, parallel=parallel)
    shares = t.parallel.world_size
    t = Trainer(GPT(), Data.from_tensors(*tensors(items), batch_size=size//shares//accumulate, drop_last=False), loss=loss, opt=momentum, lr=.1, accumulate=accumulate, clip=clip, parallel=t.parallel)
    torch.manual_seed(1)
    t.model.load_state_dict(GPT().state_dict())
    t.fit(epochs=4)
    losses, found = t.history.steps()[1], t.validate()['val_loss']
    state = t.parallel.model_state(t.model)  # together; only the main process gets all of it
    return {k: v.clone() for k, v in state.items()} if t.parallel.main else None, losses, found

def by_hand(items):
    import torch.distributed as dist
    from mlstack.trainer import Data
    rank, n = dist.get_rank(), dist.get_world_size()
    model = GPT()
    ddp, (train, valid) = nn.parallel.DistributedDataParallel(model), tensors(items)
    data, opt, losses = Data.from_tensors(train, valid, batch_size=size//n, drop_last=False), momentum(model.parameters(), .1), []
    for epoch in range(4):
        for x, y in data.train.train(0, epoch, 0, rank, n):
            value = loss(ddp(x), y)
            value.backward()
            opt.step()
            opt.zero_grad()
            dist.all_reduce(value := value.detach()/n)
            losses.append(value.item())
    with torch.no_grad(): return model.state_dict(), losses, loss(model(valid[0]), valid[1]).item()

def far(a, b): return max((abs(p - q) for p, q in zip(a, b, strict=True)), default=0.)

if __name__ == '__main__':
    parse = argparse.ArgumentParser()
    parse.add_argument('parallel')
    parse.add_argument('--ranks', type=int, default=2)
    parse.add_argument('--items', type=int, default=96)
    parse.add_argument('--accumulate', type=int, default=1)
    parse.add_argument('--clip', type=float)
    args = parse.parse_args()
    os.environ['MLSTACK_PROGRESS'] = 'no'
    from mlstack.ddp import launch
    alone = fit(None, 1, args.items, args.accumulate, args.clip)
    found = launch(fit, args.parallel, args.ranks, args.items, args.accumulate, args.clip, nprocs=args.ranks, timeout=250, output='none')
    print(json.dumps(dict(weights=max((found[0][0][k] - w).abs().max().item() for k, w in alone[0].items()), loss=max(far(losses, alone[1]) for _, losses, _ in found),
        valid=max(abs(v - alone[2]) for _, _, v in found), steps=len(alone[1]))))
