"compile.py HOW: CPU seconds of this process and its children to the second step of a small GPT, for one of eager, whole, blocks (torch alone), mlstack (by block), mlstack_whole."
import json, os, resource, sys, tempfile, time, warnings
how = sys.argv[1]
folder = tempfile.TemporaryDirectory()
os.environ.update(TORCHINDUCTOR_CACHE_DIR=folder.name, TORCHINDUCTOR_COMPILE_THREADS='1', TRITON_CACHE_DIR=folder.name)
warnings.filterwarnings('ignore')
import torch
from gpt import GPT, next_token

def spent(): return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

torch.set_num_threads(1)
torch.manual_seed(0)
ids = torch.randint(0, 256, (4, 65))
batch, steps = (ids[:, :-1], ids[:, 1:]), 2
from torch._dynamo.utils import counters  # what every optimizer imports is in no row
if how.startswith('mlstack'): from mlstack.trainer import Trainer
began, cpu = time.perf_counter(), spent()
model = GPT(256, 64, 12, 4, 64)
if how.startswith('mlstack'):
    t = Trainer(model, [batch]*steps, loss=next_token, lr=1e-3, compile='whole' if how.endswith('whole') else 'blocks', seed=0)
    t.fit(steps=steps)
    losses = t.history.steps()[1]
else:
    opt, losses = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True), []
    if how == 'whole': model.compile()
    if how == 'blocks':
        for b in model.blocks: b.compile()
    for _ in range(steps):
        loss = next_token(model(batch[0]), batch[1])
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
print(json.dumps(dict(cpu=spent() - cpu, wall=time.perf_counter() - began, graphs=counters['stats']['unique_graphs'], loss=losses[-1])))
folder.cleanup()
