"Problems that a search is measured on: `six` of the report, and `others`, by which our own search was chosen."
import math
from pathlib import Path

import numpy as np

here = Path(__file__).resolve().parent


def box(n, lo, hi): return {f'x{i}': dict(distribution='uniform', min=float(lo), max=float(hi)) for i in range(n)}
def xs(p): return np.array([p[f'x{i}'] for i in range(len(p))])

def branin(x): return (x[1] - 5.1/(4*math.pi**2)*x[0]**2 + 5/math.pi*x[0] - 6)**2 + 10*(1 - 1/(8*math.pi))*math.cos(x[0]) + 10

A6 = np.array([[10, 3, 17, 3.5, 1.7, 8], [.05, 10, 17, .1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, .05, 10, .1, 14]])
P6 = 1e-4*np.array([[1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991], [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381]])
A3 = np.array([[3, 10, 30], [.1, 10, 35], [3, 10, 30], [.1, 10, 35]])
P3 = 1e-4*np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]])
def hartmann(x, a, p): return -float(np.array([1, 1.2, 3, 3.2])@np.exp(-(a*(x - p)**2).sum(1)))

def ackley(x): return float(-20*np.exp(-.2*np.sqrt((x**2).mean())) - np.exp(np.cos(2*np.pi*x).mean()) + 20 + math.e)
def rosenbrock(x): return float((100*(x[1:] - x[:-1]**2)**2 + (1 - x[:-1])**2).sum())

MIXED = dict(lr=dict(distribution='log_uniform_values', min=1e-5, max=1.), dropout=dict(min=0., max=.7), depth=dict(min=1, max=8), width=dict(distribution='q_log_uniform_values', min=16, max=512, q=1),
    opt=dict(values=['sgd', 'adam', 'adamw']), act=dict(values=['relu', 'gelu', 'tanh']))

def mixed(p):
    o, b = dict(sgd=(-1., .06), adam=(-3., .02), adamw=(-2.7, 0.))[p['opt']]
    b += dict(relu=.03, gelu=0., tanh=.05)[p['act']]
    l, t, c = math.log10(p['lr']), o - .15*(p['depth'] - 3), .6*math.log2(p['width']) + .5*p['depth']
    return b + .12*min((l - t)**2, 4) + .02*(c - 6.4)**2 + .25*(p['dropout'] - .1 - .05*max(c - 5, 0))**2 + .05*(p['opt']=='sgd' and p['act']=='tanh') + .01*math.sin(7*l)

def digits():
    "1,440 trained networks: 6 hyperparameters, the value of the last of 27 epochs."
    with np.load(here.parents[1]/'data'/'digits-final.npz') as z: table = {k: z[k] for k in z.files}
    value, names = table.pop('value'), ('width', 'act', 'opt', 'lr', 'wd', 'dropout')
    values = {k: table[k].tolist() for k in names}
    return {k: dict(values=v) for k, v in values.items()}, lambda p: float(value[tuple(values[k].index(p[k]) for k in names)])

shift = np.array([5.3, -9.1, 12.7, -3.9, 8.2])
six = dict(branin=lambda: (dict(x0=dict(min=-5., max=10.), x1=dict(min=0., max=15.)), lambda p: branin(xs(p))),
    hartmann6=lambda: (box(6, 0, 1), lambda p: hartmann(xs(p), A6, P6)),
    ackley5=lambda: (box(5, -32.768, 32.768), lambda p: ackley(xs(p) - shift)),
    rosenbrock5=lambda: (box(5, -5, 10), lambda p: math.log10(.001 + rosenbrock(xs(p)))),
    mixed=lambda: (MIXED, mixed), digits=digits)

# by these the search was chosen

def levy(x):
    w = 1 + (x - 1)/4
    return float(np.sin(np.pi*w[0])**2 + ((w[:-1] - 1)**2*(1 + 10*np.sin(np.pi*w[:-1] + 1)**2)).sum() + (w[-1] - 1)**2*(1 + np.sin(2*np.pi*w[-1])**2))
def griewank(x): return float((x**2).sum()/4000 - np.prod(np.cos(x/np.sqrt(np.arange(1, len(x) + 1)))) + 1)
def styblinski(x): return float(.5*(x**4 - 16*x**2 + 5*x).sum())
def rastrigin(x): return float((x**2 - 10*np.cos(2*np.pi*x) + 10).sum())
def camel(x): return float((4 - 2.1*x[0]**2 + x[0]**4/3)*x[0]**2 + x[0]*x[1] + 4*(x[1]**2 - 1)*x[1]**2)
def dixon(x): return float((x[0] - 1)**2 + (np.arange(2, len(x) + 1)*(2*x[1:]**2 - x[:-1])**2).sum())
def goldstein(x):
    a, b = x
    return math.log((1 + (a + b + 1)**2*(19 - 14*a + 3*a*a - 14*b + 6*a*b + 3*b*b))*(30 + (2*a - 3*b)**2*(18 - 32*a + 12*a*a + 48*b - 36*a*b + 27*b*b)))

def training(seed):
    "A made-up training: loss by learning rate, batch, decay, layers, optimiser, schedule and norm, with optima that move with one another."
    r = np.random.default_rng(seed)
    best, lean = r.uniform(-4, -1.5, 3), r.normal(0, .3, 4)
    cats, extra = r.uniform(0, .15, (3, 3)), r.uniform(0, .08, (3, 2))
    space = dict(lr=dict(distribution='log_uniform_values', min=1e-6, max=.5), wd=dict(distribution='log_uniform_values', min=1e-6, max=.1), batch=dict(values=[16, 32, 64, 128, 256]), layers=dict(min=1, max=12),
        opt=dict(values=['a', 'b', 'c']), sched=dict(values=['x', 'y', 'z']), norm=dict(values=[True, False]), warm=dict(min=0., max=.3))
    def f(p):
        o, s, n = 'abc'.index(p['opt']), 'xyz'.index(p['sched']), int(p['norm'])
        l = math.log10(p['lr']) - best[o] - lean[0]*(math.log2(p['batch']) - 6) + abs(lean[1])*(p['layers'] - 4)/3
        return float(cats[o, s] + extra[o, n] + .3*(1 - math.exp(-.5*l*l)) + .02*(math.log10(p['wd']) + 3.5 + lean[2])**2 + .006*(p['layers'] - 6 - 4*lean[3])**2 + .5*(p['warm'] - .1)**2 + (.6 if l > 1.5 else 0))
    return space, f

def forest(seed):
    "A table of small random forests of its own kind: piecewise constant in 5 numbers and a category."
    r = np.random.default_rng(seed)
    trees = [[(int(r.integers(5)), float(r.beta(2, 2)), float(r.normal())) for _ in range(7)] for _ in range(40)]
    cat = r.normal(0, 1, (40, 3))*.5
    space = dict(box(4, 0, 1), n=dict(min=0, max=9), c=dict(values=['p', 'q', 'r']))
    def f(p):
        x, c = [p['x0'], p['x1'], p['x2'], p['x3'], p['n']/9], 'pqr'.index(p['c'])
        smooth = sum((v - w)**2 for v, w in zip(x, (.3, .7, .2, .6, .4)))
        return float(sum(sum(w for i, t, w in tree if x[i] > t)**2*.05 + cat[k, c]*.2 for k, tree in enumerate(trees))*.1 + 2*smooth)
    return space, f

others = dict(hartmann3=lambda: (box(3, 0, 1), lambda p: hartmann(xs(p), A3, P3)), levy5=lambda: (box(5, -10, 10), lambda p: levy(xs(p) - np.array([1.3, -2.1, .4, 2.6, -3.3]))),
    griewank6=lambda: (box(6, -60, 40), lambda p: griewank(xs(p))), styblinski5=lambda: (box(5, -5, 5), lambda p: styblinski(xs(p))), rastrigin4=lambda: (box(4, -5.12, 4), lambda p: rastrigin(xs(p) - .7)),
    camel=lambda: (dict(x0=dict(min=-3., max=3.), x1=dict(min=-2., max=2.)), lambda p: camel(xs(p))), dixon4=lambda: (box(4, -10, 10), lambda p: math.log10(.001 + dixon(xs(p)))),
    goldstein=lambda: (box(2, -2, 2), lambda p: goldstein(xs(p))), training1=lambda: training(1), training2=lambda: training(2), training3=lambda: training(3), forest1=lambda: forest(1), forest2=lambda: forest(2))
