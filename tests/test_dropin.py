"""Scripts as W&B users have them, run with `import mlstack.tracking as wandb` and, where the real one works offline, with it too: what both leave behind is compared."""
import json, math, subprocess, sys, time
from pathlib import Path

import pytest

import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError
from tests import house
from tests.test_wandb import wandb_env

OURS, REAL = 'import mlstack.tracking as wandb', 'import wandb'

def run_script(code, cwd, *args, header=OURS, expect=0, **env):
    "What a script prints; `@import` in it is the one line that differs."
    path = Path(cwd)/'train.py'
    path.write_text(code.replace('@import', header))
    env = wandb_env(MLSTACK_RUNS=str(Path(cwd)/'runs'), PYTHONPATH=str(house.root), **env)
    p = subprocess.run([sys.executable, '-W', 'ignore', str(path), *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert p.returncode == expect, p.stderr[-3000:]
    return p.stdout

def plain(v):
    "A value without what differs between two clients: where a file lies, and its digest."
    if isinstance(v, float) and math.isnan(v): return 'nan'
    if isinstance(v, list): return [plain(o) for o in v]
    if not isinstance(v, dict): return v
    if v.get('_type') in ('images/separated', 'image-file', 'table-file', 'html-file', 'audio-file', 'video-file', 'object3D-file', 'molecule-file', 'plotly-file', 'chart-file'): return v['_type']
    return {k: plain(o) for k, o in v.items()}

def left(record):
    "What a run left behind, as W&B names it."
    rows = {}
    for name in record.metric_names:
        if name.startswith(('_', 'system/')): continue
        step, _, value = record.metric(name)
        rows[name] = [(int(s), plain(v)) for s, v in zip(step, value.tolist())]
    return dict(config={k: plain(v) for k, v in record.config.as_dict().items() if k != '_wandb'}, state=record.state, tags=sorted(record.tags), notes=record.notes, group=record.group, job_type=record.job_type, rows=rows)

def ours(cwd): return sorted((left(o) for o in track.runs(dir=Path(cwd)/'runs')), key=lambda o: json.dumps(o, sort_keys=True))
def real(cwd): return sorted((left(o) for o in track.load(Path(cwd)/'wandb', dir=Path(cwd)/'loaded')), key=lambda o: json.dumps(o, sort_keys=True))

LOOP = '''
@import
import torch, torch.nn as nn
torch.manual_seed(0); torch.set_num_threads(1)
run = wandb.init(project="loop", config=dict(lr=.1, epochs=3, model=dict(width=4, act="relu")), tags=["base", "cpu"], notes="first", group="g", job_type="train")
cfg = wandb.config
model = nn.Sequential(nn.Linear(3, cfg.model["width"]), nn.ReLU(), nn.Linear(cfg.model["width"], 1))
opt = torch.optim.SGD(model.parameters(), lr=cfg.lr)
x = torch.randn(16, 3); y = x.sum(1, keepdim=True)
for epoch in range(wandb.config.epochs):
    for i in range(4):
        loss = (model(x[i*4:i*4+4])-y[i*4:i*4+4]).pow(2).mean()
        opt.zero_grad(); loss.backward(); opt.step()
        wandb.log({"train/loss": loss, "epoch": epoch, "lr": opt.param_groups[0]["lr"]})
    with torch.no_grad(): wandb.log({"val": {"loss": (model(x)-y).pow(2).mean().item(), "acc": .5}, "done": epoch == 2})
wandb.run.summary["best"] = .25
print(round(wandb.run.summary["train/loss"], 5), wandb.run.step, run.project)
wandb.finish()
'''

STEPS = '''
@import
with wandb.init(project="steps") as run:
    run.log({"a": 0.}); run.log({"a": 1.}, commit=False); run.log({"b": 1.}); run.log({"a": 2.})
    run.log({"a": 3.}, step=10); run.log({"b": 10.}); run.log({"late": 1}, step=20, commit=True); run.log({"after": 2})
    wandb.log(data={"x": float("nan"), "y": float("inf"), "s": "text", "yes": True})
    run.log({"big": 2**60+1, "list": [1, 2.5], "none": None})
    print(run.step)
'''

CONFIG = '''
@import
import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=.1); parser.add_argument("--name", default="x")
args = parser.parse_args()
wandb.init(project="config", config=args)
wandb.config.update({"later": {"deep": [1, 2]}}); wandb.config.momentum = .9; wandb.config["seed"] = 3
wandb.config.setdefaults({"lr": 9., "added": 1}); wandb.config.update(dict(lr=.5), allow_val_change=True)
class Plain: pass
print(wandb.config.lr, wandb.config["later"]["deep"], wandb.config.get("nope", 7), "seed" in wandb.config, sorted(dict(wandb.config)))
wandb.log({"loss": 1})
wandb.finish()
'''

EXCLUDE = '''
@import
Path = __import__("pathlib").Path
Path("config-defaults.yaml").write_text("width:\\n  desc: cells\\n  value: 8\\nlr:\\n  value: .5\\n")
with wandb.init(project="files", config={"lr": .1, "secret": 1}, config_exclude_keys=["secret"], job_type="eval") as run:
    print(run.config["lr"], run.config["width"], "secret" in run.config)
Path("config-defaults.yaml").unlink()
'''

MEDIA = '''
@import
import numpy as np, wave
rng = np.random.default_rng(0)
with wave.open("beep.wav", "wb") as f: f.setnchannels(1); f.setsampwidth(2); f.setframerate(8000); f.writeframes(bytes(200))
with wandb.init(project="media") as run:
    table = wandb.Table(columns=["id", "picture", "guess"])
    for i in range(3): table.add_data(i, wandb.Image(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), caption=str(i)), "cat")
    run.log({"table": table, "hist": wandb.Histogram(np.arange(10.), num_bins=5), "html": wandb.Html("<b>x</b>"), "sound": wandb.Audio("beep.wav", caption="b")})
    masks = {"truth": {"mask_data": np.zeros((8, 8), int), "class_labels": {0: "sky"}}}
    boxes = {"found": {"box_data": [{"position": {"minX": .1, "maxX": .5, "minY": .1, "maxY": .5}, "class_id": 0, "scores": {"acc": .9}}], "class_labels": {0: "car"}}}
    run.log({"seen": wandb.Image(np.zeros((8, 8), np.uint8), masks=masks, boxes=boxes), "cloud": wandb.Object3D(np.ones((4, 3)))})
    frame = table.get_dataframe()
    print(list(frame.columns), len(frame), table.get_column("id", convert_to="numpy").sum(), [r for _, r in zip(range(1), table.iterrows())][0][1][0])
    counts = wandb.Histogram(np_histogram=np.histogram([1, 2, 3], bins=3))
    print(counts.histogram if isinstance(counts.histogram, list) else counts.histogram.tolist())
'''

PLOTS = '''
@import
import numpy as np
with wandb.init(project="plots") as run:
    table = wandb.Table(data=[[x, x**2] for x in range(5)], columns=["x", "y"])
    charts = dict(line=wandb.plot.line(table, "x", "y", title="t"), scatter=wandb.plot.scatter(table, "x", "y"), bar=wandb.plot.bar(table, "x", "y"), histogram=wandb.plot.histogram(table, "y"),
        series=wandb.plot.line_series([0, 1], [[1, 2], [3, 4]], keys=["a", "b"], xname="step"), confusion=wandb.plot.confusion_matrix(y_true=[0, 1, 1], preds=[0, 1, 0], class_names=["a", "b"]),
        pr=wandb.plot.pr_curve([0, 1, 1, 0], [[.9, .1], [.2, .8], [.4, .6], [.3, .7]]), roc=wandb.plot.roc_curve([0, 1, 1, 0], [[.9, .1], [.2, .8], [.4, .6], [.3, .7]]),
        own=wandb.plot_table("me/own", table, {"x": "x", "y": "y"}, {"title": "mine"}))
    run.log(charts); run.log({"loss": 1.})
    import json
    print(json.dumps({k: (list(o.table.columns), o.table.data) for k, o in charts.items()}, default=lambda o: o.item()))
'''

METRICS = '''
@import
run = wandb.init(project="metrics")
run.define_metric("epoch"); run.define_metric("val/*", step_metric="epoch", summary="min"); wandb.define_metric("acc", summary="max,mean")
for i, v in enumerate([3., 1., 2.]): run.log({"val/loss": v, "acc": v/10, "epoch": i})
wandb.alert("high", "it is high", level=wandb.AlertLevel.WARN, wait_duration=60)
run.finish()
'''

ENV = '''
@import
run = wandb.init(config={"a": 1})
wandb.log({"x": 1}); print(run.project, run.name, sorted(run.tags), run.group, run.notes, run.job_type, run.id)
'''

FAILS = '''
@import
import sys
run = wandb.init(project="ends")
wandb.log({"x": 1})
if sys.argv[1] == "exit": sys.exit(3)
if sys.argv[1] == "text": sys.exit("no data")
if sys.argv[1] == "zero": sys.exit(0)
if sys.argv[1] == "raise": raise ValueError("diverged")
if sys.argv[1] == "code": run.finish(exit_code=1)
if sys.argv[1] == "with":
    try:
        with run: raise RuntimeError("in the block")
    except RuntimeError: pass
'''

LOOPED = '''
@import
for lr in (.1, .01):
    run = wandb.init(project="looped", config=dict(lr=lr), reinit=True)
    for i in range(3): wandb.log({"loss": lr*i})
    wandb.run.summary.update({"final": lr}); wandb.run.notes = "edited"; wandb.run.tags += ("done",)
    wandb.finish()
a = wandb.init(project="looped", config=dict(k=1), reinit="create_new"); b = wandb.init(project="looped", config=dict(k=2), reinit="create_new")
a.log({"x": 1}); b.log({"x": 2}); a.log({"x": 3})
print(wandb.init(reinit="return_previous") is b)
b.finish(); a.finish()
'''

GROUP = '''
@import
import subprocess, sys
if len(sys.argv) == 1:
    for rank in range(3): assert subprocess.run([sys.executable, *sys.argv, str(rank)]).returncode == 0
else:
    with wandb.init(project="group", group="ddp", job_type="rank", config=dict(rank=int(sys.argv[1]))) as run:
        for i in range(4): run.log({"loss": i+int(sys.argv[1])})
'''

WATCH = '''
@import
import torch
torch.manual_seed(0); torch.set_num_threads(1)
model = torch.nn.Linear(3, 1)
run = wandb.init(project="watch")
run.watch(model, log="all", log_freq=2)
for i in range(4):
    model(torch.ones(2, 3)).sum().backward()
    wandb.log({"loss": i})
run.unwatch(model)
wandb.finish()
'''

SCRIPTS = dict(loop=LOOP, steps=STEPS, config=CONFIG, exclude=EXCLUDE, media=MEDIA, plots=PLOTS, metrics=METRICS, looped=LOOPED, group=GROUP, watch=WATCH)

@pytest.fixture(scope='module', params=SCRIPTS)
def both(request, tmp_path_factory):
    "The same script, with ours and with the real one."
    a, b = tmp_path_factory.mktemp('ours'), tmp_path_factory.mktemp('real')
    return request.param, run_script(SCRIPTS[request.param], a), run_script(SCRIPTS[request.param], b, header=REAL), ours(a), real(b)

def alike(name, runs):
    "What must be equal: all but what is known to be ours or theirs alone."
    for r in runs:
        rows = r['rows']
        if name == 'watch':  # ours are of the first backward pass of each `log_freq`, W&B's of the last, and have no norms beside them
            r['rows'] = {k: len(v) for k, v in rows.items() if not k.startswith(('gradients.norm', 'parameters.norm'))}
        if name == 'plots':  # W&B keeps a chart's table under `<key>_table`
            r['rows'] = {k.removesuffix('_table').removeprefix('Custom Chart Tables/'): len(v) for k, v in rows.items()}
        if name == 'media': r['rows'] = {k: [(s, v if isinstance(v, str) else sorted(v) if isinstance(v, dict) else v) for s, v in o] for k, o in rows.items()}
    return runs

def test_a_script_leaves_the_same_behind(both):
    name, said, said_there, here, there = both
    assert said == said_there
    assert alike(name, here) == alike(name, there) and here

@pytest.mark.parametrize('how', ['exit', 'text', 'zero', 'raise', 'code', 'with', 'none'])
def test_how_a_script_ends(tmp_path, how):
    "The state that is recorded is W&B's, also for `sys.exit` outside of a block."
    codes = dict(exit=3, text=1)
    a, b = tmp_path/'a', tmp_path/'b'
    a.mkdir(), b.mkdir()
    run_script(FAILS, a, how, expect=codes.get(how, int(how == 'raise')))
    run_script(FAILS, b, how, expect=codes.get(how, int(how == 'raise')), header=REAL)
    assert [o['state'] for o in ours(a)] == [o['state'] for o in real(b)] == ['finished' if how in ('zero', 'none') else 'failed']

def test_an_exit_that_was_caught_is_none(tmp_path):
    code = '@import\nimport sys\nwandb.init(project="p")\nwandb.log({"x": 1})\ntry: sys.exit(2)\nexcept SystemExit: pass\nwandb.log({"x": 2})'
    run_script(code, tmp_path)
    assert ours(tmp_path)[0]['state'] == 'finished'

def test_sys_exit_is_given_back(tmp_path):
    code = '@import\nimport sys, threading\nbefore = sys.exit\nrun = wandb.init(project="p")\nassert sys.exit is not before\nt = threading.Thread(target=sys.exit, args=(1,)); t.start(); t.join()\nrun.finish()\nassert sys.exit is before'
    run_script(code, tmp_path)

@pytest.mark.parametrize('header', [OURS, REAL])
def test_variables(tmp_path, header):
    env = dict(WANDB_PROJECT='envp', WANDB_NAME='envn', WANDB_TAGS='a,b', WANDB_RUN_GROUP='envg', WANDB_NOTES='why', WANDB_JOB_TYPE='eval', WANDB_RUN_ID='envid')
    assert run_script(ENV, tmp_path, header=header, **env) == "envp envn ['a', 'b'] envg why eval envid\n"
    assert 'mine' in run_script(ENV.replace('init(', 'init(project="mine", '), tmp_path/'..', header=header, **env | dict(WANDB_RUN_ID='other'))

def test_the_folder_of_the_variable(tmp_path):
    code = '@import\nwith wandb.init(project="p") as run: run.log({"x": 1})\nprint(len(wandb.Api().runs("p")))'
    path = tmp_path/'train.py'
    path.write_text(code.replace('@import', OURS))
    env = {k: v for k, v in wandb_env(WANDB_DIR=str(tmp_path/'there'), PYTHONPATH=str(house.root)).items() if k != 'MLSTACK_RUNS'}
    p = subprocess.run([sys.executable, str(path)], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert p.stdout == '1\n', p.stderr
    assert len(track.runs(dir=tmp_path/'there'/'runs')) == 1

DISABLED = '''
@import
import os, numpy as np
run = wandb.init(project="off", config=dict(lr=.1), %s)
assert wandb.run is run and wandb.config.lr == .1
for i in range(3): wandb.log({"loss": i, "im": wandb.Image(np.zeros((4, 4), np.uint8))}, step=i)
run.define_metric("loss", summary="min"); run.watch(None) if False else None; run.alert("a", "b"); wandb.save("*.pt")
a = wandb.Artifact("m", type="model"); run.log_artifact(a); run.config.update({"k": 1}, allow_val_change=True); run.tags += ("t",); run.summary["best"] = 1
open(os.path.join(run.dir, "f.txt"), "w").write("1") if os.path.isdir(run.dir) else None
print(run.disabled, run.config["k"], run.summary["best"], isinstance(run, wandb.Run), bool(run.id))
wandb.finish(); print(wandb.run)
'''

@pytest.mark.parametrize('header', [OURS, REAL])
@pytest.mark.parametrize('how', ['mode="disabled"', 'settings=wandb.Settings(mode="disabled")', 'WANDB_MODE'])
def test_disabled_records_nothing(tmp_path, header, how):
    env = dict(WANDB_MODE='disabled') if how == 'WANDB_MODE' else {}
    said = run_script(DISABLED % ('' if env else how), tmp_path, header=header, **env)
    assert said == 'True 1 1 True True\nNone\n'
    assert not (tmp_path/'runs').exists() and not list((tmp_path/'wandb').glob('offline-run*'))


# What the real one needs its server for

def test_resume(tmp_path):
    code = '''
@import
import sys
run = wandb.init(project="r", id="mine", resume=sys.argv[1], config=dict(lr=.1))
print(run.resumed, run.starting_step, run.step, run.summary.get("loss"))
for i in range(3): wandb.log({"loss": run.step})
if sys.argv[2:]: sys.exit(1)
'''
    assert run_script(code, tmp_path, 'allow') == 'False 0 0 None\n'
    assert run_script(code, tmp_path, 'allow') == 'True 3 3 2\n'
    assert run_script(code, tmp_path, 'must', 'x', expect=1) == 'True 6 6 5\n'
    run_script(code, tmp_path, 'never', expect=1)
    run, = track.runs(dir=tmp_path/'runs')
    assert run.metric('loss')[0].tolist() == list(range(9)) and run.state == 'failed'
    auto = code.replace('id="mine", ', '')
    one = run_script(auto, tmp_path, 'auto', expect=0)
    assert one == 'False 0 0 None\n' == run_script(auto, tmp_path, 'auto')  # the first had come to its end

def test_resume_auto_after_a_crash(tmp_path):
    code = '@import\nimport os\nrun = wandb.init(project="r", resume="auto")\nprint(run.id, run.starting_step, flush=True)\nfor i in range(5): wandb.log({"loss": i})\nos.kill(os.getpid(), 9)'
    first = run_script(code, tmp_path, expect=-9).split()
    second = run_script(code, tmp_path, expect=-9).split()
    assert (first[1], second) == ('0', [first[0], '5'])
    run, = track.runs(dir=tmp_path/'runs')
    assert len(run.metric('loss')[0]) == 10

ARTIFACTS = '''
@import
import os, json
with wandb.init(project="art", job_type="data") as run:
    a = wandb.Artifact("digits", type="dataset", description="small", metadata={"n": 3})
    for i in range(3):
        with a.new_file(f"part/{i}.json") as f: json.dump([i], f)
    a.add(wandb.Table(columns=["x"], data=[[1], [2]]), "table")
    run.log_artifact(a, aliases=["raw"]).wait()
    print(a.version, a.size > 0)
with wandb.init(project="art", job_type="train") as run:
    data = run.use_artifact("digits:latest"); folder = data.download()
    print(sorted(os.listdir(folder)), json.load(open(os.path.join(folder, "part", "1.json"))), data.metadata, data.get("table").data)
    for epoch in range(2):
        open("model.pt", "wb").write(bytes([epoch]))
        m = wandb.Artifact("model", type="model", metadata=dict(epoch=epoch)); m.add_file("model.pt")
        open("model.pt", "wb").write(b"overwritten")
        run.log_artifact(m, aliases=["latest", f"epoch_{epoch}"] + (["best"] if epoch == 0 else []))
    run.link_model("model.pt", "digits-classifier", aliases=["production"])
    id = run.id
api = wandb.Api()
best = api.artifact("team/art/model:best", type="model")
print(best.version, open(best.file(), "rb").read(), best.logged_by().id == id, [o.id for o in api.run(f"art/{id}").used_artifacts()], [o.source_name for o in api.run(f"art/{id}").logged_artifacts()])
try: api.artifact("art/none:v0")
except wandb.errors.CommError as e: print("CommError")
with wandb.init(project="serve") as run: print(open(run.use_model("model-registry/digits-classifier:production"), "rb").read())
'''

def test_artifacts(tmp_path):
    said = run_script(ARTIFACTS, tmp_path).splitlines()
    run, = track.runs("job_type == 'train'", dir=tmp_path/'runs')
    assert said == ["v0 True", "['media', 'part', 'table.table-file.json'] [1] {'n': 3} [[1], [2]]",
        f"v0 b'\\x00' True ['digits:v0'] ['model:v0', 'model:v1', '{run.id}-model.pt:v0']", 'CommError', "b'overwritten'"]

SWEEP = '''
@import
import math

def train(config=None):
    with wandb.init(config=config) as run:
        config = wandb.config
        for epoch in range(config.epochs):
            wandb.log({"loss": (math.log10(config.lr)+2)**2+1/(epoch+1)+config.width/100, "epoch": epoch})

sweep_config = {"method": "random", "name": "tune", "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1}, "width": {"values": [1, 2, 4]}, "epochs": {"value": 3}}}
sweep_id = wandb.sweep(sweep_config, project="sweeps")
wandb.agent(sweep_id, train, count=6)
wandb.agent(f"team/sweeps/{sweep_id}", function=train, count=2, project="sweeps")
sweep = wandb.Api().sweep(f"sweeps/{sweep_id}")
best = sweep.best_run()
losses = [r.summary["loss"] for r in sweep.runs]
print(len(losses), best.summary["loss"] == min(losses), best.sweep.id == sweep_id, all(1e-4 <= r.config["lr"] <= 1 for r in sweep.runs), {r.config["epochs"] for r in sweep.runs}, best.group)
'''

def test_sweep(tmp_path):
    code = 'import mlstack.core, mlstack.sweeps.drop_in\n'+SWEEP
    assert run_script(code, tmp_path).splitlines()[-1] == '8 True True True {3} tune'
    rs = track.runs(dir=tmp_path/'runs')
    assert len({r.config['lr'] for r in rs}) == 8 and all(len(r.metric('loss')[0]) == 3 and r.sweep for r in rs)

def test_jupyter_like(tmp_path):
    "Cells: an init in one, logs in others, an error between, the first cell again."
    code = '''
import os
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(); shell.kernel = object()
shell.history_manager.enabled = False
def cell(s): return shell.run_cell(s).result
cell("@import")
cell("run = wandb.init(project='nb', config=dict(lr=.1), surroundings=False)")
cell("for i in range(3): wandb.log({'loss': i})")
cell("1/0")
cell("wandb.log({'loss': 9})")
first = cell("run.id")
cell("run = wandb.init(project='nb', config=dict(lr=.2), surroundings=False)")
print("said", first != cell("run.id"), cell("'Run' in str(wandb.run)"))
cell("wandb.log({'loss': 1}); wandb.finish()")
print("said", bool(cell("run._repr_html_()")))
'''
    said = run_script(code, tmp_path)
    assert [o for o in said.splitlines() if o.startswith('said')] == ['said True True', 'said True']
    a, b = ours(tmp_path)
    assert {(o['config']['lr'], o['state'], len(o['rows']['loss'])) for o in (a, b)} == {(.1, 'finished', 4), (.2, 'finished', 1)}

def test_api_over_many_runs(tmp_path):
    "An analysis script: filters, order, histories, edits."
    for i in range(60):
        with track.init(project='many', dir=tmp_path, config=dict(lr=10.**-(i % 4), seed=i), tags=[f't{i % 3}'], surroundings=False) as run: run.log({'loss': 1/(i+1), 'acc': i/60})
    api = track.Api(dict(dir=str(tmp_path)))
    found = api.runs('many', {'$and': [{'config.lr': {'$lte': .1}}, {'tags': {'$in': ['t1', 't2']}}, {'summary_metrics.acc': {'$gt': .5}}]}, order='-summary_metrics.acc')
    want = [i for i in range(59, -1, -1) if 10.**-(i % 4) <= .1 and i % 3 and i/60 > .5]
    assert [r.config['seed'] for r in found] == want and len(found) == len(want)
    assert [r.config['seed'] for r in api.runs('many')[:3]] == [0, 1, 2] and [r.config['seed'] for r in api.runs('many', order='-created_at')][:2] == [59, 58]
    assert [r.config['seed'] for r in api.runs('many', {'config.seed': {'$in': [3, 5]}}, order='-config.seed')] == [5, 3]
    assert api.runs('many', {'state': {'$ne': 'finished'}}).objects == []
    with pytest.raises(track.CommError): len(api.runs('nope'))
    with pytest.raises(ValueError): api.run('many/nope')

def test_a_filter_is_mongos():
    "Against a plain reading of the operators, on random documents."
    import random
    from mlstack.tracking import wandb_filters
    rng = random.Random(0)
    class Fake:
        def __init__(self, config): self.config, self.summary, self.facts = config, {}, type('F', (), dict(meta=dict(created=0.)))
    tests = {'$gt': lambda a, b: a is not None and a > b, '$gte': lambda a, b: a is not None and a >= b, '$lt': lambda a, b: a is not None and a < b, '$lte': lambda a, b: a is not None and a <= b,
        '$eq': lambda a, b: a == b, '$ne': lambda a, b: a != b}
    for _ in range(2000):
        config = {k: rng.randint(0, 3) for k in 'abc' if rng.random() < .7}
        def make(depth, config=config):
            if depth and rng.random() < .5:
                op = rng.choice(['$and', '$or', '$nor'])
                parts = [make(depth-1) for _ in range(rng.randint(1, 3))]
                join = dict(zip(('$and', '$or', '$nor'), (all, any, lambda o: not any(o))))[op]
                return {op: [o[0] for o in parts]}, join([o[1] for o in parts])
            k, op, v = rng.choice('abc'), rng.choice(list(tests)), rng.randint(0, 3)
            truth = tests[op](config.get(k), v)
            return ({f'config.{k}': {'$not': {op: v}}}, not truth) if rng.random() < .2 else ({f'config.{k}': {op: v}}, truth)
        filters, truth = make(2)
        assert wandb_filters.matches(Fake(config), filters) == truth, (config, filters)


# The recorder

class Slow:
    "A tensor on a device."
    class device: type = 'other'
    def __init__(self, v): self.v = v
    def detach(self): return self
    def clone(self): return self
    def item(self): return self.v

def test_a_late_row_that_cannot_be_written_is_reported_at_the_end(tmp_path, monkeypatch, capsys):
    from mlstack.tracking import lanes
    run = track.init(project='p', dir=tmp_path, surroundings=False)
    run.log({'a': 1.})
    with monkeypatch.context() as m:
        m.setattr(lanes.Writer, '_append', lambda self, *a: (_ for _ in ()).throw(lanes.disk_full(self.folder, OSError(28, ''))))
        for i in range(3):
            try: run.log({'b': Slow(float(i))})
            except MlstackError: pass
            time.sleep(.05)
        with pytest.raises(MlstackError, match='could not be stored'): run.finish()
    record, = track.runs(dir=tmp_path)
    assert record.state == 'finished' and 'could not be stored' in record.error and record.metric('a')[2].tolist() == [1.]
    assert track.run is None and core.context().run == ''

def test_log_costs_no_more_python_calls_than_before(tmp_path):
    "Nothing of the drop-in stands between two steps."
    run = track.init(project='p', dir=tmp_path, surroundings=False)
    row = {'loss': .3, 'acc': .9, 'lr': .1}
    for _ in range(3): run.log(row)
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append((event, frame.f_code.co_name if event == 'call' else getattr(arg, '__name__', ''))) if event in ('call', 'c_call') else None)
    try: run.log(row)
    finally: sys.setprofile(None)
    run.finish()
    assert [o for o in calls if o[0] == 'call'] == [('call', 'log'), ('call', 'put')]


# Libraries that import wandb themselves, each in an environment of its own

LIBRARIES = dict(
    transformers='''
import torch
from transformers import Trainer, TrainingArguments, BertConfig, BertForSequenceClassification
torch.manual_seed(0); torch.set_num_threads(1)
model = BertForSequenceClassification(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16))
data = [dict(input_ids=torch.randint(0, 50, (8,)), labels=torch.tensor(i % 2)) for i in range(16)]
args = TrainingArguments("out", report_to="wandb", run_name="tiny", max_steps=6, logging_steps=2, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=3, use_cpu=True, disable_tqdm=True, save_strategy="no")
Trainer(model=model, args=args, train_dataset=data, eval_dataset=data[:4]).train()
import wandb; wandb.finish()
r, = track.runs()
assert len(r.metric("train/loss")[2]) == 3 and r.name == "tiny" and r.config["max_steps"] == 6 and r.state == "finished", r.metric_names
assert [a["version"] for a in r.artifacts] == ["v0", "v1"] and "train_loss" in r.summary
''',
    lightning='''
import torch, numpy as np, pytorch_lightning as L
from pytorch_lightning.loggers import WandbLogger
torch.manual_seed(0); torch.set_num_threads(1)
class M(L.LightningModule):
    def __init__(self, lr=.1):
        super().__init__(); self.save_hyperparameters(); self.l = torch.nn.Linear(3, 1)
    def training_step(self, b, i):
        loss = self.l(b[0]).pow(2).mean(); self.log("train/loss", loss); return loss
    def validation_step(self, b, i): self.log("val/loss", self.l(b[0]).pow(2).mean())
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
d = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 3)), batch_size=8)
logger = WandbLogger(project="pl", name="light", log_model=True, tags=["x"])
m = M(); logger.watch(m)
L.Trainer(max_epochs=3, logger=logger, log_every_n_steps=2, enable_progress_bar=False, accelerator="cpu", enable_model_summary=False).fit(m, d, d)
logger.log_image("samples", [np.zeros((4, 4), np.uint8)], caption=["a"]); logger.log_text("words", columns=["a"], data=[["x"]])
import wandb; wandb.finish()
r, = track.runs()
assert len(r.metric("train/loss")[2]) == 6 and len(r.metric("val/loss")[2]) == 3 and r.config == {"lr": .1} and r.tags == ("x",), r.metric_names
assert r.artifacts[0]["type"] == "model" and r.media("samples")[0][1][0].caption == "a" and r.media("words")[0][1].rows == [["x"]]
''',
    accelerate='''
import numpy as np
from accelerate import Accelerator
a = Accelerator(cpu=True, log_with="wandb")
a.init_trackers("acc", config=dict(lr=.1), init_kwargs={"wandb": {"name": "accel", "tags": ["t"], "entity": "me"}})
for i in range(3): a.log({"loss": 1/(i+1)}, step=i*10)
a.get_tracker("wandb").log_images({"im": [np.zeros((4, 4, 3), np.uint8)]}, step=21)
a.end_training()
r, = track.runs()
assert r.metric("loss")[0].tolist() == [0, 10, 20] and r.config == {"lr": .1} and len(r.media("im")[0][1]) == 1 and r.tags == ("t",)
''',
    keras='''
import numpy as np, keras, wandb
from wandb.integration.keras import WandbMetricsLogger, WandbModelCheckpoint
for freq in ("epoch", 2):
    wandb.init(project="ker", config=dict(lr=.1), name=str(freq))
    m = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    m.compile(keras.optimizers.SGD(.1), "mse")
    m.fit(np.random.rand(32, 3), np.random.rand(32, 1), batch_size=8, epochs=3, verbose=0, callbacks=[WandbMetricsLogger(log_freq=freq), WandbModelCheckpoint("m-{epoch}.keras")])
    wandb.finish()
b, a = track.runs()
assert len(a.metric("epoch/loss")[2]) == 3 and "epoch/learning_rate" in a.metric_names and len(b.metric("batch/loss")[2]) == 6 and len(a.artifacts) == 3
''')

@pytest.mark.server
@pytest.mark.parametrize('name', LIBRARIES)
def test_a_library_logs_to_us(name, tmp_path):
    "With the library's own W&B support, which imports wandb by itself."
    from tests.bench import peers
    try: python = peers.python_of('libraries')
    except (RuntimeError, OSError) as e: pytest.skip(f'the libraries cannot be installed here: {e}')
    code = 'import sys; sys.path.append(%r)\nimport mlstack.tracking as track\ntrack.install_as_wandb()\n' % str(house.root) + LIBRARIES[name]
    env = wandb_env(MLSTACK_RUNS=str(tmp_path/'runs'), KERAS_BACKEND='torch', WANDB_LOG_MODEL='end', WANDB_WATCH='gradients', WANDB_PROJECT='lib', WANDB_CONSOLE='off', HF_HUB_OFFLINE='1')
    p = subprocess.run([python, '-W', 'ignore', '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
    assert p.returncode == 0, p.stderr[-3000:]
