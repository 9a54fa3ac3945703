"Bad environments and real limits: what `mlstack.env` says where things are missing, broken or bounded."
import json
import os
import pty
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlstack.env.builds import check_torch
from mlstack.env.checks import Check, Report
from mlstack.env.examining import doctor
from mlstack.env.installed import check_packages
from mlstack.env.machine import cpus, gpus, memory, mount_of, nvidia, physical_memory, quota
from mlstack.env.notebooks import history_facts
from mlstack.env.record import capture, compare, digest, distributions, packages, redact, torch_build, variables
from mlstack.env.repository import check_git
from mlstack.env.storage import check_runs

root = Path(__file__).parents[1]
linux = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')


def python(code, *flags, env=None, **kw):
    "What `code` prints in an interpreter of its own; its environment is `env` and nothing else, where given."
    env = os.environ|dict(PYTHONPATH=str(root)) if env is None else dict(PYTHONPATH=str(root))|env
    out = subprocess.run([sys.executable, *flags, '-c', code], capture_output=True, text=True, env=env, timeout=300, **kw)
    assert out.returncode == 0, out.stderr
    return out.stdout


# Without what is usually there

def test_runs_on_the_bare_standard_library():
    out = python(f'''
import sys; sys.path.insert(0, {str(root)!r})
from mlstack.env import doctor, capture, notebook_state
r = doctor()
print(r); print(len(r.five())); print(r['torch'].state, r.ok, capture()['torch'], notebook_state())
print([m.__name__ for m in list(sys.modules.values()) if 'site-packages' in (getattr(m,'__file__',None) or '')])
''', '-S', '-E')
    assert out.splitlines()[-3:] == ['5', 'wrong False None None', '[]']
    assert 'pip install torch' in out and 'could not be checked' not in out


def test_never_imports_torch():
    code = 'import sys; from mlstack.env import *; doctor(); capture(); notebook_state(); print([m for m in ("torch","numpy","pandas","rich","fastcore","pynvml") if m in sys.modules])'
    seen = python(code).strip()
    assert seen == '[]' or gpus() and seen == "['pynvml']"


def test_no_home_and_no_git(tmp_path):
    out = python('from mlstack.env import doctor; r = doctor(); print(r["git"].detail); print(len(str(r.five()).splitlines())); print([c for c in r if "could not" in c.detail])',
        env=dict(PATH=str(tmp_path)), cwd=tmp_path)
    assert out.splitlines() == ['not found: runs cannot keep the state of the code', '5', '[]']


def test_working_directory_deleted(tmp_path):
    out = python(f'''
import os; os.mkdir({str(tmp_path/"gone")!r}); os.chdir({str(tmp_path/"gone")!r}); os.rmdir({str(tmp_path/"gone")!r})
from mlstack.env import doctor, capture
r = doctor(); print(r["runs folder"]); print(r["git"].state, len(r.five()), capture()["lock"])
''')
    assert 'the working directory no longer exists' in out.splitlines()[0] and out.splitlines()[1] == 'wrong 5 None'


def test_no_terminal_at_all():
    assert python('import sys; from mlstack.env import doctor; r = doctor(); sys.stdout = None; str(r); sys.__stdout__.write("fine")') == 'fine'


# Limits, false and real

@linux
def test_unreadable_limits_are_no_limits(tmp_path):
    (tmp_path/'proc/self').mkdir(parents=True)
    (tmp_path/'proc/self/cgroup').write_text('0::/a\n')
    (tmp_path/'proc/self/mountinfo').write_text('31 23 0:28 / /cg rw - cgroup2 cgroup2 rw\n')
    for name in ('cpu.max', 'memory.max'): (tmp_path/'cg/a'/name).mkdir(parents=True) # a folder cannot be read, not even by root
    assert quota(tmp_path) == float('inf') and memory(tmp_path) == physical_memory()
    for nonsense in (b'', b'\xff\xfe\x00', b'max', b'-1 100000', b'0 0', b'1e999 1', b'nan nan', b'9'*5000):
        for name in ('cpu.max', 'memory.max'):
            if (tmp_path/'cg/a'/name).is_dir(): (tmp_path/'cg/a'/name).rmdir()
            (tmp_path/'cg/a'/name).write_bytes(nonsense)
        assert cpus(tmp_path) >= 1 and 0 < memory(tmp_path) <= physical_memory(), nonsense


@contextmanager
def control_group(controller, **files):
    "A real control group of version 1 or 2 with these limits, or a skip."
    for top in (Path('/sys/fs/cgroup')/controller, Path('/sys/fs/cgroup')):
        folder = top/f'mlstack-test-{os.getpid()}'
        try:
            folder.mkdir()
            names = [k for k in files if (folder/k).exists()]
            for k in names: (folder/k).write_text(files[k])
        except OSError: names = []
        if names: break
        if folder.is_dir(): folder.rmdir()
    else: pytest.skip('control groups cannot be made here')
    try: yield folder
    finally: folder.rmdir()


def inside(folder, code): return python(f'open({str(folder/"cgroup.procs")!r},"w").write("0")\n'+code).split()


@linux
@pytest.mark.probe
def test_a_real_quota_is_seen():
    with control_group('cpu', **{'cpu.cfs_quota_us':'50000', 'cpu.max':'50000 100000'}) as folder:
        out = inside(folder, 'from mlstack.env.machine import *; from mlstack.env import doctor; from mlstack.hardware import threads\n'
            'print(quota(), cpus(), threads(per=4), doctor()["threads"].state)')
    many = len(os.sched_getaffinity(0)) > 1 and os.environ.get('OMP_NUM_THREADS') != '1'
    assert out == ['0.5', '1', '1', 'warning' if many else 'ok']


@linux
@pytest.mark.probe
def test_a_real_memory_limit_is_seen():
    with control_group('memory', **{'memory.limit_in_bytes':str(300<<20), 'memory.max':str(300<<20)}) as folder:
        assert inside(folder, 'from mlstack.env.machine import memory; print(memory()>>20)') == ['300']


@linux
@pytest.mark.probe
def test_full_and_read_only_disks(tmp_path):
    def mount(*args): return subprocess.run(['mount', *args, str(tmp_path)], capture_output=True).returncode
    if mount('-t', 'tmpfs', '-o', 'size=1m', 'tmpfs'): pytest.skip('nothing can be mounted here')
    try:
        assert [(c.name, c.state) for c in check_runs(tmp_path/'runs')][:2] == [('runs folder','ok'), ('disk','wrong')]
        (tmp_path/'fill').write_bytes(bytes(1<<20))
        assert [(c.state, 'No space left' in c.detail) for c in check_runs(tmp_path/'runs')] == [('wrong', True)]
        assert mount('-o', 'remount,ro') == 0
        assert [(c.state, 'Read-only' in c.detail) for c in check_runs(tmp_path/'runs')] == [('wrong', True)]
    finally: subprocess.run(['umount', str(tmp_path)], check=True)


@linux
def test_runs_folder_that_cannot_be_written():
    out = python('from mlstack.env import doctor; r = doctor(); print(r["runs folder"].state, r.ok); print(r.verdict)', env=dict(MLSTACK_RUNS='/proc/runs', PATH=os.environ['PATH']))
    assert out.splitlines()[0] == 'wrong False' and 'MLSTACK_RUNS=FOLDER' in out


def test_mounts_with_odd_names(tmp_path):
    (tmp_path/'proc/self').mkdir(parents=True)
    (tmp_path/'proc/self/mountinfo').write_text(
        '27 1 254:0 / / rw - ext4 /dev/vda rw\n30 27 0:40 / /a\\040b rw,relatime shared:1 - nfs4 server:/x rw,vers=4.2\n'
        '31 30 0:41 / /a\\040b/local rw - xfs /dev/vdb rw\n32 27 0:42 / /a rw - tmpfs none rw\nnonsense\n1 2 3 - \n')
    assert [mount_of(p, tmp_path).kind for p in ('/a b/runs', '/a b/local/runs', '/a/x', '/ab')] == ['nfs4', 'xfs', 'tmpfs', 'ext4']


# Packages

def installed(folder, *names):
    for o in names: (folder/o).mkdir()
    return folder


def test_package_folders(tmp_path):
    a,b = installed(tmp_path/'..'/tmp_path.name, 'Ruamel.Yaml-0.18.dist-info', 'torch-2.13.0+cpu.dist-info', 'zope.interface-7.0-py3.11.egg-info'),tmp_path/'b'
    b.mkdir()
    installed(b, 'torch-2.12.0.dist-info', 'source.egg-info', 'no_version.egg-info', '.dist-info')
    (b/'source.egg-info'/'PKG-INFO').write_text('Metadata-Version: 2.1\nName: source\nVersion: 3.1\n')
    found = packages([str(a), str(b), '/does/not/exist', str(tmp_path/'a.zip')])
    assert {k:found[k] for k in ('ruamel-yaml','torch','zope-interface','source')} == {'ruamel-yaml':'0.18', 'torch':'2.13.0+cpu', 'zope-interface':'7.0', 'source':'3.1'}


def test_ruins_of_pip(tmp_path):
    installed(tmp_path, 'numpy-2.4.6.dist-info', 'numpy-2.4.7.dist-info', '~orch-2.13.0.dist-info')
    found = distributions([str(tmp_path)])
    checks = list(check_packages(packages([str(tmp_path)]), [], found))
    assert sorted((c.state, 'numpy' in c.detail) for c in checks) == [('warning', False), ('wrong', True)]
    assert all(c.fix for c in checks)


def test_torch_that_is_broken(tmp_path):
    path = [str(tmp_path)]
    def state(): return [(c.state, c.detail) for c in check_torch(torch_build(path), packages(path))]
    assert state() == [('wrong', 'not installed')]
    installed(tmp_path, 'torch-2.13.0.dist-info')
    assert 'files are not there' in state()[0][1]
    (tmp_path/'torch').mkdir()
    for text in ('', 'nonsense(', '__version__ = open("/etc/passwd").read()\n', "__version__ = '\\"):
        (tmp_path/'torch'/'version.py').write_text(text)
        assert 'files are not there' in state()[0][1], text
    (tmp_path/'torch'/'version.py').write_text("__version__ = '2.12.1+cu130'\ncuda: Optional[str] = '13.0'\n")
    assert 'mixed' in state()[0][1]
    (tmp_path/'torch'/'version.py').write_text("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    installed(tmp_path, 'nvidia_cudnn_cu13-9.14.0.64.dist-info')
    assert state() == [('ok', '2.13.0+cu130')]
    assert {k:torch_build(path)[k] for k in ('cuda','cudnn','nccl')} == dict(cuda='13.0', cudnn='9.14.0.64', nccl=None)


# The record

def test_no_secret_leaves():
    secret = 'zq7-very-secret'
    env = dict(HF_TOKEN=secret, MLSTACK_API_KEY=secret, NCCL_PASSWORD=secret, HF_ENDPOINT=f'https://user:{secret}@host/x', TORCH_HOME=f'https://{secret}@host',
        MLSTACK_SINKS=f'http://h/?v=1&access_token={secret}&x=2', CUDA_AUTH=secret, PYTHONPATH=str(root), MLSTACK_PROJECT=f'postgres://u:p/{secret}@h',
        TRITON_CACHE=f'a,https://u:{secret}@h,b', MLSTACK_RUNS='runs', WANDB_API_KEY=secret)
    rec = json.loads(python('import json; from mlstack.env import capture; print(json.dumps(capture()))', env=env|dict(PATH=os.environ['PATH'])))
    assert secret not in json.dumps(rec) and rec['variables']['MLSTACK_RUNS'] == 'runs'
    assert rec['variables']['TRITON_CACHE'] == 'a,https://***@h,b'


def test_redact_leaves_innocent_values_alone():
    for o in ('0,1', '/usr/lib:/opt/cuda/lib64', 'https://host/path?v=2', 'INFO', 'expandable_segments:True', 'eth0', '='): assert redact(o) == o


def test_the_record_is_the_same_in_another_process():
    code = 'from mlstack.env import capture, digest; print(digest(capture()))'
    one,two = (python(code, env=dict(PATH=os.environ['PATH'])|o, cwd=root) for o in (dict(), dict(RANK='3', WORLD_SIZE='4', MLSTACK_TRIAL='t7', SLURM_JOB_ID='12')))
    assert one == two != python(code, env=dict(PATH=os.environ['PATH'], OMP_NUM_THREADS='7'), cwd=root)


def test_compare_and_digest_agree():
    rec = capture()
    changes = [('python', '3.99.0'), ('packages', rec['packages']|{'new':'1'}), ('gpus', [dict(name='H100', memory=1)]), ('torch', None), ('lock', dict(digest='x', files={})), ('variables', {'A.b':'1'})]
    for k,v in changes:
        other = rec | {k:v}
        assert compare(rec, other) and digest(rec) != digest(other), k
        assert {d.key.split('.')[0] for d in compare(rec, other)} == {k}
        assert [(d.key,d.b,d.a) for d in compare(rec, other)] == [(d.key,d.a,d.b) for d in compare(other, rec)]
    assert compare(None, rec) and compare(rec, {}) and not compare(None, None)


def test_an_older_record_stays_comparable_and_a_diff_short():
    new = capture()
    old = {k:new[k] for k in ('python','implementation','system','cpu','memory','torch','packages','driver','gpus','lock','variables','where')}|dict(format=1)
    assert compare(old, new) == [] == compare(new, old)
    assert [d.key for d in compare(old, new|dict(python='3.99.0'))] == ['python']
    name = next(iter(new['hashes']))
    assert [d.key for d in compare(new, new|dict(hashes=new['hashes']|{name:'other'}))] == [f'hashes.{name}']
    other = new|dict(packages=new['packages']|{name:'0'}, hashes=new['hashes']|{name:'other'}, cpu=new['cpu']|dict(features=['a','b','c']))
    assert sorted(d.key for d in compare(new, other)) == ['cpu.features', f'packages.{name}']


def test_files_digest_names_what_was_installed(tmp_path):
    import venv
    from mlstack.env.record import Distribution, _installed
    from tests.wheels import wheel
    first,other = (wheel(tmp_path/o, 'thing', '1.0', text=f'x = {o!r}\ndef main(): print(x)\n', scripts=['thing']) for o in ('one','two'))
    def install(name, path, *options):
        venv.create(tmp_path/name)
        site = next((tmp_path/name).glob('lib/python*/site-packages'))
        subprocess.run([sys.executable, '-m', 'pip', '--python', str(tmp_path/name/'bin'/'python'), 'install', '-q', '--no-index', *options, str(path)], check=True)
        return _installed(Distribution('thing', '1.0', str(site), 'thing-1.0.dist-info'))
    a,b,c = install('a', first),install('b', first, '--no-compile'),install('c', other)
    assert a == b and a[1] == 'pip' and len(a[0]) == 16 and c[0] != a[0]


def test_a_damaged_direct_url_is_said_and_no_folder_is_no_error(tmp_path):
    from mlstack.env.record import Distribution, source
    d = Distribution('x', '1', str(tmp_path), 'x-1.dist-info')
    (tmp_path/d.file).mkdir()
    def told(text): (tmp_path/d.file/'direct_url.json').write_text(text); return source(d)
    assert told('') is None and told('{}') is None and 'problem' in told('{"url')
    assert told('{"url":"file:///does/not/exist","dir_info":{"editable":true}}') == dict(url='file:///does/not/exist', editable=True)
    assert told('{"url":"https://me:pw@host/x.git","vcs_info":{"vcs":"git","commit_id":"abc","requested_revision":"main"}}') == dict(url='https://***@host/x.git', vcs='git', asked='main', commit='abc')
    assert told('{"url":"https://h/x.whl","archive_info":{"hashes":{"sha256":"aa"}}}') == dict(url='https://h/x.whl', sha256='aa')


def test_variables_of_the_job_are_kept_apart():
    assert variables(dict(RANK='1', MLSTACK_RUN='r', OMP_NUM_THREADS='2')) == dict(OMP_NUM_THREADS='2')


def test_lock_with_odd_files(tmp_path):
    from mlstack.env.record import lock_files
    (tmp_path/'requirements.txt').mkdir()
    (tmp_path/'broken.lock').symlink_to(tmp_path/'nowhere')
    (tmp_path/'.git').mkdir()
    assert lock_files(tmp_path) is None
    (tmp_path/'uv.lock').write_bytes(b'\xff\x00')
    assert list(lock_files(tmp_path)['files']) == ['uv.lock']


# The report

def test_colour_only_on_a_terminal():
    code = 'from mlstack.env.checks import Check, Report; print(Report([Check("disk","wrong","full","rm x")]))'
    def on_terminal(**env):
        leader,follower = pty.openpty()
        try:
            assert subprocess.run([sys.executable, '-c', code], stdout=follower, env={k:v for k,v in os.environ.items() if k != 'NO_COLOR'}|dict(PYTHONPATH=str(root))|env, timeout=300).returncode == 0
            return os.read(leader, 9999).decode()
        finally: os.close(leader), os.close(follower)
    assert '\x1b[31m' in on_terminal() and '\x1b' not in on_terminal(NO_COLOR='1') and '\x1b' not in python(code)


def test_what_others_said_cannot_break_the_table():
    c = Check('git', 'wrong', 'fatal: \x1b[2J<script>\nsecond line\x00', 'rm "a\nb"')
    assert '\n' not in c.detail+c.fix and '\x1b' not in c.detail
    assert '<script>' not in Report([c])._repr_html_() and len(str(Report([c])).splitlines()) == 2


def test_json_and_verdict():
    rep = doctor()
    said = json.loads(json.dumps(rep.to_dict()))
    assert said['ok'] == rep.ok and len(said['checks']) == len(rep) and rep.five()[-1].endswith(rep.verdict)
    assert all(c.state in ('ok','warning','wrong') and bool(c.fix) == (c.state != 'ok') for c in rep)


def test_git_states(tmp_path):
    def git(*args): subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args], cwd=tmp_path, check=True, capture_output=True)
    git('init', '-b', 'main')
    assert 'no commit' in check_git(tmp_path).detail
    (tmp_path/'a.py').write_text('1')
    git('add', '.'), git('commit', '-m', 'first')
    assert check_git(tmp_path).state == 'ok' and 'changed' not in check_git(tmp_path).detail
    (tmp_path/'a.py').write_text('2')
    assert '1 file changed' in check_git(tmp_path).detail
    (tmp_path/'.git'/'HEAD').write_text('nonsense')
    assert check_git(tmp_path).state == 'warning'


# A real kernel

def test_notebook_state_in_a_real_kernel(tmp_path):
    from jupyter_client.manager import start_new_kernel
    ask = 'import json; from mlstack.env import notebook_state; print(json.dumps(notebook_state()))'
    cells = ['lr = .1', 'x = lr*2', ask]
    path = tmp_path/'lesson.ipynb'
    path.write_text(json.dumps(dict(cells=[dict(cell_type='code', source=o) for o in cells])))
    km,kc = start_new_kernel(kernel_name='python3', cwd=str(tmp_path), env=os.environ|dict(PYTHONPATH=str(root), JPY_SESSION_NAME=f'/somewhere/else/{path.name}'))
    def run(source):
        said = []
        reply = kc.execute_interactive(source, timeout=300, output_hook=lambda m: said.append(m['content'].get('text','')))
        assert reply['content']['status'] == 'ok', reply
        return ''.join(said)
    try:
        for o in cells[:2]: run(o)
        fresh = json.loads(run(ask))
        run(cells[0])
        stale = json.loads(run(ask))
    finally:
        kc.stop_channels()
        km.shutdown_kernel(now=True)
    assert {k:fresh[k] for k in ('name','execution_count','cells_run','clean')} == dict(name='lesson.ipynb', execution_count=3, cells_run=3, clean=True)
    assert {k:stale[k] for k in ('execution_count','rerun','out_of_order','edited','clean')} == dict(execution_count=5, rerun=[1,3], out_of_order=[2], edited=[], clean=False)
    assert fresh['digest'] != stale['digest']


def test_history_of_nothing():
    assert history_facts([], [])['clean'] is True and history_facts([''], None)['clean'] is None
    assert history_facts(['a','a'], ['a','a','', 'b'])['rerun'] == [] and history_facts(['a','a','a'], ['a','a','', 'b'])['rerun'] == [1]


# A real GPU

@pytest.mark.gpu
def test_nvml_agrees_with_torch():
    torch = pytest.importorskip('torch')
    if not torch.cuda.is_available(): pytest.skip('no GPU')
    said = nvidia()
    assert said['driver'] and not said['problem']
    assert torch.cuda.get_device_name(0) in [g.name for g in said['gpus']]
    assert torch.cuda.get_device_capability(0) in [g.capability for g in said['gpus']]
