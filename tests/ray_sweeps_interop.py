"Sweeps on a real Ray of one node: `python -m tests.ray_sweeps_interop FOLDER`, on a machine that hears nobody else; see test_ray_sweeps.py."
import os
import sys
import time
from pathlib import Path

import ray
from ray import tune

from mlstack.core import context
from mlstack.sweeps import Sweep
from mlstack.sweeps.coordinator import SweepError
from mlstack.sweeps.ray_trials import scheduler, searcher

folder = Path(sys.argv[1])
space = dict(metric=dict(name='loss', goal='minimize'), parameters=dict(lr=dict(values=[.1, .2, .3]), depth=dict(values=[1, 2])))

def sweep(name, **spec): return Sweep(space | spec, seed=3, runs_dir=folder/name, **({'resume': True} if 'again' in name else {}))

def points(s): return [t.config for t in s.trials]
def story(s): return [(t.config, t.state, t.value, len(t.reports), t.why) for t in s.trials]

def trivial(config): return config['lr']*config['depth']

def curve(config):
    import mlstack.tracking as track
    for i in range(9): track.log(loss=config['lr']*config['depth']/(i+1))

def picky(config):
    if config['lr'] == .2: raise ValueError('no such moon')
    return config['lr']

def broken(config): raise KeyError('learning_rate')

def fragile(config):
    import os, signal
    from pathlib import Path
    saved = Path(context().checkpoints)
    saved.mkdir(parents=True, exist_ok=True)
    if config['lr'] == .2 and not context().attempt:
        (saved/'half').write_text('.5')
        os.kill(os.getpid() if config['depth'] == 1 else int((saved.parent/'actor').read_text()), signal.SIGKILL)
        import time
        time.sleep(60)
    return float((saved/'half').read_text()) if (saved/'half').exists() else 1.

def pausing(config):
    import mlstack.tracking as track
    saved = Path(context().checkpoints, 'epoch')
    saved.parent.mkdir(parents=True, exist_ok=True)
    for i in range(int(saved.read_text()) if saved.exists() else 0, 9):
        saved.write_text(str(i+1))
        track.log(loss=config['lr']*config['depth']/(i+1), step=i)

def own(config):
    for i in range(9): tune.report({'loss': config['lr']*config['depth']/(i+1)})

def said(f):
    try: f()
    except SweepError as e: return str(e)
    raise AssertionError('no error')

def main():
    ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, object_store_memory=100*2**20, _node_ip_address='127.0.0.1', _temp_dir=str(folder/'ray'), address='local', log_to_driver=False)
    if 'times' in sys.argv: return times()
    for method, count in (('grid', None), ('random', 5)):
        a, b = sweep('local', method=method), sweep('tune', method=method)
        a.run(trivial, workers=2, count=count)
        b.run(trivial, workers=2, count=count, on='ray', gpus=.5)
        assert points(a) == points(b) and [t.value for t in a.trials] == [t.value for t in b.trials] and all(t.state == 'DONE' for t in b.trials), (story(a), story(b))
        assert not (b.folder/'tune').exists()
    print('same', flush=True)

    stop = dict(method='random', parameters=dict(lr=dict(min=.1, max=1.), depth=dict(values=[1, 2])), early_terminate=dict(type='hyperband', min_iter=1, eta=2))
    a, b = sweep('local', **stop), sweep('tune', **stop)
    a.run(curve, workers=1, count=12)
    b.run(curve, workers=1, count=12, on='ray')
    assert story(a) == story(b) and any(t.state == 'PRUNED' for t in b.trials), (story(a), story(b))
    import mlstack.tracking as track
    runs = {r.id: r.state for r in track.runs(project=b.project, dir=b.runs)}
    assert all(t.id in runs for t in b.trials) and set(runs.values()) == {r.state for r in track.runs(project=a.project, dir=a.runs)}, runs
    print('stopped', flush=True)

    promote = dict(method='grid', early_terminate=dict(type='asha', min_iter=1, eta=2))
    a, b = sweep('local', **promote), sweep('tune', **promote)
    a.run(pausing, workers=1)
    b.run(pausing, workers=1, on='ray')
    assert [o[:4] for o in story(a)] == [o[:4] for o in story(b)] and any(t.promoted for t in b.trials), (story(a), story(b))
    print('promoted', flush=True)

    b = sweep('failing', method='grid').run(picky, workers=2, on='ray')
    assert [t.state for t in b.trials] == ['FAILED' if t.config['lr'] == .2 else 'DONE' for t in b.trials] and all(t.why == 'ValueError: no such moon' and 'in picky' in t.error for t in b.trials if t.state == 'FAILED'), story(b)
    s = sweep('broken', method='grid')
    why = said(lambda: s.run(broken, workers=1, on='ray'))
    assert "the first 3 trials failed, the last with: KeyError: 'learning_rate'" in why and 'in broken' in why, why
    print('failed', flush=True)

    s = sweep('killed', method='grid')
    (s.folder/'checkpoints').mkdir(parents=True)
    import mlstack.sweeps.ray_trials as room
    setup = room._Acting.reset_config
    room._Acting.reset_config = lambda self, config, setup=setup, at=str(s.folder.absolute()/'checkpoints'/'actor'): (Path(at).write_text(str(os.getpid())), setup(self, config))[1]
    import cloudpickle
    cloudpickle.register_pickle_by_value(room)
    ray.cloudpickle.register_pickle_by_value(room)
    s.run(fragile, workers=1, on='ray')
    room._Acting.reset_config = setup
    assert [(t.value, t.attempt, t.losses) for t in s.trials] == [(.5, 1, 1) if t.config['lr'] == .2 else (1., 0, 0) for t in s.trials], story(s)
    print('killed', flush=True)

    s = sweep('again', method='grid')
    s.run(trivial, workers=2, count=2, on='ray')
    import _thread, threading
    def slow(config): import time; time.sleep(4); return 1.
    threading.Timer(3, _thread.interrupt_main).start()
    try: s.run(slow, workers=1, on='ray'); raise AssertionError('it was not interrupted')
    except KeyboardInterrupt: pass
    assert len([t for t in s.trials if t.state == 'DONE']) == 2, story(s)
    s.close()
    s = sweep('again', method='grid').run(trivial, workers=2, on='ray')
    assert points(s) == points(sweep('fresh', method='grid').run(trivial, workers=1)) and all(t.state == 'DONE' for t in s.trials), story(s)
    print('resumed', flush=True)

    a, b = sweep('local', **stop), sweep('own', **stop)
    a.run(curve, workers=1, count=12)
    os.environ['TUNE_DISABLE_AUTO_CALLBACK_LOGGERS'] = '1'
    tune.Tuner(own, run_config=tune.RunConfig(storage_path=str(folder/'results'), verbose=0), tune_config=tune.TuneConfig(search_alg=searcher(b), scheduler=scheduler(b), num_samples=12, max_concurrent_trials=1)).fit()
    assert [o[:4] for o in story(a)] == [o[:4] for o in story(b)], (story(a), story(b))
    print('own', flush=True)
    times()

def times():
    "Seconds of 27 trivial trials, here and there."
    grid = dict(method='grid', parameters={n: dict(values=[1, 2, 3]) for n in 'abc'})
    for name, on in (('local', {}), ('ray', dict(on='ray'))):
        began = time.monotonic()
        sweep('times', **grid).run(lambda c: float(c['a']), workers=2, **on)
        print(f'27 trials with 2 workers, {name}: {time.monotonic()-began:.1f} s', flush=True)

if __name__ == '__main__': main()
