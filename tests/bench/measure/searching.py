"The best value after 50 trials on six problems, and the CPU of an ask: searching.py WHO [PROBLEM ...]. The turn is the seed."
import json
import math
import os
import random
import sys
import time
import warnings

for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ[name] = '1'
import numpy as np
import search_problems

trials, seed = 50, 1000 + int(os.environ.get('BENCH_TURN', 0))

def mlstack(kind):
    from mlstack.sweeps import make_search
    def start(space):
        s = make_search(dict(method='bayes', metric=dict(name='loss'), parameters=space), seed, budget=trials, kind=kind)
        def ask(): return {path[0]: v for path, v in s.ask().items()}
        return ask, lambda config, value: s.tell(len(s.points) - 1, value), s.close
    return start

def optuna(kind):
    import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter('ignore')
    samplers = dict(tpe=lambda: optuna.samplers.TPESampler(seed=seed), cma=lambda: optuna.samplers.CmaEsSampler(seed=seed), random=lambda: optuna.samplers.RandomSampler(seed=seed),
        gp=lambda: optuna.samplers.GPSampler(seed=seed, deterministic_objective=True))
    if kind == 'gp': import torch; torch.set_num_threads(1)
    def suggest(trial, name, p):  # lists of numbers as an index, so that it sees their order
        if 'values' in p:
            number = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in p['values'])
            return sorted(p['values'])[trial.suggest_int(name, 0, len(p['values']) - 1)] if number else trial.suggest_categorical(name, p['values'])
        if p.get('q') or isinstance(p['min'], int): return trial.suggest_int(name, p['min'], p['max'], log='log' in p.get('distribution', ''))
        return trial.suggest_float(name, p['min'], p['max'], log='log' in p.get('distribution', ''))
    def start(space):
        study, last = optuna.create_study(sampler=samplers[kind]()), []
        def ask():
            last[:] = [study.ask()]
            return {name: suggest(last[0], name, p) for name, p in space.items()}
        return ask, lambda config, value: study.tell(last[0], value), lambda: None
    return start

def wandb(kind):
    import sweeps
    warnings.simplefilter('ignore')
    random.seed(seed)
    np.random.seed(seed)
    def start(space):
        config, runs = dict(method='bayes', metric=dict(name='loss', goal='minimize'), parameters=space), []
        def ask():
            runs.append(sweeps.next_run(config, runs))
            return {k: v['value'] for k, v in runs[-1].config.items()}
        def tell(_, value):
            runs[-1] = sweeps.SweepRun(name=str(len(runs)), state=sweeps.RunState.finished, config=runs[-1].config, summary_metrics=dict(loss=value), history=[dict(loss=value)])
        return ask, tell, lambda: None
    return start

def hyperopt(kind):
    from hyperopt import Trials, fmin, hp, tpe
    def node(name, p):
        if 'values' in p: return hp.choice(name, p['values'])
        lo, hi = p['min'], p['max']
        if p.get('q'): return hp.qloguniform(name, math.log(lo), math.log(hi), p['q'])
        if 'log' in p.get('distribution', ''): return hp.loguniform(name, math.log(lo), math.log(hi))
        return hp.uniformint(name, lo, hi) if isinstance(lo, int) else hp.uniform(name, lo, hi)
    def whole(space, f):
        fmin(f, {k: node(k, p) for k, p in space.items()}, algo=tpe.suggest, max_evals=trials, trials=Trials(), rstate=np.random.default_rng(seed), verbose=False, show_progressbar=False)
    return whole

def best(start, problem):
    space, f = search_problems.six[problem]()
    found, spent = [], []
    ask, tell, close = start(space)
    total = time.process_time()
    for _ in range(trials):
        c = time.thread_time()
        config = ask()
        spent.append(time.thread_time() - c)
        found.append(f(config))
        tell(config, found[-1])
    total = time.process_time() - total
    close()
    return min(found), sorted(spent)[trials//2]*1e3, total

def main():
    who, *names = sys.argv[1:]
    peer, _, kind = who.partition('-')
    if peer == 'hyperopt':
        out = {}
        for name in names or search_problems.six:
            space, f = search_problems.six[name]()
            found = []
            c = time.process_time()
            def loss(config, f=f, found=found):
                found.append(f(config))
                return found[-1]
            hyperopt(kind)(space, loss)
            out[name] = min(found)
            out.setdefault('cpu', []).append(time.process_time() - c)
        return print(json.dumps({k: v for k, v in out.items() if k != 'cpu'} | dict(cpu=sum(out['cpu'])/len(out['cpu']))))
    start = dict(mlstack=mlstack, optuna=optuna, wandb=wandb)[peer](kind)
    got = {name: best(start, name) for name in names or search_problems.six}
    mean = lambda i: float(np.mean([o[i] for o in got.values()]))
    print(json.dumps({name: o[0] for name, o in got.items()} | dict(ask=mean(1), cpu=mean(2))))

if __name__ == '__main__': main()
