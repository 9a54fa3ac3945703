"Ranks: equal to one process, killed, left alone, under torchrun, and what cannot run on this machine."
import os
import signal

import pytest
import torch
from torch import nn

from mlstack import workers
from mlstack.core import MlstackError, context
from mlstack.ddp import launch
from mlstack.trainer import Data, Trainer


def problem(n=240, valid=101):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n+valid, 6, generator=g)
    y = (x.sum(1) > 0).long()
    return (x[:n], y[:n]), (x[n:], y[n:])


def train(batch_size, parallel=None, accumulate=1, epochs=2, clip=None, save=None):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6,16), nn.Tanh(), nn.Linear(16,2))
    t = Trainer(model, Data.from_tensors(*problem(), batch_size=batch_size), loss=nn.functional.cross_entropy, opt=lambda p, lr: torch.optim.SGD(p, lr, momentum=.9),
        lr=.1, accumulate=accumulate, clip=clip, parallel=parallel)
    t.fit(epochs=epochs, **({'save': save} if save else {}))
    return torch.cat([p.detach().flatten() for p in model.parameters()]), t.validate()['val_loss'], t.step


def test_two_ranks_are_one_process_of_the_same_global_batch():
    "Plain, accumulated and clipped."
    ways = [dict(), dict(accumulate=2), dict(clip=.5)]
    def all_of_them(): return [train(12, parallel='ddp', **kw) for kw in ways]
    for kw,(a,la,sa),(b,lb,sb) in zip(ways, *launch(all_of_them, nprocs=2)):
        alone,loss,steps = train(24, **kw)
        assert torch.equal(a, b) and la == lb and sa == sb == steps, kw
        torch.testing.assert_close(a, alone, rtol=1e-4, atol=1e-6)
        assert abs(la-loss) < 1e-6 # 101 samples on two ranks: none twice, none missing


def test_three_ranks():
    results = launch(train, 8, parallel='ddp', nprocs=3)
    alone,_,_ = train(24)
    for w,_,_ in results: torch.testing.assert_close(w, alone, rtol=1e-4, atol=1e-6)


def test_a_killed_rank_starts_again_from_the_last_checkpoint():
    "Rank 1 is killed after the first epoch of attempt 0; the result is what an uninterrupted run gives."
    def work(mortal):
        from mlstack.trainer import Callback
        class Kill(Callback):
            def before_epoch(self, t):
                if mortal and context().attempt == 0 and context().rank == 1 and t.epoch == 2: os.kill(os.getpid(), signal.SIGKILL)
        torch.set_num_threads(1)
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6,16), nn.Dropout(.3), nn.Tanh(), nn.Linear(16,2))
        t = Trainer(model, Data.from_tensors(*problem(), batch_size=12), loss=nn.functional.cross_entropy, lr=.01, callbacks=[Kill()], parallel='ddp')
        t.fit(epochs=4)
        return context().attempt, t.step, torch.cat([p.detach().flatten() for p in model.parameters()])
    straight = launch(work, False, nprocs=2)
    again = launch(work, True, nprocs=2, max_restarts=1, output='none')
    assert [r[0] for r in again] == [1,1] and again[0][1] == straight[0][1]
    assert torch.equal(again[0][2], straight[0][2])


def test_restarts_run_out():
    def work(): os._exit(7)
    with pytest.raises(workers.WorkerError, match='exit code 7'): launch(work, nprocs=2, max_restarts=1, output='none')


def test_without_ranks_the_error_says_how_to_start():
    with pytest.raises(MlstackError, match='launch\\(fn, nprocs=2\\)'): train(12, parallel='ddp')
    with pytest.raises(MlstackError, match='is not known'): train(12, parallel='dpp')


def test_ranks_of_one_launch_log_into_one_run(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path))
    def work():
        import mlstack.tracking as track
        with track.init(project='p') as run:
            for i in range(5): run.log({f'rank{context().rank}': i})
        return run.id
    a,b = launch(work, nprocs=2)
    import mlstack.tracking as track
    runs = track.runs(project='p', dir=tmp_path)
    assert a == b and len(runs) == 1
    assert runs[0].summary['rank0'] == runs[0].summary['rank1'] == 4


@pytest.mark.multi_gpu
def test_nccl():
    def work():
        import torch.distributed as dist
        return dist.get_backend(), torch.cuda.current_device()
    assert launch(work, nprocs=2) == [('nccl',0),('nccl',1)]


def test_runs_left_open_in_ranks_end_with_what_happened(tmp_path, monkeypatch):
    import mlstack.tracking as track
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path))
    def work(fail):
        track.init(project='ends', name='failed' if fail else 'fine').log({'a': 1})
        if fail: raise ValueError('the reason')
    launch(work, False, nprocs=2)
    with pytest.raises(workers.WorkerError): launch(work, True, nprocs=2)
    ends = {r.name: (r.state, r.error) for r in track.runs(project='ends', dir=tmp_path)}
    assert ends == {'fine': ('finished', ''), 'failed': ('failed', 'ValueError: the reason')}


def test_another_name_or_project_is_another_run_shared_by_the_ranks(tmp_path, monkeypatch):
    import mlstack.tracking as track
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path))
    def work(**kw):
        with track.init(**kw) as run: run.log({f'rank{context().rank}': 1.})
        return run.id
    with track.init(project='mine', name='caller', config=dict(lr=1)) as run:
        joined = launch(work, nprocs=2)
        other = launch(work, nprocs=2, project='other', config=dict(lr=.5))
        named = launch(work, nprocs=2, name='ddp')
    assert joined == [run.id]*2
    assert len(set(other)) == len(set(named)) == 1 and len({run.id, other[0], named[0]}) == 3
    (r,) = track.runs(project='other', dir=tmp_path)
    assert r.config['lr'] == .5 and r.facts.meta['parent'] == run.id and r.summary['rank0'] == r.summary['rank1'] == 1.
