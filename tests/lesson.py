"""Run one lesson in this process: `python -m tests.lesson notebook PATH` as it stands, `python -m tests.lesson library PATH` its examples against the exported module.

Not `nbdev-test`, because that imports torch before every notebook, also before one that needs no torch.
"""
import importlib, os, sys
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

if __name__ == '__main__':
    code = dict(notebook=notebook, library=library)[sys.argv[1]](Path(sys.argv[2]).resolve(), int(sys.argv[3]) if len(sys.argv) > 3 else 500)
    sys.stdout.flush()
    sys.exit(code)
