"Sweeps on Ray Tune: a real Ray on a network of its own, and what is said without it."
import pytest
from mlstack.sweeps import Sweep
from mlstack.sweeps.coordinator import SweepError
from mlstack.sweeps.ray_trials import Desk, scheduler, searcher
from tests import house

grid = dict(method='grid', metric=dict(name='loss', goal='minimize'), parameters=dict(lr=dict(values=[.1, .2])))

@pytest.mark.server
@pytest.mark.probe('own_network')
def test_sweeps_on_a_real_ray(tmp_path_factory):
    "The same trials and the same stops as here; promotion, failures, a killed worker and a killed actor, Ctrl-C and on, a Tuner of one's own."
    folder = tmp_path_factory.mktemp('s')
    r = house.on_a_real_ray('tests.ray_sweeps_interop', folder, timeout=400, RAY_AUTH_MODE='token', MLSTACK_STATE=str(folder/'state'), TMPDIR=str(folder))
    assert r.returncode == 0, r.stdout[-4000:]
    steps = 'same stopped promoted failed killed resumed own'.split()
    assert [o for o in r.stdout.split('\n') if o in steps] == steps, r.stdout

def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setattr('builtins.__import__', lambda name, *a, real=__import__, **k: (_ for _ in ()).throw(ImportError(name, name=name)) if name.split('.')[0] == 'ray' else real(name, *a, **k))
    s = Sweep(grid, runs_dir=tmp_path)
    for f in (lambda: s.run(lambda c: 0, on='ray'), lambda: searcher(s), lambda: scheduler(s)):
        with pytest.raises(SweepError, match=r'Ray Tune is not installed.*pip install "ray\[tune\]"'): f()
    assert not s.trials

def test_another_place(tmp_path):
    with pytest.raises(SweepError, match="on='moon' is not available"): Sweep(grid, runs_dir=tmp_path).run(lambda c: 0, on='moon')

def test_a_rule_that_pauses_is_not_for_a_tuner(tmp_path):
    with pytest.raises(SweepError, match='checkpoint folders'): scheduler(Sweep(grid | dict(early_terminate=dict(type='asha', min_iter=1)), runs_dir=tmp_path))

def test_lost_four_times_is_failed(tmp_path):
    class RayActorError(Exception): pass
    s = Sweep(grid, runs_dir=tmp_path)
    desk = Desk(s)
    for i in range(4):
        assert desk.give(str(i)) == dict(lr=.1)
        desk.end(str(i), failed=RayActorError())
    assert s.trials[0].state == 'FAILED' and 'lost 4 times' in s.trials[0].why
    assert desk.give('x') == dict(lr=.2) and desk.give('y') is None
