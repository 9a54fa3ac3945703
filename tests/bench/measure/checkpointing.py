"""checkpointing.py plain|recompute|cpu|disk: memory of a training step of a GPT of 12 blocks, with its activations kept, computed again or put away; and what hardware.plan says of it beforehand.
On a GPU the peak of torch's allocator; else the peak of the process (resident) beyond what it held before the model was made."""
import json, os, resource, subprocess, sys, time
import torch
from gpt import GPT, next_token

how = sys.argv[1]
device = 'cuda' if torch.cuda.is_available() else 'cpu'
sizes = dict(vocabulary=50304, context=1024, layers=12, heads=12, width=768) if device == 'cuda' else dict(vocabulary=2000, context=256, layers=12, heads=8, width=256)
batch = 16 if device == 'cuda' else 8

def resident():
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*os.sysconf('SC_PAGE_SIZE')

def peak():
    if device == 'cuda': return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024

def step(model, opt, ids):
    next_token(model(ids), ids).backward()
    opt.step()
    opt.zero_grad()

def run(model, ids, steps):
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for _ in range(steps): step(model, opt, ids)  # in the second the optimizer has its states

if __name__ == '__main__':
    if 'MALLOC_MMAP_THRESHOLD_' not in os.environ:  # memory that is let go leaves the process at once
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=os.environ | dict(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536')).returncode)
    from mlstack.ddp import checkpoint_activations
    from mlstack.hardware import plan
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(0, sizes['vocabulary'], (batch, sizes['context']))
    model = GPT(**sizes)
    if how != 'plain': checkpoint_activations(model, to=how)
    p = plan(model, (ids, ids), lambda out, y: next_token(out, y), precision='fp32')
    predicted = p.peak - p.parts['workspace']
    del model
    tiny = GPT(vocabulary=100, context=32, layers=1, heads=1, width=32).to(device)
    run(tiny, torch.zeros(2, 32, dtype=torch.long, device=device), 2)  # what libraries take once
    before = 0 if device == 'cuda' else resident()
    if device == 'cpu': assert peak() - before < 40 << 20, 'planning took memory'
    model, ids = GPT(**sizes).to(device), ids.to(device)
    if how != 'plain': checkpoint_activations(model, to=how)
    start = time.process_time()
    run(model, ids, 2)
    seconds = (time.process_time() - start)/2
    got = peak() - before
    print(json.dumps(dict(measured=got/2**20, predicted=predicted/2**20, error=100*(predicted/got - 1), step=seconds, parts={k: round(v/2**20) for k, v in p.parts.items()})))
