"Faults of `mlstack.workers`: what is killed, what is stuck, what is left behind."
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from mlstack import workers
from mlstack.core import MlstackError, StopTraining, context


def script(tmp_path, code, **kw):
    path = tmp_path/'script.py'
    path.write_text(textwrap.dedent(code))
    return subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, **kw)


def until(condition, seconds=300):
    end = time.monotonic()+seconds
    while time.monotonic() < end:
        if value := condition(): return value
        time.sleep(.02)
    raise AssertionError('it did not happen')


def alive(pid):
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False

def gone(pids): return not any(map(alive, pids))


def test_script_without_main_guard_runs_its_top_level_once(tmp_path):
    p = script(tmp_path, '''
        import os
        open('ran','a').write('x')
        from mlstack.workers import run
        class Thing:
            def __init__(self, n): self.n = n
        def work(n): return Thing(n+1)
        print([t.n for t in run(work, 1, nprocs=2)])
    ''')
    out,err = p.communicate(timeout=300)
    assert out.strip() == '[2, 2]', err
    assert (tmp_path/'ran').read_text() == 'x'


LONG = '''
    import os, sys, time, subprocess
    import torch
    from torch.utils.data import DataLoader
    from mlstack.workers import run
    def work():
        it = iter(DataLoader(list(range(1000)), num_workers=1))
        next(it)
        child = subprocess.Popen(['sleep', '3600'])
        mine = f'pid-{os.getpid()}'
        open('.'+mine, 'w').write(' '.join(map(str, [os.getpid(), os.getppid(), child.pid, *(w.pid for w in it._workers)])))
        os.rename('.'+mine, mine) # whole
        try: time.sleep(3600)
        finally: open(f'tidy-{os.getpid()}', 'w').write('done')
    run(work, nprocs=2, grace=60)
'''


def started(tmp_path, n=2):
    def whole():
        said = [f.read_text().split() for f in tmp_path.glob('pid-*')]
        return len(said) == n and all(len(o) == 4 for o in said) and sum(said, [])
    return [int(p) for p in until(whole)]


def test_kill_of_the_caller_leaves_nothing(tmp_path):
    p = script(tmp_path, LONG)
    pids = started(tmp_path)
    assert len(set(pids)) == 7 # two workers with a loader worker and a command each, and their server
    p.kill()
    until(lambda: gone(pids))


def test_kill_of_the_server_is_told_and_leaves_no_worker(tmp_path):
    p = script(tmp_path, LONG)
    pids = started(tmp_path)
    server = int(next(iter(tmp_path.glob('pid-*'))).read_text().split()[1])
    os.kill(server, signal.SIGKILL)
    _,err = p.communicate(timeout=300)
    assert 'lost its server process' in err
    until(lambda: gone(pids))


def test_ctrl_c_lets_functions_tidy_up(tmp_path):
    p = script(tmp_path, LONG)
    pids = started(tmp_path)
    p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=300)
    assert p.returncode in (1,130,-2) and 'KeyboardInterrupt' in err
    assert len(list(tmp_path.glob('tidy-*'))) == 2
    until(lambda: gone(pids))


def test_a_real_kernel_after_torch_computed(tmp_path):
    import nbformat
    from nbclient import NotebookClient
    cells = ['import torch\na = torch.randn(500,500); (a@a).sum()\nfrom mlstack.workers import run\nfrom mlstack.core import context',
             'def f(n):\n    import torch\n    print("hello from", context().rank)\n    return float((torch.ones(n,n)@torch.ones(n,n)).sum())\nprint(run(f, 100, nprocs=2))',
             'def bad(): raise KeyError("from a cell")\ntry: run(bad, nprocs=2)\nexcept Exception as e: print(e)']
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(nb, timeout=300, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}).execute()
    text = [''.join(o.get('text','') for o in c.outputs) for c in nb.cells]
    assert 'hello from 0' in text[1] and '[1000000.0, 1000000.0]' in text[1]
    assert 'raise KeyError("from a cell")' in text[2] # the cell's own line, which is in no file


def test_large_messages_both_ways():
    data = os.urandom(30_000_000)
    assert workers.run(lambda b: b[::-1], data, nprocs=1) == [data[::-1]]


def test_what_cannot_be_sent_says_so():
    lock = threading.Lock()
    with pytest.raises(MlstackError, match='cannot be sent to a process'): workers.run(lambda: lock)
    def result(): return threading.Lock()
    with pytest.raises(workers.WorkerError, match='the result, a lock, cannot be sent'): workers.run(result)


def test_the_first_failure_is_the_one_told(tmp_path):
    class Cause(ValueError):
        def __reduce__(self): # it is on its way, its time is known
            self.args[0].touch()
            return ValueError, ('the cause',)
        def __str__(self): return 'the cause'
    def work(flag):
        if context().rank == 1: raise Cause(flag)
        while not flag.exists(): time.sleep(.001)
        raise RuntimeError('a consequence')
    for i in range(3):
        with pytest.raises(workers.WorkerError, match='worker 1 failed: Cause: the cause'): workers.run(work, tmp_path/str(i), nprocs=3)


def test_sys_exit_in_a_worker_is_a_failure_and_not_an_end():
    with pytest.raises(workers.WorkerError, match='sys.exit'): workers.run(lambda: sys.exit(3))


def test_pool_survives_repeated_kills():
    with workers.Pool(2) as pool:
        tasks = [pool.submit(lambda i=i: os.kill(os.getpid(), 9) if i%3==0 else i) for i in range(12)]
        states = [(t.wait(300), t.state)[1] for t in tasks]
    assert states == ['died' if i%3==0 else 'done' for i in range(12)]


def test_pools_from_threads_at_once():
    out = {}
    def use(i): out[i] = workers.run(lambda: context().world_size*100+i, nprocs=2)
    threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join(300)
    assert out == {i: [200+i]*2 for i in range(4)}


def test_forked_caller_has_a_server_of_its_own(tmp_path):
    p = script(tmp_path, '''
        import os, json
        from mlstack.workers import run
        run(os.getpid)
        pid = os.fork()
        if pid == 0:
            ok = run(lambda: 5, nprocs=2) == [5,5]
            open('child','w').write(str(ok))
            os._exit(0)
        os.waitpid(pid, 0)
        print(run(lambda: 6))
    ''')
    out,err = p.communicate(timeout=300)
    assert out.strip() == '[6]' and (tmp_path/'child').read_text() == 'True', err


def test_environment_folder_and_random_state_are_the_callers(tmp_path, monkeypatch):
    monkeypatch.setenv('COLOUR', 'green')
    monkeypatch.chdir(tmp_path)
    def facts():
        import random
        import numpy as np
        return os.environ.get('COLOUR'), os.getcwd(), random.random(), float(np.random.rand())
    a,b = workers.run(facts, nprocs=2)
    assert a[:2] == b[:2] == ('green', str(tmp_path))
    assert a[2] != b[2] and a[3] != b[3]


def test_stop_of_a_waiting_task_cancels_it(tmp_path):
    def until_told():
        while not (tmp_path/'go').exists(): time.sleep(.01)
    with workers.Pool(1) as pool:
        busy,waiting = pool.submit(until_told),pool.submit(os.getpid)
        waiting.stop('not needed')
        (tmp_path/'go').touch()
        with pytest.raises(StopTraining, match='not needed'): waiting.result()
        assert busy.result() is None and waiting.state == 'cancelled'


def test_closing_a_pool_ends_stuck_workers():
    pool = workers.Pool(1)
    t = pool.submit(time.sleep, 3600)
    until(lambda: t.pid)
    pid = t.pid
    pool.close(grace=.2)
    until(lambda: gone([pid]))


def test_every_file_descriptor_is_given_back():
    workers.run(os.getpid, nprocs=2)
    before = len(os.listdir('/dev/fd'))
    for _ in range(5): workers.run(os.getpid, nprocs=2)
    until(lambda: gc.collect() is not None and len(os.listdir('/dev/fd')) <= before) # threads of other tests may still be at work


def test_messages_come_in_order():
    def talk():
        for i in range(2000): workers.send(i)
    got = []
    workers.run(talk, on_message=lambda i,m: got.append(m))
    assert got == list(range(2000))
    assert json.dumps(got)


def test_what_can_be_read_only_in_the_worker_ends_its_task_and_not_the_pool(tmp_path):
    def message():
        class Unreadable:
            def __reduce__(self): return eval, ("__import__('os').environ['ONLY_THERE']",)
        os.environ['ONLY_THERE'] = '1'
        workers.send(Unreadable())
        time.sleep(60)
    def error():
        (tmp_path/'only_there.py').write_text('class Strange(Exception): pass')
        sys.path.insert(0, str(tmp_path))
        raise __import__('only_there').Strange('a cause')
    with workers.Pool(1) as pool:
        with pytest.raises(workers.WorkerError, match='cannot be read here: KeyError'): pool.submit(message).result(300)
        with pytest.raises(workers.WorkerError, match='Strange: a cause'): pool.submit(error).result(300)
        assert pool.submit(lambda: 5).result(300) == 5


def test_a_stop_that_follows_at_once_is_not_lost():
    def work():
        while True: context().stop.check(); time.sleep(.01)
    with workers.Pool(1) as pool:
        pool.submit(os.getpid).result()
        for _ in range(20):
            task = pool.submit(work)
            task.stop('enough')
            with pytest.raises(StopTraining, match='enough'): task.result(300)


def test_threads_that_ask_get_their_own_answers_and_no_old_one():
    def work(leave):
        if leave:
            threading.Thread(target=workers.ask, args=('left',), daemon=True).start()
            return time.sleep(.1)
        out = {}
        def one(i): out[i] = [workers.ask((i,k)) for k in range(50)]
        several = [threading.Thread(target=one, args=(i,)) for i in range(4)]
        for t in several: t.start()
        for t in several: t.join()
        return all(v == [(i,k) for k in range(50)] for i,v in out.items())
    with workers.Pool(1) as pool:
        left = pool.submit(work, True)
        task = pool.submit(work, False)
        for e in pool.events():
            if e.kind == 'ask' and e.task is left: time.sleep(.2)
            if e.kind == 'ask': e.task.reply(e.value)
        assert task.result() is True


def test_the_first_pools_of_several_threads_share_one_server(tmp_path):
    p = script(tmp_path, '''
        import os, threading
        from mlstack.workers import run
        out = []
        threads = [threading.Thread(target=lambda: out.extend(run(os.getppid))) for _ in range(6)]
        for t in threads: t.start()
        for t in threads: t.join()
        print(len(out), len(set(out)))
    ''')
    out,err = p.communicate(timeout=300)
    assert out.strip() == '6 1', err


def test_a_pool_outlives_its_server(tmp_path):
    p = script(tmp_path, '''
        import os, signal, time
        from mlstack import workers
        with workers.Pool(2) as pool:
            busy = [pool.submit(time.sleep, 60) for _ in range(2)]
            while not all(t.pid for t in busy): time.sleep(.01)
            os.kill(workers._mine[2].pid, signal.SIGKILL)
            print([(t.wait(300), t.state) for t in busy])
            print([pool.submit(lambda: 5).result(300) for _ in range(3)])
    ''')
    out,err = p.communicate(timeout=400)
    assert out.splitlines() == ["[(True, 'died'), (True, 'died')]", '[5, 5, 5]'], err


def test_a_pool_that_cannot_have_a_process_says_so(tmp_path):
    p = script(tmp_path, '''
        import sys
        from mlstack import workers
        sys.executable = '/bin/false'
        with workers.Pool(1) as pool:
            try: print(pool.submit(lambda: 5).result(300))
            except Exception as e: print(e)
            try: print(pool.submit(lambda: 5).result(300))
            except Exception as e: print(e)
    ''')
    out,err = p.communicate(timeout=300)
    assert any(o in out+err for o in ('lost its server process', 'no process left', 'the process that starts workers is gone')), out+err


def test_kill_of_a_task_whose_worker_is_not_up_yet():
    for i in range(8):
        with workers.Pool(1) as pool:
            task = pool.submit(time.sleep, 3600)
            time.sleep(.001*i)
            task.kill()
            assert task.wait(300) and task.state == 'died'
            assert pool.submit(lambda: 5).result(300) == 5


def test_loader_workers_that_print_while_large_messages_go():
    def work():
        from torch.utils.data import DataLoader
        class Loud(list):
            def __getitem__(self, i): print('item', i); return i
        for _ in DataLoader(Loud(range(600)), batch_size=10, num_workers=2): workers.send(b'x'*200_000)
        return 'all'
    seen = []
    assert workers.run(work, timeout=300, output=lambda i,name,text: seen.append(text)) == ['all']
    assert sorted(''.join(seen).split()) == sorted(' '.join(f'item {i}' for i in range(600)).split())


def test_the_return_of_a_forked_child_is_not_the_workers():
    def work():
        pid = os.fork()
        if pid == 0: return 'child'
        time.sleep(.2)
        os.waitpid(pid, 0)
        return 'parent'
    assert workers.run(work, timeout=300) == ['parent']


def test_a_forked_child_cannot_ask():
    def work():
        r,w = os.pipe()
        if os.fork() == 0:
            try: workers.ask('anything')
            except MlstackError as e: os.write(w, str(e).encode())
            os._exit(0)
        return os.read(r, 1000).decode()
    assert 'cannot ask' in workers.run(work, timeout=300)[0]


def test_a_call_leaves_nothing_to_the_next_on_its_worker(tmp_path):
    def dirty():
        import random
        import numpy as np
        import torch
        torch.set_grad_enabled(False); torch.set_default_dtype(torch.float64); torch.set_default_device('meta')
        torch.set_float32_matmul_precision('high'); torch.use_deterministic_algorithms(True)
        random.seed(1); np.random.seed(1); torch.manual_seed(1); torch.set_num_threads(3)
        signal.signal(signal.SIGINT, signal.SIG_IGN); signal.alarm(600)
        os.environ['LEFT'] = '1'; os.chdir(tmp_path); sys.argv[:] = ['other']
        sys.stdout = None
    def look():
        import random
        import numpy as np
        import torch
        state = (signal.alarm(0), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(), str(torch.zeros(1).device),
            torch.get_num_threads(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN, os.environ.get('LEFT'), os.getcwd(), sys.argv, type(sys.stdout).__name__)
        return state, (random.random(), float(np.random.rand()), float(torch.rand(1)))
    with workers.Pool(1) as pool:
        clean,_ = pool.submit(look).result()
        drawn = []
        for _ in range(2):
            pool.submit(dirty).result()
            state,numbers = pool.submit(look).result()
            assert state == clean
            drawn += numbers
    assert len(set(drawn)) == 6


def test_new_workers_draw_different_numbers_from_torch():
    def draw():
        import torch
        return float(torch.rand(1))
    a,b = workers.run(draw, nprocs=2)
    assert a != b


def test_a_last_line_without_an_end_is_shown(capsys):
    workers.run(lambda: print('half a line', end=''), output='all')
    assert capsys.readouterr().out == '[0] half a line\n'


def test_what_a_call_leaves_open_is_finished_with_its_error_before_the_next():
    def work(i):
        from mlstack import core
        if i == 0: core.after_call.append(lambda error: workers.send((i,repr(error)))) # a worker that imported tracking has one more
        if i == 1: raise ValueError('broken')
    with workers.Pool(1) as pool:
        tasks = [pool.submit(work, i) for i in range(2)]
        assert [e.value[1] for e in pool.events() if e.kind == 'message'] == ['None',"ValueError('broken')"]
        assert [t.state for t in tasks] == ['done','failed']
