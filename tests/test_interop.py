"Models and data of other libraries, in the environments of tests/bench/peers.py that have them."
import os
import subprocess

import pytest

from tests import house, interop
from tests.bench import peers


@pytest.mark.server
@pytest.mark.parametrize('group', interop.groups)
def test_the_trainer_takes(group, tmp_path):
    try: python = peers.python_of('timm' if group == 'timm' else 'libraries')
    except (RuntimeError, OSError) as e: pytest.skip(f'the libraries cannot be installed here: {e}')
    env = dict(os.environ, PYTHONPATH=str(house.root), KERAS_BACKEND='torch', KERAS_HOME=str(tmp_path), HF_HOME=str(tmp_path), HF_HUB_OFFLINE='1', MLSTACK_PROGRESS='no', OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false')
    p = subprocess.run([python, '-m', 'tests.interop', group], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert p.returncode == 0, p.stdout[-500:] + p.stderr[-3000:]


@pytest.mark.server
@pytest.mark.probe('own_network')
def test_ranks_that_ray_has_started(tmp_path):
    "A real Ray on this machine, which hears nobody else: two actors, and Ray Train, are ranks of one launch."
    r = house.on_a_real_ray('tests.ray_interop', 'train', cwd=tmp_path, RAY_TRAIN_V2_ENABLED='1')
    assert r.returncode == 0 and 'actors: two ranks' in r.stdout and 'Ray Train: two ranks' in r.stdout, r.stdout[-6000:]
