"The harness of `make bench`: what it writes, when it writes, and that the page draws what was written."
import json, re
import pytest
from tests import house
from tests.bench import cases, harness

case_names = list(cases.cases)

@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    "A case of two rows in a folder of its own: one that works and one that can be broken."
    for sub in ('measure', 'results'): (tmp_path/sub).mkdir()
    monkeypatch.setattr(harness, 'here', tmp_path)
    monkeypatch.setattr(harness, 'results', tmp_path/'results')
    (tmp_path/'measure'/'ok.py').write_text('import json, os, sys\nopen(sys.argv[1], "a").write(sys.argv[2])\nprint("noise")\nprint(json.dumps(dict(n=7, pid=os.getpid())))')
    (tmp_path/'measure'/'bad.py').write_text('raise SystemExit("out of order")')
    def case(second='ok.py'):
        log = str(tmp_path/'log')
        return harness.Case('x', 'X', 'how', dict(a=harness.Row('project', 'ok.py', [log, 'A'], ['mlstack']), b=harness.Row('project', second, [log, 'B'])), dict(n=('n', ''), pid=('pid', '')), repeats=3)
    return case, tmp_path

def test_rows_take_turns_each_in_its_own_process(sandbox):
    case, folder = sandbox
    assert harness.run_case(case())
    assert (folder/'log').read_text() == 'ABABABAB'  # one turn to warm up, three that count
    res = json.loads((folder/'results'/'x.json').read_text())
    assert res['rows']['a']['figures']['n'] == dict(median=7, low=7, high=7, n=3, values=[7, 7, 7])
    pids = res['rows']['a']['figures']['pid']['values'] + res['rows']['b']['figures']['pid']['values']
    assert len(set(pids)) == 6
    assert res['rows']['a']['versions'].keys() == {'mlstack'} and {'cpu', 'cores', 'python'} <= res['machine'].keys() and re.fullmatch(r'\d{4}-\d\d-\d\d', res['date']) and res['commit']

def test_a_row_that_fails_leaves_the_old_result(sandbox, capsys):
    case, folder = sandbox
    (folder/'results'/'x.json').write_text('old')
    assert not harness.run_case(case('bad.py'))
    assert (folder/'results'/'x.json').read_text() == 'old' and 'out of order' in capsys.readouterr().out

@pytest.mark.parametrize('xs, q, want', [([3, 1, 2], .5, 2), ([1, 2, 3, 4], .5, 2.5), ([1, 2, 3, 4, 5], .25, 2), ([5], .75, 5)])
def test_quantile(xs, q, want): assert harness.quantile(xs, q) == want

def test_an_unknown_case_names_the_known():
    r = house.run(harness.sys.executable, '-m', 'tests.bench', 'speed')
    assert r.returncode == 2 and all(o in r.stdout for o in case_names)

@pytest.mark.parametrize('name', case_names)
def test_every_script_and_figure_of_a_case_is_there(name):
    case = cases.cases[name]()
    assert case.name == name
    for row in case.rows.values(): assert (harness.Path(harness.__file__).parent/'measure'/row.script).exists()

def test_the_page_draws_what_was_written():
    "The stored tables of nbs/benchmarks.ipynb hold the medians and the date of every result."
    page = '\n'.join(''.join(v) for c in house.cells(house.nbs/'benchmarks.ipynb') for o in c.get('outputs', []) for k, v in o.get('data', {}).items() if k == 'text/markdown')
    for p in harness.results.glob('*.json'):
        res = json.loads(p.read_text())
        assert res['command'] in page, f'{p.name} is newer than the page: python -m tests.bench {res["case"]}'
        for label, row in res['rows'].items():
            for s in row['figures'].values(): assert harness.number(s['median']) in page, f'{p.name}, {label}: the page shows another figure'
