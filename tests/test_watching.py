"A live picture in a real Jupyter kernel: redrawn during the run, there at the end and in the saved notebook, in the cell of a run and for another process; cheap, and no burden to anything."
import json, os, re, subprocess, sys, threading, time
import nbformat, pytest
from nbclient import NotebookClient
import mlstack.tracking as track
from mlstack.tracking import watching
from tests import house

class Watched(NotebookClient):
    "Keeps every update of a display."
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.updates = []
    def process_message(self, msg, cell, cell_index):
        if msg['msg_type'] in ('display_data','update_display_data'): self.updates.append((msg['msg_type'], msg['content']['data'], cell_index))
        return super().process_message(msg, cell, cell_index)

def execute(folder, *cells):
    "Run cells in a kernel of this checkout; the client and the notebook."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = Watched(nb, timeout=300, kernel_name='python3', resources=dict(metadata=dict(path=str(folder))))
    env = house.environment(MLSTACK_RUNS=folder/'runs')
    client.execute(env=env)
    return client,nb

def steps(data): return int(re.search(r'([\d,]+) steps', data['text/html'])[1].replace(',',''))

def test_in_the_cell_of_the_run(tmp_path):
    "The display is made once and replaced while the loop runs; the last picture has every step and is in the notebook, without anything printed."
    client,nb = execute(tmp_path, 'import mlstack.tracking as track, time',
        "with track.init(project='p', name='here', config=dict(lr=1)) as run:\n    live = run.live(every=.5)\n    n = 0\n    while n<60 or live.draws<4:\n        n += 1; run.log(loss=1/n); time.sleep(.03)",
        "assert not live.running and not live.thread.is_alive(), live\nprint(n, live.error)")
    kinds = [k for k,_,_ in client.updates]
    assert kinds.count('display_data')==1 and kinds.count('update_display_data')>=2
    counts = [steps(d) for _,d,_ in client.updates]
    n = int(nb.cells[2].outputs[0]['text'].split()[0])
    assert counts==sorted(counts) and counts[0]<counts[1]<n and counts[-1]==n
    assert all(cell==1 for *_,cell in client.updates)
    out, = nb.cells[1].outputs
    saved = json.loads(nbformat.writes(nb))['cells'][1]['outputs'][0]['data']
    assert f'here: finished, {n:,} steps' in ''.join(saved['text/html']) and '<svg' in ''.join(saved['text/html']) and 'loss' in ''.join(saved['text/plain'])
    assert '<script' not in out['data']['text/html']
    assert nb.cells[2].outputs[0]['text'].endswith('None\n')

def test_a_run_that_ends_with_its_cell_is_not_left_half_drawn(tmp_path):
    "Too short for one tick of the thread, and finished in a later cell."
    _,nb = execute(tmp_path, 'import mlstack.tracking as track',
        "run = track.init(project='p', name='short')\nrun.live()\nfor i in range(5): run.log(loss=i)",
        "for i in range(5): run.log(loss=i)\nrun.finish()", "live = run.live()\nlive")
    assert 'short: finished, 10 steps' in nb.cells[1].outputs[0]['data']['text/html']
    assert len(nb.cells[3].outputs)==1

def test_a_cell_that_is_run_again(tmp_path):
    "Takes over: one thread draws, in the newer cell."
    again = "a.append(track.live('loss < 10', every=.5))"
    _,nb = execute(tmp_path, "import mlstack.tracking as track, threading\na = []\nrun = track.init(project='p', name='r')\nrun.log(loss=1)", again, again,
        "print(sum(o.name=='mlstack-live' for o in threading.enumerate()), a[0]._ended.is_set(), a[1]._ended.is_set())\nrun.finish()\na[1].stop()")
    assert nb.cells[3].outputs[0]['text'].split() in (['1','True','False'],['2','True','False']) # the first may be in its last sleep

def test_another_process(tmp_path):
    "Runs of a process that was started elsewhere, found by a query, some of them later."
    code = f"import mlstack.tracking as track, time, os\nfor k in range(2):\n    with track.init(project='other', name=f'there {{k}}', dir={str(tmp_path/'runs')!r}) as run:\n        run.log(loss=1.)\n        while not os.path.exists('go'): time.sleep(.01)\n        for i in range(30): run.log(loss=1/(i+1)); time.sleep(.05)"
    p = subprocess.Popen([sys.executable,'-c',code], env=house.environment(), cwd=tmp_path)
    try: client,nb = execute(tmp_path, "import mlstack.tracking as track, time\nlive = track.live('project==\"other\"', every=.5)\nwhile not live.draws or not live.running: time.sleep(.1)\ntime.sleep(.1)\nwith live._lock: open('go','w').close()\nend = time.time()+280\nwhile time.time()<end and not (len(live.records)==2 and not live.running): time.sleep(.1)\nlive.stop()")
    finally:
        p.wait(300)
    seen = [re.sub('<[^>]+>','',d['text/html'])[:30] for _,d,_ in client.updates]
    assert any('there 0: running' in o for o in seen) and '2 runs: 2 finished' in nb.cells[0].outputs[0]['data']['text/html'], seen

def test_a_training_that_dies_is_shown_as_killed(tmp_path):
    p = subprocess.Popen([sys.executable,'-c',f"import mlstack.tracking as track, time\nrun = track.init(project='p', name='dies', dir={str(tmp_path)!r})\nfor i in range(10**6): run.log(loss=i); time.sleep(.01)"], env=house.environment(), cwd=tmp_path)
    while not len(found := track.runs(dir=tmp_path)) or 'loss' not in found[0].summary: time.sleep(.1)
    with open(tmp_path/'out','w') as out:
        live = found.live(out=out, every=.5)
        assert live.running
        p.kill()
        p.wait()
        live.thread.join(300)
    assert not live.thread.is_alive() and 'dies: killed' in (tmp_path/'out').read_text()

def test_what_it_costs(tmp_path):
    "Counted: drawings and the CPU of the thread, while 500,000 points are logged in the same process. One percent is what it may take, and each drawing of a hundred thousand steps is milliseconds."
    with track.init(project='p', dir=tmp_path) as run:
        live = run.live(every=.5, out=open(os.devnull,'w'))
        live._show = lambda last: (setattr(live, 'draws', live.draws+1), watching.picture(live.records))
        for _ in range(5): # a busy machine spoils a measurement
            began,cpu,first,before = time.monotonic(),time.process_time(),live.cpu,live.draws
            while time.monotonic()<began+3 or live.draws<before+2:
                for _ in range(1000): run.log(loss=1.)
                time.sleep(.01)
            took,used,spent = time.monotonic()-began,time.process_time()-cpu,live.cpu-first
            if spent<.05*used+.1 and spent<.05*took+.1: break
    live.stop()
    assert spent<.05*used+.1 and spent<.05*took+.1, (spent, used, took)

def test_a_reader_in_trouble_does_not_disturb(tmp_path):
    import shutil
    run = track.init(project='p', dir=tmp_path)
    run.log(loss=1.)
    out = open(tmp_path.parent/f'{tmp_path.name}.txt','w')
    live = run.live(every=.5, out=out)
    run.log(loss=.5)
    run._origins.join()
    shutil.move(run.path, tmp_path/'gone')
    time.sleep(1.2)
    run.log(loss=.25)
    shutil.move(tmp_path/'gone', run.path)
    run.finish()
    live.thread.join(300)
    assert not live.thread.is_alive() and 'finished' in repr(live)

class Terminal:
    def __init__(self): self.text = ''
    def isatty(self): return True
    def write(self, text): self.text += text
    def flush(self): pass

def test_it_leaves_the_line_to_the_bar_of_a_fit(tmp_path):
    "While Trainer's own bar is drawn nothing is written into its line; the last line comes when it is over."
    out,done = Terminal(),threading.Event()
    bar = threading.Thread(target=done.wait, name='mlstack-progress')
    bar.start()
    with track.init(project='p', dir=tmp_path, name='fit') as run:
        live = run.live(out=out)
        for i in range(10): run.log(loss=i)
        live.draw()
        assert out.text==''
        done.set()
        bar.join()
        run.log(loss=1)
        live.draw()
        assert 'fit: running, 11 steps' in out.text and '\n' not in out.text
    live.stop()
    assert out.text.endswith('\n') and out.text.count('\n')==1 and 'finished' in out.text

def test_a_closed_terminal(tmp_path):
    out = open(tmp_path/'x','w')
    with track.init(project='p', dir=tmp_path) as run:
        live = run.live(out=out)
        out.close()
        run.log(loss=1)
    live.stop()
    assert live.error is None

@pytest.mark.parametrize('how', ['pipe','tty'])
def test_a_script(tmp_path, how):
    "Output that is no terminal gets one line at the end; a terminal gets a line that is replaced."
    code = "import mlstack.tracking as track, time\nwith track.init(project='p', name='script') as run:\n    live = run.live(every=.5)\n    n = 0\n    while n<30 or live.mode=='line' and live.draws<4: n += 1; run.log(loss=1/n); time.sleep(.05)\nprint('after')"
    if how=='pipe':
        r = house.run(sys.executable,'-c',code, cwd=tmp_path, env=house.environment(MLSTACK_RUNS=tmp_path), timeout=300)
        assert r.returncode==0 and r.stdout.count('script: finished, 30 steps')==1 and 'running' not in r.stdout, r.stdout
        return
    r = house.run('script','-qec',f"{sys.executable} -c '{code.replace(chr(39), chr(34))}'", '/dev/null', cwd=tmp_path, env=house.environment(MLSTACK_RUNS=tmp_path), timeout=300)
    assert 'running' in r.stdout and r.stdout.count('\x1b[2K')>=3 and r.stdout.rstrip().splitlines()[-1].count(': finished, ')==1, r.stdout
