"Stopping, pausing and promoting the trials of a sweep: the rules alone, through the coordinator, and with real training in worker processes."
import math
import random
from collections import Counter

import pytest

from mlstack import workers
from mlstack.sweeps import Sweep, SweepError
from mlstack.sweeps.promotion import Promotion
from mlstack.sweeps.stopping import Hyperband, bands

SPACE = dict(method='random', run_cap=9, metric=dict(name='loss'), parameters=dict(x=dict(min=0., max=1.)))
ASHA = SPACE | dict(early_terminate=dict(type='asha', min_iter=1, eta=3, max_iter=9))


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    for name in ('STATE','LEASES','QUEUE','RUNS'): monkeypatch.setenv(f'MLSTACK_{name}', str(tmp_path/name.lower()))
    monkeypatch.delenv('MLSTACK_LEASED', raising=False)


# W&B's rule, against its words rather than our code

def naive(rule, runs, goal):
    "The rule as W&B's engine states it, from all histories at once: who of the running trials is stopped."
    sign = -1 if goal=='maximize' else 1
    curves = {n: [sign*v for v in h if isinstance(v,(int,float)) and not isinstance(v,bool) and math.isfinite(v)] for n,(_,h) in runs.items()}
    eta,at = rule.get('eta',3),bands(rule)
    stopped = []
    for n,(state,_) in runs.items():
        reached = [b for b in at if b<=len(curves[n])]
        if state!='running' or not reached: continue
        band = max(reached)
        there = sorted(c[band-1] for c in curves.values() if len(c)>=band)
        value = curves[n][band-1] if rule.get('strict',True) else min(curves[n])
        if value > there[int(1/eta*len(there))]: stopped.append(n)
    return stopped


@pytest.mark.parametrize('seed', range(4))
def test_wandb_rule_on_random_histories_with_ties_zeros_nan_and_rewinds(seed):
    rng = random.Random(seed)
    odd = [math.nan, math.inf, -math.inf, True, False, None, 'x', -0., 0., 0, 1, 1.]
    for _ in range(100):
        rule = rng.choice([dict(min_iter=rng.randint(1,4), eta=rng.choice([2,3,2.5,4])), dict(max_iter=rng.choice([9,27,30]), s=rng.randint(1,3), eta=3)]) | dict(strict=rng.random()<.5)
        goal = rng.choice(['minimize','maximize'])
        runs = {n: (rng.choice(['running','finished','failed']), [rng.choice(odd) if rng.random()<.3 else round(rng.gauss(0,1),1) for _ in range(rng.randint(0,30))]) for n in range(rng.choice([1,2,5,12]))}
        ours = Hyperband(rule, 'loss', goal)
        for n,(_,h) in runs.items():
            if rng.random()<.3: # was lost once: what it had reported is taken back
                for v in h[:rng.randint(0,len(h))]: ours.add(n, v)
                ours.rewind(n, kept := rng.randint(0, len(ours.history.get(n,()))))
                seen = 0
                for v in h: # goes on after the reports that were kept
                    counts = not isinstance(v,bool) and isinstance(v,(int,float)) and math.isfinite(v)
                    if not counts or seen>=kept: ours.add(n, v)
                    seen += counts
            else:
                for v in h: ours.add(n, v)
        assert [n for n,(s,_) in runs.items() if s=='running' and ours.verdict(n).stop] == naive(rule, runs, goal), (rule, goal, runs)


# promotion, the rule alone

def test_promotion_keeps_its_shares():
    "Whoever runs, from each band no more go on at once than have a place, and at the end nobody who has one waits."
    for seed in range(20):
        rng = random.Random(seed)
        rule,level,length = Promotion(dict(min_iter=1, max_iter=27), 'loss', rng.choice(['minimize','maximize'])),{},Counter()
        running,left = [],list(range(60))
        while True:
            while len(running)<4:
                if (n := rule.promote()) is not None: rule.go_on(n)
                elif left: level[n := left.pop()] = round(rng.random(),1)
                else: break
                running.append(n)
            if not running: break
            n = rng.choice(running)
            length[n] += 1
            r = rule.report(n, rule.sign*(level[n]+math.exp(-length[n]/5)))
            assert r.pause == (length[n] in (1,3,9) and r.place>r.room and not r.stop)
            if r.pause: rule.pause(n); running.remove(n)
            elif length[n]==27: running.remove(n)
        assert {length[n] for n in rule.waiting} <= {1,3,9} and len(rule.waiting)+sum(v==27 for v in length.values())==60
        for b in (1,3,9): # the best third has gone on
            best = sorted((rule.history[n][b-1],n) for n in length if length[n]>=b)
            assert all(n not in rule.waiting or rule.waiting[n]!=b for _,n in best[:len(best)//3])


def test_equal_values_do_not_win_more_places():
    rule = Promotion(dict(min_iter=1), 'loss')
    paused = [n for n in range(30) if rule.report(n, 1.).pause and (rule.pause(n) or True)]
    gone = []
    while (n := rule.promote()) is not None: rule.go_on(n); gone.append(n)
    assert len(gone)+30-len(paused)==10
    assert all(rule.rewind(n) or not rule.report(n, 1.).pause for n in gone) # said once more, it does not wait twice


# through the coordinator

def loss(x, epoch): return x + 1/(1+epoch)


def drive(s, trained=None, stop_after=None):
    "A loop that saves each epoch before it reports it."
    n = 0
    while t := s.ask():
        saved = s.checkpoints(t)/'epoch'
        saved.parent.mkdir(parents=True, exist_ok=True)
        epoch = int(saved.read_text()) if saved.exists() else 0
        while epoch<9:
            epoch,n = epoch+1,n+1
            if trained is not None: trained[t.number,epoch] += 1
            saved.write_text(str(epoch))
            go = s.report(t, epoch, loss(t['x'],epoch))
            if n==stop_after: return n
            if not go: break
        s.tell(t)
    return n


def known(s): return [(t.number,t.config,t.state,t.value,t.why,t.attempt,t.promoted,t.reports) for t in s.trials]


def test_nothing_is_trained_twice_and_the_best_is_trained_to_its_end(tmp_path):
    s,trained = Sweep(ASHA, runs_dir=tmp_path),Counter()
    drive(s, trained)
    assert set(trained.values())=={1}
    assert {t.state for t in s.trials}=={'DONE','PRUNED'} and s.over=='run_cap of 9 reached'
    assert s.best.number==min(s.trials, key=lambda t: t['x']).number and len(s.best.reports)==9
    assert all(len(t.reports) in (1,3) for t in s.trials if t.state=='PRUNED')
    for t in s.trials: assert f'number {1+sum(o["x"]<t["x"] for o in s.trials if len(o.reports)>=len(t.reports))} of' in s.explain(t)
    with_promotion = next(t for t in s.trials if t.promoted)
    assert f'promoted at report{"s"*(len(with_promotion.promoted)>1)} {with_promotion.promoted[0]}' in s.explain(with_promotion)


@pytest.mark.parametrize('method', ['random','grid'])
def test_the_journal_gives_every_pause_and_promotion_again(tmp_path, method):
    "Left at every moment and continued by another object: the same sweep as without a break."
    spec = ASHA if method=='random' else ASHA | dict(method='grid', parameters=dict(x=dict(values=[.9,.2,.5,.7,.1,.4])))
    whole = Sweep(spec, runs_dir=tmp_path/'whole')
    total = drive(whole)
    for moment in range(1, total):
        s = Sweep(spec, runs_dir=tmp_path/str(moment))
        drive(s, stop_after=moment)
        s.close()
        s = Sweep(spec, resume=s.id, runs_dir=tmp_path/str(moment))
        lost = [t.number for t in s.trials if t.state=='LOST']
        drive(s)
        plain = lambda rows: [(n,c,st,v,why,p,r) for n,c,st,v,why,a,p,r in rows]
        assert plain(known(s))==plain(known(whole)), moment
        s.close()
        again = Sweep(spec, resume=s.id, runs_dir=tmp_path/str(moment)) # read from its beginning to its end
        assert known(again)==known(s) and len(lost)<=1
        again.close()


def test_a_waiting_trial_is_nobodys(tmp_path):
    s = Sweep(ASHA, runs_dir=tmp_path)
    t = s.ask()
    assert not s.report(t, 1, .5) and t.pausing
    assert s.suspend(t, t.stopping, saved=True) and t.state=='PAUSED'
    for f in (lambda: s.report(t,2,.4), lambda: s.tell(t,.4), lambda: s.lost(t), lambda: s.suspend(t)):
        with pytest.raises(SweepError, match='waits'): f()
    assert 'waits to be asked again: loss 0.5 at report 1 is number 1 of 1 there, of which none go on yet' in s.explain(t)
    assert '1 PAUSED' in repr(s) and s.df.state[0]=='PAUSED'
    s.close()


def test_who_has_saved_nothing_begins_anew_and_the_rule_stops_from_then_on(tmp_path):
    s = Sweep(ASHA, runs_dir=tmp_path)
    def go():
        while t := s.ask():
            for epoch in range(1,10):
                if not s.report(t, epoch, loss(t['x'],epoch)): break
            s.tell(t)
    go()
    assert s.trials[0].attempt==1 and not s.rule.waits and sum(t.attempt for t in s.trials)==1
    assert {t.state for t in s.trials}=={'DONE','PRUNED'} and not any(t.promoted for t in s.trials)
    assert s.best['x']==min(t['x'] for t in s.trials if t.state=='DONE')
    s.close()
    again = Sweep(ASHA, resume=s.id, runs_dir=tmp_path)
    assert known(again)==known(s) and not again.rule.waits
    again.close()


def test_a_trial_whose_place_is_taken_away_is_asked_first(tmp_path):
    s = Sweep(SPACE, runs_dir=tmp_path)
    t,other = s.ask(),s.ask()
    s.report(t, 1, .5)
    assert s.suspend(t, 'preempted', saved=True) and 'waits to be asked again: preempted' in s.explain(t)
    assert s.ask() is t and (t.state,t.attempt,t.held)==('RUNNING',1,False)
    s.report(t, 2, .4)
    assert [v for _,v in t.reports]==[.5,.4]
    assert not s.suspend(other, 'preempted') and other.state=='LOST' # it had no checkpoint
    s.close()


def test_a_target_ends_those_that_wait(tmp_path):
    s = Sweep(ASHA | dict(metric=dict(name='loss', target=.5)), runs_dir=tmp_path)
    drive(s)
    assert s.over=='target 0.5 reached' and not any(t.state=='PAUSED' for t in s.trials)
    assert any(t.why.endswith('then target 0.5 reached') for t in s.trials)
    s.close()


def test_count_leaves_them_waiting_for_more(tmp_path):
    from mlstack.core import context
    def train(config):
        import mlstack.tracking as track
        from pathlib import Path
        kept = Path(context().checkpoints)/'epoch'
        epoch = int(kept.read_text()) if kept.exists() else 0
        while epoch<9:
            epoch += 1
            kept.parent.mkdir(parents=True, exist_ok=True); kept.write_text(str(epoch))
            track.log(loss=config['x']+1/(1+epoch), step=epoch)
    endless = {k:v for k,v in ASHA.items() if k!='run_cap'}
    s = Sweep(endless, runs_dir=tmp_path).run(train, workers=2, count=4, progress=False)
    assert len(s.trials)==4 and {t.state for t in s.trials}=={'DONE','PAUSED'} and s.over is None
    s.run(train, workers=2, count=8, progress=False)
    assert len(s.trials)==12 and len({len(t.reports) for t in s.trials})>1 and all(len(t.reports)==len({k for k,_ in t.reports}) for t in s.trials)
    s.close()


# with real training

def digits(folder):
    "A training function for the digits of scikit-learn, which notes every step it makes and, at its end, what the weights came to."
    def train(config):
        import hashlib, os, signal
        from pathlib import Path
        import torch
        import torch.nn.functional as F
        from sklearn.datasets import load_digits
        import mlstack.tracking as track
        from mlstack.core import context
        from mlstack.trainer import Callback, Data, Trainer
        ctx = context()
        def note(what, *values): # one write: other processes append too
            with open(Path(folder)/f'{what}-{ctx.trial}', 'a') as f: f.write(' '.join(map(str,values))+'\n')
        def die_once(when):
            if ctx.trial==when and ctx.attempt==0: os.kill(os.getpid(), signal.SIGKILL)
        class Noted(Callback):
            def after_step(self, t): note('steps', t.step)
            def state_dict(self):
                if (ctx.stop.reason or '').startswith('paused'): die_once('3') # told to pause, and killed before it has saved
                return {}
            def load_state_dict(self, state): pass
            def after_fit(self, t):
                if (ctx.stop.reason or '').startswith('paused'): die_once('4') # has saved, and is killed before anybody knows
        x,y = load_digits(return_X_y=True)
        x,y = torch.tensor(x[:600], dtype=torch.float32)/16,torch.tensor(y[:600])
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(64,32), torch.nn.ReLU(), torch.nn.Dropout(.1), torch.nn.Linear(32,10))
        t = Trainer(model, Data.from_tensors((x[:400],y[:400]), (x[400:],y[400:]), batch_size=50), loss=F.cross_entropy, lr=config['lr'], callbacks=[Noted()], run=track.run if ctx.trial else None, compile=False, graph=False)
        t.fit(epochs=9)
        weights = hashlib.sha256(b''.join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()
        if not ctx.trial: return [r['val_loss'] for r in t.history.rows],weights
        note('weights', weights)
        return t.history['val_loss'][-1]
    return train


def test_promoted_trials_go_on_bit_for_bit_and_no_step_is_made_twice(tmp_path):
    (tmp_path/'notes').mkdir()
    train = digits(str(tmp_path/'notes'))
    rates = [.03,.01,.005,.002,.001,.0005,.0002] # the best first: it has to wait
    spec = dict(method='grid', metric=dict(name='val_loss'), early_terminate=dict(type='asha', min_iter=1, max_iter=9), parameters=dict(lr=dict(values=rates)))
    s = Sweep(spec, runs_dir=tmp_path/'runs').run(train, workers=2, progress=False)
    assert {t.state for t in s.trials}=={'DONE','PRUNED'} and [t.losses for t in s.trials]==[0,0,0,1,1,0,0]
    assert any(t.promoted for t in s.trials[:2])
    notes = lambda what, n: (tmp_path/'notes'/f'{what}-{n}').read_text().split()
    with workers.Pool(1) as pool: alone = {t.number: pool.submit(train, t.config).result() for t in s.trials}
    for t in s.trials:
        made = [int(o) for o in notes('steps', t.number)]
        if t.number==3: made = made[8:] # killed before its first epoch was saved
        assert made==list(range(1, 8*len(t.reports)+1)), t
        rows,weights = alone[t.number] # trained without a break
        assert t.reports==[(8*(i+1),v) for i,v in enumerate(rows[:len(t.reports)])]
        assert t.state=='PRUNED' or notes('weights', t.number)==[weights]
    s.close()
