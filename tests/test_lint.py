"ruff on the notebooks, the library and the tests, with the settings of pyproject.toml."
import sys
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
