"""planning_cpu.py gpt|mlp|resnet|bert|lstm adamw|sgd: the peak of two training steps in float32 as torch's profiler counts it on the CPU, and what hardware.plan says of it beforehand; how long a step takes, and what the plan says of that from a short measurement of matrix products and of memory.
The LSTM runs without oneDNN, whose kernel keeps notes of its own."""
import functools, gc, itertools, json, os, sys, time
sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..', '..', '..'))
os.environ.setdefault('KINETO_LOG_LEVEL', '6')
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from gpt import GPT, next_token

class Basic(nn.Module):
    "A block of ResNet-18."
    def __init__(self, a, b, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.bn2, self.relu = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b)) if stride != 1 or a != b else nn.Identity()
    def forward(self, x): return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + self.down(x))

def resnet():
    widths = [64, 64, 128, 256, 512]
    blocks = [Basic(a if i == 0 else b, b, 2 if i == 0 and b > 64 else 1) for a, b in zip(widths, widths[1:]) for i in range(2)]
    return nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))

class Bert(nn.Module):
    "BERT of transformers from its config, small, with its own loss."
    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification
        self.bert = BertForSequenceClassification(BertConfig(vocab_size=5000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, hidden_dropout_prob=0., attention_probs_dropout_prob=0.))
    def forward(self, ids, labels): return self.bert(input_ids=ids, labels=labels).loss

class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.lstm, self.head = nn.Embedding(5000, 128), nn.LSTM(128, 256, 2, batch_first=True), nn.Linear(256, 10)
    def forward(self, x): return self.head(self.lstm(self.words(x))[0][:, -1])

def ids(*shape): return torch.zeros(*shape, dtype=torch.long)
cases = dict(
    gpt=(lambda: GPT(vocabulary=2000, context=256, layers=4, heads=4, width=256), (ids(8, 256), ids(8, 256)), next_token),
    mlp=(lambda: nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.GELU(), nn.LayerNorm(2048), nn.Linear(2048, 10)), (torch.randn(512, 512), ids(512)), F.cross_entropy),
    resnet=(resnet, (torch.randn(8, 3, 128, 128), ids(8)), F.cross_entropy),
    bert=(Bert, dict(ids=ids(8, 128), labels=ids(8)), None),
    lstm=(Lstm, (ids(16, 64), ids(16)), F.cross_entropy))
optimizers = dict(adamw=functools.partial(torch.optim.AdamW, fused=True), sgd=functools.partial(torch.optim.SGD, lr=.1, momentum=.9, fused=True))

def make_step(model, batch, loss, opt):
    def step():
        (model(**batch) if loss is None else loss(model(batch[0]), batch[1])).backward()
        opt.step()
        opt.zero_grad()
    return step

def counted(make, batch, loss, optimizer):
    "The most that was allocated at one time, from the model's making to the end of the second step."
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        model, batch = make(), {k: v.clone() for k, v in batch.items()} if isinstance(batch, dict) else tuple(t.clone() for t in batch)
        step = make_step(model, batch, loss, optimizer(model.parameters()))
        for _ in range(2): step()
    events = sorted((e.start_ns(), e.nbytes()) for e in p.profiler.kineto_results.events() if e.name() == '[memory]')
    return max(itertools.accumulate(n for _, n in events))

def best(fn, n=5):
    times = []
    for _ in range(n):
        began = time.process_time()  # one thread: other processes do not count
        fn()
        times.append(time.process_time() - began)
    return min(times)

def reached():
    "TFLOP/s of a matrix product and GB/s of a sum of two large tensors."
    a, x = torch.randn(1024, 1024), torch.randn(1 << 24)
    out = torch.empty_like(x)
    return dict(fp32=2*1024**3/best(lambda: a @ a)/1e12, bandwidth=3*x.numel()*4/best(lambda: torch.add(x, x, out=out))/1e9)

if __name__ == '__main__':
    from mlstack.hardware.planning import plan
    name, optimizer = sys.argv[1], optimizers[sys.argv[2]]
    torch.set_num_threads(1)
    make, batch, loss = cases[name]
    measured = reached()
    began = time.process_time()
    p = plan(make(), batch, loss, optimizer, precision='fp32', gpu='cpu', measured=measured)
    took = time.process_time() - began
    with torch.backends.mkldnn.flags(enabled=name != 'lstm'):
        got = counted(make, batch, loss, optimizer)
        torch.manual_seed(0)
        model = make()
        step = make_step(model, batch, loss, optimizer(model.parameters()))
        step()
        real = best(step, 5)
    print(json.dumps(dict(measured=got/2**20, predicted=p.peak/2**20, error=100*(p.peak/got - 1), seconds=took, step=real*1e3, said=p.step_time*1e3, ratio=p.step_time/real)))
