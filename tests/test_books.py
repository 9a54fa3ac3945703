"Notebooks that can be trusted: what cells need and make, what is stale, what lint finds, how two edited notebooks become one."
import ast, json, os, queue, random, subprocess, symtable, sys, time
from pathlib import Path

import pytest

from mlstack.core import MlstackError
from mlstack.env.cells import plain, read_cell
from mlstack.env.linting import lint
from mlstack.env.merging import clean_notebook, dump_notebook, hooks_installed, install_hooks, merge_files, merge_notebooks
from mlstack.env.notebooks import Ran, judge, replay_facts
from tests import house

env = lambda **kw: os.environ | dict(PYTHONPATH=str(house.root), OMP_NUM_THREADS='1') | kw


def code(source, **kw): return dict(cell_type='code', source=source, metadata={}, outputs=[], execution_count=None) | kw
def text(source, **kw): return dict(cell_type='markdown', source=source, metadata={}) | kw
def book(*cells, minor=4, **kw): return dict(cells=[code(o) if isinstance(o, str) else o for o in cells], metadata={}, nbformat=4, nbformat_minor=minor) | kw
def sources(nb): return [''.join(c['source']) for c in nb['cells']]


# Cells: Python itself is asked whose a name is

def every_cell():
    for p in house.notebooks():
        for n, c in enumerate(house.cells(p), 1):
            if c['cell_type'] == 'code': yield p, n, ''.join(c['source'])

def global_names(table):
    "Names that this table and those in it take from the module or from builtins."
    for s in table.get_symbols():
        if s.is_global() or table.get_type() == 'module': yield s.get_name(), s, table
    for t in table.get_children(): yield from global_names(t)

def made_by_python(tree, table):
    "Names the module level binds; what `except … as` binds is gone at the end."
    gone = {o.name for o in ast.walk(tree) if isinstance(o, ast.ExceptHandler)}
    top = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    annotated = {o.target.id for o in ast.walk(tree) if isinstance(o, ast.AnnAssign) and o.value is None and isinstance(o.target, ast.Name)}
    walrus = {o.target.id for o in ast.walk(tree) if isinstance(o, ast.NamedExpr)} # out of a comprehension it is not said to be assigned
    return top-gone-annotated, gone|annotated|walrus|{'__class__'}

def test_cells_agree_with_python():
    "On every code cell of this repository, Python's own symbol table says the same."
    seen = 0
    for p, n, source in every_cell():
        if plain(source).tree is None: continue
        tree, table, cell = ast.parse(source), symtable.symtable(source, 'cell', 'exec'), read_cell(source)
        made, special = made_by_python(tree, table)
        by_global = set().union(*(b.sets for b in cell.bodies.values()))
        assert (cell.makes | cell.perhaps | cell.deleted | by_global) - special == (made | by_global) - special, f'{p} cell {n}'
        read = {o for o, s, t in global_names(table) if s.is_referenced()}
        known = set(cell.touched) | set().union(*(b.reads for b in cell.bodies.values())) | {'<lambda>'} | special
        assert read <= known and cell.needs <= read | cell.changes | set(cell.touched), f'{p} cell {n}: {read-known}'
        seen += 1
    assert seen > 1000

@pytest.mark.parametrize('source', [
    'x = 1; del x', '[a for a in b if a]', '{k: v for k, v in d.items()}', 'lambda a, *b, c=d, **e: a+f', 'class A:\n    x = 1\n    def f(self): return x, self.x', 'def f():\n    global g\n    g += 1',
    'def f():\n    x = 1\n    def g():\n        nonlocal x\n        x = h\n    return g', 'match p:\n    case {"a": q, **rest} if q: r = q\n    case [1, *s] | s: pass\n    case P(t=u): v = u',
    'import a.b.c, d as e\nfrom f import g as h', 'with a as (b, c), d as e.f: pass', 'for i, (j, *k) in l: pass\nelse: m', '(n := o)', 'async def f():\n    async for a in b: yield a\n    async with c as d: await e',
    'try: pass\nexcept* A as e: x = e\nfinally: y = 1', 'f"{a!r:{b}} {c=}"', 'x: int = 1\ny: str', '@d(a)\nclass C(B, metaclass=M): pass', '[x := 1, x**2]', 'def f(a=(b := 1)): return a',
    'any((w := i) for i in j)', 'print(*a, **b)', 'a.b.c = d[e:f] = g', 'x, *y = z'])
def test_odd_cells_agree_with_python(source):
    cell, table = read_cell(source), symtable.symtable(source, 'cell', 'exec')
    made, special = made_by_python(ast.parse(source), table)
    by_global = set().union(*(b.sets for b in cell.bodies.values()))
    assert (cell.makes | cell.perhaps | cell.deleted | by_global) - special == (made | by_global) - special
    read = {o for o, s, t in global_names(table) if s.is_referenced()}
    assert read <= set(cell.touched) | set().union(*(b.reads for b in cell.bodies.values())) | special
    assert not cell.unknown and cell.error is None

@pytest.mark.parametrize('source, becomes', [
    ('%%time\nx = 1', '\nx = 1'), ('%%capture out --no-stderr\nx = 1', 'out = None\nx = 1'), ('%time y = f(x)', 'y = f(x)'), ('%timeit -n 10 -r 3 f(x)', 'f(x)'), ('x = %time f()', 'x = (None,)'),
    ('if a:\n    !rm {b}\nelse: %cd c', None), ('"""\n%no magic\n"""\n!ls', '"""\n%no magic\n"""\npass'), ('x = (1\n% 2)\n!ls "it\'s', 'x = (1\n% 2)\npass'), ('a, b = !ls', 'a, b = (None,)'),
    ('!cat <<E \\\n  two\nx = 1', 'pass\n\nx = 1'), ('?len', 'pass'), ('np.*max?', 'pass'), ('df.head()?', 'pass'), ('x %= 3', 'x %= 3'), ('a = b \\\n% c', 'a = b \\\n% c'), ('%autoreload 2', 'pass'), ('s = "a" # %x\n%y', 's = "a" # %x\npass')])
def test_ipython_as_python(source, becomes):
    said = plain(source).code
    assert becomes is None or said == becomes
    assert said.count('\n') == source.count('\n')

def test_ipython_agrees():
    "What IPython makes of a cell parses, and reads the same names."
    from IPython.core.inputtransformer2 import TransformerManager
    for o in ('%matplotlib inline\nx = y', '!ls\nx = y', 'x = !ls\ny = x', 'for i in x:\n    %time y = i\n', 'z = a\n%%time', 'len?'):
        mine, theirs = read_cell(o), read_cell(TransformerManager().transform_cell(o))
        if theirs.error is None and mine.error is None: assert mine.makes-{'y'} <= theirs.makes <= mine.makes | {'y'}, o

def test_cells_never_raise():
    rng = random.Random(0)
    parts = ['def f(', '):', '\n', '  ', 'x', '=', '"', "'", '%', '!', '?', '{', '}', '\\', '%%time', '"""', '\0', 'é', 'lambda', '[', ']', ';', 'match x:', 'case _:', '#', '\t', 'global x', 'await']
    for _ in range(1500):
        source = ''.join(rng.choice(parts) for _ in range(rng.randrange(12)))
        cell = read_cell(source)
        assert cell.error is None or cell.error[0] >= 0, source
        assert plain(source).code.count('\n') == source.count('\n'), repr(source)
    assert read_cell('('*5000).error and read_cell('x+'*20000+'x') is not None


# State: played through against what really happens

def really(cells, tags, space=None):
    "Run these cells; `fresh()` gives a new value for each execution, so that no two values are equal by chance."
    space = {} if space is None else space
    for o, tag in zip(cells, tags):
        space['fresh'] = lambda o=o, tag=tag: ((o, tag),)
        try: exec(o, space)
        except Exception: return None
    return {k: v for k, v in space.items() if k[:2] != '__' and k != 'fresh' and not callable(v)}

def random_cell(rng, n):
    a, b = rng.choice('abcd'), rng.choice('abcd')
    return rng.choice([f'{a} = ({n},)', f'{a} = {b}+({n},)', f'{a} = fresh()', f'{a} = {b}+fresh()', f'{a} += ({n},)', f'{a} = [*{b}]\n{a}.append({n})' , f'def f(): return {b}+({n},)', f'{a} = f()',
        f'if len({b})>2: {a} = ({n},)', f'for i in range(2): {a} = {b}+(i,)', f'{a} = {b}\ndel {b}', f'{a} = tuple(x for x in {b})'])

def test_state_against_execution():
    "What is called as written is; what is to be run brings it back; the rest is the same to the last value."
    rng, clean, mended = random.Random(6), 0, 0
    for _ in range(1500):
        cells = ['a = (1,)', 'b = (2,)', 'c = (3,)\nd = (4,)', 'def f(): return a']+[random_cell(rng, n) for n in range(10, 10+rng.randrange(2, 6))]
        if len(set(cells)) < len(cells): continue
        history = cells[:]
        for _ in range(rng.randrange(4)):
            if rng.random() < .3: history.append(random_cell(rng, 50)) # edited away since
            else: history.append(rng.choice(cells))
        tags = list(range(len(history)))
        space = {}
        if really(history, tags, space) is None: continue # a cell failed
        last = {o: t for o, t in zip(history, tags)}
        truth = really(cells, [last[o] for o in cells])
        if truth is None: continue
        said = replay_facts([Ran(o, t) for o, t in zip(history, tags)], cells)
        there = {k: v for k, v in space.items() if k[:2] != '__' and k != 'fresh' and not callable(v) and k not in said['left_over']}
        if not said['stale'] and not said['may_be_stale'] and not said['to_rerun']:
            assert there == truth, f"{cells!r}\n{history!r}"
            clean += 1
            continue
        again = [cells[n-1] for n in said['to_rerun']]
        really(again, range(100, 100+len(again)), space)
        new = last | dict(zip(again, range(100, 100+len(again))))
        now = {k: v for k, v in space.items() if k[:2] != '__' and k != 'fresh' and not callable(v) and k not in said['left_over']}
        assert now == really(cells, [new[o] for o in cells]), f"{cells!r}\n{history!r}\n{said}"
        mended += 1
    assert clean > 50 and mended > 200, (clean, mended)

def test_nothing_more_is_run_than_needed():
    "With values that cannot be equal by chance, leaving out any one cell of the way back does not lead back."
    rng, tried = random.Random(8), 0
    for _ in range(400):
        cells = ['a = (1,)', 'b = (2,)', 'c = (3,)', 'd = (4,)']+[f'{rng.choice("abcd")} {rng.choice(["=", "+="])} {rng.choice("abcd")}+({n},)' for n in range(10, 14)]
        written = [o if i != (k := rng.randrange(4, 8)) else o.replace(')', ', 77)') for i, o in enumerate(cells)]
        said = replay_facts([Ran(o, t) for t, o in enumerate(cells)], written)
        truth = really(written, range(8))
        for left in said['to_rerun']:
            space = {}
            really(cells, range(8), space)
            shown = dict.fromkeys(range(1, 9)) # what each cell saw, as its output would
            really([written[n-1] for n in said['to_rerun'] if n != left], range(8), space)
            state = {k: v for k, v in space.items() if k in 'abcd'}
            assert state != truth or left in said['stale'] or _saw(written, said['to_rerun'], left, cells), (cells, written, said, left, k, shown)
        tried += len(said['to_rerun'])
    assert tried > 300

def _saw(written, again, left, cells):
    "Whether, without `left`, a stale cell that runs again is given something else than in a clean run."
    space, seen = {}, {}
    really(cells, range(8), space)
    for n in again:
        if n != left:
            seen[n] = {k: space.get(k) for k in 'abcd' if k in read_cell(written[n-1]).needs}
            really([written[n-1]], [0], space)
    space = {}
    for n, o in enumerate(written, 1):
        if n in seen and seen[n] != {k: space.get(k) for k in seen[n]}: return True
        really([o], [0], space)
    return False

def facts(written, *history, **kw):
    f = replay_facts([o if isinstance(o, Ran) else Ran(o, i) for i, o in enumerate(history, 1)], written, **kw)
    return f['stale'], f['may_be_stale'], f['to_rerun']

@pytest.mark.parametrize('written, history, expected', [
    (['x = r()', 'y = x', 'z = 1'], ['x = r()', 'y = x', 'z = 1', 'x = r()'], ([2], [], [2])),                                    # reran above
    (['x = 1', 'y = x'], ['x = 1', 'y = x', 'x = 1'], ([], [], [])),                                                            # to the same value
    (['import os', 'p = os.getcwd()'], ['import os', 'p = os.getcwd()', 'import os'], ([], [], [])),
    (['x = {}', 'x["a"] = 1', 'print(x)'], ['x = {}', 'x["a"] = 1', 'print(x)', 'x["a"] = 1'], ([2], [], [1, 2])),                              # what was printed is right
    (['x = 1', 'x += 1', 'print(x)'], ['x = 1', 'x += 1', 'x += 1', 'print(x)'], ([2, 3], [], [1, 2, 3])),
    (['m = M()', 'm.fit(d)'], ['m = M()', 'm.fit(d)', 'm.fit(d)'], ([], [2], [1, 2])),                                          # perhaps
    (['df = read()', 'df.head()', 'accuracy_score(df, df)'], ['df = read()', 'df.head()', 'accuracy_score(df, df)', 'df.head()', 'accuracy_score(df, df)'], ([], [], [])), # shown, not dropped
    (['df = read()', 'clean(df)\ndf.head()'], ['df = read()', 'clean(df)\ndf.head()', 'clean(df)\ndf.head()'], ([], [2], [1, 2])),
    (['m = M()', 'def go(x): return x.p', 'go(m)'], ['m = M()', 'def go(x): return x.p', 'go(m)', 'go(m)'], ([], [], [])),      # go is seen to change nothing
    (['m = M()', 'def go(x): x.p = 1', 'go(m)'], ['m = M()', 'def go(x): x.p = 1', 'go(m)', 'go(m)'], ([], [3], [1, 3])),
    (['k = 1', 'def f(): return k', 'def g(): return f()', 'g()'], ['k = 2', 'def f(): return k', 'def g(): return f()', 'g()', 'k = 1'], ([4], [], [4])),  # through two functions
    (['class A:\n    def f(self): return k', 'k = 1', 'A().f()'], ['class A:\n    def f(self): return k', 'k = 2', 'A().f()', 'k = 1'], ([3], [], [3])),
    (['f = lambda: k', 'k = 1', 'f()'], ['f = lambda: k', 'k = 2', 'f()', 'k = 1'], ([3], [], [3])),
    (['n = 0', 'def tick():\n    global n\n    n += 1', 'tick()', 'n'], ['n = 0', 'def tick():\n    global n\n    n += 1', 'tick()', 'tick()', 'n'], ([3, 4], [], [1, 3, 4])),
    (['a = 1', 'b = 2'], ['b = 2'], ([1], [], [1])),                                                                            # passed over
    (['a = 1', 'b = 2', 'c = 3'], ['a = 1'], ([], [], [])),                                                                     # not that far yet
    (['x = 1', 'y = x'], ['x = 2', 'y = x', 'x = 1'], ([2], [], [2])),                                                          # edited and run
    (['x = 1', 'y = x'], ['x = 2', 'y = x'], ([1, 2], [], [1, 2])),                                                             # edited and not run
    (['plt.plot(x)', 'plt.show()'], ['plt.plot(x)', 'plt.show()', 'plt.plot(x)'], ([], [], [])),
    (['x = 1', 'y = x', 'del x'], ['x = 1', 'y = x', 'del x'], ([], [], [])),
    (['if a:\n    x = 1', 'x'], ['if a:\n    x = 1', 'x'], ([], [], [])),
    (['', '  ', 'x = 1'], ['x = 1'], ([], [], [])),
    ([], [], ([], [], [])), ([], ['x = 1'], ([], [], [])), (['x = 1'], [], ([], [], []))])
def test_what_is_stale(written, history, expected): assert facts(written, *history) == expected

def test_cells_with_the_same_source():
    "Without ids the last executions are theirs in turn; with ids each is its own."
    written = ['x = r()', 'print(x)', 'x = x+1', 'print(x)']
    assert facts(written, *written) == ([], [], [])
    ids, ran = list('abcd'), [Ran(o, i, id) for i, (o, id) in enumerate(zip(written, 'abcd'))]
    assert facts(written, *ran, ids=ids) == ([], [], [])
    assert facts(written, *ran, Ran('print(x)', 9, 'b'), ids=ids) == ([2], [], [1, 2, 3, 4])   # the upper one, with the lower one's x
    assert facts(written, *ran, Ran('print(x)', 9, 'd'), ids=ids) == ([], [], [])

def test_cells_with_the_same_source_are_as_many_cells():
    cells = lambda *written: [(i, f'id{i}', o) for i, o in enumerate(written, 1)]
    once = judge(['x = 0', 'x += 1', 'y = x'], cells('x = 0', 'x += 1', 'x += 1', 'y = x'))
    assert once['clean'] is False and once['as_written'] is False and once['passed_over'] == [3]
    all_ran = judge(['x = 0', 'x += 1', 'x += 1', 'y = x'], cells('x = 0', 'x += 1', 'x += 1', 'y = x'))
    assert all_ran['clean'] and all_ran['as_written'] and not all_ran['rerun']
    thrice = judge(['x = 0', 'x += 1', 'x += 1', 'x += 1'], cells('x = 0', 'x += 1', 'x += 1'))
    assert thrice['rerun'] == [2] and thrice['clean'] is False and thrice['as_written'] is False

def test_what_is_set_in_something_imported_is_changed():
    head = 'from config import cfg', 'cfg.lr = .2', 'y = cfg.lr'
    assert facts(head, head[0], 'cfg.lr = .1', head[2], head[1])[0] == [2, 3] # as for what is made here
    assert facts(head, *head) == ([], [], [])
    assert facts(['import torch', 'z = torch.add(a, b)', 'c = torch.ones(2)'], 'import torch', 'z = torch.add(a, b)', 'z = torch.add(a, b)', 'c = torch.ones(2)')[0] == []

def test_a_cell_that_failed_is_stale():
    assert facts(['x = 1', 'y = x'], Ran('x = 1', 1), Ran('y = x', 2, None, False)) == ([2], [], [2])

def lesson(*cells): return [(i, f'id{i}', o) for i, o in enumerate(cells, 1)]

def test_unknown_is_not_clean():
    star = lesson('from math import *', 'x = sin(1)', 'y = x')
    assert judge([o for _, _, o in star], star)['as_written'] is True                            # in order, once each
    s = judge([o for _, _, o in star]+['y = x'], star)
    assert s['as_written'] is None and 'from math import *' in s.line and s['missing'] == []
    assert judge(['exec("x = 1")', 'y = 2'], lesson('y = 2'))['as_written'] is None                # what ran and is gone may have done anything
    assert judge(['z = 1', 'y = 2'], lesson('y = 2'))['as_written'] is True                      # this did not
    assert judge(['x'], None).line.startswith('not known')

def test_what_the_kernel_brought_along_is_not_missing():
    cells = lesson('df = spark.read()', 'df')
    assert judge(['df = spark.read()', 'df', 'df'], cells, names={'spark', 'df'})['missing'] == []
    assert judge(['df = spark.read()', 'df', 'df'], cells, names={'df'})['missing'] == [[1, 'spark']]

def test_an_edit_that_is_not_saved():
    "With ids, an execution of a cell that the file does not know is no edit but one not saved."
    cells = lesson('x = 1')
    s = judge(['x = 1', 'y = x'], cells, {1: ('id1', True, 0), 2: ('new', True, 0)})
    assert s['unsaved'] == [2] and s['as_written'] is None and 'save' in s.line

def test_the_badge_can_be_read():
    "White on each of its colours has the contrast that WCAG asks of small text, whatever the page is; so have the terminal's colours on neither black nor white."
    from mlstack.env.notebooks import _looks
    def light(c): return sum(w*(v/12.92 if v <= .03928 else ((v+.055)/1.055)**2.4) for w, v in zip((.2126, .7152, .0722), (int(c[i:i+2], 16)/255 for i in (1, 3, 5))))
    assert all(1.05/(light(c)+.05) >= 4.5 for c, _ in _looks.values())
    assert not {'33', '37', '30', '97'} & {o for _, o in _looks.values()}                        # yellow, white, black

def test_the_badge_is_escaped_and_plain():
    s = judge(['x = 2', 'y = x'], lesson('x = 1', 'y = "<i>"+x'), name='<b>.ipynb')
    assert '<b>' not in s._repr_html_() and '<i>' not in s._repr_html_() and '&lt;i&gt;' in s._repr_html_() and 'data-kind="stale"' in s._repr_html_() and str(s) == '<b>.ipynb: 2 cells stale: 1, 2'
    kept = json.dumps(s)
    assert json.loads(kept)['to_rerun'] == [1, 2] and 'lt;' not in kept and '<i>' not in kept      # sources may hold secrets: they are for the eye


# A real kernel

class Kernel:
    "A kernel of Jupyter's own, which is told the cell's id as JupyterLab tells it."
    def __init__(self, folder, **more):
        from jupyter_client.manager import start_new_kernel
        self.manager, self.client = start_new_kernel(kernel_name='python3', cwd=str(folder), env=env(**more))
    def __enter__(self): return self
    def __exit__(self, *_):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
    def run(self, source, cell=None, ok=True):
        "What it printed, and the kinds of other messages with their data."
        return execute(self.client, source, cell, ok)

def execute(client, source, cell=None, ok=True):
    said, shown = [], []
    message = client.session.msg('execute_request', dict(code=source, silent=False, store_history=True, user_expressions={}, allow_stdin=False, stop_on_error=True), metadata=dict(cellId=cell) if cell else {})
    client.shell_channel.send(message)
    while True:
        m = client.get_iopub_msg(timeout=300)
        if m['parent_header'].get('msg_id') != message['header']['msg_id']: continue
        kind, content = m['msg_type'], m['content']
        if kind == 'stream': said.append(content['text'])
        elif kind in ('display_data', 'update_display_data', 'execute_result'): shown.append((kind, content['data'], content.get('transient', {}).get('display_id')))
        elif kind == 'error': assert not ok, content
        elif kind == 'status' and content['execution_state'] == 'idle': break
    while client.get_shell_msg(timeout=300)['parent_header'].get('msg_id') != message['header']['msg_id']: pass
    return ''.join(said), shown

ASK = 'import json; from mlstack.env.notebooks import notebook_state; print(json.dumps(notebook_state()))'

def save(path, *cells, ids='abcdefgh'):
    path.write_text(json.dumps(book(*(code(o, id=i) for i, o in zip(ids, cells)), minor=5)))

def test_a_badge_that_follows_in_a_real_kernel(tmp_path):
    path = tmp_path/'lesson.ipynb'
    cells = ['%load_ext mlstack.env.notebooks', 'xs = []', 'xs.append(1)', 'print(xs)', 'print(xs)']
    path.write_text(json.dumps(book(text('# title', id='t'), *(code(o, id=i) for i, o in zip('abcde', cells)), minor=5)))
    with Kernel(tmp_path, JPY_SESSION_NAME=str(path)) as k:
        _, shown = k.run(cells[0], 'a')
        (kind, data, badge), = shown
        assert kind == 'display_data' and badge and 'data-kind="clean"' in data['text/html'] and data['text/plain'].endswith('clean')
        for o, i in zip(cells[1:], 'bcde'): assert k.run(o, i)[1] == []                              # nothing changed, nothing is sent
        said, shown = k.run(cells[2], 'c')                                                           # a second append
        (kind, data, same), = shown
        assert kind == 'update_display_data' and same == badge and '1 cell stale: 4' in data['text/plain']                      # what was printed before is right
        assert 'the way back: run cell 3 <code>xs = []</code>, cell 4' in data['text/html']
        for o, i in zip(cells[1:], 'bcde'): shown = k.run(o, i)[1] or shown
        assert 'clean' in shown[-1][1]['text/plain']                                                 # the way back leads back
        k.run('import json', 'zz')                                                                   # a cell that is not in the file
        state = json.loads(k.run(ASK, 'zy')[0])
        assert state['as_written'] is None and state['unsaved'] == [11] and state['clean'] is False
        said, shown = k.run('1/0', 'e', ok=False)                                                    # the last cell was edited, not saved, and fails
        assert shown and 'stale: 6' in shown[-1][1]['text/plain']
        k.run('%unload_ext mlstack.env.notebooks')
        assert k.run('xs = 5', 'b')[1] == []

def test_a_badge_that_breaks_says_so_once(tmp_path):
    path = tmp_path/'a.ipynb'
    save(path, '%load_ext mlstack.env.notebooks', 'x = 1')
    with Kernel(tmp_path, JPY_SESSION_NAME=str(path)) as k:
        k.run('%load_ext mlstack.env.notebooks')
        said = [k.run(o)[0] for o in ('import mlstack.env.notebooks as n; n.judge = None', 'x = 1', 'x')]
        path.unlink()                                                                                # and a file that is gone is not known
        k.run('import importlib; importlib.reload(n)')
        assert 'not known' in k.run('print(n.notebook_state())')[0]
    assert 'the badge of this notebook ends here' in said[0] and said[1:] == ['', '']

def test_two_cells_of_one_source_in_a_real_kernel(tmp_path):
    path = tmp_path/'twins.ipynb'
    save(path, 'x = [1]', 'print(x)', 'x = x+[2]', 'print(x)', '%load_ext mlstack.env.notebooks')
    with Kernel(tmp_path, JPY_SESSION_NAME=str(path)) as k:
        k.run('%load_ext mlstack.env.notebooks', 'e')
        for o, i in (('x = [1]', 'a'), ('print(x)', 'b'), ('x = x+[2]', 'c'), ('print(x)', 'd')): k.run(o, i)
        _, shown = k.run('print(x)', 'b')
        assert '1 cell stale: 2' in shown[-1][1]['text/plain']

def test_a_run_keeps_the_state(tmp_path):
    "A Run started from a notebook says which cells were stale when it ended, and its readers still find their keys."
    path = tmp_path/'train.ipynb'
    cells = ["import mlstack.tracking as track", "lr = .1", "run = track.init(project='p', dir='runs', surroundings='notebook'); x = lr", "run.finish()"]
    save(path, *cells)
    with Kernel(tmp_path, JPY_SESSION_NAME=str(path)) as k:
        for o in [cells[0], 'lr = .2', *cells[2:3], cells[1], cells[3]]: k.run(o)
    import mlstack.tracking as track
    kept = track.runs(project='p', dir=tmp_path/'runs')[0].notebook
    assert (kept['name'], kept['stale'], kept['to_rerun'], kept['as_written'], kept['clean']) == ('train.ipynb', [3, 4], [3, 4], False, False)
    assert {'execution_count', 'cells_run', 'rerun', 'digest', 'edited', 'passed_over', 'out_of_order', 'ran'} <= set(kept) and kept['edited'] == [2]

def test_magics_async_and_bash_in_a_real_kernel(tmp_path):
    path = tmp_path/'a.ipynb'
    cells = ['%%time\nx = 1', '%%bash\necho hello', 'async def f(): return x\ny = await f()', 'names = !echo a', '%time z = y+1', ASK]
    save(path, *cells)
    with Kernel(tmp_path, JPY_SESSION_NAME=str(path)) as k:
        for o in cells[:-1]: k.run(o)
        first = json.loads(k.run(ASK)[0])
        k.run(cells[0])
        k.run(cells[2])
        again = json.loads(k.run(ASK)[0])
    assert first['as_written'] is True and again['as_written'] is False and again['stale'] == [5] and again['why'] == {'5': '`y` is not what a clean run gives'}


# Lint

def codes(*cells, **kw):
    ruff, minor = kw.pop('ruff', False), kw.pop('minor', 4)
    folder = Path(kw.pop('folder'))
    (folder/'a.ipynb').write_text(json.dumps(book(*cells, minor=minor, **kw)))
    return [(f.code, f.cell, f.line) for f in lint(folder/'a.ipynb', ruff=ruff)]

HF = 'hf_'+'Q'*34
ERROR = dict(output_type='error', ename='ValueError', evalue='bad', traceback=[])
def said(text): return dict(output_type='stream', name='stdout', text=text)

@pytest.mark.parametrize('cells, expected', [
    ([text('a'), 'print(x)', 'x = 1'], [('NB201', 2, 1)]),
    (['y = 1\nprint(x)\nx = 1'], [('NB201', 1, 2)]),
    ([code('x', execution_count=1)], [('NB202', 1, 1)]),
    (['x = 1', 'del x', 'x'], [('NB202', 3, 1)]),
    (['def f():\n    return nobody', 'f()'], [('NB202', 1, 1)]),
    (['_', '_12', 'Out[3]'], [('NB203', 1, 1), ('NB203', 2, 1), ('NB203', 3, 1)]),
    ([code('a = 1', execution_count=2), code('b = 1', execution_count=1)], [('NB301', 2, None)]),
    ([code('a = 1', execution_count=2), code('b = 1', execution_count=2)], [('NB301', 2, None)]),
    ([code('a = 1'), code('b = 1', execution_count=2)], [('NB302', 1, None)]),
    ([code('a = 1', execution_count=1), code('b = 1')], []),                                           # not that far yet
    ([code('a = 1', outputs=[ERROR])], [('NB303', 1, None)]),
    ([code('a = 1', outputs=[ERROR], metadata=dict(tags=['raises-exception']))], []),
    ([code('a = 1', outputs=[said('File "/home/ada/x.py"')])], [('NB401', 1, None)]),
    ([code('a = 1', outputs=[said('C:\\Users\\ada\\x')])], [('NB401', 1, None)]),
    ([code('a = 1', outputs=[said('http://x.org/home/ada/x, /data/x, ./home/a/b')])], []),
    ([code('a = 1', outputs=[dict(output_type='display_data', metadata={}, data={'image/png': 'AKIA'+'A'*16})])], []),
    ([code('a = 1', outputs=[said(HF)])], [('NB402', 1, None)]), ([f'a = 1\nt = "{HF}"'], [('NB402', 1, 2)]), ([text(f'use {HF}')], [('NB402', 1, 1)]),
    (['api_key = "abcd1234abcd1234abcd"'], [('NB402', 1, 1)]), (['token = "the name of the token goes here"', 'key = os.environ["API_KEY"]\nimport os'], [('NB201', 2, 1)]),
    ([code('a = 1', outputs=[said('x'*1_100_000)])], [('NB403', 1, None)]),
    (['#| export\n%matplotlib inline\nx = 1'], [('NB501', 1, 2)]), (['!pip install x', '%pip install x'], [('NB502', 1, 1)]), (['!cd /tmp', '!cd /tmp && ls'], [('NB503', 1, 1)]),
    (['x = ', 'y = 1\nfor'], [('NB110', 1, 1), ('NB110', 2, 2)]),
    (['#| eval: false\nx = '], []),
    (['x = 1  # noqa', 'y  # noqa: NB202', 'z  # noqa: NB301'], [('NB202', 3, 1)]),
    ([code('a = 1  # noqa: NB401', outputs=[said('/home/ada/x')]), code('a = 1  # noqa', outputs=[said('/home/ada/x')])], [('NB401', 2, None)]), ([code('a = 1', outputs=[said('target=/root/.cache/pip')])], []),
    (['from a import *', 'whatever'], []), (['exec(s)\ns = 1', 'whatever'], []), (['%run a.py', 'whatever'], []), (['%%html\n<b>', '%%bash\nx', '%%writefile a.py\ny'], []),
    (['%%capture out\nx = 1', 'out.show(); x', '%%bash --out o\nls', 'o'], []), (['def f(): return later', 'later = 1', 'f()'], []), (['t = dict(k=lambda: later)\nlater = 1'], []),
    (['def f(): return alpha', 'alpha = 1; for'], [('NB110', 2, 1)]),
    (['try:\n    import a\nexcept ImportError:\n    a = None', 'a'], []), (['for i in []: j = i', 'i, j'], []), (['class A:\n    x = 1\n    y = [x]', 'A'], []), (['print(__name__, __file__, get_ipython(), display)'], []),
    ([], [])])
def test_lint(tmp_path, cells, expected): assert codes(*cells, folder=tmp_path) == expected

def test_lint_of_ids(tmp_path):
    assert codes(code('1', id='a'), code('2', id='a'), code('3'), minor=5, folder=tmp_path) == [('NB102', 2, None), ('NB102', 3, None)]
    assert codes(code('1'), code('2'), folder=tmp_path) == []

@pytest.mark.parametrize('content, why', [('', 'is empty'), ('{', 'not JSON'), ('[]', 'no list of cells'), ('{"cells": 3}', 'no list of cells'), ('{"cells": [3]}', 'is not a cell'), ('{"worksheets": [], "nbformat": 3}', 'format 3'),
    ('{"cells": [{"cell_type": "code"}]}', 'is not a cell'), ('{\n<<<<<<< HEAD\n}', "git's conflict markers"), ('{"cells": [{"cell_type": "code", "source": [1]}]}', None)])
def test_lint_of_what_is_no_notebook(tmp_path, content, why):
    (tmp_path/'a.ipynb').write_text(content)
    found = lint(tmp_path)
    assert [f.code for f in found] == ['NB101'] and (why or '') in found[0]

@pytest.mark.parametrize('cell, meta', [(dict(source=None), {}), (dict(source=5), {}), (dict(outputs=['a']), {}), (dict(outputs=None, metadata=None), {}), (dict(outputs=[dict(data=None)]), {}), (dict(id=[1]), {}), (dict(metadata=dict(tags=None), outputs=[dict(output_type='error')]), {}), ({}, dict(kernelspec='python')), ({}, dict(kernelspec=None))])
def test_lint_of_one_malformed_notebook_among_others(tmp_path, cell, meta):
    (tmp_path/'a.ipynb').write_text(json.dumps(dict(cells=[code('x = 1') | cell], metadata=meta, nbformat=4, nbformat_minor=4)))
    before = (tmp_path/'a.ipynb').read_text()
    (tmp_path/'b.ipynb').write_text(json.dumps(book('y = not_made')))
    found = lint(tmp_path, ruff=False, fix=True)
    assert [(f.path.name, f.code) for f in found] == [('a.ipynb', 'NB101'), ('b.ipynb', 'NB202')] and (tmp_path/'a.ipynb').read_text() == before

def test_lint_of_bytes_and_of_nothing(tmp_path):
    (tmp_path/'a.ipynb').write_bytes(b'\xff\xfe{}')
    assert 'not UTF-8' in lint(tmp_path)[0]
    with pytest.raises(MlstackError, match='no such file'): lint(tmp_path/'missing.ipynb')
    (tmp_path/'a.ipynb').unlink()
    assert lint(tmp_path) == [] and str(lint(tmp_path)).startswith('0 findings in 0 notebooks')

def test_lint_of_another_language(tmp_path):
    assert codes('library(x)\ny <- 1', code('z', execution_count=1, outputs=[said(HF)]), folder=tmp_path, metadata=dict(kernelspec=dict(name='ir', language='R', display_name='R'))) == [('NB402', 2, None)]

def test_ruff_is_asked_with_the_projects_settings(tmp_path):
    cells = ['import os', 'x = [1 for unused in ()]; l = 1', 'print(y)', 'y = 1']
    assert codes(*cells, folder=tmp_path, ruff=True) == [('F401', 1, 1), ('E702', 2, 1), ('E741', 2, 1), ('NB201', 3, 1)] or ('F401', 1, 1) in codes(*cells, folder=tmp_path, ruff=True)
    (tmp_path/'pyproject.toml').write_text('[tool.ruff.lint]\nselect = ["E741"]\n')
    assert codes(*cells, folder=tmp_path, ruff=True) == [('E741', 2, 1), ('NB201', 3, 1)]
    (tmp_path/'pyproject.toml').write_text('[tool.ruff]\nextend-exclude = ["a.ipynb"]\n')
    assert codes(*cells, folder=tmp_path, ruff=True) == [('NB201', 3, 1)]
    (tmp_path/'pyproject.toml').write_text('[tool.ruff\n')
    with pytest.raises(MlstackError, match='ruff could not run'): codes(*cells, folder=tmp_path, ruff=True)

def test_ruff_does_not_know_what_magics_make(tmp_path):
    (tmp_path/'pyproject.toml').write_text('[tool.ruff.lint]\nselect = ["F821"]\n')
    assert codes('%time x = 1', '%%time\ny = x', 'print(x, y)', 'z', folder=tmp_path, ruff=True) == [('NB202', 4, 1)]
    assert codes('%run a.py', 'print(x)', 'def f(): return w', folder=tmp_path, ruff=True) == []
    assert codes('def f(a: "Nobody"): return a', folder=tmp_path, ruff=True) == [('F821', 1, 1)]

def test_lint_of_a_conflict_that_is_left(tmp_path):
    marks = [text('`<<<<<<< HEAD`'), 'x = 1', text('`=======`'), 'x = 2', text('`>>>>>>> other`')]
    assert codes(*marks, folder=tmp_path) == [('NB103', 1, 1), ('NB103', 3, 1), ('NB103', 5, 1)]
    assert codes('a = 1\n<<<<<<< HEAD\nx = 1\n=======\nx = 2\n>>>>>>> other', text('a\n<<<<<<< HEAD\nb'), folder=tmp_path, ruff=None) == [('NB103', 1, 2), ('NB103', 2, 2)]
    assert codes(text('A title\n======='), text('```\n<<<<<<< HEAD\n```'), 's = """\n<<<<<<< HEAD\n"""', folder=tmp_path) == []

def test_lint_says_what_is_wrong_with_what_it_is_given(tmp_path):
    (tmp_path/'train.py').write_text('x = 1\n')
    with pytest.raises(MlstackError, match='this is no notebook') as e: lint(tmp_path/'train.py')
    assert 'ruff check' in e.value.do
    (tmp_path/'a.ipynb').write_text(json.dumps(book('x = ')))
    assert 'NB110 syntax error: invalid syntax' in lint(tmp_path, ruff=False)[0]

def test_cells_are_counted_as_ruff_counts(tmp_path):
    "Text cells, raw cells, empty cells and magics in between: the same numbers."
    cells = [text('a'), dict(cell_type='raw', source='b', metadata={}), '', '%%bash\nls', 'import os', text('c'), '%matplotlib inline\n\nimport re']
    assert codes(*cells, folder=tmp_path, ruff=True) == [('F401', 5, 1), ('F401', 7, 3)]

def test_without_ruff(tmp_path, monkeypatch):
    from mlstack.env import linting
    (tmp_path/'a.ipynb').write_text(json.dumps(book('import os', 'x')))
    monkeypatch.setattr(linting, '_ruff_command', lambda: None)
    found = lint(tmp_path)
    assert [f.code for f in found] == ['NB202'] and 'pip install ruff' in str(found)
    with pytest.raises(MlstackError, match='pip install ruff'): lint(tmp_path, ruff=True)

def test_fix_changes_counts_and_ids_only(tmp_path):
    path = tmp_path/'a.ipynb'
    cells = [code('x = 1', execution_count=5, id='a', outputs=[said('1')]), text('é', id='a'), code('y', execution_count=2, id='b')]
    path.write_text(json.dumps(book(*cells, minor=5), indent=2, ensure_ascii=False))
    assert [f.code for f in lint(path, ruff=False, fix=True)] == ['NB202']
    new = json.loads(path.read_text())
    assert sources(new) == ['x = 1', 'é', 'y'] and new['cells'][0]['outputs'][0]['text'] == ['1'] and len({c['id'] for c in new['cells']}) == 3
    assert path.read_text().startswith('{\n  "cells"') and 'é' in path.read_text()
    stamp = path.stat().st_mtime_ns
    lint(path, ruff=False, fix=True)
    assert path.stat().st_mtime_ns == stamp

def test_our_own_notebooks():
    found = lint(house.nbs)
    assert found.ok and found.looked_at > 100, str(found)


# Merging, with a real git

def valid(nb):
    import nbformat
    nbformat.validate(nbformat.from_dict(json.loads(json.dumps(nb))))
    return nb

class Repository:
    def __init__(self, folder, hooks=True):
        self.folder = folder
        self.git('init', '-q', '-b', 'main')
        if hooks: install_hooks(folder)
    def git(self, *args, ok=(0,)):
        r = subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', str(self.folder), *args], capture_output=True, text=True, env=env())
        assert r.returncode in ok, r.stdout+r.stderr
        return r.stdout
    def commit(self, nb, message='x', name='a.ipynb'):
        if nb is None: (self.folder/name).unlink()
        else: (self.folder/name).write_text(dump_notebook(json.loads(json.dumps(nb))))
        self.git('add', '-A')
        self.git('commit', '-qm', message)
    def meet(self, base, ours, theirs, how='merge', conflict=False):
        "The notebook after two branches met."
        if base is not None: self.commit(base)
        else: self.git('commit', '-q', '--allow-empty', '-m', 'nothing')
        self.git('checkout', '-qb', 'feature/x y'.replace(' ', '-'))
        self.commit(theirs)
        self.git('checkout', '-q', 'main')
        self.commit(ours)
        if how == 'merge': self.git('merge', '-q', '--no-edit', 'feature/x-y', ok=(1,) if conflict else (0,))
        else: self.git('rebase', '-q', 'feature/x-y', ok=(1,) if conflict else (0,))
        return valid(json.loads((self.folder/'a.ipynb').read_text()))

def ran(nb, start):
    "As if run from top to bottom: counts, outputs, what the front end notes."
    for i, c in enumerate(c for c in nb['cells'] if c['cell_type'] == 'code'):
        c |= dict(execution_count=start+i, outputs=[dict(output_type='execute_result', execution_count=start+i, data={'text/plain': [f'{start} {i}']}, metadata={})])
        c['metadata'] = dict(c['metadata'], execution={'iopub.status.busy': f'2026-01-{start:02}'}, scrolled=True)
    nb['metadata'] |= dict(language_info=dict(name='python', version=f'3.11.{start}'), kernelspec=dict(name='python3', display_name=f'Python {start}', language='python'))
    return nb

three = ['lr = .1', 'x = 1', 'y = 2']

@pytest.mark.parametrize('how', ['merge', 'rebase'])
def test_different_cells_merge_clean(tmp_path, how):
    "Both ran everything, each edited one of two neighbours: no conflict, and nothing in the history but the two edits."
    r = Repository(tmp_path)
    nb = r.meet(ran(book(*three), 1), ran(book('lr = .1', 'x = 10', 'y = 2'), 4), ran(book('lr = .1', 'x = 1', 'y = 20'), 7), how)
    assert sources(nb) == ['lr = .1', 'x = 10', 'y = 20']
    patch = r.git('log', '-p', '--no-textconv', '--first-parent', '--', 'a.ipynb')
    assert not [o for o in ('iopub', 'scrolled', 'language_info', '"execution_count": 4', '"execution_count": 7') if o in patch]

def test_git_alone_cannot(tmp_path):
    "The same without hooks: so the test above can fail."
    r = Repository(tmp_path, hooks=False)
    with pytest.raises((AssertionError, ValueError)): r.meet(ran(book(*three), 1), ran(book('lr = .1', 'x = 10', 'y = 2'), 4), ran(book('lr = .1', 'x = 1', 'y = 20'), 7))

@pytest.mark.parametrize('how', ['merge', 'rebase'])
def test_the_same_cell_is_a_conflict_one_can_open(tmp_path, how):
    r = Repository(tmp_path)
    nb = r.meet(ran(book(*three), 1), ran(book('lr = .3', *three[1:]), 4), ran(book('lr = .5', 'x = 1', 'y = 20'), 7), how, conflict=True)
    one, two = ('.3', '.5') if how == 'merge' else ('.5', '.3')
    assert sources(nb) == ['`<<<<<<< HEAD`', f'lr = {one}', '`=======`', f'lr = {two}', sources(nb)[4], 'x = 1', 'y = 20'] and sources(nb)[4].startswith('`>>>>>>> ')
    assert how == 'rebase' or sources(nb)[4] == '`>>>>>>> feature/x-y`'
    assert 'UU a.ipynb' in r.git('status', '--short') or 'AA a.ipynb' in r.git('status', '--short')

def test_only_outputs_differ(tmp_path):
    "Both ran it again, and neither edited: ours stay. Only theirs ran again: theirs."
    r = Repository(tmp_path)
    nb = r.meet(ran(book(*three), 1), ran(book(*three), 4), ran(book(*three), 7))
    assert sources(nb) == three and [c['outputs'][0]['data']['text/plain'] for c in nb['cells']] == [[f'4 {i}'] for i in range(3)]
    b, t = ran(book(*three), 1), ran(book(*three), 7)
    assert merge_notebooks(b, json.loads(json.dumps(b)), t).notebook['cells'][1]['outputs'] == t['cells'][1]['outputs']

def test_deleted_and_edited(tmp_path):
    r = Repository(tmp_path)
    nb = r.meet(book(*three), book('lr = .1', 'y = 2'), book('lr = .1', 'x = 100', 'y = 2'), conflict=True)
    assert sources(nb) == ['lr = .1', '`<<<<<<< HEAD`', '`=======`', 'x = 100', '`>>>>>>> feature/x-y`', 'y = 2']

def test_deleted_and_only_run_again(tmp_path):
    assert sources(Repository(tmp_path).meet(ran(book(*three), 1), book('lr = .1', 'y = 2'), ran(book(*three), 9))) == ['lr = .1', 'y = 2']

@pytest.mark.parametrize('old, new', [('ours', 'theirs'), ('theirs', 'ours')])
def test_formats_with_and_without_ids(tmp_path, old, new):
    "One side was saved by a new Jupyter, the other adds a cell in the old format: a valid 4.5, every cell with an id of its own."
    upgraded = book(*(code(o, id=f'cell-{i}') for i, o in enumerate(['lr = .3', 'x = 1', 'y = 2'])), minor=5)
    sides = {new: upgraded, old: book('lr = .1', 'x = 1', 'y = 20', 'plot()')}
    nb = Repository(tmp_path).meet(book(*three), sides['ours'], sides['theirs'])
    assert sources(nb) == ['lr = .3', 'x = 1', 'y = 20', 'plot()'] and nb['nbformat_minor'] == 5
    assert len({c['id'] for c in nb['cells']}) == 4 and nb['cells'][0]['id'] == 'cell-0'

def test_both_made_the_file(tmp_path):
    nb = Repository(tmp_path).meet(None, book('a = 1', 'b = 2'), book('a = 1', 'c = 3'), conflict=False)
    assert sources(nb) == ['a = 1', 'b = 2', 'c = 3'] or sources(nb)[1].startswith('`<<<')

def test_cells_of_one_id_or_source(tmp_path):
    "A cell that was copied has its original's source, a notebook made by a tool new ids each time."
    twins = book('plt.show()', 'a = 1', 'plt.show()', 'b = 2')
    nb = Repository(tmp_path).meet(twins, book('plt.show()', 'a = 10', 'plt.show()', 'b = 2'), book('plt.show()', 'a = 1', 'plt.show()', 'b = 20', 'plt.show()'))
    assert sources(nb) == ['plt.show()', 'a = 10', 'plt.show()', 'b = 20', 'plt.show()']
    new = lambda tag, *cells: book(*(code(o, id=f'{tag}{i}') for i, o in enumerate(cells)), minor=5)
    m = merge_notebooks(new('a', *three), new('b', 'lr = .1', 'x = 10', 'y = 2'), new('c', 'new = 0', 'lr = .1', 'x = 1', 'y = 20'))
    assert (m.conflicts, sources(m.notebook)) == (0, ['new = 0', 'lr = .1', 'x = 10', 'y = 20'])

def test_an_id_that_was_copied_with_its_cell():
    cell = lambda id, source: code(source, id=id)
    base = book(cell('a', 'x = 1'), cell('b', 'y = 2'), minor=5)
    copied = book(cell('a', 'x = 1'), cell('a', 'z = 3'), cell('b', 'y = 2'), minor=5)
    merged = merge_notebooks(base, copied, book(cell('a', 'x = 1'), cell('b', 'y = 22'), minor=5))
    assert not merged.conflicts and sources(merged.notebook) == ['x = 1', 'z = 3', 'y = 22']
    twins = book(cell('a', 'x = 1'), cell('a', 'y = 2'), minor=5)
    assert sources(merge_notebooks(twins, book(cell('a', 'x = 1'), cell('a', 'y = 22'), minor=5), twins).notebook) == ['x = 1', 'y = 22']

def test_two_pictures_of_one_name():
    shows = lambda *pictures: book(*(text('![](attachment:p)', attachments={'p': {'image/png': o}}) for o in pictures))
    assert merge_notebooks(shows('0'), shows('1'), shows('2')).conflicts == 1
    assert merge_notebooks(shows('0'), book(), shows('2')).conflicts == 1
    merged = merge_notebooks(shows('0'), shows('0'), shows('2'))
    assert not merged.conflicts and merged.notebook['cells'][0]['attachments'] == {'p': {'image/png': '2'}}

def test_metadata_of_both():
    o = book('x', metadata=dict(kernelspec=dict(name='python3'), a=1, gone=1))
    a, b = book('x', metadata=dict(kernelspec=dict(name='torch'), a=1, gone=1, mine=2)), book('x', metadata=dict(kernelspec=dict(name='python3'), a=2))
    assert merge_notebooks(o, a, b).notebook['metadata'] == dict(kernelspec=dict(name='torch'), a=2, mine=2)
    o, a, b = ({'cells': [code('x', metadata=m)], 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 4} for m in ({}, dict(tags=['slow']), dict(hide=True)))
    assert merge_notebooks(o, a, b).notebook['cells'][0]['metadata'] == dict(tags=['slow'], hide=True)

def test_random_merges_are_valid_and_lose_nothing():
    "Whatever two people do: valid, every cell that somebody wrote is there, and one who did nothing changes nothing."
    rng = random.Random(3)
    def edit(cells, who):
        cells = [dict(c) for c in cells]
        for k in range(rng.randrange(4)):
            do, i = rng.choice(['edit', 'add', 'delete', 'move', 'kind']), rng.randrange(len(cells)+1)
            if do == 'add' or i == len(cells): cells.insert(i, code(f'{who} = {k}{rng.random()}', id=f'{who}-{k}-{rng.randrange(10**9)}'))
            elif do == 'edit': cells[i] = dict(cells[i], source=cells[i]['source']+f'\n{who}{k}')
            elif do == 'delete': del cells[i]
            elif do == 'move': cells.insert(rng.randrange(len(cells)), cells.pop(i))
            else: cells[i] = text(cells[i]['source'], id=cells[i]['id'])
        return cells
    for _ in range(150):
        base = [code(f'base_{i} = {i}\n'*rng.randrange(1, 4), id=f'b{i}') for i in range(rng.randrange(6))]
        one, two = edit(base, 'one'), edit(base, 'two')
        drop = (lambda c: {k: v for k, v in c.items() if k != 'id'}) if rng.random() < .4 else (lambda c: c)
        b, x, y = (book(*map(drop, o), minor=4 if drop(dict(id=1)) == {} else 5) for o in (base, one, two))
        m = merge_notebooks(b, x, y)
        valid(m.notebook)
        everything = '\n'.join(sources(m.notebook))
        for o, side in ((x, 'one'), (y, 'two')):
            for line in {w for s in sources(o) for w in s.split('\n') if w.startswith(side)}: assert line in everything, (line, sources(b), sources(x), sources(y), sources(m.notebook))
        assert sources(merge_notebooks(b, x, b).notebook) == sources(x) and sources(merge_notebooks(b, b, y).notebook) == sources(y)
        assert sources(merge_notebooks(b, x, x).notebook) == sources(x)

def test_beside_nbdev(tmp_path, monkeypatch, capsys):
    "Random edits, everything run on both sides: never a conflict where nbdev's driver has none, and the same notebook where both have none."
    from nbdev.merge import nbdev_merge
    rng, theirs, ours = random.Random(3), 0, 0
    monkeypatch.chdir(tmp_path)
    def edit(cells, who):
        cells = [dict(c) for c in cells]
        for k in range(rng.randrange(3)):
            do, i = rng.choice(['edit', 'add', 'delete', 'edit']), rng.randrange(len(cells)+1)
            if do == 'add' or i == len(cells): cells.insert(i, code(f'{who} = {k}{rng.random()}', id=f'{who}-{k}-{rng.randrange(10**9)}'))
            elif do == 'edit': cells[i] = dict(cells[i], source=cells[i]['source']+f'\n{who}{k}')
            else: del cells[i]
        return cells
    for i in range(200):
        base = [code(f'base_{i} = {i}\n'*rng.randrange(1, 4), id=f'b{i}') for i in range(4, 4+rng.randrange(2, 6))]
        one, two = edit(base, 'one'), edit(base, 'two')
        if i%2 == 0: continue
        b, x, y = (json.loads(json.dumps(ran(book(*cells, minor=5), n))) for cells, n in ((base, 1), (one, 4), (two, 7)))
        for name, nb in zip('oab', (b, x, y)): Path(name).write_text(dump_notebook(json.loads(json.dumps(nb))))
        conflict, mine = bool(nbdev_merge.__wrapped__('o', 'a', 'b', 'a.ipynb')), merge_notebooks(b, x, y)
        assert conflict or not mine.conflicts
        assert conflict or sources(json.loads(Path('a').read_text())) == sources(mine.notebook)
        theirs, ours = theirs+conflict, ours+bool(mine.conflicts)
    assert (theirs, ours) == (44, 12) # the lesson says so

def test_what_is_no_notebook_is_left_to_git(tmp_path):
    r = Repository(tmp_path)
    (tmp_path/'a.ipynb').write_text('no json\n'*5)
    r.git('add', '-A'); r.git('commit', '-qm', 'base')
    r.git('checkout', '-qb', 'other'); (tmp_path/'a.ipynb').write_text('theirs\n'+'no json\n'*5); r.git('commit', '-qam', 'x')
    r.git('checkout', '-q', 'main'); (tmp_path/'a.ipynb').write_text('no json\n'*5+'ours\n'); r.git('commit', '-qam', 'y')
    r.git('merge', '-q', '--no-edit', 'other')
    assert (tmp_path/'a.ipynb').read_text() == 'theirs\n'+'no json\n'*5+'ours\n'
    with pytest.raises(MlstackError, match='no notebook'): merge_files(tmp_path/'a.ipynb', tmp_path/'a.ipynb', tmp_path/'a.ipynb')

def test_an_interpreter_that_is_gone(tmp_path):
    "The merge is git's own again, and nothing that is added is lost."
    r = Repository(tmp_path)
    for key in ('merge.mlstack-notebook.driver', 'filter.mlstack-notebook.clean'): r.git('config', key, r.git('config', key).strip().replace(sys.executable, '/gone/python'))
    assert hooks_installed(tmp_path) == dict(merge=False, filter=False, diff=True)
    far = [f'v{i} = {i}' for i in range(9)]
    nb = r.meet(book(*far), book('v0 = 100', *far[1:]), book(*far[:-1], 'v8 = 800'))
    assert sources(nb) == ['v0 = 100', *far[1:-1], 'v8 = 800'] and len(json.loads(r.git('show', 'HEAD:a.ipynb'))['cells']) == 9

def test_hooks_may_be_repeated_and_undone(tmp_path):
    r = Repository(tmp_path, hooks=False)
    info = tmp_path/'.git'/'info'
    info.mkdir(exist_ok=True)
    (info/'attributes').write_text('*.bin binary')
    (tmp_path/'.git'/'hooks').mkdir(exist_ok=True)
    (tmp_path/'.git'/'hooks'/'post-merge').write_text('mine')
    before = (tmp_path/'.git'/'config').read_text()
    assert hooks_installed(tmp_path) == dict(merge=False, filter=False, diff=False)
    (tmp_path/'sub').mkdir()
    first = install_hooks(tmp_path/'sub')
    assert len(first) > 3 and hooks_installed(tmp_path) == dict(merge=True, filter=True, diff=True)
    assert install_hooks(tmp_path) == ['nothing to do: all is there']
    assert (info/'attributes').read_text().splitlines()[0] == '*.bin binary' and r.git('status', '--short') == ''
    install_hooks(tmp_path, undo=True)
    assert (tmp_path/'.git'/'config').read_text() == before and (info/'attributes').read_text().strip() == '*.bin binary' and (tmp_path/'.git'/'hooks'/'post-merge').read_text() == 'mine'
    assert install_hooks(tmp_path, undo=True) == ['nothing to do: there are none']
    (tmp_path/'.gitattributes').write_text('*.ipynb merge=jupyternotebook\n')
    assert any("nbdev's driver" in o for o in install_hooks(tmp_path))
    assert 'merge: mlstack-notebook' in r.git('check-attr', 'merge', '--', 'a.ipynb')

def test_hooks_in_a_worktree_and_in_no_repository(tmp_path):
    r = Repository(tmp_path/'main') if (tmp_path/'main').mkdir() is None else None
    r.commit(book('x'))
    r.git('worktree', 'add', '-q', str(tmp_path/'tree'))
    assert hooks_installed(tmp_path/'tree') == dict(merge=True, filter=True, diff=True)
    (tmp_path/'alone').mkdir()
    with pytest.raises(MlstackError, match='git repository'): install_hooks(tmp_path/'alone')

def test_a_settings_file_and_modules_of_the_repository_do_not_matter(tmp_path):
    "A settings.ini stops every nbdev command, and a module called json any Python in that folder."
    r = Repository(tmp_path)
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nlib_name = x\n')
    (tmp_path/'json.py').write_text('raise SystemExit("wrong json")')
    (tmp_path/'mlstack.py').write_text('raise SystemExit("wrong mlstack")')
    nb = r.meet(ran(book(*three), 1), ran(book('lr = .1', 'x = 10', 'y = 2'), 4), ran(book('lr = .1', 'x = 1', 'y = 20'), 7))
    assert sources(nb) == ['lr = .1', 'x = 10', 'y = 20'] and '"execution_count": null' in r.git('show', 'HEAD:a.ipynb')

def test_what_is_added_is_clean_and_what_is_worked_on_stays(tmp_path):
    r = Repository(tmp_path)
    r.commit(ran(book(*three), 1))
    again = dump_notebook(ran(book(*three), 1)).replace('"execution_count": 1', '"execution_count": 91')
    (tmp_path/'a.ipynb').write_text(again)
    assert r.git('diff') == '' and (tmp_path/'a.ipynb').read_text() == again
    (tmp_path/'b.ipynb').write_text('{"cells": [')
    r.git('add', '-A')
    assert r.git('show', ':b.ipynb') == '{"cells": ['                                          # what is no notebook goes in as it is
    (tmp_path/'c.ipynb').write_text(json.dumps(book('é = 1'), indent=2))
    r.git('add', '-A')
    assert 'é = 1' in r.git('show', ':c.ipynb')

def test_what_nbdev_made_clean_is_clean():
    "Both may be used in one repository: ours changes nothing in a notebook that nbdev-clean wrote."
    for p in house.notebooks()[:12]:
        was = p.read_text()
        assert dump_notebook(clean_notebook(json.loads(was)), like=was) == was, p

def test_a_conflict_opens_in_a_real_jupyter(tmp_path):
    "Jupyter's own server reads the notebook of a conflict, runs a kernel for it, and the kernel knows its notebook."
    Repository(tmp_path).meet(book(*three), book('lr = .3', *three[1:]), book('lr = .5', *three[1:]), conflict=True)
    with Server(tmp_path) as s:
        nb = s.ask('/api/contents/a.ipynb')
        assert nb['content']['nbformat'] == 4 and [c['cell_type'] for c in nb['content']['cells']] == ['markdown', 'code', 'markdown', 'code', 'markdown', 'code', 'code'] and not nb.get('message')
        save(tmp_path/'b.ipynb', 'x = 2', 'y = x', ASK)
        kernel = s.ask('/api/sessions', dict(path='b.ipynb', name='b.ipynb', type='notebook', kernel=dict(name='python3')))['kernel']['id']
        client = s.client(kernel)
        try: state = [execute(client, o)[0] for o in ('x = 1', 'y = x', 'x = 2', ASK)][-1]
        finally: client.stop_channels()
    state = json.loads(state)
    assert (state['name'], state['stale'], state['to_rerun']) == ('b.ipynb', [2], [2])

class Server:
    "Jupyter's server on a folder."
    def __init__(self, folder):
        self.folder, self.token = folder, 'a'*24
        self.runtime = folder/'.runtime'
        self.process = subprocess.Popen([sys.executable, '-m', 'jupyter_server', '--no-browser', '--allow-root', '--port=0', f'--IdentityProvider.token={self.token}', f'--ServerApp.root_dir={folder}', '--ServerApp.ip=127.0.0.1'],
            env=env(JUPYTER_RUNTIME_DIR=str(self.runtime), JUPYTER_CONFIG_DIR=str(folder/'.config'), JUPYTER_DATA_DIR=str(folder/'.data'), JUPYTER_PREFER_ENV_PATH='1'), stdout=subprocess.DEVNULL, stderr=open(folder/'.log', 'w'), start_new_session=True)
    def __enter__(self):
        for _ in range(1200):
            if self.process.poll() is not None: break
            try:
                self.url = json.loads(next(self.runtime.glob('jpserver-*.json')).read_text())['url'].rstrip('/')
                self.ask('/api')
                return self
            except (StopIteration, ValueError, OSError): time.sleep(.1)
        self.__exit__()
        pytest.fail((self.folder/'.log').read_text()[-2000:])
    def ask(self, path, data=None):
        import urllib.request
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        body = None if data is None else json.dumps(data).encode()
        with opener.open(urllib.request.Request(self.url+path, body, {'Authorization': f'token {self.token}', 'Content-Type': 'application/json'}), timeout=300) as r: return json.load(r)
    def client(self, kernel):
        from jupyter_client import BlockingKernelClient
        client = BlockingKernelClient(connection_file=str(next(self.runtime.glob(f'kernel-{kernel}.json'))))
        client.load_connection_file()
        client.start_channels(hb=False)                     # a busy machine's kernel misses a beat and would be called dead
        for _ in range(120):
            client.kernel_info()
            try: client.get_shell_msg(timeout=1), client.get_iopub_msg(timeout=1)
            except queue.Empty: continue
            return client
        pytest.fail('the kernel of the server does not answer')
    def __exit__(self, *_):
        import psutil
        try: all_of_it = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.Error: all_of_it = []
        house.kill(all_of_it)
        self.process.wait(300)
