"Environments that are really broken, what `mlstack.env.doctor` says of each, and what it must not say of sound ones."
import importlib.util, json, os, random, subprocess, sys

import pytest
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from mlstack.env.builds import architectures, check_accelerator, has_code_for
from mlstack.env.examining import doctor
from mlstack.env.installed import check_files, check_known_bad, conflicts, known_bad, read_packages
from mlstack.env.interpreter import check_import_path, kernels
from mlstack.env.limits import available, check_memory, processes_allowed
from mlstack.env.lockfiles import lock_text, made_from, pins_of, plan_of
from mlstack.env.machine import Gpu
from mlstack.env.merging import install_hooks
from mlstack.env.record import distributions
from mlstack.env.repository import check_git, check_hooks, check_lock, check_project, pins, repository
from mlstack.env.requirements import applies, meets, requirement, version_key
from mlstack.env.storage import write_for_a_try
from tests import house

linux = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
spec = importlib.util.spec_from_file_location('broken_environments', house.root/'tests'/'bench'/'measure'/'doctor.py')
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)

def no_mounts(): return '' if made.may_mount() else 'nothing can be mounted here'

def cases(of, needs): return [pytest.param(k, id=k, marks=[pytest.mark.probe.with_args(no_mounts)]*bool(v[needs])) for k,v in of.items()]


# As in `make bench`, without the start of the command line

@linux
@pytest.mark.parametrize('name', cases(made.broken, 3))
def test_a_broken_environment_is_named(name, tmp_path):
    make,line,word,_ = made.broken[name]
    place = made.Place(tmp_path)
    make(place)
    said,_ = place.checks('quick')
    assert [c for c in said if c['name'] == line and word in c['detail'] and c['fix']], said
    assert not [c for c in said if 'could not be checked' in c['detail']], said


@linux
@pytest.mark.parametrize('name', cases(made.sound, 1))
def test_a_sound_environment_is_left_alone(name, tmp_path):
    place = made.Place(tmp_path)
    made.sound[name][0](place)
    said,_ = place.checks('quick')
    assert not [c for c in said if c['name'] not in made.host], said


@linux
def test_a_case_is_broken_by_what_was_done_to_it(tmp_path):
    "The place itself is sound, so that what a case names comes from the case."
    said,_ = made.Place(tmp_path).checks('quick')
    assert not [c for c in said if c['name'] not in made.host], said
    assert len(made.broken) >= 25 and len(made.sound) == 5


@linux
def test_the_command_says_it_too(tmp_path):
    place = made.Place(tmp_path)
    made.broken['random.py in the project'][0](place)
    said,_ = place.checks('mlstack')  # the command's own imports do not take the file for the real one
    assert any('random.py' in c['detail'] for c in said)
    place.drop('torch')
    out,_ = place.look('mlstack')
    assert out.returncode == 1 and json.loads(out.stdout)['ok'] is False


@linux
def test_what_is_advised_mends_it(tmp_path):
    "The commands are run as they stand, where that needs no network; then the line is gone."
    for i,name in enumerate(('pip interrupted', 'random.py in the project', 'TMPDIR gone', 'a kernel whose Python is gone', 'a malicious startup file', 'certificates gone', '256 open files', 'more threads than cores')):
        make,line,word,_ = made.broken[name]
        place = made.Place(tmp_path/str(i))
        make(place)
        (fix,) = [c['fix'] for c in place.checks('quick')[0] if c['name'] == line]
        place.before.append(fix)
        assert line not in [c['name'] for c in place.checks('quick')[0]], (name, fix)


# Versions, requirements and markers, against `packaging`

def some_version(rng):
    text = ('1!' if rng.random() < .05 else '')+'.'.join(str(rng.choice([0,0,1,2,3,10,13])) for _ in range(rng.randint(1,4)))
    for chance,ends in ((.3,['a1','b2','rc1','.rc2','-alpha','c3','rc']), (.2,['.post1','-2','.post','rev3']), (.2,['.dev3','.dev']), (.15,['+cpu','+cu130','+local.1'])):
        if rng.random() < chance: text += rng.choice(ends)
    return text


def test_versions_are_compared_as_packaging_does():
    rng = random.Random(0)
    for _ in range(4000):
        a,b = some_version(rng),some_version(rng)
        assert (version_key(a) < version_key(b), version_key(a) == version_key(b)) == (Version(a) < Version(b), Version(a) == Version(b)), (a,b)
        op = rng.choice(['==','!=','>=','<=','>','<','~='])
        want = op+(b if op in ('==','!=') else b.split('+')[0])
        if op in ('==','!=') and rng.random() < .3: want = op+'.'.join(str(rng.randint(0,2)) for _ in range(rng.randint(1,3)))+'.*'
        try: theirs = SpecifierSet(want)
        except InvalidSpecifier: continue
        assert meets(a, want) == theirs.contains(a, prereleases=True), (a,want)


def test_requirements_are_read_as_packaging_does():
    "Every requirement of every package that is installed here."
    seen = 0
    for p in read_packages():
        for text in p.requires or ():
            try: theirs = Requirement(text)
            except InvalidRequirement: continue
            mine,seen = requirement(text),seen+1
            assert SpecifierSet(mine.spec) == theirs.specifier and len(mine.extras) == len(theirs.extras), text
            for extra in ('','test','dev','all','http'): assert applies(mine.marker, extra) == (not theirs.marker or theirs.marker.evaluate(dict(extra=extra))), (text,extra)
    assert seen > 300


@pytest.mark.parametrize('text', ['', '# a comment', '-e .', '--hash=sha256:00', '>=2', '[x]', 'a b', 'ünicode'])
def test_what_is_no_requirement(text): assert requirement(text) is None


@pytest.mark.parametrize('marker', ['((', 'python_version', '1 < 2 < 3 and (', 'os.system("x") == "y"', 'unknown_name == "1"', 'python_version >> "3"', '"a" if 1 else "b"', 'lambda: 0', '[1][0] == 1'])
def test_a_marker_that_cannot_be_read_lets_pass(marker): assert applies(marker) is True


def test_looking_for_pip_leaves_setuptools_importable():
    "Before Python 3.12 an import of pip, or `find_spec('pip')`, makes a later import of setuptools fail; torch.compile needs it."
    r = house.python("from mlstack.env.checks import pip; from mlstack.env.restoring import find_installer\npip('install', 'x'), find_installer('pip')\nimport setuptools")
    assert r.returncode == 0, r.stdout


def test_pip_agrees_that_this_environment_is_whole():
    theirs = subprocess.run([sys.executable, '-m', 'pip', 'check'], capture_output=True, text=True, timeout=300)
    mine = [c for c in conflicts(read_packages()) if c.wants and '[' not in c.wants]
    assert bool(mine) == bool(theirs.returncode), (mine, theirs.stdout)


# Bad input

def test_metadata_of_every_kind(tmp_path):
    for o in ('empty-1.0.dist-info', 'binary-1.0.dist-info', 'crlf-1.0.dist-info', 'folder-1.0.dist-info'): (tmp_path/o).mkdir()
    (tmp_path/'binary-1.0.dist-info'/'METADATA').write_bytes(os.urandom(3000))
    (tmp_path/'crlf-1.0.dist-info'/'METADATA').write_bytes(b'Name: crlf\r\nRequires-Dist: folder>=2\r\nRequires-Dist: (((\r\n\r\nRequires-Dist: not-me\r\n')
    (tmp_path/'folder-1.0.dist-info'/'METADATA').mkdir()
    (tmp_path/'file-1.0.egg-info').write_text('Metadata-Version: 1.1\nName: file\nVersion: 1.0\nRequires-Dist: gone\n')
    known = read_packages(distributions([str(tmp_path)]))
    assert {p.name: p.requires for p in known if p.name != 'binary'} == dict(empty=None, crlf=('folder>=2','((('), file=('gone',), folder=None)
    assert sorted((c.package.name, c.wants) for c in conflicts(known)) == [('crlf','folder>=2'), ('file','gone')]
    assert all(c.state == 'ok' for c in check_files(known))


def test_extras_that_ask_for_each_other_end(tmp_path):
    for name,asks in (('a','b[x]'), ('b','a[x]; extra == "x"')):
        (tmp_path/f'{name}-1.dist-info').mkdir()
        (tmp_path/f'{name}-1.dist-info'/'METADATA').write_text(f'Name: {name}\nProvides-Extra: x\nRequires-Dist: {asks}\n' + ('Requires-Dist: gone; extra == "x"\n' if name == 'a' else '') + '\n')
    assert [c.wants for c in conflicts(read_packages(distributions([str(tmp_path)])))] == ['gone']


def card(name, capability): return Gpu(0, name, 'GPU-1', 80<<30, 70<<30, capability)
def driver(cuda, *gpus, problem=''): return dict(driver='580.65', cuda=cuda, gpus=list(gpus), problem=problem)

@pytest.mark.parametrize('torch, gpu, state', [
    (dict(version='2.13.0', cuda='13.0', rocm=None), driver('99.9', card('X9000',(99,0))), 'ok'),    # PTX is compiled for what is newer
    (dict(version='2.13.0', cuda='77.1', rocm=None), driver('99.9', card('X9000',(12,0))), 'ok'),
    (dict(version='2.13.0', cuda='13.0', rocm=None), driver('13.0', card('X',(0,0))), 'ok'),          # a driver that does not say
    (dict(version='2.13.0', cuda='13.0', rocm=None), driver(None, card('H100',(9,0))), 'ok'),
    (dict(version='2.13.0', cuda='13.0', rocm=None), driver('13.0', card('K80',(3,7)), card('H100',(9,0))), 'warning'),  # one of two
    (dict(version='2.13.0', cuda=None, rocm='7.1'), driver(None), 'ok'),
    (dict(version='nonsense', cuda=None, rocm=None), driver('13.0', card('H100',(9,0))), 'wrong'),
    (None, driver(None, problem='the driver is there, but nvidia-ml-py to ask it is not'), 'wrong'),
])
def test_odd_accelerators(torch, gpu, state, tmp_path):
    c = check_accelerator(torch, gpu, {}, root=tmp_path)
    assert c.state == state and bool(c.fix) == (state != 'ok'), c


def test_architectures_of_a_library_that_is_damaged(tmp_path):
    (tmp_path/'torch'/'lib').mkdir(parents=True)
    table = architectures(dict(cuda='13.0'), [], 'x86_64')
    for data in (b'', b'\x7fELF', b'sm_80 '*1000, os.urandom(9999)):
        (tmp_path/'torch'/'lib'/'libtorch_python.so').write_bytes(data)
        assert architectures(dict(cuda='13.0'), [str(tmp_path)], 'x86_64') == table
    assert has_code_for((10,3), ('sm_100',)) and not has_code_for((10,0), ('sm_103',)) and not has_code_for((8,0), ('compute_90',))


def test_kernels_of_every_kind(tmp_path):
    for name,text in dict(text='nonsense', number='1', empty='{}', none='{"argv": []}', r='{"argv": ["R", "--slave"]}', odd='{"argv": ["/x/python", 1, "ipykernel"]}').items():
        (tmp_path/name).mkdir()
        (tmp_path/name/'kernel.json').write_text(text)
    (tmp_path/'folder'/'kernel.json').mkdir(parents=True)
    assert [o[0] for o in kernels([tmp_path, tmp_path/'nowhere'])] == ['odd']


@pytest.mark.parametrize('text, want', [('', {}), ('numpy>=2\n', {}), ('-r other.txt\nnumpy==2.0\n', dict(numpy='2.0')), ('numpy==2.*\n', {}), ('numpy==2.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n', dict(numpy='2.0')),
    ('NumPy == 2.0 # why\n', dict(numpy='2.0')), ('a[x]==1 ; sys_platform == "plan9"\nb===1+local\n', dict(b='1+local'))])
def test_requirement_files(text, want, tmp_path):
    (tmp_path/'requirements.txt').write_text(text)
    assert pins(tmp_path/'requirements.txt') == want


@pytest.mark.parametrize('text', ['', 'not toml [', 'packages = 3\n', 'packages = ["a"]\n', '[[packages]]\nname = "a"\n'])
def test_a_pylock_that_is_none(text, tmp_path):
    (tmp_path/'pylock.toml').write_text(text)
    assert pins(tmp_path/'pylock.toml') == {} and list(check_lock(dict(a='1'), tmp_path)) == []


@pytest.mark.parametrize('text', ['', '[project]\n', '[project]\ndependencies = "numpy"\n', '[project]\ndependencies = [1, "((("]\n', 'not toml [', '[tool.x]\ny = 1\n'])
def test_a_pyproject_without_dependencies(text, tmp_path):
    (tmp_path/'pyproject.toml').write_text(text)
    (tmp_path/'requirements.txt').write_text('numpy==2.0\n')
    assert [c.state for c in check_lock(dict(numpy='2.0'), tmp_path)] == ['ok']


def test_git_files_of_every_kind(tmp_path):
    (tmp_path/'.git').write_text('gitdir: ../somewhere/else\n')      # a worktree whose repository is gone
    assert repository(tmp_path)[0] == tmp_path
    (tmp_path/'.gitattributes').write_bytes(b'\xff\xfe* merge=\n*.x merge=a"b\n*.y filter=$(touch evil)\n')
    found = list(check_hooks(tmp_path, {}))
    assert all(c.fix for c in found if c.state != 'ok') and not (tmp_path/'evil').exists()
    assert check_git(tmp_path).state == 'warning'


@linux
def test_without_proc(tmp_path):
    assert available(tmp_path) is None and processes_allowed(tmp_path) == -1 and check_memory(0, 0, None).state == 'ok'
    (tmp_path/'proc/self').mkdir(parents=True)
    (tmp_path/'proc/self/cgroup').write_text('0::/a/b\n5:pids,cpu:/x\nnonsense\n')
    for where,n in (('sys/fs/cgroup/a/b','900'), ('sys/fs/cgroup/pids/x','100'), ('sys/fs/cgroup','max')):
        (tmp_path/where).mkdir(parents=True, exist_ok=True)
        (tmp_path/where/'pids.max').write_text(n)
    assert processes_allowed(tmp_path) == 100


def test_nothing_is_left_where_it_tried_to_write(tmp_path):
    with pytest.raises(OSError): write_for_a_try(tmp_path/'nowhere')
    write_for_a_try(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_project_in_its_own_folder_shadows_nothing(tmp_path):
    "This checkout, from its root and from its tests."
    for folder in (house.root, house.root/'tests', house.root/'nbs'): assert [c.state for c in check_import_path([], folder, {}, sys.path, '')] == ['ok']
    assert [c.state for c in check_import_path([], tmp_path/'nowhere', {}, sys.path, '')] == ['ok']


def test_the_tables_are_dated_and_have_sources():
    assert len(known_bad) >= 10
    for name,(versions,_,when,source,instead) in known_bad.items():
        (said,) = [c for c in check_known_bad({name: next(iter(versions))})]
        assert said.state == 'wrong' and name in said.detail and when in said.detail and source in said.detail and instead.split('=')[0].strip('>!<') in said.fix
        good = Requirement(instead)
        assert good.name != name or not any(good.specifier.contains(v) for v in versions), f'{name}: what is advised is bad too'


# Deep

@linux
def test_deep_imports_torch_in_a_process_of_its_own(tmp_path):
    rep = doctor(deep=True)
    assert rep['torch import'].state == 'ok' and 'torch' in rep['torch import'].name
    place = made.Place(tmp_path)
    made.broken['a library of torch cut off'][0](place)
    out = subprocess.run([place.python, '-P', '-c', 'from mlstack.env import doctor; print(doctor(deep=True)["torch import"])'], cwd=place.project, env=place.env, capture_output=True, text=True, timeout=300)
    assert "state='wrong'" in out.stdout and 'signal 7' in out.stdout, out.stdout + out.stderr  # a bus error


def git(folder, *args): return subprocess.run(['git', '-C', str(folder), '-c', 'user.name=a', '-c', 'user.email=a@b', *args], capture_output=True, text=True).stdout


def test_our_own_hooks_are_complete(tmp_path):
    "A filter that only cleans is a filter, and no fix asks the reader to fill it in."
    git(tmp_path, 'init', '-q', '-b', 'main'), git(tmp_path, 'config', 'user.email', 'a@b')
    install_hooks(tmp_path)
    (said,) = check_hooks(tmp_path, {})
    assert said.state == 'ok' and 'filter mlstack-notebook' in said.detail
    git(tmp_path, 'config', '--remove-section', 'filter.mlstack-notebook')
    (tmp_path/'.gitattributes').write_text('*.ipynb merge=jupyternotebook\n*.x filter=nobodys\n')
    said = {c.detail.split(' driver ')[1].split(',')[0]: c.fix for c in check_hooks(tmp_path, {}) if c.state != 'ok'}
    assert said['mlstack-notebook'].endswith('mlstack env hooks') and said['jupyternotebook'].endswith('nbdev-install-hooks')
    assert len(said) == 3 and 'COMMAND' not in str(said)


def test_a_notebook_in_conflict_is_not_for_a_tool_of_lines(tmp_path):
    git(tmp_path, 'init', '-q', '-b', 'main')
    def save(text): (tmp_path/'my book.ipynb').write_text(text); git(tmp_path, 'add', '-A'); git(tmp_path, 'commit', '-qm', text)
    save('a'), git(tmp_path, 'checkout', '-qb', 'other'), save('b'), git(tmp_path, 'checkout', '-q', 'main'), save('c'), git(tmp_path, 'merge', 'other')
    said = check_git(tmp_path)
    assert 'my book.ipynb' in said.detail and "mlstack env lint 'my book.ipynb'" in said.fix and 'mergetool' not in said.fix


def test_another_copy_on_pythonpath_is_named(tmp_path):
    def package(at): (at/'mine').mkdir(parents=True); (at/'mine'/'__init__.py').touch(); return at
    checkout, site, work = package(tmp_path/'checkout'), package(tmp_path/'lib'/'site-packages'), tmp_path/'work'
    work.mkdir(), (checkout/'pyproject.toml').touch()
    def look(folder, found=(), path=(site,)): return list(check_import_path(list(found), folder, dict(PYTHONPATH=str(checkout)), [str(checkout), *map(str, path)], ''))
    (said,) = look(work)
    assert said.state == 'warning' and f'mine of {checkout}' in said.detail and said.fix == 'unset PYTHONPATH'
    (said,) = look(checkout)
    assert said.state == 'ok' and 'mine is this project' in said.detail
    assert [c.state for c in look(work, path=())] == ['ok']
    def editable(at):
        info = tmp_path/at.name/'site-packages'/'mine-1.dist-info'
        info.mkdir(parents=True)
        (info/'direct_url.json').write_text(json.dumps(dict(url=f'file://{at}', dir_info=dict(editable=True))))
        return distributions([str(info.parent)])
    assert [c.state for c in look(work, editable(checkout), ())] == ['ok']
    assert [c.state for c in look(work, editable(package(tmp_path/'another')), ())] == ['warning']


@pytest.mark.parametrize('text, state, words', [
    ('[project]\nname = "a"\ndependencies = ["requets", "numpy<2", "a[x]", "gone; sys_platform == \'win32\'"]\n', 'wrong', ['requets is not installed', 'numpy 2.4.6 does not meet <2']),
    ('[project]\ndependencies = [\n"numpy"\n', 'wrong', ['line']), ('[project]\ndependencies = ["numpy>=2"]\n', 'ok', ['is met']),
    ('[project]\nname = "a"\n', None, []), ('[tool.poetry.dependencies]\nnothing = "1"\n', None, []), ('project = 3\n', None, []), ('', None, [])])
def test_what_the_project_asks_for(tmp_path, text, state, words):
    (tmp_path/'.git').mkdir(), (tmp_path/'sub').mkdir()
    (tmp_path/'pyproject.toml').write_text(text)
    found = list(check_project(dict(numpy='2.4.6'), tmp_path/'sub'))
    assert [c.state for c in found] == [state]*bool(state) and all(o in found[0].detail for o in words)
    if state == 'wrong': assert found[0].fix and 'win32' not in found[0].fix


def test_a_lock_that_is_older_than_the_project(tmp_path):
    (tmp_path/'pyproject.toml').write_text('[project]\nname = "a"\ndependencies = ["numpy"]\n')
    (tmp_path/'requirements').mkdir()
    (tmp_path/'requirements'/'production.txt').write_text(lock_text(made_from(plan_of(tmp_path), 'production', 'uv'), [], pins_of('numpy==2.4.6\n')))
    assert [c.state for c in check_project(dict(numpy='2.4.6'), tmp_path)] == ['ok']
    (tmp_path/'pyproject.toml').write_text('[project]\nname = "a"\ndependencies = ["numpy", "pandas"]\n')
    said = list(check_project(dict(numpy='2.4.6', pandas='2'), tmp_path))
    assert [(c.state, c.fix) for c in said] == [('warning', 'mlstack env lock')] and 'pandas is not in it' in said[0].detail


def test_the_checkout_of_mlstack_asks_for_nothing_more():
    assert not [c for c in check_project({}, house.root) if c.state == 'wrong']
