"The keeper: what a job gets, how it ends, what it cannot escape, and that no kill loses its end."
import json, os, pickle, random, signal, subprocess, sys, textwrap, time
from pathlib import Path
import cloudpickle, psutil, pytest
from mlstack import workers
from mlstack.core import MlstackError, context, new_id
from mlstack.resources import keeping
from mlstack.resources.leases import Machine, Want, door, grant, holders, lease, place
from mlstack.resources.records import Record, begin, finish, held, new_record
from mlstack.tracking.facts import RunFacts, run_state
from tests import house
from tests.house import wait_for as until

def alive(pid):
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False

def gone(pids): return not any(map(alive, pids))

@pytest.fixture
def jobs(tmp_path, monkeypatch):
    "`jobs(what, …)` makes a job, a function or a command, and starts it; all are ended with the test."
    for o in ('STATE', 'LEASES', 'QUEUE'): monkeypatch.setenv(f'MLSTACK_{o}', str(tmp_path/o.lower()))
    monkeypatch.setenv('HOUSE_TEST', mark := f'keeping-{os.getpid()}-{tmp_path.name}')
    made, pids = [], []
    def make(what, *args, start=True, warm=True, fds=(), **spec):
        spec = dict(cwd=str(tmp_path), env=dict(os.environ), path=list(sys.path), runs=str(tmp_path/'runs'), project='tests', grace=2, on='test') | spec
        if callable(what): job = new_record(dict(kind='function') | spec, call_pkl=cloudpickle.dumps((what, args, {})))
        else: job = new_record(dict(kind='command', command=what) | spec)
        made.append(job)
        if start: go(job, fds=fds, warm=warm)
        return job
    def go(job, **kw): pids.append(keeping.start(job, **kw)); return pids[-1]
    make.go = go
    yield make
    for o in made:
        if o.final is None and held(o): keeping.cancel(o, 'the test is over')
    end = time.monotonic() + 20
    while not gone(pids) and time.monotonic() < end: time.sleep(.01)
    house.kill([o for o in psutil.process_iter() if o.pid in pids])
    house.kill(house.carrying(mark))

def final(job): return until(lambda: job.final)
def ended(job, n=1): return until(lambda: (o := job.attempts()[n - 1:n]) and o[0].get('state') not in ('running', None) and not held(job) and o[0])
def printed(job): return job.log.read_text()
def result(job): return pickle.loads((job/'result.pkl').read_bytes())
def run_of(job): return RunFacts(Path(job.spec['runs'], job.spec['project'], job.spec.get('run') or job.id))

def test_a_function_is_where_its_submitter_was(jobs, tmp_path):
    (tmp_path/'mine.py').write_text('answer = 42')
    factor = 2
    def work(x):
        import mine
        return x*factor + mine.answer, os.getcwd(), os.environ['SAID'], context().job, context().attempt, context().checkpoints, context().link, os.getsid(0) == os.getpid(), sys.argv
    job = jobs(work, 4, path=[str(tmp_path), *sys.path], env=dict(SAID='é \n $(x)', MLSTACK_RUN='another', MLSTACK_RANK='7'), argv=['train.py', '--lr'])
    assert final(job)['state'] == 'finished'
    kind, data = result(job)
    assert (kind, pickle.loads(data)) == ('done', (50, str(tmp_path), 'é \n $(x)', job.id, 0, str(job/'checkpoints'), None, True, ['train.py', '--lr']))
    said = job.attempts()[0]
    assert (said['state'], said['exitcode'], said['signal']) == ('finished', 0, '') and said['usage']['memory'] > 1 << 20 and said['usage']['seconds'] > 0
    assert sorted(os.listdir(job.path)) == ['alive', 'attempts', 'call.pkl', 'final.json', 'log', 'result.pkl', 'spec.json']

def test_an_exception_comes_back_whole(jobs):
    class Own(ValueError): pass
    def broken(): print('before'); raise Own('no such label: 11')
    job = jobs(broken)
    assert final(job)['state'] == 'failed' and job.final['reason'] == 'Own: no such label: 11'
    kind, value = result(job)
    assert kind == 'failed' and 'in broken' in value['text'] and '/keeping.py' not in value['text'] and pickle.loads(value['exc']).args == ('no such label: 11',)
    assert printed(job).startswith('before\nTraceback') and printed(job).endswith('mlstack: failed: Own: no such label: 11\n')

def exits(code): sys.exit(code)
def leaves(code): os._exit(code)
def kills(number): os.kill(os.getpid(), number)
def unsendable(): return (i for i in ())

@pytest.mark.parametrize('fn, args, state, code, reason', [(exits, (0,), 'finished', 0, ''), (exits, (7,), 'failed', 7, 'it called sys.exit(7)'), (exits, ('no data',), 'failed', 1, "it called sys.exit('no data')"),
    (leaves, (0,), 'failed', 1, 'it ended itself with exit code 0'), (leaves, (9,), 'failed', 9, 'it ended itself with exit code 9'), (kills, (signal.SIGKILL,), 'failed', 137, 'it was killed by SIGKILL'),
    (kills, (signal.SIGSEGV,), 'failed', 139, 'it was killed by SIGSEGV'), (unsendable, (), 'failed', 1, 'cannot be sent')])
def test_how_a_function_may_end(jobs, fn, args, state, code, reason):
    job = jobs(fn, *args)
    said = ended(job)
    assert (said['state'], said['exitcode']) == (state, code) and reason in said['reason'] and final(job)['state'] == state

def test_a_call_that_cannot_be_read_says_why(jobs):
    job = jobs(exits, 0, start=False)
    (job/'call.pkl').write_bytes(b'\x80\x04cno_such_module\nx\n.')
    jobs.go(job)
    assert final(job)['state'] == 'failed' and 'no_such_module' in job.final['reason']

def test_a_command_is_no_shell_and_its_end_is_the_jobs(jobs, tmp_path):
    nasty = ['; touch evil', '$(touch evil)', '`touch evil`', 'a\nb', '', '*', "'\""]
    job = jobs([sys.executable, '-c', 'import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(7)', *nasty])
    assert final(job)['state'] == 'failed' and job.final['reason'] == 'exit code 7' and job.attempts()[0]['exitcode'] == 7
    assert json.loads(printed(job).split('\n')[0]) == nasty and not (tmp_path/'evil').exists()

@pytest.mark.parametrize('command, spec, code, reason', [(['no-such-program', 'x'], {}, 127, "'no-such-program' cannot be run: No such file or directory"), (['/dev'], {}, 126, "'/dev' cannot be run: Permission denied"),
    (['true'], dict(cwd='/no/such/folder'), 127, "'/no/such/folder' cannot be its folder: No such file or directory"), (['sh', '-c', 'kill -9 $$'], {}, 137, 'it was killed by SIGKILL'), (['sh', '-c', 'kill -TERM $$'], {}, 143, 'it was killed by SIGTERM')])
def test_how_a_command_may_fail(jobs, command, spec, code, reason):
    said = ended(job := jobs(command, **spec))
    assert (said['state'], said['exitcode'], said['reason']) == ('failed', code, reason) and final(job)

def test_a_command_knows_who_it_is_and_gets_the_secrets(jobs, tmp_path):
    job = jobs([sys.executable, '-c', 'from mlstack.core import context; import os, signal; c = context(); print(c.job, c.run, c.attempt, c.checkpoints, c.project, os.environ["KEY"], os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN)'],
        start=False, run='r1', env=house.environment(KEY='wrong'))
    (job/'secrets.json').write_text('{"KEY": "s3cret"}')
    jobs.go(job)
    assert final(job)['state'] == 'finished' and printed(job) == f'{job.id} r1 0 {job/"checkpoints"} tests s3cret True True\n'  # python ignores SIGPIPE itself
    assert not (job/'secrets.json').exists() and not [o for o in job.path.rglob('*') if o.is_file() and o.name != 'log' and b's3cret' in o.read_bytes()]

def test_lines_are_in_the_log_at_once_from_both_streams(jobs, tmp_path):
    def chatty():
        print('out'); print('err', file=sys.stderr); os.write(1, b'raw\n'); subprocess.run(['echo', 'child'])
        while not os.path.exists('go'): time.sleep(.01)
    job = jobs(chatty)
    until(lambda: job.log.exists() and printed(job) == 'out\nerr\nraw\nchild\n')
    command = jobs([sys.executable, '-c', 'import os, time\nprint("line")\nwhile not os.path.exists("go"): time.sleep(.01)'])
    until(lambda: command.log.exists() and printed(command) == 'line\n')
    (tmp_path/'go').touch()
    assert final(job)['state'] == final(command)['state'] == 'finished'
    assert oct(os.stat(job.log).st_mode & 0o777) == '0o600'

def test_much_output(jobs):
    size = house.moments(64, 1024)
    job = jobs([sys.executable, '-c', f'import os\nfor _ in range({size}):\n    data = b"x"*(1 << 20)\n    while data: data = data[os.write(1, data):]'])
    assert final(job)['state'] == 'finished' and os.stat(job.log).st_size == size << 20
    job.log.unlink()

def test_workers_and_ranks_start_in_a_job(jobs):
    def ranks():
        from mlstack.ddp import launch
        from mlstack.workers import Pool
        with Pool(1) as pool: inside = pool.submit(lambda: context().job).result()
        return launch(lambda: context().rank, nprocs=2, output='none'), inside
    job = jobs(ranks)
    assert final(job)['state'] == 'finished', printed(job)
    assert pickle.loads(result(job)[1]) == ([0, 1], job.id)

def test_threads_are_those_that_were_asked_for(jobs):
    def threads():
        import torch
        return torch.get_num_threads(), os.environ['OMP_NUM_THREADS']
    env = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'}
    job = jobs(threads, threads=3, env=env)
    assert final(job)['state'] == 'finished' and pickle.loads(result(job)[1]) == (3, '3')


# Being asked to stop

STUBBORN = '''
import os, signal, sys, time
for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(n, signal.SIG_IGN)
print(os.getpid(), flush=True)
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    print(os.getpid(), flush=True)
while True: time.sleep(1)
'''

def pids(job, n): return until(lambda: job.log.exists() and (o := [int(o) for o in printed(job).split('\n')[:-1] if o.isdigit()]) and len(o) == n and o)

def test_a_job_that_ignores_signals_and_double_forks_is_ended(jobs):
    job = jobs([sys.executable, '-c', STUBBORN], grace=.3)
    inside = pids(job, 2)
    keeping.cancel(job, 'changed my mind')
    said = ended(job)
    assert (said['state'], said['reason']) == ('cancelled', 'changed my mind; killed, 0.3 s after it was asked') and gone(inside) and final(job)['state'] == 'cancelled'

def test_what_a_job_leaves_behind_is_ended(jobs):
    job = jobs(['sh', '-c', 'setsid sleep 600 & echo $!; setsid sh -c "trap : TERM; echo \\$\\$; while :; do sleep .1; done" & exit 0'])
    inside = pids(job, 2)
    assert final(job)['state'] == 'finished' and gone(inside)

def test_a_function_that_never_looks_is_stopped_where_it_is(jobs):
    def sleeps():
        try: print('up'); time.sleep(600)
        finally: print('tidied')
    job = jobs(sleeps, grace=60)
    until(lambda: job.log.exists() and 'up' in printed(job))
    keeping.cancel(job, 'by me')
    assert ended(job)['state'] == 'cancelled' and printed(job) == 'up\ntidied\nmlstack: cancelled: by me\n'

def test_a_function_that_looks_is_left_to_finish_its_step(jobs):
    def steps():
        import mlstack.tracking as track
        run = track.init()
        for step in range(100000):
            time.sleep(.02)
            run.log(step=step, loss=1.)
            print(step)
    job = jobs(steps, grace=60, name='steps')
    until(lambda: job.log.exists() and printed(job).count('\n') > 2)
    keeping.preempt(job, 'a job of anna needs the GPU')
    assert ended(job)['state'] == 'preempted' and job.attempts()[0]['reason'] == 'a job of anna needs the GPU'
    assert job.final is None and run_state(run_of(job)) == ('preempted', 'a job of anna needs the GPU')

@pytest.mark.parametrize('which', [0, 1])
def test_a_signal_to_either_process_preempts(jobs, which):
    job = jobs(['sleep', '600'], start=False)
    pid = jobs.go(job)
    until(lambda: job.attempts())
    os.kill((pid, job.attempts()[0]['pid'])[which], signal.SIGTERM)
    said = ended(job)
    assert (said['state'], said['reason'], said['signal']) == ('preempted', 'by a signal', 'SIGTERM') and job.final is None
    until(lambda: gone([pid]))

def test_a_cancel_says_more_than_the_signal_that_comes_with_it(jobs):
    job = jobs(['sleep', '600'])
    pid = until(lambda: job.attempts() and job.attempts()[0]['pid'])
    (job/'cancel').write_text('by scancel')
    os.kill(pid, signal.SIGTERM)
    assert ended(job)['state'] == 'cancelled' and final(job)['reason'] == 'by scancel'

def test_before_the_limit_only_who_listens_gets_usr1(jobs):
    code = '''
import os, signal, sys, time
def told(*_): print('told', open(os.environ['MLSTACK_STOP']).read(), flush=True); sys.exit(3)
signal.signal(signal.SIGUSR1, told)
while True: time.sleep(1)'''
    job = jobs(['sh', '-c', f'"{sys.executable}" -c "$1"; echo after $?', 'sh', code], time=2, warn=1.9, grace=60)
    said = ended(job)
    assert printed(job).startswith('told its time of 2 s is nearly over\nafter 3\n')  # the shell knows no USR1 and is still there
    assert said['state'] == 'finished' and final(job)['state'] == 'finished'

def test_a_time_limit(jobs):
    job = jobs(['sleep', '600'], time=.3)
    assert ended(job)['state'] == 'timeout' and final(job)['state'] == 'failed' and job.final['reason'] == 'its time of 0.3 s was over' and run_state(run_of(job)) == ('failed', 'its time of 0.3 s was over')
    def sleeps(): time.sleep(600)
    job = jobs(sleeps, time=.3, grace=60, requeue=True)
    assert ended(job)['state'] == 'timeout' and job.final is None and run_state(run_of(job))[0] == 'preempted'

def test_a_clock_that_is_set_changes_nothing(jobs):
    def with_another_clock(path):
        import time
        from mlstack.resources import keeping
        real, began = time.time, time.monotonic()
        time.time = lambda: real() + 86400*(time.monotonic() > began + .1)*(-1)**int(time.monotonic()*10)
        keeping._main(path)
    job = jobs(['sleep', '.5'], start=False, time=600)
    workers.detach(with_another_clock, str(job.path))
    assert final(job)['state'] == 'finished'

def test_cancelled_before_it_began(jobs):
    job = jobs(['touch', 'ran'], start=False)
    (job/'cancel').write_text('by me')
    jobs.go(job)
    assert final(job)['state'] == 'cancelled' and job.tried() == 0 and not Path(job.spec['cwd'], 'ran').exists()

def test_an_old_preemption_is_not_meant_for_the_next_attempt(jobs):
    job = jobs(['true'], start=False)
    (job/'preempt').write_text('old')
    jobs.go(job)
    assert final(job)['state'] == 'finished'


# Kills

def taken(of, cpus=0):
    "The open file of a lease of the GPU, as the runner of the queue takes one."
    want = Want(1, 0, cpus, 0)
    of.folder.mkdir(exist_ok=True)
    with lease(cpus=1, of=of, apply=False): pass  # makes the folder as it has to be
    with door(of.folder) as (there, _): return grant(of.folder, new_id(), want, place(want, of, there))

def test_a_killed_keeper_takes_its_job_along(jobs, tmp_path):
    of = Machine({'GPU-a': 80 << 30}, (0,), 1 << 30, tmp_path/'locks')
    fd = taken(of)
    job = jobs([sys.executable, '-c', STUBBORN], fds=[fd])
    inside = pids(job, 2)
    os.close(fd)
    assert [o['pid'] for o in holders(of.folder)] == [job.attempts()[0]['pid']]
    os.kill(job.attempts()[0]['pid'], signal.SIGKILL)
    until(lambda: gone(inside))
    with lease(gpus=1, of=of, apply=False, timeout=300): pass
    assert not held(job) and job.final is None
    assert keeping.settle(job)['state'] == 'lost' and job.attempts()[0]['reason'] == 'its keeper was killed' and keeping.settle(job)['state'] == 'lost'
    assert run_state(run_of(job))[0] == 'killed'

def test_without_its_guard_a_keeper_goes_on(jobs, tmp_path):
    job = jobs(['sh', '-c', 'while ! test -e go; do sleep .02; done'], start=False)
    guard = jobs.go(job)
    until(lambda: job.attempts())
    os.kill(guard, signal.SIGKILL)
    until(lambda: gone([guard]))
    (tmp_path/'go').touch()
    assert final(job)['state'] == 'finished'

def test_when_all_above_are_killed_at_once_the_survivor_keeps_its_devices(jobs, tmp_path):
    of = Machine({'GPU-a': 80 << 30}, (0,), 1 << 30, tmp_path/'locks')
    fd = taken(of)
    job = jobs(['sh', '-c', 'echo $CUDA_VISIBLE_DEVICES; setsid sleep 600 & echo $!; wait'], start=False)
    guard = jobs.go(job, fds=[fd])
    os.close(fd)
    survivor, = pids(job, 1)
    keeper = psutil.Process(job.attempts()[0]['pid'])
    children = keeper.children()
    for o in (guard, keeper.pid): os.kill(o, signal.SIGSTOP)
    for o in (guard, keeper.pid): os.kill(o, signal.SIGKILL)
    until(lambda: gone([guard, keeper.pid, *(o.pid for o in children)]))
    assert printed(job).startswith('GPU-a\n') and not gone([survivor]) and len(holders(of.folder)) == 1
    os.kill(survivor, signal.SIGKILL)
    with lease(gpus=1, of=of, apply=False, timeout=300): pass

def test_who_settles_a_lost_attempt_ends_what_it_has_left_first(jobs, tmp_path, monkeypatch):
    job = jobs(['sh', '-c', 'setsid sleep 600 & echo $!; setsid sleep 601 & echo $!; wait'], start=False)
    guard = jobs.go(job)
    left = pids(job, 2)
    keeper = psutil.Process(job.attempts()[0]['pid'])
    above = [guard, keeper.pid, *(o.pid for o in keeper.children())]
    another = subprocess.Popen(['sleep', '600'], env=os.environ | dict(MLSTACK_KEPT=f'{job.id}.11'))
    detached = subprocess.Popen([sys.executable, '-c', 'from mlstack.resources.keeping import name_process; import time; name_process(b"mlstack-runner"); print(1, flush=True); time.sleep(600)'], env=os.environ | dict(MLSTACK_KEPT=f'{job.id}.1', PYTHONPATH=str(house.root)), stdout=subprocess.PIPE)
    try:
        detached.stdout.readline()
        for o in above[:2]: os.kill(o, signal.SIGSTOP)
        for o in above[:2]: os.kill(o, signal.SIGKILL)
        until(lambda: gone(above))
        assert not any(gone([o]) for o in left) and job.final is None
        when, real = [], keeping.end
        monkeypatch.setattr(keeping, 'end', lambda *args, **kw: (when.append(gone(left)), real(*args, **kw)))
        assert keeping.settle(job)['state'] == 'lost' and when == [True] and another.poll() is None and detached.poll() is None
    finally:
        for o in (another, detached): o.kill(); o.wait()

def test_a_keeper_rings_the_runner_of_the_environment_of_its_job(jobs, monkeypatch):
    from mlstack.resources import running
    rung = []
    monkeypatch.setattr(running, 'wake', rung.append)
    keeping._wake(spec := dict(on='local', environment='another'))
    keeping._wake(dict(on='slurm'))
    assert rung == [running.key_of(spec)] != [running.key_of({})]

def test_while_the_server_loads_a_function_that_needs_no_torch_gets_a_keeper_of_its_own(jobs, monkeypatch):
    def plain(): return 4
    def heavy(really=False):
        if really: import torch  # noqa: F401
        return 4
    cold, ready, forked, real = [], [False], [], workers.detach
    monkeypatch.setattr(keeping, '_server_ready', lambda: ready[0])
    monkeypatch.setattr(workers, 'detach', lambda *args, **kw: (forked.append(1), real(*args, **kw))[1])
    program = keeping._program
    monkeypatch.setattr(keeping, '_program', lambda *args, **kw: (cold.append(1), program(*args, **kw))[1])
    first, second = jobs(plain), jobs(heavy)
    assert (cold, forked) == ([1], [1])
    ready[0] = True
    third = jobs(plain)
    assert (cold, forked) == ([1], [1, 1])
    assert [final(o)['state'] for o in (first, second, third)] == ['finished']*3 and pickle.loads(result(first)[1]) == 4

def test_the_server_says_when_it_is_ready(monkeypatch):
    monkeypatch.setattr(keeping, '_asked_for', None)
    until(keeping._server_ready)
    asked = keeping._asked_for
    assert keeping._server_ready() and asked is keeping._asked_for and asked[0] is workers._mine and asked[1].recv(4)
    asked[1].close()

def test_a_keeper_is_interrupted_without_a_word_on_the_disk(jobs):
    job = jobs(['sleep', '600'])
    until(lambda: job.attempts())
    assert keeping.interrupt(job) and final(job)['state'] == 'cancelled' and not (job/'cancel').exists() and not keeping.interrupt(job)

def test_a_lease_ends_with_its_job(jobs, tmp_path):
    core = min(os.sched_getaffinity(0))
    of = Machine({'GPU-a': 80 << 30}, (core,), 1 << 30, tmp_path/'locks')
    fd = taken(of, cpus=1)
    def sees(): return os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'], sorted(os.sched_getaffinity(0))
    job = jobs(sees, fds=[fd])
    os.close(fd)
    assert final(job)['state'] == 'finished' and pickle.loads(result(job)[1]) == ('GPU-a', '1', [core]) and not holders(of.folder) and os.listdir(of.folder) == ['door']
    assert job.attempts()[0]['leased'] == dict(gpus=['GPU-a'], cores=[core], memory=0)

def test_two_keepers_one_attempt(jobs, tmp_path):
    job = jobs(['sh', '-c', 'echo x >> ran; sleep .3'], start=False)
    for warm in (True, True, False, False): jobs.go(job, warm=warm)
    assert final(job)['state'] == 'finished'
    jobs.go(job)
    until(lambda: not held(job))
    assert (tmp_path/'ran').read_text() == 'x\n' and job.tried() == 1

def test_a_lost_attempt_is_not_begun_again_unless_asked(jobs, tmp_path):
    for requeue in (False, True):
        job = jobs(['sh', '-c', f'echo x >> ran{requeue}'], start=False, requeue=requeue)
        begin(job, 1, process=dict(boot='another'))
        jobs.go(job)
        assert final(job)['state'] == ('finished' if requeue else 'lost') and job.attempts()[0]['reason'] == 'the machine was restarted'
        assert (tmp_path/f'ran{requeue}').exists() == requeue and job.tried() == 1 + requeue

def test_retries(jobs):
    job = jobs(['sh', '-c', 'test $MLSTACK_ATTEMPT || exit 3'], retries=1)
    assert ended(job)['state'] == 'failed' and job.final is None and run_state(run_of(job)) == ('failed', 'exit code 3')
    jobs.go(job)
    assert final(job)['state'] == 'finished' and 'mlstack: attempt 2\n' in printed(job) and run_state(run_of(job)) == ('finished', '')

KILLED = """
import os, random, subprocess, time
fd = os.open('began', os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(fd, f"{os.environ['MLSTACK_JOB']}.{os.environ.get('MLSTACK_ATTEMPT', 0)}\\n".encode())
subprocess.Popen(['sleep', '600'], start_new_session=True)
os.fork()
time.sleep(random.random()*.3)
"""

def family(job):
    "The processes around a job: its keeper, the one above it, and what it has started."
    try:
        keeper = psutil.Process(job.attempts()[-1]['pid'])
        found = [keeper, *keeper.children(recursive=True)] + [o for o in keeper.parents()[:1] if o.name() == 'mlstack-keeper']
        return found if keeper.name() == 'mlstack-keeper' else []
    except (psutil.Error, IndexError): return []

def test_random_kills_lose_no_end_and_begin_nothing_twice(jobs, tmp_path):
    rng, kills, todo = random.Random(0), house.moments(12, 100), []
    def one(): todo.append(jobs([sys.executable, '-c', KILLED], start=False, requeue=True, retries=99, backoff=0)); return todo[-1]
    live = [one() for _ in range(4)]
    while live:
        for job in list(live):
            if held(job): continue
            if keeping.settle(job): live.remove(job); live += [one()] if kills else []
            else: jobs.go(job, warm=rng.random() < .8)  # to start one that starts already must change nothing
        time.sleep(rng.random()*.05)
        if live and kills and (found := family(rng.choice(live))):
            try: rng.choice(found).kill(); kills -= 1
            except psutil.Error: pass
    began = (tmp_path/'began').read_text().split()
    assert not kills and len(began) == len(set(began))  # no attempt began twice
    states = [o['state'] for job in todo for o in job.attempts()]
    assert 'finished' in states and {'finished'} < set(states) <= {'finished', 'lost', 'failed'}, states # which of the two a kill makes of a job, its moment decides
    for job in todo:
        tries = job.attempts()
        assert [o['n'] for o in tries] == list(range(1, len(tries) + 1)) and all('ended' in o for o in tries) and [o['state'] for o in tries].count('finished') == 1 and job.final['state'] == 'finished'


# Its Run

def test_every_job_is_a_run(jobs):
    job = jobs(['sh', '-c', 'exit 3'], name='evaluate', run='r1', params=dict(lr=.1), parent='p1')
    final(job)
    facts = run_of(job)
    assert {k: facts.meta[k] for k in ('id', 'name', 'job_type', 'job', 'parent', 'project')} == dict(id='r1', name='evaluate', job_type='command', job=job.id, parent='p1', project='tests')
    assert facts.config == dict(lr=.1) and run_state(facts) == ('failed', 'exit code 3')
    until(lambda: (facts.path/'code.json').exists() and (facts.path/'env.json').exists())

def test_a_function_joins_its_run_and_owns_it(jobs):
    def logs(n):
        import mlstack.tracking as track
        run = track.init(config=dict(depth=n))
        run.log(loss=.5)
        return run.id, run.name, dict(run.config), run.resumed, run._owner, run.starting_step
    job = jobs(logs, 3, name='train', config=dict(lr=.1))
    assert final(job)['state'] == 'finished', printed(job)
    assert pickle.loads(result(job)[1]) == (job.id, 'train', dict(lr=.1, depth=3), False, True, 0)
    facts = run_of(job)
    assert run_state(facts) == ('finished', '') and facts.last['loss'] == .5 and len(facts.writers) == 2

def test_what_the_job_says_of_its_run_is_the_last_word(jobs):
    def dies():
        import mlstack.tracking as track
        track.init().log(loss=.5)
        os.kill(os.getpid(), signal.SIGKILL)
    job = jobs(dies, retries=1)
    assert ended(job)['state'] == 'failed' and run_state(run_of(job)) == ('failed', 'it was killed by SIGKILL')
    def goes_on():
        import mlstack.tracking as track
        run = track.init()
        run.log(loss=.4)
        return run.resumed, run._owner, run.starting_step, context().attempt
    (job/'call.pkl').write_bytes(cloudpickle.dumps((goes_on, (), {})))
    jobs.go(job)
    assert final(job)['state'] == 'finished' and pickle.loads(result(job)[1]) == (True, True, 1, 1) and run_state(run_of(job)) == ('finished', '')

def test_a_run_that_cannot_be_written_stops_nothing(jobs, tmp_path):
    (tmp_path/'file').touch()
    job = jobs(['echo', 'fine'], runs=str(tmp_path/'file'))
    assert final(job)['state'] == 'finished' and printed(job).startswith('fine\nmlstack: its run could not be recorded')

def training(folder, pause):
    import torch
    from mlstack.trainer import Callback, Data, Trainer
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(.2), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    class Look(Callback):
        def after_step(self, t):
            Path(folder, f'step-{t.step}').touch()
            if t.step == 10 and pause:
                while not context().stop.reason: time.sleep(.005)
    t = Trainer(model, Data.from_tensors((x, x.sum(1, keepdim=True)), batch_size=4), loss=torch.nn.functional.mse_loss, lr=1e-2, callbacks=[Look()], seed=3)
    t.fit(epochs=3)
    return [{k: v for k, v in row.items() if k != 'seconds'} for row in t.history.rows], [p.detach().numpy().tobytes() for p in model.parameters()]

def test_a_preempted_training_goes_on_bit_for_bit(jobs, tmp_path):
    def alone(): return training(str(tmp_path), False)
    whole = jobs(alone)
    def broken(): return training(str(tmp_path), context().attempt == 0)
    job = jobs(broken, grace=60)
    until(lambda: (tmp_path/'step-10').exists() and job.attempts())
    assert final(whole)['state'] == 'finished', printed(whole)
    if not os.path.exists(tmp_path/'step-10'): raise AssertionError(printed(job))
    keeping.preempt(job, 'something more urgent')
    assert ended(job)['state'] == 'preempted' and job.final is None and os.listdir(job/'checkpoints'), printed(job)
    for o in tmp_path.glob('step-*'): o.unlink()
    jobs.go(job)
    assert final(job)['state'] == 'finished', printed(job)
    assert not (tmp_path/'step-9').exists() and (tmp_path/'step-48').exists()  # it did not begin anew
    assert pickle.loads(result(job)[1]) == pickle.loads(result(whole)[1])


# Where it runs

def test_keep_waits_and_ends_with_its_caller(jobs):
    job = jobs(['sh', '-c', 'exit 3'], start=False, retries=1, backoff=2)
    assert keeping.keep(job) == ('again', 2, 'exit code 3') and keeping.keep(job) == ('failed', 'exit code 3')
    job = jobs(['sleep', '600'], start=False)
    p = subprocess.Popen([sys.executable, '-c', f'from mlstack.resources.keeping import keep; from mlstack.resources.records import Record; keep(Record({str(job.path)!r}))'], env=house.environment())
    until(lambda: job.attempts())
    with pytest.raises(MlstackError, match='somebody runs this job'): keeping.keep(job)
    p.kill(); p.wait()
    assert ended(job)['state'] == 'preempted'

def test_the_program_has_the_jobs_exit_code(jobs):
    def code(job): return house.run(sys.executable, '-m', 'mlstack.resources.keeping', job.path).returncode
    assert [code(jobs(['sh', '-c', f'exit {o}'], start=False)) for o in (0, 7)] == [0, 7]
    assert code(jobs(['false'], start=False, retries=1)) == 75

def test_a_job_that_a_job_starts_outlives_it(jobs, tmp_path):
    inner = jobs(['sh', '-c', 'echo $$; while ! test -e go; do sleep .02; done'], start=False)
    def outer(path):
        from mlstack.resources import keeping
        from mlstack.resources.records import Record
        keeping.start(Record(path), warm=False)
        while not Record(path).attempts(): time.sleep(.01)
    job = jobs(outer, str(inner.path))
    assert final(job)['state'] == 'finished'
    inside = pids(inner, 1)
    assert not gone(inside) and held(inner)
    (tmp_path/'go').touch()
    assert final(inner)['state'] == 'finished'

def test_it_outlives_who_started_it(jobs, tmp_path):
    job = jobs(['sh', '-c', 'while ! test -e go; do sleep .02; done'], start=False)
    code = f'from mlstack.resources.keeping import start; from mlstack.resources.records import Record; start(Record({str(job.path)!r}))'
    p = subprocess.run([sys.executable, '-c', f'{code}; import os; os.kill(os.getpid(), 9)'], env=os.environ|dict(PYTHONPATH=str(house.root)))
    assert p.returncode == -9
    assert until(lambda: job.attempts()) and held(job)
    (tmp_path/'go').touch()
    assert final(job)['state'] == 'finished'

@pytest.mark.probe('small_disk')
def test_the_last_word_is_said_on_a_full_disk(tmp_path):
    code = textwrap.dedent('''
        import os, sys, time
        from mlstack.resources import keeping
        from mlstack.resources.records import new_record
        here = os.environ['MLSTACK_STATE']
        job = new_record(dict(kind='command', command=['sh', '-c', 'dd if=/dev/zero of=fill bs=4096 2>/dev/null; echo more; exit 3'], cwd=here, env=dict(os.environ), runs=here + '/runs', project='p', on='test'))
        print(keeping.keep(job), os.statvfs(here).f_bavail*os.statvfs(here).f_frsize < 1 << 17)
        from mlstack.tracking.facts import RunFacts, run_state
        print(run_state(RunFacts(f'{here}/runs/p/{job.id}')))
    ''')
    r = house.on_small_disk(code, tmp_path, size='512k', MLSTACK_STATE=tmp_path)
    assert r.stdout == "('failed', 'exit code 3') True\n('failed', 'exit code 3')\n", r.stdout

def no_memory_group():
    where = Path('/sys/fs/cgroup/memory/mlstack-probe')
    try: where.mkdir(); where.rmdir()
    except OSError as e: return f'no memory control group can be made: {e.strerror}'

house.probes |= dict(memory_group=no_memory_group)

@pytest.mark.probe('memory_group')
def test_a_kill_for_memory_is_named(jobs):
    group = Path(f'/sys/fs/cgroup/memory/mlstack-{os.getpid()}')
    group.mkdir()
    try:
        (group/'memory.limit_in_bytes').write_text(str(64 << 20))
        job = jobs([sys.executable, '-c', f'import os; open({str(group/"cgroup.procs")!r}, "w").write(str(os.getpid())); x = bytearray(1 << 30); x[::4096] = b"1"*len(x[::4096])'])
        assert final(job)['reason'] == 'it was killed by SIGKILL: memory ran out'
    finally: until(lambda: group.rmdir() is None)

def test_a_finished_job_is_not_run_again(jobs, tmp_path):
    job = jobs(['touch', 'ran'], start=False)
    finish(job, 'cancelled', 'no')
    assert house.run(sys.executable, '-m', 'mlstack.resources.keeping', job.path).returncode == 1 and not (tmp_path/'ran').exists() and Record(job.path).tried() == 0

@pytest.mark.parametrize('what', [['true'], lambda: 1], ids=['command', 'function'])
def test_a_folder_that_has_vanished_is_no_other_folder(jobs, tmp_path, what):
    job = jobs(what, cwd=str(tmp_path/'gone'))
    assert final(job)['state'] == 'failed' and job.final['reason'] == f"'{tmp_path/'gone'}' cannot be its folder: No such file or directory" and ended(job)['exitcode'] == 127

def test_a_container_that_cannot_be_any_more_is_a_failure(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('MLSTACK_CONTAINERS', raising=False)
    job = jobs(['true'], container=dict(image='moons:1'), retries=0, warm=False)
    assert final(job)['state'] == 'failed' and 'installed here' in job.final['reason'] and len(job.attempts()) == 1

def test_what_a_function_says_as_it_ends_is_heard(monkeypatch):
    "It says so and ends between two looks of its keeper, who sees both at once."
    from types import SimpleNamespace
    (ears, mouth), (wake, _) = os.pipe(), os.pipe()
    for o in (ears, wake): os.set_blocking(o, False)
    def reap(k):
        os.write(mouth, b'{"state": "done", "code": 0}\n')
        k.status = 0
    monkeypatch.setattr(keeping, '_reap', reap)
    monkeypatch.setattr(keeping, 'below', lambda pid: [])
    k = SimpleNamespace(mouth=ears, text=b'', said={}, status=None, asked=None, parting=False, me=0, kill_at=keeping.never, hard_at=keeping.never)
    keeping._watch(k, wake)
    assert k.said['state'] == 'done'
