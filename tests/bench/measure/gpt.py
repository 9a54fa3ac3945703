"A GPT in 30 lines, the same for every row: what nanoGPT has, with the head tied to the embedding."
import torch.nn.functional as F
from torch import nn

class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.ln1, self.ln2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3*width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4*width), nn.GELU(), nn.Linear(4*width, width))
    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, self.heads, d//self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.ln2(x))

class GPT(nn.Module):
    def __init__(self, vocabulary=50304, context=1024, layers=12, heads=12, width=768):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks, self.ln = nn.ModuleList(Block(width, heads) for _ in range(layers)), nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(self.begin)
        self.head.weight = self.tokens.weight
        self.layers, self.width, self.context = layers, width, context
    def begin(self, m):
        if isinstance(m, (nn.Linear, nn.Embedding)): nn.init.normal_(m.weight, std=.02)
        if isinstance(m, nn.Linear) and m.bias is not None: nn.init.zeros_(m.bias)
    def forward(self, ids):
        x = self.tokens(ids) + self.places.weight[:ids.shape[1]]
        for block in self.blocks: x = block(x)
        return self.head(self.ln(x))
    def flops(self, tokens):
        "Operations a token, forward and backward: 6 for each parameter but the positions, 12 a layer for attention."
        n = sum(p.numel() for p in self.parameters()) - self.places.weight.numel()
        return 6*n + 12*self.layers*self.width*tokens

def next_token(logits, ids): return F.cross_entropy(logits.flatten(0, 1), ids.flatten())
