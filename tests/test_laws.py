"Who may import whom, what an import may cost, and what every public name owes its reader."
import ast, json, re, sys
import pytest
from tests import house

modules = house.modules()
rooms = pytest.mark.parametrize('module', [m for m in modules if m != 'mlstack'])
heavy = {'torch', 'numpy', 'pandas', 'scipy', 'sklearn', 'optuna', 'matplotlib', 'wandb', 'fastcore', 'rich', 'typer', 'yaml', 'IPython'}
without_torch = ['core', 'workers', 'env', 'tracking', 'sweeps', 'resources']
bare = {'core', 'tracking'}  # nor these, in any room
bare_of = {'fastcore', 'rich', 'typer', 'yaml'}


# Reading imports

def absolute(node, module, is_package):
    "The modules an import statement names, relative ones resolved."
    if isinstance(node, ast.Import): return [o.name for o in node.names]
    if not node.level: return [node.module] + [f'{node.module}.{o.name}' for o in node.names]
    base = module.split('.')
    base = base[:len(base) - node.level + is_package]
    head = '.'.join(base + ([node.module] if node.module else []))
    return [head] + [f'{head}.{o.name}' for o in node.names]

def by_name(node):
    "Modules imported by a call: `import_module('mlstack.x')`, and the values of `lazy(__name__, {...})`."
    name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    if name not in ('import_module', '__import__', 'lazy'): return []
    return [o.value for a in node.args for o in ast.walk(a) if isinstance(o, ast.Constant) and isinstance(o.value, str)]

def imported(module, path, whole=True):
    "Every module that `module` names in an import; with `whole=False` only what runs when it is imported."
    found, package = set(), path.name == '__init__.py'
    def visit(node):
        if isinstance(node, (ast.Import, ast.ImportFrom)): found.update(absolute(node, module, package))
        if isinstance(node, ast.Call) and whole:
            for o in by_name(node):
                found.add(o if not o.startswith('.') else '.'.join(module.split('.')[:(1 if package else 0) + len(module.split('.')) - (len(o) - len(o.lstrip('.')))] + [o.lstrip('.')]))
        if not whole and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): return
        if not whole and isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test): return
        for o in ast.iter_child_nodes(node): visit(o)
    visit(house.tree(path))
    return found

def chapters_above(module):
    c = house.chapter(module)
    assert c in house.floors, f'{module} is on no floor: add {c!r} to tests/house.py and to DESIGN'
    above = set(house.floors[house.floors.index(c) + 1:])
    return above - {'demo', 'cli'} if c in ('demo', 'cli') else above

def test_the_reader_of_imports():
    "The laws below are only as good as this."
    tree = ast.parse('from ..core import a\nfrom . import b\nfrom .loop import c\nimport mlstack.env.record as r\n')
    got = [absolute(o, 'mlstack.trainer.step', False) for o in tree.body]
    assert got == [['mlstack.core', 'mlstack.core.a'], ['mlstack.trainer', 'mlstack.trainer.b'], ['mlstack.trainer.loop', 'mlstack.trainer.loop.c'], ['mlstack.env.record']]
    assert absolute(tree.body[2], 'mlstack.trainer', True) == ['mlstack.trainer.loop', 'mlstack.trainer.loop.c']
    assert 'ddp' in chapters_above('mlstack.trainer.loop') and 'core' not in chapters_above('mlstack.trainer.loop')

@rooms
def test_imports_point_down(module):
    "Also inside functions: what lies above is reached through `core.provider`."
    used = {house.chapter(o) for o in imported(module, modules[module]) if o.split('.')[0] == 'mlstack'}
    assert not (wrong := used & chapters_above(module)), f'{module} imports upwards: {wrong}; use core.provider'

def test_trainer_does_not_know_tracking():
    for m, p in modules.items():
        if house.chapter(m) == 'trainer': assert 'tracking' not in {house.chapter(o) for o in imported(m, p) if o.startswith('mlstack')}, m

@rooms
def test_no_import_of_a_star(module):
    stars = [o.lineno for o in ast.walk(house.tree(modules[module])) if isinstance(o, ast.ImportFrom) and o.names[0].name == '*']
    assert not stars


# What an import brings along

def loaded_by(*names):
    "Top-level modules in a fresh interpreter after these imports, beyond those of the interpreter itself."
    r = house.python('import sys, json\nbefore = set(sys.modules)\nfor o in sys.argv[1:]: __import__(o)\nprint(json.dumps(sorted({o.split(".")[0] for o in set(sys.modules) - before})))', *names, timeout=300)
    assert r.returncode == 0, r.stdout
    return set(json.loads(r.stdout.splitlines()[-1]))

def test_importing_mlstack_alone_brings_nothing():
    assert not loaded_by('mlstack') & heavy

@pytest.mark.parametrize('chapter', [c for c in without_torch if c in house.chapters()])
def test_without_torch(chapter):
    "Every room of the chapter in one interpreter: no torch; for core and tracking none of the four either."
    mine = [m for m in modules if house.chapter(m) == chapter]
    forbidden = {'torch'} | (bare_of if chapter in bare else set())
    loaded = loaded_by(*mine)
    assert chapter == 'core' or 'mlstack' in loaded
    assert not (wrong := loaded & forbidden), f'importing {chapter} brings {wrong}'
    for m in mine:
        tops = {o.split('.')[0] for o in imported(m, modules[m], whole=False)}
        assert not (wrong := tops & forbidden), f'{m} imports {wrong} at its top'

@pytest.mark.parametrize('module, without', [
    ('mlstack.core', heavy), ('mlstack.workers', {'torch', 'numpy', 'pandas'}), ('mlstack.env', {'torch', 'numpy', 'pandas'}), ('mlstack.hardware', {'torch'}),
    ('mlstack.tracking', heavy | {'dataclasses', 'inspect'}), ('mlstack.sweeps', {'torch', 'pandas', 'optuna', 'sklearn', 'scipy'}), ('mlstack.resources', {'torch', 'pandas'}),
    ('mlstack.trainer', {'torch', 'pandas'}), ('mlstack.ddp', {'torch'}), ('mlstack.cli', {'torch', 'pandas'})])
def test_a_front_door_is_light(module, without):
    "`import mlstack.<chapter>` alone; heavy names load on first use."
    if module not in modules: return  # a chapter of a later issue
    assert not (wrong := loaded_by(module) & without), f'import {module} brings {wrong}'

@pytest.mark.parametrize('module', [m for m in ('mlstack', 'mlstack.core', 'mlstack.tracking') if m in modules])
def test_cpu_of_an_import(module):
    "A budget of CPU time, the least of nine, so that a busy machine cannot fail it."
    base, mine = [], []
    for _ in range(9):
        base.append(house.cpu_seconds(sys.executable, '-c', 'pass'))
        mine.append(house.cpu_seconds(sys.executable, '-c', f'import {module}'))
    assert (cost := min(mine) - min(base)) < .060, f'import {module} costs {1000*cost:.0f} ms of CPU beyond the interpreter'


# Names

def exported_names(path):
    "`__all__` of a module, as written."
    for o in house.tree(path).body:
        if isinstance(o, (ast.Assign, ast.AugAssign)) and getattr(o.targets[0] if isinstance(o, ast.Assign) else o.target, 'id', '') == '__all__':
            try: yield from ast.literal_eval(o.value)
            except ValueError: pass

@pytest.mark.parametrize('chapter', [c for c in house.chapters() if modules.get(f'mlstack.{c}', house.lib).name == '__init__.py'])
def test_no_room_bears_a_public_name(chapter):
    "A submodule, once imported, would hide the function of the same name."
    r = house.python('import sys, json, importlib\nm = importlib.import_module(sys.argv[1])\nprint("PUBLIC", json.dumps(m.__all__), flush=True)\nfor o in m.__all__: getattr(m, o)', f'mlstack.{chapter}')
    said = re.search('^PUBLIC (.*)', r.stdout, re.M)
    assert said, f'mlstack.{chapter} has no __all__: {r.stdout}'
    public = set(json.loads(said[1]))
    inside = {m.split('.')[2] for m in modules if m.startswith(f'mlstack.{chapter}.')}
    assert public, f'mlstack.{chapter} makes nothing public'
    assert not (wrong := public & inside), f'mlstack.{chapter}: a room and a public name are both called {wrong}'
    assert r.returncode == 0, f'a public name of mlstack.{chapter} cannot be loaded: {r.stdout[-800:]}'

@rooms
def test_docstrings(module):
    "Every module and every public function and class says what it is."
    tree = house.tree(modules[module])
    assert ast.get_docstring(tree), f'{module} has no docstring'
    public = set(exported_names(modules[module]))
    silent = [o.name for o in tree.body if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and o.name in public and not ast.get_docstring(o)]
    assert not silent, f'{module}: without docstring: {silent}'

def test_what_must_fail_is_tried():
    "fastcore's `expect_fail` is a block: called with a function it does nothing, and the test cannot fail."
    for path in house.notebooks():
        for c in json.loads(path.read_text())['cells']:
            for line in ''.join(c['source']).split('\n') if c['cell_type'] == 'code' else (): assert 'expect_fail(' not in line or 'with expect_fail(' in line or 'import' in line, f'{path}: {line}'
