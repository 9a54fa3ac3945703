"The CPU of an ask far into a sweep: asking.py WHO."
import json
import os
import sys
import time
import warnings

for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ[name] = '1'
import numpy as np

space = dict(a=dict(min=0., max=1.), b=dict(min=0., max=1.), lr=dict(distribution='log_uniform_values', min=1e-5, max=1.), width=dict(min=1, max=64), act=dict(values=['x', 'y', 'z']))
noise = np.random.default_rng(0)

def value(p): return (p['a'] - .3)**2 + p['b']*p['lr'] + abs(p['width'] - 20)/64 + .2*(p['act'] == 'x') + .1*float(noise.random())

def mlstack(kind):
    from mlstack.sweeps import make_search
    s = make_search(dict(method='bayes', metric=dict(name='loss'), parameters=space), 0, kind=kind)
    return lambda: {path[0]: v for path, v in s.ask().items()}, lambda config, v: s.tell(len(s.points) - 1, v)

def optuna(kind):
    import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter('ignore')
    sampler = dict(random=optuna.samplers.RandomSampler, tpe=optuna.samplers.TPESampler, cma=optuna.samplers.CmaEsSampler, gp=optuna.samplers.GPSampler)[kind](seed=0)
    study, last = optuna.create_study(sampler=sampler), []
    def ask():
        last[:] = [study.ask()]
        t = last[0]
        return dict(a=t.suggest_float('a', 0, 1), b=t.suggest_float('b', 0, 1), lr=t.suggest_float('lr', 1e-5, 1, log=True), width=t.suggest_int('width', 1, 64), act=t.suggest_categorical('act', ['x', 'y', 'z']))
    return ask, lambda config, v: study.tell(last[0], v)

def waited(ask, tell):
    "What a free worker waits, at the median of 50 trials of 0.1 s."
    found = []
    for _ in range(50):
        t = time.perf_counter()
        config = ask()
        found.append(time.perf_counter() - t)
        time.sleep(.1)
        tell(config, value(config))
    return sorted(found)[25]*1e3

def main():
    peer, _, kind = sys.argv[1].partition('-')
    out = dict(wait=waited(*dict(mlstack=mlstack, optuna=optuna)[peer](kind)))
    ask, tell = dict(mlstack=mlstack, optuna=optuna)[peer](kind)
    spent, process = [], {}
    for k in range(50 if (peer, kind) == ('optuna', 'gp') else 10_020):
        process[k] = time.process_time()
        c = time.thread_time()
        config = ask()
        spent.append(time.thread_time() - c)
        tell(config, value(config))
        if k + 1 in (120, 1020, 10_020): out[{120: 'at100', 1020: 'at1000', 10_020: 'at10000'}[k + 1]] = sorted(spent[-20:])[10]*1e3
        if k == 1020 and (out['at1000'] > 50 or kind in ('gp', 'auto')):
            if peer == 'mlstack': out['ahead'] = (process[1020] - process[900])/120*1e3 - out['at1000']
            break
    print(json.dumps(out), flush=True)
    os._exit(0)

if __name__ == '__main__': main()
