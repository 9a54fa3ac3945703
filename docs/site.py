"""The site, without Quarto: `python docs/site.py build` writes _site/, `python docs/site.py readme` writes README.md (`--check`: only compare).

A page is its notebook: prose, examples and stored outputs as they are, every exported name with its signature, its parameters' comments and
its docstring (nbdev's `show_doc`), and under it the source, folded. Nothing is executed: names are looked up in the exported package. (nbdev's own `proc_nbs` runs every cell that contains
an import, so it fails on a lesson such as core, where `import pickle` stands in an example that uses an earlier one.)
Sphinx turns the pages into html with every warning an error, so a link that leads nowhere does not get out.
"""
import argparse, ast, json, os, posixpath, re, shutil, sys, textwrap
from importlib import import_module
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path[0] = str(root)  # this file is called site.py; its folder must not stand before the standard library
nbs, out = root/'nbs', root/'_site'
work, built = root/'_proc'/'site', root/'_proc'/'built'/'html'  # myst-nb writes images beside the folder it builds into

# The sidebar: the floors of the house in the order of the lecture.
floors = {
    'Ground floor': ['core', 'workers'],
    'The stack': ['env', 'hardware', 'trainer', 'ddp', 'tracking', 'sweeps', 'resources', 'lifecycle'],
    'The main job': ['demo', 'cli'],
    'Whole jobs': ['tutorials'],
    'Measured': ['benchmarks'],
}
kept_output = ('text/html', 'image/png', 'image/svg+xml', 'image/jpeg', 'text/markdown', 'text/plain')


# Reading notebooks

def notebooks():
    return sorted(p for p in nbs.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(nbs).parts))

def split_directives(source):
    "The `#|` lines of a cell as a dict, and the rest of the cell."
    lines = source.split('\n')
    found = [re.match(r'\s*#\|\s*([\w-]+):?\s*(.*)', o) for o in lines]
    return {m[1]: m[2].strip() for m in found if m}, '\n'.join(o for o, m in zip(lines, found) if not m).strip('\n')

class Cell:
    def __init__(self, raw):
        self.kind, self.outputs = raw['cell_type'], raw.get('outputs', [])
        self.directives, self.source = split_directives(''.join(raw['source']))
    def has(self, *names): return any(o in self.directives for o in names)
    @property
    def hidden(self): return self.has('hide', 'default_exp') or self.directives.get('include') == 'false'
    @property
    def exported(self): return self.kind == 'code' and self.has('export', 'exports')

class Page:
    "A notebook, the name of its page and the module it exports."
    def __init__(self, path):
        self.path, self.cells = path, [Cell(o) for o in json.loads(path.read_text(encoding='utf-8'))['cells']]
        rel = path.relative_to(nbs)
        stem = re.sub(r'^\d+[a-z]?_', '', rel.stem)
        self.folder = '' if rel.parent == Path('.') else rel.parent.as_posix()
        self.front = bool(self.folder) and stem == rel.parent.name
        if stem == 'index' and self.folder: stem = 'the-index'  # index.html is the chapter's front page
        self.name = posixpath.join(self.folder, 'index' if self.front else stem)
        exp = next((o.directives['default_exp'] for o in self.cells if o.has('default_exp')), None)
        self.module = exp and 'mlstack.' + exp.removesuffix('.__init__')
        text = '\n'.join(o.source for o in self.cells if o.kind == 'markdown')
        self.title = (re.search(r'^# (.+)$', text, re.M) or [0, stem])[1]
        self.symbols = {}  # name -> first line of its docstring, in the order of the page


# The API

def anchor(module, name):
    "Labels ignore case, so `Context` and `context` need different ones."
    return '.'.join([module] + [o.lower() + '-class' if o != o.lower() else o for o in name.split('.')])

def documented(node, public):
    "The names an exported statement adds to the page."
    from nbdev.showdoc import showdoc_nm
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        name = showdoc_nm(node)
        for o in [name] if isinstance(name, str) else name:
            if o.split('.')[0] in public and not o.split('.')[-1].startswith('_'): yield o, node
        if isinstance(node, ast.ClassDef) and node.name in public:
            for o in node.body:
                if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef)) and o.name[0] != '_' and ast.get_docstring(o): yield f'{node.name}.{o.name}', o
    for t in getattr(node, 'targets', [getattr(node, 'target', None)]):
        for o in ast.walk(t) if t is not None else ():
            if isinstance(o, ast.Name) and o.id in public and not isinstance(node, (ast.For, ast.AugAssign)): yield o.id, node

def header(node, source):
    "The `def` as its author wrote it, with the comments on its parameters; a class shows its `__init__`."
    name = node.name
    if isinstance(node, ast.ClassDef): node = next((o for o in node.body if getattr(o, 'name', '') == '__init__'), None)
    if node is None: return None
    lines, body = source.split('\n'), node.body[0]
    first = next((o.lineno for o in node.decorator_list if re.search('property|classmethod|staticmethod|contextmanager', ast.unparse(o))), node.lineno)
    lines = lines[first-1:body.lineno] if body.lineno == node.lineno else lines[first-1:body.lineno-1]
    if body.lineno == node.lineno: lines[-1] = lines[-1].encode()[:body.col_offset].decode()  # ast counts bytes
    text = textwrap.dedent('\n'.join(lines)).rstrip()
    if name == node.name: return text.removesuffix(':')
    return re.sub(r'^def __init__\(\s*self,?[ \n]*', f'class {name}(' + ('\n    ' if '\n' in text else ''), text, flags=re.M).removesuffix(':')

def signature(obj, name, node, source):
    "What the reader types, and what it says about itself."
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        lines = ast.get_source_segment(source, node).split('\n')
        return '\n'.join(lines[:12] + ['…'] * (len(lines) > 12)), (obj.__doc__ or '') if isinstance(obj, type) else ''
    from nbdev.showdoc import show_doc
    _, sig, doc = re.split(r'^```(?:python)?(?:\n|$)', show_doc(obj, name=name)._repr_markdown_(), maxsplit=2, flags=re.M)
    sig = re.sub(r'^def ', 'class ' if isinstance(obj, type) else 'def ', sig.strip().replace(':NoneType=', '='))
    if hasattr(obj, '_field_defaults'): sig = f'class {name}({", ".join(o + (f"={obj._field_defaults[o]!r}" if o in obj._field_defaults else "") for o in obj._fields)})'
    return header(node, source) or sig, re.sub(r'^\*(.*)\*$', r'\1', doc.strip(), flags=re.S)

def entry(page, module, name, node, source, above):
    "Heading, signature and docstring of one name; `above` is the level of the heading before it."
    obj = module
    for o in name.split('.'): obj = getattr(obj, o)
    sig, doc = signature(obj, name.split('.')[-1], node, source)
    page.symbols[name] = doc.split('\n')[0]
    level = min(above + 1, 3 + name.count('.'))
    return level, '\n\n'.join([f'({anchor(page.module, name)})=\n{"#"*level} {name}', '{.signature}\n```python\n' + sig + '\n```', doc]).rstrip()


# Cells

def markdown(source): return dict(cell_type='markdown', metadata={}, source=source)

def code(cell, source, *tags):
    outputs = []
    for o in cell.outputs:
        if o['output_type'] in ('display_data', 'execute_result'):
            o = dict(output_type='display_data', metadata={}, data={k: v for k, v in o['data'].items() if k in kept_output})
        outputs.append(o)
    return dict(cell_type='code', execution_count=None, metadata=dict(tags=list(tags)), source=source, outputs=outputs)

def only_imports(source):
    return all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.parse(source).body)

def exported_cell(page, cell, module, above):
    "The documentation of what the cell defines, then its source, folded."
    if only_imports(cell.source): return []
    public = set(getattr(module, '__all__', ()))
    docs = []
    for o in ast.parse(cell.source).body:
        for name, node in documented(o, public):
            if name in page.symbols: continue
            above, text = entry(page, module, name, node, cell.source, above)
            docs.append(markdown(text))
    return docs + [code(cell, cell.source, 'hide-input')]

def last_heading(cells):
    "The level of the last heading so far."
    for c in reversed(cells):
        if c['cell_type'] == 'markdown' and (found := re.findall(r'^(#{1,6}) \S', re.sub(r'^```.*?^```', '', c['source'], flags=re.M | re.S), re.M)): return len(found[-1])
    return 1

def page_cells(page):
    module, res = import_module(page.module) if page.module else None, []
    for c in page.cells:
        if c.hidden or not c.source.strip(): continue
        try:
            if c.exported: res += exported_cell(page, c, module, last_heading(res))
            elif c.kind == 'code': res.append(code(c, c.source, *(['remove-input'] if c.directives.get('echo') == 'false' else [])))
            elif c.kind == 'markdown': res.append(markdown(c.source))
        except Exception as e: raise SystemExit(f'docs: {page.path.relative_to(root)}: {type(e).__name__}: {e}\nin the cell that begins: {c.source.splitlines()[0]}') from e
    return res


# Links

class Links:
    "Where a name in backticks, or a link to a notebook, leads."
    def __init__(self, pages):
        self.pages, self.where = {p.path: p for p in pages}, {}
        self.rooms = {(p.folder, p.title): p for p in pages if not p.front} | {('', p.title): p for p in pages if p.front}
        fronts = {p.folder: set(import_module(p.module).__all__) for p in pages if p.front and p.module}
        self.dynamic = {p.folder: dynamic_names(p) for p in pages if p.front and p.module}
        for p in pages:
            p.public = fronts.get(p.folder, set()) if p.folder else set(p.symbols)
            for s in p.symbols:
                to = anchor(p.module, s)
                for k in (s, f'{p.module}.{s}', f'{p.module.removeprefix("mlstack.")}.{s}', f'{p.folder}.{s}' if p.folder else s): self.where.setdefault(k, {})[to] = p

    def find(self, name, page):
        "The anchor of `name` as the reader of `page` would mean it: on this page, in this chapter, or the only public one there is."
        found = self.where.get(name, {})
        mine = lambda p: p.folder == page.folder
        known = lambda p: name.split('.')[0] in p.public or name.split('.')[0] in (p.folder, 'mlstack')
        elsewhere = [] if name in self.dynamic.get(page.folder, ()) else [k for k, p in found.items() if known(p)]
        for near in ([k for k, p in found.items() if p is page], [k for k, p in found.items() if mine(p)], elsewhere):
            if len(near) == 1: return near[0]

    def name(self, m, page):
        if to := self.find(m[1].removesuffix('()'), page): return f'[`{m[1]}`](#{to})'
        room = self.rooms.get((page.folder, m[1])) or self.rooms.get(('', m[1].removeprefix('mlstack.')))
        return f'[`{m[1]}`]({self.relative(room, page)})' if room and room is not page else m[0]

    def relative(self, to, page): return posixpath.relpath(to.name, posixpath.dirname(page.name) or '.') + '.ipynb'

    def notebook(self, m, page):
        p = self.pages.get((page.path.parent/m[1]).resolve())
        return f']({self.relative(p, page)}{m[2] or ""})' if p else m[0]

    def apply(self, text, page):
        res, fenced = [], False
        for line in text.split('\n'):
            if re.match(r'\s*(```|~~~)', line): fenced = not fenced
            elif not fenced and not line.startswith(('#', '    ')):
                line = re.sub(r'\]\(([^)#\s]+\.ipynb)(#[^)]*)?\)', lambda m: self.notebook(m, page), line)
                line = re.sub(r'(?<![`\[])`([A-Za-z_][\w.]*(?:\(\))?)`(?![`\]])', lambda m: self.name(m, page), line)
            res.append(line)
        return '\n'.join(res)

def dynamic_names(page):
    "Public names that the chapter's own `__getattr__` answers anew each time, such as the run that is open now."
    module, res = import_module(page.module), set()
    for name in getattr(module, '__all__', ()):
        try: getattr(module, name)
        except ImportError: continue # public_names says so
        if name not in vars(module): res.add(name)
    return res

def public_names(page, links):
    "A front page ends with what its chapter makes public, wherever it is defined."
    module, rows = import_module(page.module), []
    for name in getattr(module, '__all__', ()):
        if name in page.symbols: continue
        try: obj = getattr(module, name)
        except ImportError as e: raise SystemExit(f'docs: {page.module} makes {name!r} public, and it cannot be loaded: {e}') from e
        home = getattr(obj, '__module__', None)
        to = anchor(home, name) if home and anchor(home, name) in links.where.get(name, {}) else links.find(name, page)
        room = links.where[name][to] if to else None
        said = module.__getattr__ if name in links.dynamic[page.folder] else obj
        doc = room.symbols[name] if room else (getattr(said, '__doc__', None) or '').strip().split('\n')[0]
        rows.append(f'| {f"[`{name}`](#{to})" if to else f"`{name}`"} | {room.title if room else ""} | {doc.replace("|", chr(92) + "|")} |')
    return '## Public names\n\n| name | room | |\n|---|---|---|\n' + '\n'.join(rows) if rows else ''


# The site

def toctree(names, caption=''):
    return '```{toctree}\n:hidden:\n' + (f':caption: {caption}\n' if caption else '') + '\n'.join(['', *names]) + '\n```'

def tables_of_contents(pages):
    "Hidden toctrees: the floors on the front page, a chapter's rooms on the chapter's."
    by_folder, res, placed = {}, {}, set()
    for p in pages: by_folder.setdefault(p.folder, []).append(p)
    for folder, ps in by_folder.items():
        if any(p.front for p in ps) and len(ps) > 1: res[f'{folder}/index'] = [toctree([posixpath.basename(p.name) for p in ps if not p.front])]
    def names(chapter):
        for p in pages:
            if p.name == chapter or p.front and p.folder == chapter: yield p.name
        if chapter in by_folder and not any(p.front for p in by_folder[chapter]): yield from (p.name for p in by_folder[chapter])
    groups = {k: [n for c in v for n in names(c)] for k, v in floors.items()}
    placed = {n for v in groups.values() for n in v} | {'index'}
    groups['More'] = [p.name for p in pages if p.name not in placed and (p.front or not any(o.front for o in by_folder[p.folder]))]
    res['index'] = [toctree(v, k) for k, v in groups.items() if v]
    return res

def write_pages():
    pages = [Page(p) for p in notebooks()]
    for name in (names := [p.name for p in pages]):
        if names.count(name) > 1: raise SystemExit(f'docs: two notebooks would be the page {name!r}; rename one')
    cells = {p.name: page_cells(p) for p in pages}
    links, contents = Links(pages), tables_of_contents(pages)
    shutil.rmtree(work, ignore_errors=True)
    for p in pages:
        body = cells[p.name]
        if p.front and p.module and (names := public_names(p, links)): body = body + [markdown(names)]
        for c in body:
            if c['cell_type'] == 'markdown': c['source'] = links.apply(c['source'], p)
        body = body + [markdown(o) for o in contents.get(p.name, ())]
        meta = dict(kernelspec=dict(name='python3', display_name='python3', language='python'), language_info=dict(name='python', pygments_lexer='ipython3'))
        dst = work/f'{p.name}.ipynb'
        dst.parent.mkdir(parents=True, exist_ok=True)
        for i, c in enumerate(body): c['id'] = f'cell-{i}'
        dst.write_text(json.dumps(dict(cells=body, metadata=meta, nbformat=4, nbformat_minor=5)), encoding='utf-8')
    return pages

def copy_pictures():
    "Pictures that lessons show from files; pages keep their folders, so relative paths hold."
    for p in nbs.rglob('*'):
        if p.suffix in ('.png', '.svg', '.jpg', '.gif', '.webp') and '.ipynb_checkpoints' not in p.parts:
            dst = work/p.relative_to(nbs)
            dst.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, dst)

def build():
    "Write the pages and turn them into _site/; returns Sphinx's exit code."
    from sphinx.application import Sphinx
    from sphinx.util.console import nocolor
    from mlstack import __version__
    pages = write_pages()
    if not sys.stderr.isatty(): nocolor()
    shutil.rmtree(built.parent, ignore_errors=True)
    shutil.copytree(root/'docs'/'static', work/'_static')
    copy_pictures()
    conf = dict(project='mlstack', version=__version__, extensions=['myst_nb'], html_theme='furo', html_title='mlstack', nb_execution_mode='off', nb_render_markdown_format='myst',
        nb_code_prompt_show='Source', nb_code_prompt_hide='Source', nb_number_source_lines=False, myst_enable_extensions=['attrs_block', 'colon_fence', 'deflist'], myst_heading_anchors=3,
        suppress_warnings=['misc.highlighting_failure', 'mystnb.unknown_mime_type'], html_static_path=['_static'], html_css_files=['site.css'], html_show_sourcelink=False, html_show_sphinx=False,
        html_copy_source=False, pygments_style='friendly', exclude_patterns=['_static'], html_theme_options=dict(navigation_with_keys=True))
    app = Sphinx(str(work), None, str(built), str(work.parent/'doctrees'), 'html', confoverrides=conf, status=None, freshenv=True, warningiserror=True, exception_on_warning=False)
    app.build(force_all=True)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(built, out)
    if app.statuscode == 0: print(f'docs: {len(pages)} pages in {out.relative_to(root)}/, open {out.relative_to(root)}/index.html')
    return app.statuscode


# README

def readme_text():
    "nbs/index.ipynb as markdown: prose as it is, code and outputs fenced, links to notebooks made to work from the top folder."
    parts = []
    for c in Page(nbs/'index.ipynb').cells:
        if c.hidden or not c.source.strip(): continue
        if c.kind != 'code': parts.append(re.sub(r'\]\((?![a-z]+:|#|/)([^)]+)\)', lambda m: f']({posixpath.normpath("nbs/" + m[1])})', c.source)); continue
        if c.directives.get('echo') != 'false': parts.append(f'```python\n{c.source}\n```')
        text = ''.join(''.join(o.get('text') or o.get('data', {}).get('text/plain', '')) for o in c.outputs).strip('\n')
        if text: parts.append(f'```text\n{text}\n```')
    return '<!-- made from nbs/index.ipynb by `make export`; edit the notebook -->\n\n' + '\n\n'.join(parts) + '\n'

def readme(check=False):
    "Write README.md, or with `check` say whether it is what the notebook makes."
    path, text = root/'README.md', readme_text()
    if check:
        if path.exists() and path.read_text(encoding='utf-8') == text: return 0
        print('README.md differs from nbs/index.ipynb; run: make export', file=sys.stderr)
        return 1
    if not path.exists() or path.read_text(encoding='utf-8') != text: path.write_text(text, encoding='utf-8')
    return 0

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('command', choices=['build', 'readme'])
    p.add_argument('--check', action='store_true', help='readme: change nothing, fail when README.md is out of date')
    args = p.parse_args()
    os.chdir(root)
    sys.exit(build() if args.command == 'build' else readme(args.check))

if __name__ == '__main__': main()
