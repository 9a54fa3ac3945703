"ruff on the notebooks, the library and the tests, with the settings of pyproject.toml."
import re, sys
from tests import house

def ruff(*args): return house.run(sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise', *args)

def test_ruff():
    r = ruff('nbs', 'mlstack', 'tests', 'docs')
    assert r.returncode == 0, r.stdout

def test_ruff_would_see_it(tmp_path):
    "A name used before its definition in a notebook is found: the settings are in force."
    bad = tmp_path/'bad.ipynb'
    cell = dict(cell_type='code', id='a', metadata={}, source=['undefined_name'], outputs=[], execution_count=None)
    bad.write_text(__import__('json').dumps(dict(cells=[cell], metadata=dict(language_info=dict(name='python')), nbformat=4, nbformat_minor=5)))
    r = ruff('--config', house.root/'pyproject.toml', bad)
    assert r.returncode == 1 and 'F821' in r.stdout

def test_workflows_are_pinned_and_modest():
    "Every action by full commit, with its version beside it; every workflow reads only, unless a job says what it writes."
    import yaml
    for p in (house.root/'.github'/'workflows').glob('*.yml'):
        uses = [o.strip() for o in p.read_text().splitlines() if re.match(r'\s*(- )?uses:', o)]
        assert uses and not (loose := [o for o in uses if not re.search(r'uses: [\w.-]+/[\w.-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$', o)]), loose
        flow = yaml.safe_load(p.read_text())
        assert flow['permissions'] == {'contents': 'read'} and 'concurrency' in flow
        assert all('timeout-minutes' in j for n, j in flow['jobs'].items() if n != 'deploy')

def test_ci_runs_the_readme_command():
    assert 'make test' in (house.root/'.ci'/'run').read_text() and 'make test' in (house.root/'.github'/'workflows'/'ci.yml').read_text()
