"""planning.py real|mlstack|accelerate|deepspeed|memtracker: the peak of a training step of GPT-2 124M as it was measured on an H100, and as it is predicted here, without one.
accelerate and DeepSpeed know the parameters only, so they say the same for every batch; MemTracker is torch's, on fake tensors of the CPU, with nothing corrected."""
import json, sys, time
import torch
from gpt import GPT, next_token

gib = 2**30
# GiB, torch 2.11, torch.cuda.max_memory_allocated, 1,024 tokens, AdamW: measured on one H100 before this project's notes on resources were written (section 8)
real = {'fp32, B=8': 10.61, 'fp32, B=16': 19.78, 'fp32, B=32': 38.09, 'bf16, B=8': 8.10, 'bf16, B=16': 14.52, 'bf16, B=32': 27.34, 'bf16, compiled, B=32': 15.1}

def parts(label):
    precision, *compiled, batch = label.split(', ')
    return precision, bool(compiled), int(batch[2:])

def step(batch, device='meta'):
    with torch.device(device): return GPT(), torch.empty(batch, 1024, dtype=torch.long)

def mlstack(precision, compiled, batch):
    from mlstack.hardware import plan
    model, x = step(batch)
    return plan(model, (x, x), next_token, precision='tf32' if precision == 'fp32' else precision, compiled=compiled, gpu='H100').peak

def accelerate(precision, compiled, batch):
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes
    total, _ = calculate_maximum_sizes(step(1)[0])
    return max(estimate_training_usage(total, 'float32' if precision == 'fp32' else 'bfloat16').values())

def deepspeed(precision, compiled, batch):
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
    return estimate_zero2_model_states_mem_needs(sum(p.numel() for p in step(1)[0].parameters()), num_gpus_per_node=1, num_nodes=1, cpu_offload=False)[1]

def memtracker(precision, compiled, batch):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, x = step(batch, 'cpu')
        opt, tracker = torch.optim.AdamW(model.parameters(), foreach=True), MemTracker()
        tracker.track_external(model, opt)
        with tracker:
            for i in range(2):
                with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bf16'): loss = next_token(model(x), x)
                loss.backward()
                opt.step()
                opt.zero_grad()
                if i == 0: tracker.reset_mod_stats()
        return sum(o['Total'] for o in tracker.get_tracker_snapshot('peak').values())

if __name__ == '__main__':
    who = sys.argv[1]
    torch.set_num_threads(1)
    said, began = {}, time.process_time()
    for label in real: said[label] = real[label] if who == 'real' else globals()[who](*parts(label))/gib
    took = (time.process_time() - began)/len(real)
    sizes = {}
    if who == 'mlstack':
        for name, layers, width in (('seven', 32, 4096), ('seventy', 80, 8192)):
            began = time.process_time()
            with torch.device('meta'): model, x = GPT(layers=layers, width=width, heads=width//128), torch.empty(1, 1024, dtype=torch.long)
            from mlstack.hardware import plan
            plan(model, (x, x), next_token, precision='bf16', gpu='H100')
            sizes[name] = time.process_time() - began
    worst = {kind: max(abs(said[k]/real[k] - 1)*100 for k in real if k.startswith(kind) and 'compiled' not in k) for kind in ('fp32', 'bf16')}
    print(json.dumps(said | ({} if who == 'real' else dict(fp32=worst['fp32'], bf16=worst['bf16'], compiled=abs(said['bf16, compiled, B=32']/15.1 - 1)*100, seconds=took) | sizes)))
