"The ground floor under bad input, threads, processes and a full disk; and the Makefile's refusal of an old Python."
import os, shutil, subprocess, sys, tempfile, threading
from pathlib import Path
import pytest
from mlstack.core import Context, MlstackError, context, known_settings, new_id, set_process_context, settings, use, write_file
from tests import house


# settings.ini

@pytest.fixture
def ini(tmp_path, monkeypatch):
    for k in known_settings: monkeypatch.delenv(f'MLSTACK_{k.upper()}', raising=False)
    def write(text):
        (tmp_path/'settings.ini').write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path
    return write

@pytest.mark.parametrize('text, says', [
    ('[mlstack]\nrusn = x\n', ['rusn', 'runs', 'settings.ini']),
    ('[mlstack]\npage_port = many\n', ['many', 'page_port', 'int', 'settings.ini']),
    ('[mlstack]\npage_port = 80.5\n', ['80.5', 'page_port']),
    ('[mlstack]\nexecutor = slrum\n', ['slrum', 'executor', 'slurm', 'settings.ini']),
    ('[mlstack]\nsinks = wandb, csv\n', ['sinks', 'tensorboard']),
    ('[mlstack]\nprogress = perhaps\n', ['perhaps', 'progress', 'bool']),
    ('[mlstack]\nruns =\n', ['runs']),
    ('[mlstack]\nruns = a\n[mlstack]\nruns = b\n', ['settings.ini', 'mlstack']),
    ('[mlstack]\nruns = a\nruns = b\n', ['settings.ini', 'runs']),
    ('runs = a\n', ['settings.ini']),
    ('[mlstack\nruns = a\n', ['settings.ini']),
    ('[mlstack]\nproject = caf\xe9\n'.encode('latin-1'), ['settings.ini', 'utf-8']),
    (b'\x00\x01\x02\xff', ['settings.ini']),
], ids=['unknown', 'not-a-number', 'not-whole', 'not-allowed', 'one-of-many', 'not-a-bool', 'empty-path', 'section-twice', 'key-twice', 'no-section', 'torn', 'latin-1', 'binary'])
def test_a_fault_names_file_key_and_what_is_allowed(ini, text, says):
    with pytest.raises(MlstackError) as e: settings(ini(text))
    assert not (missing := [o for o in says if o.lower() not in str(e.value).lower()]), f'{e.value} does not name {missing}'
    assert str(e.value).count('\n') == 0

def test_percent_and_comments_are_ordinary(ini):
    assert settings(ini('[mlstack]\nproject = 100%(x)s %d ; why\n')).project == '100%(x)s %d'

def test_a_byte_order_mark_is_no_fault(ini):
    "Windows editors write one."
    assert settings(ini(b'\xef\xbb\xbf[mlstack]\nproject = there\n')).project == 'there'

def test_dos_line_ends(ini): assert settings(ini(b'[mlstack]\r\nproject = there\r\n')).project == 'there'

def test_empty_file_is_somebody_elses(ini): assert settings(ini('')).project == 'default'

def test_bad_variable_names_the_variable(ini, monkeypatch):
    monkeypatch.setenv('MLSTACK_PAGE_PORT', 'many')
    with pytest.raises(MlstackError, match='MLSTACK_PAGE_PORT'): settings(ini(''))

def test_a_bad_keyword_names_the_keyword(ini):
    with pytest.raises(MlstackError, match='keyword'): settings(ini(''), executor='slrum')
    with pytest.raises(MlstackError, match="Did you mean 'project'"): settings(ini(''), projet='x')

def test_order_of_the_four_places(ini, monkeypatch):
    folder = ini('[mlstack]\nproject = file\n')
    assert settings(folder).project == 'file'
    monkeypatch.setenv('MLSTACK_PROJECT', 'variable')
    assert settings(folder).project == 'variable'
    assert settings(folder, project='keyword').project == 'keyword'

def test_a_file_we_may_not_read():
    "As an ordinary user, also where the tests run as root."
    code = """
import configparser, difflib, os, sys
from mlstack.core import MlstackError, settings
if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)
try: settings(sys.argv[1])
except MlstackError as e: print(e)
"""
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        (Path(d)/'settings.ini').write_text('[mlstack]')
        (Path(d)/'settings.ini').chmod(0)
        r = house.python(code, d)
    assert r.returncode == 0 and 'settings.ini' in r.stdout and 'Traceback' not in r.stdout, r.stdout

def test_a_closed_folder_above_is_passed_by():
    "Walking up may meet a folder that this user may not enter."
    code = """
import configparser, difflib, os, sys
from mlstack.core import settings
if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)
print(settings(sys.argv[1]).project)
"""
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/'closed'/'inside').mkdir(parents=True)
        (Path(d)/'closed').chmod(0)
        os.chmod(d, 0o755)
        r = house.python(code, Path(d)/'closed'/'inside')
        (Path(d)/'closed').chmod(0o700)
    assert r.returncode == 0 and r.stdout.strip() == 'default', r.stdout

def test_a_link_to_nowhere_and_a_folder_are_passed_by(ini, tmp_path):
    (ini('[mlstack]\nproject = above\n')/'a'/'settings.ini').mkdir(parents=True)
    (tmp_path/'a'/'b').mkdir()
    (tmp_path/'a'/'b'/'settings.ini').symlink_to(tmp_path/'nowhere')
    assert settings(tmp_path/'a'/'b').project == 'above'


# Identifiers

def test_ids_of_threads_never_repeat():
    made = [[] for _ in range(8)]
    def make(mine): mine.extend(new_id() for _ in range(2000))
    threads = [threading.Thread(target=make, args=(o,)) for o in made]
    for t in threads: t.start()
    for t in threads: t.join()
    for mine in made: assert mine == sorted(mine)
    assert len({o for mine in made for o in mine}) == 16000

def test_ids_of_processes_never_repeat():
    code = 'from mlstack.core import new_id\nprint("\\n".join(new_id() for _ in range(2000)))'
    ps = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env=house.environment(), cwd=house.root) for _ in range(3)]
    ids = [p.communicate()[0].split() for p in ps]
    assert len({o for mine in ids for o in mine}) == 6000


# write_file

def test_a_reader_never_sees_half_a_file(tmp_path):
    path, sizes, stop = write_file(tmp_path/'x', b'a'*100_000, sync=False), set(), threading.Event()
    def read():
        while not stop.is_set():
            text = path.read_bytes()
            sizes.add((len(text), len(set(text))))
    t = threading.Thread(target=read)
    t.start()
    for i in range(200): write_file(path, bytes([97 + i % 2])*(100_000 + i % 2), sync=False)
    stop.set()
    t.join()
    assert sizes <= {(100_000, 1), (100_001, 1)} and len(list(tmp_path.iterdir())) == 1

@pytest.mark.probe('small_disk')
def test_a_full_disk_leaves_the_old_file(tmp_path):
    code = f'''
import errno
from pathlib import Path
from mlstack.core import write_file
d = Path({str(tmp_path)!r})
write_file(d/'x', 'old')
try: write_file(d/'x', b'n'*1_000_000)
except OSError as e: print(errno.errorcode[e.errno], (d/'x').read_text(), sorted(o.name for o in d.iterdir()))
'''
    r = house.on_small_disk(code, tmp_path)
    assert r.stdout.strip() == "ENOSPC old ['x']"

def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError): write_file(tmp_path/'no'/'x', 'text')


# context

def test_context_through_the_environment():
    ctx = Context(run='r', parent='p', project='100% café', sweep='s', trial='t', job='j', attempt=3, rank=1, local_rank=1, world_size=2, checkpoints='/x y')
    code = 'from mlstack.core import context\nimport json\nprint(json.dumps(context().message()))'
    r = house.python(code, env=house.environment(**ctx.env(), PYTHONIOENCODING='utf-8'))
    assert __import__('json').loads(r.stdout) == ctx.message()

@pytest.mark.parametrize('env, want', [
    (dict(RANK=3, LOCAL_RANK=1, WORLD_SIZE=4), '3 1 4'), (dict(RANK=3), '0 0 1'), (dict(WORLD_SIZE=4), '0 0 1'),
    (dict(RANK=3, LOCAL_RANK=1, WORLD_SIZE=4, MLSTACK_RANK=0, MLSTACK_LOCAL_RANK=0, MLSTACK_WORLD_SIZE=1), '0 0 1'), ({}, '0 0 1')],
    ids=['torchrun', 'rank-alone', 'size-alone', 'ours-win', 'none'])
def test_torchrun_variables(env, want):
    r = house.python('from mlstack.core import context\nc = context()\nprint(c.rank, c.local_rank, c.world_size)', env=house.environment(**env))
    assert r.stdout.strip() == want

def test_a_bad_variable_is_named():
    r = house.python('from mlstack.core import context\ncontext()', env=house.environment(MLSTACK_ATTEMPT='two'))
    assert r.returncode != 0 and 'MLSTACK_ATTEMPT' in r.stdout and 'unset it' in r.stdout

def test_use_is_for_this_thread_and_process_context_for_all():
    seen = []
    def look(): seen.append(context().trial)
    def in_thread():
        t = threading.Thread(target=look)
        t.start()
        t.join()
        return seen.pop()
    try:
        with use(trial='mine'): assert in_thread() == ''
        set_process_context(Context(trial='everybody'))
        assert in_thread() == 'everybody'
    finally: set_process_context(None)
    assert context().trial == '' and context().stop is not None


# make

def interpreter_3_10(tmp_path):
    "A Python 3.10 of this machine, or a script that answers like one."
    found = [shutil.which('python3.10'), *map(str, Path.home().glob('.pyenv/versions/3.10.*/bin/python3.10'))]
    for p in filter(None, found):
        if subprocess.run([p, '-c', 'import sys; sys.exit(sys.version_info[:2] != (3, 10))'], capture_output=True).returncode == 0: return p
    fake = tmp_path/'python3.10'
    fake.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c \'import sys; sys.version_info = (3, 10, 13, "final", 0); exec(sys.argv[1])\' "$1"\n')
    fake.chmod(0o755)
    return str(fake)

@pytest.mark.skipif(not shutil.which('make'), reason='no make')
def test_make_refuses_python_3_10(tmp_path):
    shutil.copy(house.root/'Makefile', tmp_path)
    r = house.run('make', 'venv', f'PYTHON={interpreter_3_10(tmp_path)}', cwd=tmp_path, timeout=300)
    assert r.returncode != 0 and 'needs Python 3.11 to 3.13' in r.stdout and '3.10' in r.stdout and 'PYTHON=python3.11' in r.stdout
    assert not (tmp_path/'.venv').exists() and 'Traceback' not in r.stdout
