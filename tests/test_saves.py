"Checkpoints that can be trusted: written beside the training, damaged in every way, on a full disk; signals; kills at random moments; exports."
import json
import os
import random
import shutil
import signal
import sys
import threading
import warnings
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlstack import workers
from mlstack.core import StopTraining, use
from mlstack.trainer import EMA, Callback, CallbackError, Checkpoints, CheckpointError, Data, EarlyStopping, ExportError, Preempted, SWA, SkipStep, Trainer
from mlstack.trainer import checkpoints as room
from mlstack.trainer.checkpoints import Staging, read_checkpoint, write_checkpoint
from tests import house


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv('MLSTACK_PROGRESS', 'no')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def samples(n=96, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n,16,generator=g), torch.randint(0,10,(n,),generator=g)


def model(width=32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16,width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(.5), nn.Linear(width,10))


def job(*callbacks, width=32, **kw): # 12 steps an epoch
    return Trainer(model(width), Data.from_tensors(samples(), samples(40,1), batch_size=8), F.cross_entropy, **dict(lr=3e-3, schedule='one_cycle') | kw, callbacks=list(callbacks))


def same(a, b): return all(torch.equal(p,q) for p,q in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True))
def is_same(a, b): return a.history.steps()==b.history.steps() and a.history.table()==b.history.table() and same(a,b)


class At(Callback):
    "Calls `do` in the hook `name` of a step."
    def __init__(self, name, step, do): self.step,self.do = step,do; setattr(self, name, self.go)
    def go(self, t):
        if t.step==self.step: self.do(t)
    def before_step(self, t): pass
    def before_update(self, t): pass
    def after_step(self, t): pass
    def before_validate(self, t): pass
    def after_epoch(self, t): pass


class Gate:
    "Holds the writing thread until it is opened."
    def __init__(self, monkeypatch):
        self.open,self.began,real = threading.Event(),threading.Event(),room.write_checkpoint
        def write(*a, **kw):
            self.began.set()
            assert self.open.wait(300)
            return real(*a, **kw)
        monkeypatch.setattr(room, 'write_checkpoint', write)


# Beside the training

def test_the_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    gate,then = Gate(monkeypatch),{}
    def remember(t): then.update({k: v.clone() for k,v in t.model.state_dict().items()})
    def look(t):
        assert gate.began.wait(300) and Checkpoints(tmp_path).steps()==[]
        gate.open.set()
    t = job(At('after_step',4,remember), At('after_step',7,look)).fit(epochs=1, save=Checkpoints(tmp_path, every=4, keep=9))
    assert Checkpoints(tmp_path).steps()==[12,8,4] and t._saving.thread is None
    saved = read_checkpoint(Checkpoints(tmp_path).path(4))
    assert saved['training']['step']==4 and all(torch.equal(saved['model'][k],v) for k,v in then.items())
    assert not any(torch.equal(v,t.model.state_dict()[k]) for k,v in then.items() if k.endswith('weight'))


def plain(o):
    "A checkpoint's content, comparable, without clocks."
    if isinstance(o, torch.Tensor): return o.dtype,tuple(o.shape),o.flatten().tolist()
    if isinstance(o, dict): return {k: plain(v) for k,v in o.items() if k not in ('spent','seconds','saved','lineage','sha256','files')}
    return [plain(v) for v in o] if isinstance(o,(list,tuple)) else o


def test_what_is_written_beside_the_training_is_what_is_written_in_its_way(tmp_path):
    for background in (True,False): job(EMA(), EarlyStopping()).fit(epochs=2, save=Checkpoints(tmp_path/str(background), every=5, background=background, keep=9))
    for step in (24,20,15,12,10,5):
        a,b = (read_checkpoint(Checkpoints(tmp_path/k).path(step)) for k in ('True','False'))
        assert plain(a)==plain(b)


@pytest.mark.parametrize('error', [None,StopTraining,KeyboardInterrupt,ZeroDivisionError])
def test_however_a_fit_ends_it_waits_for_its_last_checkpoint(tmp_path, monkeypatch, error):
    gate = Gate(monkeypatch)
    def end(t):
        threading.Timer(.2, gate.open.set).start()
        if error: raise error('enough')
    t = job(At('after_step',12,end))
    try: t.fit(epochs=1, save=Checkpoints(tmp_path, every=11))
    except (KeyboardInterrupt,ZeroDivisionError) as e: assert type(e) is error
    steps = Checkpoints(tmp_path).steps()
    assert 11 in steps and (12 in steps)==(error is not ZeroDivisionError) and not [o for o in threading.enumerate() if o.name=='mlstack-checkpoint']


def test_a_save_waits_for_the_one_before(tmp_path, monkeypatch):
    gate,c = Gate(monkeypatch),Checkpoints(tmp_path)
    c.save(1, dict(model=dict(w=torch.zeros(3))))
    threading.Timer(.2, gate.open.set).start()
    c.save(2, dict(model=dict(w=torch.ones(3))))
    assert c._steps()[-1]==1 and c.steps()==[2,1]
    assert [read_checkpoint(c.path(s))['model']['w'].sum() for s in (1,2)]==[0,3]


def test_a_copy_keeps_layout_sharing_and_metadata():
    conv,staging = nn.Conv2d(3,8,3).to(memory_format=torch.channels_last),Staging()
    state = conv.state_dict()
    wide = torch.arange(6.).expand(4,6)
    out = staging(dict(model=state, other=dict(wide=wide, again=wide, half=wide[:,:3], n=torch.tensor(3), sparse=torch.eye(2).to_sparse(), none=None)))
    assert out['model']._metadata==state._metadata and torch.equal(out['model']['weight'],conv.weight) and out['model']['weight'].stride()==conv.weight.stride()
    o = out['other']
    assert o['wide'] is o['again'] and torch.equal(o['wide'],wide) and torch.equal(o['half'],wide[:,:3]) and o['n'].item()==3 and torch.equal(o['sparse'].to_dense(),torch.eye(2))


# Which stay

def test_the_best_stays_through_a_resume_and_can_be_gone_back_to(tmp_path):
    class Best(Callback):
        def after_validate(self, t): t.validated['score'] = {1: .2, 2: .9, 3: .5, 4: .6, 5: float('nan'), 6: .4}[t.epoch+1]
    saves = lambda: Checkpoints(tmp_path, keep=1, best='score', forever=30)
    job(Best()).fit(epochs=3, save=saves())
    assert Checkpoints(tmp_path).steps()==[36,24]
    t = job(Best()).fit(epochs=6, save=saves(), resume=True)
    assert saves().steps()==[72,60,36,24] and saves().best_path.name=='step-000000024' # the first from 30 and from 60 on, the newest, the best
    last = [p.clone() for p in t.model.parameters()]
    t.best()
    assert (t.step,t.epoch,len(t.history))==(24,2,2) and not torch.equal(last[0],t.model[0].weight)
    f = saves().path(24)/'model.pt'
    f.write_bytes(f.read_bytes()[:-9])
    with pytest.warns(UserWarning, match='step-000000024 is skipped'): assert saves().best_path.name=='step-000000036'


def test_a_column_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CallbackError, match="no 'val_acc' to watch.*val_loss"): job().fit(epochs=1, save=Checkpoints(tmp_path, best='val_acc'))
    with pytest.raises(CheckpointError, match='nothing says|no column says'): job().fit(epochs=1, save=tmp_path/'b').best()


# Damage

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "A folder with two good checkpoints."
    folder,threads = tmp_path_factory.mktemp('two'),torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('MLSTACK_PROGRESS', 'no')
        job(EMA()).fit(epochs=2, save=folder)
    torch.set_num_threads(threads)
    return folder


def damage(folder, rng):
    "Something that disks and people do to the newest checkpoint; its name."
    c = Checkpoints(folder).path(24)
    f = rng.choice(sorted(c.iterdir()))
    data,kind = f.read_bytes(),rng.choice(['cut','flip','zeros','gone','all gone','manifest gone','empty'])
    if kind=='cut': f.write_bytes(data[:rng.randrange(len(data))])
    elif kind=='flip': at = rng.randrange(len(data)); f.write_bytes(data[:at]+bytes([data[at]^1<<rng.randrange(8)])+data[at+1:])
    elif kind=='zeros': at = rng.randrange(len(data)); f.write_bytes(data[:at]+bytes(min(512,len(data)-at))+data[at+512:])
    elif kind=='gone': f.unlink()
    elif kind=='all gone': [o.unlink() for o in c.iterdir()]
    elif kind=='manifest gone': (c/'manifest.json').unlink()
    else: f.write_bytes(b'')
    return f'{kind} {f.name}'


@pytest.mark.parametrize('seed', range(4))
def test_any_damage_is_named_and_the_one_before_is_used(tmp_path, two, seed):
    rng = random.Random(seed)
    whole = plain(read_checkpoint(Checkpoints(two).path(24)))
    for i in range(15):
        folder = tmp_path/str(i)
        shutil.copytree(two, folder)
        what = damage(folder, rng)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            path,parts = Checkpoints(folder).latest()
        said = [str(w.message) for w in seen]
        if path.name=='step-000000012': assert len(said)==1 and 'step-000000024 is skipped' in said[0], (what,said)
        else: assert not said and plain(parts)==whole, what # a flipped bit that means the same


def test_a_kill_between_two_renames_loses_nothing(tmp_path, two):
    c = Checkpoints(shutil.copytree(two, tmp_path/'c'))
    os.replace(c.path(24), c.folder/'.step-000000024.old')
    shutil.copytree(c.path(12), c.folder/'.step-000000036.tmp') # and one that was being written
    (c.folder/'.step-000000036.tmp'/'manifest.json').unlink()
    assert c.latest()[1]['training']['step']==24
    t = job(EMA()).fit(epochs=3, save=Checkpoints(c.folder, keep=2), resume=True)
    assert t.step==36 and sorted(p.name for p in c.folder.iterdir())==['step-000000024','step-000000036']


def test_a_checkpoint_of_the_first_format_is_read(tmp_path):
    straight = job().fit(epochs=3)
    t = job(At('after_step',25,_fail))
    with pytest.raises(ZeroDivisionError): t.fit(epochs=3, save=tmp_path)
    for step in (12,24):
        f = Checkpoints(tmp_path).path(step)/'manifest.json'
        said = json.loads(f.read_text())
        f.write_text(json.dumps({k: v for k,v in said.items() if k not in ('sha256','chip','mlstack','values')} | dict(format=1), indent=1))
    resumed = job().fit(epochs=3, save=tmp_path, resume=True)
    assert is_same(resumed, straight) and 'bit for bit' in resumed._why['resume']


def _fail(t): raise ZeroDivisionError('on purpose')


# Bad checkpoints

class Keeps(Callback):
    "A callback whose state has what it is told."
    def __init__(self, value): self.value = value
    def state_dict(self): return dict(value=self.value)
    def load_state_dict(self, s): self.value = s['worth']


def _other(parts, **kw): return parts | dict(training=parts['training'] | kw)


@pytest.mark.parametrize('make,says', [
    (lambda: job(width=64), r'another model: 0\.weight is \[32, 16\] and should be \[64, 16\], .*Build the model'),
    (lambda: Trainer(nn.Linear(16,10), job().data, F.cross_entropy), r'another model: it lacks weight, bias; it has 0\.weight, 0\.bias, 1\.weight, … besides'),
    (lambda: Trainer(model(), job().data, step=lambda m,b: F.cross_entropy(m(b[0]),b[1]), loss=F.cross_entropy, opt=None), 'another optimizer'),
    (lambda: job(EMA(), Keeps(1)), None),
])
def test_a_checkpoint_of_something_else_is_one_sentence(two, make, says):
    if says is None:
        t = make().load(two)
        assert any('Keeps starts anew' in s for s in t._differs)
        return
    with pytest.raises(CheckpointError, match=says): make().load(two)


def test_states_of_other_callbacks_are_said(tmp_path, two):
    with pytest.warns(UserWarning, match='EMA of the checkpoint is not used now'): t = job().fit(epochs=3, resume=two)
    assert 'bit for bit' not in t._why['resume']
    job(Keeps(3)).fit(epochs=1, save=tmp_path)
    with pytest.raises(CheckpointError, match="Keeps does not take the state it had in the checkpoint: KeyError: 'worth'"): job(Keeps(3)).fit(epochs=2, save=tmp_path, resume=True)


def test_a_state_that_cannot_be_kept_is_said_at_once_and_nothing_is_lost(tmp_path):
    job().fit(epochs=1, save=tmp_path)
    t = job(Keeps(lambda: 0))
    with pytest.raises(CheckpointError, match=r'a function cannot be kept in a checkpoint \(training\.callbacks\.value\)'): t.fit(epochs=2, save=tmp_path)
    assert job().load(next(tmp_path.glob('aside-*'), tmp_path)).step==12


def test_another_version_is_said(tmp_path, two):
    parts = read_checkpoint(Checkpoints(two).path(24))
    note = parts.pop('manifest')
    said = {k: v for k,v in note.items() if k not in ('format','saved','torch','files','sha256')}
    missing = write_checkpoint(tmp_path/'missing', parts | dict(training={k: v for k,v in parts['training'].items() if k!='recorder'}), said | dict(mlstack='0.0.0'))
    with pytest.raises(CheckpointError, match='has no recorder.*Read it with the version that wrote it, mlstack 0.0.0'): job(EMA()).load(missing)
    older = write_checkpoint(tmp_path/'older', parts, said | dict(mlstack='0.0.0', chip='abacus'))
    assert 'within tolerance (mlstack 0.0.0 then' in job(EMA()).load(older)._why['resume'] and 'chip abacus then' in job(EMA()).load(older)._why['resume']
    manifest = json.loads((older/'manifest.json').read_text())
    (older/'manifest.json').write_text(json.dumps(manifest | dict(format=7)))
    with pytest.raises(CheckpointError, match='has format 7, this mlstack reads 1 and 2.*Update mlstack'): job(EMA()).load(older)


def test_a_folder_that_cannot_be_written_is_said_before_the_first_step(tmp_path):
    (tmp_path/'file').write_text('')
    t = job()
    with pytest.raises(CheckpointError, match='checkpoints cannot be written here'): t.fit(epochs=1, save=tmp_path/'file'/'saves')
    assert t.step==0


# A full disk

def _first_save_fails(folder):
    import resource
    os.environ['MLSTACK_PROGRESS'] = 'no'
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000,resource.RLIM_INFINITY))
    t = job()
    try: t.fit(epochs=1, save=Checkpoints(folder, every=3))
    except CheckpointError as e: return t.step,str(e)


def test_a_fit_that_nothing_protects_yet_ends_with_the_error(tmp_path):
    step,said = workers.run(_first_save_fails, tmp_path)[0]
    assert 3<step<=6 and 'could not be written' in said # heard at the next step, or at the next save


on_full_disk = '''
import json, os, sys, warnings, torch, torch.nn.functional as F
from pathlib import Path
from torch import nn
from mlstack.trainer import Callback, Checkpoints, Data, Trainer
folder = Path(os.environ['FOLDER'])
class Ballast(Callback):
    def after_step(self, t):
        t._saving.join() # this test is about the disk, not about when
        if t.step==5: (folder/'ballast').write_bytes(bytes(os.statvfs(folder).f_bavail*os.statvfs(folder).f_frsize - 60_000))
        if t.step==9: seen.append(Checkpoints(folder).steps()); (folder/'ballast').unlink()
seen = []
torch.manual_seed(0)
x = torch.randn(64,100)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    t = Trainer(nn.Linear(100,100), Data.from_tensors((x,x), batch_size=4), F.mse_loss, callbacks=[Ballast()]).fit(steps=14, save=Checkpoints(folder, every=2, keep=1))
print(json.dumps(dict(step=t.step, during=seen, after=Checkpoints(folder).steps(), latest=Checkpoints(folder).latest()[1]['training']['step'], said=[str(w.message) for w in said], names=sorted(p.name for p in folder.iterdir()))))
'''


@pytest.mark.probe('small_disk')
def test_a_full_disk_does_not_end_a_training_that_a_checkpoint_protects(tmp_path):
    done = house.on_small_disk(on_full_disk, tmp_path, size='600k', FOLDER=tmp_path, MLSTACK_PROGRESS='no')
    assert done.returncode==0, done.stdout
    out = json.loads(done.stdout.splitlines()[-1])
    assert out['step']==14 and out['during']==[[4]] and out['after']==[14] and out['latest']==14 and out['names']==['step-000000014']
    assert out['said'] and all('goes on without its checkpoint' in s and 'could not be written' in s for s in out['said'])


# Threads

def test_threads_are_taken_again_where_nobody_set_them(tmp_path, monkeypatch):
    for name in ('OMP_NUM_THREADS','MKL_NUM_THREADS'): monkeypatch.delenv(name, raising=False)
    job().fit(epochs=1, save=tmp_path)
    torch.set_num_threads(2)
    t = job().load(tmp_path)
    assert torch.get_num_threads()==1 and 'bit for bit' in t._why['resume'] and 'as in the checkpoint' in str(t.explain())
    assert 'threads 1 then, 2 now' in job(threads=2).load(tmp_path)._why['resume'] and torch.get_num_threads()==2


# Signals

def send(number): return lambda t: os.kill(os.getpid(), number)


@pytest.mark.parametrize('hook,step,number,saved', [('before_update',16,signal.SIGUSR1,17), ('before_validate',24,signal.SIGTERM,24), ('before_update',0,signal.SIGTERM,None), ('after_epoch',36,signal.SIGUSR1,36)])
def test_a_signal_saves_and_leaves_and_the_next_process_goes_on(tmp_path, hook, step, number, saved):
    straight = job().fit(epochs=3)
    with use() as ctx:
        t = job(At(hook,step,send(number)))
        with pytest.raises(Preempted) as e: t.fit(epochs=3, save=tmp_path)
        assert ctx.stop.reason==signal.Signals(number).name and e.value.code==128+number and isinstance(e.value,StopTraining) and isinstance(e.value,SystemExit)
    assert Checkpoints(tmp_path).steps()[:1]==([saved] if saved else [])
    assert all(signal.getsignal(n)==signal.SIG_DFL for n in (signal.SIGTERM,signal.SIGUSR1))
    assert is_same(job().fit(epochs=3, save=tmp_path, resume=True), straight)


@pytest.mark.parametrize('average', [lambda: EMA(.9), lambda: SWA(.2)])
@pytest.mark.parametrize('hook,step', [('after_step',6), ('before_validate',6), ('before_validate',12)])
def test_a_signal_in_a_validation_between_epochs(tmp_path, hook, step, average):
    "It is made again, so that its row is there; what had counted it counts it once."
    fit,same = dict(epochs=2, validate=6), lambda t: [{k: v for k,v in r.items() if k!='seconds'} for r in t.history.rows]
    straight,again,averages = job(average()).fit(**fit),job(average()),[]
    with use(), pytest.raises(Preempted): job(average(),At(hook,step,send(signal.SIGTERM))).fit(**fit, save=tmp_path)
    again.fit(**fit, save=tmp_path, resume=True)
    averages = [c for t in (straight,again) for c in t.callbacks if hasattr(c,'applied')]
    assert is_same(again, straight) and same(again)==same(straight) and averages[0].n==averages[1].n and all(map(torch.equal, averages[0].mean, averages[1].mean))


def test_a_signal_during_a_save(tmp_path, monkeypatch):
    "It comes while the thread writes and the loop copies; the checkpoint of the next step is the one it leaves with."
    straight,real = job().fit(epochs=2),room.torch.save
    def save(*a, **kw):
        if threading.current_thread() is not threading.main_thread() and not sent: sent.append(1); os.kill(os.getpid(), signal.SIGTERM)
        return real(*a, **kw)
    sent = []
    monkeypatch.setattr(room.torch, 'save', save)
    with use():
        with pytest.raises(Preempted): job(At('after_step',6,lambda t: t._saving.join())).fit(epochs=2, save=Checkpoints(tmp_path, every=5))
    monkeypatch.setattr(room.torch, 'save', real)
    assert Checkpoints(tmp_path).steps()[0] in (5,6,7) # the signal is heard when the loop next looks
    assert is_same(job().fit(epochs=2, save=Checkpoints(tmp_path, every=5), resume=True), straight)


script = '''
import sys, time, torch, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from mlstack.trainer import Callback, Data, Trainer
class Long(Callback):
    def before_update(self, t):
        if t.step==2 and 'long' in sys.argv:
            print('in a long step', flush=True)
            time.sleep(3)
torch.manual_seed(0)
x = torch.randn(64,4)
pairs = (x,x[:,:1])
data = Data.from_tensors(pairs, batch_size=8) if 'workers' not in sys.argv else Data(DataLoader(TensorDataset(*pairs), batch_size=8, num_workers=2))
t = Trainer(torch.nn.Linear(4,1), data, F.mse_loss, callbacks=[Long()]).fit(epochs=2, save=sys.argv[1], resume=True)
print('done', t.step)
'''

# What the lesson says a job script should be, with scontrol's place taken by an echo.
batch = '''
trap 'kill -USR1 $!' USR1
"$@" &
wait $!; wait $!; code=$?
[ $code = 138 ] && echo requeue
exit $code
'''


@pytest.mark.skipif(signal.SIGUSR1!=10, reason='SIGUSR1 has another number here')
def test_a_job_script_hands_a_signal_on_and_learns_what_to_do(tmp_path):
    import subprocess
    (tmp_path/'train.py').write_text(script)
    (tmp_path/'job.sh').write_text(batch)
    run = lambda *args: subprocess.Popen(['bash', tmp_path/'job.sh', sys.executable, '-u', tmp_path/'train.py', tmp_path/'saves', *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=house.environment())
    p = run('long')
    for line in p.stdout:
        if 'in a long step' in line: p.send_signal(signal.SIGUSR1); break
    out = p.stdout.read()
    assert p.wait()==138 and 'SIGUSR1: step 3 is saved; leaving with exit code 138' in out and 'requeue' in out and 'Traceback' not in out
    p = run()
    out = p.stdout.read()
    assert p.wait()==0 and 'going on from saves/step-000000003' in out and 'done 16' in out and 'requeue' not in out


def test_a_signal_to_the_whole_group_finds_the_loaders_workers_patient(tmp_path):
    "As scancel sends it: without that the workers die first, and the fit with them, unsaved."
    import subprocess
    (tmp_path/'train.py').write_text(script)
    p = subprocess.Popen([sys.executable, '-u', tmp_path/'train.py', tmp_path/'saves', 'long', 'workers'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=house.environment(), start_new_session=True)
    for line in p.stdout:
        if 'in a long step' in line: os.killpg(p.pid, signal.SIGTERM); break
    out = p.stdout.read()
    assert p.wait()==143 and 'SIGTERM: step 3 is saved; leaving with exit code 143' in out and 'Traceback' not in out, out
    assert Checkpoints(tmp_path/'saves').steps()==[3]


# Several ranks

def test_a_checkpoint_of_one_process_goes_on_with_two(tmp_path):
    def ten(t): raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError): Trainer(model(), Data.from_tensors(samples(192), batch_size=8), F.cross_entropy, callbacks=[At('after_step',11,ten)]).fit(epochs=2, save=Checkpoints(tmp_path/'saves', every=10))
    runs = [workers.run(_two_of_one, tmp_path/f'{i}', tmp_path/'saves', nprocs=2, timeout=300) for i in range(2)]
    (a,b),(c,d) = runs
    assert a==c and b==d and a[0]==b[0]==10+7+12 and a[2]==b[2] and 'world_size 1 then, 2 now' in a[1]


def _two_of_one(file, saves):
    import gc
    from tests.test_trainer import Gloo
    os.environ['MLSTACK_PROGRESS'] = 'no'
    p = Gloo().start(file)
    warnings.simplefilter('ignore')
    t = Trainer(model(), Data.from_tensors(samples(192), batch_size=8), F.cross_entropy, parallel=p).fit(epochs=2, resume=saves)
    out = t.step, t._why['resume'], [w.tolist() for n,w in t.model.state_dict().items() if n.endswith(('weight','bias'))]
    del t.module, t
    gc.collect()
    p.dist.destroy_process_group()
    return out


def test_a_batch_left_out_on_one_rank_is_an_error(tmp_path):
    with pytest.raises(workers.WorkerError, match='rank 1 left out a batch that other ranks may train on.*everywhere = True'): workers.run(_skipping, tmp_path/'rendezvous', False, nprocs=2, timeout=300)
    a,b = workers.run(_skipping, tmp_path/'again', True, nprocs=2, timeout=300)
    assert a==b==22


class SkipsOne(Callback):
    def __init__(self, everywhere): self.everywhere = everywhere
    def before_step(self, t):
        if t.at==2 and (self.everywhere or t.parallel.rank==1): raise SkipStep


def _skipping(file, everywhere):
    import gc
    from tests.test_trainer import Gloo
    os.environ['MLSTACK_PROGRESS'] = 'no'
    p = Gloo().start(file)
    t = Trainer(nn.Linear(16,10), Data.from_tensors(samples(192), batch_size=8), F.cross_entropy, parallel=p, callbacks=[SkipsOne(everywhere)]).fit(epochs=2)
    step = t.step
    del t.module, t
    gc.collect()
    p.dist.destroy_process_group()
    return step


@pytest.mark.parametrize('rank', [0,1])
def test_a_signal_to_one_rank_saves_once_and_all_leave_with_its_code(tmp_path, rank):
    a,b = workers.run(_signalled_rank, tmp_path/'rendezvous', tmp_path/'saves', rank, nprocs=2, timeout=300)
    assert a==b==(a[0],128+signal.SIGTERM) and 3<=a[0]<240 and Checkpoints(tmp_path/'saves').steps()[0]==a[0]


def _signalled_rank(file, folder, rank):
    import gc
    from tests.test_trainer import Gloo
    os.environ['MLSTACK_PROGRESS'] = 'no'
    p = Gloo().start(file)
    class Send(Callback):
        def before_update(self, t):
            if t.step==2 and t.parallel.rank==rank: os.kill(os.getpid(), signal.SIGTERM)
    t = Trainer(nn.Linear(16,10), Data.from_tensors(samples(192), batch_size=8), F.cross_entropy, parallel=p, callbacks=[Send()])
    try: t.fit(epochs=20, save=folder)
    except Preempted as e: out = t.step,e.code
    del t.module, t
    gc.collect()
    p.dist.destroy_process_group()
    return out


# Kills

def test_killed_at_random_moments_and_resumed_bit_for_bit():
    rows = 'dropout,accumulation,augmentation; 2 workers'
    done = house.run(sys.executable, 'tests/bench/measure/resume.py', '--kills', house.moments(6), '--rows', rows, env=house.environment())
    out = json.loads(done.stdout.splitlines()[-1])
    assert out['total']>=6 and out['equal']==out['total'], out


# Exports

class Two(nn.Module):
    "Named and positional inputs, several outputs, and a number that is no tensor."
    def __init__(self): super().__init__(); self.a,self.b = nn.Linear(16,8),nn.Linear(4,8)
    def forward(self, x, other=None, scale=1.): return dict(sum=self.a(x)+scale*self.b(other), other=other)


def test_an_exported_program_is_the_model(tmp_path):
    two = Two()
    t = Trainer(two, step=lambda m,b: m(**b)['sum'].mean())
    inputs = dict(x=torch.randn(5,16), other=torch.randn(5,4), scale=2.)
    program = torch.export.load(t.export(tmp_path/'two.pt2', batch=inputs)).module()
    other = dict(x=torch.randn(9,16), other=torch.randn(9,4), scale=2.)
    assert torch.equal(program(**other)['sum'], two.eval()(**other)['sum'])
    one = torch.export.load(t.export(tmp_path/'one.pt2', batch=dict(x=torch.randn(1,16), other=torch.randn(1,4), scale=2.))).module()
    assert torch.equal(one(**other)['sum'], two(**other)['sum'])
    files = {'mlstack.json': ''}
    torch.export.load(tmp_path/'two.pt2', extra_files=files)
    assert json.loads(files['mlstack.json'])['step']=='0'


def test_what_is_exported_is_what_was_validated(tmp_path):
    t = job(EMA(.5)).fit(epochs=1)
    program = torch.export.load(t.export(tmp_path/'m.pt2')).module()
    assert torch.equal(program(samples()[0]), t.predict(samples()[0])) and t.model.training is True
    raw = [p.clone() for p in t.model.parameters()]
    u = job(EMA(.5)).fit(epochs=1).load(t.save(tmp_path/'m.safetensors'))
    assert torch.equal(u.predict(samples()[0]), t.predict(samples()[0])) and all(torch.equal(a,b) for a,b in zip(raw,t.model.parameters()))


class BatchOnly(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(16,8)
    def forward(self, x): return self.a(x).reshape(4,2,8) # only for eight items


def test_a_batch_size_that_is_fixed_is_said(tmp_path):
    t = Trainer(BatchOnly(), loss=F.mse_loss)
    with pytest.raises(ExportError, match='cannot be exported.*dynamic=False'): t.export(tmp_path/'m.pt2', batch=torch.randn(8,16))
    assert t.export(tmp_path/'m.pt2', batch=torch.randn(8,16), dynamic=False).exists() and sorted(p.name for p in tmp_path.iterdir())==['m.pt2']


def test_a_failed_export_leaves_what_was_there(tmp_path):
    (tmp_path/'m.pt2').write_text('precious')
    class Random(nn.Module):
        def __init__(self): super().__init__(); self.a = nn.Linear(16,8)
        def forward(self, x): return F.dropout(self.a(x), .5, True)
    with pytest.raises(ExportError, match='is not the model: for a batch of 8 its output differs by'): Trainer(Random(), loss=F.mse_loss).export(tmp_path/'m.pt2', batch=torch.randn(8,16))
    assert (tmp_path/'m.pt2').read_text()=='precious' and len(list(tmp_path.iterdir()))==1


@pytest.mark.skipif(not all(find_spec(n) for n in ('onnx','onnxscript','onnxruntime')), reason='onnx, onnxscript and onnxruntime are not installed')
def test_onnx_agrees_with_the_model(tmp_path):
    import onnx
    import onnxruntime
    t = job().fit(epochs=1)
    path = t.export(tmp_path/'m.onnx')
    session = onnxruntime.InferenceSession(path)
    for n in (1,3,50):
        x = samples(n,5)[0]
        torch.testing.assert_close(torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]), t.predict(x), rtol=1e-3, atol=1e-4)
    assert {p.key: p.value for p in onnx.load(path).metadata_props}['step']=='12' and [p.name for p in tmp_path.iterdir()]==['m.onnx']
    inputs = dict(x=torch.randn(5,16), other=torch.randn(5,4))
    assert Trainer(Two(), loss=F.mse_loss).export(tmp_path/'two.onnx', batch=inputs).exists()


def test_onnx_that_is_not_there_is_named(tmp_path, monkeypatch):
    from mlstack.trainer import exporting
    monkeypatch.setattr(exporting, 'find_spec', lambda n: None)
    with pytest.raises(ExportError, match=r'onnx and onnxscript and onnxruntime are not installed.*pip install "mlstack\[onnx\]"'): job().export(tmp_path/'m.onnx')
    assert not list(tmp_path.iterdir())


def test_safetensors_of_others_and_parts_of_larger_memory(tmp_path):
    from safetensors.torch import load_file
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            whole = torch.randn(4,6)
            self.register_buffer('left', whole[:,:3]); self.register_buffer('right', whole[:,3:]); self.register_buffer('none', torch.empty(0))
            self.w = nn.Parameter(torch.randn(2,3).t())
    a,b = Parts(),Parts()
    path = Trainer(a).save(tmp_path/'parts.safetensors')
    assert set(load_file(path))=={'left','none','right','w'}
    Trainer(b).load(path)
    assert all(torch.equal(x,y) for x,y in zip(a.state_dict().values(), b.state_dict().values()))


def test_a_callback_error_still_is_one():
    with pytest.raises(CallbackError, match='mode'): Checkpoints('x', best='loss', mode='up')
