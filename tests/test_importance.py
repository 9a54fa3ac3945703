"Importance is judged by functions whose shares of the variance are known, by configs as people write them, and by noise."
import json, math
import numpy as np, pytest
from tests import house
from mlstack.tracking.importance import importance, varying
from mlstack.tracking.query import Runs

class Made:
    "A run as importance sees it."
    state,row = 'finished',None
    def __init__(self, config, value): self.config,self.value = config,value
    class facts: summary = {}

class Some(Runs):
    def _bests(self, metric, mode): return [o.value for o in self]

def made(configs, values): return Some([Made(c, v) for c,v in zip(configs,values)])

def spread(n, seed=0, **others):
    g = np.random.default_rng(seed)
    return [dict(a=g.random(), b=g.random(), c=g.random(), lr=10**g.uniform(-5,0), kind=str(g.choice(['x','y','z'])), flag=bool(g.random()<.5)) for _ in range(n)]

def found(f, n=150, noise=.05, seed=0):
    cs,g = spread(n, seed),np.random.default_rng(seed+1000)
    i = importance(made(cs, [f(c)+g.normal(0,noise) for c in cs]), 'loss')
    return i,{o[0]:o for o in i.rows}

def none(rows, *names): return all(rows[o][1]<.05 and rows[o][2]==0 for o in names)

def test_shares_of_an_additive_function():
    i,rows = found(lambda c: 2*c['a']+c['b'])
    assert i.r2>.85 and abs(rows['a'][1]-.8)<.12 and abs(rows['b'][1]-.2)<.1
    assert none(rows,'c','lr','kind','flag') and i.verdict.startswith('a matters most; less so b')
    assert rows['a'][4]>.8 and all(low<=v<=high for _,v,low,high,*_ in i.rows)

def test_an_interaction_that_no_correlation_sees():
    "A product around zero: neither parameter has a correlation, both matter."
    i,rows = found(lambda c: 8*(c['a']-.5)*(c['b']-.5), n=200)
    assert {'a','b'} == {o[0] for o in i.sure}, i
    assert abs(rows['a'][4])<.2 and abs(rows['b'][4])<.2 and none(rows,'c','lr','flag')

def test_a_best_place_in_the_middle_of_a_wide_range():
    i,rows = found(lambda c: (math.log10(c['lr'])+3)**2)
    assert [o[0] for o in i.sure] == ['lr'] and rows['lr'][1]>.5
    low,_,high = i.best['lr'].partition(' … ')
    assert float(low)<1e-3<float(high)

def test_categories_and_switches():
    i,rows = found(lambda c: {'x':0,'y':2,'z':1}[c['kind']]+.6*c['flag'])
    assert {'kind','flag'} == {o[0] for o in i.sure} and i.best['kind']=='x' and i.best['flag']=='False' and none(rows,'a','b','c','lr')

def test_a_parameter_that_only_some_runs_have():
    "Its absence belongs to the parameter that decides it; its value counts among the runs that have it."
    g = np.random.default_rng(1)
    cs = [c|(dict(momentum=g.random(), nesterov=bool(g.random()<.5)) if c['kind']=='x' else {}) for c in spread(210)]
    i = importance(made(cs, [c.get('momentum',1.)*2+g.normal(0,.05) for c in cs]), 'loss')
    rows = {o[0]:o for o in i.rows}
    assert rows['momentum'][1]>.6 and rows['momentum'][5]==sum(c['kind']=='x' for c in cs) and rows['momentum'][2]>.2
    assert rows['kind'][1]>.1 and none(rows,'nesterov','a','flag')
    cs = [c|(dict(momentum=g.random()) if c['kind']=='x' else {}) for c in spread(210)]
    i = importance(made(cs, [(c['kind']=='x')+g.normal(0,.05) for c in cs]), 'loss')
    assert i.rows[0][0]=='kind' and none({o[0]:o for o in i.rows},'momentum')

def test_presence_that_nothing_else_decides_is_a_value():
    g = np.random.default_rng(2)
    cs = [c|(dict(warmup=100) if g.random()<.5 else {}) for c in spread(120)]
    i = importance(made(cs, [('warmup' in c)+g.normal(0,.05) for c in cs]), 'loss')
    assert [o[0] for o in i.sure]==['warmup'] and i.best['warmup']=='100'

def test_two_that_change_together_are_one():
    cs = [dict(c, opt_id='xyz'.index(c['kind']), half=c['a']/2) for c in spread(60)]
    i = importance(made(cs, [c['a'] for c in cs]), 'loss')
    assert i.same==dict(a=['half'], kind=['opt_id']) and 'a changes only together with half' in i.note

def test_names_of_folders_are_not_learned_by_heart():
    cs = [dict(c, out=f'runs/{i}') for i,c in enumerate(spread(60))]
    i = importance(made(cs, [c['a'] for c in cs]), 'loss')
    assert list(i.left_out)==['out'] and 'out' not in i.df.index

def test_mixed_and_odd_values():
    g = np.random.default_rng(3)
    odd = [0,.1,'auto',None,True,float('nan'),float('inf'),[1,2],(1,2),10**400]
    cs = [dict(c, dropout=odd[i%len(odd)], layers=[[32],[32,32],[64]][i%3]) for i,c in enumerate(spread(90))]
    i = importance(made(cs, [len(c['layers'])+g.normal(0,.1) for c in cs]), 'loss')
    assert i.sure[0][0]=='layers' and json.dumps(i.facts(), allow_nan=False)
    for form in (repr(i), i._repr_html_()): assert 'layers' in form

def test_a_diverged_run_does_not_outweigh_all_others():
    cs = spread(150)
    i = importance(made(cs, [1e30 if j%50==0 else math.inf if j==7 else c['a'] for j,c in enumerate(cs)]), 'loss')
    assert i.sure[0][0]=='a' and i.rows[0][1]>.5

def test_noise_is_called_noise():
    "Tables of pure noise: a parameter is called important in hardly one."
    wrong,tables = 0,house.moments(10, 60)
    for seed in range(tables):
        cs,g = spread(40, seed),np.random.default_rng(seed)
        wrong += bool(importance(made(cs, g.random(40)), 'loss').sure)
    assert wrong<=1+.05*tables, wrong

def test_what_does_not_matter_stays_at_nothing_beside_what_does():
    "Of 5 × 15 irrelevant parameters hardly one is called sure, and none is large."
    called,most = 0,0
    for seed in range(house.moments(6, 30)):
        _,rows = found(lambda c: c['a'], n=60, noise=.2, seed=seed)
        others = [o for k,o in rows.items() if k!='a']
        called += sum(o[2]>0 for o in others)
        most = max(most, max(o[1] for o in others))
        assert rows['a'][2]>.2
    assert called<=.08*house.moments(6, 30)*5 and most<.1, (called, most)

@pytest.mark.parametrize('n', [0,1,2,15])
def test_too_few_runs(n):
    cs = spread(n)
    i = importance(made(cs, [c['a'] for c in cs]), 'loss')
    assert not i.known and not i.sure and ('too few' in i.verdict or n<2) and json.dumps(i.facts(), allow_nan=False) and repr(i) and i.df is not None
    assert all((low,high)==(0,1) for _,_,low,high,*_ in i.rows)

def test_nothing_varies_or_all_is_the_same():
    i = importance(made([dict(a=1)]*30, [1.]*30), 'loss')
    assert i.verdict=='no parameter varied' and repr(i)
    cs = spread(30)
    assert importance(made(cs, [1.]*30), 'loss').verdict=='loss is the same in all runs'

def test_the_same_every_time():
    cs = spread(40)
    a,b = (importance(made(cs, [c['a'] for c in cs]), 'loss').facts() for _ in range(2))
    assert a==b

def test_nested_and_list_values_are_one_parameter_each():
    found,*_ = varying([dict({'opt.lr':i, 'opt.betas':[.9,i%2]}) for i in range(10)])
    assert set(found)=={'opt.lr','opt.betas'}
