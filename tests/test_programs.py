"Trials that are programs: exact stops, variables and files, exit codes, signals, notebooks, what is not there."
import json
import os
import signal
import sys
import textwrap
import threading

import psutil
import pytest

from mlstack.core import MlstackError
from mlstack.sweeps import Sweep, SweepError, read_spec
from mlstack.sweeps.programs import Program
from tests import house
from tests.house import wait_for as until

TRAIN = '''
    import argparse, json, os, sys, wandb
    p = argparse.ArgumentParser()
    p.add_argument('--x', type=float)
    x = p.parse_args().x
    open(f'seen-{os.environ["WANDB_RUN_ID"]}', 'w').write(json.dumps({k: os.environ.get(k) for k in ('WANDB_SWEEP_ID','WANDB_SWEEP_PARAM_PATH','MLSTACK_TRIAL','WANDB_DIR')} | dict(group=os.getpgid(0)==os.getpgid(os.getppid()), stdin=sys.stdin.read())))
    with wandb.init(config=dict(x=9., other=1)) as run:
        for epoch in range(9): wandb.log({'loss': wandb.config.x, 'epoch': epoch})
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in ('STATE','LEASES','QUEUE'): monkeypatch.setenv(f'MLSTACK_{k}', str(tmp_path/k.lower()))
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path/'runs'))
    return tmp_path


def sweep(code, values=(1., 2., 3., 4.), name='train.py', **more):
    open(name, 'w').write(textwrap.dedent(code))
    return Sweep(dict(program=name, method='grid', metric=dict(name='loss'), parameters=dict(x=dict(values=list(values)))) | more)


def files(s, t): return s.runs/s.project/t.id/'files'


def test_a_program_is_stopped_at_the_very_report(folder):
    s = sweep(TRAIN, early_terminate=dict(type='hyperband', min_iter=3, eta=2, strict=True)).run(workers=1, progress=False)
    assert [(t.state, len(t.reports)) for t in s.trials]==[('DONE',9), *[('PRUNED',3)]*3] or [t.state for t in s.trials]==['DONE','DONE','PRUNED','PRUNED']
    stopped = [t for t in s.trials if t.state=='PRUNED']
    assert stopped and all(len(t.reports)==3 for t in stopped) # nothing was logged after the decision
    t = stopped[0]
    seen = json.loads((folder/f'seen-{t.id}').read_text())
    assert seen['WANDB_SWEEP_ID']==s.id and seen['WANDB_DIR']==str(folder) and seen['stdin']=='' and seen['group'] is False
    path = files(s, t)
    assert seen['WANDB_SWEEP_PARAM_PATH']==str(path/'config.yaml') and json.loads((path/'args.json').read_text())==t.config
    assert 'StopTraining' in (path/'output.log').read_text() and not os.path.exists(seen['MLSTACK_TRIAL'])
    import mlstack.tracking as track
    record = next(o for o in track.runs(dir=s.runs) if o.id==t.id)
    assert record.state=='finished' and record.config['x']==t['x'] and record.config['other']==1 and len(record.metric('epoch')[0])==3


def test_exit_codes_stop_the_sweep_with_the_last_line(folder):
    s = sweep("import sys\nprint('about to fail')\nraise ValueError('no such lr')\n")
    with pytest.raises(SweepError, match='exit code 1: ValueError: no such lr') as e: s.run(workers=1, progress=False)
    assert 'the first 3 trials failed' in str(e.value) and 'about to fail' in str(e.value)
    assert [t.state for t in s.trials]==['FAILED']*3 and 'exit code 1' in s.trials[0].why


def test_a_program_that_never_opens_a_run_is_told_how(folder):
    s = sweep("import argparse\np = argparse.ArgumentParser(); p.add_argument('--x'); print('loss', p.parse_args().x)\n", values=(1.,))
    with pytest.raises(SweepError, match='never opened its run, so loss is not known'): s.run(workers=1, progress=False)
    assert 'wandb.log' in s.trials[0].error and 'loss 1.0' in (files(s, s.trials[0])/'output.log').read_text()


def test_a_program_that_logs_something_else(folder):
    s = sweep("import wandb\nwith wandb.init(): wandb.log(dict(val_loss=1.))\n")
    with pytest.raises(SweepError, match='logged were .*val_loss'): s.run(workers=1, progress=False)
    assert len(s.trials)==1


def test_a_value_of_the_summary_counts(folder):
    s = sweep("import wandb\nwith wandb.init() as run: run.summary['loss'] = run.config.x*2\n").run(workers=1, progress=False)
    assert [t.value for t in s.trials]==[2.,4.,6.,8.]


@pytest.mark.parametrize('name', ['SIGKILL','SIGTERM'])
def test_a_program_killed_from_outside_is_tried_again(folder, name):
    s = sweep('''
        import os, signal, wandb
        from pathlib import Path
        with wandb.init() as run:
            wandb.log(dict(loss=run.config.x))
            first = Path(f'began-{run.id}')
            if run.config.x==2 and not first.exists():
                first.touch()
                os.kill(os.getpid(), signal.NAME)
    '''.replace('NAME', name)).run(workers=1, progress=False)
    assert [(t.state,t.attempt) for t in s.trials]==[('DONE',0),('DONE',1),('DONE',0),('DONE',0)]
    lost = [json.loads(o) for o in (s.folder/'journal.jsonl').read_text().splitlines() if '"lost"' in o]
    assert len(lost)==1 and name in lost[0]['why']


def test_a_crash_of_its_own_fails(folder):
    s = sweep("import wandb, os, signal\nwith wandb.init() as run:\n    wandb.log(dict(loss=1.+run.config.x))\n    if run.config.x==1: os.kill(os.getpid(), signal.SIGSEGV)\n").run(workers=1, progress=False)
    assert s.trials[0].state=='FAILED' and 'SIGSEGV' in s.trials[0].why and [t.state for t in s.trials[1:]]==['DONE']*3


def test_a_program_that_does_not_listen_is_terminated_and_then_killed(folder, monkeypatch):
    monkeypatch.setenv('WANDB_AGENT_KILL_DELAY', '0.3')
    from mlstack.core import StopTraining, context, use
    import mlstack.tracking as track
    open('deaf.py','w').write("import os, signal, time\nsignal.signal(signal.SIGTERM, lambda *_: open('asked','w').close())\nopen('ready','w').close()\nwhile True: time.sleep(.1)\n")
    program = Program(read_spec(dict(program='deaf.py', method='grid', parameters=dict(x=dict(value=1)))))
    with use(run='r1', trial='0', sweep='s', project='p', runs=str(folder/'runs')) as ctx, track.init(surroundings=False):
        assert context().stop is ctx.stop
        def ask():
            until((folder/'ready').exists)
            ctx.stop.set('enough')
        t = threading.Thread(target=ask)
        t.start()
        with pytest.raises(StopTraining, match='enough'): program.run(dict(x=1), lambda *_: None)
        t.join()
        ctx.stop.reason = None
    assert (folder/'asked').exists()


def test_a_program_ends_with_its_worker_however_that_ends(folder):
    s = sweep('''
        import os, subprocess, sys, time, wandb
        with wandb.init() as run:
            child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])
            open('pids','w').write(f'{os.getpid()} {child.pid} {os.getppid()}')
            if not os.path.exists('again'): time.sleep(300)
            child.kill()
            wandb.log(dict(loss=1.))
    ''', values=(1.,))
    dead = []
    def kill():
        pids = until(lambda: (folder/'pids').exists() and len(o := (folder/'pids').read_text().split())==3 and o)
        (folder/'again').touch()
        for p in map(psutil.Process, map(int, pids[:2])): dead.append(p)
        os.kill(int(pids[2]), signal.SIGKILL) # the worker
    t = threading.Thread(target=kill)
    t.start()
    s.run(workers=1, progress=False)
    t.join()
    assert (s.trials[0].state, s.trials[0].attempt)==('DONE',1)
    until(lambda: not any(p.is_running() and p.status()!=psutil.STATUS_ZOMBIE for p in dead))


NOTEBOOK = [('parameters', "x = 0.\nname = 'a'"), ('', "import wandb\nrun = wandb.init()\nfor i in range(5): wandb.log(dict(loss=x, i=i))"), ('', 'wandb.finish()\nprint("done", name)')]


def notebook(path, cells):
    cells = [dict(cell_type='code', id=f'c{i}', metadata=dict(tags=[tag] if tag else []), source=source, outputs=[], execution_count=None) for i,(tag,source) in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=dict(name='python3', language='python', display_name='p')), nbformat=4, nbformat_minor=5)))


def test_a_notebook_is_a_program(folder):
    notebook(folder/'train.ipynb', NOTEBOOK)
    spec = dict(program='train.ipynb', method='grid', metric=dict(name='loss'), parameters=dict(x=dict(values=[1.,2.]), name=dict(value='b')), early_terminate=dict(type='hyperband', min_iter=2, eta=2, strict=True))
    s = Sweep(spec).run(workers=1, progress=False)
    assert [(t.state, t.value, len(t.reports)) for t in s.trials] in ([('DONE',1.,5),('PRUNED',2.,2)], [('DONE',1.,5),('DONE',2.,5)])
    out = json.loads((files(s, s.trials[0])/'train.ipynb').read_text())
    assert any('injected-parameters' in c['metadata'].get('tags',()) and "name = 'b'" in ''.join(c['source']) for c in out['cells'])
    assert 'done b' in (files(s, s.trials[0])/'output.log').read_text()
    with pytest.raises(MlstackError, match="no parameter 'y'"): Sweep(spec | dict(parameters=dict(y=dict(value=1)))).run(progress=False)


def test_what_is_not_there_is_said_before_the_first_trial(folder):
    (folder/'train.py').touch()
    base = dict(method='grid', parameters=dict(x=dict(value=1)))
    for spec,word in ((dict(program='trian.py'),"Did you mean 'train.py'"), (dict(command=['torchrum','x.py']),"no program 'torchrum'"), (dict(program='nb.ipynb'),'cannot be read')):
        s = Sweep(base|spec)
        with pytest.raises(MlstackError, match=word): s.run(progress=False)
        assert not s.trials
    with pytest.raises(SweepError, match='neither a function nor a program'): Sweep(base).run(progress=False)


def test_commands_are_left_untouched_and_torchrun_reports_once(folder):
    (folder/'pkg').mkdir()
    (folder/'pkg'/'main.py').write_text("import sys, wandb\nwith wandb.init() as run:\n    run.summary['argv'] = ' '.join(sys.argv[1:])\n    for i in range(3): wandb.log(dict(loss=run.config.x))\n")
    s = Sweep(dict(command=['${env}','KEY=a b','python','-m','pkg.main','-v','${args_no_hyphens}'], method='grid', metric=dict(name='loss'), parameters=dict(x=dict(values=[1.])))).run(workers=1, progress=False)
    import mlstack.tracking as track
    assert track.runs(dir=s.runs)[0].summary['argv']=='-v x=1.0' and len(s.trials[0].reports)==3


def test_two_ranks_of_a_program_report_once(folder):
    # what torchrun does to a program, without torch: a rank is a process with these variables
    s = sweep('''
        import os, subprocess, sys
        ranks = [subprocess.Popen([sys.executable, '-c', "import os, wandb; run = wandb.init(); [wandb.log(dict(loss=1.+int(os.environ['RANK']))) for _ in range(3)]; wandb.finish()"], env=os.environ|dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE='2')) for r in (0,1)]
        sys.exit(max(p.wait() for p in ranks))
    ''', values=(1.,)).run(workers=1, progress=False)
    assert [v for _,v in s.trials[0].reports]==[1.]*3


def test_a_program_that_ignores_its_parameters_is_noticed(folder, capsys):
    sweep("import wandb\nwith wandb.init(): wandb.log(dict(loss=.25))\n").run(workers=1, progress=True)
    assert 'came to exactly 0.25, whatever their parameters' in capsys.readouterr().out


def test_a_sweep_resumed_elsewhere_runs_where_it_began(folder, monkeypatch):
    s = sweep("import os, wandb\nwith wandb.init() as run: wandb.log(dict(loss=run.config.x)); run.summary['cwd'] = os.getcwd()\n")
    s.run(workers=1, count=1, progress=False)
    s.close()
    (folder/'elsewhere').mkdir()
    monkeypatch.chdir(folder/'elsewhere')
    s = Sweep(resume=s.id).run(workers=1, progress=False)
    assert [t.state for t in s.trials]==['DONE']*4


def test_the_command_pauses_resumes_and_stops(folder):
    (folder/'sweep.yaml').write_text('program: train.py\nmethod: grid\nmetric: {name: loss}\nparameters: {x: {values: [1.0, 2.0, 3.0]}}\n')
    (folder/'train.py').write_text("import wandb\nwith wandb.init() as run: wandb.log(dict(loss=run.config.x))\n")
    env = house.environment(**{k:os.environ[k] for k in ('MLSTACK_STATE','MLSTACK_LEASES','MLSTACK_RUNS')})
    def shell(line): return house.run(sys.executable,'-c','from mlstack.cli.commands import main; main()',*line.split(), cwd=folder, env=env, leave_nothing=True)
    r = shell('sweep sweep.yaml --count 1 --workers 1')
    assert r.returncode==0, r.stdout
    id = next((folder/'runs').glob('*/sweeps/*')).name
    assert 'interrupted' in shell('sweep ls').stdout
    assert 'nobody ran it' in shell(f'sweep pause {id} --why lunch').stdout and 'paused' in shell('sweep ls').stdout
    assert shell('sweep sweep.yaml --resume').returncode==2
    r = shell(f'sweep resume {id} --count 1 --workers 1')
    from mlstack.sweeps.coordinator import read_sweep
    assert r.returncode==0 and len(read_sweep(id).trials)==2, r.stdout
    assert 'nobody ran it' in shell(f'sweep stop {id}').stdout and 'stopped' in shell('sweep ls').stdout
    assert json.loads(shell('sweep ls --json').stdout)[0]['ended']==2
    r = shell('sweep sweep.yaml --dry')
    assert r.returncode==0 and 'train.py --x=1.0' in r.stdout
