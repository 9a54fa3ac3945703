"Ranks that Ray has started: actors with the variables that Ray Train sets, and Ray Train itself; `python -m tests.ray_interop` in an environment that has it, see test_interop.py."
import json
import os
import socket
import sys
import tempfile

import ray
import torch
import torch.distributed as dist
from torch import nn

torch.set_num_threads(1)


def work(x):
    from mlstack.core import context
    t = torch.tensor([x*(dist.get_rank()+1)])
    dist.all_reduce(t)
    return context().rank, context().world_size, t.item(), dist.get_backend()


def rank(config=None):
    "What a script does that is a rank already: launch simply runs, and a Trainer fits."
    from mlstack.ddp import DDP, launch
    from mlstack.ddp.rendezvous import enter
    from mlstack.trainer import Data, Trainer
    by = enter().by
    results = launch(work, 10., nprocs=2)
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    t = Trainer(nn.Linear(4, 1), Data.from_tensors((x, x.sum(1, keepdim=True)), batch_size=16//dist.get_world_size()), loss=nn.functional.mse_loss, lr=.05, parallel=DDP()) # by name needs an installed mlstack
    t.fit(epochs=2)
    return dict(by=by, results=results, steps=t.step, weight=t.model.weight.flatten().tolist(), group=dist.get_world_size())


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@ray.remote(num_cpus=1)
class Actor:
    def run(self, number, n, port):
        os.environ.update(RANK=str(number), WORLD_SIZE=str(n), LOCAL_RANK=str(number), LOCAL_WORLD_SIZE=str(n), NODE_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_TORCH_DEVICE='cpu')
        return rank()


def alone():
    "The same training in one process, without Ray."
    from mlstack.trainer import Data, Trainer
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    t = Trainer(nn.Linear(4, 1), Data.from_tensors((x, x.sum(1, keepdim=True)), batch_size=16), loss=nn.functional.mse_loss, lr=.05)
    t.fit(epochs=2)
    return t.step, t.model.weight.flatten()


def check(said):
    steps, weight = alone()
    assert len(said) == 2
    for o in said:
        assert o['by'] == 'Ray' and o['group'] == 2 and o['steps'] == steps, o
        assert [tuple(r) for r in o['results']] == [(0, 2, 30., 'gloo'), (1, 2, 30., 'gloo')], o
        torch.testing.assert_close(torch.tensor(o['weight']), weight, rtol=1e-4, atol=1e-6)
    assert said[0]['weight'] == said[1]['weight']


def actors():
    port = free_port()
    made = [Actor.remote() for _ in range(2)]
    check(ray.get([a.run.remote(i, 2, port) for i, a in enumerate(made)], timeout=240))
    print('actors: two ranks as one process', flush=True)


def train(folder):
    "Ray Train's TorchTrainer, which makes the group itself before it calls the function."
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    def loop(config):
        with open(f'{config["folder"]}/{os.environ["RANK"]}.json', 'w') as f: json.dump(rank(), f)
    TorchTrainer(loop, train_loop_config=dict(folder=folder), torch_config=TorchConfig(backend='gloo'), scaling_config=ScalingConfig(num_workers=2, use_gpu=False), run_config=RunConfig(name='fit', storage_path=folder)).fit()
    check([json.load(open(f'{folder}/{i}.json')) for i in range(2)])
    print('Ray Train: two ranks as one process', flush=True)


def main():
    with tempfile.TemporaryDirectory(dir='/tmp', prefix='ray-') as folder: # sockets want short names
        ray.init(address='local', num_cpus=3, include_dashboard=False, object_store_memory=100*2**20, _node_ip_address='127.0.0.1', _temp_dir=folder, log_to_driver=False,
            runtime_env=dict(env_vars=dict(PYTHONPATH=os.environ['PYTHONPATH'], GLOO_SOCKET_IFNAME='lo', MLSTACK_PROGRESS='no')))
        try:
            actors()
            if 'train' in sys.argv: train(tempfile.mkdtemp(dir=folder))
        finally: ray.shutdown()


if __name__ == '__main__': main()
