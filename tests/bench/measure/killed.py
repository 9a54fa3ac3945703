"""killed.py [--kills 20] [--seed 0] [--rows NAME,...]: one launch whose ranks are killed (SIGKILL) at random moments and start again, against one that nobody kills: are the final weights, losses and tables bit-equal?

A thread of the caller picks the rank and the moment: while ranks start, train, save, or stop. Prints JSON with the kills whose fit came out equal, and the most steps that had to be done again."""
import argparse, json, os, random, signal, tempfile, threading, time
from pathlib import Path
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

epochs, items, size, every = 8, 256, 8, 3
# row -> how the data is read (workers; None: tensors), how many batches an update, steps between checkpoints (None: what fit does by itself, once an epoch)
rows = {'dropout': (None, 1, every), 'accumulation': (None, 2, every), 'augmentation': (0, 1, every), 'once an epoch': (None, 1, None)}

class Noisy(Dataset):
    "Augmentation that draws from all three generators."
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i]*(1 + random.random()) + np.random.rand() + torch.rand(1), self.y[i]

def job(row, folder):
    "On each rank. What the caller needs to know lies in small files: who is alive, and how far it is."
    from mlstack.core import context
    from mlstack.trainer import Callback, Checkpoints, Data, EMA, Trainer
    os.environ['MLSTACK_PROGRESS'] = 'no'
    ctx, (workers, accumulate, every) = context(), rows[row]
    Path(folder, f'{ctx.attempt}.{ctx.rank}.pid').write_text(str(os.getpid()))
    class Tell(Callback):
        def before_fit(self, t): self.tell(t, 'from')
        def after_step(self, t): self.tell(t, 'at')
        def tell(self, t, what): Path(folder, f'{ctx.attempt}.{ctx.rank}.{what}').write_text(str(t.step))
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(items, 64, generator=g), torch.randint(0, 10, (items,), generator=g)
    data = Data.from_tensors((x, y), (x[:51], y[:51]), batch_size=size) if workers is None else Data(DataLoader(Noisy(x, y), batch_size=size, shuffle=True, num_workers=workers), [(x[:50], y[:50])])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(.5), nn.Linear(128, 10))
    t = Trainer(model, data, F.cross_entropy, lr=3e-3, schedule='one_cycle', clip=1., accumulate=accumulate, callbacks=[EMA(.9), Tell()], parallel='ddp')
    began = random.getrandbits(64)  # what happened before does not matter
    torch.manual_seed(began >> 1); random.seed(began); np.random.seed(began & 0xFFFFFFFF)
    t.fit(epochs=epochs, **({} if every is None else dict(save=Checkpoints(Path(folder, 'checkpoints'), every=every, keep=2), resume=True)))
    table = [{k: v for k, v in r.items() if k != 'seconds'} for r in t.history.rows]
    return ctx.attempt, t.history.steps(), table, [w.detach().clone() for w in t.model.state_dict().values()], [w.clone() for w in t.callbacks[0].mean]

def number(path):
    "What the file holds; None where nobody has written it yet."
    try: return int(path.read_text() or 0)
    except (FileNotFoundError, ValueError): return None

def killer(folder, kills, rng, longest, updates, killed, over):
    "Kills a rank of attempt 0, 1, … until `kills` of them are done; each at a moment of its own, and before there is too little left for the others."
    for attempt in range(kills):
        pids, soon = [None, None], updates*(attempt + 1)//(kills + 1)
        while not all(pids) and not over.wait(.002): pids = [number(Path(folder, f'{attempt}.{r}.pid')) for r in (0, 1)]
        end = time.monotonic() + rng.random()*longest
        while time.monotonic() < end and (number(Path(folder, f'{attempt}.0.at')) or 0) < soon and not over.wait(.001): pass
        over.wait(rng.random()*.01)
        if over.is_set(): return
        try: os.kill(rng.choice(pids), signal.SIGKILL)
        except ProcessLookupError: return
        killed.append(attempt)

def fit(row, kills=0, rng=None, longest=0., updates=0):
    "What the ranks return, how many kills there were, and the most steps that were done again."
    from mlstack.ddp import launch
    with tempfile.TemporaryDirectory() as folder:
        killed, over = [], threading.Event()
        t = threading.Thread(target=killer, args=(folder, kills, rng, longest, updates, killed, over))
        t.start()
        try: results = launch(job, row, folder, nprocs=2, max_restarts=max(kills, 1), timeout=120, output='none')
        finally:
            over.set()
            t.join()
        again = []
        for a in killed:
            at = [number(Path(folder, f'{a}.{r}.at')) for r in (0, 1)]
            start = next((n for b in range(a + 1, kills + 1) if (n := number(Path(folder, f'{b}.0.from'))) is not None), None)
            if start is not None and None not in at: again.append(max(at) - start)
    return results, len(killed), max(again, default=0)

def same(a, b): return a[1:3] == b[1:3] and all(torch.equal(p, q) for i in (3, 4) for p, q in zip(a[i], b[i], strict=True))

if __name__ == '__main__':
    parse = argparse.ArgumentParser()
    parse.add_argument('--kills', type=int, default=20)
    parse.add_argument('--seed', type=int, default=0)
    parse.add_argument('--rows', default=','.join(rows))
    args = parse.parse_args()
    torch.set_num_threads(1)
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # launch says that it starts again
    rng, found = random.Random(args.seed), {}
    for row in args.rows.split(','):
        fit(row)  # the first start is slower than those of the kills
        start = time.monotonic()
        straight, _, _ = fit(row)
        longest = time.monotonic() - start
        results, kills, again = fit(row, args.kills, rng, longest, straight[0][1][0][-1])
        found[row] = dict(kills=kills, equal=all(same(a, b) for a, b in zip(straight, results)), attempts=results[0][0] + 1, steps_again=again, steps=straight[0][1][0][-1])
    os.dup2(out, 1)
    print(json.dumps(dict(total=sum(r['kills'] for r in found.values()), equal=sum(r['kills']*r['equal'] for r in found.values()), again=max(r['steps_again'] for r in found.values()), interval=min(rows[k][2] or items//size//2 for k in found), torch=torch.__version__, rows=found)))
