"""doctor.py WHO [--only NAME]: environments that are really broken, each looked at by WHO (mlstack, pip or collect_env), and five that are sound; how many faults are named, how many alarms are false, what a look costs.

Each is a virtual environment of its own with the packages of this one linked into it, and a project folder with a repository. What breaks it is real: files, metadata, variables, limits of the process, mounts in a namespace of its own.
Only the driver of a GPU is a stand-in: a module pynvml that answers as the driver would."""
import argparse, json, os, resource, shutil, statistics, subprocess, sys, sysconfig, tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[3]
bases = [Path(o) for o in dict.fromkeys([sysconfig.get_path('purelib'), *(o for o in sys.path if o.endswith(('site-packages', 'dist-packages')))])]  # several where torch is the system's
mine = f'python{sys.version_info[0]}.{sys.version_info[1]}'
host = {'load','shared memory','memory','disk','disk speed','threads','limits','open files'}  # what these say of the machine is true whatever was made here

class Place:
    "A virtual environment, a project, and what happens before somebody looks."
    def __init__(self, folder):
        self.folder, self.before, self.mounts, self.stand_in = Path(folder), [], False, False
        self.venv, self.project, self.home = (self.folder/o for o in ('demo/.venv', 'demo', 'home'))
        self.site = self.venv/'lib'/mine/'site-packages'
        for o in (self.site, self.venv/'bin', self.home, self.folder/'tmp'): o.mkdir(parents=True)
        (self.venv/'pyvenv.cfg').write_text(f'home = {Path(sys._base_executable).parent}\ninclude-system-site-packages = false\nversion = {sys.version.split()[0]}\n')
        self.python = self.venv/'bin'/'python'
        self.python.symlink_to(sys._base_executable)
        seen = set()
        for o, at in ((o, b/o) for b in bases for o in sorted(os.listdir(b))):
            key = o.split('-')[0].lower() + '-info' if o.endswith('-info') else o
            if key not in seen and not o.endswith('.pth') and not o.startswith(('sitecustomize', '~')): (self.site/o).symlink_to(at)
            seen.add(key)
        (self.site/'demo.pth').write_text(f'{root}\n')  # mlstack itself, as `pip install -e .` does
        self.command = self.venv/'bin'/'mlstack'
        self.command.write_text('import sys\nfrom mlstack.cli import main\nsys.exit(main())\n')
        self.env = dict(PATH=f'{self.venv}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', HOME=str(self.home), TMPDIR=str(self.folder/'tmp'), OMP_NUM_THREADS='1', LANG='C.UTF-8',
            PYTHONDONTWRITEBYTECODE='1', GIT_CONFIG_SYSTEM='/dev/null')
        (self.project/'train.py').write_text('print("train")\n')
        self.git('init', '-q', '-b', 'main'), self.git('config', 'user.email', 'a@b'), self.git('config', 'user.name', 'a')
        (self.project/'.gitignore').write_text('.venv\nruns\n')
        self.git('add', '-A'), self.git('commit', '-qm', 'first')

    def git(self, *args): subprocess.run(['git', *args], cwd=self.project, env=self.env, check=True, capture_output=True)

    def drop(self, *starts):
        for o in os.listdir(self.site):
            if o.startswith(starts): (self.site/o).unlink()

    def package(self, name, version, *requires, wheel='py3-none-any', record='', site=None, module=True):
        "A package of our own, in place of the one that is there."
        site, stem = site or self.site, name.replace('-', '_')
        if site is self.site: self.drop(f'{stem}-')
        info = site/f'{stem}-{version}.dist-info'
        info.mkdir(parents=True)
        (info/'METADATA').write_text('\n'.join(['Metadata-Version: 2.1', f'Name: {name}', f'Version: {version}', *(f'Requires-Dist: {o}' for o in requires), '', 'About it.']))
        (info/'WHEEL').write_text(f'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {wheel}\n')
        (info/'RECORD').write_text(record)
        if module and not (site/stem).exists():
            (site/stem).mkdir()
            (site/stem/'__init__.py').touch()
        return info

    def torch(self, version, cuda=None):
        "A wheel of torch that says of itself what it is."
        self.stand_in = True
        self.drop('torch')
        self.package('torch', version)
        (self.site/'torch'/'version.py').write_text(f"__version__ = '{version}'\ncuda = {cuda!r}\nhip = None\n")

    def driver(self, name, capability, cuda=13000, driver='580.65.06', fault='', mig=0):
        "A GPU, as its driver tells of it."
        self.drop('pynvml')
        (self.site/'pynvml.py').write_text(f'''from types import SimpleNamespace
def nvmlInit():
    if {fault!r}: raise RuntimeError({fault!r})
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return {driver!r}
def nvmlSystemGetCudaDriverVersion_v2(): return {cuda}
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(i): return i
def nvmlDeviceGetMemoryInfo(h): return SimpleNamespace(total=80<<30, free=79<<30)
def nvmlDeviceGetName(h): return {name!r}
def nvmlDeviceGetUUID(h): return 'GPU-1'
def nvmlDeviceGetComputeRunningProcesses(h): return []
def nvmlDeviceGetCudaComputeCapability(h): return {capability!r}
def nvmlDeviceGetMigMode(h): return ({mig}, {mig})
''')
        (self.site/'sitecustomize.py').write_text('import mlstack.env.machine as m\nm._driver_files = (__file__,)\n')

    def kernel(self, name, python):
        at = self.home/'.local/share/jupyter/kernels'/name
        at.mkdir(parents=True)
        (at/'kernel.json').write_text(json.dumps(dict(argv=[str(python), '-m', 'ipykernel_launcher', '-f', '{connection_file}'], display_name=name, language='python')))

    def mount(self, line):
        self.mounts = True
        self.before.append(line)

    def look(self, who='mlstack'):
        "Exit code and output of the one who looks, and the CPU time it took."
        command = dict(mlstack=[self.python, self.command, 'doctor', '--json'], pip=[self.python, '-P', '-m', 'pip', 'check'], collect_env=[self.python, '-P', '-m', 'torch.utils.collect_env'],
            quick=[self.python, '-P', '-c', 'import json; from mlstack.env import doctor; print(json.dumps(doctor().to_dict()))'])[who]
        if self.before: command = [*(['unshare', '-m'] if self.mounts else []), 'sh', '-ec', '\n'.join([*self.before, 'exec "$@"']), 'sh', *command]
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run([str(o) for o in command], cwd=self.project, env=self.env, capture_output=True, text=True, timeout=120)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        return out, end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime

    def checks(self, who='mlstack'):
        "The lines that are not ok, and the CPU time."
        out, cpu = self.look(who)
        try: said = json.loads(out.stdout)
        except ValueError: raise RuntimeError(f'no report: {out.stdout[-300:]} {out.stderr[-1500:]}') from None
        return [c for c in said['checks'] if c['state'] != 'ok'], cpu


# Broken: what is done to a place -> the name of the line that must name it, and a word of it

broken = {}
def case(name, line, word, needs=''):
    def keep(fn): broken[name] = (fn, line, word, needs); return fn
    return keep

@case('no torch', 'torch', 'not installed')
def _(p): p.drop('torch')

@case('torch registered, its files gone', 'torch', 'files are not there')
def _(p):
    p.drop('torch')
    p.package('torch', '2.13.0', module=False)

@case('a library of torch cut off', 'torch', 'libtorch_python.so')
def _(p):
    p.drop('torch')
    info = next(o for b in bases for o in b.glob('torch-*.dist-info'))
    base = info.parent
    (p.site/info.name).symlink_to(info)
    for at in ('torch', 'torch/lib'):
        (p.site/at).mkdir()
        for o in os.listdir(base/at):
            if o not in ('lib', 'libtorch_python.so'): (p.site/at/o).symlink_to(base/at/o)
    with open(base/'torch/lib/libtorch_python.so', 'rb') as f: (p.site/'torch/lib/libtorch_python.so').write_bytes(f.read(1 << 20))

@case('two versions of torch in one folder', 'torch', 'mixed')
def _(p):
    p.torch('2.13.0')
    shutil.rmtree(p.site/'torch-2.13.0.dist-info')
    p.package('torch', '2.12.0')

@case('torchvision of another torch', 'torch family', 'was built for torch')
def _(p): p.package('torchvision', '0.27.0', 'numpy', 'torch==2.12.0')

@case('torchvision for CUDA, torch for the CPU', 'torch family', 'CUDA 13')
def _(p):
    p.torch('2.13.0+cpu')
    p.package('torchvision', '0.28.0', 'numpy', 'torch==2.13.0')
    (p.site/'torchvision'/'version.py').write_text("__version__ = '0.28.0+cu130'\n")

@case('numpy too old', 'packages', 'numpy')
def _(p): p.package('numpy', '1.24.0')

@case('a requirement missing', 'conflicts', 'missing')
def _(p): p.package('datasets', '5.2.0', 'fsspec', 'dill-of-nowhere>=0.3')

@case('a requirement of an extra missing', 'conflicts', 'wings')
def _(p):
    p.package('bird', '1.0', 'nest[soft]>=2')
    p.package('nest', '2.0', 'wings-of-nowhere; extra == "soft"')

@case('pip interrupted', 'packages', 'interrupted')
def _(p): (p.site/'~umpy-2.4.6.dist-info').mkdir()

@case('two versions registered', 'packages', 'pandas')
def _(p): (p.site/'pandas-2.0.0.dist-info').mkdir()

@case('built for another Python', 'compiled files', 'cp38')
def _(p): p.package('tokenizers', '0.22.0', wheel='cp38-cp38-manylinux_2_17_x86_64')

@case('a library gone', 'compiled files', '_core.abi3.so')
def _(p): p.package('regex', '2026.1', record='regex/__init__.py,sha256=x,0\nregex/_core.abi3.so,sha256=x,4096\n')

@case('compiled against numpy 1', 'numpy', 'h5py')
def _(p): p.package('h5py', '3.10.0', 'numpy>=1.17.3')

@case('a malicious release', 'known-bad', 'litellm')
def _(p): p.package('litellm', '1.82.8')

@case('a malicious startup file', 'startup files', 'litellm_init.pth')
def _(p): (p.site/'litellm_init.pth').write_text('import os, subprocess, sys; os.environ.get("X") and subprocess.Popen([sys.executable, "-c", "pass"])\n')

@case('packages of another Python in PYTHONPATH', 'import path', 'another Python')
def _(p):
    other = p.folder/'lib'/'python3.8'/'site-packages'
    p.package('numpy', '1.24.0', site=other)
    p.env['PYTHONPATH'] = str(other)

@case('an older package in PYTHONPATH', 'import path', 'pandas')
def _(p):
    p.package('pandas', '1.5.3', site=p.folder/'extra')
    p.env['PYTHONPATH'] = str(p.folder/'extra')

@case('random.py in the project', 'import path', 'random.py')
def _(p): (p.project/'random.py').write_text('x = 1\n')

@case('torch.py in the project', 'import path', 'torch.py')
def _(p): (p.project/'torch.py').write_text('x = 1\n')

@case('a kernel whose Python is gone', 'kernels', 'gone')
def _(p): p.kernel('thesis', p.folder/'gone'/'.venv'/'bin'/'python')

@case('our kernel runs another environment', 'kernels', 'do not see')
def _(p):
    other = p.folder/'other'/'.venv'
    (other/'bin').mkdir(parents=True)
    (other/'pyvenv.cfg').touch(), (other/'bin'/'python').symlink_to(sys._base_executable)
    p.kernel('demo', other/'bin'/'python')

@case('torch for the CPU on a machine with a GPU', 'accelerator', 'built without CUDA')
def _(p): p.torch('2.13.0+cpu'), p.driver('NVIDIA H100 80GB HBM3', (9, 0))

@case('a driver too old for this CUDA', 'accelerator', '12.8 at most')
def _(p): p.torch('2.13.0', '13.0'), p.driver('NVIDIA H100 80GB HBM3', (9, 0), 12080, '570.86.15')

@case('no code for this GPU', 'accelerator', 'compute capability 7.0')
def _(p): p.torch('2.13.0', '13.0'), p.driver('Tesla V100-SXM2-32GB', (7, 0))

@case('a driver updated under its feet', 'accelerator', 'mismatch')
def _(p): p.torch('2.13.0', '13.0'), p.driver('NVIDIA A100', (8, 0), fault='Driver/library version mismatch')

@case('the GPU hidden by a variable', 'accelerator', 'CUDA_VISIBLE_DEVICES')
def _(p):
    p.torch('2.13.0', '13.0'), p.driver('NVIDIA A100', (8, 0))
    p.env['CUDA_VISIBLE_DEVICES'] = '3'

@case('two NCCLs in one folder', 'nccl', 'whichever came last')
def _(p):
    p.torch('2.13.0', '13.0')
    p.package('nvidia-nccl-cu13', '2.29.3'), p.package('nvidia-nccl-cu12', '2.27.5')

@case('two OpenMP runtimes of one make', 'openmp', 'Error #15')
def _(p):
    for o in ('ctranslate2.libs/libiomp5-1a2b.so', 'paddle/libs/libiomp5.so'):
        (p.site/o).parent.mkdir(parents=True)
        (p.site/o).touch()

@case('pip over conda', 'conda', 'replaced')
def _(p):
    (p.venv/'conda-meta').mkdir()
    (p.venv/'conda-meta'/'pandas-2.0.3-py311h9c46efe_1.json').write_text('{}')

@case('not what the lock says', 'lock', 'numpy')
def _(p): (p.project/'requirements.txt').write_text('numpy==1.26.4\npandas==2.0.0\n')

@case('a lock older than pyproject.toml', 'lock', 'older than pyproject.toml')
def _(p):
    (p.project/'pyproject.toml').write_text('[project]\nname = "demo"\ndependencies = ["numpy>=1.26", "torch>=99"]\n')
    import importlib.metadata as m
    (p.project/'requirements.txt').write_text(f'numpy=={m.version("numpy")}\ntorch=={m.version("torch").split("+")[0]}\n')

@case('no merge driver for notebooks', 'hooks', 'jupyternotebook')
def _(p): (p.project/'.gitattributes').write_text('*.ipynb merge=jupyternotebook\n')

@case('no git-lfs', 'hooks', 'pointers')
def _(p): (p.project/'.gitattributes').write_text('*.bin filter=lfs diff=lfs merge=lfs -text\n')

@case('a merge stopped half way', 'git', 'merge')
def _(p):
    for branch, text in (('other', 'a'), ('main', 'b')):
        p.git('checkout', '-q', *(['-b'] if branch == 'other' else []), branch)
        (p.project/'train.py').write_text(text)
        p.git('commit', '-qam', branch)
    subprocess.run(['git', 'merge', '-q', 'other'], cwd=p.project, env=p.env, capture_output=True)

@case('more threads than cores', 'threads', 'spin')
def _(p): p.env['OMP_NUM_THREADS'] = '4096'

@case('256 open files', 'open files', '256')
def _(p): p.before.append('ulimit -S -n 256')

@case('little address space', 'limits', 'address space')
def _(p): p.before.append('ulimit -v 8388608')

@case('small files only', 'limits', 'SIGXFSZ')
def _(p): p.before.append('ulimit -f 2097152')

@case('certificates gone', 'certificates', 'REQUESTS_CA_BUNDLE')
def _(p): p.env['REQUESTS_CA_BUNDLE'] = str(p.folder/'gone.pem')

@case('TMPDIR gone', 'temporary files', 'TMPDIR')
def _(p): p.env['TMPDIR'] = str(p.folder/'gone')

@case('packages from the future', 'clock', 'installed on')
def _(p): os.utime(p.site, (4e9, 4e9))

@case('an error in settings.ini', 'runs folder', 'rusn')
def _(p): (p.project/'settings.ini').write_text('[mlstack]\nrusn = x\n')

@case('a full disk', 'runs folder', 'No space left', 'mount')
def _(p):
    (p.project/'runs').mkdir()
    p.mount('mount -t tmpfs -o size=1m tmpfs runs; head -c 2000000 /dev/zero > runs/fill 2>/dev/null || true')

@case('no inodes', 'disk', 'inodes', 'mount')
def _(p):
    (p.project/'runs').mkdir()
    p.mount('mount -t tmpfs -o nr_inodes=100,size=8g tmpfs runs')

@case('a read-only disk', 'runs folder', 'Read-only', 'mount')
def _(p):
    (p.project/'runs').mkdir()
    p.mount('mount -t tmpfs -o ro tmpfs runs')

@case('temporary files that cannot run', 'temporary files', 'noexec', 'mount')
def _(p): p.mount(f'mount -t tmpfs -o noexec tmpfs {p.env["TMPDIR"]}')

@case('64 MB of shared memory', 'shared memory', '64 MiB', 'mount')
def _(p): p.mount('mount -t tmpfs -o size=64m tmpfs /dev/shm')


# Sound: what is unusual and right

sound = {}
def good(name, needs=''):
    def keep(fn): sound[name] = (fn, needs); return fn
    return keep

@good('a project with its lock, notebooks and another project\'s kernel')
def _(p):
    import importlib.metadata as m
    (p.project/'pyproject.toml').write_text('[project]\nname = "demo"\ndependencies = ["numpy>=1.26"]\n')
    (p.project/'requirements').mkdir()
    (p.project/'requirements'/'dev.txt').write_text(f'numpy=={m.version("numpy")}  # via demo\ncolorama==0.4.6 ; sys_platform == "win32"\n')
    (p.project/'requirements'/'cuda.txt').write_text('nvidia-nccl-cu13==2.29.3\nnvidia-cudnn-cu13==9.19.0.56\n')
    (p.project/'tests').mkdir(), (p.project/'tests'/'__init__.py').touch()
    (p.project/'.gitattributes').write_text('*.ipynb merge=jupyternotebook\n')
    p.git('config', 'merge.jupyternotebook.driver', 'git merge-file %A %O %B')
    other = p.folder/'other'/'.venv'/'bin'/'python'
    other.parent.mkdir(parents=True)
    other.symlink_to(sys._base_executable), (other.parents[1]/'pyvenv.cfg').touch()
    p.kernel('other', other), p.kernel('python3', 'python')

@good('a checkout in CI, made by uv, without pip, without hooks')
def _(p):
    p.drop('pip')
    p.env['CI'] = 'true'
    (p.project/'.gitattributes').write_text('*.ipynb merge=jupyternotebook\n')
    (p.project/'pyproject.toml').write_text('[project]\nname = "demo"\n')

@good('a slice of an H100 under a driver newer than this table')
def _(p):
    p.torch('2.13.0', '13.0')
    p.package('nvidia-nccl-cu13', '2.29.3'), p.package('nvidia-cudnn-cu13', '9.19.0.56')
    p.driver('NVIDIA H100 80GB HBM3 MIG 1g.10gb', (9, 0), 15010, '700.11', mig=1)

@good('a job of SLURM with the modules of its cluster')
def _(p):
    modules = p.folder/'cuda-12.6'/'lib64'
    modules.mkdir(parents=True)
    (modules/'libcudart.so.12.6.77').touch(), (modules/'libcublas.so.12.6').touch()
    p.env |= dict(SLURM_JOB_ID='1', SLURM_CPUS_PER_TASK='1', LD_LIBRARY_PATH=str(modules), PYTHONPATH=str(p.project))
    p.drop('nvidia')
    p.package('nvidia-ml-py', '13.580.82', module=False)

@good('a container without /proc and without a repository', 'mount')
def _(p):
    shutil.rmtree(p.project/'.git')
    p.git('init', '-q', '-b', 'main'), p.git('config', 'user.email', 'a@b'), p.git('config', 'user.name', 'a'), p.git('add', '-A'), p.git('commit', '-qm', 'first')
    p.mount('mount -t tmpfs tmpfs /proc')

def may_mount(): return subprocess.run(['unshare', '-m', 'sh', '-c', 'mount -t tmpfs tmpfs /mnt'], capture_output=True).returncode == 0

def named(place, who, line, word):
    "Does the one who looks name the fault?"
    if who in ('mlstack', 'quick'):
        said, cpu = place.checks(who)
        return any(c['name'] == line and word in c['detail'] and c['fix'] for c in said), cpu
    out, cpu = place.look(who)
    return out.returncode != 0, cpu

if __name__ == '__main__':
    parse = argparse.ArgumentParser()
    parse.add_argument('who', choices=['mlstack', 'quick', 'pip', 'collect_env'])
    parse.add_argument('--only', default='')
    args = parse.parse_args()
    mounts, caught, alarms, left_out, unseen, cost, missed = may_mount(), 0, 0, 0, 0, [], []
    todo = {k: v for k, v in broken.items() if (mounts or not v[3]) and args.only in k}
    fine = {k: v for k, v in sound.items() if (mounts or not v[1]) and args.only in k}
    for name, (make, line, word, _) in todo.items():
        with tempfile.TemporaryDirectory() as folder:
            place = Place(folder)
            make(place)
            if args.who == 'collect_env' and place.stand_in:  # it would fail at the stand-in, not at the fault
                left_out += 1
                continue
            found, cpu = named(place, args.who, line, word)
        caught, cost, missed = caught + found, cost + [cpu], missed + [name]*(not found)
    for name, (make, _) in fine.items():
        with tempfile.TemporaryDirectory() as folder:
            place = Place(folder)
            make(place)
            if args.who == 'collect_env' and place.stand_in:
                unseen += 1
                continue
            if args.who in ('mlstack', 'quick'):
                said, cpu = place.checks(args.who)
                wrong = [c for c in said if c['name'] not in host]
            else:
                out, cpu = place.look(args.who)
                wrong = [out.stdout[-300:]]*(out.returncode != 0 and 'No module named pip' not in out.stderr)
        if wrong: print(name, wrong, file=sys.stderr)
        alarms, cost = alarms + bool(wrong), cost + [cpu]
    for o in missed: print('not named:', o, file=sys.stderr)
    print(json.dumps(dict(broken=len(todo) - left_out, caught=caught, sound=len(fine) - unseen, alarms=alarms, cpu=statistics.median(cost or [0]), most=max(cost, default=0))))
