"What a run records without being asked, how it goes on, and what keeps its files: kills, forks, full disks, real commands. The lessons are in nbs/tracking."
import io, os, subprocess, sys, time
from pathlib import Path

import pytest

import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError
from mlstack.tracking import recorder, surroundings
from mlstack.tracking.query import Record
from mlstack.tracking.surroundings import read_console, read_system


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path/'runs'))
    monkeypatch.delenv('MLSTACK_SURROUNDINGS', raising=False)
    yield tmp_path/'runs'
    while recorder._current: recorder._current[-1].finish()
    core.set_process_context(None)


def python(code, *args, **kw):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def ended(p, timeout=120):
    out, err = p.communicate(timeout=timeout)
    assert p.returncode == 0, err
    return out


def lines(run): return [o[2] for o in read_console(run.path)]


# -- console -------------------------------------------------------------------------------------------------------------------

def test_every_line_is_recorded_and_still_printed(capsys):
    with track.init(project='p') as run:
        for i in range(1000): print('line', i)
        sys.stderr.write('half ')
        sys.stderr.write('a line')
    out, err = capsys.readouterr()
    assert out.split('\n')[:-1] == [f'line {i}' for i in range(1000)] and err == 'half a line'
    assert lines(run) == [f'line {i}' for i in range(1000)]+['half a line']
    print('after the run')
    assert len(lines(run)) == 1001 and 'after the run' in capsys.readouterr().out


def test_a_process_with_threads_loggers_bars_and_a_traceback():
    "Whatever writes to the two streams, also through a reference that it took before the run began."
    p = python("""
import logging, sys, threading
logging.basicConfig(format='%(message)s', level='INFO')
import mlstack.tracking as track
run = track.init(project='p')
print(run.path, flush=True)
def work(n):
    for i in range(200): print(f'thread {n} line {i}\\n', end='')
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for o in threads: o.start()
for o in threads: o.join()
for i in range(101): print(f'\\r{i:3} %', end='')
print()
logging.info('logged')
raise ValueError('the end')
""")
    out, err = p.communicate(timeout=60)
    assert p.returncode == 1 and err.endswith('ValueError: the end\n') and '  7 %' in out
    r = Record(Path(out.split('\n')[0]))
    found = r.console.split('\n')
    assert sorted(o for o in found if o.startswith('thread')) == sorted(f'thread {n} line {i}' for n in range(4) for i in range(200))
    assert [o for o in found if '%' in o] == ['100 %'] and 'logged' in found and found[-1] == 'ValueError: the end'
    assert r.state == 'failed'


def test_the_traceback_that_leaves_a_with_block_is_kept():
    with pytest.raises(ZeroDivisionError), track.init(project='p') as run: 1/0
    assert lines(run)[0].startswith('Traceback') and lines(run)[-1] == 'ZeroDivisionError: division by zero'


def test_a_kill_loses_no_line_that_was_ended():
    p = python("""
import mlstack.tracking as track
print(track.init(project='p').path, flush=True)
i = 0
while True:
    print(i, flush=True)
    i += 1
""")
    path, got = Path(p.stdout.readline().strip()), 0
    for _ in range(2000): got = int(p.stdout.readline())
    p.kill()
    got = max([got, *(int(o) for o in p.communicate()[0].split('\n')[:-1] if o)])
    found = read_console(path)
    assert [int(o[2]) for o in found[1:]] == list(range(len(found)-1)) and len(found)-1 > got - 1


def test_more_output_than_is_kept(monkeypatch):
    monkeypatch.setattr(surroundings, 'MOST_OUTPUT', 10_000)
    monkeypatch.setattr(surroundings, 'TAIL', 2000)
    with track.init(project='p') as run:
        for i in range(5000): print('line', i)
    found = lines(run)
    left_out = int(next(o for o in found if 'left out' in o).split()[1].replace(',', ''))
    assert left_out+len(found)-1 == 5000 and found[0] == 'line 0' and found[-1] == 'line 4999'
    assert sum(o.stat().st_size for o in (run.path/'console').iterdir()) < 13_000


def test_a_disk_that_is_full_does_not_stop_the_program(capsys):
    with track.init(project='p') as run:
        print('one')
        fd = run._surroundings.console.fd
        os.dup2(os.open('/dev/full', os.O_WRONLY), fd)
        print('two')
        print('three')
        run.log(loss=1.)
    assert capsys.readouterr().out == 'one\ntwo\nthree\n' and lines(run) == ['one'] and run.record().state == 'finished'


def test_odd_streams(monkeypatch):
    class Narrow:
        __slots__ = ('got',)
        def write(self, text): self.got = text
    class Odd(io.StringIO):
        def write(self, text): return super().write(str(text))
    narrow, odd = Narrow(), Odd()
    monkeypatch.setattr(sys, 'stdout', narrow)
    monkeypatch.setattr(sys, 'stderr', odd)
    with track.init(project='p') as run:
        print('x', end='')
        sys.stderr.write(7)  # no text: the program's own stream takes it
        sys.stderr.write('\ud800\n')
    assert narrow.got == '' and odd.getvalue().startswith('7')
    assert 'write' not in vars(odd) and run.record().state == 'finished'
    monkeypatch.setattr(sys, 'stdout', None)  # pythonw
    with track.init(project='p'): pass


def test_a_forked_child_writes_to_files_of_its_own():
    p = python("""
import mlstack.tracking as track, os
run = track.init(project='p')
print(run.path)
if os.fork()==0:
    print('the child before it logs')
    run.log(loss=2.)
    print('the child')
    run.finish()
    os._exit(0)
os.wait()
print('the parent')
run.finish()
""")
    path = Path(ended(p).splitlines()[0])
    files = [o.read_text() for o in sorted((path/'console').iterdir())]
    assert len(files) == 2 and sum('the parent' in o for o in files) == sum('the child\n' in o for o in files) == 1
    assert not any('the parent' in o and 'the child' in o for o in files)
    assert len(Record(path).metric('loss')[0]) == 1


@pytest.mark.parametrize('how', ['argument', 'variable'])
def test_switched_off(how, monkeypatch):
    if how == 'variable': monkeypatch.setenv('MLSTACK_SURROUNDINGS', 'off')
    with track.init(project='p', **(dict(surroundings=False) if how == 'argument' else {})) as run: print('not for the file')
    assert not (run.path/'console').exists() and run._surroundings is None
    with pytest.raises(MlstackError, match="'sytem' is no part"): track.init(project='p', surroundings=['sytem'])


# -- system --------------------------------------------------------------------------------------------------------------------

def test_system_metrics_are_curves_of_their_own(monkeypatch):
    monkeypatch.setattr(surroundings, 'FIRST', 0)
    monkeypatch.setattr(surroundings, 'EVERY', .05)
    with track.init(project='p') as run:
        while not (read_system(run.path) and read_system(run.path)[0].count() >= 5):
            run.log(loss=1.)
            time.sleep(.01)
    r = run.record()
    step, at, value = r.metric('system/process.memory')
    assert len(step) == len(r.system) >= 5 and (value > 1e6).all() and (step[1:] >= step[:-1]).all() and 0 < step[-1] < len(r.metric('loss')[0])
    assert r.metric_names == ['loss'] and list(r.summary) == ['loss'] and list(r.history()) == ['step', 'time', 'loss'] and not r.problems
    again = track.init(project='p', id=run.id, resume=True)
    assert again._step == len(r.metric('loss')[0])


def test_a_short_run_loads_nothing_for_it():
    "No psutil, no numpy, and no thread that keeps the process."
    p = python("""
import mlstack.tracking as track, sys, threading
with track.init(project='p') as run: run.log(loss=1.)
assert not {'psutil','numpy','pandas','pynvml','rich'} & set(sys.modules), set(sys.modules)
print([o.name for o in threading.enumerate() if o.name=='mlstack-system'])
""")
    assert ended(p) == '[]\n'


# -- notebook ------------------------------------------------------------------------------------------------------------------

def test_in_a_kernel(tmp_path):
    "Cells run out of order in a real kernel: what was printed is in the notebook and in the run, and the run says what ran."
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(kernel_name='python3', env=os.environ | dict(PYTHONPATH=os.getcwd()), cwd=str(tmp_path))
    printed = []
    try:
        for cell in ["import mlstack.tracking as track", "run = track.init(project='p')", "print('in a cell')\nkey = 'sk-aaaaaaaaaaaaaaaaaaaaaaaa'", "print('in a cell')", "print('in a cell')", "run.finish(); print('over')"]:
            reply = client.execute_interactive(cell, timeout=60, output_hook=lambda m: printed.append(m['content'].get('text', '')))
            assert reply['content']['status'] == 'ok', reply['content']
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    r = track.runs(project='p')[0]
    assert ''.join(printed) == 'in a cell\n'*3+'over\n' and r.console == '\n'.join(['in a cell']*3)
    assert r.notebook['cells_run'] == 5 and r.notebook['rerun'] and r.notebook['ran'][2] == '***' and r.notebook['ran'][3] == "print('in a cell')"
