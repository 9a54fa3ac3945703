"""resume.py [--kills 50] [--seed 0] [--rows NAME,...]: fits that are killed (SIGKILL) at random moments and resumed, against one that was not: are all losses and the final weights bit-equal?

Each trial is killed twice within one epoch, in fresh processes, and then finishes. Prints JSON: kills whose trial came out equal, out of all, and the same for each row."""
import argparse, json, os, random, signal, tempfile, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from mlstack import workers

epochs, items, size = 3, 192, 8
# row -> how the data is read (workers; None: tensors), how many batches an update
rows = {'dropout': (None, 1), 'accumulation': (None, 3), 'augmentation': (0, 1), 'augmentation and accumulation': (0, 3), 'augmentation, 2 workers': (2, 1)}

class Noisy(Dataset):
    "Augmentation that draws from all three generators."
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i]*(1 + random.random()) + np.random.rand() + torch.rand(1), self.y[i]

def make(row):
    from mlstack.trainer import Callback, Data, EMA, Trainer
    class Tell(Callback):
        def before_update(self, t): workers.send(t.step + .5)
        def after_step(self, t): workers.send(float(t.step))
    loader_workers, accumulate = rows[row]
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(items, 64, generator=g), torch.randint(0, 10, (items,), generator=g)
    data = Data.from_tensors((x, y), (x[:50], y[:50]), batch_size=size) if loader_workers is None else Data(DataLoader(Noisy(x, y), batch_size=size, shuffle=True, num_workers=loader_workers), [(x[:50], y[:50])])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(.5), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(.5), nn.Linear(256, 10))
    return Trainer(model, data, F.cross_entropy, lr=3e-3, schedule='one_cycle', clip=1., accumulate=accumulate, callbacks=[EMA(.9), Tell()])

def job(row, folder):
    "One process of a fit: from the beginning or from where the one before it was killed."
    os.environ['MLSTACK_PROGRESS'] = 'no'
    from mlstack.trainer import Checkpoints
    t = make(row)
    began = random.getrandbits(64)  # what happened before does not matter
    torch.manual_seed(began >> 1); random.seed(began); np.random.seed(began & 0xFFFFFFFF)
    t.fit(epochs=epochs, save=Checkpoints(folder, every=2, keep=2), resume=True)
    table = [{k: v for k, v in r.items() if k != 'seconds'} for r in t.history.rows]
    return t.history.steps(), table, [w.clone() for w in t.model.state_dict().values()], [w.clone() for w in t.callbacks[0].mean], t._why.get('resume', '')

def same(a, b): return a[:2] == b[:2] and all(torch.equal(p, q) for i in (2, 3) for p, q in zip(a[i], b[i], strict=True))

def killed_at(row, folder, moment, delay):
    "Run the job and kill it `delay` seconds after it has come to `moment` (a step; half a step: before its update). None, or what it returned if it was faster."
    with workers.Pool(1) as pool:
        task = pool.submit(job, row, folder)
        for e in pool.events():
            if e.kind == 'message' and moment is not None and e.value >= moment:
                time.sleep(delay)
                os.kill(task.pid, signal.SIGKILL)
                moment = None
        return task.result() if task.state == 'done' else None

def trial(row, straight, rng):
    "Two kills within one epoch, then to the end; how many kills there were, and whether all came out equal."
    an_epoch = straight[0][0][-1]//epochs
    epoch = rng.randrange(epochs)
    places = sorted(rng.sample(range(1, an_epoch), 2)) if an_epoch > 2 else [1, 1]
    with tempfile.TemporaryDirectory() as folder:
        done, kills = None, 0
        for at in places:
            done = killed_at(row, folder, epoch*an_epoch + at + rng.choice((0, .5)), rng.random()*.01)
            if done is not None: break
            kills += 1
        if done is None: done = killed_at(row, folder, None, 0)
    return kills, done is not None and same(done, straight), done and done[4]

if __name__ == '__main__':
    parse = argparse.ArgumentParser()
    parse.add_argument('--kills', type=int, default=50)
    parse.add_argument('--seed', type=int, default=0)
    parse.add_argument('--rows', default=','.join(k.replace(',', ';') for k in rows))
    args = parse.parse_args()
    names = [k.replace(';', ',') for k in args.rows.split(',')]
    rng, found = random.Random(args.seed), {}
    for i, row in enumerate(names):
        with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
            straight = killed_at(row, a, None, 0)
            control = same(straight, killed_at(row, b, None, 0)) if args.kills >= 20 else None
        r = found[row] = dict(control=control, equal=0, total=0, said='')
        want = args.kills//len(names) + (i < args.kills % len(names))
        for _ in range(3*want):
            if r['total'] >= want: break
            kills, equal, said = trial(row, straight, rng)
            r['total'] += kills
            r['equal'] += kills*equal
            r['said'] = said or r['said']
    print(json.dumps(dict(equal=sum(r['equal'] for r in found.values()), total=sum(r['total'] for r in found.values()), torch=torch.__version__, rows=found)))
