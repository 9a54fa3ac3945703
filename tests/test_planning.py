"What a plan says against what torch's own profiler counts when the step really runs, on the CPU; the figures of a real GPU are in the lesson."
import functools, gc, itertools, json, pickle, types
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from mlstack.core import MlstackError
from mlstack.hardware import card, plan
from mlstack.hardware.cards import Card

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

class Residual(nn.Module):
    def __init__(self, width): super().__init__(); self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
    def forward(self, x): return F.relu(self.norm(self.conv(x)), inplace=True) + x

def convolutions(): return nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), Residual(16), Residual(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

class Recurrent(nn.Module):
    def __init__(self): super().__init__(); self.words, self.lstm, self.head = nn.Embedding(500, 32), nn.LSTM(32, 64, 2, batch_first=True), nn.Linear(64, 10)
    def forward(self, x): return self.head(self.lstm(self.words(x))[0][:, -1])

class Attending(nn.Module):
    def __init__(self, heads=4): super().__init__(); self.heads, self.qkv, self.head = heads, nn.Linear(64, 192), nn.Linear(64, 10)
    def forward(self, x, mask=None):
        q, k, v = (o.unflatten(-1, (self.heads, -1)).transpose(1, 2) for o in self.qkv(x).chunk(3, -1))
        return self.head(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2).mean(1))

on_cpu = dict(convolutions=(convolutions, (torch.randn(4, 3, 64, 64), torch.zeros(4).long())), lstm=(Recurrent, (torch.zeros(8, 24).long(), torch.zeros(8).long())), attention=(Attending, (torch.randn(16, 64, 64), torch.zeros(16).long())))

@pytest.mark.parametrize('optimizer', [adamw, sgd], ids=['adamw', 'sgd'])
@pytest.mark.parametrize('case', on_cpu)
def test_kernels_of_the_cpu_are_what_the_profiler_counts(case, optimizer, tmp_path):
    make, batch = on_cpu[case]
    said = plan(make(), batch, F.cross_entropy, optimizer=optimizer, precision='fp32', gpu='cpu')
    with torch.backends.mkldnn.flags(enabled=case != 'lstm'): real = counted(make, batch, F.cross_entropy, optimizer, tmp_path)
    assert said.step_time is None and abs(said.peak/real-1) < .03, (said, real)


chosen = dict(topk=lambda y: y.topk(16, 1)[0].mean(1), max=lambda y: y.max(1)[0], gather=lambda y: y.gather(1, torch.zeros_like(y).long()).mean(1), index=lambda y: y[:, torch.zeros(32, device=y.device).long()].mean(1), scatter=lambda y: torch.scatter_add(torch.zeros_like(y), 1, torch.zeros_like(y).long(), y).mean(1))

@pytest.mark.parametrize('what', chosen)
def test_what_a_choice_gives_back_is_written_once(what, tmp_path):
    class Choosing(nn.Module):
        def __init__(self): super().__init__(); self.q, self.head = nn.Linear(128, 128), nn.Linear(128, 10)
        def forward(self, x): return self.head(chosen[what](self.q(x)))
    batch = torch.randn(16, 64, 128), torch.zeros(16).long()
    real, said = counted(Choosing, batch, F.cross_entropy, adamw, tmp_path), plan(Choosing(), batch, F.cross_entropy, optimizer=adamw, precision='fp32', gpu='cpu')
    assert abs(said.peak/real-1) < .03, (said, real)


# Ways to train

def test_gradients_stay_while_batches_are_accumulated():
    make, batch, loss = cases['mlp']
    p = plan(make(), batch, loss, precision='fp32', gpu='H100')
    q = p.but(accumulate=4)
    assert q.parts['gradients'] >= q.parts['weights'] > p.parts.get('gradients', 0) and q.many == 4
    assert q.flops == 4*p.flops and 2*p.step_time < q.step_time < 4*p.step_time and p.but(set_to_none=False).peak == q.peak

def test_frozen_weights_have_no_states():
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)])
    batch = torch.empty(16, 256), torch.empty(16, 256)
    every = plan(model, batch, F.mse_loss)
    for m in model[1:]: m.requires_grad_(False)
    few = plan(model, batch, F.mse_loss)
    assert few.parts['optimizer'] < every.parts['optimizer']/7 and few.parts['weights'] == every.parts['weights']

def test_optimizers_that_are_there_are_taken_as_they_are():
    make, batch, loss = cases['words']
    model = make()
    groups = [dict(params=model[0].parameters(), lr=1.), dict(params=[p for m in model[1:] for p in m.parameters()])]
    given = torch.optim.SGD(groups, lr=.1, momentum=.9, fused=True)
    by_class = plan(model, batch, loss, optimizer=sgd)
    assert plan(model, batch, loss, optimizer=given).parts == by_class.parts and not given.state
    only = torch.optim.SGD(model[0].parameters(), lr=.1, momentum=.9, fused=True)
    assert plan(model, batch, loss, optimizer=only).parts['optimizer'] < by_class.parts['optimizer']

def test_a_plan_without_training_keeps_nothing():
    make, batch, loss = cases['mlp']
    p = plan(make(), batch[0], optimizer=None)
    assert set(p.parts) == {'weights', 'activations', 'batch', 'workspace'} and not p.assumed and p.parts['activations'] < plan(make(), batch, loss).parts['activations']

def test_an_average_and_a_scaler():
    make, batch, loss = cases['mlp']
    p = plan(make(), batch, loss, precision='fp16', gpu='T4')
    q = p.but(average=True)
    assert q.peak-p.peak == p.parts['weights'] and q.step_time > p.step_time > p.but(clip=None, precision='fp16', average=False, optimizer=functools.partial(torch.optim.SGD)).step_time

def test_a_step_of_ones_own():
    make, batch, loss = cases['mlp']
    own = plan(make(), batch, step=lambda model, b: dict(loss=loss(model(b[0]), b[1]), seen=1))
    assert own.peak == plan(make(), batch, loss).peak
    with pytest.raises(MlstackError, match='not made from'): plan(make(), batch, step=lambda model, b: dict(seen=1))

def test_batches_of_other_kinds():
    from collections import UserDict
    import numpy as np
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.l = nn.Linear(8, 3)
        def forward(self, x, labels): return types.SimpleNamespace(loss=F.cross_entropy(self.l(x), labels))
    plain = dict(x=torch.randn(4, 8), labels=torch.zeros(4).long())
    assert plan(Own(), UserDict(plain)).parts == plan(Own(), plain).parts == plan(Own(), {k: np.asarray(v) for k, v in plain.items()}).parts

def test_what_a_plan_travels_without():
    make, batch, loss = cases['mlp']
    p = plan(make(), batch, loss, gpu='H100')
    q = pickle.loads(pickle.dumps(p))
    assert str(q) == str(p) and q.largest == p.largest and q.parts == p.parts and 'peak' in q._repr_html_()


# Values that are not there

def planned(forward, x=None, **kw):
    class Model(nn.Module):
        def __init__(self): super().__init__(); self.l = nn.Linear(8, 8)
    Model.forward = forward
    return plan(Model(), torch.empty(4, 8) if x is None else x, **kw)

def test_masks_choose_everything():
    def forward(self, x):
        y = self.l(x)
        y = y[y[:, 0] > 0]
        y = y[y.sum(1).nonzero().flatten()]
        y[y > 1] = 0.
        return y.masked_select(y > 0).sum()
    p = planned(forward)
    assert any('y = y[y[:, 0] > 0]' in o and 'test_planning.py' in o for o in p.assumed) and len(p.assumed) == 4

@pytest.mark.parametrize('ask', [lambda y: y.max().item() > 3, lambda y: bool((y > 0).any()), lambda y: y.tolist(), lambda y: y.detach().cpu().numpy(), lambda y: int(y.argmax()), lambda y: y.cuda().to('cuda:0'), lambda y: torch.zeros(3, device='cuda') + y.sum()])
def test_what_a_model_asks_gets_an_answer(ask):
    def forward(self, x):
        y = self.l(x)
        ask(y)
        return y.sum()
    p = planned(forward)
    assert not p.assumed or 'lambda y' in p.assumed[0]

def test_a_line_that_needs_values_is_named():
    def forward(self, x): return self.l(x)[torch.bincount(x[:, 0].long())].sum()
    with pytest.raises(MlstackError, match=r'needs the values of a tensor.*test_planning.py, line \d+: def forward') as e: planned(forward)
    assert 'Traceback' not in str(e.value) and e.value.__suppress_context__
    def wrong(self, x): return self.l(x[:, :3]).sum()
    with pytest.raises(MlstackError, match='step cannot be made: .*reduction dim.*def wrong'): planned(wrong)

def test_functions_of_ones_own():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x): ctx.save_for_backward(x); return x*2
        @staticmethod
        def backward(ctx, g): return g*2
    x = torch.empty(512, 8)
    with_it, without = planned(lambda self, x: Twice.apply(self.l(x)).sum(), x), planned(lambda self, x: self.l(x).sum(), x)
    assert with_it.peak - without.peak >= 512*8*4

def test_a_mask_of_attention_is_cast_once_and_not_for_each_head():
    x, mask = torch.empty(4, 256, 64), torch.empty(4, 1, 256, 256, dtype=torch.bool)
    def peak(heads, *batch): return plan(Attending(heads), batch, step=lambda m, b: m(*b).sum(), precision='bf16').parts['activations']
    grown = peak(4, x, mask) - peak(4, x)
    assert 4*256*256*2 <= grown < 2*4*256*256*2, grown

def test_a_model_that_cannot_be_copied_is_named():
    import threading
    model = nn.Linear(4, 4)
    model.lock = threading.Lock()
    with pytest.raises(MlstackError, match='cannot be copied.*lock'): plan(model, torch.empty(2, 4))


# Cards

def test_what_was_measured_replaces_the_datasheet():
    make, batch, loss = cases['words']
    p = plan(make(), batch, loss, precision='bf16', gpu='H100')
    said = dict(bf16=989*.65, fp32=67*.65, tf32=494*.65, bandwidth=3350*.8)
    assert p.but(measured=said).step_time == pytest.approx(p.step_time) and p.but(measured=lambda card: said if card.name == 'H100' else None).step_time == pytest.approx(p.step_time)
    slow = p.but(measured=said | dict(bandwidth=300))
    assert slow.step_time > 2*p.step_time and slow.gpu == p.gpu and slow.mfu < p.mfu and 'measured' in str(slow)
    on_cpu = p.but(gpu='cpu', precision='auto', measured=dict(fp32=.05, bandwidth=10))
    assert on_cpu.precision == 'fp32' and on_cpu.step_time > p.step_time and on_cpu.gpu.memory > 0 and 'workspace' not in on_cpu.parts

def test_a_card_that_nobody_knows_has_memory_and_no_time():
    make, batch, loss = cases['mlp']
    own = Card('Own', (9, 0), 40, *[0]*10)
    p = plan(make(), batch, loss, gpu=own)
    assert p.fits and p.step_time is p.mfu is None and p.largest > 0 and p.precision == 'fp32' and 'no time' in str(p)
    assert plan(make(), batch, loss, gpu=own, mesh=dict(dp=2)).step_time is None
    assert p.but(measured=dict(fp32=50, bf16=500, bandwidth=2000)).step_time

def driver(monkeypatch, name, memory, capability=(9, 0), mig=False, slices=()):
    from mlstack.env import machine
    one = lambda name, memory, uuid, **kw: machine.Gpu(0, name, uuid, memory, memory, capability, **kw)
    monkeypatch.setattr(machine, 'gpus', lambda: [one(name, memory, 'GPU-1', mig=mig, slices=tuple(one(*o) for o in slices))])

def test_the_card_that_is_there_has_the_memory_that_its_driver_says(monkeypatch):
    make, batch, loss = cases['mlp']
    driver(monkeypatch, 'Tesla V100-SXM2-16GB', 16 << 30, (7, 0))
    p = plan(make(), batch, loss)
    assert p.gpu.name == 'V100 16GB' and p.gpu.memory == (16 << 30)/1e9 and p.precision == 'fp16'
    driver(monkeypatch, 'NVIDIA X900 Next', 300 << 30, (13, 0))
    p = plan(make(), batch, loss)
    assert p.gpu.memory == (300 << 30)/1e9 and p.fits and p.step_time is None

def test_a_card_of_which_nobody_prints_the_rates():
    make, batch, loss = cases['mlp']
    p = plan(make(), batch, loss, gpu='Jetson AGX Orin')
    assert p.precision == 'bf16' and p.fits and p.step_time is None and 'Orin' in str(p)

def test_slices_of_a_card(monkeypatch):
    make, batch, loss = cases['mlp']
    driver(monkeypatch, 'NVIDIA H100 80GB HBM3', 80 << 30, mig=True)
    with pytest.raises(MlstackError, match='slices .MIG.'): plan(make(), batch, loss)
    slices = [('NVIDIA H100 80GB HBM3 MIG 1g.10gb', 9 << 30, 'MIG-a'), ('NVIDIA H100 80GB HBM3 MIG 3g.40gb', 39 << 30, 'MIG-b')]
    driver(monkeypatch, 'NVIDIA H100 80GB HBM3', 80 << 30, mig=True, slices=slices)
    small = plan(make(), batch, loss)
    assert small.gpu.name == 'H100 MIG 1g.10gb' and small.gpu.memory == (9 << 30)/1e9
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', 'MIG-b')
    large = plan(make(), batch, loss)
    assert large.gpu.name == 'H100 MIG 3g.40gb' and large.gpu.bf16 == pytest.approx(3*small.gpu.bf16, rel=.01) and large.gpu.bandwidth == pytest.approx(4*small.gpu.bandwidth, rel=.01)
    assert plan(make(), batch, loss, gpu='A30 MIG 1g.6gb').gpu.bf16 == pytest.approx(165/4, rel=.01)

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

@pytest.mark.parametrize('compiled', [False, True])
def test_a_small_step_takes_the_time_to_start_its_kernels(compiled):
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    p = plan(model, (torch.empty(64, 784), torch.zeros(64).long()), F.cross_entropy, gpu='H100', compiled=compiled)
    assert p.step_time > 8*5e-6  # five products, and what lies between them

def test_a_plan_says_when_its_peak_is():
    batch = torch.empty(64, 784), torch.zeros(64).long()
    p = plan(nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)), batch, F.cross_entropy)
    assert 'at the peak, in the backward pass' in str(p) and p.when in p._repr_html_()
    assert 'in the update' in str(p.but(optimizer=functools.partial(torch.optim.AdamW, foreach=True)))
    assert 'in the forward pass' in str(p.but(optimizer=None))
