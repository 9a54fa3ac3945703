"What a plan says against what torch's own profiler counts when the step really runs, on the CPU; the figures of a real GPU are in the lesson."
import functools, gc, itertools, json
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from mlstack.core import MlstackError
from mlstack.hardware import card, plan

def counted(make, batch, loss, optimizer, tmp_path):
    "The most that was allocated at one time, from the model's making to the end of the second step."
    gc.collect()  # what an earlier test left would be freed in here
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        model, batch = make(), tuple(t.clone() for t in batch)
        opt = optimizer(model.parameters())
        for _ in range(2):
            loss(model(batch[0]), batch[1]).backward()
            opt.step()
            opt.zero_grad()
    p.export_chrome_trace(str(tmp_path/'trace.json'))
    events = [e for e in json.loads((tmp_path/'trace.json').read_text())['traceEvents'] if e.get('name') == '[memory]']
    return max(itertools.accumulate(e['args']['Bytes'] for e in sorted(events, key=lambda e: e['ts'])))

def mlp(): return nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.GELU(), nn.LayerNorm(1024), nn.Linear(1024, 10))
def words(): return nn.Sequential(nn.Embedding(5000, 128), nn.Linear(128, 512), nn.Tanh(), nn.Linear(512, 5000), nn.Flatten(0, 1))
def tied():
    m = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    m[2].weight = m[0].weight
    return m

adamw, sgd = functools.partial(torch.optim.AdamW, fused=True), functools.partial(torch.optim.SGD, lr=.1, momentum=.9, fused=True)
cases = dict(mlp=(mlp, (torch.randn(512, 256), torch.zeros(512).long()), F.cross_entropy), words=(words, (torch.zeros(8, 64).long(), torch.zeros(512).long()), F.cross_entropy),
    tied=(tied, (torch.randn(256, 512), torch.randn(256, 512)), F.mse_loss))

@pytest.mark.parametrize('optimizer', [adamw, sgd], ids=['adamw', 'sgd'])
@pytest.mark.parametrize('case', cases)
def test_peak_is_what_the_profiler_counts(case, optimizer, tmp_path):
    make, batch, loss = cases[case]
    p = plan(make(), batch, loss, optimizer=optimizer, precision='fp32')
    real, said = counted(make, batch, loss, optimizer, tmp_path), p.peak-p.parts['workspace']
    assert abs(said/real-1) < .03, (said, real)

def test_flops_are_those_of_torch():
    from torch.utils.flop_counter import FlopCounterMode
    make, batch, loss = cases['mlp']
    model = make()
    with FlopCounterMode(display=False) as counter: loss(model(batch[0]), batch[1]).backward()
    assert plan(model, batch, loss).flops == counter.get_total_flops()

def test_nothing_of_the_model_changes():
    make, batch, loss = cases['words']
    model = make()
    before, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    plan(model.eval(), batch, loss)
    assert not model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in model.parameters())

def test_a_model_on_meta_can_be_planned_again():
    with torch.device('meta'): model = mlp()
    x = torch.empty(64, 256, device='meta')
    a, b = (plan(model, (x, torch.empty(64, device='meta').long()), F.cross_entropy, precision='bf16', gpu='A100') for _ in range(2))
    assert a.peak == b.peak and a.step_time == b.step_time and all(p.grad is None for p in model.parameters())

def test_largest_batch_is_the_largest():
    gpu = card('T4')._replace(memory=1.3)  # 100 MB to use
    make, batch, loss = cases['mlp']
    p = plan(make(), batch, loss, precision='fp32', gpu=gpu)
    n, room = p.largest, gpu.memory*1e9-1.2e9
    peak = lambda n: plan(make(), tuple(t[:1].expand(n, *t.shape[1:]).contiguous() for t in batch), loss, precision='fp32', gpu=gpu).peak
    assert n > 0 and peak(n) <= room and peak(n+n//64+2) > room

def test_dict_batches_and_models_that_return_their_loss():
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.l = nn.Linear(8, 3)
        def forward(self, x, labels): return dict(loss=F.cross_entropy(self.l(x), labels))
    p = plan(Own(), dict(x=torch.randn(4, 8), labels=torch.zeros(4).long()))
    assert p.flops and not p.assumed
    frozen = nn.Linear(8, 3).requires_grad_(False)
    with pytest.raises(MlstackError, match='no parameter'): plan(frozen, (torch.randn(4, 8), torch.zeros(4).long()))

@pytest.mark.gpu
def test_peak_on_the_gpu_that_is_there():
    make, batch, loss = cases['words']
    said = plan(make(), batch, loss, optimizer=adamw, precision='fp32').peak
    model, batch = make().cuda(), [t.cuda() for t in batch]
    opt = adamw(model.parameters())
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        loss(model(batch[0]), batch[1]).backward()
        opt.step(); opt.zero_grad()
    assert abs(said/torch.cuda.max_memory_allocated()-1) < .05
