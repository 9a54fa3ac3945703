"""image.py container|here: the seconds of `mlstack demo --quick` as a job through `submit`: in the image of this project's generated Dockerfile, or on this machine.
The image has a base made here (no registry is asked), every package of the lock by pip, and nothing of this machine's environment."""
import contextlib, json, os, re, subprocess, sys, tempfile, time
from pathlib import Path
from tests import house, images
from tests.test_containers import podman_variables

def built(b, folder):
    "The image, and how long it took."
    project = folder/'mlstack'
    subprocess.run(['git', 'clone', '--quiet', '--depth', '1', f'file://{house.root}', project], check=True)
    told = project/'pyproject.toml'
    told.write_text(re.sub(r'(?m)^debian(_dev)? = .*\n', '', told.read_text()).replace('[tool.mlstack.files]\n', '[tool.mlstack.files]\nbase = "localhost/base"\ndebian = []\ndebian_dev = []\n'))
    from mlstack.env.recipes import files
    files(project)
    b.base()
    wheels = [f'{o}:{o}:ro' for o in os.environ.get('PIP_FIND_LINKS', '').split() if o.startswith('/')]
    (folder/'pip.conf').write_text('[global]\n' + ''.join(f'find-links = {o.split(":")[0]}\n' for o in wheels) + f'extra-index-url = {os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")}\nretries = 1\n')
    certificates = os.environ.get('PIP_CERT')
    more = ['--volume', f'{certificates}:{certificates}:ro', '--env', f'PIP_CERT={certificates}'] if certificates else []
    began = time.monotonic()
    b.build(project, 'localhost/mlstack', '--network', 'host', *(x for o in wheels for x in ('--volume', o)), *more, '--secret', f'id=pip,src={folder/"pip.conf"}', timeout=2400)
    return project, time.monotonic()-began

def trained(folder, **more):
    "Submit the demo and wait for it."
    from mlstack.resources import submit
    program = ['mlstack'] if more else [str(Path(sys.executable).parent/'mlstack')]
    began = time.monotonic()
    job = submit([*program, 'demo', '--quick', '--runs', str(folder/'runs')], cpus=2, **more)
    job.wait()
    said = job.logs()
    if job.state != 'finished': raise SystemExit(f'{job.state}: {job.why}\n{said[-3000:]}')
    return dict(demo=time.monotonic()-began, accuracy=float(re.search(r'nobody has looked at: ([\d.]+)%', said)[1]), runs=sum(1 for _ in (folder/'runs').glob('*/*/meta.json')))

if __name__ == '__main__':
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for o in ('STATE', 'QUEUE', 'LEASES', 'RUNS'): os.environ[f'MLSTACK_{o}'] = str(folder/o.lower())
        os.environ['MLSTACK_RUNNER_IDLE'] = '5'
        if sys.argv[1] == 'here':
            os.chdir(folder)
            print(json.dumps(trained(folder)))
        else:
            b = stack.enter_context(images.Builder())
            project, took = built(b, folder)
            os.environ |= {k: str(v) for k, v in podman_variables(b).items()} | dict(MLSTACK_CONTAINERS='podman')
            os.chdir(project)
            print(json.dumps(dict(build=took) | trained(folder, container='localhost/mlstack')))
