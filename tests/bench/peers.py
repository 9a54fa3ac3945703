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
    submitit=(['submitit==1.5.4'], False),
    trackio=(['trackio==0.43.0'], False),
    tables=(['pyarrow==26.0.1', 'openpyxl==3.1.5', 'numpy', 'pandas'], False),  # of the tests: Parquet and spreadsheets
    lightning=(['pytorch-lightning==2.6.6', 'torchdata==0.11.0'], True),  # never the package `lightning`; Fabric comes with it
    accelerate=(['accelerate==1.15.0', 'torchdata==0.11.0'], True),
    hf=(['transformers==5.17.0', 'accelerate==1.15.0'], True),
    deepspeed=(['deepspeed==0.19.8'], True),  # its estimator of memory; its kernels are not built
    fastai=(['fastai==2.8.12', 'torchvision==0.28.0'], True),  # the torchvision of this torch
    ignite=(['pytorch-ignite==0.5.5', 'tqdm'], True),
    # not measured: what logs to W&B by itself, for tests/test_dropin.py, and what the trainer takes, for tests/test_interop.py
    libraries=(['transformers==5.23.0', 'accelerate==1.15.0', 'pytorch-lightning==2.6.6', 'keras==3.15.1', 'wandb==0.31.0', 'pandas', 'pillow', 'psutil',
        'datasets==5.2.0', 'torchdata==0.11.0', 'torchmetrics==1.9.0', 'fastcore==2.2.39'], True),
    ray=(['ray[train]==2.60.0', 'fastcore==2.2.39', 'numpy', 'psutil', 'cloudpickle'], True),
    kubernetes=(['kubernetes==37.0.2', 'kubernetes-validate==1.37.0', 'cloudpickle', 'psutil', 'numpy', 'pandas', 'fastcore==2.2.39'], False),  # its client, and the schemas of its objects
    optuna=(['optuna==5.0.0', 'cmaes==0.13.1', 'numpy', 'scipy'], True),  # its GP needs torch
    sweeps=(['sweeps==0.3.0', 'numpy<2'], False),  # W&B's local engine; it refuses a newer numpy
    hyperopt=(['hyperopt==0.3.0', 'numpy', 'setuptools<81'], False),
    timm=(['timm==1.0.31', 'torchvision==0.28.0', 'fastcore==2.2.39'], True),  # torchvision is pinned to its torch, and apart: without CUDA it breaks what imports it
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
    # torch is 800 MB: peers see one copy of it through a .pth file, which pip counts as installed; its version is named, or pip would bring a newer one with all of CUDA
    if torch_from: (_site(env)/'torch.pth').write_text(f'{_site(torch_from)}\n')
    r = subprocess.run([_python(env), '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *lines, *([torch_line] if torch_from else [])], capture_output=True, text=True)
    if r.returncode: raise RuntimeError(f'{name} could not be installed: {r.stderr.strip()[-400:]}')
    (env/'ready').touch()
    return env

def python_of(name):
    "The interpreter of a peer, or of this project for `project`."
    if name == 'project': return Path(sys.executable)
    lines, with_torch = peers[name]
    return _python(_make(name, lines, _make('torch', base) if with_torch else None))
