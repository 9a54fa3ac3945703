"stopping.py RULE [SEEDS] [METHOD] [TRIALS]: epochs until a configuration of the best 1 % is trained, on recorded learning curves; the sweep, its search, its rule and its journal are the real ones."
import heapq, json, os, random, shutil, sys, tempfile
from pathlib import Path
import numpy as np
from mlstack.sweeps import Sweep

data = np.load(Path(__file__).resolve().parents[2]/'data'/'digits-curves.npz')
curves, names = data['curves'], ['width', 'act', 'opt', 'lr', 'wd', 'dropout']
values = {n: data[n].tolist() for n in names}
place = [{v: i for i, v in enumerate(values[n])} for n in names]
length = curves.shape[-1]
target = float(np.quantile(curves[..., -1], .01)) # 15 of the 1,440

rules = {'none': None, 'median': dict(type='median', min_iter=3), 'wandb strict': dict(type='hyperband', min_iter=1, strict=True), 'wandb strict 3': dict(type='hyperband', min_iter=3, strict=True),
    'wandb not strict': dict(type='hyperband', min_iter=1, strict=False), 'wandb not strict 3': dict(type='hyperband', min_iter=3, strict=False),
    'asha': dict(type='asha', min_iter=1, max_iter=length), 'asha 4': dict(type='asha', min_iter=1, max_iter=length, eta=4), 'asha stopping': dict(type='asha', min_iter=1, max_iter=length)}

def sweep_of(rule, seed, method, folder):
    spec = dict(method=method, metric=dict(name='error'), parameters={n: dict(values=v) for n, v in values.items()}) | (dict(early_terminate=rules[rule]) if rules[rule] else {})
    s = Sweep(spec, seed=seed, runs_dir=folder, durable=False)
    if rule=='asha stopping': s.rule.waits = False # nobody has a checkpoint
    return s

def epochs_to_the_best(s, seed, workers=4, most=None):
    "Four workers that ask whenever they are free; epochs take nearly the same time. Returns (epochs, whether it was found, trials)."
    rng, at, events, spent, told = random.Random(seed), {}, [], 0, 0
    def feed(now):
        if most and told>=most or (t := s.ask()) is None: return
        heapq.heappush(events, (now + rng.uniform(.9, 1.1), t.number))
    for _ in range(workers): feed(rng.random())
    while events:
        now, n = heapq.heappop(events)
        t = s.trials[n]
        at[n], spent = at.get(n, 0) + 1, spent + 1
        curve = curves[tuple(p[t.config[name]] for p, name in zip(place, names))]
        go = s.report(t, at[n], float(curve[at[n]-1]))
        if at[n]==length and curve[-1]<=target: return spent, True, len(s.trials)
        if go and at[n]<length:
            heapq.heappush(events, (now + rng.uniform(.9, 1.1), n))
            continue
        if t.pausing: s.suspend(t, t.stopping, saved=True)
        else: s.tell(t)
        told += 1
        feed(now)
    return spent, False, len(s.trials)

if __name__=='__main__':
    rule, seeds, method, most = sys.argv[1], int(sys.argv[2]) if len(sys.argv)>2 else 100, sys.argv[3] if len(sys.argv)>3 else 'random', int(sys.argv[4]) if len(sys.argv)>4 else None
    folder, found = tempfile.mkdtemp(dir='/dev/shm' if os.path.isdir('/dev/shm') else None), []
    try:
        for seed in range(seeds):
            s = sweep_of(rule, seed, method, Path(folder)/str(seed))
            found.append(epochs_to_the_best(s, seed, most=most))
            s.close()
    finally: shutil.rmtree(folder)
    epochs = sorted(e for e, _, _ in found)
    q = lambda p: float(np.quantile(epochs, p))
    print(json.dumps(dict(epochs=q(.5), low=q(.25), high=q(.75), mean=float(np.mean(epochs)), found=100*sum(ok for _, ok, _ in found)/seeds, trials=float(np.median([n for _, _, n in found])), seeds=seeds)))
