"""Run one lesson in this process: `python -m tests.lesson notebook PATH` as it stands, `python -m tests.lesson library PATH` its examples against the exported module.

`python -m tests.lesson serve FD [MODULE …]` imports what a lesson needs once, and forks a process for each lesson it is asked for (tests/house.py asks). Nothing of mlstack is imported
before the fork, no thread is started and torch has computed nothing; a lesson that uses no torch is run by a server without it.

Not `nbdev-test`, because that imports torch before every notebook, also before one that needs no torch.
"""
import importlib, json, os, socket, sys
from pathlib import Path
from tests.house import exports_to, root

def notebook(path, timeout):
    from nbdev.config import get_config
    from nbdev.test import test_nb
    ok, _ = test_nb(path, skip_flags=get_config(root).tst_flags.split(), basepath=root, cell_timeout=timeout)
    return 0 if ok else 1

def library(path, timeout):
    from execnb.shell import CaptureShell
    from nbdev.config import get_config
    from nbdev.test import nb_test_cells
    os.environ['IN_TEST'] = '1'
    shell = CaptureShell(path, mpl_format=None)
    module = exports_to(path)
    importlib.import_module(module)
    shell.run(f'import {module} as _m; globals().update({{k: v for k, v in vars(_m).items() if k[:2] != "__"}}); del _m')
    ran = 0
    os.chdir(path.parent)
    for c in nb_test_cells(path, get_config(root).tst_flags.split()):
        if c.directives_.keys() & {'export', 'exports', 'exporti'} or 'nbdev_export()' in c.source: continue
        shell.run(c.source, timeout=timeout)
        ran += 1
        if shell.exc:
            print(f'{path.relative_to(root)} against {module}, in the cell\n{c.source}\n\n{shell.prettytb(fname=path)}')
            return 1
    print(f'{ran} cells')
    return 0

def serve(fd, modules):
    for o in ('nbdev.test', 'nbdev.config', 'execnb.shell', 'fastcore.all', *modules): importlib.import_module(o)
    assert not any(o.split('.')[0] == 'mlstack' for o in sys.modules)
    caller = socket.socket(fileno=fd)
    requests = caller.makefile()
    for line in requests:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            requests.close(); caller.close()
            out = os.open(asked['output'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1); os.dup2(out, 2)
            os.close(out)
            os.environ.clear(); os.environ.update(asked['env'])
            os.chdir(root)
            return kinds[asked['kind']](Path(asked['path']), asked['timeout'])
        caller.sendall(b'%d\n' % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        caller.sendall(b'%d\n' % code)
    return 0

kinds = dict(notebook=notebook, library=library)
if __name__ == '__main__':
    what, *args = sys.argv[1:]
    code = serve(int(args[0]), args[1:]) if what == 'serve' else kinds[what](Path(args[0]).resolve(), int(args[1]) if len(args) > 1 else 500)
    sys.stdout.flush()
    sys.exit(code)
