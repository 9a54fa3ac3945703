"Environments for the peers: made once, found again by what they hold."
import hashlib, os, shutil, subprocess, sys
from pathlib import Path
from tests.house import root

torch_line = (root/'requirements'/'torch.txt').read_text().strip()
base = (torch_line, 'numpy')  # the environment that peers with torch borrow it from

# Name -> what pip installs, and whether it needs torch.
peers = dict(
    wandb=(['wandb==0.31.0'], False),
    mlflow=(['mlflow-skinny==3.17.2'], False),
    aim=(['aim==3.29.1'], False),
    mlflow_server=(['mlflow==3.17.2'], False),  # with its store, server and page
    tensorboard=(['tensorboard==2.21.0'], True),
    trackio=(['trackio==0.43.0'], False),
    tables=(['pyarrow==26.0.1', 'openpyxl==3.1.5', 'numpy', 'pandas'], False),  # of the tests: Parquet and spreadsheets
    lightning=(['pytorch-lightning==2.6.6'], True),  # never the package `lightning`
    accelerate=(['accelerate==1.15.0'], True),
    # not measured: what logs to W&B by itself, for tests/test_dropin.py, and what the trainer takes, for tests/test_interop.py
    libraries=(['transformers==5.23.0', 'accelerate==1.15.0', 'pytorch-lightning==2.6.6', 'keras==3.15.1', 'wandb==0.31.0', 'pandas', 'pillow', 'psutil',
        'datasets==5.2.0', 'torchdata==0.11.0', 'torchmetrics==1.9.0', 'fastcore==2.2.39'], True),
    timm=(['timm==1.0.31', 'fastcore==2.2.39'], True),  # by itself: it brings a torchvision that breaks transformers where torch is without CUDA
)

def folder(): return Path(os.environ.get('MLSTACK_BENCH_DIR') or Path.home()/'.cache'/'mlstack-bench')

def _python(env): return env/'bin'/'python'
def _site(env): return env/'lib'/f'python{sys.version_info[0]}.{sys.version_info[1]}'/'site-packages'

def _make(name, lines, torch_from=None):
    "The environment's python; made aside and named when it is whole."
    key = hashlib.sha256('\n'.join([sys.version, str(torch_from), *lines]).encode()).hexdigest()[:8]
    env = folder()/f'{name}-{key}'
    if (env/'ready').exists(): return env
    print(f'bench: installing {", ".join(lines)} into {env}', file=sys.stderr, flush=True)
    shutil.rmtree(env, ignore_errors=True)
    subprocess.run([sys.executable, '-m', 'venv', str(env)], check=True)
    # torch is 800 MB: peers see one copy of it through a .pth file, which pip counts as installed
    if torch_from: (_site(env)/'torch.pth').write_text(f'{_site(torch_from)}\n')
    r = subprocess.run([_python(env), '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *lines], capture_output=True, text=True)
    if r.returncode: raise RuntimeError(f'{name} could not be installed: {r.stderr.strip()[-400:]}')
    (env/'ready').touch()
    return env

def python_of(name):
    "The interpreter of a peer, or of this project for `project`."
    if name == 'project': return Path(sys.executable)
    lines, with_torch = peers[name]
    return _python(_make(name, lines, _make('torch', base) if with_torch else None))
