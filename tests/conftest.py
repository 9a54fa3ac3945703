"""Which tests a machine can run, and the list of those it could not.

`server("chromium", …)` needs programs; `cloud("WANDB_API_KEY", …)` needs variables; `probe("small_disk")` names a probe of tests/house.py (or is a
function) that says why this machine cannot; `gpu` and `multi_gpu` need devices. What did not run is listed by name at the end. With CI=true a test that
did not run is a failure, unless it is one for gpu, multi_gpu, cloud or a probe.
"""
import os, signal, tempfile, threading
import pytest
from tests import house, images
from tests.slurm import Slurm, accounting_programs, probe as slurm_probe, programs as slurm_programs

house.probes |= dict(slurm=slurm_probe, images=images.probe)
ci = os.environ.get('CI', '').lower() in ('1', 'true', 'yes')
may_be_missing = ('gpu', 'multi_gpu', 'cloud', 'probe')
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler) # a shell's background job ignores Ctrl-C, and what it starts inherits that

_known = {}   # answers of probes and of the question how many GPUs there are

def _gpus():
    if 'gpus' not in _known:
        _known['gpus'] = 0
        if os.path.exists('/dev/nvidiactl') or os.path.exists('/dev/kfd'):
            import torch
            _known['gpus'] = torch.cuda.device_count()
    return _known['gpus']

def _probe(which):
    if which not in _known: _known[which] = (which if callable(which) else house.probes[which])()
    return _known[which]

def _lacks(item):
    "The first thing this machine lacks for the test, as (kind, why)."
    for m in item.iter_markers():
        if m.name == 'server' and (missing := house.programs_missing(m.args)): return 'server', 'missing: ' + ', '.join(missing)
        if m.name == 'gpu' and not _gpus(): return 'gpu', 'no GPU here'
        if m.name == 'multi_gpu' and _gpus() < 2: return 'multi_gpu', f'{_gpus()} GPUs here'
        if m.name == 'cloud' and (missing := [o for o in m.args if not os.environ.get(o)]): return 'cloud', 'not set: ' + ', '.join(missing)
        if m.name == 'probe':
            for o in m.args:
                if why := _probe(o): return 'probe', why

one_by_one = ('tests/test_notebooks.py::test_notebook[', 'tests/test_library.py::')

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "With `--dist loadfile` a file stays on one worker. Lessons, which share nothing, go singly to the worker that is free, after all files: so the workers end together."
    from xdist.scheduler import LoadFileScheduling
    class Lessons(LoadFileScheduling):
        def _split_scope(self, nodeid): return nodeid if nodeid.startswith(one_by_one) else super()._split_scope(nodeid)
    if config.getvalue('dist') == 'loadfile': return Lessons(config, log)

def pytest_collection_modifyitems(items):
    items.sort(key=lambda o: '[nbs/tutorials/' not in o.nodeid) # the longest lessons first
    for o in items:
        if 'chromium' in getattr(o, 'fixturenames', ()): o.add_marker(pytest.mark.server('chromium', 'chromedriver'))
        if {'slurm', 'slurm_accounts'} & {*getattr(o, 'fixturenames', ())}:
            o.add_marker(pytest.mark.server(*slurm_programs, *(accounting_programs if 'slurm_accounts' in o.fixturenames else ())))
            o.add_marker(pytest.mark.probe('slurm'))

def pytest_runtest_setup(item):
    if lack := _lacks(item):
        kind, why = lack
        if ci and kind == 'server': pytest.fail(f'{why}; install with: {house.apt_line}', pytrace=False)
        item.user_properties.append(('lacks', kind))
        pytest.skip(why)

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    "With CI=true a test that skips itself has failed."
    rep = yield
    if rep.skipped and not hasattr(rep, 'wasxfail') and not dict(item.user_properties).get('lacks') and 'empty parameter set' not in str(rep.longrepr): # a chapter of a later issue: there is no such test
        if ci and not any(item.get_closest_marker(o) for o in may_be_missing): rep.outcome, rep.longrepr = 'failed', f'did not run, and CI=true: {_why(rep)}'
    return rep

def _why(rep): return (rep.longrepr[2] if isinstance(rep.longrepr, tuple) else str(rep.longrepr)).removeprefix('Skipped: ')

@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    rep = yield
    if rep.skipped and ci: rep.outcome, rep.longrepr = 'failed', f'did not run, and CI=true: {_why(rep)}'
    return rep

def pytest_terminal_summary(terminalreporter):
    not_run = {} # kind -> [(test, why)]; from the reports, which also come from other processes
    for rep in terminalreporter.stats.get('skipped', []):
        if 'empty parameter set' not in str(rep.longrepr): not_run.setdefault(dict(getattr(rep, 'user_properties', ())).get('lacks', 'skipped'), []).append((rep.nodeid, _why(rep)))
    if not not_run: return
    terminalreporter.section('not run here')
    for kind, tests in not_run.items():
        terminalreporter.write_line(f'{kind}:' + (f' install with: {house.apt_line}' if kind == 'server' else ''))
        for name, why in tests: terminalreporter.write_line(f'  {name}  ({why})')

@pytest.fixture(scope='session')
def chromium():
    "`chromium(width, height, dark=False)` opens a headless browser; all are closed at the end."
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    import shutil
    opened, profiles = [], []
    def start(width=1300, height=900, dark=False):
        profiles.append(tempfile.mkdtemp(prefix='mlstack-chromium-'))
        o = webdriver.ChromeOptions()
        o.binary_location = shutil.which('chromium')
        for a in ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
                  '--disable-sync', '--disable-dev-shm-usage', '--no-proxy-server', f'--user-data-dir={profiles[-1]}', f'--window-size={width},{height}'): o.add_argument(a)
        o.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        d = webdriver.Chrome(options=o, service=Service(shutil.which('chromedriver')))
        opened.append(d)
        # --window-size has a lower bound, and a narrow screen is what we want to see
        d.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500))
        d.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value='dark' if dark else 'light')]))
        return d
    yield start
    for d in opened: d.quit()
    for p in profiles: shutil.rmtree(p, ignore_errors=True)

@pytest.fixture(scope='session')
def slurm():
    "A SLURM of two nodes with four cores and two made-up GPUs each, for the session."
    with Slurm(nodes=2, cpus=4, gpus=2) as cluster: yield cluster

@pytest.fixture(scope='session')
def slurm_accounts():
    "The same with accounting, so that `sacct` answers."
    with Slurm(nodes=2, cpus=4, gpus=2, accounting=True) as cluster: yield cluster
