"log.py WHO: what one logged point costs the training thread, for one of mlstack, wandb (offline), csv (a line, flushed)."
import json, os, sys, tempfile, time

who = sys.argv[1]
os.environ.update(WANDB_MODE='offline', WANDB_SILENT='true')
folder = tempfile.mkdtemp()

def mlstack():
    import mlstack.tracking as track
    run = track.init(project='bench', dir=folder)
    return lambda i, loss, acc: run.log({'loss': loss, 'acc': acc}), run.finish

def wandb():
    import wandb
    run = wandb.init(project='bench', dir=folder)
    return lambda i, loss, acc: run.log({'loss': loss, 'acc': acc}), run.finish

def csv():
    f = open(os.path.join(folder, 'log.csv'), 'w')
    def log(i, loss, acc):
        f.write(f'{i},{loss},{acc}\n')
        f.flush()
    return log, f.close

def per_point(log, n, start):
    "CPU time of this thread, less the empty loop."
    values = [(i, 1/(i + 1), i/n) for i in range(start, start + n)]
    a = time.thread_time()
    for _ in values: pass
    b = time.thread_time()
    for i, loss, acc in values: log(i, loss, acc)
    c = time.thread_time()
    return 1e6*((c - b) - (b - a))/n

out, sys.stdout = sys.stdout, open(os.devnull, 'w')
log, close = dict(mlstack=mlstack, wandb=wandb, csv=csv)[who]()
n = 2000
per_point(log, 200, 0)
took = sorted(per_point(log, n, 200 + k*n) for k in range(5))
count = 0
def tick(frame, event, arg):
    global count
    if event == 'call' or event == 'c_call': count += 1
sys.setprofile(tick)
for i in range(100): log(20_000 + i, .5, .5)
sys.setprofile(None)
close()
sys.stdout = out
print(json.dumps(dict(calls=count/100 - 1, us=took[2])))  # the closure itself is one call
