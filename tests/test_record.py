"What a run records without being asked, how it goes on, and what keeps its files: kills, forks, full disks, real commands. The lessons are in nbs/tracking."
import io, os, subprocess, sys, time
from pathlib import Path

import pytest

import mlstack.tracking as track
from mlstack import core, workers
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


def ended(p, timeout=300):
    out, err = p.communicate(timeout=timeout)
    assert p.returncode == 0, err
    return out


def lines(run): return [o[2] for o in read_console(run.path)]


# -- how a call on a worker ends -----------------------------------------------------------------------------------------------

def one_call(name, loud):
    track.init(project='calls', name=name)
    if name == 'fails': raise ValueError('no')
    workers.send('ready')
    while name != 'whole' and core.context().stop.reason is None: time.sleep(.01)
    if loud: track.log(loss=1.)


@pytest.mark.parametrize('name,loud,asked,state', [('whole',True,None,'finished'), ('fails',False,None,'failed'), ('enough',True,'the sweep has seen enough','finished'), ('logs',True,'SIGTERM','preempted'), ('returns',False,'SIGTERM','preempted')])
def test_a_call_that_a_signal_has_stopped_is_preempted_and_not_finished(folder, name, loud, asked, state):
    with workers.Pool(1) as pool:
        task = pool.submit(one_call, name, loud)
        for e in pool.events():
            if e.kind == 'message' and asked: task.stop(asked)
    assert [(r.name, r.state) for r in track.runs(dir=folder)] == [(name, state)]


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
    p.stdout.reconfigure(errors='replace')  # Python 3.11's own stdout can spill bytes where threads print at once (cpython 119506); the record may not
    out, err = p.communicate(timeout=300)
    assert p.returncode == 1 and err.endswith('ValueError: the end\n') and '  7 %' in out
    r = Record(Path(out.split('\n')[0]))
    found = r.console.split('\n')
    assert sorted(o for o in found if o.startswith('thread')) == sorted(f'thread {n} line {i}' for n in range(4) for i in range(200))
    assert [o for o in found if '%' in o] == ['100 %'] and 'logged' in found and found[-1] == 'ValueError: the end'
    assert r.state == 'failed'


def test_the_traceback_that_leaves_a_with_block_is_kept():
    with pytest.raises(ZeroDivisionError), track.init(project='p') as run: print(1/0)
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
            reply = client.execute_interactive(cell, timeout=300, output_hook=lambda m: printed.append(m['content'].get('text', '')))
            assert reply['content']['status'] == 'ok', reply['content']
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    r = track.runs(project='p')[0]
    assert ''.join(printed) == 'in a cell\n'*3+'over\n' and r.console == '\n'.join(['in a cell']*3)
    assert r.notebook['cells_run'] == 5 and r.notebook['rerun'] and r.notebook['ran'][2] == '***' and r.notebook['ran'][3] == "print('in a cell')"


# -- fork, rewind --------------------------------------------------------------------------------------------------------------

def parent(n=100):
    "A run with lanes, lines, a NaN, a rank of its own, steps out of order, and facts of two moments."
    with track.init(project='p', config=dict(lr=.1, net=dict(width=8)), tags=['x']) as run:
        for i in range(n):
            run.log({'loss': float('nan') if i == 7 else i*1., 'seen': i})
            if i % 10 == 0: run.log({'text': f'at {i}'}, step=i)
            if i == 20: run.summary['note'] = 'early'
            if i == 80: run.summary['late'] = 1
        run.log({'loss': -1., 'seen': 5}, step=5)
    return run


def test_a_fork_has_the_parents_history_and_is_a_run_of_its_own():
    a = parent()
    with track.init(project='p', fork_from=f'{a.id}?_step=49', config=dict(lr=.2), name='child') as b:
        assert b.id != a.id and b.config == dict(lr=.2, net=dict(width=8))
        b.log(loss=.5)
    r, before = b.record(), a.record()
    step, at, value = r.metric('loss')
    s0, t0, v0 = before.metric('loss')
    assert step.tolist() == [*s0[s0 <= 49].tolist(), 50] and value[:-1].tobytes() == v0[s0 <= 49].tobytes() and at[:-1].tobytes() == t0[s0 <= 49].tobytes()
    assert r.metric('text')[2].tolist() == [f'at {i}' for i in range(0, 50, 10)]
    assert r.summary['note'] == 'early' and 'late' not in r.summary and r.summary['loss'] == .5 and r.summary['text'] == 'at 40'
    assert r.forked == dict(project='p', run=a.id, step=49) and r.name == 'child' and r.state == 'finished' and not r.problems
    assert len(before.metric('loss')[0]) == 101 and before.summary['late'] == 1 and not before.problems and before.config == dict(lr=.1, net=dict(width=8))
    assert len(r.history()) == len({*range(51)})+1 and len(track.runs(project='p').df) == 2
    # a fork of the fork, and one of a parent that was killed
    with track.init(project='other', fork_from=f'{b.id}?_step=10') as c: pass
    assert c.record().metric('loss')[0].tolist() == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10] and c.record().config.lr == .2


def test_a_rewind_hides_what_came_after_and_keeps_it():
    a = parent()
    for step, then in ((60, 'second'), (30, 'third')):
        with track.init(project='p', resume_from=f'{a.id}?_step={step}') as b:
            assert b.id == a.id and b._step == step+1
            b.log(loss=1000., which=then)
        r = Record(a.path)
        assert r.metric('loss')[0].tolist()[-1] == step+1 and r.metric('loss')[2][-1] == 1000. and len(r.metric('loss')[0]) == step+3
        assert r.summary['which'] == then and r.summary['note'] == 'early' and 'late' not in r.summary and r.metric('which')[2].tolist() == [then]
        assert r.state == 'finished' and r.tags == ('x',) and not r.problems and r.config == dict(lr=.1, net=dict(width=8))
    kept = sorted((o for o in (a.path/'rewound').iterdir() if o.is_dir()), key=lambda o: o.stat().st_mtime)
    assert sorted(len(Record(o).metric('loss')[0]) for o in kept) == [63, 101]
    assert [o.id for o in track.runs(project='p')] == [a.id] and not list(a.path.parent.glob('.*'))


def test_wrong_forks_are_sentences():
    a = parent()
    for kw, what in ((dict(fork_from=a.id), 'does not say a run and a step'), (dict(fork_from='nobody?_step=3'), "no run 'nobody'"), (dict(resume_from=f'{a.id}?_epoch=3'), 'does not say'),
            (dict(fork_from=f'{a.id}?_step=3', resume=True), 'a fork is a new run'), (dict(fork_from=f'{a.id}?_step=3', id=a.id), 'there is a run with this id'), (dict(resume_from=f'{a.id}?_step=3', id='x'), 'which run')):
        with pytest.raises(MlstackError, match=what): track.init(project='p', **kw)
    assert len(Record(a.path).metric('loss')[0]) == 101 and not list(a.path.parent.glob('.*'))
    p = python("import mlstack.tracking as track, sys\ntrack.init(project='p', id='alive').log(loss=1.)\nprint(1, flush=True)\nsys.stdin.read()", stdin=subprocess.PIPE)
    p.stdout.readline()
    with pytest.raises(MlstackError, match='is running and cannot go back'): track.init(project='p', resume_from='alive?_step=0')
    p.communicate('')


@pytest.mark.parametrize('kind', ['fork_from', 'resume_from'])
def test_sigkill_while_forking(kind, folder):
    "Killed at any moment: the parent has all or, rewound, exactly what it should; a fork is whole or not there."
    a = parent(300)
    code = """
import mlstack.tracking as track, sys
from mlstack.tracking import forking, query
import numpy, pandas
print('on', flush=True)
kind, id = sys.argv[1:]
for step in range(250, 0, -1):
    with track.init(project='p', surroundings=False, **{kind: f'{id}?_step={step}'}) as run: pass
    print(step, flush=True)
"""
    for i in range(5):
        p = python(code, kind, a.id)
        for _ in range(2+i): p.stdout.readline()
        time.sleep(.004*i)
        p.kill()
        p.communicate()
        found = list(track.runs(project='p'))
        for r in found:
            steps = r.metric('loss')[0].tolist()
            assert not r.problems and steps == sorted([*range(steps[-1]+1), 5]) and r.config.lr == .1
            assert steps[-1] == r.forked['step'] if r.forked else r.id == a.id
        if kind == 'fork_from': assert len(a.record().metric('loss')[0]) == 301 and len(found) > i
        else:
            assert len(found) == 1
            whole = [o for o in [*(a.path/'rewound').glob('*/'), *a.path.parent.glob('.rewind-*')] if (o/'meta.json').exists() and len(Record(o).metric('loss')[0]) == 301]
            assert len(whole) == 1  # what there was at first


# -- artifacts -----------------------------------------------------------------------------------------------------------------

def test_lineage_is_read_from_both_sides(tmp_path):
    (tmp_path/'m.bin').write_bytes(b'1')
    with track.init(project='p') as a: made = a.log_artifact(tmp_path/'m.bin', 'model', type='model', aliases=['best'])
    with track.init(project='p') as b:
        used = track.use_artifact('model:best')
        assert used.path.read_bytes() == b'1' and used.run == a.id and used.version == made.version == 'v0'
        with pytest.raises(MlstackError, match='is a model, not a dataset'): b.use_artifact('model', type='dataset')
    with track.init(project='q') as c: assert c.use_artifact('p/model').run == a.id
    assert [o['name'] for o in a.record().artifacts] == ['model'] and a.record().used == []
    assert [(o['project'], o['name'], o['version'], o['run']) for o in b.record().used] == [('p', 'model', 'v0', a.id)]
    assert used.used_by == [b.id, c.id] and used.aliases == ['best', 'latest']
    blob = next((a.path.parent/'.artifacts'/'blobs').glob('*/*'))
    blob.write_bytes(b'2')
    assert used.path.read_bytes() == b'1'  # the copy that was checked is still right
    import shutil
    shutil.rmtree(a.path.parent/'.artifacts'/'.checkouts')
    with pytest.raises(MlstackError, match='damaged'), track.init(project='p') as d: d.use_artifact('model')
    assert d.record().used == []


def test_collection_beside_writers_loses_nothing(tmp_path, folder):
    "Artifacts with shared content are logged and removed while another process collects without mercy."
    from mlstack.tracking.artifacts import find_artifact, versions
    from mlstack.tracking.housekeeping import check, collect, remove_artifact
    store = folder/'p'/'.artifacts'
    p = python("""
import mlstack.tracking as track, sys
from pathlib import Path
tmp = Path(sys.argv[1])
with track.init(project='p', surroundings=False) as run:
    i = -1
    while i < 149 or not (tmp/'enough').exists():
        i += 1
        (tmp/'w').mkdir(exist_ok=True)
        for k in range(3): (tmp/'w'/f'{k}').write_text(str((i+k)%7))
        run.log_artifact(tmp/'w', 'model')
        if i == 0: print(i, flush=True)
    print(i)
""", tmp_path)
    p.stdout.readline()
    done = 0
    while p.poll() is None:
        have = versions(store, 'model')
        for i in have[:-2:2]: remove_artifact(store, f'model:v{i}')
        done += collect(days=0, hours=0)[0]
        if done > 10: (tmp_path/'enough').touch()
    assert p.wait() == 0, p.stderr.read()
    have = versions(store, 'model')
    assert have[-1] == int(p.stdout.read().split()[-1]) and done > 10 and check() == []
    for i in have: assert len({find_artifact(store, f'model:v{i}').read(f) for f in '012'}) == 3


def test_the_trash():
    from mlstack.tracking.housekeeping import collect, remove_run, undo
    made = []
    for name in 'abc':
        with track.init(project='p', name=name) as run: run.log(loss=1.)
        made.append(run)
    live = track.init(project='p', name='live')
    with pytest.raises(MlstackError, match='is running'): remove_run(live.path)
    for o in made[:2]: remove_run(o.path)
    assert {o.name for o in track.runs()} == {'c', 'live'}
    assert undo() == made[1].id and undo() == made[0].id
    with pytest.raises(MlstackError, match='the trash is empty'): undo()
    core._last_ms += 500  # ids are ahead of the clock after many at once, or when it was set back
    remove_run(made[0].path)
    assert collect()[0] == 0 and collect(days=0)[0] == 1
    assert {o.name for o in track.runs()} == {'b', 'c', 'live'} and all(len(o.metric('loss')[0]) == 1 for o in track.runs("name != 'live'"))


# -- commands ------------------------------------------------------------------------------------------------------------------

def mlstack(*args, code=0):
    p = subprocess.run([sys.executable, '-c', 'from mlstack.cli import main; main()', 'runs', *map(str, args)], capture_output=True, text=True, timeout=300)
    assert p.returncode == code and 'Traceback' not in p.stderr, p.stderr
    return p.stdout if code == 0 else p.stdout+p.stderr


def test_the_commands(tmp_path):
    import pandas as pd
    (tmp_path/'m.bin').write_bytes(b'1')
    for i in range(2):
        with track.init(project='p', name=f'r{i}', config=dict(lr=.1*(i+1), a_parameter_with_a_long_name=i, another_parameter_with_a_long_name=i, optimizer='adam'*(i+1))) as run:
            print(f'printed by {i}')
            for k in range(5): run.log(val_loss=1/(k+1+i), val_accuracy=k*.1)
            run.log_artifact(tmp_path/'m.bin', 'model')
    every = mlstack('lr > 0')
    assert all(o in every for o in ('r0', 'r1', 'a_parameter_with_a_long_name', 'another_parameter_with_a_long_name', 'val_accuracy', '▁')) and '…' not in every
    assert mlstack() == every == mlstack('list')
    assert 'r0' not in mlstack('list', 'lr > .15') and 'no runs' in mlstack('list', 'lr > 15')
    shown = mlstack('show', 'r1')
    assert all(o in shown for o in (run.id, 'finished', 'adamadam', 'val_accuracy', 'model:v0')) and mlstack('show', run.id, '--console') == 'printed by 1\n'
    assert 'adamadam' in mlstack('diff', 'r0', 'r1') and 'val_loss' not in mlstack('compare', 'lr > 0', '--metric', 'val_accuracy')
    assert mlstack('tag', 'r1', 'good', 'x') == 'r1: good, x\n' and mlstack('tag', 'r1', '--', '-x', 'y') == 'r1: good, y\n'
    assert track.runs('tags.has("good")')[0].id == run.id
    assert 'in the trash' in mlstack('rm', 'r0', 'model:v0') and len(track.runs()) == 1
    assert mlstack('undo', 'model:v0') == 'model:v0 is back\n' and mlstack('undo').endswith('is back\n') and len(track.runs()) == 2
    assert mlstack('export', tmp_path/'o.csv', 'lr > .15').startswith('1 run in') and pd.read_csv(tmp_path/'o.csv').lr.tolist() == [.2]
    assert mlstack('export', tmp_path/'h.csv', '--history').startswith('2 runs') and len(pd.read_csv(tmp_path/'h.csv')) == 10
    assert mlstack('gc') == 'nothing to delete\n' and mlstack('fsck') == 'nothing is damaged\n'
    next((run.path/'lanes').glob('*.lane')).unlink()
    assert 'is missing' in mlstack('fsck', code=1)


def test_wrong_commands_are_sentences(tmp_path):
    for _ in range(2):
        with track.init(project='p', name='twin'): pass
    for args, what in ((('show', 'nobody'), "no run is called 'nobody'"), (('rm', 'twin'), "2 runs are called 'twin'"), (('sho', 'twin'), "did you mean 'show'"), (('lr >',), 'not understood'),
            (('undo',), 'the trash is empty'), (('rm', 'model:v1'), "no project has an artifact 'model'"), (('export', tmp_path/'o.doc'), 'does not say a format'), (('export', tmp_path/'o.csv', 'lr > 1'), 'no runs match')):
        assert what in mlstack(*args, code=2), args


def test_a_narrow_terminal_gets_whole_columns():
    "A real terminal of 80 columns."
    import fcntl, pty, struct, termios
    for i in range(2):
        with track.init(project='p', name=f'r{i}', config=dict(learning_rate=i, weight_decay=i, dropout=i, hidden_width=i, batch_size=i)) as run:
            for k in range(12): run.log(val_loss=1/(k+1), val_accuracy=k*.1)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 80, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ('COLUMNS', 'LINES')}
    p = subprocess.Popen([sys.executable, '-c', 'from mlstack.cli import main; main()', 'runs'], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    out = b''
    try:
        while data := os.read(ours, 65536): out += data
    except OSError: pass  # the other end is closed
    os.close(ours)
    text = out.decode()
    assert p.wait() == 0 and max(map(len, text.splitlines())) <= 80
    assert 'learning_rate' in text and '…' not in text and '+4 columns: ' in text
