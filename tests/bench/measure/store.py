"store.py WHO: what it costs to record a run with packed, csv, mlstack, trackio, wandb, tensorboard, mlflow, aim."
import itertools, json, os, random, struct, sys, tempfile, time
from pathlib import Path

who = sys.argv[1]
folder = Path(tempfile.mkdtemp())
os.environ.update(WANDB_MODE='offline', WANDB_SILENT='true', TRACKIO_DIR=str(folder), HF_HUB_OFFLINE='1', GRADIO_ANALYTICS_ENABLED='False')
names = {n: [f'metric/{i}' for i in range(n)] for n in (3, 20)}
steps = dict(wandb=5000, tensorboard=5000, trackio=10_000, mlflow=200, aim=2000).get(who, 100_000)
stretch = dict(wandb=20, tensorboard=20, mlflow=3, aim=20).get(who, 200)

# Each makes (log a row of numbers by name, finish).

def packed():
    room, pack = bytearray(1 << 20), {n: struct.Struct(f'<q{n}dd').pack_into for n in names}
    def log(row): pack[len(row)](room, 0, 1, *[row[k] for k in row], time.time())
    return log, lambda: None

def csv():
    f = open(folder/'log.csv', 'w')
    def log(row):
        f.write(','.join(map(str, row.values()))+'\n')
        f.flush()
    return log, f.close

def mlstack():
    import mlstack.tracking as track
    run = track.init(project='bench', dir=folder)
    if run._origins: run._origins.join()
    mlstack.path = run.path
    return run.log, run.finish

def wandb():
    import wandb
    run = wandb.init(project='bench', dir=folder)
    return run.log, run.finish

def trackio():
    import trackio
    run = trackio.init(project='bench')
    return run.log, trackio.finish

def tensorboard():
    from torch.utils.tensorboard import SummaryWriter
    writer, step = SummaryWriter(folder), 0
    def log(row):
        nonlocal step
        step += 1
        for k, v in row.items(): writer.add_scalar(k, v, step)
    return log, writer.close

def mlflow():
    import mlflow
    mlflow.set_tracking_uri(f'sqlite:///{folder}/mlflow.db')
    mlflow.set_experiment('bench')
    mlflow.start_run()
    return lambda row, steps=itertools.count(): mlflow.log_metrics(row, step=next(steps)), mlflow.end_run

def aim():
    from aim import Run
    run = Run(repo=str(folder), experiment='bench', system_tracking_interval=None, log_system_params=False, capture_terminal_logs=False)
    return lambda row, steps=itertools.count(): run.track(row, step=next(steps)), run.close

def per_call(log, n):
    "CPU time of this thread for a call, less the loop."
    rng, found = random.Random(0), []
    rows = [dict(zip(names[n], [rng.random() for _ in range(n)])) for _ in range(stretch)]
    for _ in range(23):
        a = time.thread_time()
        for _ in rows: pass
        b = time.thread_time()
        for row in rows: log(row)
        found.append(((time.thread_time() - b) - (b - a))/stretch)
    return 1e6*sorted(found[3:])[10]

cpu = time.process_time
def size(end=''): return sum(o.stat().st_size for o in folder.rglob('*'+end) if o.is_file() and not o.is_symlink())

make = dict(packed=packed, csv=csv, mlstack=mlstack, wandb=wandb, trackio=trackio, tensorboard=tensorboard, mlflow=mlflow, aim=aim)[who]
out, sys.stdout = sys.stdout, open(os.devnull, 'w')
log, finish = make()
before = size()
rng = random.Random(0)
f4 = lambda v: struct.unpack('<f', struct.pack('<f', v))[0]
rows = [dict(zip(names[3], (1/(1 + i) + rng.gauss(0, .01), f4(rng.random()), f4(i/(i + 50))))) for i in range(steps)]
prepared = cpu()
for row in rows: log(row)
finish()
found = dict(total=(cpu() - prepared)/steps*100_000)
if who != 'packed': found['bytes'] = (size() - before)/(3*steps)
if who == 'mlstack':
    from mlstack.tracking.columns import compact
    found['bytes'] = size('.lane')/(3*steps)
    compact(make.path)
    found['compacted'] = size('.columns')/(3*steps)
log, finish = make()
found.update(three=per_call(log, 3), twenty=per_call(log, 20))
finish()
sys.stdout = out
print(json.dumps(found))
