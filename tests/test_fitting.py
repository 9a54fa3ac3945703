"The cheapest configuration that fits, whole runs, and scripts that are planned without being run."
import json
import pytest, torch
import torch.nn.functional as F
from torch import nn
from mlstack.core import MlstackError
from mlstack.hardware import card, plan
from mlstack.hardware.fitting import cheapest, compare, whole
from mlstack.cli.planning_scripts import plan_script
from tests.test_simulation import GPT, loss

def step(items=32, **kw):
    with torch.device('meta'): return GPT(**kw), (torch.empty(items, 64, dtype=torch.long),)*2

def on(memory, name='A100'): return card(name)._replace(memory=memory + 1.2)  # GB to use

def test_what_does_not_fit_is_cut_until_it_does():
    model, batch = step()
    p = plan(model, batch, loss, precision='bf16', gpu='A100')
    ample = cheapest(model, batch, loss, gpu=on(p.peak/1e9 + .1), precision='bf16', steps=100)
    assert (ample.chosen.micro, ample.chosen.times, ample.chosen.again) == (32, 1, 0) and ample.plan.fits
    tight = cheapest(model, batch, loss, gpu=on(.6*p.peak/1e9), precision='bf16', steps=100)
    assert tight.plan.fits and tight.chosen.seconds >= ample.chosen.seconds and (tight.chosen.times > 1 or tight.chosen.again)
    assert all(w.micro*w.times*w.gpus == 32 for w in tight.tried) and {w.again for w in tight.tried} == {0, 2, 4}
    none = cheapest(model, batch, loss, gpu=on(.05*p.peak/1e9), steps=100)
    assert none.chosen is none.plan is None and 'nothing that was tried fits' in str(none)

def test_several_cards_share_what_one_cannot_hold():
    model, batch = step(width=512, layers=6)
    held = plan(model, batch, loss, precision='bf16', gpu='A100').parts
    states = held['weights'] + held['optimizer'] + held['weights']
    f = cheapest(model, batch, loss, gpu=on(.5*states/1e9), gpus=8, precision='bf16', steps=10)
    assert f.chosen.mesh.get('shard', 1) >= 4 and f.plan.fits and f.plan.mesh['shard'] == f.chosen.gpus
    assert not any(w.fits for w in f.tried if 'shard' not in w.mesh)

def test_money_decides_between_cards():
    model, batch = step()
    prices = {'A100': 2., 'H100': 3.}
    f = cheapest(model, batch, loss, gpu=['A100', 'H100'], gpus=2, precision='bf16', price=prices, tokens=1e6)
    assert f.updates == round(1e6/64/32) and f.chosen.money == min(w.money for w in f.tried if w.fits)
    dear = cheapest(model, batch, loss, gpu=['A100', 'H100'], precision='bf16', price=prices | {f.chosen.gpu: 1000.}, tokens=1e6)
    assert dear.chosen.gpu != f.chosen.gpu
    assert '* ' in str(f) and 'money' in str(f) and '<table>' in f._repr_html_()
    with pytest.raises(MlstackError, match='no price'): cheapest(model, batch, loss, gpu='H200', price=prices, steps=1)
    with pytest.raises(MlstackError, match='3 times|2 times'): cheapest(model, batch, loss, gpu='H200', steps=1, tokens=5)
    with pytest.raises(MlstackError, match='how fast'): cheapest(model, batch, loss, gpu=card('H100')._replace(name='Own', bandwidth=0), steps=1)

def test_one_rank_of_many_is_counted_as_many():
    model, batch = step(8)
    p = plan(model, batch, loss, precision='bf16', gpu='H100', mesh=dict(shard=4))
    run = whole(p, tokens=64*8*4*25, price=2.)
    assert (run.updates, run.gpus) == (25, 4) and run.money == pytest.approx(2*4*25*p.step_time/3600) and '4 GPUs' in str(run)

def test_plans_side_by_side():
    model, batch = step(8)
    p = plan(model, batch, loss, precision='bf16', gpu='H100')
    both = compare(p)
    assert [r[0] for r in both.rows] == ['eager', 'compiled'] and 'activations' in both.header
    three = compare(one=p, two=p.but(precision='fp32'), half=p.but(checkpoint=2))
    assert len(str(three).splitlines()) == 4


# Scripts

head = 'import torch, torch.nn as nn, torch.nn.functional as F\nfrom mlstack.trainer import Data, Trainer, EMA\nnet = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 512))\nx, y = torch.randn(96, 8), torch.randn(96, 512)\n'

def script(tmp_path, text, *args, name='train.py', **kw):
    path = tmp_path/name
    path.write_text(text)
    return plan_script(path, args, **{'gpu': 'H100', 'compiled': False} | kw)

def test_a_trainer_is_planned_and_nothing_written(tmp_path):
    text = head + f'import mlstack.tracking as track\nrun = track.init(project="p", dir={str(tmp_path/"runs")!r})\n' \
        'Trainer(net, Data.from_tensors((x, y), batch_size=32), loss=F.mse_loss, opt=torch.optim.SGD, clip=1., callbacks=[EMA()], precision="fp32", run=run).fit(epochs=2, save="checkpoints")\nopen("trained", "w")'
    found = script(tmp_path, text)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 512))
    same = plan(net, (torch.empty(32, 8), torch.empty(32, 512)), F.mse_loss, torch.optim.SGD, 'fp32', 'H100', average=True, clip=1.)
    assert found.plan.parts == same.parts and found.plan.step_time == same.step_time and found.plan.largest == same.largest
    assert [p.name for p in tmp_path.iterdir()] == ['train.py']

def test_ranks_that_a_script_would_launch(tmp_path):
    text = head + 'from mlstack.ddp import launch\ndef train(): Trainer(net, Data.from_tensors((x, y), batch_size=32), loss=F.mse_loss, parallel="{}", precision="bf16").fit(epochs=1)\nif __name__ == "__main__": launch(train, nprocs=4)'
    ddp = script(tmp_path, text.format('ddp')).plan
    assert ddp.mesh is None and ddp.parts['gradients'] == ddp.parts['weights']
    fsdp = script(tmp_path, text.format('fsdp')).plan
    assert fsdp.mesh['shard'] == 4 and fsdp.parts['weights'] < ddp.parts['weights']

@pytest.mark.parametrize('way', ['own loss', 'part'])
def test_a_loop_of_pytorch_is_planned(tmp_path, way):
    call = {'own loss': '(net(x) - y).pow(2).mean()', 'part': 'nn.MSELoss()(net(x)[:, :100], y[:, :100])/4'}[way]
    text = head + f'opt = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)\nnet.train()\nfor i in range(3):\n    loss = {call}\n    print(loss.item())\n    loss.backward()\n    opt.step(); opt.zero_grad()\nopen("trained", "w")'
    p = script(tmp_path, text, precision='bf16').plan
    same = plan(nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 512)), (torch.empty(96, 8), torch.empty(96, 512)), F.mse_loss, precision='bf16', gpu='H100')
    assert p.parts['weights'] == same.parts['weights'] and p.parts['optimizer'] == same.parts['optimizer'] and .8 < p.peak/same.peak <= 1.01 and p.items == 96
    assert [o.name for o in tmp_path.iterdir()] == ['train.py']

def test_calls_before_the_step_that_counts(tmp_path):
    "A dummy batch that shows a shape, and parts that are called one by one."
    loop = 'opt = torch.optim.AdamW({}, fused=True)\nloss = F.mse_loss({}, y)\nloss.backward()'
    plain = script(tmp_path, head + loop.format('net.parameters()', 'net(x)')).plan
    tried = script(tmp_path, head + 'print(net(torch.zeros(1, 8)).shape)\n' + loop.format('net.parameters()', 'net(x)')).plan
    assert tried.parts == plain.parts and tried.items == 96 and any('called 2 times' in o for o in tried.assumed) and not plain.assumed
    own = 'class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.f = nn.Conv1d(1, 4, 3)\n        self.l = nn.Linear(self.f(torch.zeros(1, 1, 8)).numel(), 512)\n    def forward(self, x): return self.l(self.f(x[:, None]).flatten(1))\nnet = Net()\n'
    made = script(tmp_path, head + own + loop.format('net.parameters()', 'net(x)')).plan
    assert made.items == 96 and made.parts['weights'] > 24*512*4
    parts = script(tmp_path, head + 'first = nn.Linear(8, 8)\n' + loop.format('[*first.parameters(), *net.parameters()]', 'net(first(x))')).plan
    assert parts.items == 96 and any('not in this plan' in o and 'Linear with 72 parameters' in o for o in parts.assumed)

@pytest.mark.parametrize('text', ['nope', '{}', '{"cells": [{"cell_type": "code"}]}', '[]'])
def test_what_is_no_notebook(tmp_path, text):
    with pytest.raises(MlstackError, match='no notebook'): script(tmp_path, text, name='train.ipynb')

def test_flags_and_files_beside_it(tmp_path):
    (tmp_path/'parts.py').write_text('import torch.nn as nn\ndef make(width): return nn.Linear(8, width)')
    text = 'import sys, torch\nfrom parts import make\nfrom mlstack.trainer import Trainer\nimport torch.nn.functional as F\nwidth = int(sys.argv[1])\nTrainer(make(width), [(torch.randn(4, 8), torch.randn(4, width))], loss=F.mse_loss).fit(steps=1)'
    assert script(tmp_path, text, 512).plan.parts['weights'] == 512*9*4
    with pytest.raises(MlstackError, match='fails before it trains: IndexError.*line 5: width'): script(tmp_path, text)

def test_a_notebook(tmp_path):
    cells = ['%matplotlib inline\n' + head, 'import os\n!echo hello', 't = Trainer(net, Data.from_tensors((x, y), batch_size=32), loss=F.mse_loss)', 't.fit(epochs=1)']
    nb = dict(cells=[dict(cell_type='code', source=c.splitlines(True), metadata={}, outputs=[], execution_count=None) for c in cells] + [dict(cell_type='markdown', source=['# end'], metadata={})], metadata={}, nbformat=4, nbformat_minor=5)
    assert script(tmp_path, json.dumps(nb), name='train.ipynb').plan.items == 32

@pytest.mark.parametrize('text, says', [('import os; os._exit(7)', 'ended its process .7.'), ('raise SystemExit("no data")', "ended with 'no data'"),
    (head + 'Trainer(net, Data.from_tensors((x, y), batch_size=32), opt=None, step=lambda m, b: None).fit(steps=1)', 'makes its own updates'),
    (head + 'loss = F.mse_loss(net(x), y)\nloss.backward()', 'no optimizer')])
def test_a_script_that_cannot_be_planned_says_why(tmp_path, text, says):
    with pytest.raises(MlstackError, match=says): script(tmp_path, text)

def test_the_command_gives_flags_and_seeks_the_largest_batch_only_if_asked(tmp_path):
    from mlstack.cli.machine_commands import _as_flags
    (tmp_path/'train.py').write_text('import torch\nfrom torch import nn\nm = nn.Linear(8,2)\no = torch.optim.AdamW(m.parameters())\nnn.functional.cross_entropy(m(torch.randn(4,8)), torch.zeros(4).long()).backward()\n')
    assert plan_script(tmp_path/'train.py', gpu='H100', compiled=True, largest=False).plan.largest is None
    model = nn.Linear(8, 2)
    p = plan(model, (torch.randn(4, 8), torch.zeros(4).long()), F.cross_entropy)
    if p.gpu is None: assert '--gpu H100' in _as_flags(str(p)) and "of a GPU" in str(p)
    on_cpu = str(p.but(gpu='cpu'))
    assert 'gpus --benchmark' in _as_flags(on_cpu) and 'measured=' in _as_flags(on_cpu, 'Own')

def test_the_table_says_what_its_columns_are():
    model, batch = step()
    said = str(cheapest(model, batch, loss, gpu='A100', gpus=2, price=2., precision='bf16', steps=100))
    assert 'micro x times: items' in said and 'hidden behind the computing' in said and 'the unit of price=' in said and 'again: blocks' in said
    assert 'the fastest takes' not in said
