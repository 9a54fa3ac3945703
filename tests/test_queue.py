"The queue of one machine: runners that are killed anywhere, submits that arrive as they leave, users, environments, reboots, and what lies on the board that should not."
import json, os, random, shutil, signal, stat, subprocess, sys, tempfile, time
from pathlib import Path
import cloudpickle
import pytest
from mlstack.core import MlstackError, new_id
from mlstack.resources import board as board_room, plans, runners, running
from mlstack.resources.board import Entry, public_facts
from mlstack.resources.leases import Machine, holders, lease
from mlstack.resources.records import begin, environment_key, finish, new_record, records
from tests import house
from tests.bench.measure.queueing import kill_one, processes, runner_of, storm

@pytest.fixture
def queue(monkeypatch):
    "A queue of its own on a made-up machine of four cores and two GPUs; no process outlives the test."
    tmp_path = Path(tempfile.mkdtemp(prefix='mlstack-queue-')) # other users cannot reach what pytest makes
    tmp_path.chmod(0o711)
    for k, v in dict(STATE='state', QUEUE='queue', LEASES='locks').items(): monkeypatch.setenv(f'MLSTACK_{k}', str(tmp_path/v))
    monkeypatch.setenv('MLSTACK_RUNNER_IDLE', '60')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    yield Queue(tmp_path)
    for _ in range(100):
        if not (left := processes(tmp_path)): break
        for p in left: kill_one(p)
        time.sleep(.02)
    shutil.rmtree(tmp_path)

class Queue:
    gpus = {'GPU-a': 80 << 30, 'GPU-b': 80 << 30}
    def __init__(self, folder):
        self.folder, self.board = folder, folder/'queue'
        running.made_folder(self.board)
        self.rules()
    def rules(self, cores=(0, 1, 2, 3), **more):
        (self.board/'policy.json').write_text(json.dumps(dict(machine=dict(gpus=self.gpus, cores=list(cores), memory=8 << 30)) | more))
    def spec(self, code='true', **kw):
        command = ['sh', '-c', code]
        return dict(name='test', kind='command', on='local', command=command, want=dict(cpus=1), cwd=str(self.folder), runs=str(self.folder/'runs'), project='test', python=sys.executable, path=[o for o in sys.path if o],
            environment=environment_key()) | kw
    def submit(self, code='true', **kw):
        job = new_record(self.spec(code, **kw), sync=False)
        running.start([job])
        return job
    def says(self, job, line):
        "A command that writes a line when it runs."
        return f'echo {line} >> {self.folder}/said'
    @property
    def said(self): return (self.folder/'said').read_text().split() if (self.folder/'said').exists() else []
    def until(self, what, seconds=300):
        limit = time.monotonic() + seconds
        while not (got := what()):
            assert time.monotonic() < limit, f'{[running.look(o) for o in records()]}\n{self.log()}'
            time.sleep(.01)
        return got
    def over(self, *jobs):
        self.until(lambda: all(o.final for o in jobs))
        return [o.final['state'] for o in jobs]
    def runs(self, job): return self.until(lambda: job.attempts() and job.attempts()[-1]['state'] == 'running')
    def kill_runner(self):
        kill_one(self.until(lambda: runner_of(self.folder)))
        self.until(lambda: runner_of(self.folder) is None)
    def log(self): return '\n'.join(o.read_text() for o in (self.folder/'state'/'runners').glob('*/log'))
    def empty(self): self.until(lambda: not [o for o in os.listdir(self.board) if o.count('.') == 3])

def test_a_command_and_a_function(queue):
    job = queue.submit('echo hello')
    call = new_record(queue.spec(kind='function'), call_pkl=cloudpickle.dumps((lambda x: x + 1, (41,), {})), sync=False)
    running.start([call])
    assert queue.over(job, call) == ['finished', 'finished']
    assert 'hello' in job.log.read_text() and call.attempts()[0]['leased']['cores']
    queue.empty()
    assert len(queue.log().split(' starts\n')) == 2

def test_failures_are_tried_again_with_back_off(queue):
    job = queue.submit(queue.says(0, 'x') + '; exit 3', retries=2, backoff=.05)
    assert queue.over(job) == ['failed'] and job.final['reason'] == 'exit code 3'
    tries = job.attempts()
    assert queue.said == ['x']*3 and all(b['began'] >= a['ended'] + w for a, b, w in zip(tries, tries[1:], (.05, .1)))

def test_priority_then_who_came_first(queue):
    queue.rules(cores=[0])
    with lease(cpus=1, of=Machine({}, (0,), 1 << 30, queue.folder/'locks'), apply=False):
        jobs = [queue.submit(queue.says(0, f'{p}{i}'), priority=p) for i in range(2) for p in (0, 5)]
        queue.until(lambda: all(running.look(o)['why'] for o in jobs))
        assert {running.look(o)['state'] for o in jobs} == {'waiting'}
    queue.over(*jobs)
    assert queue.said == ['50', '51', '00', '01']

def test_after_others(queue):
    queue.rules(cores=[0])
    first = queue.submit(f'while [ ! -e {queue.folder}/go ]; do sleep .01; done; ' + queue.says(0, 'first'))
    second = queue.submit(queue.says(0, 'second'), after=[first.id])
    third = queue.submit(queue.says(0, 'third'), after=[second.id], priority=9)
    assert running.look(third) == dict(state='waiting', why=f'waits for job {second.id}')
    (queue.folder/'go').touch()
    assert queue.over(first, second, third) == ['finished']*3 and queue.said == ['first', 'second', 'third']

def test_after_one_that_failed(queue):
    bad = queue.submit('exit 1')
    job = queue.submit('true', after=[bad.id])
    last = queue.submit('true', after=[job.id])
    assert queue.over(bad, job, last) == ['failed', 'cancelled', 'cancelled']
    assert job.final['reason'] == f'job {bad.id}, after which it was to run, has failed' and not job.tried()
    with pytest.raises(MlstackError, match='there is no job nothing'): running.check(queue.spec(after=['nothing']))

def test_so_many_of_an_array_at_a_time(queue):
    jobs = [new_record(queue.spec(f'while [ ! -e {queue.folder}/go ]; do sleep .01; done', group='g', index=i, count=4, at_once=2), sync=False) for i in range(4)]
    running.start(jobs)
    for o in jobs[:2]: queue.runs(o)
    queue.over(queue.submit('true')) # who is not of the array goes on
    assert [running.look(o) for o in jobs[2:]] == [dict(state='waiting', why='2 of its array run, and no more may at a time', expect=None)]*2
    (queue.folder/'go').touch()
    assert queue.over(*jobs) == ['finished']*4

def test_cancel(queue):
    job = queue.submit('sleep 600', want=dict(cpus=4))
    waits, late = queue.submit('true'), queue.submit('true', not_before=time.time() + 1e6)
    queue.runs(job)
    assert running.look(job)['state'] == 'running' and '0 of 4 cores are free' in running.look(waits)['why'] and 'not before' in running.look(late)['why']
    for o in (waits, late): running.cancel(o, 'not needed')
    assert [o.final['state'] for o in (waits, late)] == ['cancelled']*2
    running.cancel(job, 'enough')
    assert queue.over(job) == ['cancelled'] and job.final['reason'] == 'enough' and not waits.tried()
    queue.empty()

def test_hold_and_release(queue):
    blocker = queue.submit('sleep 600', want=dict(cpus=4))
    job = queue.submit('true')
    queue.runs(blocker)
    assert running.hold_job(job) and not running.hold_job(job) and running.look(job) == dict(state='waiting', why='it is held')
    running.cancel(blocker, '')
    queue.over(blocker)
    queue.over(queue.submit('true'))
    assert not job.final
    assert running.release_job(job) and queue.over(job) == ['finished']

def test_a_job_of_higher_priority_takes_the_place(queue):
    low = queue.submit(f'trap "exit 1" TERM; {queue.says(0, "low")}; [ -e {queue.folder}/go ] && exit; while :; do sleep .01; done', want=dict(gpus=2), requeue=True)
    other = queue.submit('sleep .1', want=dict(gpus=1), priority=-1)
    queue.runs(low)
    high = queue.submit(f'touch {queue.folder}/go; ' + queue.says(0, 'high'), want=dict(gpus=1), priority=1)
    assert queue.over(high, low, other) == ['finished']*3
    assert queue.said == ['low', 'high', 'low'] and [o['state'] for o in low.attempts()] == ['preempted', 'finished']
    assert 'a job of higher priority' in low.attempts()[0]['reason']

def test_without_requeue_nobody_is_preempted(queue):
    low = queue.submit(f'while [ ! -e {queue.folder}/go ]; do sleep .01; done; ' + queue.says(0, 'low'), want=dict(gpus=2))
    queue.runs(low)
    high = queue.submit(queue.says(0, 'high'), want=dict(gpus=1), priority=9)
    queue.over(queue.submit('true'))
    (queue.folder/'go').touch()
    queue.over(low, high)
    assert queue.said == ['low', 'high']

def test_what_is_short_is_filled_in(queue):
    first = queue.submit(f'while [ ! -e {queue.folder}/go ]; do sleep .01; done', want=dict(cpus=3), time=3600)
    queue.runs(first)
    big = queue.submit(queue.says(0, 'big'), want=dict(cpus=4), time=60)
    long, short = queue.submit(queue.says(0, 'long'), time=7200), queue.submit(queue.says(0, 'short'), time=60)
    queue.over(short)
    assert 'at the latest' in running.look(big)['why'] and 'would start later' in running.look(long)['why']
    (queue.folder/'go').touch()
    queue.over(big, long)
    assert queue.said == ['short', 'big', 'long']

def test_quotas_of_the_house(queue):
    queue.rules(quota=dict(cpus=2))
    jobs = [queue.submit(f'while [ ! -e {queue.folder}/go ]; do sleep .01; done') for _ in range(3)]
    for o in jobs[:2]: queue.runs(o)
    assert running.look(jobs[2])['why'] == 'your quota of 2 cores is used'
    (queue.folder/'go').touch()
    assert queue.over(*jobs) == ['finished']*3
    (queue.board/'policy.json').write_text('{"half')
    with pytest.raises(MlstackError, match='the rules of the queue cannot be read'): running.check(queue.spec())

def test_rules_of_somebody_else_do_not_count(queue):
    queue.rules(quota=dict(cpus=0))
    os.chown(queue.board/'policy.json', 4321, 4321)
    assert running.settings_of(queue.board) == (plans.Policy(), {})
    os.chown(queue.board, 4321, 4321)
    assert running.settings_of(queue.board)[0].quota.cpus == 0

def test_more_than_there_is(queue):
    with pytest.raises(MlstackError, match='3 GPUs will never be free: this machine has 2 GPUs of 80 GiB, 4 cores'): running.check(queue.spec(want=dict(gpus=3)))
    with pytest.raises(MlstackError, match='This is one machine'): running.check(queue.spec(nodes=2))

def test_who_stands_in_line_for_a_lease_comes_first(queue):
    of = Machine(queue.gpus, (0, 1, 2, 3), 8 << 30, queue.folder/'locks')
    first = queue.submit(f'while [ ! -e {queue.folder}/go ]; do sleep .01; done', want=dict(cpus=4))
    queue.runs(first)
    code = f'''import sys
from pathlib import Path
from mlstack.resources.leases import Machine, lease
with lease(cpus=4, of=Machine({of.gpus!r}, {of.cores!r}, {of.memory}, Path({str(of.folder)!r})), tell=lambda why: print('waits', flush=True), apply=False):
    print('lease', file=open({str(queue.folder/"said")!r}, 'a'), flush=True)
    sys.stdin.read()'''
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=house.environment())
    assert p.stdout.readline() == 'waits\n'
    job = queue.submit(queue.says(0, 'job'), want=dict(cpus=4))
    (queue.folder/'go').touch()
    queue.until(lambda: 'lease' in queue.said)
    assert queue.said == ['lease'] and not job.tried()
    rows = {r['state']: r for r in running.queue()}
    assert rows['leased']['what'] == '4 cores' and rows['waiting']['id'] == job.id
    p.communicate('')
    assert queue.over(job) == ['finished'] and queue.said == ['lease', 'job']

# Runners

def test_one_runner_however_many_submit_at_once(queue):
    code = '''import json, sys
from mlstack.resources import running
from mlstack.resources.records import new_record
spec = json.loads(sys.argv[1])
for i in range(5): running.start([new_record(spec, sync=False)])'''
    spec = json.dumps(queue.spec(queue.says(0, 'x')))
    ps = [subprocess.Popen([sys.executable, '-c', code, spec], env=os.environ | house.environment() | {k: v for k, v in os.environ.items() if k.startswith('MLSTACK_')}) for _ in range(4)]
    assert [p.wait() for p in ps] == [0]*4
    assert set(queue.over(*records())) == {'finished'} and queue.said == ['x']*20
    assert queue.log().count(' starts') == 1

def test_a_submit_while_the_runner_leaves(queue, monkeypatch):
    "Nobody but submit looks after the runner here: a wake-up that got lost would leave a job waiting for ever."
    monkeypatch.setenv('MLSTACK_RUNNER_IDLE', '0.001')
    rng = random.Random(0)
    for _ in range(house.moments(25, 200)):
        job = queue.submit()
        queue.until(lambda job=job: job.final)
        time.sleep(rng.random()*.03)
    assert queue.log().count(' starts') > 1

faulty = '''
import fcntl, os, signal, sys
step, me, n = int(sys.argv[2]), os.getpid(), 0
from mlstack.resources.runners import run_queue
def counted(fn):
    def call(*a, **kw):
        global n
        n += os.getpid()==me
        if n==step: os.kill(me, signal.SIGKILL)
        return fn(*a, **kw)
    return call
for o in 'rename replace link unlink open write pwrite close fork mkfifo fsync waitpid'.split(): setattr(os, o, counted(getattr(os, o)))
fcntl.flock = counted(fcntl.flock)
run_queue(sys.argv[1])
'''

def test_a_runner_that_is_killed_at_any_step(queue, monkeypatch):
    "Before each of its calls to the kernel in turn; then a sound one goes on."
    monkeypatch.setenv('MLSTACK_RUNNER_IDLE', '0.001')
    steps, rng, died = list(range(1, 200)), random.Random(1), 0
    rng.shuffle(steps)
    for step in steps[:house.moments(12, 100)]:
        (queue.folder/'said').unlink(missing_ok=True)
        with monkeypatch.context() as m:
            m.setattr(running, 'wake', lambda *a: True)
            jobs = [queue.submit(queue.says(0, i)) for i in range(2)]
        p = subprocess.Popen([sys.executable, '-c', faulty, running.key_of(jobs[0].spec), str(step)], env=house.environment() | {k: v for k, v in os.environ.items() if k.startswith('MLSTACK_')}, start_new_session=True)
        died += p.wait() == -signal.SIGKILL
        running.ensure_runners()
        assert queue.over(*jobs) == ['finished']*2, step
        assert sorted(queue.said) == ['0', '1'], step
        queue.empty()
    assert died

def test_killed_at_random(queue):
    n = house.moments(8, 100)
    got = storm(queue.folder, n + n//2, n)
    assert (got['lost'], got['twice'], got['double'], got['without']) == (0, 0, 0, []) and got['killed'] == n and got['finished'] + got['said'] == got['jobs']

def test_a_keeper_that_is_killed(queue):
    once, again = queue.submit(queue.says(0, 'once') + '; sleep 600'), queue.submit(f'{queue.says(0, "again")}; [ -e {queue.folder}/go ] && exit; sleep 600', requeue=True)
    for o in (once, again): queue.runs(o)
    queue.until(lambda: len(queue.said) == 2)
    (queue.folder/'go').touch()
    for o in (once, again): kill_one(o.attempts()[0]['pid'])
    assert queue.over(once, again) == ['lost', 'finished'] and sorted(queue.said) == ['again', 'again', 'once']
    assert once.final['reason'] == 'its keeper was killed' and not holders(queue.folder/'locks')

def test_a_job_outlives_its_runner(queue):
    job = queue.submit(f'while [ ! -e {queue.folder}/go ]; do sleep .01; done')
    queue.runs(job)
    queue.kill_runner()
    assert running.ensure_runners() and not running.ensure_runners()
    (queue.folder/'go').touch()
    assert queue.over(job) == ['finished'] and job.tried() == 1
    queue.empty()

# After a reboot, and what lies on the board

def rebooted(queue, job, **kw):
    "As if the machine had lost its power while this job ran."
    begin(job, 1, process=dict(boot='another boot', pid=1), **kw)
    board_room.post([(Entry(job.id, running.key_of(job.spec), 'running', 1), public_facts(job.spec))])

def test_after_a_reboot(queue):
    once, again, waits = [new_record(queue.spec(queue.says(0, o), requeue=o == 'again'), sync=False) for o in ('once', 'again', 'waits')]
    for o in (once, again): rebooted(queue, o)
    board_room.post([(Entry(waits.id, running.key_of(waits.spec), 'waiting', 1), public_facts(waits.spec))])
    assert running.ensure_runners()
    assert queue.over(once, again, waits) == ['lost', 'finished', 'finished']
    assert sorted(queue.said) == ['again', 'waits'] and once.final['reason'] == 'the machine was restarted' and again.tried() == 2

def test_a_board_that_was_wiped(queue, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(running, 'wake', lambda *a: True)
        jobs = [queue.submit(queue.says(0, i)) for i in range(3)]
    (jobs[0]/'handle.json').write_text('') # power failed before it was written
    finish(jobs[2], 'cancelled')
    for o in queue.board.glob('*.*.*.*'): o.unlink()
    elsewhere = new_record(queue.spec() | dict(on='slurm'), sync=False)
    assert sorted(e.id for e in running.restore()) == sorted(o.id for o in jobs[:2])
    running.ensure_runners(again=True)
    assert queue.over(*jobs[:2]) == ['finished']*2 and sorted(queue.said) == ['0', '1'] and not elsewhere.final

def test_what_lies_on_the_board_that_should_not(queue):
    key = running.key_of(queue.spec())
    gone = new_id()
    for name, text in ((f'{gone}.{key}.waiting.1', json.dumps(public_facts(queue.spec()))), (f'{new_id()}.{key}.running.3', 'half of'), (f'{new_id()}.nobody.waiting.1', json.dumps(public_facts(queue.spec(priority=99)))),
            (f'{new_id()}.nobody.running.1', '{"format": 1, "want": "all"}'), ('x.usage', '1'), (f'{key}.runner', ''), (f'a.{key}.waiting.-1', ''), (f'{"z"*200}.y.waiting.1', '')): (queue.board/name).write_text(text)
    stranger = queue.board/f'{new_id()}.{key}.waiting.1'
    stranger.write_text(json.dumps(public_facts(queue.spec(priority=99, want=dict(gpus=2)))))
    os.chown(stranger, 54321, 54321)
    (queue.board/f'{new_id()}.{key}.waiting.1').mkdir()
    os.symlink('/etc/passwd', queue.board/f'{new_id()}.{key}.waiting.1')
    (queue.board/'54321.usage').write_text('[1e9, 0]')
    job = queue.submit(want=dict(gpus=2))
    assert queue.over(job) == ['finished'] and stranger.exists()
    row = next(r for r in running.queue() if r['user'] == '54321')
    assert (row['own'], row['name'], row['why']) == (False, '', 'its runner is not there')
    queue.until(lambda: not list(queue.board.glob(f'{gone}.*')))

def test_a_damaged_file_of_a_job_is_written_again(queue):
    blocker = queue.submit('sleep 600', want=dict(cpus=4))
    queue.runs(blocker)
    job = queue.submit()
    path = queue.until(lambda: next(queue.board.glob(f'{job.id}.*'), None))
    queue.kill_runner()
    path.write_text('')
    running.cancel(blocker, '')
    assert queue.over(job) == ['finished'] and 'was damaged and is written again' in queue.log()

def test_a_job_of_a_newer_version_is_left_alone(queue):
    job = new_record(queue.spec(format=99, mlstack='99.0'), sync=False)
    path = queue.board/f'{job.id}.{running.key_of(queue.spec())}.waiting.1'
    path.write_text('{"format": 99}')
    assert queue.over(queue.submit()) == ['finished'] and path.exists() and not job.final
    row = next(r for r in running.queue() if r['id'] == job.id)
    assert row['state'] == 'waiting' and 'newer mlstack' in row['why']
    queue.kill_runner()
    running.ensure_runners() # for a job of this kind alone none is started
    assert queue.over(queue.submit()) == ['finished'] and path.exists() and not job.final

def test_a_clock_that_was_wrong(queue, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(time, 'time', lambda t=time.time: t() + 1e8)
        ahead = queue.submit(time=3600)
    with monkeypatch.context() as m:
        m.setattr(time, 'time', lambda t=time.time: t() - 1e8)
        behind = queue.submit(time=3600)
    assert queue.over(ahead, behind) == ['finished']*2

# Environments, users, disks

def test_an_environment_that_is_gone(queue, monkeypatch):
    with pytest.raises(MlstackError, match='no runner can be started'): queue.submit(environment='other', python='/nowhere/bin/python')
    assert not list(queue.board.glob('*.*.*.*'))
    with monkeypatch.context() as m:
        m.setattr(running, 'wake', lambda *a: True)
        gone, sound = queue.submit(environment='other', python='/nowhere/bin/python'), queue.submit()
    running.ensure_runners()
    assert queue.over(gone, sound) == ['failed', 'finished'] and gone.final['reason'] == 'its environment is gone: there is no /nowhere/bin/python'
    queue.empty()

def test_a_runner_that_cannot_start_says_so(queue):
    bad = queue.folder/'python'
    bad.write_text('#!/bin/sh\necho there is no mlstack here >&2\nexit 1\n')
    bad.chmod(0o755)
    job = queue.submit(environment='bad', python=str(bad))
    queue.until(lambda: 'there is no mlstack here' in running.look(job)['why'])

def test_two_environments_on_one_queue(queue):
    queue.rules(cores=[0])
    code = f'mkdir {queue.folder}/alone || exit 9; sleep .05; rmdir {queue.folder}/alone'
    jobs = [queue.submit(code, environment=o) for o in ('one', 'two')*4]
    assert queue.over(*jobs) == ['finished']*8 and len({running.key_of(o.spec) for o in jobs}) == 2

def home_of(queue, uid=43210):
    home = queue.folder/f'home-{uid}'
    home.mkdir(exist_ok=True); os.chown(home, uid, uid)
    (home/'said').touch(); (home/'said').chmod(0o666)
    return home

def other_user(queue, code, uid=43210):
    "Run Python as another user, with a folder of his own for jobs; what it needs is imported before, since he may not read where it lies."
    home = home_of(queue, uid)
    head = f'''
import os, sys, time, json, resource, shlex, shutil, select, subprocess, tempfile, traceback, threading, multiprocessing.util
from mlstack.core import MlstackError
from mlstack.resources import board, deciding, keeping, leases, records, runners, running, schedules
from mlstack.tracking import facts, origins, recorder
running.user_name(0); leases._user()
os.setgroups([]); os.setgid({uid}); os.setuid({uid}); os.chdir("/")
os.environ |= dict(MLSTACK_STATE="{home}/state", HOME="{home}")
home = "{home}"
'''
    env = house.environment() | {k: v for k, v in os.environ.items() if k.startswith('MLSTACK_')} | dict(MLSTACK_RUNNER_IDLE='.1')
    return subprocess.run([sys.executable, '-c', head + code], capture_output=True, text=True, env=env, timeout=300)

root = pytest.mark.probe(lambda: None if os.getuid() == 0 else 'another user can only be played by root')

@root
def test_another_user_sees_what_waits_and_nothing_else(queue):
    queue.rules(cores=[0])
    job = queue.submit(f'while [ ! -e {queue.folder}/go ]; do sleep .01; done # secret plans', env=dict(PLAN='secret plans'), name='secret plans')
    queue.runs(job)
    said = other_user(queue, f'''
row, = running.queue()
assert (row['user'], row['own'], row['name'], row['what'], row['state']) == ('root', False, '', '1 core', 'running'), row
for folder, _, files in os.walk({str(queue.board)!r}):
    for o in files: assert 'secret' not in o and b'secret' not in open(os.path.join(folder, o), 'rb').read()
path = next(e.path for e in os.scandir({str(queue.board)!r}) if e.name.startswith({job.id!r}))
for deed in (lambda: os.rename(path, path.replace('running','waiting')), lambda: os.unlink(path), lambda: open(path, 'a'), lambda: os.listdir({str(job.path)!r}), lambda: open({str(job.log)!r}), lambda: os.listdir({str(job.path.parent)!r})):
    try: print(deed())
    except PermissionError: continue
    raise SystemExit('this was allowed')
''')
    assert not said.returncode, said.stderr + said.stdout
    (queue.folder/'go').touch()
    queue.over(job)
    assert stat.S_IMODE(queue.board.stat().st_mode) == 0o1777 and stat.S_IMODE(job.path.parent.stat().st_mode) == 0o700

@root
def test_two_users_share_a_machine(queue):
    queue.rules(cores=[0])
    home = home_of(queue)
    mine = [queue.submit(f'mkdir {home}/alone && echo me >> {home}/said; sleep .02; rmdir {home}/alone') for _ in range(3)]
    said = other_user(queue, '''
running.wake = lambda *a: True
spec = dict(name='test', kind='command', on='local', command=['sh', '-c', f'mkdir {home}/alone && echo you >> {home}/said; sleep .02; rmdir {home}/alone'], want=dict(cpus=1), cwd=home, runs=home+'/runs', project='test', environment=records.environment_key())
jobs = [records.new_record(spec, sync=False) for _ in range(3)]
running.start(jobs)
if os.fork() == 0: runners.run_queue(running.key_of(spec)); os._exit(0)
end = time.monotonic() + 300
while not all(o.final for o in jobs) and time.monotonic() < end: time.sleep(.01)
print([(o.final, o.log.read_text()) for o in jobs])
assert all(o.final['state'] == 'finished' for o in jobs)
''')
    assert not said.returncode, said.stderr + said.stdout + queue.log()
    assert queue.over(*mine) == ['finished']*3
    assert sorted((home/'said').read_text().split()) == ['me']*3 + ['you']*3

@root
def test_a_queue_that_cannot_be_written(queue):
    queue.board.chmod(0o755)
    said = other_user(queue, '''
try: running.check(dict(want=dict(cpus=1)))
except MlstackError as e: print(e)
''')
    assert 'the queue cannot be written' in said.stdout and 'Set MLSTACK_QUEUE' in said.stdout, said.stderr

def test_a_file_where_the_queue_should_be(queue, monkeypatch):
    (queue.folder/'file').touch()
    monkeypatch.setenv('MLSTACK_QUEUE', str(queue.folder/'file'))
    with pytest.raises(MlstackError, match='the queue cannot be kept here'): running.check(queue.spec())

@pytest.mark.probe('small_disk')
def test_a_full_disk_submits_nothing(tmp_path):
    r = house.on_small_disk(f'''
import os, sys
os.environ |= dict(MLSTACK_STATE={str(tmp_path/'state')!r}, MLSTACK_QUEUE={str(tmp_path/'queue')!r}, MLSTACK_LEASES={str(tmp_path/'locks')!r})
from mlstack.core import MlstackError
from mlstack.resources import running
from mlstack.resources.records import new_record, environment_key
running.wake = lambda *a: True
jobs = [new_record(dict(kind='command', command=['true'], on='local', want=dict(cpus=1), environment=environment_key()), sync=False) for _ in range(200)]
try: running.start(jobs)
except MlstackError as e: print(e)
assert os.listdir({str(tmp_path/'queue')!r}) == [], os.listdir({str(tmp_path/'queue')!r})
running.start(jobs[:3])
assert len(os.listdir({str(tmp_path/'queue')!r})) == 3
''', (tmp_path/'queue').mkdir() or tmp_path/'queue', size='64k')
    assert r.returncode == 0 and 'nothing was submitted: No space left on device' in r.stdout, r.stdout

def test_the_log_of_a_runner_is_bounded(queue):
    job = queue.submit()
    queue.over(job)
    log = next((queue.folder/'state'/'runners').glob('*/log'))
    with open(log, 'a') as f: f.write('x'*(2 << 20))
    queue.kill_runner()
    queue.over(queue.submit())
    assert log.stat().st_size < 1 << 20 and ' starts' in log.read_text()

def test_what_the_table_shows(queue):
    runs, waits = queue.submit('sleep 600', want=dict(cpus=4), time=3600, name='train'), None
    queue.runs(runs)
    waits = queue.submit(want=dict(cpus=2), priority=1, name='next')
    rows = running.queue()
    assert [(r['id'], r['name'], r['state'], r['what'], r['own']) for r in rows] == [(runs.id, 'train', 'running', '4 cores', True), (waits.id, 'next', 'waiting', '2 cores', True)]
    assert 3500 < rows[0]['left'] <= 3600 and rows[1]['why'].startswith('0 of 4 cores are free; starts when job') and abs(rows[1]['expect'] - time.time() - 3600) < 100
    running.cancel(runs, '')
    queue.over(runs, waits)

def test_after_a_reboot_cron_starts_the_runners(queue, monkeypatch):
    bin = queue.folder/'bin'
    bin.mkdir()
    (bin/'crontab').write_text(f'#!/bin/sh\n[ "$1" = -l ] && {{ cat {queue.folder}/crontab 2>/dev/null; exit; }}\ncat > {queue.folder}/crontab\n')
    (bin/'crontab').chmod(0o755)
    (queue.folder/'crontab').write_text('0 3 * * * backup\n')
    monkeypatch.setenv('PATH', f'{bin}:{os.environ["PATH"]}')
    running.install(); running.install()
    mine, ours = (queue.folder/'crontab').read_text().splitlines()
    assert mine == '0 3 * * * backup' and ours.startswith('@reboot ')
    with monkeypatch.context() as m:
        m.setattr(running, 'wake', lambda *a: True)
        job = queue.submit()
    assert not subprocess.run(['sh', '-c', ours.removeprefix('@reboot ').replace('\\%', '%')], env=dict(PATH=os.environ['PATH'])).returncode
    assert queue.over(job) == ['finished']
    monkeypatch.setenv('PATH', str(queue.folder/'nothing'))
    assert 'there is no crontab here' in running.install()

# What a neighbour leaves on the board

def put(path, text='', uid=54321):
    path.write_text(text)
    os.chown(path, uid, uid)
    return path

def locked(path):
    import fcntl
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd

@root
def test_nothing_that_a_neighbour_leaves_stops_the_queue(queue):
    fact, live = lambda **kw: json.dumps(dict(format=1, want=[0, 0, 1, 0], at=1) | kw), []
    for i, text in enumerate(('{"format":1,"want":' + '['*60000, fact(gpu=[1]), fact(want=[0, 0, float('inf'), 0]), fact(priority=float('nan')), fact(time=-5), fact(group=[1]), fact(at_once=float('inf')), fact(nodes=0), fact(want=[0, 0, 10**400, 0]), 'x'*(1 << 17))):
        put(queue.board/f'aaaa{i}.bbbb.waiting.1', text)
    put(queue.board/'aaaa.bbbb.waiting.²', fact()); put(queue.board/'²²²².usage', '[1, 1]')
    for uid, text in ((54321, '[1]'), (54322, '{"machine":{"x":1}}'), (54323, '{"machine":{"gpus":{},"cores":[],"memory":0}}')): live.append(locked(put(queue.board/f'bbbb.{uid}.runner', text, uid)))
    live.append(locked(put(queue.board/f'bbbb.{os.getuid()}.runner', '{"machine":{"x":1}}'))) # not of who it says
    for o in ('54324.usage', '54324.runner', 'bbbb.54324.runner', 'cccc.bbbb.waiting.1'): os.mkfifo(queue.board/o); live.append(os.open(queue.board/o, os.O_RDWR))
    (queue.board/'54325.usage').symlink_to('/dev/zero')
    for i, text in enumerate(('[NaN, NaN]', '[-1e9, 0]', '[1e999, 0]', '[1]', '{}', '["a", "b"]')): put(queue.board/f'5433{i}.usage', text, 54330 + i)
    job = queue.submit()
    assert queue.over(job) == ['finished'] and 'Traceback' not in queue.log()
    assert ('bbbb', os.getuid()) not in plans._runners(running._board()) and not plans._usage(running._board())
    running.queue()
    for fd in live: os.close(fd)

@root
def test_a_name_that_a_neighbour_has_taken(queue, monkeypatch):
    "Two jobs claimed in one round, of which he has taken the one's next name: a rename over a file of his is refused to all but root, which is played here."
    was, key = os.rename, running.key_of(queue.spec())
    job, other = [new_record(queue.spec(), sync=False) for _ in range(2)]
    taken = queue.board/f'{job.id}.{key}.running.1'
    put(taken)
    def rename(a, b):
        if os.path.exists(b) and os.stat(b).st_uid == 54321: raise PermissionError(1, 'Operation not permitted')
        return was(a, b)
    monkeypatch.setattr(os, 'rename', rename)
    monkeypatch.setattr(running, 'wake', lambda *a: True)
    running.start([job, other])
    board = board_room.Board(); board.look()
    moved = board_room.move(queue.board, board.find(job.id), 'running')
    assert moved.n == 1 and moved.name != taken.name and (queue.board/moved.name).exists() and board_room._entry(moved.name) == moved
    back = board_room.move(queue.board, moved, 'waiting')
    assert back.name == f'{job.id}.{key}.waiting.1' and taken.exists()

@root
def test_a_taken_name_and_a_user_without_rights(queue):
    said = other_user(queue, '''
running.wake = lambda *a: True
spec = dict(name='test', kind='command', on='local', command=['true'], want=dict(cpus=1), cwd=home, runs=home+'/runs', project='test', environment=records.environment_key())
jobs = [records.new_record(spec, sync=False) for _ in range(2)]
running.start(jobs)
print(jobs[0].id, running.key_of(spec))
''')
    assert not said.returncode, said.stderr
    id, key = said.stdout.split()
    for state in ('running', 'over'): (queue.board/f'{id}.{key}.{state}.1').write_text('')
    with lease(cpus=1, of=Machine({}, (0,), 1 << 30, queue.folder/'locks'), apply=False): pass # makes the folder for all
    (queue.board/f'{key}.43210.runner').write_text(''); (queue.board/'43210.usage').write_text('') # of root, in a sticky folder
    said = other_user(queue, f'''
runners.run_queue({key!r})
print([(o.final, o.log.read_text()) for o in records.records()])
assert all(o.final['state'] == 'finished' for o in records.records())
''')
    assert not said.returncode, said.stderr + said.stdout

def test_leases_of_a_round_that_fails_are_given_back(queue, monkeypatch):
    monkeypatch.setattr(running, 'wake', lambda *a: True)
    jobs = [queue.submit(priority=p) for p in (1, 0)]
    r = runners.Runner(running.key_of(jobs[0].spec), None)
    was = runners.grant
    def grant(folder, id, *a, **kw):
        if id.startswith(jobs[1].id): raise RuntimeError('whatever')
        return was(folder, id, *a, **kw)
    with monkeypatch.context() as m:
        m.setattr(runners, 'grant', grant)
        with pytest.raises(RuntimeError): runners._step(r)
    assert not holders(queue.folder/'locks')
    runners._step(r)
    runners._step(r)
    assert queue.over(*jobs) == ['finished']*2

@root
def test_twins_of_a_neighbour(queue):
    with pytest.MonkeyPatch.context() as m:
        m.setattr(running, 'wake', lambda *a: True)
        first = queue.submit()
        then = queue.submit(after=[first.id])
        lost = queue.submit()
    next(queue.board.glob(f'{lost.id}.*')).unlink()
    for job in (first, then, lost):
        for i in range(5): put(queue.board/f'{job.id}.{i:04x}.running.1', json.dumps(public_facts(job.spec)))
    assert [e.id for e in running.restore()] == [lost.id]
    running.ensure_runners()
    assert queue.over(first, then, lost) == ['finished']*3
    board = board_room.Board(); board.look()
    assert board.find(first.id) is None and board.find(first.id, 54321)

@root
def test_a_lock_that_everybody_can_open_decides_nothing(queue):
    key = running.key_of(queue.spec())
    fd = locked(put(queue.board/f'{key}.{os.getuid()}.runner', uid=0))
    job = queue.submit()
    assert queue.over(job) == ['finished']
    assert stat.S_IMODE((running.runner_folder(key)/'lock').stat().st_mode) == 0o600
    os.close(fd)

def test_many_are_cancelled_at_once(queue):
    blocker = queue.submit('sleep 600', want=dict(cpus=4))
    queue.runs(blocker)
    jobs = [queue.submit() for _ in range(20)]
    running.cancels([blocker, *jobs], 'enough')
    assert {o.final['reason'] for o in jobs} == {'enough'} and not any(o.tried() for o in jobs)
    assert queue.over(blocker) == ['cancelled']
    queue.empty()

def test_a_type_of_gpu(queue):
    queue.rules(machine=dict(gpus=queue.gpus, cores=[0, 1], memory=8 << 30, gpu='NVIDIA H100 80GB HBM3'))
    assert running.check(queue.spec(gpu='h100', want=dict(gpus=1))) is None
    with pytest.raises(MlstackError, match="no GPU 'a100' can be chosen here: this machine has NVIDIA H100 80GB HBM3"): running.check(queue.spec(gpu='a100', want=dict(gpus=1)))
    job = queue.submit(gpu='h100', want=dict(gpus=1))
    assert queue.over(job) == ['finished']

# What was tried on it

def test_power_fails_when_submit_has_returned(tmp_path, monkeypatch):
    "On a file system of its own: what its disk holds at this moment is the whole job, with one flush."
    from mlstack.resources import records as room
    sh = lambda *a: subprocess.run([str(o) for o in a], check=True, capture_output=True)
    disk, at, copy, later = (tmp_path/o for o in ('disk', 'at', 'copy', 'later'))
    for o in (at, later): o.mkdir()
    with open(disk, 'wb') as f: f.truncate(24 << 20)
    try: sh('mkfs.ext4', '-q', disk); sh('mount', '-o', 'loop,commit=300', disk, at)
    except (OSError, subprocess.CalledProcessError) as e: pytest.skip(f'nothing can be mounted here: {e}')
    try:
        monkeypatch.setenv('MLSTACK_STATE', str(at/'state'))
        flushed, flush = [], os.fsync
        monkeypatch.setattr(os, 'fsync', lambda f: (flushed.append(f), flush(f))[1])
        for ordered in (True, False): # what needs one flush, and any other file system
            if not ordered: monkeypatch.setattr(room, '_in_order', lambda device: False)
            flushed.clear()
            job = new_record(dict(name='test', on='local'), call_pkl=bytes(range(256))*999)
            assert len(flushed) == (1 if ordered else 3)
            shutil.copyfile(disk, copy)
            sh('mount', '-o', 'loop', copy, later)
            try:
                found = later/'state'/'jobs'/job.id
                assert {o.name: o.read_bytes() for o in found.iterdir()} == {o.name: o.read_bytes() for o in job.path.iterdir()} and len([*found.iterdir()]) == 2
            finally: sh('umount', later)
    finally: sh('umount', at)

def test_what_the_kernel_says_is_what_a_list_says(queue):
    "A board that is watched, and one that is listed, after any changes; more than the kernel can keep; another folder under the name."
    watched, rng, names = board_room.Board(), random.Random(0), []
    watched.watch()
    watched.look()
    def change():
        if not names or rng.random() < .5:
            e = Entry(new_id(), 'key', 'waiting', 1)
            board_room.post([(e, public_facts({}))]); names.append(e)
        else:
            e = names.pop(rng.randrange(len(names)))
            if rng.random() < .5: board_room.remove(queue.board, e)
            else: names.append(board_room.move(queue.board, e, rng.choice(['running', 'held']), facts=rng.choice([None, public_facts(dict(priority=1))])))
    def same():
        listed = board_room.Board()
        watched.look(); listed.look()
        assert (watched.entries, watched.facts, watched.keys, watched.ids, watched.states) == (listed.entries, listed.facts, listed.keys, listed.ids, listed.states)
    for n in (1, 1, 1, 3, 10, 30, 100):
        for _ in range(n): change()
        same()
    for _ in range(9000): (queue.board/'x').touch(); (queue.board/'x').unlink() # more than it keeps
    change()
    same()
    shutil.rmtree(queue.board)
    watched.look()
    running.made_folder()
    for _ in range(3): change() if not (names and names.clear()) else None; same()

def test_a_full_disk_does_not_end_the_runner(queue, monkeypatch):
    r = runners.Runner('key', None)
    def full(*a): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(os, 'write', full)
        r.say('something')

def test_a_board_that_was_wiped_before_a_handle_was_on_the_disk(queue, monkeypatch):
    "Its record says where it waits; one that is only just being submitted is left alone, but not after a restart."
    monkeypatch.setattr(running, 'wake', lambda *a: True)
    said = lambda **kw: new_record(queue.spec(**dict(queue=str(queue.board), boot=board_room.boot_id()) | kw), sync=False)
    empty, young, old, back, ahead, other = said(), said(), said(submitted=time.time() - 100), said(submitted=time.time() + 3600), said(boot='another'), said()
    (empty/'handle.json').touch(); (other/'handle.json').write_text(json.dumps(dict(queue='/elsewhere')))
    assert {e.id for e in running.restore()} == {o.id for o in (empty, old, back, ahead)} and young.id != other.id

def test_one_that_is_being_put_away(queue, monkeypatch):
    monkeypatch.setattr(running, 'wake', lambda *a: True)
    a, b = queue.submit(), queue.submit()
    (a/'cancel').write_text('enough')
    for o in (a, b): assert running._set(o, ('waiting', 'over'))
    assert running.look(a) == dict(state='cancelled', why='enough') and running.look(b) == dict(state='waiting', why='it is being put away')
    many = [queue.submit() for _ in range(9)]
    for o in many: (o/'cancel').write_text('many'); running._set(o, ('waiting', 'over'))
    r = runners.Runner(running.key_of(a.spec), None)
    r.board.look()
    runners._tend(r)
    r.board.look()
    assert [o.final['reason'] for o in (a, b, *many)] == ['enough', 'cancelled', *['many']*9] and not r.busy()

@pytest.mark.parametrize('cancelled', [False, True])
def test_what_a_killed_keeper_has_left_holds_nothing(queue, cancelled):
    "A process in a session of its own that took the lease with it, as a daemon would, is ended before the job goes on."
    code = f'''setsid sh -c 'echo $$ > {queue.folder}/daemon.tmp; mv {queue.folder}/daemon.tmp {queue.folder}/daemon; exec sleep 600' & sleep 600'''
    job = queue.submit(code, want=dict(cpus=4))
    pid = int(queue.until(lambda: (queue.folder/'daemon').exists() and (queue.folder/'daemon').read_text()))
    keeper = job.attempts()[0]['pid']
    os.kill(runner_of(queue.folder), signal.SIGSTOP) # so that it looks when all has happened
    above = int(Path('/proc', str(keeper), 'stat').read_text().rpartition(')')[2].split()[1])
    for o in (above, keeper): kill_one(o)
    if cancelled: (job/'cancel').write_text('enough')
    os.kill(runner_of(queue.folder), signal.SIGCONT)
    assert queue.over(job) == ['cancelled' if cancelled else 'lost']
    queue.until(lambda: not Path('/proc', str(pid)).exists() or Path('/proc', str(pid), 'stat').read_text().rpartition(')')[2].split()[0] in 'ZX')
    assert queue.over(queue.submit(want=dict(cpus=4))) == ['finished']

def test_who_takes_the_place_of_one_that_took_a_place(queue):
    "C makes room for B, and before C has gone B's place is A's; nobody is ended twice, and each goes on in his turn."
    queue.rules(cores=[0])
    code = lambda name: f'trap "exit 1" TERM; [ -e {queue.folder}/go ] && last=1; {queue.says(0, name)}; [ "$last" ] && exit; while :; do sleep .01; done'
    low = queue.submit(code('low'), requeue=True, priority=0)
    queue.until(lambda: queue.said == ['low'])
    mid = queue.submit(code('mid'), requeue=True, priority=1)
    queue.until(lambda: queue.said == ['low', 'mid'])
    (queue.folder/'go').touch()
    high = queue.submit(code('high'), priority=2)
    assert queue.over(high, mid, low) == ['finished']*3 and queue.said == ['low', 'mid', 'high', 'mid', 'low']
    assert [[o['state'] for o in j.attempts()] for j in (low, mid, high)] == [['preempted', 'finished']]*2 + [['finished']]

def test_two_runners_agree_for_whom_a_place_is_kept(queue, monkeypatch):
    "Whoever decides first; what one of them remembers from before changes nothing."
    monkeypatch.setattr(running, 'wake', lambda *a: True)
    queue.rules(cores=[0, 1])
    jobs = [queue.submit(environment=o, want=dict(cpus=2), time=60) for o in ('one', 'two', 'one', 'two')]
    both = [runners.Runner(running.key_of(o.spec), running._lock(running.key_of(o.spec))) for o in jobs[:2]]
    of = both[0].machine()[0]; both[1].machine()
    monkeypatch.setattr(runners, '_launch', lambda r, e, fd: os.close(fd))
    kept = lambda: [id for _, id in plans._reserved(of.folder)]
    with lease(cpus=1, of=of, apply=False):
        said = []
        for r in (both[0], both[1], both[1], both[0]):
            runners._step(r); said.append((kept(), r.plan.scheduler.kept))
        assert said == [([jobs[0].id], [jobs[0].id])]*4
    runners._step(both[1]) # the other's is to start first
    assert kept()[0] == jobs[0].id and not any(e.state == 'running' for e in both[1].board.entries.values())
    for r in both: os.close(r.public); os.close(r.lock)

def test_a_clock_that_jumps(queue, monkeypatch):
    "An hour ahead and back: what is not to start before its time waits for the clock as it is now, and nobody's share is turned over."
    monkeypatch.setattr(running, 'wake', lambda *a: True)
    now = time.time()
    job, first = queue.submit(not_before=now + 1800), queue.submit()
    clock = [now]
    monkeypatch.setattr(time, 'time', lambda: clock[0])
    plan = plans.Plan(board_room.Board())
    plan.here = {(running.key_of(job.spec), os.getuid()): {}}
    said = []
    for o in (0, 3600, 0, -3600, 1799, 1801, 0):
        clock[0] = now + o
        plan.look()
        plan.update(Machine({}, (0, 1), 8 << 30, queue.folder/'locks'), plans.Policy(), [], [])
        said.append({a.id for a, _ in plan.decide().start})
    both = {job.id, first.id}
    assert said == [{first.id}, both, {first.id}, {first.id}, {first.id}, both, {first.id}]
    usage = {'ann': (100., now + 3600)}
    runners.charge(usage, 'ann', runners.used(1, -3600, 7*86400), now, 7*86400)
    assert usage['ann'][0] == 100

def test_what_another_version_or_another_boot_has_left(queue):
    "A field that is not known here, a lease and a reservation of before the restart: none of it keeps anybody waiting."
    job = new_record(queue.spec(want=dict(gpus=2, cpus=4)), sync=False)
    (queue.folder/'locks').mkdir(mode=0o1777)
    (queue.folder/'locks'/'old.lease').write_text(json.dumps(dict(id='old', pid=1, since=1., want='2 GPUs', ask=[2, 0, 4, 0], gpus=queue.gpus, cores=[0, 1, 2, 3], memory=0, job=job.id)))
    (queue.folder/'locks'/'reserved').write_text('[[0, "gone"], ["x", 1], 7]')
    board_room.post([(Entry(job.id, running.key_of(job.spec), 'waiting', 1), public_facts(job.spec) | dict(colour='blue', partition=['gpu']))])
    newer = queue.board/f'{new_id()}.{running.key_of(job.spec)}.waiting.1'
    newer.write_text(json.dumps(dict(format=2, want=[2, 0, 4, 0], priority=99)))
    running.ensure_runners()
    assert queue.over(job) == ['finished'] and newer.exists() and not (queue.folder/'locks'/'old.lease').exists()
