"Horovod scripts on torch.distributed: its signatures, a script under torchrun, and what goes wrong in such scripts."
import inspect
import json
import subprocess
import sys
import textwrap

import pytest
import torch

from mlstack import workers
from mlstack.ddp import horovod as hvd
from mlstack.ddp.launching import launch
from tests import house

table = json.loads((house.root/'tests'/'data'/'horovod.json').read_text())


def defaults(signature):
    "Name -> default, the empty one where there is none; Horovod's are written as source."
    if not isinstance(signature, str): return {k: p.default for k, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
    found = eval(f'lambda {signature}: None', vars(hvd))
    return defaults(inspect.signature(found))


@pytest.mark.parametrize('name', table['signatures'])
def test_every_function_takes_what_that_of_horovod_takes(name):
    theirs, ours = defaults(table['signatures'][name]), defaults(inspect.signature(getattr(hvd, name)))
    assert list(theirs) == list(ours)[:len(theirs)] and theirs == {k: ours[k] for k in theirs}
    assert all(v is not inspect.Parameter.empty for k, v in ours.items() if k not in theirs)


def test_every_value_of_horovod_is_there():
    assert [k for k in table['values'] if not hasattr(hvd, k)] == []
    assert [hvd.Average, hvd.Sum, hvd.Adasum, hvd.Min, hvd.Max, hvd.Product] == list(range(6))


script = '''
    import argparse
    import torch, torch.nn as nn, torch.nn.functional as F
    from torch.utils.data import DataLoader, TensorDataset
    from torch.utils.data.distributed import DistributedSampler
    import mlstack.ddp.horovod as hvd

    parser = argparse.ArgumentParser()
    for name in ('batch-size', 'passes'): parser.add_argument('--' + name, type=int, default=1)
    parser.add_argument('--out')
    args = parser.parse_args()

    hvd.init()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(120, 1, 12, 12, generator=g, dtype=torch.float64)
    data = TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())
    sampler = DistributedSampler(data, num_replicas=hvd.size(), rank=hvd.rank())
    loader = DataLoader(data, batch_size=args.batch_size, sampler=sampler)
    torch.manual_seed(7 + hvd.rank())
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 2))
    opt = torch.optim.SGD(model.parameters(), lr=.05, momentum=.5)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1, .5)  # before the optimizer is wrapped: it has a hold of step
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(opt, root_rank=0)
    opt = hvd.DistributedOptimizer(opt, named_parameters=model.named_parameters(), op=hvd.Average, gradient_predivide_factor=hvd.size(), backward_passes_per_step=args.passes)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        opt.zero_grad()
        for i, (a, b) in enumerate(loader, 1):
            F.cross_entropy(model(a), b).backward()
            if i % args.passes == 0:
                opt.synchronize()
                nn.utils.clip_grad_norm_(model.parameters(), .5)
                with opt.skip_synchronize(): opt.step()
                opt.zero_grad()
        schedule.step()
    loss = hvd.allreduce(F.cross_entropy(model(x[hvd.rank()::hvd.size()]), data.tensors[1][hvd.rank()::hvd.size()]).detach(), name='loss')
    if hvd.rank() == 0: torch.save(dict(model.state_dict(), loss=loss, size=torch.tensor(hvd.size()), local=torch.tensor(hvd.local_size())), args.out)
    hvd.shutdown()
'''


def test_a_script_on_two_ranks_is_the_script_on_one(tmp_path):
    "Of the shape of Horovod's examples; its pytorch_mnist.py itself was run by hand."
    (tmp_path/'train.py').write_text(textwrap.dedent(script))
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node=2', '--rdzv-backend=c10d', '--rdzv-endpoint=127.0.0.1:0', '--local-addr=127.0.0.1']
    def weights(*command, batch_size):
        done = subprocess.run([*command, 'train.py', '--batch-size', str(batch_size), '--passes', '2', '--out', 'out.pt'], cwd=tmp_path, env=house.environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path/'out.pt', weights_only=True)
    two, one = weights(*torchrun, batch_size=10), weights(sys.executable, batch_size=20)
    assert (two.pop('size'), two.pop('local'), one.pop('size'), one.pop('local')) == (2, 2, 1, 1)
    for k in one: torch.testing.assert_close(two[k], one[k], rtol=1e-12, atol=1e-14)


def of_one(rank):
    "Gradients through collectives, uneven lengths, types, sets of ranks."
    found = {}
    x = torch.full((rank+1, 2), float(rank), requires_grad=True)
    (hvd.allgather(x)*torch.arange(6.).view(3, 2)).sum().backward()
    found['allgather gradient'] = x.grad.tolist()
    x = torch.tensor([1.+rank], requires_grad=True)
    (hvd.broadcast(x, root_rank=1)*(rank+1)).backward()
    found['broadcast gradient'] = x.grad.tolist()
    x = torch.arange(3., requires_grad=True)
    got, counts = hvd.alltoall(x, splits=torch.tensor([1, 2]))
    (got*(rank+1)).sum().backward()
    found['alltoall gradient'] = x.grad.tolist()
    x = torch.arange(3., requires_grad=True)
    (hvd.reducescatter(x, op=hvd.Sum)*(rank+1)).sum().backward()
    found['reducescatter gradient'] = x.grad.tolist()
    found['empty'] = hvd.allgather(torch.ones(rank*2, 1)).shape
    found['strided'] = hvd.allreduce(torch.arange(4.).view(2, 2).t(), op=hvd.Sum).tolist()
    t = torch.arange(4.).view(2, 2).t()
    hvd.allreduce_(t, op=hvd.Sum, prescale_factor=2., postscale_factor=.5)
    found['strided, in place'] = t.tolist()
    found['ints'] = [hvd.allreduce(torch.tensor([3+rank, -3-rank])).tolist(), hvd.allreduce(torch.tensor([2+rank]), op=hvd.Product).item(), hvd.allreduce(torch.tensor([rank]), average=False).item()]
    handle = hvd.grouped_allreduce_async([torch.ones(2), torch.ones(1)], op=hvd.Sum)
    found['grouped'] = [t.tolist() for t in hvd.synchronize(handle)] + [hvd.poll(handle)]
    one = hvd.add_process_set([rank_of_set := 1])
    found['set'] = (one.included(), hvd.allreduce(torch.ones(1), process_set=one).item() if rank == rank_of_set else None, one.size(), one.rank())
    if rank == 0:
        with pytest.raises(hvd.HorovodError, match='rank 0 is not in'): hvd.allreduce(torch.ones(1), process_set=one)
    with pytest.raises(hvd.HorovodError, match='there is a process set'): hvd.add_process_set([1])
    with pytest.raises(hvd.HorovodError, match='rank 5 is not in a world of 2'): hvd.add_process_set([5])
    found['removed'] = hvd.remove_process_set(one), hvd.remove_process_set(one), hvd.remove_process_set(hvd.global_process_set)
    found['objects'] = hvd.broadcast_object(dict(a=rank), root_rank=1), hvd.allgather_object(rank)
    found['sparse'] = hvd.sparse_allreduce_async(torch.sparse_coo_tensor([[rank]], [2.], (3,)), 'w', hvd.Average)().to_dense().tolist()
    return found


def of_the_optimizer(rank):
    "What scripts do to an optimizer, right and wrong."
    found = {}
    def parts(**kw):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict(dict(a=torch.nn.Linear(2, 2), b=torch.nn.Linear(2, 2), e=torch.nn.Embedding(4, 2, sparse=True), unused=torch.nn.Linear(1, 1)))
        return model, hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.), model.named_parameters(), **kw)
    # each rank uses other layers: the order in which gradients come differs, one bucket or many
    for groups in (None, 3, 8):
        model, opt = parts(groups=groups)
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        model['ab'[rank]](torch.ones(1, 2)).sum().backward()
        model['e'](torch.tensor([rank, 3])).sum().backward()
        opt.step()
        found[f'moved, groups={groups}'] = {k: (before[k]-p).detach().flatten().tolist() for k, p in model.named_parameters()}
    found['sparse again'] = model['e'].weight.grad.is_sparse
    opt.zero_grad()
    model['a'](torch.ones(1, 2)).sum().backward()
    with pytest.raises(hvd.HorovodError, match='zero_grad'): opt.zero_grad()
    with pytest.raises(hvd.HorovodError, match='more often than backward_passes_per_step'): model['a'](torch.ones(1, 2)).sum().backward()
    opt.load_state_dict(opt.state_dict())  # forgets what was under way
    found['class'] = type(opt).__name__, isinstance(opt, torch.optim.SGD)
    with pytest.raises(hvd.HorovodError, match='already'): hvd.DistributedOptimizer(opt)
    plain = torch.optim.SGD(model.parameters(), lr=1.)
    with pytest.raises(hvd.HorovodError, match='pairs of name and parameter'): hvd.DistributedOptimizer(plain, model.parameters())
    with pytest.raises(hvd.HorovodError, match='has no name'): hvd.DistributedOptimizer(plain, model['a'].named_parameters())
    with pytest.raises(hvd.HorovodError, match="'a' is there twice"): hvd.DistributedOptimizer(plain, [('a', p) for p in model.parameters()])
    with pytest.raises(hvd.HorovodError, match='Adasum'): hvd.DistributedOptimizer(plain, op=hvd.Adasum)
    with pytest.raises(hvd.HorovodError, match='Leave it out'): hvd.DistributedOptimizer(plain, op=hvd.Sum, gradient_predivide_factor=2.)
    with pytest.raises(hvd.HorovodError, match='communicator of MPI'): hvd.init(comm=object())
    torch.manual_seed(rank)
    lines, target = torch.nn.Linear(1, 1), torch.tensor([[1.], [3.]])[rank::2]
    hvd.broadcast_parameters(list(lines.named_parameters()), 1)
    newton = hvd.DistributedOptimizer(torch.optim.LBFGS(lines.parameters(), max_iter=10))
    def closure():
        newton.zero_grad()
        loss = (lines(torch.tensor([[float(rank)]]))-target).square().sum()
        loss.backward()
        return loss
    newton.step(closure)
    found['lbfgs'] = [round(p.item(), 3) for p in lines.parameters()]
    different = torch.optim.Adam(lines.parameters(), lr=.1*(rank+1))
    hvd.broadcast_optimizer_state(different, 1)
    found['lr of rank 1'] = different.param_groups[0]['lr']
    return found


def test_collectives_and_optimizers():
    def both():
        hvd.init(process_sets='dynamic')
        return of_one(hvd.rank()), of_the_optimizer(hvd.rank())
    (a, oa), (b, ob) = launch(both, nprocs=2, timeout=300)
    assert a.pop('allgather gradient') == [[0., 1.]] and b.pop('allgather gradient') == [[2., 3.], [4., 5.]]  # averaged, as Horovod has it
    assert a.pop('broadcast gradient') == [0.] and b.pop('broadcast gradient') == [1.5]
    assert a.pop('alltoall gradient') == b.pop('alltoall gradient') == [1., 2., 2.]
    assert a.pop('reducescatter gradient') == b.pop('reducescatter gradient') == [2., 2., 4.]
    assert a.pop('set') == (False, None, 1, None) and b.pop('set') == (True, 1., 1, 0)
    assert a == b == {'empty': (2, 1), 'strided': [[0., 4.], [2., 6.]], 'strided, in place': [[0., 4.], [2., 6.]], 'ints': [[3, -3], 6, 1], 'grouped': [[2., 2.], [2.], True],
        'removed': (True, False, False), 'objects': (dict(a=1), [0, 1]), 'sparse': [1., 1., 0.]}
    moved = {'a.weight': [.5]*4, 'a.bias': [.5]*2, 'b.weight': [.5]*4, 'b.bias': [.5]*2, 'e.weight': [.5]*4+[0.]*2+[1.]*2, 'unused.weight': [0.], 'unused.bias': [0.]}
    for k in (None, 3, 8):
        for o in (oa, ob): assert {n: pytest.approx(v, abs=1e-6) for n, v in o.pop(f'moved, groups={k}').items()} == moved
    assert oa == ob == {'sparse again': True, 'class': ('SGD', True), 'lbfgs': [2., 1.], 'lr of rank 1': .2}


def test_different_models_are_refused_on_every_rank():
    def work():
        hvd.init()
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), *[torch.nn.Linear(2, 1)]*hvd.rank())
        try: hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.), model.named_parameters())
        except hvd.HorovodError as e: return str(e)
    said = launch(work, nprocs=2, timeout=300)
    assert said[0] == said[1] and '1.weight is missing on rank 0 and (1, 2) float32 on rank 1' in said[0]


def test_a_rank_that_dies_in_a_collective_is_named():
    def work():
        import os
        hvd.init()
        if hvd.rank() == 1: os._exit(9)
        hvd.allreduce(torch.ones(1))
    with pytest.raises(workers.WorkerError, match='exit code 9|a collective failed'): launch(work, nprocs=2, timeout=300, output='none')
