"finding.py: 10,000 runs listed and filtered from the index, and found without one."
import json, os, random, shutil, tempfile, time
from pathlib import Path
import sqlite3  # noqa: F401
import mlstack.tracking as track
from mlstack.tracking import index, query

folder, rng = Path(tempfile.mkdtemp()), random.Random(0)
with track.init(project='many', dir=folder, config={'lr': 1., 'opt': {'name': 'adam', 'wd': .1}} | {f'p{i}': i*.1 for i in range(15)}) as run: run.log(loss=1., acc=.5, val=.3)
meta, (events,) = json.loads((run.path/'meta.json').read_text()), (run.path/'events').iterdir()
events = [json.loads(o) for o in events.read_text().splitlines()]
shutil.rmtree(run.path)
for i in range(10_000):
    path = folder/'many'/f'r{i:06}'
    for o in ('events', 'lanes'): (path/o).mkdir(parents=True)
    (path/'meta.json').write_text(json.dumps(meta | dict(id=path.name, name=path.name)))
    for o in events:
        if o['k'] == 'config' and o['p'] == ['lr']: o['v'] = rng.random()
        if o['k'] == 'finish': o.update(last=dict(loss=rng.random(), acc=rng.random(), val=rng.random()), state='finished' if i % 10 else 'failed', lanes={})
    (path/'events'/'w.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in events))
    os.utime(path/'events', (time.time() - 100,)*2)

def seconds(question, times=1):
    took = []
    for _ in range(times):
        start = time.process_time()
        n = len(track.runs(question, dir=folder))
        took.append(time.process_time() - start)
    return n, sorted(took)[times//2]

n, first = seconds('')
assert n == 10_000 and index.index_file(folder).exists()
query._cache.clear()
times = 5
listed, (n, filtered) = seconds('', times)[1], seconds('lr > .5 and state == "finished"', times)
assert 4000 < n < 5000
shutil.rmtree(folder)
print(json.dumps(dict(listed=1e3*listed, filtered=1e3*filtered, first=first)))
