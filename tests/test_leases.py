"Leases: races, kills, children that outlive the holder, other users, bad input."
import json, os, signal, stat, subprocess, sys, tempfile
from pathlib import Path
import pytest
from mlstack.core import MlstackError
from mlstack.env.machine import Gpu, Process
from mlstack.resources import leases as room
from mlstack.resources.leases import Machine, holders, lease, leased
from tests import house
from tests.bench.measure.leases import freed, race

@pytest.fixture
def of(tmp_path): return Machine({'GPU-a': 80 << 30, 'GPU-b': 80 << 30}, (0, 1, 2, 3), 64 << 30, tmp_path/'locks')

def holder(of, what, then='time.sleep(600)', user=0):
    "A process that takes a lease, says so, and goes on."
    code = f'''import os, sys, time
from pathlib import Path
from mlstack.resources.leases import Machine, lease, run_leased
if {user}: os.setgid({user}); os.setuid({user})
of = Machine({of.gpus!r}, {of.cores!r}, {of.memory}, Path({str(of.folder)!r}))
held = lease(of=of, tell=lambda why: print(why, flush=True), apply=False, {what})
print('held', *held.gpus, *held.cores, flush=True)
{then}'''
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env=house.environment())

def end(*processes):
    for o in processes: o.kill()
    for o in processes: o.wait(); o.stdout.close()

def test_never_two_holders_and_no_lease_lost(tmp_path):
    n, double, killed = race(tmp_path, 12, house.moments(300, 10000), house.moments(12, 100))
    assert n >= house.moments(300, 10000) and not double and killed
    with lease(gpus=2, of=Machine({'GPU-a': 1 << 30, 'GPU-b': 1 << 30}, (0,), 1 << 30, tmp_path/'locks'), apply=False): pass # what the last kill left
    assert os.listdir(tmp_path/'locks') == ['door']

def test_a_kill_frees_it_for_the_one_who_waits(tmp_path): assert len(freed(tmp_path, house.moments(3, 50))) == house.moments(3, 50)

def test_served_in_the_order_in_which_they_came(of):
    first = holder(of, 'gpus=2')
    assert first.stdout.readline() == 'held GPU-a GPU-b\n'
    waiting = []
    for what in ('gpus=1', 'gpus=2', 'gpus=1'):
        waiting.append(holder(of, what, 'print(time.monotonic()); time.sleep(.05); held.release()'))
        assert waiting[-1].stdout.readline().startswith('waiting for')
    assert [r[0] for r in leased(of.folder).rows] == ['holds', 'waits', 'waits', 'waits']
    first.kill()
    said = [p.communicate()[0].split('\n') for p in waiting]
    assert all(o[0].startswith('held') for o in said)
    assert [float(o[1]) for o in said] == sorted(float(o[1]) for o in said)
    end(first, *waiting)
    assert not holders(of.folder) and os.listdir(of.folder) == ['door']

def test_a_waiter_that_is_killed_leaves_the_line(of):
    with lease(gpus=2, of=of, apply=False):
        a, b = holder(of, 'gpus=1'), None
        a.stdout.readline()
        b = holder(of, 'gpus=1')
        b.stdout.readline()
        end(a)
    assert b.stdout.readline().startswith('held')
    end(b)

def test_those_who_want_no_gpu_do_not_wait_behind_those_who_do(of):
    with lease(gpus=2, of=of, apply=False):
        a = holder(of, 'gpus=1')
        a.stdout.readline()
        with lease(cpus=1, of=of, timeout=300, apply=False): pass
        end(a)

def test_a_command_keeps_what_its_killed_parent_leased(of):
    code = f'''from pathlib import Path
from mlstack.resources.leases import Machine, run_leased
run_leased(['sh', '-c', 'sleep 600 & echo $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS $MLSTACK_LEASED; exec sleep 600'], gpus=1, of=Machine({of.gpus!r}, {of.cores!r}, {of.memory}, Path({str(of.folder)!r})))'''
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, start_new_session=True, env=house.environment())
    assert p.stdout.readline().split()[0] == 'GPU-a'
    p.kill(); p.wait()
    assert [h['gpus'] for h in holders(of.folder)] == [{'GPU-a': 80 << 30}]
    os.killpg(p.pid, signal.SIGKILL)
    with lease(gpus=2, of=of, apply=False): pass
    p.stdout.close()

def test_the_exit_code_is_the_commands(tmp_path):
    def run(*args): return house.run(sys.executable, '-c', 'from mlstack.cli import main; main()', 'run', *args, env=house.environment(MLSTACK_LEASES=tmp_path/'locks'))
    r = run('--cpus', '1', '--', sys.executable, '-c', "import os, sys; print(len(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'], sys.argv[1]); sys.exit(7)", 'a b; $(x)')
    assert (r.returncode, r.stdout) == (7, '1 1 a b; $(x)\n')
    assert run('--cpus', '1', sys.executable, '-c', 'print(1)').stdout == '1\n'
    assert run('--cpus', '1', '--', 'no-such-program').returncode == 2
    assert 'will never be free' in run('--gpus', '64', '--', 'true').stdout
    assert 'is not a size' in run('--mem', '3 apples', '--', 'true').stdout

def test_a_forked_child_does_not_give_it_back(of):
    with lease(gpus=1, of=of, apply=False) as held:
        pid = os.fork()
        if pid == 0: held.release(); os._exit(0)
        os.waitpid(pid, 0)
        assert len(holders(of.folder)) == 1
    assert not holders(of.folder)

def test_given_back_although_a_child_still_has_the_open_file(of):
    with lease(gpus=1, of=of, apply=False) as held: p = subprocess.Popen(['sleep', '600'], pass_fds=[held.fd])
    assert not holders(of.folder)
    p.kill(); p.wait()

def test_threads_and_cores_are_set_and_given_back(of):
    before = os.sched_getaffinity(0), os.environ.get('OMP_NUM_THREADS')
    with lease(cpus=1, of=of._replace(cores=(min(before[0]),))):
        assert os.sched_getaffinity(0) == {min(before[0])} and os.environ['OMP_NUM_THREADS'] == '1'
    assert (os.sched_getaffinity(0), os.environ.get('OMP_NUM_THREADS')) == before

def test_shares_go_where_they_leave_the_least_room(of):
    with lease(gpus=.5, of=of, apply=False) as a, lease(gpu_mem='20G', of=of, apply=False) as b, lease(gpus=1, of=of, apply=False) as c:
        assert a.gpus == b.gpus == ('GPU-a',) and c.gpus == ('GPU-b',)
        with pytest.raises(MlstackError, match='beside what this process.*0 of 2 GPUs have that room'): lease(gpu_mem='30G', of=of)

@pytest.mark.parametrize('kw, said', [(dict(), 'nothing is asked for'), (dict(gpus=-1), 'gpus=-1'), (dict(gpus=True), 'gpus=True'), (dict(gpus=2.5), 'gpus=2.5'), (dict(cpus='4'), "cpus='4'"), (dict(mem='4 h'), 'is not a size'),
    (dict(mem='100T'), 'will never be free: this machine has 2 GPUs of 80 GiB'), (dict(gpu_mem='81G'), 'will never be free'), (dict(cpus=5), '4 cores')])
def test_bad_input(of, kw, said):
    with pytest.raises(MlstackError, match=said): lease(of=of, **kw)
    assert not of.folder.exists() or not holders(of.folder)

def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path/'f').write_text('')
    with pytest.raises(MlstackError, match='cannot be used for locks'): lease(cpus=1, of=Machine({}, (0,), 1 << 30, tmp_path/'f'))

def test_files_of_another_boot_and_of_nobody_are_nothing(of):
    with lease(cpus=1, of=of, apply=False): pass
    (of.folder/'old.lease').write_text(json.dumps(dict(id='x', pid=1, gpus={'GPU-a': 1}, cores=[0], memory=0, user='u', since=0, want='')))
    (of.folder/'0000000000000000001.gpu.ticket').write_text('{}')
    (of.folder/'broken.lease').write_text('{')
    (of.folder/'.half').write_text('{')
    with lease(gpus=2, cpus=4, of=of, timeout=300, apply=False): pass
    assert os.listdir(of.folder) == ['door']

def test_a_door_with_nonsense_in_it(of):
    of.folder.mkdir()
    (of.folder/'door').write_text('nonsense')
    with lease(gpus=2, of=of, apply=False):
        a = holder(of, 'gpus=1')
        assert a.stdout.readline().startswith('waiting')
    assert a.stdout.readline().startswith('held')
    end(a)

def test_given_back_in_another_order(of):
    core, before = min(os.sched_getaffinity(0)), (os.sched_getaffinity(0), {k: os.environ.get(k) for k in ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS', 'MLSTACK_LEASED')})
    a, b = lease(gpus=1, cpus=1, of=of._replace(cores=(core, 90))), lease(gpus=1, of=of)
    a.release()
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ','.join(b.gpus) and os.sched_getaffinity(0) == before[0]
    b.release()
    assert (os.sched_getaffinity(0), {k: os.environ.get(k) for k in before[1]}) == before

def test_a_door_that_leads_elsewhere(of, tmp_path):
    of.folder.mkdir()
    (tmp_path/'mine').write_text('what I wrote')
    (of.folder/'door').symlink_to(tmp_path/'mine')
    with pytest.raises(MlstackError, match='cannot be used for locks'): lease(cpus=1, of=of)
    assert (tmp_path/'mine').read_text() == 'what I wrote'

def test_a_locked_file_with_nonsense_in_it(of):
    import fcntl
    of.folder.mkdir()
    with open(of.folder/'x.lease', 'w') as f:
        f.write('nonsense'); f.flush()
        fcntl.flock(f, fcntl.LOCK_EX)
        with lease(cpus=1, of=of, apply=False): pass

def test_without_a_file_descriptor_nobody_is_thought_gone(of, monkeypatch):
    import errno
    with lease(gpus=2, of=of, apply=False):
        was = os.open
        def full(path, *args, **kw):
            if str(path).endswith('.lease'): raise OSError(errno.EMFILE, 'Too many open files')
            return was(path, *args, **kw)
        monkeypatch.setattr(os, 'open', full)
        with pytest.raises(OSError, match='Too many'): holders(of.folder)

def test_a_program_that_cannot_be_run(of, tmp_path):
    (tmp_path/'script').write_text('echo hi')
    (tmp_path/'script').chmod(0o755)
    with pytest.raises(MlstackError, match='cannot be run'): room.run_leased([str(tmp_path/'script')], cpus=1, of=of, apply=False)
    assert not holders(of.folder)

@pytest.mark.parametrize('kw', [dict(gpus=float('inf')), dict(gpus=float('nan')), dict(mem=float('inf')), dict(mem=float('nan'))])
def test_numbers_that_are_none(of, kw):
    with pytest.raises(MlstackError): lease(of=of, **kw)

def test_cuda_that_is_initialised_is_refused(of, monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    with pytest.raises(MlstackError, match='already initialised'): lease(gpus=1, of=of)
    with lease(cpus=1, of=of, apply=False), lease(gpus=1, of=of, apply=False): pass

def test_a_device_with_a_stranger_on_it_is_left_alone(of, monkeypatch):
    gpus = [Gpu(0, 'H100', 'GPU-a', 80 << 30, 70 << 30, (9, 0), (Process(1, 5 << 30),)), Gpu(1, 'H100', 'GPU-b', 80 << 30, 80 << 30, (9, 0), ())]
    monkeypatch.setattr(room, 'nvidia', lambda full: dict(gpus=gpus))
    with lease(gpus=1, of=of, apply=False) as held:
        assert held.gpus == ('GPU-b',)
        with pytest.raises(room.LeaseTimeout): lease(gpus=1, of=of, timeout=0, apply=False)
        with lease(gpu_mem='70G', of=of, apply=False) as share: assert share.gpus == ('GPU-a',)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1')
    assert list(room.this_machine().gpus) == ['GPU-b']

def test_a_divided_gpu_is_leased_by_slices(tmp_path, monkeypatch):
    one = lambda uuid, *processes: Gpu(0, 'H100 MIG 3g.40gb', uuid, 40 << 30, 40 << 30, (9, 0), processes)
    whole = Gpu(0, 'H100', 'GPU-a', 80 << 30, 80 << 30, (9, 0), (), True, (one('MIG-a', Process(1, 1 << 30)), one('MIG-b')))
    monkeypatch.setattr(room, 'nvidia', lambda full: dict(gpus=[whole]))
    of = room.this_machine(tmp_path/'locks')
    assert of.gpus == {'MIG-a': 40 << 30, 'MIG-b': 40 << 30}
    with lease(gpus=1, of=of) as held: assert held.gpus == ('MIG-b',) and os.environ['CUDA_VISIBLE_DEVICES'] == 'MIG-b'

@pytest.mark.skipif(os.geteuid() != 0, reason='two users need root')
@pytest.mark.probe(lambda: None if os.geteuid() == 0 else 'two users need root')
def test_two_users_on_one_machine(of, tmp_path):
    for p in (tmp_path, *tmp_path.parents):
        if p.stat().st_uid == 0 and p.is_relative_to(Path(tempfile.gettempdir())) and p != Path(tempfile.gettempdir()): p.chmod(p.stat().st_mode | 0o755)
    with lease(gpus=1, of=of, apply=False):
        assert stat.S_IMODE(of.folder.stat().st_mode) == 0o1777
        other = holder(of, 'gpus=1', user=65534)
        assert other.stdout.readline() == 'held GPU-b\n'
        assert len(holders(of.folder)) == 2 and {h['pid'] for h in holders(of.folder)} == {os.getpid(), other.pid}
        waits = holder(of, 'gpus=1', user=65534)
        assert waits.stdout.readline().startswith('waiting')
    assert waits.stdout.readline() == 'held GPU-a\n'
    end(other, waits)
    with lease(gpus=2, of=of, apply=False): pass

def test_what_another_thread_holds_is_waited_for(of):
    from threading import Thread
    done = []
    def take():
        with lease(mem='40G', of=of, apply=False): done.append(1)
    with lease(mem='40G', of=of, apply=False):
        threads = [Thread(target=take) for _ in range(2)]
        for t in threads: t.start()
        while len(leased(of.folder)) < 3: pass
        with pytest.raises(MlstackError, match='beside what this process'): lease(mem='40G', of=of)
    for t in threads: t.join()
    assert len(done) == 2

def test_a_second_lease_of_a_process_sees_the_whole_machine(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_LEASES', str(tmp_path/'locks'))
    whole = room.this_machine()
    if len(whole.cores) < 2: return
    with lease(cpus=1) as a, lease(cpus=1) as b: assert room.this_machine().cores == whole.cores and {*a.cores}.isdisjoint(b.cores)
    assert room.this_machine().cores == whole.cores

def test_a_fraction_of_each(of):
    with lease(gpus=2, gpu_mem=.5, of=of, apply=False), lease(gpus=2, gpu_mem=.5, of=of, apply=False): assert len(holders(of.folder)) == 2
    with pytest.raises(MlstackError, match="timeout='5'"): lease(cpus=1, of=of, timeout='5')

# What a neighbour leaves in the folder

forged = dict(id='x', pid=1, user='root', want='1 core', since=0, gpus={}, cores=[0], memory=0)

@pytest.mark.parametrize('change', [dict(since=None), dict(gpus=None), dict(gpus={'GPU-a': -1}), dict(gpus=[1]), dict(cores=['a']), dict(cores=[-1]), dict(memory=-1e15), dict(memory=float('nan')), dict(job=[1]), dict(ask=[1]), dict(pid='1'), dict(id=[1])])
def test_a_forged_lease_is_none(of, change):
    import fcntl
    of.folder.mkdir()
    for said, n in ((forged, 1), (forged | change, 0), ({k: v for k, v in forged.items() if k not in change}, 0 if set(change) <= set(forged) else 1)):
        with open(of.folder/'x.lease', 'w') as f:
            f.write(json.dumps(said)); f.flush()
            fcntl.flock(f, fcntl.LOCK_EX)
            assert len(holders(of.folder)) == n
            with lease(cpus=1, of=of, apply=False) as held: assert held.cores == (n,)
            leased(of.folder)

def test_a_lease_is_of_who_owns_its_file(of):
    import fcntl
    of.folder.mkdir()
    with open(of.folder/'x.lease', 'w') as f:
        f.write(json.dumps(forged)); f.flush()
        os.fchown(f.fileno(), 54321, 54321)
        fcntl.flock(f, fcntl.LOCK_EX)
        h, = holders(of.folder)
        assert (h['user'], h['uid']) == ('54321', 54321)

def test_pipes_and_numbers_that_end_the_line(of):
    of.folder.mkdir()
    for o in ('x.lease', '0000000000000000001.gpu.ticket', '0000000000000000001.cpu.ticket'): os.mkfifo(of.folder/o)
    for o in ('²'*19 + '.gpu.ticket', '9'*19 + '.gpu.ticket', 'x.gpu.ticket'): (of.folder/o).touch()
    (of.folder/'door').write_text('9'*19)
    with lease(gpus=2, of=of, apply=False):
        a = holder(of, 'gpus=1')
        assert a.stdout.readline().startswith('waiting')
        assert [o for o in os.listdir(of.folder) if o.endswith('.gpu.ticket') and len(o) == 30 and o < '1'], os.listdir(of.folder)
    assert a.stdout.readline().startswith('held')
    end(a)

def test_a_door_that_is_held_shut(of, monkeypatch):
    import fcntl
    monkeypatch.setattr(room, '_patience', .01)
    with lease(cpus=1, of=of, apply=False): pass
    with open(of.folder/'door') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        for timeout in (None, 5):
            with pytest.raises(MlstackError, match='has held the door for 0.01 s'): lease(cpus=1, of=of, timeout=timeout)
    with lease(cpus=1, of=of, apply=False): pass
