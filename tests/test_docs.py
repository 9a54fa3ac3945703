"The site builds without a warning, holds the API of every exported name, loads nothing from elsewhere, and fits a phone. README is the front page."
import json, re, sys
import pytest
from tests import house

docs = house.root/'docs'/'site.py'
site = house.root/'_site'

@pytest.fixture(scope='module')
def built():
    "The pages by name; what the build said is in `said`."
    r = house.run(sys.executable, docs, 'build', timeout=600)
    pages = Pages({p.relative_to(site).as_posix(): p.read_text(encoding='utf-8') for p in site.rglob('*.html')})
    pages.said, pages.code = r.stdout, r.returncode
    return pages

class Pages(dict): pass

def test_builds_without_a_warning(built): assert built.code == 0, built.said[-6000:]

def page_of(path):
    rel = path.relative_to(house.nbs)
    stem = re.sub(r'^\d+[a-z]?_', '', rel.stem)
    if stem == 'index' and rel.parent.parts: stem = 'the-index'  # index.html is the chapter's front page
    return (rel.parent/('index' if rel.parent.parts and stem == rel.parent.name else stem)).as_posix() + '.html'

def test_a_page_for_every_notebook(built):
    assert not [house.label(p) for p in house.notebooks() if page_of(p) not in built]

@pytest.fixture(scope='module')
def public():
    "Module -> its public names, and whether it holds each or answers it anew."
    r = house.python('''import sys, json, importlib, types
def names(module):
    m = importlib.import_module(module)
    rooms = [] if hasattr(m, '__path__') else [o for o in vars(m).values() if isinstance(o, types.ModuleType) and o.__name__.startswith('mlstack.')]
    again = {n for o in rooms for n in getattr(o, '__all__', ())}  # made public here too, and explained on the page of that room
    return {n: (getattr(m,n), n in vars(m))[1] for n in m.__all__ if n not in again}
print(json.dumps({o: names(o) for o in sys.argv[1:]}))''', *(m for p in house.notebooks() if (m := house.exports_to(p))), timeout=600)
    assert r.returncode == 0, r.stdout
    return json.loads(r.stdout.splitlines()[-1])

@pytest.mark.parametrize('path', [p for p in house.notebooks() if house.exports_to(p)], ids=house.label)
def test_api_of_every_exported_name(built, public, path):
    "A heading of its own on the room's page; on a chapter's front page a link to it, or the bare name where the chapter answers it anew each time."
    module, html = house.exports_to(path), built[page_of(path)]
    names = public[module]
    missing = [n for n, kept in names.items() if kept and not re.search(rf'<h\d>{n}<|href="[^"]*"[^>]*>(<span[^>]*>)?<code[^>]*>(<span[^>]*>)?{n}<', html)]
    missing += [n for n, kept in names.items() if not kept and not re.search(rf'<td><p><code[^>]*>(<span[^>]*>)?{n}<', html)]
    assert not missing, f'{module}: {missing} not on {page_of(path)}'

def test_nothing_from_elsewhere(built):
    remote = {(name, m[0]) for name, html in built.items() for m in re.finditer(r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]+"', html)}
    assert not remote
    styles = [p for p in site.rglob('*.css') if re.search(r'url\(["\']?(?:https?:)?//|@import', p.read_text(encoding='utf-8'))]
    assert not styles

def test_a_broken_link_fails_the_build(tmp_path):
    "Warnings are errors: a link to a notebook that is not there does not get out."
    import shutil
    for d in ('nbs', 'mlstack', 'docs'): shutil.copytree(house.root/d, tmp_path/d, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(house.root/'pyproject.toml', tmp_path)
    for p in tmp_path.joinpath('nbs').rglob('*.ipynb'):
        if p.name not in ('index.ipynb', '00_core.ipynb'): p.unlink()
    index = json.loads((tmp_path/'nbs'/'index.ipynb').read_text())
    index['cells'] = [dict(cell_type='markdown', id='a', metadata={}, source='# t\n\n> p\n\n[core](00_core.ipynb) and [nothing](99_nothing.ipynb)')]
    (tmp_path/'nbs'/'index.ipynb').write_text(json.dumps(index))
    r = house.run(sys.executable, tmp_path/'docs'/'site.py', 'build', cwd=tmp_path, env=house.environment(PYTHONPATH=tmp_path), timeout=300)
    assert r.returncode != 0 and '99_nothing' in r.stdout

def test_readme_is_the_front_page():
    r = house.run(sys.executable, docs, 'readme', '--check')
    assert r.returncode == 0, r.stdout

def test_readme_links_lead_somewhere():
    text = (house.root/'README.md').read_text(encoding='utf-8')
    wrong = [m[1] for m in re.finditer(r'\]\((?![a-z]+:|#)([^)#]+)', text) if not (house.root/m[1]).exists()]
    assert not wrong

def test_pages_in_a_browser(built, chromium):
    "On a phone no page is wider than the screen; nothing complains in the console; the sidebar leads to every chapter."
    phone = chromium(390, 844)
    for name in built:
        phone.get(f'file://{site/name}')
        width = phone.execute_script('return document.documentElement.scrollWidth')
        assert width <= 390, f'{name} is {width} pixels wide on a screen of 390'
        assert not [o for o in phone.get_log('browser') if o['level'] == 'SEVERE'], name
    wide = chromium(1300, 900)
    wide.get(f'file://{site/"index.html"}')
    links = {a.get_attribute('href').split('_site/')[-1] for a in wide.find_elements('css selector', '.sidebar-tree a') if a.get_attribute('href')}
    assert {page_of(p) for p in house.notebooks() if p.parent == house.nbs and p.stem != 'index'} <= links
