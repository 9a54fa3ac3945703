"What the tests know about the house: its notebooks, its modules, and how to run a process that cannot outlive its test."
import ast, json, os, re, shutil, signal, socket, subprocess, sys, tempfile, threading, time, uuid
from pathlib import Path

root = Path(__file__).resolve().parent.parent
nbs, lib = root/'nbs', root/'mlstack'

# From the ground up: a chapter may import what stands before it. cli and demo share the top floor.
floors = ['core', 'workers', 'env', 'hardware', 'tracking', 'trainer', 'ddp', 'resources', 'sweeps', 'lifecycle', 'demo', 'cli']

apt_line = 'apt-get install -y $(cat requirements/debian.txt)'

def moments(few, full=50):
    "How many random moments a test of kills tries: a `few`, or the `full` number in `make bench`."
    return full if os.environ.get('MLSTACK_FULL') else few


# The house

def notebooks():
    "Every lesson, in the order of the house."
    return sorted(p for p in nbs.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(nbs).parts))

def cells(path): return json.loads(Path(path).read_text(encoding='utf-8'))['cells']

def exports_to(path):
    "The module a notebook exports (`mlstack.trainer`, `mlstack.trainer.loop`), or None."
    for c in cells(path):
        if c['cell_type'] == 'code' and (m := re.search(r'^\s*#\|\s*default_exp\s+(\S+)', ''.join(c['source']), re.M)):
            return 'mlstack.' + m[1].removesuffix('.__init__')

def shows_its_exports(path):
    "Whether cells of a lesson name something that it exports itself, methods included."
    own, used = set(), set()
    for c in cells(path):
        if c['cell_type'] != 'code': continue
        source = ''.join(c['source'])
        try: nodes = [*ast.walk(ast.parse(source))]
        except SyntaxError: return True  # a magic: we cannot tell
        if re.search(r'^\s*#\|\s*exports?i?\b', source, re.M):
            own |= {o.name for o in nodes if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))} | {o.id for o in nodes if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)}
        else: used |= {o.id for o in nodes if isinstance(o, ast.Name)} | {o.attr for o in nodes if isinstance(o, ast.Attribute)}
    return bool(own & used)

def label(path): return str(Path(path).relative_to(root)).removesuffix('.ipynb').removesuffix('.py')

def modules():
    "Name -> file of every module of the package, private ones left out."
    found = {}
    for p in sorted(lib.rglob('*.py')):
        parts = p.relative_to(root).with_suffix('').parts
        if '__pycache__' in parts or any(o[0] == '_' and o != '__init__' for o in parts): continue
        found['.'.join(parts).removesuffix('.__init__')] = p
    return found

def chapter(module): return (module.split('.') + [''])[1]
def chapters(): return [c for c in dict.fromkeys(map(chapter, modules())) if c]
def tree(path): return ast.parse(Path(path).read_text(encoding='utf-8'))


# Processes

def environment(**extra):
    "The variables a test's process gets: this checkout first, one thread, nothing of a run around it."
    env = {k: v for k, v in os.environ.items() if not k.startswith('MLSTACK_') and k not in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'IN_TEST')}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    return env | dict(PATH=path, PYTHONPATH=str(root), OMP_NUM_THREADS='1', MPLBACKEND='Agg', JUPYTER_PLATFORM_DIRS='1') | {k: str(v) for k, v in extra.items()}

def carrying(mark):
    "The live processes that were started with this mark in their environment."
    import psutil
    found = []
    for p in psutil.process_iter():
        try:
            if p.status() != psutil.STATUS_ZOMBIE and p.environ().get('HOUSE_TEST') == mark: found.append(p)
        except (psutil.Error, OSError): pass
    return found

def of_session(sid):
    "The live processes of a session."
    import psutil
    found = []
    for p in psutil.process_iter():
        try:
            if os.getsid(p.pid) == sid and p.status() != psutil.STATUS_ZOMBIE: found.append(p)
        except (psutil.Error, OSError): pass
    return found

def kill(processes):
    "End them, and wait until they are gone."
    import psutil
    for o in processes:
        try: o.kill()
        except psutil.Error: pass
    psutil.wait_procs(processes, 5)

patience = 30 # seconds in which what a command has started ends by itself

def _names(processes):
    import psutil
    found = []
    for o in processes:
        try: found.append(' '.join(o.cmdline()[:6]))
        except psutil.Error: pass # it has just ended
    return found

def run(*command, timeout=600, cwd=root, env=None, input=None, leave_nothing=False):
    """Run a command to its end; everything it started is killed at the time-out.
    With `leave_nothing` processes that are still there some seconds after it ended are an error."""
    mark = uuid.uuid4().hex
    env = (environment() if env is None else env) | dict(HOUSE_TEST=mark)
    p = subprocess.Popen([str(o) for o in command], cwd=cwd, env=env, stdin=subprocess.PIPE if input else subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True)
    late = None
    try: out, _ = p.communicate(input, timeout=timeout)
    except subprocess.TimeoutExpired:
        late = [' '.join(o.cmdline()[:6]) for o in carrying(mark)]
        out = ''
    finally:
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
        end = time.monotonic() + (patience if leave_nothing and late is None else 0)
        while (left := carrying(mark)) and time.monotonic() < end: time.sleep(.1)
        names = _names(left)
        kill(left)
        if late is not None: out = p.communicate()[0]
    if late is not None: raise AssertionError(f'{" ".join(map(str, command))} did not end in {timeout} s; killed: {late}\n{out[-3000:]}')
    if leave_nothing and names: raise AssertionError(f'{" ".join(map(str, command))} left processes behind: {names}')
    return subprocess.CompletedProcess(command, p.returncode, out)

_servers = {}   # modules that are imported -> the process that forks lessons, our end of its socket

def _server(modules):
    if modules not in _servers or _servers[modules][0].poll() is not None:
        ours, theirs = socket.socketpair()
        # an end of file, when this process is gone, ends it
        p = subprocess.Popen([sys.executable, '-m', 'tests.lesson', 'serve', str(theirs.fileno()), *modules], cwd=root, env=environment(), stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        _servers[modules] = p, ours, ours.makefile()
    return _servers[modules]

def lesson(kind, path, timeout=600):
    """Run a lesson ('notebook' or 'library') in a process of its own that a warm server forks; as `run(..., leave_nothing=True)` otherwise.
    It is told from what stays behind by its session and by a mark in the environment of what it started."""
    uses_torch = re.search(r'^\s*(?:import|from) torch\b', '\n'.join(''.join(c['source']) for c in cells(path)), re.M)
    p, sock, answers = _server(('pandas', 'scipy.stats', 'matplotlib.pyplot', 'rich.table', 'typer', 'yaml', 'cloudpickle', 'psutil') + (('torch', 'torch.distributed', 'torch._dynamo') if uses_torch else ()))
    mark, late = uuid.uuid4().hex, False
    with tempfile.TemporaryDirectory(prefix='mlstack-lesson-') as tmp:
        said = Path(tmp, 'out')
        sock.settimeout(None)
        sock.sendall(json.dumps(dict(kind=kind, path=str(path), timeout=500, output=str(said), env=environment(HOUSE_TEST=mark))).encode() + b'\n')
        pid = int(answers.readline())
        clock = threading.Timer(timeout, lambda: (os.killpg(pid, signal.SIGKILL)))
        clock.start()
        try: code = int(answers.readline())
        finally: late = not clock.is_alive(); clock.cancel()
        left = lambda: {o.pid: o for o in (*carrying(mark), *of_session(pid))}.values()
        end = time.monotonic() + (0 if late else patience)
        while left() and time.monotonic() < end: time.sleep(.1)
        names = [' '.join(o.cmdline()[:6]) for o in left() if o.is_running()]
        kill(list(left()))
        out = said.read_text(errors='replace')
    what = f'lesson {kind} {Path(path).name}'
    if late: raise AssertionError(f'{what} did not end in {timeout} s\n{out[-3000:]}')
    if names: raise AssertionError(f'{what} left processes behind: {names}')
    return subprocess.CompletedProcess(what, code, out)

def python(code, *args, **kw): return run(sys.executable, '-c', code, *args, **kw)

def with_patience(check, seconds=4):
    "Call `check(seconds)`; what a busy machine does not do within them gets four times as long, twice."
    for o in (seconds, 4*seconds):
        try: return check(o)
        except AssertionError: pass
    return check(16*seconds)


# Browsers

def wait_for(condition, seconds=300):
    "Wait until a condition is true, and return what it gave."
    end = time.monotonic()+seconds
    while time.monotonic() < end:
        if value := condition(): return value
        time.sleep(.01)
    raise AssertionError('it did not happen')

def until(browser, script, seconds=300):
    "Wait until an expression is true in the page, and return it."
    end = time.monotonic()+seconds
    while not (got := browser.execute_script('return '+script)):
        assert time.monotonic() < end, f'never came true: {script}'
        time.sleep(.05)
    return got

def go_to(browser, url, ready):
    "A page that is not yet open, as a new one, until `ready` is true in it."
    browser.get('about:blank')
    browser.get(url)
    until(browser, ready)
    return browser

def cpu_seconds(*command):
    "User and system time of one run of a command, without its children's children that outlive it."
    p = subprocess.Popen([str(o) for o in command], cwd=root, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    err = p.stderr.read()
    _, status, use = os.wait4(p.pid, 0)
    p.returncode = os.waitstatus_to_exitcode(status)
    assert p.returncode == 0, f'{command}: {err}'
    return use.ru_utime + use.ru_stime


# Capabilities

def programs_missing(names):
    path = os.pathsep.join([os.environ.get('PATH', ''), '/usr/sbin', '/sbin', '/usr/lib/chromium'])
    return [o for o in names if not shutil.which(o, path=path)]

def _private_mount(size, folder, command):
    user = [] if os.geteuid() == 0 else ['--map-root-user']
    return ['unshare', '--mount', *user, 'sh', '-c', f'mount -t tmpfs -o size={size} tmpfs "$1" && shift && exec "$@"', 'sh', str(folder), *command]

def on_small_disk(code, folder, size='128k', timeout=120, **env):
    "Run Python code with `folder` being a tmpfs of that size, in a mount namespace of its own; needs the probe `small_disk`."
    return run(*_private_mount(size, folder, [sys.executable, '-c', code]), timeout=timeout, env=environment(**env))

def small_disk():
    import tempfile
    if sys.platform != 'linux' or programs_missing(['unshare', 'mount']): return 'no unshare and mount here'
    with tempfile.TemporaryDirectory() as d:
        r = subprocess.run(_private_mount('64k', d, ['true']), capture_output=True, text=True)
    return None if r.returncode == 0 else f'a tmpfs cannot be mounted here: {r.stderr.strip()[:80]}'

def own_network():
    if programs_missing(['unshare', 'ip']): return 'there is no unshare, or no ip'
    done = subprocess.run(['unshare', '-n', 'ip', 'link', 'set', 'lo', 'up'], capture_output=True, text=True)
    return None if done.returncode == 0 else f'no network namespace: {done.stderr.strip()[:100]}'

def on_a_real_ray(module, *args, timeout=900, cwd=root, **env):
    "Run a module of the tests where Ray is installed, on a network of its own; needs the probe `own_network`. It takes a gigabyte and a minute: in CI only with MLSTACK_TEST_RAY=1."
    import pytest, secrets
    from tests.bench import peers
    if os.environ.get('CI') and not os.environ.get('MLSTACK_TEST_RAY'): pytest.skip('it takes a gigabyte and a minute: MLSTACK_TEST_RAY=1 runs it')
    try: python = peers.python_of('ray')
    except (RuntimeError, OSError) as e: pytest.skip(f'Ray cannot be installed here: {e}')
    clean = {k: v for k, v in os.environ.items() if 'proxy' not in k.lower() and k != 'RAY_ADDRESS'}
    env = clean | dict(PYTHONPATH=str(root), RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED='0', RAY_NODE_IP_ADDRESS='127.0.0.1', RAY_grpc_enable_http_proxy='0', no_proxy='*', OMP_NUM_THREADS='1', MLSTACK_PROGRESS='no') | env
    return run('unshare', '-n', 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh', python, '-m', module, *args, cwd=cwd, env=env, timeout=timeout)

# Name -> function that says why this machine cannot, or None where it can: `@pytest.mark.probe("small_disk")`.
probes = dict(small_disk=small_disk, own_network=own_network)
