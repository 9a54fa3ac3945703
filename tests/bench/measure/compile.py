"compile.py HOW: CPU seconds to the first step of a 12-block GPT (width 64), for one of eager, blocks, whole; in a cold process with an empty cache of the compiler."
import json, os, sys, tempfile
how = sys.argv[1]
os.environ.update(TORCHINDUCTOR_CACHE_DIR=tempfile.mkdtemp(), MLSTACK_PROGRESS='no')
os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '1')  # so that the process's own time is all of it, but for the C++ compiler's, which are its children
import torch, torch.nn as nn, torch.nn.functional as F
from mlstack.trainer import Data, Trainer

torch.set_num_threads(1)

class Block(nn.Module):
    def __init__(self, width, heads=4):
        super().__init__()
        self.heads, self.n1, self.n2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3*width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4*width), nn.Linear(4*width, width)
    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d//self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.n2(x))))

class GPT(nn.Module):
    def __init__(self, depth=12, width=64, words=256, length=64):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks, self.norm, self.head = nn.ModuleList(Block(width) for _ in range(depth)), nn.LayerNorm(width), nn.Linear(width, words, bias=False)
    def forward(self, x):
        x = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks: x = block(x)
        return self.head(self.norm(x)).flatten(0, 1)

def cpu(): return sum(os.times()[:4])  # with children: g++

words = torch.randint(0, 256, (64, 65), generator=torch.Generator().manual_seed(0))
t = Trainer(GPT(), Data.from_tensors((words[:, :-1], words[:, 1:]), batch_size=8), lambda out, y: F.cross_entropy(out, y.flatten()), compile=False if how == 'eager' else how)
start = cpu()
t.fit(steps=1)
first, graphs = cpu() - start, getattr(t.modes, 'graphs', 0)
start = cpu()
t.fit(steps=20)
assert t.mode == ('eager' if how == 'eager' else 'compiled'), t.explain()
print(json.dumps(dict(first=first, step=1e3*(cpu() - start)/20, graphs=graphs, loss=t.history.steps()[1][0])))
