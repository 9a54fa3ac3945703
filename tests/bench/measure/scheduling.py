"scheduling.py one|nodes [--different] [--waiting 10000]: CPU time of a decision of mlstack.resources.scheduling when one job has ended and another has come, with so many waiting."
import argparse, json, os, random, tempfile, time, tracemalloc
from mlstack.resources.leases import Want
from mlstack.resources.deciding import decide
from mlstack.resources.scheduling import Ask, Node, Scheduler

a = argparse.ArgumentParser()
a.add_argument('where', choices=['one', 'nodes'])
a.add_argument('--different', action='store_true')
a.add_argument('--waiting', type=int, default=10_000)
a.add_argument('--times', type=int, default=300)
a = a.parse_args()
rng, GB = random.Random(int(os.environ.get('BENCH_TURN', 0))), 1 << 30
nodes = [Node('here', {f'GPU-{o}': 80*GB for o in range(8)}, 'h100', 64, 1 << 40)] if a.where == 'one' else [Node(f'n{o:04}', 8, 'h100', 96, 1 << 40) for o in range(1250)]

def ask(n):
    gpus = rng.choice([1, 1, 1, 2, 4, 8])
    mem = rng.randrange(1, 64*GB) if a.different else rng.choice([8, 16, 32])*GB
    return Ask(f'j{n:07}', f'user{rng.randrange(100)}', Want(gpus, 0, rng.choice([1, 4, 8]), mem), nodes=rng.choice([1, 1, 1, 1, 2, 16]) if a.where == 'nodes' and gpus == 8 else 1,
        time=rng.choice([900, 3600, 14400, 86400, 7*86400]), priority=rng.choice([0, 0, 0, 1]), submitted=float(n), requeue=rng.random() < .3)

def timed(fn, *args):
    began = time.process_time()
    got = fn(*args)
    return got, (time.process_time() - began)*1e3

def middle(xs, q=.5): return sorted(xs)[int(q*(len(xs) - 1))]

s, n, now = Scheduler(nodes), 0, 0.
while len(s.waiting) < a.waiting:  # fill the cluster, then the line
    s.add(*[ask(n + o) for o in range(1000)])
    n, now = n + 1000, now + 1000
    if len(s.waiting) > 100:
        for o, _ in s.decide(now).preempt: s.end(o.id, now); s.add(o)
decisions, adds, started = [], [], 0
for _ in range(a.times):
    now += 10
    s.end(rng.choice([id for id, r in s.running.items() if r.ask]), now)
    new = ask(n := n + 1)
    adds.append(timed(s.add, new)[1])
    d, took = timed(s.decide, now)
    for o, _ in d.preempt: s.end(o.id, now); s.add(o)
    decisions.append(took)
    started += len(d.start)
d = s.decide(now)
sentences, forecast = timed(lambda: len(d.why))[1], timed(lambda: len(d.expect))[1]
waiting, running = [row[2] for row, _ in s.waiting.values()], [r.ask._replace(started=r.since, place=r.place) for r in s.running.values()]
once = middle([timed(lambda: decide(now, nodes, waiting, running))[1] for _ in range(5)])
with tempfile.TemporaryDirectory() as folder:  # what a board of one small file a job costs to look at
    for o in waiting: open(f'{folder}/{o.id}.environment0.waiting.0', 'w').close()
    listed = middle([timed(lambda: sorted(os.listdir(folder)))[1] for _ in range(15)])
    read = middle([timed(lambda: [open(f'{folder}/{o}').read() for o in os.listdir(folder)])[1] for _ in range(3)])
tracemalloc.start()
again = Scheduler(nodes)
again.add(*[ask(o) for o in range(a.waiting)])
memory = tracemalloc.get_traced_memory()[0]/2**20
print(json.dumps(dict(waiting=len(waiting), running=len(running), decision=middle(decisions), slow=middle(decisions, .99), started=started, add=middle(adds)*1e3, why=sentences, expect=forecast, once=once, listed=listed, read=read, memory=memory)))
