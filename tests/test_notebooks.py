"Every notebook runs from top to bottom in a process of its own, leaves no process and no file behind, and stores nothing that belongs to one machine."
import re
import pytest
from tests import house

lessons = pytest.mark.parametrize('path', house.notebooks(), ids=house.label)

def files():
    ignored = {'__pycache__', '.ipynb_checkpoints'}
    return {p.relative_to(house.root) for d in (house.nbs, house.lib, house.root/'tests') for p in d.rglob('*') if not ignored & set(p.parts)} | {
        p.relative_to(house.root) for p in house.root.iterdir() if p.name not in ('.git', '_proc', '_site')}

@lessons
def test_notebook(path):
    before = files()
    r = house.lesson('notebook', path)
    assert r.returncode == 0, r.stdout
    assert not (new := files() - before), f'left in the repository: {sorted(map(str, new))}'

def texts(cell):
    for o in cell.get('outputs', []):
        for k, v in [('text', o['text'])] if 'text' in o else o.get('data', {}).items():
            if k == 'text' or k.startswith('text/'): yield ''.join(v)

@lessons
def test_outputs_belong_to_no_machine(path):
    "No path, no address; a path that the lesson itself made up may come back in its output."
    written = '\n'.join(''.join(c['source']) for c in house.cells(path))
    wrong = re.compile(r'(?<![\w./])/(?:home|root|tmp|work|Users|private|var/folders|opt|usr)/[\w.-]+|0x[0-9a-f]{8,}|site-packages')
    found = [m[0] for c in house.cells(path) for t in texts(c) for m in wrong.finditer(t) if m[0] not in written]
    assert not found, f'stored outputs of {house.label(path)} hold {found[:5]}'

@lessons
def test_no_stored_error(path):
    "A lesson shows an error with `test_fail` or by printing it, not with a traceback of somebody's machine."
    errors = [o['ename'] for c in house.cells(path) for o in c.get('outputs', []) if o['output_type'] == 'error']
    assert not errors

@lessons
def test_opens_like_the_house(path):
    "A title and a one-line purpose before anything else a reader sees."
    first = next((''.join(c['source']) for c in house.cells(path) if c['cell_type'] == 'markdown'), '')
    assert re.match(r'# \S[^\n]*\n+> \S', first), f'{house.label(path)} must begin with "# title" and "> purpose"'
