"Runs a case: rows in turns, each measurement in its own process, and writes what was found with everything needed to doubt it."
import json, os, platform, subprocess, sys, time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tests import house
from tests.bench.peers import folder, python_of

here = Path(__file__).resolve().parent
results = here/'results'

@dataclass
class Row:
    "One line of a table: whose environment, which script of measure/, with which arguments, and the packages whose versions to record."
    env: str
    script: str
    args: list = field(default_factory=list)
    packages: list = field(default_factory=list)

@dataclass
class Case:
    name: str
    title: str
    how: str     # how each figure was measured, for the reader of the table
    rows: dict   # label -> Row
    figures: dict  # key in a script's answer -> (column title, unit); counts first
    repeats: int = 7
    timeout: int = 300
    warm: bool = True    # one turn more, whose figures are thrown away
    base: Callable = None  # label -> the label of the row it is compared with
    beyond: dict = field(default_factory=dict)  # figure -> another figure, less that of the base in the same turn
    over: dict = field(default_factory=dict)    # figure -> another figure, divided by that of the base in the same turn
    agree: tuple = ()    # a figure, and how far it may be from the base's, as a share of it or of 1; other rows fail
    gpu: bool = False    # nothing is measured where there is none
    prepare: Row | None = None  # what has to be there before the first turn

def versions(python, packages):
    code = 'import importlib.metadata as m, json, sys\nprint(json.dumps({o: m.version(o) for o in sys.argv[1:]}))'
    return json.loads(subprocess.run([python, '-c', code, *packages], capture_output=True, text=True, check=True, env=house.environment()).stdout)

def machine():
    import psutil
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), '') if os.path.exists('/proc/cpuinfo') else platform.processor()
    return dict(cpu=cpu or platform.machine(), cores=os.cpu_count(), memory_gb=round(psutil.virtual_memory().total/2**30), system=platform.system(), python=platform.python_version(),
        load=[round(o, 2) for o in os.getloadavg()])

def commit():
    git = lambda *a: subprocess.run(['git', *a], cwd=house.root, capture_output=True, text=True).stdout.strip()
    return git('rev-parse', '--short', 'HEAD') + ('+' if git('status', '--porcelain', '--', 'mlstack') else '')

def measure(python, row, timeout, turn=0):
    "One measurement: the numbers the script prints as JSON on its last line. `turn` may be its seed."
    env = house.environment(PYTHONPATH=house.root if row.env == 'project' else '', MLSTACK_PROGRESS='0', BENCH_TURN=turn, MLSTACK_BENCH_DIR=folder())
    r = house.run(python, here/'measure'/row.script, *row.args, timeout=timeout, env=env)
    if r.returncode: raise RuntimeError(r.stdout.strip()[-1500:])
    return json.loads(r.stdout.strip().splitlines()[-1])

def quantile(xs, q):
    xs, at = sorted(xs), q*(len(xs) - 1)
    lo = int(at)
    return xs[lo] + (xs[min(lo + 1, len(xs) - 1)] - xs[lo])*(at - lo)

def summary(answers, key):
    xs = [a[key] for a in answers if a.get(key) is not None]
    return dict(median=quantile(xs, .5), low=quantile(xs, .25), high=quantile(xs, .75), n=len(xs), values=[round(x, 6) for x in xs]) if xs else None

def compare(case, answers, failed):
    "Add the figures that compare a row with its base, turn by turn; a row that does not agree with its base fails."
    for label, mine in answers.items():
        theirs = answers.get(case.base(label)) if case.base else None
        if label in failed or not theirs or case.base(label) in failed: continue
        for a, b in zip(mine, theirs):
            a |= {key: a[of] - b[of] for key, of in case.beyond.items() if of in a} | {key: a[of]/b[of] for key, of in case.over.items() if of in a}
            if case.agree and abs(a[case.agree[0]] - b[case.agree[0]]) > case.agree[1]*max(abs(b[case.agree[0]]), 1): failed[label] = f'{case.agree[0]} {a[case.agree[0]]:.5g}, {b[case.agree[0]]:.5g} of {case.base(label)}'

def has_gpu(): return house.run(sys.executable, '-c', 'import sys, torch; sys.exit(not torch.cuda.is_available())').returncode == 0

def not_measured(case, res, write):
    "A table that says so, unless there is one that was measured."
    path = results/f'{case.name}.json'
    if path.exists() and any(o['figures'] for o in json.loads(path.read_text())['rows'].values()):
        print(f'{case.name}: there is no GPU here, so {path.name} stays as it was', file=sys.stderr)
        return True
    res |= dict(note='not measured: no GPU', rows={l: dict(figures={}, versions={}) for l in case.rows})
    show(res, {})
    if write: save(res)
    return True

def save(res):
    results.mkdir(exist_ok=True)
    (results/f'{res["case"]}.json').write_text(json.dumps(res, indent=1, ensure_ascii=False) + '\n')

def run_case(case, repeats=None, only=None, write=True):
    "Measure, print the table, write the JSON; returns whether every row could be measured."
    failed, answers, pythons, n = {}, {}, {}, repeats or case.repeats
    res = dict(case=case.name, title=case.title, how=case.how, date=time.strftime('%Y-%m-%d'), command=f'python -m tests.bench {case.name}', commit=commit(), machine=machine(), repeats=n,
        figures={k: dict(title=t, unit=u) for k, (t, u) in case.figures.items()})
    if case.gpu and not has_gpu(): return not_measured(case, res, write)
    for label, row in case.rows.items():
        if only and only not in label: continue
        try: pythons[label] = python_of(row.env)
        except (RuntimeError, subprocess.SubprocessError, OSError) as e: failed[label] = str(e)
    if case.prepare: measure(python_of(case.prepare.env), case.prepare, case.timeout)
    for turn in range(-1 if case.warm else 0, n):  # turn -1 warms caches and is thrown away
        for label, python in pythons.items():
            if label in failed: continue
            print(f'\r{case.name}: turn {max(turn, 0) + 1} of {n}, {label:<40}', end='', file=sys.stderr, flush=True)
            try: got = measure(python, case.rows[label], case.timeout, max(turn, 0))
            except (RuntimeError, AssertionError, ValueError) as e: failed[label] = str(e); continue
            if turn >= 0: answers.setdefault(label, []).append(got)
    print('\r' + ' '*90 + '\r', end='', file=sys.stderr)
    compare(case, answers, failed)
    res['rows'] = {l: dict(figures={k: s for k in case.figures if (s := summary(a, k))}, versions=versions(pythons[l], case.rows[l].packages)) for l, a in answers.items() if l not in failed}
    res['machine'] = machine()
    show(res, failed)
    if failed: print(f'{case.name}: not every row could be measured, so {case.name}.json stays as it was', file=sys.stderr)
    elif write: save(res)
    return not failed

def show(res, failed):
    from rich.console import Console
    from rich.table import Table
    t = Table(title=f'{res["title"]} ({res.get("note") or str(res["repeats"]) + " turns"}, {res["date"]})', title_justify='left')
    t.add_column('')
    for f in res['figures'].values(): t.add_column(f'{f["title"]}' + (f' ({f["unit"]})' if f['unit'] else ''), justify='right')
    t.add_column('versions')
    for label, row in res['rows'].items():
        t.add_row(label, *[cell(row['figures'].get(k)) for k in res['figures']], ' '.join(f'{k} {v}' for k, v in row['versions'].items()))
    for label, why in failed.items(): t.add_row(label, f'[red]{why.splitlines()[-1][:100] if why else "failed"}')
    Console(width=150 if not sys.stdout.isatty() else None).print(t)

def number(x): return f'{x:,.0f}' if abs(x) >= 100 else f'{x:.3g}'
def cell(s): return '' if s is None else number(s['median']) if s['low'] == s['high'] else f'{number(s["median"])}  [{number(s["low"])} to {number(s["high"])}]'

def draw_again():
    "Let nbs/benchmarks.ipynb show what was written: its outputs are stored, as every lesson's are."
    for command in (['nbdev-test', 'nbs/benchmarks.ipynb', '--save'], ['nbdev-clean', '--fname', 'nbs/benchmarks.ipynb']):
        r = house.run(*command, timeout=300)
        if r.returncode: raise SystemExit(f'bench: the results are written, but {" ".join(command)} failed:\n{r.stdout[-2000:]}')
