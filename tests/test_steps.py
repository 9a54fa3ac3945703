"@cached: one computes and the others wait, deaths, what is a change and what is none, values by their content, and steps as jobs."
import json, os, subprocess, sys, textwrap, time
from pathlib import Path
import pytest
from mlstack.core import MlstackError
from mlstack.resources import steps as room
from mlstack.resources.steps import cached, digest_of, path_digest, steps, trim
from mlstack.resources.submitting import submit
from tests import house
from tests.test_submitting import Home

@pytest.fixture
def home(tmp_path, monkeypatch):
    h = Home(tmp_path, monkeypatch)
    yield h
    h.close()

def process(home, code, **kw):
    return subprocess.Popen([sys.executable, '-c', textwrap.dedent(code)], cwd=home.work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

def said(p):
    out, err = p.communicate(timeout=300)
    assert p.returncode == 0, err
    return out.strip()

SLOW = '''
    import os, sys, time
    from mlstack.resources.steps import cached
    def log(word):
        with open('log', 'a') as f: f.write(word + '\\n')
    @cached(ignore=['log', 'wait'])
    def slow(n, wait=None):
        log('began')
        while wait and not os.path.exists(wait): time.sleep(.01)
        log('ended')
        return n*2
'''
def lines(home): return (home.work/'log').read_text().split() if (home.work/'log').exists() else []

def test_one_computes_and_the_others_wait(home):
    first = process(home, SLOW + "    print(slow(21, 'go'))")
    home.until(lambda: lines(home) == ['began'])
    others = [process(home, SLOW + "    print(slow(21, 'go'))") for _ in range(3)]
    tells = [o.stderr.readline() for o in others]
    assert all(f'slow is being computed by process {first.pid}' in o for o in tells), tells
    (home.work/'go').touch()
    assert [said(o) for o in (first, *others)] == ['42']*4 and lines(home) == ['began', 'ended']

def test_who_dies_lets_the_next_one_in(home):
    first = process(home, SLOW + "    slow(21, 'go')")
    home.until(lambda: lines(home) == ['began'])
    second = process(home, SLOW + "    print(slow(21))")
    second.stderr.readline()
    first.kill(); first.communicate()
    assert said(second) == '42' and lines(home) == ['began', 'began', 'ended']

def test_threads_too(home):
    from concurrent.futures import ThreadPoolExecutor
    made = []
    @cached(ignore=['made'])
    def once(n): made.append(n); time.sleep(.05); return n
    with ThreadPoolExecutor(4) as pool: assert list(pool.map(once, [7]*4)) == [7]*4
    assert made == [7]

def test_a_failure_is_not_kept(home):
    made = []
    @cached(ignore=['made'])
    def fails(n):
        made.append(n)
        if len(made) < 2: raise ValueError('not yet')
        return n
    with pytest.raises(ValueError): fails(1)
    assert fails(1) == 1 and fails(1) == 1 and made == [1, 1]


# What is a change

BASE = dict(main='''
    import helper
    from helper import scale, Model
    from mlstack.resources.steps import cached
    SIZE = 3
    def inner(x): return x + SIZE
    def outer(factor):
        def closed(x): return x*factor
        return cached(closed)
    @cached
    def step(x, y=2):
        from lazy import late
        return inner(x) + helper.clean(y) + scale(x) + Model().size() + late(x)
    print(step.why(1), '|', outer(5).why(1)); step(1); outer(5)(1)
''', helper='''
    LIMIT = 10
    def deep(x): return min(x, LIMIT)
    def clean(x): return deep(x)
    def scale(x, by=2): return x*by
    class Base:
        width = 4
    class Model(Base):
        def size(self): return self.width
    def unused(): return 1
''', lazy='''
    def late(x): return x
''')

def runs(home, **files):
    for k, v in (BASE | files).items(): (home.work/f'{k}.py').write_text(textwrap.dedent(v))
    return said(subprocess.Popen([sys.executable, '-B', 'main.py'], cwd=home.work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

@pytest.mark.parametrize('file,old,new,why', [
    ('main', 'SIZE = 3', 'SIZE = 4', '__main__.SIZE was changed |'), ('main', 'return x + SIZE', 'return x - SIZE', '__main__.inner was changed |'), ('main', 'y=2', 'y=3', 'step, default 1 was changed; y was 2 and is 3 |'),
    ('helper', 'LIMIT = 10', 'LIMIT = 11', 'helper.LIMIT was changed |'), ('helper', 'min(x, LIMIT)', 'max(x, LIMIT)', 'helper.deep was changed |'), ('helper', 'by=2', 'by=3', 'helper.scale, default 1 was changed |'),
    ('helper', 'width = 4', 'width = 5', 'helper.Base, attributes was changed |'), ('helper', 'return self.width', 'return 2*self.width', 'helper.Model.size was changed |'), ('lazy', 'return x', 'return -x', 'lazy.late was changed |'),
    ('main', 'outer(5)', 'outer(6)', '| __main__.outer.<locals>.closed, factor was changed'), ('main', 'x*factor', 'x+factor', '| __main__.outer.<locals>.closed was changed'),
    ('helper', 'return 1', 'return 2', '|'), ('helper', 'def deep(x):', '# a comment\n\n    def deep(x):', '|'), ('main', 'def inner(x):', 'def inner(x): # a comment\n       ', '|'), ('main', 'import helper\n', 'import helper, json\n', '|')])
def test_what_is_a_change(home, file, old, new, why):
    assert runs(home) == 'it was never computed | it was never computed' and runs(home) == '|'
    assert old in BASE[file]
    answer = runs(home, **{file: BASE[file].replace(old, new)})
    assert answer == why if why == '|' else answer.startswith(why) or answer.endswith(why) or answer.replace('__main__.', '').startswith(why), answer
    assert runs(home) == '|'  # it was changed back

def test_files_and_folders(home):
    @cached
    def size(path, more=None): return sum(p.stat().st_size for p in [path, *path.rglob('*')] if p.is_file())
    data = Path('data'); data.mkdir(); (data/'a').write_text('1'); (data/'b').write_text('22')
    assert size(data) == 3 and size.why(data) == ''
    (data/'b').write_text('333')
    assert size.why(data) == 'the content of path, data, was changed' and size(data) == 4
    os.utime(data/'b', (1, 1))
    assert size.why(data) == ''  # a date is no change
    (data/'c').touch()
    assert size.why(data)
    assert size.why(Path('data/../data/a')) and size.why(str(data)) == "path was data and is 'data'"

def test_a_file_that_changes_within_a_moment_of_the_clock(home):
    path = Path('x')
    path.write_text('a'); stamp = path.stat()
    one = path_digest(path)
    path.write_text('b'); os.utime(path, ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))
    assert path_digest(path) != one

def test_an_old_file_is_read_once(home, monkeypatch):
    path = Path('x')
    path.write_text('a'); os.utime(path, (1, 1))
    one = path_digest(path)
    monkeypatch.setattr(room.hashlib, 'file_digest', None, raising=False)
    monkeypatch.setattr(room, '_by_parts', None)
    assert path_digest(path) == one
    path.write_text('b'); os.utime(path, (2, 2))
    with pytest.raises(TypeError): path_digest(path)

def test_version_and_what_does_not_matter(home):
    def count(x, verbose=False): return x
    one, two = cached(count, ignore=['verbose']), cached(count, version=2, ignore='verbose')
    one(1)
    assert one.why(1, verbose=True) == '' and two.why(1) == 'version was 0 and is 2'
    assert one.forget(1) and not one.forget(1) and one.why(1) == 'it was never computed'


# What is kept

def test_a_damaged_result_is_computed_again(home):
    made = []
    @cached(ignore=['made'])
    def once(n): made.append(n); return [n]
    once(1)
    kept = once.kept(1)
    (kept.path/'value.pkl').write_bytes(b'cut')
    assert once.why(1) == 'its result was damaged' and once(1) == [1]
    (kept.path/'value.pkl').unlink()
    assert once.why(1) == 'its result is gone' and once(1) == [1]
    (kept.path/'facts.json').write_text('{')
    assert once(1) == [1] and made == [1]*4

@pytest.mark.skipif(os.geteuid() != 0, reason='only root can give a file away')
def test_the_result_of_somebody_else_is_not_read(home):
    @cached
    def once(n): return n
    once(1)
    os.chown(once.kept(1).path/'value.pkl', 12345, -1)
    assert once.why(1) == 'its result was written by somebody else' and once(1) == 1 and once.why(1) == ''

def test_a_result_that_cannot_be_kept(home):
    import threading
    @cached
    def bad(): return threading.Lock()
    with pytest.raises(MlstackError, match='cannot be kept'): bad()
    assert not [o for o in (home.folder/'state'/'steps').rglob('value.pkl')]

def test_calling_itself_is_no_deadlock(home):
    @cached
    def down(n): return 0 if n == 0 else 1 + down(n-1)
    assert down(3) == 3
    @cached
    def again(n): return again(n)
    with pytest.raises(MlstackError, match='calls itself with the same arguments'): again(1)

def test_methods_and_their_object(home):
    class Cut:
        def __init__(self, by): self.by = by
        @cached
        def words(self, text): return text.split(self.by)
    assert Cut(',').words('a,b c') == ['a', 'b c'] and Cut(' ').words('a,b c') == ['a,b', 'c'] and Cut(',').words('a,b c') == ['a', 'b c']

def test_the_table_and_trim(home):
    @cached
    def once(n): return n
    once(1); once(2)
    assert len(steps()) == 2 and 'n was 1 and is 2' in repr(steps())
    os.utime(once.kept(1).path/'facts.json', (1, 1))
    assert trim(30) > 0 and len(steps()) == 1 and once.why(1) and not once.why(2)


# Values

def test_equal_content_has_one_digest_in_every_process():
    code = '''
        import numpy as np, pandas as pd, torch
        from collections import OrderedDict, namedtuple
        from dataclasses import dataclass
        from datetime import date
        from mlstack.resources.steps import digest_of
        @dataclass
        class D: a: int; b: list
        s = 'x'*3
        values = [{'b', 'a', 'c'}, {'a': {1, 2}, 'b': [s, s]}, D(1, [s, 'xxx']), np.arange(6.).reshape(2, 3).T, np.array(['a', None], object), torch.arange(4).to(torch.bfloat16), pd.DataFrame(dict(a=[1, 2], b=['x', 'y'])), date(2026, 1, 1), OrderedDict(a=1), range(3), 1j, b'x']
        print(*map(digest_of, values))
    '''
    a, b = (house.python(textwrap.dedent(code), env=house.environment(PYTHONHASHSEED=o)) for o in '12')
    assert a.returncode == 0 and a.stdout == b.stdout and len(set(a.stdout.split())) == 12, a.stdout

def test_different_content_differs():
    import numpy as np
    import torch
    a = np.arange(6)
    for x, y in ((a, a.astype('int32')), (a, a.reshape(2, 3)), (a, a[::-1]), (torch.zeros(2), torch.zeros(2, dtype=torch.float64)), ([1, [2]], [[1], 2]), (['ab'], ['a', 'b']), ({'a': 'b'}, {'b': 'a'}), (True, 1), (0., -0.), ('1', 1), ((), [])):
        assert digest_of(x) != digest_of(y), (x, y)
    shared = (1, 2)
    assert digest_of([shared, shared]) == digest_of([(1, 2), tuple([1, 2])])
    loop = [1]; loop.append(loop)
    assert digest_of(loop) == digest_of(loop)

def test_what_cannot_be_told_is_named(home):
    import threading
    @cached
    def step(a, b): return 1
    with pytest.raises(MlstackError, match="argument b: the content of a lock cannot be told.*ignore=\\['b'\\]"): step(1, {'x': [threading.Lock()]})
    lock = threading.Lock()
    @cached
    def uses(a): return lock and a
    with pytest.raises(MlstackError, match="lock is needed"): uses(1)


# As jobs

def test_steps_as_jobs_share_their_results(home):
    log = home.work/'log'
    @cached(ignore=['log'])
    def tokens(n: int) -> list:
        with open(log, 'a') as f: f.write('tokens\n')
        return list(range(n))
    @cached(ignore=['log'])
    def total(words: list) -> int:
        with open(log, 'a') as f: f.write('total\n')
        return sum(words)
    parts = submit(tokens, array=[4, 4, 4])
    result = submit(total, parts[0])
    assert result.spec['after'] == [parts[0].id] and result.result(300) == 6 and parts.result(300) == [[0, 1, 2, 3]]*3
    assert lines(home) == ['tokens', 'total']
    assert total(tokens(4)) == 6 and lines(home) == ['tokens', 'total']  # here too
    facts = json.loads((total.kept([0, 1, 2, 3]).path/'facts.json').read_text())
    assert facts['job'] == facts['run'] == result.id

def test_other_arguments_that_are_written_at_the_same_time(home, monkeypatch):
    "While one result is written another of the same step is named: neither is in the other's way."
    @cached
    def double(n): return n*2
    real, other = room.write_file, []
    def write(path, data, **kw):
        if not other: other.append(1); other.append(double(2))
        return real(path, data, **kw)
    monkeypatch.setattr(room, 'write_file', write)
    assert (double(1), other[1]) == (2, 4) and not double.why(1) and not double.why(2)

def test_who_is_killed_while_it_writes_leaves_nothing_that_is_read(home):
    code = '''
        from mlstack.resources import steps
        from mlstack.resources.steps import cached
        import os, signal
        real = steps.write_file
        def write(path, data, **kw):
            real(path, data[:len(data)//2], **kw)
            os.kill(os.getpid(), signal.SIGKILL)
        @cached
        def double(n): return n*2
        if os.environ.get('DIE'): steps.write_file = write
        print(double(21), len(list(steps._home().glob('double/.*'))))
    '''
    p = process(home, code, env=os.environ | dict(DIE='1'))
    p.communicate(timeout=300)
    assert p.returncode == -9 and said(process(home, code)) == '42 0'

def test_a_result_whose_class_is_gone_is_computed_again(home, capsys):
    class Broken:
        def __reduce__(self): return eval, ('1/0',)
    made = []
    @cached(ignore=['made', 'Broken'])
    def make():
        made.append(1)
        return Broken() if len(made) == 1 else 4
    make()
    assert make() == 4 and 'is computed again: ZeroDivisionError' in capsys.readouterr().err and len(made) == 2

def test_a_result_that_is_removed_while_it_is_looked_at(home, monkeypatch):
    @cached
    def double(n): return n*2
    double(1)
    monkeypatch.setattr(room.Kept, 'load', lambda self: (_ for _ in ()).throw(FileNotFoundError(self.path)))
    assert double(1) == 2
