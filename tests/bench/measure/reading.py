"reading.py WHO: 100 runs of 10,000 steps of 5 numbers, read as lanes, columns, csv, tensorboard, trackio, mlflow or aim."
import json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path

who, script = sys.argv[1], os.path.abspath(__file__)
folder, keys = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp()), 'abcde'
os.chdir(folder)  # no repository here: what init finds out in the background is not what is measured
count = 100 if who in ('lanes', 'columns', 'csv') else 1

def rows(seed):
    import numpy as np
    for row in np.random.default_rng(seed).random((10_000, 5)).tolist(): yield dict(zip(keys, row))

def mlstack():
    import mlstack.tracking as track
    from mlstack.tracking import columns
    columns.WAIT = 1e9  # no compacting in the background: each form is measured alone
    for i in range(count):
        with track.init(project='bench', dir=folder, reinit='create_new') as run:
            for row in rows(i): run.log(row)
        if who == 'columns': columns.compact(run.path)
        os.utime(run.path/'events', (time.time() - 10,)*2)
    len(track.runs(dir=folder))
    return (lambda: track.runs(dir=folder).history()), (lambda: track.runs(dir=folder).metric('a')), (lambda: track.runs(dir=folder).best('a', 'min'))

def csv():
    import pandas as pd
    for i in range(count):
        with open(folder/f'{i}.csv', 'w') as f:
            f.write('step,time,'+','.join(keys)+'\n')
            for step, row in enumerate(rows(i)): f.write(f'{step},{time.time()},'+','.join(map(str, row.values()))+'\n')
    files = [folder/f'{i}.csv' for i in range(count)]
    one = lambda: [pd.read_csv(o, usecols=['step', 'a']) for o in files]
    return (lambda: pd.concat({o.stem: pd.read_csv(o) for o in files})), one, (lambda: min((o['a'].min(), i) for i, o in enumerate(one())))

def tensorboard():
    from torch.utils.tensorboard import SummaryWriter
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    writer = SummaryWriter(folder)
    for step, row in enumerate(rows(0)):
        for k, v in row.items(): writer.add_scalar(k, v, step)
    writer.close()
    def everything():
        events = EventAccumulator(str(folder), size_guidance=dict(scalars=0)).Reload()
        return [(o.step, o.wall_time, o.value) for k in keys for o in events.Scalars(k)]
    return everything, None, None

def trackio():
    os.environ.update(TRACKIO_DIR=str(folder), HF_HUB_OFFLINE='1', GRADIO_ANALYTICS_ENABLED='False')
    import trackio
    from trackio.sqlite_storage import SQLiteStorage
    run = trackio.init(project='bench', name='r')
    for row in rows(0): run.log(row)
    trackio.finish()
    assert len(SQLiteStorage.get_logs('bench', 'r')) == 10_000
    return (lambda: SQLiteStorage.get_logs('bench', 'r')), None, None

def mlflow():
    import mlflow
    from mlflow.entities import Metric
    mlflow.set_tracking_uri(f'sqlite:///{folder}/mlflow.db')
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment('bench')).info.run_id
    metrics = [Metric(k, v, int(1e3*time.time()), step) for step, row in enumerate(rows(0)) for k, v in row.items()]
    for i in range(0, len(metrics), 1000): client.log_batch(run, metrics[i:i+1000])
    one = lambda k='a': [(o.step, o.timestamp, o.value) for o in client.get_metric_history(run, k)]
    assert len(one()) == 10_000
    return (lambda: {k: one(k) for k in keys}), one, None

def aim():
    if len(sys.argv) > 2:  # the process that writes
        from aim import Run
        run = Run(repo='.', experiment='bench', system_tracking_interval=None, log_system_params=False, capture_terminal_logs=False)
        for step, row in enumerate(rows(0)): run.track(row, step=step)
        run.close()
        sys.exit()
    subprocess.run([sys.executable, script, 'aim', str(folder)], check=True, capture_output=True)
    subprocess.run([Path(sys.executable).with_name('aim'), 'storage', '--repo', '.', 'reindex', '-y'], check=True, capture_output=True)
    from aim import Repo
    series = lambda wanted: {m.name: m.values.sparse_numpy()[1] for run in Repo('.').iter_runs() for m in run.metrics() if m.name in wanted}
    assert len(series('a')['a']) == 10_000
    return (lambda: series(keys)), (lambda: series('a')), None

def seconds(f):
    if f is None: return None
    f()
    start = time.process_time()
    f()
    return (time.process_time() - start)*100/count

if who in ('lanes', 'columns', 'csv'): import pandas  # noqa: F401, E402  (its import is not what is measured)
out, sys.stdout = sys.stdout, open(os.devnull, 'w')
everything, one, best = dict(lanes=mlstack, columns=mlstack, csv=csv, tensorboard=tensorboard, trackio=trackio, mlflow=mlflow, aim=aim)[who]()
size = sum(o.stat().st_size for o in folder.rglob('*') if o.is_file() and (who not in ('lanes', 'columns') or o.parent.name == 'lanes'))
found = dict(all=seconds(everything), one=seconds(one), best=seconds(best), bytes=size/(count*50_000))
sys.stdout = out
shutil.rmtree(folder)
print(json.dumps(found))
