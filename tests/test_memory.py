"Activations that are not kept: gradients bit-equal, memory as planned, files that go away, disks that fill."
import gc, os
import pytest, torch
import torch.nn.functional as F
from torch import nn
from mlstack.core import MlstackError
from mlstack.ddp import checkpoint_activations
from mlstack.hardware import plan
from tests import house
from tests.test_planning import adamw, counted

class Block(nn.Module):
    def __init__(self): super().__init__(); self.a, self.b, self.norm, self.drop = nn.Linear(128, 512), nn.Linear(512, 128), nn.LayerNorm(128), nn.Dropout(.2)
    def forward(self, x): return x + self.drop(self.b(F.gelu(self.a(self.norm(x)))))

def net(n=12): return nn.Sequential(nn.Linear(64, 128), *[Block() for _ in range(n)], nn.Linear(128, 10))

@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('to', ['recompute', 'cpu', 'disk'])
def test_gradients_are_those_of_the_plain_model(to, precision):
    torch.manual_seed(0)
    model, x, y = net(3), torch.randn(256, 64), torch.randint(0, 10, (256,))
    def gradients():
        torch.manual_seed(1)
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bf16'): loss = F.cross_entropy(model(x), y)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]
    plain = gradients()
    checkpoint_activations(model, to=to)
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients())) and all(torch.equal(a, b) for a, b in zip(plain, gradients()))
    gradients_without = model.eval()(x)  # and without a backward pass
    assert gradients_without.shape == (256, 10)

@pytest.mark.parametrize('to', [None, 'recompute'])
def test_peak_is_what_the_profiler_counts(to, tmp_path):
    def make(): return checkpoint_activations(net(), to=to).eval()
    batch = torch.randn(512, 64), torch.zeros(512).long()
    for m in (model := make()).modules():
        if isinstance(m, nn.Dropout): m.p = 0.
    said = plan(model, batch, F.cross_entropy, optimizer=adamw, precision='fp32')
    real = counted(lambda: make(), batch, F.cross_entropy, adamw, tmp_path)
    assert abs((said.peak-said.parts['workspace'])/real-1) < .04, (said, real)


def test_files_go_with_the_step_and_the_folder_with_the_model(tmp_path):
    model = checkpoint_activations(net(2), to='disk', folder=tmp_path)
    loss = model(torch.randn(256, 64)).sum()
    assert len(list(tmp_path.iterdir())) >= 4
    loss.backward()
    del loss; gc.collect()
    assert not list(tmp_path.iterdir()) and tmp_path.exists()
    own = checkpoint_activations(net(2), to='disk')
    folder = own[1].forward.away.keywords['folder']
    assert os.path.isdir(folder)
    del own; gc.collect()
    assert not os.path.exists(folder)

@pytest.mark.probe('small_disk')
def test_a_full_disk_is_named(tmp_path):
    code = f"""
import torch
from torch import nn
from mlstack.core import MlstackError
from mlstack.ddp import checkpoint_activations
model = checkpoint_activations(nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)) for _ in range(4)]), to='disk', folder={str(tmp_path)!r})
try: model(torch.randn(1<<12, 64))
except MlstackError as e: print(e)
"""
    r = house.on_small_disk(code, tmp_path)
    assert 'could not be written' in r.stdout and 'Free some disk space' in r.stdout, r

def test_a_file_that_is_gone_is_named(tmp_path):
    model = checkpoint_activations(net(2), to='disk', folder=tmp_path)
    loss = model(torch.randn(256, 64)).sum()
    for p in tmp_path.iterdir(): p.unlink()
    with pytest.raises(MlstackError, match='gone from the disk'): loss.backward()

def test_it_travels_to_another_process():
    from mlstack import workers
    model = checkpoint_activations(net(2))
    x = torch.randn(4, 64)
    def grads(model, x): torch.manual_seed(0); model(x).sum().backward(); return [p.grad for p in model.parameters()]
    there, = workers.run(grads, model, x, nprocs=1)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(there, grads(model, x)))  # it has another number of threads

def test_data_parallel_ranks_agree_with_one_process():
    from mlstack.ddp import launch
    def train(to):
        from mlstack.trainer import Data, Trainer
        torch.manual_seed(0)
        model = net(2)
        for m in model.modules():
            if isinstance(m, nn.Dropout): m.p = 0.
        x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        t = Trainer(checkpoint_activations(model, to=to), Data.from_tensors((x, x[:, 0].gt(0).long()), batch_size=16), loss=F.cross_entropy, parallel='ddp', accumulate=2)
        t.fit(epochs=2)
        return [p.detach().clone() for p in model.parameters()]
    plain, again = (launch(train, to, nprocs=2, output='none')[0] for to in (None, 'recompute'))
    assert all(torch.equal(a, b) for a, b in zip(plain, again))
