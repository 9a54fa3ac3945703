"Sweeps against W&B's own engine, under kills, and with bad input."
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from mlstack.core import MlstackError
from mlstack.sweeps import SpecError, Sweep, SweepError, make_search, position, quantile, read_spec
from mlstack.sweeps.commands import surprises
from mlstack.sweeps.distributions import choices, key_of, param
from mlstack.sweeps.search import Grid, point_key
from tests import house

ORACLE = json.loads((Path(__file__).parent/'data'/'sweeps-oracle.json').read_text())


# the specification, against W&B's engine

def test_quantiles_equal_the_engine():
    for spec,us,values in ORACLE['quantiles']:
        for u,want in zip(us,values):
            got = quantile(spec,u)
            if isinstance(want,float): assert isinstance(got,float) and math.isclose(got, want, rel_tol=1e-12), (spec,u)
            else: assert got == want and type(got) is type(want), (spec,u)


def test_grids_equal_the_engine():
    for spec,points in ORACLE['grids']:
        grid = Grid(read_spec(spec))
        ours = [grid.spec.config(p) for p,_ in zip(iter(grid.ask,None), points)]
        assert list(map(key_of,ours)) == list(map(key_of,points)), spec
        if len(points)<200: assert grid.ask() is None


def _scipy_quantile(d):
    from scipy import stats
    kind,(lo,hi) = d['distribution'].removeprefix('q_'),(d.get('min'),d.get('max'))
    if kind=='uniform': return stats.uniform(lo,hi-lo).ppf
    if kind=='log_uniform': return stats.loguniform(math.exp(lo),math.exp(hi)).ppf
    if kind in ('log_uniform_values','inv_log_uniform_values'): return stats.loguniform(lo,hi).ppf
    if kind=='inv_log_uniform': return stats.loguniform(math.exp(-hi),math.exp(-lo)).ppf
    if kind=='normal': return stats.norm(d['mu'],d['sigma']).ppf
    if kind=='log_normal': return stats.lognorm(s=d['sigma'],scale=math.exp(d['mu'])).ppf
    if kind=='beta': return stats.beta(d['a'],d['b']).ppf
    if kind=='int_uniform': return stats.randint(lo,hi+1).ppf
    if kind=='categorical': return lambda u: d['values'][int(stats.randint(0,len(d['values'])).ppf(u))]
    if kind=='categorical_w_probabilities': return lambda u: d['values'][int(stats.rv_discrete(values=(range(len(d['values'])),d['probabilities'])).ppf(u))]
    return lambda u: d['value']


ALL = [dict(distribution='constant', value='x'), dict(distribution='categorical', values=[.1,.01,0,'a',None,True]),
    dict(distribution='categorical_w_probabilities', values=['a','b','c'], probabilities=[.2,.5,.3]), dict(distribution='int_uniform', min=-3, max=8),
    *(dict(distribution=k, min=-1.5, max=2.5) for k in ('uniform','log_uniform','inv_log_uniform')), *(dict(distribution=k, min=.003, max=40) for k in ('log_uniform_values','inv_log_uniform_values')),
    *(dict(distribution=k, min=0, max=3, q=.25) for k in ('q_uniform','q_log_uniform')), dict(distribution='q_log_uniform_values', min=16, max=512, q=16),
    *(dict(distribution=k, mu=.5, sigma=.7) for k in ('normal','log_normal')), *(dict(distribution=k, mu=.5, sigma=.7, q=2) for k in ('q_normal','q_log_normal')),
    dict(distribution='beta', a=2, b=.5), dict(distribution='q_beta', a=2, b=3, q=.1)]


def test_all_eighteen_are_here():
    from mlstack.sweeps.distributions import distributions
    assert {d['distribution'] for d in ALL} == set(distributions) and len(distributions)==18


@pytest.mark.parametrize('d', ALL, ids=lambda d: d['distribution'])
def test_quantile_against_scipy_and_back(d):
    rng,theirs = random.Random(d['distribution']),_scipy_quantile(d)
    for u in [rng.random() for _ in range(60)]:
        x,y = quantile(d,u),theirs(u)
        if 'q' in d: y = round(y/d['q'])*d['q']
        assert math.isclose(x,y,rel_tol=1e-9,abs_tol=1e-12) if isinstance(x,(int,float)) and not isinstance(x,bool) else x==y
        if d['distribution'].startswith('q_'): assert type(x) is type(d['q'])
        back = quantile(d, position(d,x))
        assert math.isclose(back,x,rel_tol=1e-6,abs_tol=1e-9) if isinstance(x,float) else back==x
    for u in (0,1): assert quantile(d,u) is None or isinstance(quantile(d,u),(int,float,str)) and quantile(d,u) not in (math.inf,-math.inf)


@pytest.mark.parametrize('d', [d for d in ALL if choices(param(d))], ids=lambda d: d['distribution'])
def test_every_draw_is_among_the_choices(d):
    rng = random.Random(1)
    allowed = {key_of(v) for v in choices(param(d))}
    assert {key_of(quantile(d,rng.random())) for _ in range(3000)} <= allowed


GOOD = '''
method: random
metric: {name: loss, goal: minimize}
run_cap: 8
project: trials
parameters:
  lr: {min: 0.0, max: 1.0}
'''

BAD = { # what is wrong -> what the message must say
    'method: random\nparameters: {lr: {min: 1': 'not YAML',
    '\tmethod: random\n': 'not YAML',
    'a: 1\nb: 2\n': 'no sweep found',
    'parameters:\n  lr: {value: 1}\n': '`method` is missing',
    'method: rndom\nparameters: {lr: {value: 1}}\n': "line 1, method). Did you mean 'random'?",
    'method: random\nparameters: {}\n': "'parameters' is missing or empty",
    'method: random\nmethod: grid\nparameters: {lr: {value: 1}}\n': "'method' is there twice",
    GOOD.replace('run_cap: 8','run_cap: -1'): 'whole number above 0',
    GOOD.replace('run_cap','run_cpa'): "line 4, run_cpa). Did you mean 'run_cap'?",
    GOOD.replace('max: 1.0','max: yes'): 'not a finite number',
    GOOD.replace('max: 1.0','max: abc'): "'abc' is not a number",
    GOOD.replace('max: 1.0','max: .inf'): 'not a finite number',
    GOOD.replace('max: 1.0','max: 0.0'): 'write `value: 0.0`',
    GOOD.replace('max: 1.0','max: 1.0, q: .1'): 'add `distribution:`',
    GOOD.replace('min: 0.0','distribution: log_uniform_values, min: 0.0'): 'needs min above 0',
    GOOD.replace('min: 0.0, max: 1.0','values: []'): 'at least one entry',
    GOOD.replace('min: 0.0, max: 1.0','values: [1,2], probabilities: [1]'): '2 values but 1 probabilities',
    GOOD.replace('min: 0.0, max: 1.0','values: [1,2], probabilities: [.5,.6]'): 'sum to 1.1',
    GOOD.replace('min: 0.0, max: 1.0','values: [1,2], probabilities: [-1,2]'): 'negative',
    GOOD.replace('min: 0.0, max: 1.0','value: 1, values: [1]'): "'values' does not belong to constant",
    GOOD.replace('min: 0.0, max: 1.0','distribution: beta, a: 0'): 'a must be above 0',
    GOOD.replace('min: 0.0, max: 1.0','distribution: log_uniform, min: 16, max: 1024'): 'log_uniform_values',
    GOOD.replace('  lr: {min: 0.0, max: 1.0}','  lr: 0.1'): 'write `value: 0.1`',
    GOOD.replace('  lr: {min: 0.0, max: 1.0}','  lr: [1, 2]'): 'write `values: [1, 2]`',
    GOOD.replace('  lr: ','  1lr: '): 'cannot be the name',
    GOOD.replace('  lr: {min: 0.0, max: 1.0}','  opt: {parameters: {lr: {min: 1, max: 0}}}'): 'parameters.opt.parameters.lr.min',
    GOOD.replace('  lr: {min: 0.0, max: 1.0}','  opt: {parameters: {}}'): 'the group is empty',
    GOOD.replace('method: random','method: grid'): 'a grid cannot enumerate lr',
    GOOD.replace('method: random','method: bayes').replace('metric: {name: loss, goal: minimize}',''): 'bayes needs a metric',
    GOOD.replace('metric: {name: loss, goal: minimize}','metric: loss'): 'write `metric: {name: loss',
    GOOD.replace('goal: minimize','goal: minimise'): "did you mean 'minimize'?",
    GOOD.replace('name: loss, ',''): 'the metric has no name',
    GOOD+'early_terminate: {type: hyperband}\n': 'needs min_iter',
    GOOD+'early_terminate: {type: hyperband, max_iter: 27}\n': 'needs s',
    GOOD+'early_terminate: {type: hyperband, max_iter: 2, s: 2}\n': 'leave no band',
    GOOD+'early_terminate: {type: hyperband, min_iter: 3, eta: 1}\n': 'eta must be above 1',
    GOOD+'early_terminate: {type: envelope, min_iter: 3}\n': 'unknown stopping rule',
    GOOD+'metrics: [{name: a}, {name: b}]\n': 'keep one of them',
    GOOD+'command: python train.py\n': '`command` is a list',
    GOOD+'x: &a [*a]\n': 'cannot be read',
}


@pytest.mark.parametrize('text', BAD, ids=lambda t: BAD[t][:40])
def test_bad_files_say_what_to_do(text):
    with pytest.raises(SpecError) as e: read_spec(text)
    assert BAD[text].lower() in str(e.value).lower(), str(e.value)
    assert e.value.do


def test_surprises_are_told():
    spec = read_spec('''
method: grid
command: [python, train.py, "--lr=${flag}", "${args}"]
parameters:
  flag: {values: [yes, no]}
  max-len: {value: 010}
''')
    text = '\n'.join([*spec.warnings, *surprises(spec)])
    for word in ('yes is read as true','010 is read as 8',"--lr=${flag}","type=bool",'hyphen'): assert word in text
    assert 'log_uniform_values' in read_spec('method: random\nparameters: {lr: {distribution: log_uniform, min: 1e-5, max: 1e-1}}').warnings[0]
    assert quantile(read_spec('method: random\nparameters: {lr: {min: "0", max: "1e-1"}}').parameters[('lr',)], .5)==.05


# search

SQUARE = dict(method='bayes', metric=dict(name='loss'), parameters=dict(a=dict(values=[.1,.01,0,1]), b=dict(min=1, max=4)))


@pytest.mark.parametrize('running', [1,3])
def test_bayes_never_repeats_a_point_of_a_finite_space(running):
    s,told = make_search(SQUARE, seed=4),0
    while True:
        point = s.ask()
        if point is None: break
        if len(s.points)-told >= running:
            s.tell(told, None if told==3 else s.points[told][('a',)]+s.points[told][('b',)])
            told += 1
    assert len(s.points)==16==len({point_key(p) for p in s.points})


@pytest.mark.parametrize('method', ['random','bayes'])
def test_same_seed_and_order_give_the_same_trials(method):
    def points(global_seed):
        random.seed(global_seed)
        s = make_search(dict(method=method, metric=dict(name='loss', goal='maximize'), parameters=dict(a=dict(min=0., max=1.), b=dict(distribution='q_normal'), c=dict(value=3))), seed=7)
        for i in range(8): s.tell(i, -s.ask()[('a',)])
        return s.points
    assert points(1)==points(2)


def test_bayes_with_failures_only_goes_on():
    s = make_search(dict(method='bayes', metric=dict(name='loss'), parameters=dict(a=dict(min=0., max=1.))))
    for i in range(8): s.ask(); s.tell(i, math.nan)
    assert len({point_key(p) for p in s.points})==8


# the coordinator

def ended(s): return [(t.number,t.config,t.state,t.value) for t in s.trials if t.state in ('DONE','PRUNED','FAILED')]


def test_journal_cut_anywhere_gives_a_sweep_that_goes_on(tmp_path):
    def finish(s):
        while t := s.ask():
            for k in range(3):
                if not s.report(t, k, t['lr']*(3-k)): break
            s.tell(t)
        s.close()
        return s
    spec = GOOD+'early_terminate: {type: hyperband, min_iter: 1}\n'
    whole = finish(Sweep(spec, runs_dir=tmp_path/'whole'))
    data,rng = (whole.folder/'journal.jsonl').read_bytes(),random.Random(0)
    first = data.index(b'\n')+1
    for cut in [first, *(rng.randrange(first,len(data)) for _ in range(12))]:
        path = tmp_path/f'cut{cut}'/whole.project/'sweeps'/whole.id/'journal.jsonl'
        path.parent.mkdir(parents=True)
        path.write_bytes(data[:cut])
        assert ended(finish(Sweep(spec, resume=whole.id, runs_dir=tmp_path/f'cut{cut}'))) == ended(whole)


def test_full_disk_leaves_a_whole_journal(tmp_path):
    p = run_script(tmp_path, f'''
        import resource, signal
        from mlstack.sweeps import Sweep
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        s = Sweep({GOOD!r}, runs_dir='runs')
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000,1000))
        try:
            while t := s.ask(): s.tell(t, t['lr'])
        except Exception as e: print(type(e).__name__, e)
    ''')
    out,err = p.communicate(timeout=300)
    assert 'SweepError the journal cannot be written' in out, out+err
    s = Sweep(GOOD, resume=True, runs_dir=tmp_path/'runs')
    assert 1 <= len(ended(s)) < 8 and (s.folder/'journal.jsonl').stat().st_size<=1000


def test_two_coordinators(tmp_path):
    s = Sweep(GOOD, runs_dir=tmp_path/'runs')
    p = run_script(tmp_path, f'from mlstack.sweeps import Sweep; Sweep(resume={s.id!r}, runs_dir="runs")')
    assert 'another process is running this sweep' in p.communicate(timeout=300)[1]


def test_unwritable_runs_folder(tmp_path):
    (tmp_path/'runs').write_text('a file')
    with pytest.raises(SweepError, match='runs_dir='): Sweep(GOOD, runs_dir=tmp_path/'runs')


def test_target_ends_a_sweep(tmp_path):
    s = Sweep(GOOD.replace('goal: minimize','goal: maximize, target: .5'), runs_dir=tmp_path)
    s.tell(s.ask(), .4)
    t = s.ask()
    s.report(t, 0, .6); s.tell(t)
    assert s.ask() is None and 'target' in s.over and s.best is t


def test_a_stop_at_the_last_report_comes_too_late(tmp_path):
    s = Sweep(GOOD+'early_terminate: {type: hyperband, min_iter: 1, strict: true}', runs_dir=tmp_path) # bands 1, 3, 9
    def go(*values, told=None):
        t = s.ask()
        for k,v in enumerate(values): s.report(t, k, v)
        s.tell(t, told)
        return t
    assert go(.5,.4,.3).state=='DONE'
    assert go(.9).state=='PRUNED'
    late = go(.5,.4,.9)
    assert (late.state,late.value)==('DONE',.4) and 'worse than' in late.why and late.why in s.explain(late)
    assert go(.4,.3,.2,.1).state=='DONE' # now three reports are not all
    assert go(.4,.3,.9).state=='PRUNED'
    s.close()
    assert [t.state for t in Sweep(resume=s.id, runs_dir=tmp_path).trials]==['DONE','PRUNED','DONE','DONE','PRUNED']


def test_notes_are_printed_once(tmp_path, capsys):
    spec = dict(method='random', metric=dict(name='once'), early_terminate=dict(type='hyperband', min_iter=7), parameters=dict(once=dict(min=0., max=1.)))
    import mlstack.sweeps.coordinator as coordinator
    coordinator._noted.clear()
    for _ in range(2): Sweep(spec, runs_dir=tmp_path)
    out = capsys.readouterr().out
    assert out.count('strict is not given')==1 and 'write strict: true' in out


def test_bayes_resumed_asks_what_it_would_have_asked(tmp_path):
    spec = GOOD.replace('method: random','method: bayes')
    def go(s, n):
        for _ in range(n): t = s.ask(); s.tell(t, (t['lr']-.3)**2)
        s.close()
        return [t.config for t in s.trials]
    whole = go(Sweep(spec, runs_dir=tmp_path/'a'), 8)
    go(Sweep(spec, runs_dir=tmp_path/'b'), 6)
    assert go(Sweep(spec, resume=True, runs_dir=tmp_path/'b'), 2)==whole


# workers and kills

def run_script(tmp_path, code, **kw):
    path = tmp_path/'script.py'
    path.write_text(textwrap.dedent(code))
    return subprocess.Popen([sys.executable,str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, **kw)


def until(condition, seconds=300):
    end = time.monotonic()+seconds
    while time.monotonic()<end:
        if value := condition(): return value
        time.sleep(.02)
    raise AssertionError('it did not happen')


# no __main__ guard; every call leaves a line, so that a repetition would show
SWEEP = f'''
    import os, time
    import mlstack.tracking as track
    from mlstack.core import context
    from mlstack.sweeps import Sweep
    def train(config):
        with open('calls','a') as f: f.write(context().trial+'\\n')
        for k in range(4):
            time.sleep(.05)
            track.log(loss=config['lr']*(4-k))
    s = Sweep({GOOD + "early_terminate: {type: hyperband, min_iter: 2, strict: true}"!r}, resume=True, runs_dir='runs')
    s.run(train, workers=WORKERS)
'''


def journal(tmp_path):
    path = next(iter((tmp_path/'runs').glob('*/sweeps/*/journal.jsonl')), None)
    return path.read_text().splitlines() if path else []


@pytest.mark.parametrize('workers,kills', [(1,house.moments(3,20)),(2,house.moments(3,20))])
def test_killed_coordinator_loses_and_repeats_no_finished_trial(tmp_path, workers, kills):
    rng,told = random.Random(workers),set()
    for _ in range(kills):
        n,more = len(journal(tmp_path)),rng.randrange(2,14)
        p = run_script(tmp_path, SWEEP.replace('WORKERS',str(workers)))
        until(lambda p=p,n=n,more=more: len(journal(tmp_path))>=n+more or p.poll() is not None)
        p.kill(); p.wait()
        if p.returncode!=0: told |= {o for o in journal(tmp_path) if '"tell"' in o}
    p = run_script(tmp_path, SWEEP.replace('WORKERS',str(workers)))
    out,err = p.communicate(timeout=300)
    assert p.returncode==0, err
    lines = [json.loads(o) for o in journal(tmp_path)]
    tells = [o['n'] for o in lines if o['event']=='tell']
    assert sorted(tells)==list(range(8)), tells
    assert told <= set(journal(tmp_path))
    requeued = sum(o['event']=='requeue' for o in lines)
    calls = (tmp_path/'calls').read_text().split()
    assert len(calls) <= 8+requeued # a finished trial was never called again
    if workers==1:
        whole = Sweep(GOOD+'early_terminate: {type: hyperband, min_iter: 2, strict: true}', runs_dir=tmp_path/'other')
        while t := whole.ask():
            for k in range(4):
                if not whole.report(t, k, t['lr']*(4-k)): break
            whole.tell(t)
        assert ended(Sweep(resume=lines[0]['id'], runs_dir=tmp_path/'runs')) == ended(whole)


def test_killed_worker_is_tried_again_with_the_same_parameters(tmp_path):
    def train(config):
        from mlstack.core import context
        ctx = context()
        (Path(folder)/f'{ctx.trial}-{ctx.attempt}-{config["lr"]}').write_text(str(os.getpid()))
        while ctx.trial=='1' and ctx.attempt==0: time.sleep(.05)
        return config['lr']
    folder = str(tmp_path)
    def kill(): os.kill(int(until(lambda: next(iter(o.read_text() for o in tmp_path.glob('1-0-*')), ''))), signal.SIGKILL)
    killer = threading.Thread(target=kill)
    killer.start()
    s = Sweep(GOOD, runs_dir=tmp_path/'runs').run(train, workers=2, count=4, progress=False)
    killer.join()
    assert [t.state for t in s.trials]==['DONE']*4
    assert s.trials[1].attempt==1 and len(list(tmp_path.glob(f'1-*-{s.trials[1]["lr"]}')))==2
    assert 'SIGKILL' in next(json.loads(o)['why'] for o in (s.folder/'journal.jsonl').read_text().splitlines() if '"lost"' in o)


def test_a_trial_that_always_dies_fails_in_the_end(tmp_path):
    def train(config):
        if config['a']==1: os._exit(3)
        return 0.
    s = Sweep(dict(method='grid', parameters=dict(a=dict(values=[0,1,2]))), runs_dir=tmp_path).run(train, progress=False)
    assert [t.state for t in s.trials]==['DONE','FAILED','DONE'] and 'exit code 3' in s.trials[1].why and s.trials[1].attempt==3


def test_reports_of_a_lost_trial_count_once_also_from_a_checkpoint(tmp_path):
    def train(config):
        import mlstack.tracking as track
        from mlstack.core import context
        ctx = context()
        saved = Path(ctx.checkpoints)/'epoch'
        begin = int(saved.read_text()) if saved.exists() and config['save'] else 0
        for epoch in range(begin, 6):
            track.log(dict(loss=1/(epoch+1)), step=epoch)
            if config['save']:
                saved.parent.mkdir(parents=True, exist_ok=True)
                saved.write_text(str(epoch+1))
            if epoch==3 and ctx.attempt==0: os.kill(os.getpid(), signal.SIGKILL)
    spec = dict(method='grid', metric=dict(name='loss'), parameters=dict(save=dict(values=[True,False])))
    s = Sweep(spec, runs_dir=tmp_path).run(train, progress=False)
    for t in s.trials: assert (t.state,t.attempt,t.reports)==('DONE',1,[(k,1/(k+1)) for k in range(6)])


def test_interrupted_sweep_leaves_nothing_behind_and_goes_on(tmp_path):
    code = SWEEP.replace('WORKERS','2').replace('time.sleep(.05)','time.sleep(.3)')
    p = run_script(tmp_path, code, start_new_session=True)
    until(lambda: sum('"report"' in o for o in journal(tmp_path))>=3)
    children = psutil.Process(p.pid).children(recursive=True)
    p.send_signal(signal.SIGINT)
    out,err = p.communicate(timeout=300)
    assert err.count('Traceback')==1 and err.rstrip().endswith('KeyboardInterrupt') and 'agents.loop' not in err and 'go on with resume=' in out, (p.returncode, out, err)
    psutil.wait_procs(children, timeout=300)
    assert not [c for c in children if c.is_running() and c.status()!=psutil.STATUS_ZOMBIE]
    p = run_script(tmp_path, SWEEP.replace('WORKERS','2'))
    out,err = p.communicate(timeout=300)
    assert p.returncode==0 and out.count('trial ')>=8, err


def test_broken_function_stops_the_sweep_and_says_why(tmp_path):
    s = Sweep(GOOD, runs_dir=tmp_path)
    with pytest.raises(SweepError, match="KeyError: 'nope'"): s.run(lambda c: c['nope'], progress=False)
    assert len(ended(s))==3
    s.close()
    s = Sweep(GOOD, resume=True, runs_dir=tmp_path)
    for t in (t for t in s.trials if t.state=='FAILED'): assert t.error.startswith('Traceback') and "c['nope']" in t.error and t.error.rstrip() in s.explain(t)
    s.run(lambda c: c['lr'], progress=False) # mended: the same sweep goes on
    assert len(ended(s))==8 and sum(t.state=='DONE' for t in s.trials)==5


def test_a_wrong_metric_name_stops_the_sweep_after_one_trial(tmp_path):
    def train(config):
        import mlstack.tracking as track
        track.log(dict(loss=1, val=dict(acc=.5)), step=0)
        return dict(val_acc=.5)
    spec = dict(method='random', run_cap=6, metric=dict(name='val_accuracy'), parameters=dict(lr=dict(min=0., max=1.)))
    s = Sweep(spec, runs_dir=tmp_path)
    with pytest.raises(SweepError, match='logged were loss, val.acc, val_acc; did you mean val_acc') as e: s.run(train, workers=1, progress=False)
    assert 'resume=' in str(e.value) and len(ended(s))==1 and s.trials[0].state=='FAILED'
    s.run(lambda c: c['lr'], progress=False) # mended: the same sweep goes on
    assert len(ended(s))==6 and sum(t.state=='DONE' for t in s.trials)==5


def test_a_metric_that_is_only_nan_stops_nothing(tmp_path):
    def train(config):
        import mlstack.tracking as track
        track.log(loss=config['x'])
    spec = dict(method='grid', metric=dict(name='loss'), parameters=dict(x=dict(values=['nan',1.])))
    s = Sweep(spec, runs_dir=tmp_path).run(lambda c: train(dict(x=float(c['x']))), workers=1, progress=False)
    assert [t.state for t in s.trials]==['FAILED','DONE'] and 'never as a finite number' in s.trials[0].why


@pytest.mark.parametrize('n', [1,2])
def test_few_trials_that_all_fail_are_an_error(tmp_path, capsys, n):
    def deeper(config): return config['learning_rate']
    s = Sweep(dict(method='grid', metric=dict(name='loss'), parameters=dict(lr=dict(values=[.1,.2][:n]))), runs_dir=tmp_path)
    with pytest.raises(SweepError, match="with: KeyError: 'learning_rate'") as e: s.run(lambda c: deeper(c), progress=True)
    assert 'in deeper' in str(e.value) and e.value.remote in [t.error for t in s.trials] and isinstance(e.value.__cause__, KeyError)
    out = capsys.readouterr().out
    assert out.count('Traceback')==1 and 'in deeper' in out and ' failed:' in out
    if n==1: assert 'the only trial failed' in str(e.value)


def test_metric_that_is_never_logged_and_values_that_are_no_numbers(tmp_path):
    def train(config): return [None, math.nan, 'text', dict(other=1), dict(loss=2)][config['k']]
    spec = dict(method='grid', metric=dict(name='loss'), parameters=dict(k=dict(values=[4,0,1,2,3])))
    s = Sweep(spec, runs_dir=tmp_path).run(train, workers=1, progress=False)
    assert [t.state for t in s.trials]==['DONE']+['FAILED']*4
    for t,word in zip(s.trials[1:], ('neither returned nor logged','nan','returned a str','neither')): assert word in t.why


def test_wandb_style_function_without_arguments(tmp_path):
    def train():
        import mlstack.tracking as wandb
        run = wandb.init(config=dict(lr=99., extra=1))
        wandb.log(dict(loss=wandb.run.config.lr + run.config['extra']))
    s = Sweep(GOOD, runs_dir=tmp_path).run(train, count=2, progress=False)
    assert [t.value for t in s.trials]==[t['lr']+1 for t in s.trials]


def test_run_refuses_what_cannot_work(tmp_path):
    s = Sweep(GOOD.replace('run_cap: 8\n',''), runs_dir=tmp_path)
    for kw,word in ((dict(train=3),'not a function'),(dict(workers=0),'one or more'),(dict(),'count=20'),(dict(on='moon'),"on='local'")):
        with pytest.raises(MlstackError, match=word): s.run(**(dict(train=lambda c: 1.)|kw))


def test_a_notebook_shows_the_table_once(tmp_path):
    import nbformat
    from nbclient import NotebookClient
    cells = [f"from mlstack.sweeps import Sweep\ns = Sweep({GOOD.replace('random','bayes')!r}, runs_dir='runs')\ns.run(lambda c: c['lr'], workers=1, count=6)", 's']
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in cells])
    NotebookClient(nb, timeout=300, resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    run,later = (c.outputs for c in nb.cells)
    live,result = (next(o for o in run if o.output_type==kind) for kind in ('display_data','execute_result'))
    assert 'monospace' in live.data['text/html'] and '6/6 trials' in live.data['text/html'] and 'starting' not in live.data['text/html']
    assert '<pre' not in result.data['text/html'] and result.data['text/html'].count('\n')==0
    assert '<pre' in later[0].data['text/html']
    assert not [o for o in run if o.get('name')=='stderr']


def test_live_table_in_a_terminal(tmp_path):
    import pty
    master,slave = pty.openpty()
    (tmp_path/'script.py').write_text(textwrap.dedent(SWEEP.replace('WORKERS','2')))
    p = subprocess.Popen([sys.executable,'script.py'], stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path, env=os.environ|dict(COLUMNS='150', LINES='40', TERM='xterm'))
    os.close(slave)
    text = b''
    while True:
        try: data = os.read(master, 65536)
        except OSError: break
        if not data: break
        text += data
    os.close(master)
    assert p.wait(300)==0, text.decode()[-2000:]
    for word in ('state','PRUNED','is worse than','8/8 trials','█','workers are starting'): assert word in text.decode(), word


def test_a_sweep_outlives_the_server_of_its_workers(tmp_path):
    p = run_script(tmp_path, '''
        import os, signal, time
        from pathlib import Path
        from mlstack import workers
        from mlstack.core import context
        from mlstack.sweeps import Sweep
        def train(config):
            Path(f'began-{context().trial}').touch()
            if context().attempt==0 and context().trial in '01': time.sleep(600)
            return config['a']
        import threading
        def kill():
            while not (Path('began-0').exists() and Path('began-1').exists()): time.sleep(.02)
            os.kill(workers._mine[2].pid, signal.SIGKILL)
        threading.Thread(target=kill, daemon=True).start()
        s = Sweep(dict(method='grid', parameters=dict(a=dict(values=[0,1,2,3]))), runs_dir='runs').run(train, workers=2, progress=False)
        print([(t.state,t.attempt,t.value) for t in s.trials])
    ''')
    out,err = p.communicate(timeout=300)
    assert "[('DONE', 1, 0), ('DONE', 1, 1), ('DONE', 0, 2), ('DONE', 0, 3)]" in out, out+err


def test_a_process_that_a_trial_forks_may_log(tmp_path):
    def train(config):
        import mlstack.tracking as track
        pid = os.fork()
        if pid==0:
            track.log(loss=5.)
            os._exit(0)
        os.waitpid(pid, 0)
        track.log(loss=1.)
    s = Sweep(GOOD, runs_dir=tmp_path).run(train, count=1, progress=False)
    assert [v for _,v in s.trials[0].reports]==[1.]
