"submit: input that cannot work, words that must not reach a shell, handles from other processes, code that travels, secrets, power loss, ten thousand jobs; and the commands."
import builtins, functools, io, json, os, pickle, signal, subprocess, sys, textwrap, threading, time
from pathlib import Path
import pytest
from mlstack.core import Context, MlstackError, new_id
from mlstack.resources import handles, records, running, submitting
from mlstack.resources.handles import Job, JobError, Jobs, JobTimeout, job, jobs
from mlstack.resources.records import begin, finish, new_record, settle, state_folder
from mlstack.resources.submitting import Resources, map as map_jobs, submit
from tests import house
from tests.bench.measure.queueing import kill_one, processes

NASTY = '; touch pwned #', '$(touch pwned)', '`touch pwned`', 'a\ntouch pwned\n', "'; touch pwned; '", '"$(touch pwned)"', '&& touch pwned', '| touch pwned', '> pwned', '--help', '-rf', '', ' ', 'é…☃', '%s{}\\'

class Home:
    "A queue of its own on a made-up machine of two cores and two GPUs."
    def __init__(self, folder, patch):
        self.folder = folder
        for k, v in dict(STATE='state', QUEUE='queue', LEASES='locks', RUNS='runs').items(): patch.setenv(f'MLSTACK_{k}', str(folder/v))
        patch.setenv('MLSTACK_RUNNER_IDLE', '60')
        patch.setenv('PYTHONPATH', str(house.root))
        for o in ('CUDA_VISIBLE_DEVICES', 'MLSTACK_PROJECT', 'MLSTACK_EXECUTOR'): patch.delenv(o, raising=False)
        self.work = folder/'work'
        self.work.mkdir()
        patch.chdir(self.work)
        running.made_folder(folder/'queue')
        (folder/'queue'/'policy.json').write_text(json.dumps(dict(machine=dict(gpus={'GPU-a': 80 << 30, 'GPU-b': 80 << 30}, cores=[0, 1], memory=8 << 30))))
    def close(self):
        for _ in range(100):
            if not (left := processes(self.folder)): break
            for p in left: kill_one(p)
            time.sleep(.02)
    def until(self, what, seconds=300):
        end = time.monotonic() + seconds
        while not (got := what()):
            assert time.monotonic() < end, f'{jobs(all=True)}\n{self.log()}'
            time.sleep(.01)
        return got
    def log(self): return '\n'.join(o.read_text() for o in (self.folder/'state'/'runners').glob('*/log'))
    def shell(self, *args, **kw):
        return subprocess.run([sys.executable, '-c', 'from mlstack.cli import main; main()', *args], capture_output=True, text=True, timeout=300, env=os.environ | dict(COLUMNS='200'), **kw)
    def python(self, code): return subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True, timeout=300)

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "One for all tests that really run something: its runner starts once."
    with pytest.MonkeyPatch.context() as patch:
        h = Home(tmp_path_factory.mktemp('home'), patch)
        yield h
        h.close()

@pytest.fixture
def still(tmp_path, monkeypatch):
    "An executor that starts nothing."
    h = Home(tmp_path, monkeypatch)
    class Still:
        started = []
        def check(spec): pass
        def start(records): Still.started += records
        def look(record): return dict(state='waiting', why='nothing starts here')
        def cancel(record, reason): finish(record, 'cancelled', reason)
        def text(spec): return json.dumps(spec, default=str)
    monkeypatch.setitem(handles._executors, 'still', Still)
    h.executor = Still
    yield h
    h.close()

def pretend(**kw):
    "A job that only has a record."
    return Job(new_record(dict(name='train', kind='command', command=['true'], on='still', want=dict(gpus=0, gpu_mem=0, cpus=1, mem=0), runs='runs', project='p', run='r') | kw, sync=False))

def train(lr, epochs=1): return lr*epochs
def empty(path): return not any(path.iterdir()) if path.is_dir() else True


# What cannot work is refused, and nothing is written

BAD = [
    (dict(time='4'), 'seconds, minutes or hours'), (dict(time=4_000_000), '46 days'), (dict(time='4000000'), 'no unit'), (dict(time='12:30'), 'hours or minutes'), (dict(time='1-12:30'), 'hours or minutes'),
    (dict(time='4 fortnights'), 'unit'), (dict(time=0), 'length of time'), (dict(time=-5), 'length of time'), (dict(time=float('nan')), 'length of time'), (dict(time=True), 'length of time'), (dict(time=''), 'length of time'),
    (dict(gpus=-1), 'gpus=-1'), (dict(gpus=1.5), 'whole number'), (dict(gpus='2'), 'whole number'), (dict(cpus=0), 'nothing is asked for'), (dict(cpus=1.5), 'whole number'), (dict(mem='4 apples'), 'not a size'), (dict(mem=-1), 'not a size'),
    (dict(gpu='h100; rm -rf ~'), 'no type of GPU'), (dict(nodes=0), 'from 1 on'), (dict(nprocs=0), 'from 1 on'), (dict(priority='high'), 'number'), (dict(retries=-1), 'from 0 on'), (dict(retries=.5), 'whole'),
    (dict(after='nobody'), 'no job is called'), (dict(array=[]), 'no element'), (dict(code='now'), "'live'"), (dict(cwd='/no/such/folder'), 'no such folder'), (dict(name='a\nb'), 'one line'), (dict(name='a\x1b[31m'), 'one line'),
    (dict(name='x'*300), 'one line'), (dict(project='../elsewhere'), 'cannot be a project'), (dict(env={'A B': '1'}), 'cannot be a variable'), (dict(env={'A': 'x\0y'}), 'cannot be a variable'), (dict(env={'API_KEY': 'abc'}), 'looks like a secret'),
    (dict(env={'LR': 'ghp_'+'a'*36}), 'looks like a secret'), (dict(secrets=['NOT_SET_ANYWHERE']), 'no variable'), (dict(constraint='a\n#SBATCH --x'), 'one line'), (dict(on='slrum'), "id you mean 'slurm'"), (dict(gpu_memory='20G'), 'id you mean gpu_mem='),
    (dict(warn='5', time='1h'), 'no unit'), (dict(warn=5), 'without time'), (dict(backoff='1'), 'no unit'),
]

@pytest.mark.parametrize('kw,why', BAD, ids=[str(k)[:40] for k, _ in BAD])
def test_bad_input_writes_nothing(still, kw, why):
    with pytest.raises(MlstackError) as e: submit(train, .1, **dict(on='still') | kw)
    assert why in str(e.value) and '\n' not in str(e.value).strip()
    assert not records.records() and not still.executor.started

@pytest.mark.parametrize('what,why', [
    ('python train.py; rm -rf ~', "';'"), ('a && b', "'&&'"), ('a | b', "'|'"), ('a > b', "'>'"), ("python 'x", 'cannot be split'), ('', 'no command'), ([], 'no command'), (['a\0b'], 'zero byte'), (3, 'cannot be submitted'),
    ('nothing.ipynb', 'cannot be read')])
def test_commands_that_are_none(still, what, why):
    with pytest.raises(MlstackError, match=why.replace('|', '[|]')): submit(what, on='still')
    assert not records.records()

def test_arguments_that_do_not_fit_or_travel(still):
    for call, why in ((lambda: submit(train, on='still'), 'missing a required argument'), (lambda: submit(train, 1, 2, 3, on='still'), 'too many positional'), (lambda: submit(train, threading.Lock(), on='still'), 'argument lr is a lock'),
        (lambda: submit(train, [1, {'a': threading.Lock()}], on='still'), "argument lr[1]['a'] is a lock"), (lambda: submit(train, array=[1, threading.Lock()], on='still'), 'argument lr is a lock'),
        (lambda: submit(['ls'], 'x', on='still'), 'arguments in its list'), (lambda: submit(['ls'], params=dict(a=1), on='still'), 'for a notebook'), (lambda: submit(train, .1, schedule='0 3 * *', on='still'), '4 fields'),
        (lambda: submit(train, schedule='0 3 * * *', array=[1, 2], on='still'), 'neither array')):
        with pytest.raises(MlstackError) as e: call()
        assert why in str(e.value)
    assert not records.records()

def test_more_than_there_is_says_who_could(still, monkeypatch):
    with pytest.raises(MlstackError) as e: submit(train, .1, gpus=3, on='local')
    assert '2 GPUs of 80 GiB' in str(e.value) and 'would take it' not in str(e.value)
    monkeypatch.setitem(handles._executors, 'slurm', still.executor)
    with pytest.raises(MlstackError, match="on='slurm' would take it"): submit(train, .1, gpus=3, on='local')
    assert not records.records()

def test_an_executor_that_is_not_there_says_what_to_install(still, monkeypatch):
    class Missing(still.executor):
        def check(spec): raise MlstackError('ray is not installed', "on='ray'", 'pip install "mlstack[ray]"')
    monkeypatch.setitem(handles._executors, 'ray', Missing)
    with pytest.raises(MlstackError, match='pip install'): submit(train, .1, on='ray')
    assert not records.records()

def test_an_executor_that_fails_leaves_nothing(still, monkeypatch):
    class Full(still.executor):
        def start(records): raise MlstackError('the spool is full', 'sbatch')
    monkeypatch.setitem(handles._executors, 'full', Full)
    with pytest.raises(MlstackError, match='spool'): submit(train, array=[1, 2], on='full')
    assert empty(state_folder('jobs'))

def test_a_full_disk_leaves_nothing(still, monkeypatch):
    real, left = records._put, [3]
    def put(path, data):
        left[0] -= 1
        if not left[0]: raise OSError(28, 'No space left on device')
        return real(path, data)
    monkeypatch.setattr(records, '_put', put)
    with pytest.raises(MlstackError, match='nothing was submitted: No space left'): submit(train, array=range(5), on='still')
    assert empty(state_folder('jobs')) and not still.executor.started

def test_a_disk_that_is_full_when_it_is_started(still, monkeypatch):
    class Full(still.executor):
        def start(records): raise OSError(28, 'No space left on device', 'handle.json')
    monkeypatch.setitem(handles._executors, 'full', Full)
    with pytest.raises(MlstackError, match='nothing was submitted: No space left'): submit(train, .1, on='full')
    assert empty(state_folder('jobs'))
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(submitting, 'describe', full)
    assert submit(train, .1, on='still').state == 'waiting'

def no_room(monkeypatch):
    real = records.write_file
    def write(path, *args, **kw):
        if Path(path).name == 'cancel': raise OSError(28, 'No space left on device')
        return real(path, *args, **kw)
    for o in (handles, running): monkeypatch.setattr(o, 'write_file', write)

def test_cancel_on_a_full_disk(home, monkeypatch):
    runs = submit(['sleep', '600'], cpus=2)
    home.until(lambda: runs.attempts)
    waits, more = submit(['sleep', '601'], cpus=2), submit(['sleep', '602'], array=[[], []], cpus=2)
    no_room(monkeypatch)
    assert more.cancel() == 2 and waits.cancel() and runs.cancel()
    assert all(o.wait(300) and o.record.final['state'] == 'cancelled' for o in (runs, waits, *more)) and not waits.attempts
    monkeypatch.setattr('mlstack.resources.running._set', lambda *args: None)
    with pytest.raises(MlstackError, match='cannot be cancelled: No space left'): pretend(on='local').cancel()

def test_a_dry_run_writes_nothing(still):
    said = submit(train, .1, on='still', time='4h', dry_run=True)
    assert json.loads(said)['time'] == 14400 and repr(said) == str(said)
    assert not records.records() and not still.executor.started


# Nothing reaches a shell

def test_nasty_words_arrive_as_they_are(home):
    code = 'import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), {k: v for k, v in os.environ.items() if k.startswith("N_")}]))'
    folder = home.work/'a; touch pwned $(touch pwned) `touch pwned` & b'
    folder.mkdir()
    env = {f'N_{i}': o for i, o in enumerate(NASTY)}
    done = submit([sys.executable, '-c', code, *NASTY], name='x; touch pwned $(touch pwned)', cwd=folder, env=env)
    assert done.wait(300) and done.result() == 0, done.logs()
    assert json.loads(done.logs()) == [list(NASTY), str(folder), env]
    assert job('x; touch pwned $(touch pwned)') == done
    assert not list(home.folder.rglob('pwned'))

def test_nasty_words_of_the_command_line(home):
    code = 'import sys; print(sys.argv[1:])'
    said = home.shell('submit', '--name', '$(touch pwned)', '-f', '-e', 'N=`touch pwned`', '--', sys.executable, '-c', code, *NASTY)
    assert said.returncode == 0 and said.stdout.splitlines()[1:] == [str(list(NASTY))], said
    assert not list(home.folder.rglob('pwned'))

def test_nasty_parameters_of_a_notebook(home):
    values = {f'p{i}': o for i, o in enumerate(NASTY)}
    cell = lambda source: dict(cell_type='code', source=source, metadata={}, outputs=[], execution_count=None)
    book = dict(nbformat=4, nbformat_minor=4, metadata={}, cells=[cell('import json; json.dump({k: v for k, v in globals().items() if k[0] == "p" and k[1:].isdigit()}, open("got.json", "w"))')])
    (home.work/'a $(touch pwned).ipynb').write_text(json.dumps(book))
    done = submit('a $(touch pwned).ipynb', params=values)
    assert done.wait(300) and done.result() is None and done.notebook.exists(), done.logs()
    assert json.loads((home.work/'got.json').read_text()) == values
    assert not list(home.folder.rglob('pwned'))


# Results, errors, arrays

def broken(x):
    print('before it breaks')
    return {}['missing'] if x else x

def test_a_failure_raises_what_was_raised_there(home):
    done = submit(broken, 1)
    with pytest.raises(JobError) as e: done.result(300)
    assert isinstance(e.value.__cause__, KeyError) and "return {}['missing'] if x else x" in str(e.value) and e.value.job == done and e.value.state == 'failed'
    assert 'before it breaks' in done.logs() and "KeyError: 'missing'" in done.error and done.state == 'failed'
    assert done.run.state == 'failed' and done.run.id == done.id and done.run.name == 'broken'

def test_a_function_of_a_cell_shows_its_lines(home):
    import linecache
    source = 'def cell(x):\n    y = x\n    return 1/y\n'
    space = dict(__name__='__main__')
    exec(compile(source, '<ipython-input-7-abc>', 'exec'), space)
    linecache.cache['<ipython-input-7-abc>'] = len(source), None, source.splitlines(True), '<ipython-input-7-abc>'
    with pytest.raises(JobError, match='return 1/y'): submit(space['cell'], 0).result(300)

def test_an_array_with_one_failure(home):
    done = submit(broken, array=[0, 0, 1, 0], name='some')
    with pytest.raises(JobError, match='number 2 of 4') as e: done.result(300)
    assert e.value.index == 2
    values = done.results(60, errors=True)
    assert [o for o in values if not isinstance(o, JobError)] == [0, 0, 0] and values[2].index == 2 and values[2].job == done[2]
    assert done.states() == dict(finished=3, failed=1) and [o.id for o in jobs(done[0].spec['group'])] == [o.id for o in reversed(done)]
    assert done[1:3].wait(1) and isinstance(done[1:3], Jobs)

def test_map_gives_results_in_order(home):
    assert list(map_jobs(train, [3, 1, 2], **Resources(cpus=1), epochs=2)) == [6, 2, 4]

def returns_text() -> str: return 'a'
def returns_number() -> int: return 4
def takes(x: float, *more): return x, more

def test_a_job_as_argument(home):
    first, other = submit(returns_number), submit(returns_number)
    then = submit(takes, first, [other, {'k': first}])
    assert then.spec['after'] == [first.id, other.id] and then.result(300) == (4, ([4, {'k': 4}],))
    with pytest.raises(MlstackError, match='x is to be a float, and job returns_text returns a str'): submit(takes, submit(returns_text))
    failed = submit(takes, submit(broken, 1))
    with pytest.raises(JobError, match='has failed') as e: failed.result(300)
    assert e.value.state == 'cancelled'

def test_a_job_is_a_run(home):
    def logs(lr):
        import mlstack.tracking as track
        run = track.init(config=dict(lr=lr))
        run.log(loss=.5)
        return run.id
    done = submit(logs, .1, project='p; x')
    assert done.result(300) == done.id == done.run.id
    assert (done.run.config['lr'], done.run.summary['loss'], done.run.project, done.run.state) == (.1, .5, 'p; x', 'finished')


# From anywhere

def test_found_again_by_another_process(home):
    older, newer = submit(train, 1, name='twice'), submit(train, 2, name='twice')
    assert older.result(300) == 1 and newer.result(300) == 2
    said = home.python(f'''
        from mlstack.resources.handles import job, jobs
        print(job('twice').result(), job({older.id!r}).result(), job({older.id[2:]!r}).state, len(jobs('twice')), [o.id for o in jobs("name == 'twice' and state == 'finished' and want.cpus == 1")] == {[newer.id, older.id]!r})
    ''')
    assert said.stdout == '2 1 finished 2 True\n', said

def test_cancelled_by_another_process(home):
    sleeps = submit(['sleep', '600'])
    home.until(lambda: sleeps.state == 'running')
    assert home.python(f'from mlstack.resources.handles import job; print(job({sleeps.id!r}).cancel("enough"))').stdout == 'True\n'
    assert sleeps.wait(300) and sleeps.error == 'cancelled: enough' and not sleeps.cancel()
    with pytest.raises(JobError, match='enough'): sleeps.result()

def test_logs_follow_until_it_is_over(home, capsys):
    done = submit([sys.executable, '-uc', 'import time\nfor i in range(3): print("line", i); time.sleep(.1)'])
    done.logs(follow=True)
    assert capsys.readouterr().out == 'line 0\nline 1\nline 2\n' and done.over()
    assert done.logs(tail=1) == 'line 2\n' and done.logs(tail=0) == '' and done.logs(tail=9) == done.logs()

@pytest.mark.parametrize('how', ['python', 'shell'])
def test_an_interrupt_ends_the_following_and_not_the_job(home, how):
    go = home.work/f'go-{how}'
    waits = submit([sys.executable, '-uc', f'import os, time; print("up")\nwhile not os.path.exists({str(go)!r}): time.sleep(.02)\nprint("down")'], name=f'waits-{how}')
    code = f'from mlstack.resources.handles import job; job({waits.id!r}).logs(follow=True); print("still here")' if how == 'python' else 'from mlstack.cli import main; main()'
    p = subprocess.Popen([sys.executable, '-uc', code, *(('jobs', 'logs', '-f', waits.id) if how == 'shell' else ())], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == 'up\n'
    p.send_signal(signal.SIGINT)
    rest = p.communicate(timeout=300)[0]
    assert 'goes on without you' in rest and waits.state == 'running' and ('still here' in rest) == (how == 'python') and p.returncode == 0
    go.touch()
    assert waits.result(300) == 0 and waits.logs().endswith('down\n')

def test_logs_in_parts_of_letters(still, capsys):
    "What is printed in the middle of a letter, and a carriage return, come out as they are."
    one, data = pretend(), 'é☃\rprogress 50%\rprogress 100%\n'.encode()
    def write():
        with open(one.record.log, 'wb', buffering=0) as f:
            for b in data: f.write(bytes([b])); time.sleep(.005)
        finish(one.record, 'finished')
    t = threading.Thread(target=write); t.start()
    one.logs(follow=True)
    t.join()
    assert capsys.readouterr().out.encode() == data

def test_a_result_that_is_late(still):
    one = pretend()
    with pytest.raises(JobTimeout, match='nothing starts here'): one.result(timeout=0)
    with pytest.raises(TimeoutError): Jobs([one]).result(timeout=0)
    with pytest.raises(MlstackError, match='ancel it first'): one.delete()
    with pytest.raises(MlstackError, match='has not begun'): one.run  # noqa: B018
    assert not one.wait(.01) and one.cancel() and one.wait() and not one.cancel()
    one.delete()
    with pytest.raises(MlstackError, match='no job is called'): job(one.id)

def test_a_job_whose_folder_is_gone(still):
    import shutil
    one = submit(train, .1, on='still')
    finish(one.record, 'finished')
    Job(one.id).delete()
    other = submit(train, .1, on='still')
    threading.Timer(.05, shutil.rmtree, [other.record.path]).start()
    with pytest.raises(JobError, match='its folder is gone'): other.result(300)
    for o in (one, other):
        assert (o.state, o.why) == ('lost', 'its folder is gone') and 'folder is gone' in repr(o)
        for call in (o.result, o.wait, o.cancel, Jobs([o]).result, Jobs([o]).wait):
            with pytest.raises(JobError, match='its folder is gone'): call()

def test_who_waits_asks_now_and_then_which_starts_a_runner_that_was_killed(home):
    from mlstack.resources.leases import lease
    with lease(cpus=2, of=running._machine(running.settings_of(home.folder/'queue')[1]), apply=False, timeout=300):
        one = submit(train, 2)
        runner = home.until(lambda: [o for o in processes(home.folder) if b'run_queue' in Path(f'/proc/{o}/cmdline').read_bytes()])
        for o in runner: kill_one(o)
    assert one.result(300) == 2

def test_a_job_that_waits_for_one_that_waits_says_so(still, monkeypatch, capsys):
    monkeypatch.setitem(handles._executors, 'local', still.executor)
    monkeypatch.setattr(handles, '_warned', set())
    monkeypatch.setattr(handles, 'context', lambda: Context(job='outer'))
    one, looked = pretend(on='local'), []
    real = handles.look
    def look(found):
        said = real(found)
        looked.append(1)
        finish(one.record, 'finished') if len(looked) == 1 else None
        return said
    monkeypatch.setattr(handles, 'look', look)
    assert one.wait(300) and f'holds its own cores while it waits for job {one.id}' in capsys.readouterr().err
    monkeypatch.setattr(handles, 'context', Context)
    handles._warn_of_waiting([one], [dict(state='waiting')])
    assert not capsys.readouterr().err

def test_a_result_is_looked_for_sooner_when_something_has_happened(still, monkeypatch):
    one, slept = pretend(), []
    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 40: begin(one.record, 1)
        if len(slept) == 44: finish(one.record, 'finished')
    monkeypatch.setattr(handles.time, 'sleep', sleep)
    assert one.wait()
    assert max(slept[:40]) >= handles._longest > max(slept[41:43])

def test_folders_above_are_for_the_owner_only(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_STATE', str(tmp_path/'a'/'b'))
    made = state_folder('c', 'd')
    assert [o.stat().st_mode & 0o777 for o in (made, *made.parents[:3])] == [0o700]*4

def test_how_it_shows_itself(still):
    one = pretend(name='<b>x</b>')
    one.record.log.write_text('<script>alert(1)</script>\n')
    assert repr(one) == f'Job(<b>x</b>, {one.id}, waiting on still: nothing starts here)'
    html = one._repr_html_()
    assert '<script>' not in html and '<b>x' not in html and '&lt;script&gt;' in html and 'nothing starts here' in html
    finish(one.record, 'failed', 'exit code 3')
    assert 'failed' in repr(one) and 'exit code 3' in repr(jobs()) and 'exit code 3' in jobs()._repr_html_()

def test_the_last_word_of_an_executor_is_kept(still, monkeypatch):
    monkeypatch.setattr(still.executor, 'look', lambda record: dict(state='lost', why='its node burnt down'))
    one = pretend()
    assert one.wait(300) and one.error == 'lost: its node burnt down' and one.record.final['state'] == 'lost'

def test_an_executor_that_cannot_be_asked_is_no_failure(still, monkeypatch):
    def gone(record): raise ConnectionError('no route')
    monkeypatch.setattr(still.executor, 'look', gone)
    one = pretend()
    assert (one.state, one.why, one.over()) == ('waiting', 'still cannot be asked: no route', False)
    begin(one.record, 1)
    assert one.state == 'running'

def test_damaged_and_newer_records_do_not_hide_the_others(still):
    good, damaged, newer = pretend(), pretend(), pretend(format=99, mlstack='99.0')
    (damaged.record/'spec.json').write_text('{"name": "tra')
    assert good.id in repr(jobs()) and [o.id for o in jobs('train')] == [good.id] and '2 records cannot be read' in jobs('train').note
    assert job('train') == good
    with pytest.raises(MlstackError, match='damaged'): Job(damaged.id).name  # noqa: B018
    with pytest.raises(MlstackError, match='newer mlstack'): Job(newer.id).name  # noqa: B018


# Ten thousand, and power

def test_ten_thousand_are_listed_without_opening_them(still, monkeypatch):
    folder = state_folder('jobs')
    spec = json.dumps(dict(format=1, name='many', kind='function', on='still', want=dict(gpus=0, gpu_mem=0, cpus=1, mem=0), submitted=time.time()))
    ids = [new_id() for _ in range(10_000)]
    for i, o in enumerate(ids):
        (folder/o).mkdir()
        (folder/o/'spec.json').write_text(spec)
        if i % 2: (folder/o/'final.json').write_text('{"state": "finished"}')
    opened, real = [], io.open
    def counting(file, *args, **kw):
        opened.append(str(file))
        return real(file, *args, **kw)
    monkeypatch.setattr(io, 'open', counting); monkeypatch.setattr(builtins, 'open', counting)
    found = jobs()
    text = repr(found)
    assert len(found) == 10_000 and ids[-1] in text and '9960 more' in text
    assert len(opened) < 400 and not [o for o in opened if 'jobs/' in o and not o.endswith(('spec.json', 'final.json', '.json'))]
    opened.clear()
    assert job('many').id == ids[-1] and len(opened) < 10

def test_when_submit_returns_all_of_it_is_on_the_disk(still, monkeypatch):
    "A power loss takes nothing: each file and the folder's name are flushed; of an array all at once."
    flushed, settled = [], []
    monkeypatch.setattr(os, 'fsync', lambda f: flushed.append(os.readlink(f'/proc/self/fd/{f if isinstance(f, int) else f.fileno()}')))
    monkeypatch.setattr(submitting, 'settle', lambda: settled.append(len(os.listdir(state_folder('jobs')))))
    from mlstack.resources import records as room
    for ordered in (False, True): # whether the file system keeps one journal in order: then what was written before the folder was named is there with its name
        monkeypatch.setattr(room, '_written', lambda files, ordered=ordered: all('/jobs/.' in os.readlink(f'/proc/self/fd/{o.fileno()}') for o in files) and len(files) == 2 and ordered)
        one = submit(train, .1, on='still')
        assert {*flushed} == {str(state_folder('jobs')), *(str(one.record/o) for o in ('spec.json', 'call.pkl') if not ordered)} and not settled
        flushed.clear()
    submit(train, array=[1, 2, 3], on='still')
    assert not flushed and settled == [5]

def test_settle_asks_the_kernel(still): settle()


def test_a_submit_that_is_killed_leaves_no_half_job(still):
    "At whatever write it dies: a job is there whole or not at all."
    code = """
        import os, sys
        from mlstack.resources import handles, records
        from mlstack.resources.submitting import submit
        class Null: check = start = look = cancel = text = staticmethod(lambda *a: None)
        handles.register('null', Null)
        left = int(sys.argv[1])
        def count(event, args):
            global left
            if event in ('open', 'os.rename', 'os.mkdir', 'os.link') and 'state' in str(args):
                left -= 1
                if not left: os.kill(os.getpid(), 9)
        sys.addaudithook(count)
        submit(print, array=[1, 2], on='null')
        print('done')
    """
    for n in range(1, 100, 1 if os.environ.get('MLSTACK_FULL') else 4):
        p = subprocess.run([sys.executable, '-c', textwrap.dedent(code), str(n)], capture_output=True, text=True, timeout=300)
        for o in records.records(): assert o.spec['count'] == 2 and pickle.loads((o/'call.pkl').read_bytes())[0] is print
        if p.returncode == 0: break
        assert p.returncode == -9, p
    else: assert False, 'it was never done'
    assert n > 10


# Secrets

def test_a_secret_is_in_no_record(home, monkeypatch):
    secret = 'hunter2-' + new_id()
    monkeypatch.setenv('MY_API_KEY', secret); monkeypatch.setenv('OTHER_TOKEN', secret); monkeypatch.setenv('PROXY', f'http://me:{secret}@proxy')
    done = submit([sys.executable, '-c', 'import hashlib, os; print(hashlib.md5(os.environ["MY_API_KEY"].encode()).hexdigest(), "OTHER_TOKEN" in os.environ, "PROXY" in os.environ)'], secrets=['MY_API_KEY'])
    assert (done.record/'spec.json').stat().st_mode & 0o77 == 0 and done.spec['secrets'] == ['MY_API_KEY'] and {'OTHER_TOKEN', 'PROXY'} <= {*done.spec['withheld']}
    assert done.wait(300)
    import hashlib
    assert done.logs().split() == [hashlib.md5(secret.encode()).hexdigest(), 'False', 'False']
    written = [p for p in home.folder.rglob('*') if p.is_file() and secret.encode() in p.read_bytes()]
    assert not written, written
    missed = submit([sys.executable, '-c', 'import os; os.environ["OTHER_TOKEN"]'])
    with pytest.raises(JobError, match=r"secrets=\['OTHER_TOKEN'\]"): missed.result(300)


def test_what_the_variables_of_a_job_are(still, monkeypatch):
    from mlstack.resources.leases import Machine, lease
    for k in ('MLSTACK_RUN', 'MLSTACK_JOB', 'RANK', 'SLURM_JOB_ID', 'MASTER_PORT'): monkeypatch.setenv(k, '7')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    spec = submit(train, .1, on='still', env=dict(LR='1')).spec
    assert not {'MLSTACK_RUN', 'MLSTACK_JOB', 'RANK', 'SLURM_JOB_ID', 'MASTER_PORT', 'CUDA_VISIBLE_DEVICES'} & {*spec['env']} and spec['env']['LR'] == '1' and spec['given'] == ['LR']
    for k in ('SLURM_JOB_ID', 'MLSTACK_RUN', 'MLSTACK_JOB'): monkeypatch.delenv(k)
    assert submit(train, .1, on='still').spec['env']['CUDA_VISIBLE_DEVICES'] == '0'
    with lease(gpus=1, of=Machine({'GPU-a': 1 << 30}, (0,), 1 << 30, still.folder/'locks')):
        assert 'CUDA_VISIBLE_DEVICES' not in submit(train, .1, on='still').spec['env']  # what this process was given is not the job's

def test_names(still):
    class Called:
        def __call__(self): pass
    for what, name in ((train, 'train'), (lambda: 1, 'lambda'), (functools.partial(train, 1), 'train'), (Called(), 'Called'), ('python -u train.py -c x', 'train'), ('python -m pkg.mod', 'pkg'), (['python', '-uc', 'a\nb'], 'python'), (['/bin/true'], 'true'), (['\x1b'], 'command')):
        assert submit(what, *([1] if what is train else []), on='still').name == name

def test_a_container_that_cannot_be(still):
    for image in ('a b', '--privileged', 'x;y', dict(image='a', volume='/')):
        with pytest.raises(MlstackError): submit(['true'], container=image, on='still')
    assert not records.records()

def test_a_schedule(home):
    from mlstack.resources.schedules import scheduled
    made = submit(train, .1, schedule='0 3 * * *', name='nightly')
    assert [o.name for o in scheduled()] == ['nightly'] and made.next > time.time()
    made.delete()


# Code that travels

def project(home, name):
    root = home.work/name
    (root/'src').mkdir(parents=True)
    git = lambda *a: subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *a], cwd=root, check=True, capture_output=True)
    (root/'src'/f'{name}.py').write_text('value = "committed"\n')
    (root/'train.py').write_text(f'import sys; sys.path.insert(0, "src"); import {name}; print({name}.value, open("data/rows.csv").read())\n')
    (root/'.gitignore').write_text('data\n')
    (root/'data').mkdir(); (root/'data'/'rows.csv').write_text('1,2,3')
    git('init', '-q'); git('add', '.'); git('commit', '-qm', 'first')
    (root/'src'/f'{name}.py').write_text('value = "uncommitted"\n')
    (root/'src'/'new.py').write_text('here = 1\n')
    return root

def test_edited_while_it_waited(home):
    root, go = project(home, 'edited'), home.work/'go-edited'
    gate = submit([sys.executable, '-c', f'import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(.02)'], name='gate')
    live, kept = (submit('python train.py', cwd=root, after=gate, code=o) for o in ('live', 'snapshot'))
    (root/'src'/'edited.py').write_text('value = "edited while it waited"\n')
    go.touch()
    assert live.wait(300) and kept.wait(300)
    home.until(lambda: all((o.run.path/'env.json').exists() for o in (live, kept))) # written beside the job, which may be quicker
    assert (live.logs(), kept.logs()) == ('edited while it waited 1,2,3\n', 'uncommitted 1,2,3\n')
    assert live.changes == ['src/edited.py was changed after it was submitted'] and kept.changes == []
    assert kept.run.code['commit'] == live.run.code['commit'] == kept.spec['code']['commit'] and '+value = "uncommitted"' in kept.run.patch
    tree = Path(os.readlink(kept.record/'code'))
    assert (tree/'src'/'new.py').exists() and kept.spec['code']['linked'] == {'data': 'ignored by git'}
    again = submit('python train.py', cwd=root, code='snapshot', after=kept)
    assert os.readlink(again.record/'code') != str(tree)  # it was edited
    kept.delete()
    assert not tree.exists() and again.wait(300) and (again.record/'code').exists()

def test_a_function_of_the_project_comes_from_the_snapshot(home, monkeypatch):
    root, go = project(home, 'traveller'), home.work/'go-traveller'
    monkeypatch.syspath_prepend(str(root/'src')); monkeypatch.chdir(root)
    import traveller
    def value(): import traveller; return traveller.value, traveller.__file__
    gate = submit([sys.executable, '-c', f'import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(.02)'], name='gate')
    done = submit(value, after=gate, code='snapshot')
    (root/'src'/'traveller.py').write_text('value = "too late"\n')
    go.touch()
    assert done.result(300) == ('uncommitted', str(Path(os.readlink(done.record/'code'))/'src'/'traveller.py')) and traveller.value == 'uncommitted'

def test_a_change_within_a_second_and_of_the_same_size(still):
    "Git may look at seconds only; then it has to look into the file."
    root = project(still, 'racy')
    path, git = root/'src'/'racy.py', lambda *a: subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *a], cwd=root, check=True, capture_output=True)
    for i in range(20):
        while time.time() % 1 > .2: time.sleep(.01)
        path.write_text(f'value = "a{i:09}"\n'); was = path.stat()
        git('add', '.')
        path.write_text(f'value = "b{i:09}"\n'); now = path.stat()
        if int(was.st_mtime) == int(now.st_mtime) and int(was.st_ctime) == int(now.st_ctime): break
    while int(time.time()) == int(now.st_mtime): time.sleep(.01)
    one = submit('python train.py', cwd=root, code='snapshot', on='still')
    assert (one.record/'code'/'src'/'racy.py').read_text() == path.read_text()

def test_a_snapshot_leaves_the_repository_alone(still):
    root = project(still, 'alone')
    listing = lambda: sorted((str(p), p.read_bytes()) for p in (root/'.git').rglob('*') if p.is_file())
    before = listing()
    (root/'id_rsa').write_text('x'); (root/'huge.bin').write_bytes(b'\0'*(11 << 20)); (root/'odd\nname; touch pwned.py').write_text('1')
    one = submit('python train.py', cwd=root, code='snapshot', on='still')
    assert listing() == before
    tree = Path(os.readlink(one.record/'code'))
    assert one.spec['code']['linked'] == {'id_rsa': 'looks secret', 'huge.bin': 'large', 'data': 'ignored by git'} and (tree/'id_rsa').is_symlink()
    assert (tree/'odd\nname; touch pwned.py').read_text() == '1' and not (tree/'.git').exists() and one.spec['cwd'] == str(tree)
    (root/'bare').mkdir()
    with pytest.raises(MlstackError, match='only a git repository'): submit('ls', cwd='/', code='snapshot', on='still')


# The commands

def test_the_commands(home):
    (home.work/'script.py').write_text('import sys; print("got", sys.argv[1:]); sys.exit(int(sys.argv[2]))\n')
    ok, bad = (home.shell('submit', '-f', '--time', '10m', '--cpus', '1', 'script.py', '--code', o) for o in '07')
    assert (ok.returncode, bad.returncode) == (0, 7) and "got ['--code', '7']" in bad.stdout and 'failed: exit code 7' in bad.stderr, (ok, bad)
    id = bad.stdout.splitlines()[0]
    shown = json.loads(home.shell('jobs', 'show', id, '--json').stdout)
    assert (shown['name'], shown['state'], shown['time'], shown['attempts'], shown['each'][0]['state']) == ('script', 'failed', 600, 1, 'failed') and 'env' not in shown and 'command' not in shown
    assert 'attempt 1' in home.shell('jobs', 'show', 'script').stdout
    listed = home.shell('jobs', "name == 'script' and state == 'failed'")
    assert id in listed.stdout and ok.stdout.splitlines()[0] not in listed.stdout, listed
    assert id in [o['id'] for o in json.loads(home.shell('jobs', '--all', '--json').stdout)]
    assert home.shell('jobs', 'logs', id).stdout.startswith("got ['--code', '7']\n") and home.shell('jobs', 'attach', id).returncode == 7
    assert home.shell('jobs', 'wait', id).returncode == 1 and home.shell('jobs', 'wait', ok.stdout.splitlines()[0]).returncode == 0
    assert 'is there' not in home.shell('jobs', 'delete', id).stderr and home.shell('jobs', 'show', id).returncode == 2

def test_commands_for_what_waits(home):
    blocker = submit(['sleep', '600'], cpus=2)
    home.until(lambda: blocker.state == 'running')
    said = home.shell('submit', '--name', 'patient', '--after', blocker.id, '--', 'true')
    id = said.stdout.strip()
    assert 'mlstack jobs logs -f' in said.stderr
    assert home.shell('jobs', 'wait', '--timeout', '0', id).returncode == 124
    assert home.shell('jobs', 'hold', id).returncode == 0 and job(id).why == 'it is held' and home.shell('jobs', 'hold', blocker.id).returncode == 2
    assert home.shell('jobs', 'release', id).returncode == 0 and 'waits for' in job(id).why
    top = home.shell('jobs', 'top', '--once')
    assert 'patient' in top.stdout and '2 of ' in top.stdout and top.returncode == 0, top
    assert home.shell('jobs', 'cancel', '--reason', 'enough', "name == 'patient'", blocker.id).stdout == '2 cancelled\n'
    assert blocker.wait(300) and job(id).error == 'cancelled: enough' and home.shell('jobs', 'cancel', id).stdout == 'they are over already\n'

def test_install_writes_one_line(still, monkeypatch):
    bin = still.folder/'bin'; bin.mkdir()
    (bin/'crontab').write_text(f'#!/bin/sh\ncase "$1" in -l) cat {still.folder}/tab;; *) cat > {still.folder}/new; mv {still.folder}/new {still.folder}/tab;; esac\n'); (bin/'crontab').chmod(0o755)
    (still.folder/'tab').write_text('0 1 * * * backup\n')
    monkeypatch.setenv('PATH', f'{bin}:{os.environ["PATH"]}')
    for _ in range(2): assert still.shell('jobs', '--install').returncode == 0
    lines = (still.folder/'tab').read_text().splitlines()
    assert len(lines) == 2 and lines[0] == '0 1 * * * backup' and lines[1].startswith('@reboot ') and sys.executable in lines[1]

def test_bad_input_of_the_commands(still):
    for args, why in (((), 'Missing argument'), (('--time', '4', 'x.py'), 'no unit'), (('--gpus', '9', 'true'), 'will never be free'), (('-p', 'lr=1', 'true'), 'for a notebook'), (('a.ipynb', 'b'), 'takes no arguments'), (('--env', 'A', 'true'), 'has no value')):
        said = still.shell('submit', *args)
        assert said.returncode == 2 and why in said.stderr and 'Traceback' not in said.stderr, said
    assert still.shell('jobs', 'logs', '; rm -rf ~').returncode == 2 and not records.records()


# What a job is given, and what it leaves

def sees(): return os.environ.get('CUDA_VISIBLE_DEVICES')

def test_a_job_without_gpus_sees_none(home, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    hidden, said, one = submit(sees), submit(sees, env=dict(CUDA_VISIBLE_DEVICES='1')), submit(sees, gpus=1)
    command = submit([sys.executable, '-c', 'import os; print([os.environ["CUDA_VISIBLE_DEVICES"]])'])
    assert (hidden.result(300), said.result(300)) == ('', '1') and one.result(300) in ('GPU-a', 'GPU-b') and command.wait(300) and command.logs() == "['']\n"

def test_the_queue_has_what_a_job_does_not_see(monkeypatch):
    from types import SimpleNamespace
    from mlstack.resources import leases
    monkeypatch.setattr(leases, '_devices', lambda gpus=None: [SimpleNamespace(uuid='GPU-x', index=0, memory=1)])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert not leases.this_machine().gpus and leases.this_machine(whole=True).gpus == running._machine({}).gpus == {'GPU-x': 1}

def book_of(*sources): return json.dumps(dict(nbformat=4, nbformat_minor=4, metadata={}, cells=[dict(cell_type='code', source=o, metadata={}, outputs=[], execution_count=None) for o in sources]))

def test_a_notebook_gives_its_value_or_says_which_cell(home):
    (home.work/'good.ipynb').write_text(book_of('dict(loss=.5)'))
    (home.work/'bad.ipynb').write_text(book_of('1', "{}['missing']"))
    good, bad = submit('good.ipynb'), submit('bad.ipynb')
    assert good.result(300) == dict(loss=.5) and good.notebook.name == 'output.ipynb' and submit(train, 1).notebook is None
    with pytest.raises(JobError, match=r"KeyError: 'missing' \(cell 2 of 2\)") as e: bad.result(300)
    assert bad.error == f'failed: {bad.why}' == "failed: KeyError: 'missing' (cell 2 of 2)" and "{}['missing']" in e.value.remote and bad.notebook.exists()

def test_the_error_of_an_earlier_attempt_is_not_that_of_this_one(home):
    def twice():
        from mlstack.core import context
        if context().attempt: os._exit(3)
        raise KeyError('the first time')
    twice = submit(twice, retries=1, backoff=.01)
    with pytest.raises(JobError, match='exit code 3') as e: twice.result(300)
    assert not e.value.remote and e.value.__cause__ is None and len(twice.attempts) == 2
    from mlstack.resources.notebook_jobs import notebook_error
    made = pretend(kind='notebook').record
    (made/'output.ipynb').write_text(json.dumps(dict(metadata=dict(mlstack=dict(state='failed', error='KeyError: 1', cell=1, cells=2, attempt=0)))))
    assert notebook_error(made) == notebook_error(made, 0) == 'KeyError: 1 (cell 1 of 2)' and not notebook_error(made, 1)

@pytest.mark.parametrize('kind,status,told', [('command', None, [8, 9]), ('notebook', None, [7]), ('notebook', 0, [8, 9]), ('container', None, [7]), ('container', 0, []), ('function', None, [8, 9])])
def test_who_hears_that_it_has_to_end(kind, status, told, monkeypatch):
    from types import SimpleNamespace
    from mlstack.resources import keeping
    heard = []
    monkeypatch.setattr(keeping, 'below', lambda pid: [8, 9])
    monkeypatch.setattr(keeping, 'send', lambda number, pids: heard.extend(pids))
    k = SimpleNamespace(child=7, me=1, status=status, function=kind == 'function', box=kind == 'container' or None, told_alone=kind in ('notebook', 'container'), ears=-1)
    keeping._make_it(k)
    assert heard == told and k.made

def test_a_run_has_the_arguments_as_its_configuration(still):
    def fit(cfg, data='moons', api_key=None): return 1
    plain = submit(fit, dict(lr=.1, layers=[8, 8], fn=train), 'a.csv', api_key='abcdef123456', on='still')
    assert plain.record.spec['config'] == dict(cfg=dict(lr=.1, layers=[8, 8]), data='a.csv') and 'abcdef123456' not in (plain.record/'spec.json').read_text()
    each = submit(train, array=[.1, .2], epochs=3, on='still')
    assert [o.spec['config'] for o in each] == [dict(lr=.1, epochs=3), dict(lr=.2, epochs=3)]
    assert submit(fit, dict(lr=.1), on='still').spec['config'] == dict(lr=.1)

def test_the_configuration_is_in_the_run(home):
    done = submit(train, .5, epochs=2)
    assert done.result(300) == 1. and dict(done.run.config) == dict(lr=.5, epochs=2)

def test_elements_that_may_run_at_a_time(home):
    path = home.work/'turns'
    def turn(i):
        for word in 'be':
            with open(path, 'a') as f: f.write(word)
            time.sleep(.05)
    assert submit(turn, array=range(4), at_once=1).result(300) == [None]*4 and path.read_text() == 'be'*4
    from mlstack.resources.slurm import text
    made = submit(train, array=[1, 2, 3], at_once=2, dry_run=True)
    assert str(made) and '--array=0-3%2' in text(dict(id='0jc5', group='0jc5', count=4, at_once=2, name='x', kind='command', command=['true'], on='slurm', cwd='/', want=dict(gpus=0, gpu_mem=0, cpus=1, mem=0)))
    for kw, why in ((dict(at_once=2), 'without array'), (dict(array=[1], at_once=0), 'at_once=0')):
        with pytest.raises(MlstackError, match=why): submit(train, **kw, **({} if 'array' in kw else dict(lr=1)))

def test_a_container_with_a_path_is_kept_whole(still):
    made = submit(['true'], container=dict(image='python:3.12-slim', data=Path('data')), on='still')
    assert json.loads((made.record/'spec.json').read_text())['container'] == dict(image='python:3.12-slim', engine=None, network='host', shm=None, gpus='nvidia', data=[str(still.work/'data')])

def test_a_snapshot_travels(still, tmp_path):
    from mlstack.resources.containers import mounts
    from mlstack.resources.clouds import task, Sky
    from mlstack.resources.kubernetes import _there
    from mlstack.resources.parcels import pack, unpack
    subprocess.run(['git', 'init', '-q'], check=True)
    (still.work/'sub').mkdir()
    for name, text in {'sub/train.py': 'old', 'run.sh': 'true', '.gitignore': 'data'}.items(): (still.work/name).write_text(text)
    (still.work/'run.sh').chmod(0o755)
    (still.work/'data').mkdir()
    (still.work/'link.py').symlink_to('sub/train.py')
    job = submit(['python3', str(still.work/'sub'/'train.py')], cwd='sub', code='snapshot', on='still', container='python:3.12').record
    (still.work/'sub'/'train.py').write_text('new')
    tree = job.spec['code']['path']
    for sent in (pack(job), pack(job, **_there(job.spec))):
        there = unpack(sent, tmp_path/str(len(sent)))
        assert (there/'code'/'sub'/'train.py').read_text() == (there/'code'/'link.py').read_text() == 'old' and not (there/'code'/'data').exists() and os.access(there/'code'/'run.sh', os.X_OK)
        assert there.spec['cwd'] == f'{there.path}/code/sub' and there.spec['command'] == ['python3', f'{there.path}/code/sub/train.py'] and there.spec['code']['path'] == f'{there.path}/code'
    assert (os.path.realpath(tree), True) in [(os.path.realpath(o), change) for o, change in mounts(job.spec, job.path)] and (str(still.work), True) in mounts(job.spec, job.path)
    assert task(job.spec, Sky())['workdir'] == tree

def test_what_cannot_be_brought_here_is_said_once(still, monkeypatch, capsys):
    def fetch(record): raise OSError('the cluster is away\nand more')
    still.executor.fetch = staticmethod(fetch)
    try:
        made = submit(['true'], on='still')
        assert made.logs() == made.logs() == ''
    finally: del still.executor.fetch
    assert capsys.readouterr().err == f'mlstack: what {made.name} has printed since cannot be brought here: OSError: the cluster is away\n'

def test_a_queue_that_cannot_be_looked_after_is_said(still, monkeypatch, capsys):
    from mlstack.cli import commands
    monkeypatch.setattr(running, 'ensure_runners', lambda: (_ for _ in ()).throw(OSError('no room')))
    commands._wake()
    assert capsys.readouterr().err == 'mlstack: what waits in the queue could not be looked after: OSError: no room\n'

def strays(path):
    "Starts processes that have left the session of their job, and waits."
    subprocess.Popen(['sh', '-c', '(setsid sleep 600 &) ; (setsid sh -c "setsid sleep 600 &" &); exec setsid sleep 600'])
    Path(path).touch()
    from mlstack.core import context
    while True: context().stop.check(); time.sleep(.02)

def sweeps(path):
    from mlstack.sweeps import Sweep
    def trial(config): strays(path)
    Sweep(dict(method='random', metric=dict(name='loss', goal='minimize'), parameters=dict(lr=dict(min=0., max=1.)))).run(trial, workers=2, count=4)

@pytest.mark.parametrize('kind', ['function', 'command', 'notebook', 'sweep'])
def test_nothing_is_left_of_a_job_that_was_cancelled(home, kind):
    mark, path = f'strays-{os.getpid()}-{kind}', home.work/f'up-{kind}'
    code = f'import sys; sys.path.insert(0, {str(house.root)!r})\nfrom tests.test_submitting import strays\nstrays({str(path)!r})'
    (home.work/'strays.ipynb').write_text(book_of(code))
    what, *args = dict(function=(strays, str(path)), command=([sys.executable, '-c', code],), notebook=('strays.ipynb',), sweep=(sweeps, str(path)))[kind]
    job = submit(what, *args, env=dict(HOUSE_TEST=mark))
    home.until(lambda: job.over() or path.exists() and len(house.carrying(mark)) >= 3)   # three that sleep
    assert job.state == 'running', job.logs()
    assert job.cancel('enough') and job.wait(300) and job.error == 'cancelled: enough'
    assert not house.carrying(mark)

def test_the_end_of_one_line_of_megabytes(still):
    made = pretend()
    made.record.log.write_bytes(b'first\n' + b'x'*(9 << 20))
    assert len(made.logs(tail=5)) < 5 << 20 and made.logs(tail=5).startswith('…x') and made.logs(tail=0) == '' and len(made._repr_html_()) < 20_000
    assert made.logs().startswith('first\nxxx') and len(made.logs()) == (9 << 20) + 6

def test_a_misspelt_script_is_known_before(home):
    for what, why in ((['python-of-nobody', 'x'], 'no program'), (['trian.py'], 'no trian.py'), (['./nothing.sh'], 'no program')):
        with pytest.raises(MlstackError, match=why): submit(what)
    (home.work/'later.sh').write_text('#!/bin/sh\necho made')
    first = submit(['chmod', '+x', 'later.sh'])
    assert submit(['./made-later.sh'], after=first).wait(300)   # what comes before may make it

def test_a_dry_run_needs_nothing_installed(still, monkeypatch, capsys):
    monkeypatch.setenv('PATH', '')
    assert 'resources:' in submit(train, 1, on='sky', dry_run=True) and 'SkyPilot is not installed' in capsys.readouterr().err
    shown = submit(train, 1, on='local', dry_run=True, name='a $(b)')
    assert shown.startswith('name       a $(b)\nruns       function') and 'others see' in shown
