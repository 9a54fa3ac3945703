"Searches: no repetition, the same answers after a replay, conditions, constraints, failures, several objectives, and what a space does to numbers."
import itertools
import math
import random

import numpy as np
import pytest

from mlstack.sweeps import SpecError, make_search, read_spec
from mlstack.sweeps.distributions import choices, key_of
from mlstack.sweeps.encoding import Space, neighbours
from mlstack.sweeps.models import GP, Prior, fit, log_improvement, misfit, squares
from mlstack.sweeps.search import kinds, param_importance, point_key

KINDS = [k for k in kinds if k not in ('random','auto')]
MIXED = dict(a=dict(min=0., max=1.), lr=dict(distribution='log_uniform_values', min=1e-5, max=1.), width=dict(distribution='q_log_uniform_values', min=16, max=128, q=16), depth=dict(min=1, max=6),
    act=dict(values=['relu','gelu','tanh']), flag=dict(values=[True,False]), wd=dict(values=[0,1e-3,1e-2]), rare=dict(values=['x','y'], probabilities=[.9,.1]), n=dict(distribution='normal', mu=0., sigma=2.), k=dict(value=7))


def bayes(parameters, **kw): return dict(method='bayes', metric=dict(name='loss'), parameters=parameters)|kw


def value(p): return sum(v if isinstance(v,(int,float)) else len(str(v)) for v in p.values())


def run(s, n, f=value):
    for i in range(n):
        p = s.ask()
        if p is None: break
        s.tell(i, f(p))
    s.close()
    return s


class Conditions:
    "A spec with conditions and constraints, whether or not the file can say them."
    def __init__(self, spec, conditions, constraints=()): self.__dict__.update(read_spec(spec).__dict__, conditions=conditions, constraints=constraints)
    goal = 'minimize'
    def active(self, point): return [path for path in point if all(key_of(point[o]) in keys for o,keys in self.conditions.get(path,{}).items())]


class Holds:
    def __init__(self, f): self.holds = f


def conditional(**kw):
    from mlstack.sweeps.search import _search_class
    spec = Conditions(bayes(dict(opt=dict(values=['sgd','adam']), momentum=dict(min=0., max=1.), lr=dict(min=0., max=1.))), {('momentum',):{('opt',):{key_of('sgd')}}}, **kw)
    return spec,lambda kind, seed=0: _search_class(spec, kind)(spec, seed)


# spaces

def test_every_value_comes_back():
    space = Space(read_spec(bayes(MIXED)))
    rng = np.random.default_rng(0)
    for row in space.draw(rng.random((200,len(space)))):
        point = space.decode(row)
        again = space.decode(space.encode(point))
        assert point_key(again)==point_key(point) or all(math.isclose(again[p],v,rel_tol=1e-9) for p,v in point.items() if again[p]!=v)


def test_snapped_neighbours_exist():
    space = Space(read_spec(bayes(MIXED)))
    rng = np.random.default_rng(1)
    rows = neighbours(space, space.draw(rng.random((300,len(space)))), 10**-rng.uniform(0,4,300), rng)
    np.testing.assert_allclose(rows, np.array([space.encode(space.decode(r)) for r in rows]), atol=1e-9)


def test_draws_follow_the_distribution():
    space = Space(read_spec(bayes(MIXED)))
    rows = space.draw(np.random.default_rng(2).random((20_000,len(space))))
    i = list(space.axes).index(('rare',))
    assert abs((rows[:,i]==0).mean()-.9)<.01
    j = list(space.axes).index(('depth',))
    assert np.abs(np.unique(rows[:,j], return_counts=True)[1]/20_000-1/6).max()<.01


def test_lookalikes_have_codes_of_their_own():
    space = Space(read_spec(bayes(dict(x=dict(values=[0,False,'',None,'0',1,True])))))
    assert len({tuple(space.encode({('x',):v})) for v in (0,False,'',None,'0',1,True)})==7


# the model

def test_gradient_in_many_random_places():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        d,n = rng.integers(1,5),rng.integers(3,15)
        x,category = rng.random((n,d)),rng.random(d)<.4
        x[:,category] = rng.integers(3, size=(n,category.sum()))
        y,t,r2 = rng.normal(size=n),rng.normal(size=d+2)*.5,squares(x,x,category)
        _,slope = misfit(t, r2, y, Prior(d))
        e = 1e-6*np.eye(d+2)
        numeric = [(misfit(t+o,r2,y,Prior(d))[0]-misfit(t-o,r2,y,Prior(d))[0])/2e-6 for o in e]
        np.testing.assert_allclose(slope, numeric, rtol=1e-4, atol=1e-4)


def test_fit_is_the_lowest_of_its_starts_and_repeatable():
    rng = np.random.default_rng(0)
    x = rng.random((20,3))
    y,none = np.sin(4*x[:,0])+.3*x[:,1],np.zeros(3,bool)
    a,b = (fit(x, y, none, Prior(3), np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert misfit(a, squares(x,x,none), y, Prior(3))[0] <= misfit(fit(x, y, none, Prior(3), np.random.default_rng(5), starts=1), squares(x,x,none), y, Prior(3))[0]+1e-9


def test_points_that_coincide_do_not_break_it():
    x = np.repeat(np.random.default_rng(0).random((4,2)), 5, 0)
    gp = GP(x, np.arange(20.), np.zeros(2,bool), np.array([0.,0.,0.,-18.]))
    assert np.isfinite(gp.at(x)[0]).all()


def test_improvement_grows_with_hope_and_doubt():
    v = log_improvement(np.linspace(-5,50,200), np.ones(200), 0.)
    assert np.isfinite(v).all() and (np.diff(v)<0).all()
    assert log_improvement(np.ones(1), np.ones(1)*4, 0.)>log_improvement(np.ones(1), np.ones(1), 0.)


# what all searches hold

@pytest.mark.parametrize('kind', KINDS)
def test_a_finite_space_is_searched_once(kind):
    s = make_search(bayes(dict(a=dict(values=[.1,.01,0]), b=dict(min=1, max=4), c=dict(values=[True,False,None]))), seed=3, kind=kind)
    points = [s.ask() for _ in range(3)]
    for i in itertools.count():
        s.tell(i, value({k:v or 0 for k,v in s.points[i].items()}) if i%7 else None)
        if (p := s.ask()) is None: break
        points.append(p)
    s.close()
    assert len(points)==36==len({point_key(p) for p in points})


@pytest.mark.parametrize('kind', ['gp','tpe','cma'])
def test_a_large_finite_space_too(kind):
    s = make_search(bayes({k:dict(min=1, max=30) for k in 'abc'}), seed=3, kind=kind)
    assert len({point_key(p) for p in run(s, 40, lambda p: (p[('a',)]-9)**2).points})==40


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('workers', [1,3])
def test_a_replay_goes_on_as_the_search_would_have(kind, workers):
    def go(s, n, log):
        rng,running = random.Random(7),[]
        while len(s.points)<n:
            while len(running)<workers: log.append(('add',s.ask())); running.append(len(s.points)-1)
            i = running.pop(rng.randrange(len(running)))
            v = None if i==4 else value(s.points[i])
            log.append((i,v)); s.tell(i, v)
        s.close()
    whole,log = make_search(bayes(MIXED), seed=2, kind=kind),[]
    go(whole, 22, log)
    for cut in (3, 14, 31):
        half = make_search(bayes(MIXED), seed=2, kind=kind)
        for what,v in log[:cut]:
            if what=='add': half.add(v)
            else: half.tell(what, v)
        for what,v in log[cut:]:
            if what=='add': assert half.ask()==v
            else: half.tell(what, v)
        half.close()


def test_the_thread_changes_no_answer():
    a,b = (make_search(bayes(MIXED), seed=5) for _ in range(2))
    b.ahead = lambda: None
    for i in range(20):
        assert a.ask()==b.ask()
        for s in (a,b): s.tell(i, value(s.points[i]))
    assert a._thread and not b._thread
    a.close()
    assert a._thread is None
    assert a.ask()==b.ask()
    a.close()


@pytest.mark.parametrize('kind', KINDS)
def test_parallel_suggestions_differ(kind):
    s = make_search(bayes(dict(x=dict(min=0., max=1.), y=dict(min=0., max=1.))), seed=0, kind=kind)
    for i in range(12): s.ask(); s.tell(i, value(s.points[i]))
    xs = [s.ask() for _ in range(6)]
    s.close()
    assert min(max(abs(a[k]-b[k]) for k in a) for a,b in itertools.combinations(xs,2))>1e-6


# better than chance, and the right way round

@pytest.mark.parametrize('kind', ['gp','tpe','cma'])
@pytest.mark.parametrize('goal', ['minimize','maximize'])
def test_better_than_chance(kind, goal):
    sign = 1 if goal=='minimize' else -1
    space = dict(x=dict(min=0., max=1.), y=dict(min=0., max=1.), c=dict(values=['good','bad']))
    def f(p): return sign*((p[('x',)]-.3)**2+(p[('y',)]-.8)**2+(p[('c',)]=='bad'))
    def best(k): return np.mean([min(run(make_search(dict(method='bayes', metric=dict(name='l', goal=goal), parameters=space), seed, kind=k), 25, f).scores.values()) for seed in range(2)])
    assert best(kind)<best('random')


def test_huge_and_odd_values():
    values = [1e300,-1e300,math.inf,math.nan,None,True,1e-320,3.,3.,3.]
    for kind in ('gp','tpe','cma'):
        s = make_search(bayes(MIXED), kind=kind)
        for i in range(24): s.ask(); s.tell(i, values[i%len(values)])
        s.close()
        assert s.scores[2] is None and s.scores[3] is None


def test_all_values_equal(): assert len({point_key(p) for p in run(make_search(bayes(MIXED)), 15, lambda p: 1.).points})==15


# failures, conditions, constraints

def test_a_corner_that_fails_is_left():
    def f(p): return None if p[('x',)]+p[('y',)]>1.2 else -p[('x',)]-p[('y',)]
    s = run(make_search(bayes(dict(x=dict(min=0., max=1.), y=dict(min=0., max=1.))), seed=1), 40, f)
    failed = [i for i in range(40) if s.scores[i] is None]
    assert min(v for v in s.scores.values() if v is not None)<-1.1 # it goes near the edge
    assert len(failed)<28 # about every second probe of an edge falls over it


@pytest.mark.parametrize('kind', [*KINDS,'random'])
def test_conditions(kind):
    spec,make = conditional()
    s = run(make(kind), 25, lambda p: abs(p[('lr',)]-.2)+(abs(p[('momentum',)]-.9) if p[('opt',)]=='sgd' else .5))
    assert all((('momentum',) in p)==(p[('opt',)]=='sgd') for p in s.points)
    assert {p[('opt',)] for p in s.points}=={'sgd','adam'}


@pytest.mark.parametrize('kind', [*KINDS,'random'])
def test_constraints(kind):
    spec,make = conditional(constraints=[Holds(lambda p: p[('lr',)]<.5), Holds(lambda p: p.get(('momentum',),0)<p[('lr',)])])
    s = run(make(kind), 25)
    assert all(p[('lr',)]<.5 and p.get(('momentum',),0)<p[('lr',)] for p in s.points)


def test_finite_spaces_with_conditions_and_constraints_end():
    from mlstack.sweeps.search import _search_class
    for method,kind in (('grid','auto'),('random','auto'),('bayes','gp'),('bayes','tpe')):
        spec = dict(method=method, metric=dict(name='l'), parameters=dict(o=dict(values=['a','b']), m=dict(values=[1,2,3]), w=dict(values=[1,2])))
        spec = Conditions(spec, {('m',):{('o',):{key_of('a')}}}, [Holds(lambda p: p.get(('m',),0)*p[('w',)]<6)])
        s = _search_class(spec, kind)(spec, 0)
        assert len(run(s, 99, lambda p: p[('w',)]).points)==5+2==s.size


def test_constraints_that_nothing_meets():
    spec,make = conditional(constraints=[Holds(lambda p: False)])
    with pytest.raises(SpecError, match='constraints'): make('random').ask()


# several objectives, earlier results, repeats

@pytest.mark.parametrize('kind', ['gp','tpe','random'])
def test_the_front(kind):
    s = make_search(bayes(dict(x=dict(min=0., max=1.), y=dict(min=0., max=1.))), kind=kind)
    s.metrics = ['minimize','maximize']
    run(s, 30, lambda p: (p[('x',)]**2+p[('y',)], -(p[('x',)]-1)**2-p[('y',)]))
    for i in s.front: assert not any(all(a<=b for a,b in zip(s.scores[j],s.scores[i],strict=True)) and s.scores[j]!=s.scores[i] for j in s.scores)
    assert len(s.front)>2
    with pytest.raises(SpecError, match='1 values for 2'): s.tell(0, .5)


def test_earlier_results_are_used():
    space = dict(x=dict(min=0., max=1.), y=dict(values=['a','b']))
    prior = [(dict(x=x/10, y='a'), (x/10-.75)**2) for x in range(11)]+[(dict(x=.5, y='other'), 0.), (dict(z=1), 0.), (dict(x=.2,y='b'), None)]
    s = make_search(bayes(space), prior=prior)
    assert len(s.prior)==12
    first = [s.ask() for _ in range(3)]
    s.close()
    assert min(abs(p[('x',)]-.75) for p in first)<.04


def test_repeats():
    s = make_search(bayes(dict(x=dict(min=0., max=1.))), repeats=3, kind='gp')
    noise = random.Random(0)
    run(s, 30, lambda p: (p[('x',)]-.4)**2+noise.gauss(0,.05))
    assert len({point_key(p) for p in s.points})==10 and all(s.points[i]==s.points[i-i%3] for i in range(30))


def test_bad_arguments():
    for kw,match in ((dict(kind='gpp'),"Did you mean 'gp'"), (dict(repeats=0),'once or more')):
        with pytest.raises(SpecError, match=match): make_search(bayes(MIXED), **kw)


def test_constants_only():
    for kind in [*KINDS,'random']:
        s = make_search(bayes(dict(x=dict(value=1))), kind=kind)
        assert s.ask()=={('x',):1}
        s.tell(0, 1.)
        assert s.ask() is None


def test_importance_with_its_uncertainty():
    s = run(make_search(dict(method='random', metric=dict(name='l'), parameters=MIXED), seed=1), 60, lambda p: 3*p[('a',)]+(p[('act',)]=='relu'))
    found = param_importance(s.spec, [(p,s.scores[i]) for i,p in enumerate(s.points)], seeds=3)
    assert max(found, key=lambda n: found[n][0])=='a'
    assert all(low<=share<=high for share,low,high in found.values())
    assert found['a'][1]>found['n'][2]


def test_every_listed_value_is_a_step_or_a_category():
    for p in read_spec(bayes(MIXED)).parameters.values():
        if choices(p) is None or len(choices(p))<2: continue
        from mlstack.sweeps.encoding import Axis
        a = Axis(p)
        assert sorted(map(str,a.values))==sorted(map(str,choices(p))) and len({a.encode(v) for v in a.values})==len(a.values)


@pytest.mark.parametrize('kind', ['gp','tpe','cma'])
def test_a_result_that_is_told_again_replaces_the_first(kind):
    s = make_search(bayes(dict(x=dict(min=0., max=1.))), kind=kind)
    for i in range(14): s.ask(); s.tell(i, 5.)
    for i in range(14): s.tell(i, (s.points[i][('x',)]-.5)**2)
    x,y = s.good()
    assert len(x)==14==len(y) and y==[s.scores[i] for i in range(14)]
    assert s.front==[min(s.scores, key=s.scores.get)]
    s.ask()
    s.close()
