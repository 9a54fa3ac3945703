"""Images for tests, built for real without a registry: buildah over a base that is this machine's own Python.

    with Builder() as images:
        images.base()                                     # the image `base`: Python with pip, a shell, useradd
        done = images.build('two moons', 'moons')         # the Dockerfile of a folder; done.stdout has its steps
        images.run('moons', 'python3', '-c', 'print(1)')  # as the user, with the variables that the image says

As root and without systemd: isolation by chroot, no network of its own. Layers are overlay mounts where they can be had (not inside another overlay),
else whole copies, which is slow. Nothing is left.
"""
import os, shutil, stat, subprocess, sys, sysconfig, tempfile
from importlib.machinery import PathFinder
from pathlib import Path
from tests import house

def probe():
    "Why this machine cannot run it, or None."
    if sys.platform != 'linux' or os.geteuid() != 0: return 'images are built as root on Linux here'
    if house.programs_missing(['buildah', 'useradd', 'ldd']): return None  # the mark `server` says so
    with Builder() as images:
        made = images.call('from', '--name', 'try', 'scratch')
        if made.returncode: return f'buildah cannot make a container: {made.stdout.strip()[-120:]}'
        (images.folder/'root').mkdir()
        _copy_programs(images.folder/'root', ['sh'])
        images.call('add', 'try', images.folder/'root', '/')
        ran = images.call('run', '--isolation', 'chroot', 'try', 'sh', '-c', 'exit 7')
    return None if ran.returncode == 7 else f'buildah cannot run in a container: {ran.stdout.strip()[-120:]}'

def _libraries(files):
    out = subprocess.run(['ldd', *map(str, files)], capture_output=True, text=True).stdout
    return {o for word in out.split() if (o := word.strip('():')).startswith('/') and Path(o).is_file()}

def _copy(root, path):
    "A file of this machine at its place below `root`; links of folders are followed."
    to = root/str(Path(os.path.realpath(Path(path).parent))/Path(path).name).lstrip('/')
    if to.exists(): return
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, to)

def _copy_programs(root, names):
    for o in ('bin', 'sbin', 'lib', 'lib64'):  # one folder under two names on today's Debian
        if os.path.islink(f'/{o}') and not (root/o).is_symlink(): (root/o).symlink_to(os.readlink(f'/{o}')); (root/os.readlink(f'/{o}')).mkdir(parents=True, exist_ok=True)
    paths = [shutil.which(o, path='/usr/sbin:/usr/bin:/sbin:/bin') for o in names]
    for o in {*paths, *_libraries(paths)}: _copy(root, o)

_left_out = 'test tests idlelib tkinter turtledemo lib2to3 ensurepip site-packages dist-packages pydoc_data config-*'.split()

def make_root(root):
    "The files of a small system: a shell, a few programs, and the Python that runs the tests, with pip."
    pip = Path(PathFinder.find_spec('pip').origin).parent  # imported, it would keep setuptools, and torch's compiler, from being imported by later tests
    _copy_programs(root, 'sh mkdir chmod rm id cat ls env useradd'.split())
    stdlib = Path(sysconfig.get_paths()['stdlib'])
    shutil.copytree(stdlib, root/str(stdlib).lstrip('/'), ignore=shutil.ignore_patterns(*_left_out), symlinks=True, dirs_exist_ok=True)
    python = Path(os.path.realpath(sys.executable))
    # glibc loads libgcc_s only when a thread ends, so no program names it; the others are what wheels may take for granted
    late = [o for name in 'libgcc_s.so.1 librt.so.1 libutil.so.1 libpthread.so.0 libdl.so.2 libm.so.6 libstdc++.so.6'.split() for d in ('/lib', '/usr/lib', '/lib64', '/usr/lib64') for o in (*Path(d).glob(name), *Path(d).glob(f'*/{name}'))]
    for o in {python, *late, *_libraries([python, *(stdlib/'lib-dynload').glob('*.so')])}: _copy(root, o)
    site = root/str(stdlib).lstrip('/')/'site-packages'
    shutil.copytree(pip, site/'pip', dirs_exist_ok=True)
    here = root/'usr/local/bin'
    here.mkdir(parents=True, exist_ok=True)
    if not (here/'python3').exists(): (here/'python3').symlink_to(python)
    (here/'pip').write_text('#!/usr/local/bin/python3\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n')
    (here/'pip').chmod(0o755)
    for o in ('etc', 'tmp', 'root', 'home', 'proc', 'dev', 'sys', 'var/tmp', 'run', 'etc/skel'): (root/o).mkdir(parents=True, exist_ok=True)
    (root/'tmp').chmod(0o1777)
    (root/'etc/passwd').write_text('root:x:0:0:root:/root:/bin/sh\n')
    (root/'etc/group').write_text('root:x:0:\n')
    (root/'etc/shadow').write_text('root:*:19000:0:99999:7:::\n')
    if os.path.exists('/etc/ld.so.cache'): shutil.copy('/etc/ld.so.cache', root/'etc')
    for d in [python.parent, *python.parent.parents]:  # a Python below /root must be of use to others too
        inside = root/str(d).lstrip('/')
        if inside.is_dir(): inside.chmod(stat.S_IMODE(inside.stat().st_mode) | 0o555)

class Builder:
    "Buildah with a store of its own, which lives as long as the block."
    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix='mlstack-images-'))
        (self.folder/'policy.json').write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.env = house.environment(TMPDIR=self.folder, BUILDAH_ISOLATION='chroot', XDG_RUNTIME_DIR=self.folder/'run', HOME=self.folder)
        self.env['PATH'] += ':/usr/sbin:/sbin'
        self.driver = 'overlay'
        if self.call('from', '--name', 'try', 'scratch').returncode: self.driver = 'vfs'
        self.call('rm', 'try')
        return self

    def __exit__(self, *_):
        self.call('rm', '--all')
        for o in reversed(Path('/proc/mounts').read_text().splitlines()):  # of a build that was killed; what is mounted must not be removed with the folder
            if (at := o.split()[1]).startswith(f'{self.folder}/'): subprocess.run(['umount', '--lazy', at])
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, *command, timeout=300, **kw):
        return house.run('buildah', '--root', self.folder/'store', '--runroot', self.folder/'run', '--storage-driver', self.driver, *command, timeout=timeout, env=self.env, **kw)

    def check(self, *command, **kw):
        r = self.call(*command, **kw)
        assert r.returncode == 0, f'buildah {" ".join(map(str, command))}\n{r.stdout[-4000:]}'
        return r

    def base(self, name='base'):
        root = self.folder/'root'
        root.mkdir()
        make_root(root)
        self.check('from', '--name', 'new', 'scratch')
        self.check('add', 'new', root, '/')
        self.check('config', '--env', 'PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', 'new')
        self.check('commit', '--signature-policy', self.folder/'policy.json', '--rm', 'new', f'localhost/{name}')
        shutil.rmtree(root)

    def build(self, folder, name, *options, **kw):
        return self.check('build', '--layers', '--isolation', 'chroot', '--pull-never', '--signature-policy', self.folder/'policy.json', '-t', name, *options, folder, **kw)

    def run(self, image, *command, options=(), **kw):
        made = self.check('from', '--pull-never', '--signature-policy', self.folder/'policy.json', image).stdout.split()[-1]
        try: return self.call('run', '--isolation', 'chroot', *options, made, '--', *command, **kw)
        finally: self.call('rm', made)
