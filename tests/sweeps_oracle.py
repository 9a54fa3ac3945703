"""Writes tests/data/sweeps-oracle.json: what W&B's own engine answers. It pins numpy<2, so it has an environment of its own:

    python -m venv /tmp/oracle && /tmp/oracle/bin/pip install 'numpy<2' sweeps==0.3.0
    /tmp/oracle/bin/python tests/sweeps_oracle.py
"""
import json
import math
import random
from pathlib import Path

places = [k/200 for k in range(1, 200)] + [1e-9, 1e-6, 1e-4, 1-1e-4, 1-1e-6, .3333333, .6666667]

dense = [
    dict(value='x'), dict(value=None), dict(distribution='constant', value=3),
    dict(values=['a', 'b', 'c']), dict(values=[.1, .01, 0, 'a', None, True]), dict(distribution='categorical', values=list(range(7))),
    dict(values=['a', 'b', 'c'], probabilities=[.2, .5, .3]), dict(distribution='categorical_w_probabilities', values=[1, 2, 3, 4], probabilities=[.1, 0, .8, .1]),
    dict(min=1, max=6), dict(distribution='int_uniform', min=-3, max=8), dict(min=0, max=1000),
    dict(min=0., max=1.), dict(distribution='uniform', min=-5, max=3), dict(distribution='uniform', min=1e-6, max=2e-6),
    dict(distribution='q_uniform', min=0, max=10, q=3), dict(distribution='q_uniform', min=0., max=1., q=.3), dict(distribution='q_uniform', min=16, max=256, q=24), dict(distribution='q_uniform', min=0, max=5),
    dict(distribution='log_uniform', min=-9.2, max=-2.3), dict(distribution='log_uniform', min=0, max=3),
    dict(distribution='log_uniform_values', min=1e-5, max=.1), dict(distribution='log_uniform_values', min=1, max=1000),
    dict(distribution='q_log_uniform', min=0, max=4, q=1), dict(distribution='q_log_uniform', min=-2, max=2, q=.25), dict(distribution='q_log_uniform', min=1, max=5),
    dict(distribution='q_log_uniform_values', min=16, max=1024, q=16), dict(distribution='q_log_uniform_values', min=.01, max=1, q=.01),
    dict(distribution='inv_log_uniform', min=1, max=5), dict(distribution='inv_log_uniform', min=-2.5, max=.5),
    dict(distribution='inv_log_uniform_values', min=.5, max=50),
    dict(distribution='normal'), dict(distribution='normal', mu=-3, sigma=.01),
    dict(distribution='q_normal', mu=64, sigma=20, q=8), dict(distribution='q_normal', mu=0, sigma=1, q=.5), dict(distribution='q_normal'),
    dict(distribution='log_normal'), dict(distribution='log_normal', mu=-5, sigma=2),
    dict(distribution='q_log_normal', mu=2, sigma=1, q=2), dict(distribution='q_log_normal', mu=0, sigma=.5, q=.1),
    dict(distribution='beta', a=2, b=5), dict(distribution='beta', a=.5, b=.5), dict(distribution='beta'),
    dict(distribution='q_beta', a=2, b=3, q=.1), dict(distribution='q_beta', a=5, b=1, q=.25),
]


def plain(v):
    v = v.item() if hasattr(v, 'item') else v
    return float(f'{v:.14g}') if isinstance(v, float) else v


def quantiles():
    from sweeps.params import HyperParameter
    return [[spec, [plain(HyperParameter('x', dict(spec)).ppf(u)) for u in places]] for spec in dense]


def rule(rng):
    e = dict(type='hyperband')
    if rng.random()<.5: e |= dict(min_iter=rng.choice([1, 1, 2, 3, 5]))
    else: e |= dict(max_iter=rng.choice([8, 9, 27, 30, 81]), s=rng.choice([1, 2, 3, 5]))
    if rng.random()<.7: e['eta'] = rng.choice([2, 2.5, 3, 4])
    if rng.random()<.8: e['strict'] = rng.random()<.5
    return dict(method='random', metric=dict(name='m', goal=rng.choice(['minimize', 'maximize'])), early_terminate=e, parameters=dict(a=dict(min=0, max=9)))


def history(rng):
    values = [rng.choice([rng.randrange(100), rng.randrange(10), rng.randrange(10)]) for _ in range(rng.choice([0, 1, 2, 3, 3, 4, 6, 9, 9, 10, 13]))]
    for i in range(len(values)):
        if rng.random()<.04: values[i] = rng.choice([math.nan, math.inf, -math.inf])
    return values


def stops(n=1000):
    from sweeps import RunState, SweepRun, stop_runs
    found, rng = [], random.Random(8)
    while len(found)<n:
        spec = rule(rng)
        runs = [[rng.choice(['running', 'running', 'running', 'finished', 'failed']), history(rng)] for _ in range(rng.choice([1, 2, 3, 4, 5, 6, 8]))]
        theirs = [SweepRun(name=str(i), config=dict(a=dict(value=1)), state=RunState(state), history=[dict(m=v) for v in values], summaryMetrics={}) for i, (state, values) in enumerate(runs)]
        try: stopped = sorted(int(o.name) for o in stop_runs(spec, theirs))
        except ValueError: continue # no band is left: we refuse the file
        found.append([{k: spec[k] for k in ('metric', 'early_terminate')}, runs, stopped])
    return found


def main():
    path = Path(__file__).parent/'data'/'sweeps-oracle.json'
    old = json.loads(path.read_text())
    data = dict(about="Answers of W&B's own engine, sweeps 0.3.0 (MIT), written by tests/sweeps_oracle.py: quantiles [spec, us, values], grids [spec, points] of an earlier run; dense [spec, values at places]; stops [metric and rule, [state, history], stopped]",
        quantiles=old['quantiles'], grids=old['grids'], places=places, dense=quantiles(), stops=stops())
    path.write_text(json.dumps(data, separators=(',', ':'))+'\n')
    print(path.stat().st_size, len(data['stops']), sum(bool(o[2]) for o in data['stops']))


if __name__ == '__main__': main()
