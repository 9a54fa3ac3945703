"""coordinating.py WHO [--trials N]: empty trials of a random search, four processes at a time.
WHO: socket, runs (with a Run for each), either followed by -relaxed; journal, sqlite (Optuna's storages)."""
import argparse, json, os, statistics, subprocess, sys, tempfile, time

agent = '''
import sys
from mlstack.sweeps.serving import connect
s = connect(sys.argv[1], runs_dir=sys.argv[2])
print('ready', flush=True); sys.stdin.readline()
while t := s.ask(): s.tell(t, t['lr'])
'''

optuna_worker = '''
import sys, optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
exec(sys.argv[1])
study = optuna.load_study(study_name='s', storage=storage, sampler=optuna.samplers.RandomSampler())
print('ready', flush=True); sys.stdin.readline()
study.optimize(lambda t: t.suggest_float('lr', 0, 1), n_trials=int(sys.argv[2]))
'''

def race(code, *args, processes=4):
    "Seconds from the word to go until all have ended."
    ps = [subprocess.Popen([sys.executable, '-c', code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    for p in ps:
        if p.stdout.readline() != 'ready\n': raise RuntimeError('a worker failed')
    start = time.monotonic()
    for p in ps: p.stdin.write('go\n'); p.stdin.close()
    if any([p.wait() for p in ps]): raise RuntimeError('a worker failed')
    return time.monotonic() - start

def sweep(folder, trials, durable):
    from mlstack.sweeps import Sweep
    return Sweep(dict(method='random', run_cap=trials, metric=dict(name='loss'), parameters=dict(lr=dict(min=0., max=1.))), runs_dir=folder, durable=durable)

def over_socket(folder, trials, durable):
    from mlstack.sweeps.serving import connect, serve
    s = sweep(folder, trials, durable)
    with serve(s): took = race(agent, s.id, folder)
    assert sum(t.state == 'DONE' for t in s.trials) == trials
    s.close()
    s, again = sweep(folder, 10_000, durable), []
    with serve(s), connect(s.id, runs_dir=folder) as waits:
        for _ in range(20):
            code = 'import sys, time; from mlstack.sweeps.serving import connect; t = connect(sys.argv[1], runs_dir=sys.argv[2]).ask(); print(t.number, flush=True); time.sleep(600)'
            p = subprocess.Popen([sys.executable, '-c', code, s.id, folder], stdout=subprocess.PIPE, text=True)
            n = int(p.stdout.readline())
            p.kill()
            start = time.monotonic()
            while (t := waits.ask(wait=False)) is None or t.number != n: t and waits.tell(t, 0.)
            again.append(time.monotonic() - start)
            waits.tell(t, 0.)
            p.wait()
    return dict(rate=trials/took, again=statistics.median(again)*1e3, again_most=max(again)*1e3)

def with_runs(folder, trials, durable):
    s, told = sweep(folder, trials, durable), []
    on_tell = s._on_tell
    def counted(r): told.append(time.monotonic()); on_tell(r)
    s._on_tell = counted
    s.run(lambda c: c['lr'], workers=4, progress=False)
    skip = min(20, trials//4) # the workers start
    s.close()
    import torch # as a training function would have it
    s = sweep(folder, 21, durable)
    s.run(lambda c: dict(loss=time.time()) if torch else None, workers=1, progress=False)
    began = [t.value for t in s.trials]
    return dict(rate=(trials - skip)/(told[-1] - told[skip - 1]), start=statistics.median((b - t.ended)*1e3 for t, b in zip(s.trials, began[1:])))

def optuna_storage(folder, trials, which):
    import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    make = dict(journal=f'from optuna.storages import JournalStorage; from optuna.storages.journal import JournalFileBackend; storage = JournalStorage(JournalFileBackend({folder + "/j.log"!r}))',
        sqlite=f'storage = "sqlite:///{folder}/s.db"')[which]
    names = {}
    exec(make, names)
    optuna.create_study(study_name='s', storage=names['storage'])
    took = race(optuna_worker, make, str(trials//4))
    done = len(optuna.load_study(study_name='s', storage=names['storage']).trials)
    return dict(rate=done/took)

if __name__ == '__main__':
    a = argparse.ArgumentParser()
    a.add_argument('who'); a.add_argument('--trials', type=int)
    a = a.parse_args()
    who, _, relaxed = a.who.partition('-')
    n = a.trials or dict(socket=4000, runs=600, journal=120, sqlite=80)[who]
    with tempfile.TemporaryDirectory() as d:
        os.environ['MLSTACK_STATE'] = d
        fn = dict(socket=over_socket, runs=with_runs).get(who)
        print(json.dumps(fn(d, n, not relaxed) if fn else optuna_storage(d, n, who)))
