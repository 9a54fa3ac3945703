"Notebooks as jobs: what is kept when they fail, are stopped, interrupted or killed, and that nothing of a parameter or an output is ever run."
import json, os, signal, subprocess, sys, threading, time
import psutil
import pytest
import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError, Stop, StopTraining
from mlstack.resources.notebook_jobs import NotebookError, check_notebook, notebook_error, notebook_job, read_notebook, run_notebook
from mlstack.resources.notebook_pages import notebook_html
from mlstack.resources.records import new_record


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch): monkeypatch.setenv('MLSTACK_STATE', str(tmp_path/'state'))


def write(path, *cells, minor=5):
    cells = [(o,) if isinstance(o, str) else o for o in cells]
    made = [dict(cell_type='code', metadata=dict(tags=list(tags)), source=code, execution_count=None, outputs=[]) for code, *tags in cells]
    path.write_text(json.dumps(dict(cells=made, metadata={}, nbformat=4, nbformat_minor=minor)))
    return path


def texts(path): return [''.join(p.get('text', '') for p in o.get('outputs', ())) for o in read_notebook(path)['cells'] if o['cell_type'] == 'code']
def quiet(text): pass


def until(fn, seconds=300):
    end = time.monotonic()+seconds
    while not (got := fn()):
        assert time.monotonic() < end, 'never came true'
        time.sleep(.05)
    return got


def test_outputs_are_what_jupyter_would_keep(tmp_path):
    path = write(tmp_path/'a.ipynb', 'from IPython.display import display, clear_output, HTML\nfor i in range(3): clear_output(wait=True); print(i)',
        'h = display("first", display_id=True)', 'h.update("second")', 'import sys; print("a", end=""); print("b"); print("err", file=sys.stderr)', 'HTML("<b>x</b>")',
        ('1/0', 'raises-exception'), ('raise SystemExit', 'skip-execution'), '%who_ls\n!echo from the shell', 'None')
    said = []
    assert run_notebook(path, tell=said.append) is None
    cells = read_notebook(tmp_path/'a.out.ipynb')['cells']
    assert [o['text'] for o in cells[0]['outputs']] == ['2\n']
    assert cells[1]['outputs'][0]['data']['text/plain'] == "'second'"
    assert [(o['name'], o['text']) for o in cells[3]['outputs']] == [('stdout', 'ab\n'), ('stderr', 'err\n')]
    assert cells[4]['outputs'][0]['data']['text/html'] == '<b>x</b>'
    assert cells[5]['outputs'][0]['ename'] == 'ZeroDivisionError' and not cells[6]['outputs']
    assert 'from the shell' in ''.join(said)
    assert read_notebook(tmp_path/'a.out.ipynb')['metadata']['mlstack']['state'] == 'finished'


@pytest.mark.parametrize('value', ['"; rm -rf ~; "', "'''\n\"\"\"", '$(reboot)', '\\', '\u2028\n\r\0x', '{x}', '%cd /', '!ls', 1e-7, float('inf'), True, None, [1, {'a': 'b'}]])
def test_a_parameter_is_data(tmp_path, value):
    "Each comes out as it went in: it is a literal, whatever it holds."
    path = write(tmp_path/'a.ipynb', ('x = 0', 'parameters'), 'x')
    from mlstack.resources.notebook_jobs import parameters_cell
    scope = {}
    exec(compile(parameters_cell(dict(x=value)), 'cell', 'exec'), scope)
    assert scope['x'] == value and type(scope['x']) is type(value)
    check_notebook(path, dict(x=value))


def test_nasty_parameters_through_a_kernel(tmp_path):
    values = dict(a='%cd /\n!touch hit\n?', b='"; import os; os.system("touch hit")', c="'''", d='\u2028', e=float('-inf'))
    path = write(tmp_path/'a.ipynb', 'dict(a=a, b=b, c=c, d=d, e=e)')
    assert run_notebook(path, values, tell=quiet) == values
    assert not (tmp_path/'hit').exists()


def test_the_folder_the_environment_and_the_value(tmp_path):
    path = write(tmp_path/'a.ipynb', 'import os, sys, math', 'class Scalar:\n    def item(self): return 7', 'dict(cwd=os.getcwd(), seen=os.environ["SEEN"], python=sys.executable, n=Scalar())', minor=4)
    got = run_notebook(path, env=dict(SEEN='yes'), tell=quiet)
    assert got == dict(cwd=str(tmp_path), seen='yes', python=sys.executable, n=7)
    assert run_notebook(write(tmp_path/'b.ipynb', '1', 'object()'), tell=quiet) is None  # JSON cannot hold it
    assert run_notebook(write(tmp_path/'c.ipynb', '1', 'x = 2'), tell=quiet) is None  # no expression
    nb = read_notebook(tmp_path/'a.out.ipynb')
    assert nb['nbformat_minor'] == 4 and not any('id' in o for o in nb['cells'])


def test_asked_to_stop_the_flag_comes_first(tmp_path):
    "The kernel hears it as a stop flag, as a Trainer would; what ran is kept, what comes after does not run."
    path = write(tmp_path/'a.ipynb', 'print("ran")', f'from mlstack.core import context\nimport time, pathlib\nflag = context().stop\npathlib.Path("{tmp_path}/on").touch()\nwhile not flag.reason: time.sleep(.01)\nprint("heard", flag.reason)', 'print("never")')
    stop = Stop()
    threading.Thread(target=lambda: (until((tmp_path/'on').exists), stop.set('make room')), daemon=True).start()
    with pytest.raises(StopTraining, match='make room'): run_notebook(path, stop=stop, grace=50, tell=quiet)
    assert texts(tmp_path/'a.out.ipynb') == ['ran\n', 'heard make room\n', '']
    assert read_notebook(tmp_path/'a.out.ipynb')['metadata']['mlstack']['state'] == 'stopped'


def test_who_does_not_listen_is_interrupted(tmp_path):
    path = write(tmp_path/'a.ipynb', f'import time, pathlib\nprint("on", flush=True)\npathlib.Path("{tmp_path}/on").touch()\nwhile True: time.sleep(.01)', 'print("never")')
    stop = Stop()
    threading.Thread(target=lambda: (until((tmp_path/'on').exists), stop.set('make room')), daemon=True).start()
    with pytest.raises(StopTraining, match='make room'): run_notebook(path, stop=stop, grace=.1, tell=quiet)
    cells = read_notebook(tmp_path/'a.out.ipynb')['cells']
    assert cells[1]['outputs'][-1]['ename'] == 'KeyboardInterrupt' and cells[1]['metadata']['tags'] == ['failed'] and not cells[2]['outputs']


def child(tmp_path, path):
    code = 'import sys\nfrom mlstack.resources.notebook_jobs import run_notebook\nrun_notebook(sys.argv[1], grace=1000)'
    return subprocess.Popen([sys.executable, '-c', code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_signal_ends_it_with_the_notebook_written(tmp_path):
    path = write(tmp_path/'a.ipynb', f'import time, os, pathlib\npathlib.Path("{tmp_path}/on").write_text(str(os.getpid()))\nwhile True: time.sleep(.01)')
    process = child(tmp_path, path)
    try:
        until(lambda: (tmp_path/'on').exists() and (tmp_path/'on').read_text())
        process.send_signal(signal.SIGUSR1)  # asks
        time.sleep(1.5)
        assert process.poll() is None
        process.terminate()  # does not ask again
        assert 'StopTraining: SIGUSR1' in process.communicate(timeout=300)[0]
    finally: process.kill()
    assert read_notebook(tmp_path/'a.out.ipynb')['metadata']['mlstack']['state'] == 'stopped'
    until(lambda: not psutil.pid_exists(int((tmp_path/'on').read_text())))


def test_kill_minus_nine_keeps_what_ran_and_leaves_no_kernel(tmp_path):
    "Also of the cell in which it died: it had been written within the cell."
    path = write(tmp_path/'a.ipynb', 'print("first")', f'import time, os, pathlib\nprint("within", flush=True)\npathlib.Path("{tmp_path}/on").write_text(str(os.getpid()))\nwhile True: time.sleep(.01)')
    process = child(tmp_path, path)
    try:
        kernel = int(until(lambda: (tmp_path/'on').exists() and (tmp_path/'on').read_text()))
        until(lambda: texts(tmp_path/'a.out.ipynb') == ['first\n', 'within\n'])
        process.send_signal(signal.SIGKILL)
        process.wait(300)
    finally: process.kill()
    until(lambda: not psutil.pid_exists(kernel))
    assert texts(tmp_path/'a.out.ipynb') == ['first\n', 'within\n']
    assert read_notebook(tmp_path/'a.out.ipynb')['metadata']['mlstack']['state'] == 'running'


def job(tmp_path, path, params, **spec):
    runs = tmp_path/'runs'
    record = new_record(dict(kind='notebook', notebook=str(path), params=params, run=core.new_id(), runs=str(runs), project='p') | spec, notebook_ipynb=check_notebook(path, params))
    with core.use(run=record.spec['run'], runs=str(runs), project='p', job=record.id, attempt=1):
        try: return record, notebook_job(record), None
        except MlstackError as e: return record, None, e


def test_a_job_joins_its_run_and_keeps_its_notebook(tmp_path):
    path = write(tmp_path/'train.ipynb', ('lr = .1', 'parameters'), 'import mlstack.tracking as track\nrun = track.init(config=dict(depth=3))\nfor i in range(5): run.log(loss=lr*i)')
    record, value, error = job(tmp_path, path, dict(lr=.5))
    assert error is None and value['loss'] == 2.
    path.unlink()  # what was submitted travels
    [run] = track.runs(project='p', dir=tmp_path/'runs')
    assert (run.id, run.state, run.config['lr'], run.config['depth']) == (record.spec['run'], 'finished', .5, 3)
    assert [(o['name'], o['type']) for o in run.artifacts] == [('train', 'notebook')]
    assert read_notebook(record/'output.ipynb')['cells'][1]['metadata']['tags'] == ['injected-parameters']


def test_a_failed_one_is_kept_with_its_run(tmp_path):
    path = write(tmp_path/'train.ipynb', 'import mlstack.tracking as track\ntrack.init(); track.log(loss=1.)', '{}["missing"]')
    record, _, error = job(tmp_path, path, {})
    assert isinstance(error, NotebookError) and "KeyError: 'missing'" in error.what and '{}["missing"]' in error.remote
    [run] = track.runs(project='p', dir=tmp_path/'runs')
    assert [o['name'] for o in run.artifacts] == ['train'] and run.summary['loss'] == 1.
    assert notebook_error(record) == "KeyError: 'missing' (cell 2 of 2)"
    assert 'failed' in read_notebook(record/'output.ipynb')['cells'][2]['metadata']['tags']
    assert 'KeyError' in notebook_html(record/'output.ipynb')


def program(tmp_path, record, **env):
    "As the keeper starts it."
    stop = tmp_path/'asked'
    return subprocess.Popen([sys.executable, '-m', 'mlstack.resources.notebook_jobs', str(record.path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=dict(os.environ, MLSTACK_STOP=str(stop), MLSTACK_JOB=record.id, MLSTACK_RUN=record.spec['run'], MLSTACK_RUNS=str(tmp_path/'runs'), MLSTACK_PROJECT='p', MLSTACK_KEPT='1', **env))


def submitted(path, **params): return new_record(dict(kind='notebook', grace=600, notebook=str(path), params=params, run=core.new_id()), notebook_ipynb=check_notebook(path, params))


def test_the_child_of_a_keeper(tmp_path):
    import pickle
    good, bad = submitted(write(tmp_path/'good.ipynb', 'dict(loss=.5)')), submitted(write(tmp_path/'bad.ipynb', '[][0]'))
    out = program(tmp_path, good).communicate(timeout=300)[0]
    kind, value = pickle.loads((good/'result.pkl').read_bytes())
    assert (kind, pickle.loads(value)) == ('done', dict(loss=.5)) and 'cell 1 of 1' in out and "{'loss': 0.5}" in out
    process = program(tmp_path, bad)
    out = process.communicate(timeout=300)[0]
    kind, said = pickle.loads((bad/'result.pkl').read_bytes())
    assert process.returncode == 1 and kind == 'failed' and '[][0]' in said['text'] and isinstance(pickle.loads(said['exc']), NotebookError) and 'IndexError' in out.splitlines()[-1]


def test_a_preempted_one_has_time_to_save(tmp_path):
    "The keeper writes why, and tells every process of the job with TERM; a kernel that would die of it could write no checkpoint."
    code = f"""import os, pathlib, time
from mlstack.core import context
flag = context().stop
pathlib.Path("{tmp_path}/on").write_text(str(os.getpid()))
while not flag.reason: time.sleep(.01)
pathlib.Path("{tmp_path}/checkpoint").write_text(flag.reason)
flag.check()"""
    record = submitted(write(tmp_path/'a.ipynb', code, 'print("never")'))
    process = program(tmp_path, record)
    try:
        kernel = int(until(lambda: (tmp_path/'on').exists() and (tmp_path/'on').read_text()))
        (tmp_path/'asked').write_text('preempted: for job x')
        for pid in (kernel, process.pid): os.kill(pid, signal.SIGTERM)
        assert 'stopped: preempted: for job x' in process.communicate(timeout=300)[0] and process.returncode == 1
    finally: process.kill()
    assert (tmp_path/'checkpoint').read_text() == 'preempted: for job x'
    assert read_notebook(record/'output.ipynb')['metadata']['mlstack']['state'] == 'stopped'
    [run] = track.runs(project='p', dir=tmp_path/'runs')
    assert run.state == 'preempted' and [o['name'] for o in run.artifacts] == ['a']


def test_asked_before_it_began(tmp_path):
    record = submitted(write(tmp_path/'a.ipynb', f'open("{tmp_path}/ran", "w")'))
    (tmp_path/'asked').write_text('cancelled: enough')
    process = program(tmp_path, record)
    assert 'stopped: cancelled: enough' in process.communicate(timeout=300)[0] and process.returncode == 1 and not (tmp_path/'ran').exists()
    assert read_notebook(record/'output.ipynb')['metadata']['mlstack']['state'] == 'stopped'


def test_the_folder_is_gone(tmp_path):
    (tmp_path/'there').mkdir()
    path = write(tmp_path/'there/a.ipynb', '1')
    record = new_record(dict(kind='notebook', notebook=str(path), params={}), notebook_ipynb=check_notebook(path))
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(MlstackError, match='folder of the notebook is not here'): notebook_job(record)


def test_a_progress_bar_does_not_grow(tmp_path):
    path = write(tmp_path/'a.ipynb', 'for i in range(2000): print("\\r", i, "x"*40, end="")\nprint()\nprint("after")')
    run_notebook(path, tell=quiet)
    text = texts(tmp_path/'a.out.ipynb')[0]
    assert text.splitlines()[-1] == 'after' and '1999' in text and len(text) < 500


def test_a_long_page_ends(tmp_path):
    path = write(tmp_path/'a.ipynb', '1')
    nb = json.loads(path.read_text())
    nb['cells'][0]['outputs'] = [dict(output_type='stream', name='stdout', text='y'*1000)]*100
    path.write_text(json.dumps(nb))
    assert len(notebook_html(path, most=20_000)) < 25_000 and 'more than can be shown' in notebook_html(path, most=20_000)
