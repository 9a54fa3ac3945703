"The lock installs anywhere, and holds what pyproject.toml asks for."
import re, tomllib
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests import house

folder = house.root/'requirements'
lines = [o.split(' #')[0].strip() for o in (folder/'dev.txt').read_text().splitlines() if o.strip() and not o.strip().startswith('#')]
project = tomllib.loads((house.root/'pyproject.toml').read_text())['project']
direct = [*project['dependencies'], *(o for v in project['optional-dependencies'].values() for o in v)]
# Extras that a user adds; the lock is for development and CI.
unlocked = {'xlsx', 'ray', 'mlflow', 'tensorboard', 'serve', 'data', 'app'}
locked_direct = [*project['dependencies'], *(o for k, v in project['optional-dependencies'].items() if k not in unlocked for o in v)]

def locked(): return {canonicalize_name(r.name): r for r in map(Requirement, lines)}

@pytest.mark.parametrize('line', lines)
def test_a_line_installs_anywhere(line):
    assert re.fullmatch(r'[A-Za-z0-9._-]+==[A-Za-z0-9.!]+', line), f'{line!r}: name==version and nothing else (no link, no path, no +cpu, no option)'
    name = canonicalize_name(line.split('==')[0])
    assert name != 'torch' and not name.startswith(('triton', 'pytorch-triton', 'cuda-')), f'{line!r} belongs to torch'
    assert not name.startswith('nvidia-') or name == 'nvidia-ml-py', f'{line!r} belongs to torch'

def test_torch_is_one_line_of_its_own():
    text = (folder/'torch.txt').read_text()
    assert re.fullmatch(r'torch==\d+\.\d+\.\d+\n', text)

def test_no_name_twice(): assert len(locked()) == len(lines)

@pytest.mark.parametrize('wanted', locked_direct)
def test_direct_dependency_is_locked_within_its_range(wanted):
    want = Requirement(wanted)
    have = Requirement((folder/'torch.txt').read_text().strip()) if want.name == 'torch' else locked().get(canonicalize_name(want.name))
    assert have is not None, f'{wanted}: run `make lock`'
    version = next(iter(have.specifier)).version
    assert want.specifier.contains(version, prereleases=True), f'{wanted}: the lock has {version}; run `make lock`'

def test_dev_set_moves_together():
    assert all(re.search(r'==', next(o for o in direct if o.startswith(n))) for n in ('nbdev', 'execnb')), 'nbdev, fastcore and execnb are pinned as a set'
