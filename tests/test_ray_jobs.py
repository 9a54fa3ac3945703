"Jobs on Ray: a real cluster of one node on a network of its own, and what is asked of it."
import json
import pytest
from mlstack.core import MlstackError
from mlstack.resources import ray_jobs
from mlstack.resources.records import new_record
from tests import house

@pytest.mark.server
@pytest.mark.probe('own_network')
def test_jobs_on_a_real_ray(tmp_path_factory):
    "Fractions of a GPU, failure, retries, dependencies, cancel; the driver has ended before; a folder that travels; a cluster that is gone."
    folder = tmp_path_factory.mktemp('r')
    r = house.on_a_real_ray('tests.ray_jobs_interop', folder, timeout=400, RAY_AUTH_MODE='token', MLSTACK_STATE=str(folder/'state'), TMPDIR=str(folder))
    assert r.returncode == 0, r.stdout[-4000:]
    assert [o for o in r.stdout.split() if o in 'fractions failure retries needs cancelled travelled gone'.split()] == 'fractions failure retries needs cancelled travelled gone'.split(), r.stdout


# What is asked of Ray

def test_a_want_in_the_words_of_ray():
    assert ray_jobs.options(dict(want=dict(gpus=2, gpu_mem=0, cpus=8, mem=2**30), constraint='fast')) == dict(num_cpus=8, num_gpus=2, memory=2**30, resources={'fast': .001}, max_retries=0)
    assert ray_jobs.options(dict(want=dict(gpus=0, gpu_mem=0, cpus=0, mem=0), constraint='zone=eu')) == dict(num_cpus=1, num_gpus=0, label_selector=dict(zone='eu'), max_retries=0)
    with pytest.raises(MlstackError, match='does not count bytes'): ray_jobs.options(dict(want=dict(gpus=2, gpu_mem=.5)))

def test_without_ray(monkeypatch):
    monkeypatch.setattr('builtins.__import__', lambda name, *a, real=__import__, **k: (_ for _ in ()).throw(ImportError(name)) if name == 'ray' else real(name, *a, **k))
    monkeypatch.delenv('RAY_ADDRESS', raising=False)
    with pytest.raises(MlstackError, match='Ray is not installed.*pip install ray'): ray_jobs.check(dict(want=dict(gpus=1, gpu_mem=0)))

def test_a_cluster_that_cannot_be_asked_says_nothing_about_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_STATE', str(tmp_path))
    job = new_record(dict(name='moons', on='ray'), handle_json=json.dumps(dict(address='127.0.0.1:1', box='b', number=0)).encode())
    said = ray_jobs.look(job)
    assert said['state'] == 'waiting' and 'cannot reach' in said['why'] and not job.final
    assert ray_jobs.look(new_record(dict(name='x', on='ray')))['state'] == 'waiting' # no handle yet
