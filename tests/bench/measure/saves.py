"saves.py [millions]: how long the loop stands at a save, written beside the training and in its way, for a model with that many million parameters (50) and AdamW."
import json, os, sys, tempfile, time
import torch, torch.nn as nn, torch.nn.functional as F

os.environ['MLSTACK_PROGRESS'] = 'no'
from mlstack.trainer import Callback, Checkpoints, Trainer

millions = float(sys.argv[1]) if len(sys.argv) > 1 else 50
steps, every = 16, 4
width = int((millions*1e6/4)**.5)

class Watch(Callback):
    "When each step began and ended; the time between two steps is what a save costs the loop. The write before is over when the next begins."
    def before_fit(self, t): self.began, self.ended = [], []
    def before_step(self, t):
        if not (t.step + 1)%every: t._saving.join()
        self.began.append(time.perf_counter())
    def after_step(self, t): self.ended.append(time.perf_counter())

def measure(background):
    torch.manual_seed(0)
    model = nn.Sequential(*[o for _ in range(4) for o in (nn.Linear(width, width), nn.ReLU())])
    batch, watch = (torch.randn(32, width), torch.randn(32, width)), Watch()
    with tempfile.TemporaryDirectory() as d:
        saves = Checkpoints(d, every=every, keep=1, background=background)
        Trainer(model, [batch]*(steps + 1), F.mse_loss, lr=1e-4, callbacks=[watch]).fit(steps=steps, save=saves)
        size = sum(p.stat().st_size for p in saves.path(steps).iterdir())
    took = sorted(e - b for b, e in zip(watch.began, watch.ended))
    gaps = [b - e for e, b in zip(watch.ended, watch.began[1:])]
    stalls = [gaps[i - 1] for i in range(every, steps, every)]  # between step 4 and step 5, and so on
    after = [watch.ended[i] - watch.began[i] for i in range(every, steps, every)]
    middle = lambda v: sorted(v)[len(v)//2]
    return dict(step=middle(took), first=stalls[0], stall=middle(stalls[1:]), after=middle(after)), size, sum(p.numel() for p in model.parameters())

beside, size, parameters = measure(True)
blocking = measure(False)[0]
print(json.dumps(dict(parameters=parameters, megabytes=round(size/1e6), beside=beside, blocking=blocking, stall_in_steps=beside['stall']/blocking['step'],
    blocking_in_steps=blocking['stall']/blocking['step'], threads=torch.get_num_threads())))
