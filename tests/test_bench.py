"The harness of `make bench`: what it writes, when it writes, and that the page draws what was written."
import importlib.util, json, re
import pytest, torch
import torch.nn.functional as F
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

def test_rows_are_compared_with_their_base_in_the_same_turn():
    case = harness.Case('x', 'X', 'how', {}, {}, base=lambda label: label[0], beyond=dict(more='t'), over=dict(ratio='t'), agree=('loss', .01))
    answers = dict(a=[dict(t=2, loss=1), dict(t=4, loss=1)], ab=[dict(t=3, loss=1.001), dict(t=8, loss=1)], ac=[dict(loss=1.1), dict(loss=1)], b=[dict(t=1, loss=3)]*2)
    failed = {}
    harness.compare(case, answers, failed)
    assert [(o['more'], o['ratio']) for o in answers['ab']] == [(1, 1.5), (4, 2)] and 'more' not in answers['ac'][0]
    assert list(failed) == ['ac'] and '1.1' in failed['ac']

def test_without_a_gpu_the_table_says_so_and_an_older_one_stays(sandbox, monkeypatch):
    case, folder = sandbox
    monkeypatch.setattr(harness, 'has_gpu', lambda: False)
    case = case()
    case.gpu = True
    assert harness.run_case(case) and not (folder/'log').exists()
    path = folder/'results'/'x.json'
    res = json.loads(path.read_text())
    assert res['note'] == 'not measured: no GPU' and res['rows'].keys() == {'a', 'b'}
    path.write_text(json.dumps(dict(rows=dict(a=dict(figures=dict(n=1))))))
    before = path.read_text()
    assert harness.run_case(case) and path.read_text() == before

def script(name, *args):
    r = house.run(harness.sys.executable, harness.Path(harness.__file__).parent/'measure'/name, *args, env=house.environment(MLSTACK_PROGRESS='0'))
    assert r.returncode == 0, r.stdout
    return json.loads(r.stdout.splitlines()[-1])

@pytest.mark.parametrize('case', ['mlp', 'gpt'])
def test_the_gpu_rows_up_to_the_device_call(case):
    "Small and on the CPU: the loop by hand and ours give the same losses from the same batches."
    by_hand, ours = script('gpu.py', case, 'raw', '--tiny', '--device', 'cpu'), script('gpu.py', case, 'mlstack', '--tiny', '--device', 'cpu')
    assert by_hand['loss'] == pytest.approx(ours['loss'], rel=1e-3) and {'speed', 'ms'} <= ours.keys()  # by hand in bf16

def test_the_gpu_rows_with_pictures():
    "Each row crops and mirrors in its own way, so their losses are near but not equal."
    by_hand, ours = (script('gpu.py', 'resnet', who, '--tiny', '--device', 'cpu')['loss'] for who in ('raw', 'mlstack'))
    assert by_hand == pytest.approx(ours, rel=.1)

def test_a_batch_is_cropped_and_mirrored_as_its_items_are():
    "The one gather on the device gives, of each picture, one of the 162 that cropping and mirroring by hand can give."
    spec = importlib.util.spec_from_file_location('pictures', harness.Path(harness.__file__).parent/'measure'/'pictures.py')
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    torch.manual_seed(0)
    x, y = torch.randint(0, 255, (6, 32, 32, 3)).to(torch.uint8), torch.arange(6)
    by_hand = [{pictures.normalised((turned[None], y))[0].contiguous().numpy().tobytes() for a in range(9) for b in range(9) for turned in (p[a:a+32, b:b+32], p[a:a+32, b:b+32].flip(1))} for p in F.pad(x, (0, 0, 4, 4, 4, 4))]
    items = pictures.Pictures(x, y)
    for _ in range(3):
        out, _ = pictures.normalised(pictures.crop_and_mirror((x, y)))
        for i in range(6): assert out[i].contiguous().numpy().tobytes() in by_hand[i] and items[i][0].contiguous().numpy().tobytes() in by_hand[i]

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
