"The suite says what it could not run, and with CI=true only what may be missing is forgiven."
import json, shutil, sys
import pytest
from tests import house

sample = '''
import pytest
@pytest.mark.server("no-such-program")
def test_server(): assert False, "must not run"
@pytest.mark.probe("never")
def test_probe(): assert False, "must not run"
@pytest.mark.probe(lambda: None)
def test_probe_that_finds_it(): pass
@pytest.mark.cloud("NO_SUCH_KEY")
def test_cloud(): assert False, "must not run"
@pytest.mark.multi_gpu
def test_multi_gpu(): pytest.skip("one is not enough")
def test_skips_itself(): pytest.skip("for no good reason")
@pytest.mark.xfail(strict=True)
def test_known_bug(): assert False
@pytest.mark.parametrize("x", [])
def test_no_cases_yet(x): pass
'''

@pytest.fixture(scope='module')
def report(tmp_path_factory):
    "The sample in a suite of its own, run as on a laptop and as in CI."
    top = tmp_path_factory.mktemp('suite')
    (top/'tests').mkdir()
    for f in ('conftest.py', 'house.py', 'slurm.py', 'images.py', '__init__.py'): shutil.copy(house.root/'tests'/f, top/'tests')
    shutil.copy(house.root/'pyproject.toml', top)
    with open(top/'tests'/'house.py', 'a') as f: f.write("\nprobes['never'] = lambda: 'not on this machine'\n")
    (top/'tests'/'test_sample.py').write_text(sample)
    return {ci: house.run(sys.executable, '-m', 'pytest', cwd=top, env=house.environment(PYTHONPATH=top, CI='true' if ci else ''), timeout=300) for ci in (False, True)}

def test_on_a_laptop_nothing_fails_and_all_is_listed(report):
    r = report[False]
    assert r.returncode == 0, r.stdout
    listed = r.stdout[r.stdout.index('not run here'):]
    for name in ('test_server', 'test_probe ', 'test_cloud', 'test_multi_gpu', 'test_skips_itself'): assert f'::{name}' in listed, name
    assert house.apt_line in listed and 'not on this machine' in listed and 'NO_SUCH_KEY' in listed and 'no-such-program' in listed

def test_in_ci_what_did_not_run_failed(report):
    r = report[True]
    assert r.returncode == 1, r.stdout
    failed = {o.split('::')[1].split(' ')[0] for o in r.stdout.splitlines() if o.startswith(('FAILED', 'ERROR')) and '::' in o}
    assert failed == {'test_server', 'test_skips_itself'}, r.stdout
    assert house.apt_line in r.stdout

def test_all_the_markers_are_declared(report): assert 'PytestUnknownMarkWarning' not in report[False].stdout

def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path):
    "Also a child that left the process group."
    pids = tmp_path/'pids'
    code = f'import os, subprocess, time\np = subprocess.Popen(["setsid", "sleep", "300"])\nopen({str(pids)!r}, "w").write(f"{{os.getpid()}} {{p.pid}}")\nprint("so far", flush=True)\ntime.sleep(300)'
    with pytest.raises(AssertionError, match='did not end in 3 s') as e: house.python(code, timeout=3)
    assert 'so far' in str(e.value)
    assert not [p for p in pids.read_text().split() if alive(int(p))]

def test_a_process_left_behind_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(house, 'patience', 1)
    pids = tmp_path/'pids'
    code = f'import subprocess\np = subprocess.Popen(["setsid", "sleep", "300"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\nopen({str(pids)!r}, "w").write(str(p.pid))'
    with pytest.raises(AssertionError, match='left processes behind.*sleep'): house.python(code, leave_nothing=True)
    assert not alive(int(pids.read_text()))
    monkeypatch.undo()
    assert house.python('print(1)', leave_nothing=True).returncode == 0

def alive(pid):
    import psutil
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False

def a_lesson(tmp_path, source):
    cell = dict(cell_type='code', metadata={}, execution_count=None, outputs=[], source=source, id='a')
    (tmp_path/'lesson.ipynb').write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    return tmp_path/'lesson.ipynb'

def test_a_lesson_that_fails(tmp_path):
    r = house.lesson('notebook', a_lesson(tmp_path, 'assert 1 == 2, "no"'))
    assert r.returncode == 1 and 'AssertionError' in r.stdout

@pytest.mark.parametrize('left', ["import subprocess; subprocess.Popen(['sleep', '60'])", 'import os, time\nif os.fork() == 0: time.sleep(60)'])
def test_what_a_lesson_leaves_behind(tmp_path, left, monkeypatch):
    monkeypatch.setattr(house, 'patience', 1)
    with pytest.raises(AssertionError, match='left processes behind'): house.lesson('notebook', a_lesson(tmp_path, left))

def test_a_lesson_that_does_not_end(tmp_path):
    with pytest.raises(AssertionError, match='did not end in 5 s'): house.lesson('notebook', a_lesson(tmp_path, 'import time; time.sleep(100)'), timeout=5)
    assert house.lesson('notebook', a_lesson(tmp_path, '1 + 1')).returncode == 0
