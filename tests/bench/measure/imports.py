"imports.py MODULE[:NAME] [WHO]: CPU time and modules of an import, beyond the bare interpreter; with WHO also CPU time up to the end of the first step, see steps.py."
import json, os, subprocess, sys
from pathlib import Path

def cpu(code):
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    out = p.stdout.read()
    _, status, use = os.wait4(p.pid, 0)
    if status: raise SystemExit(f'{code!r} failed')
    return use.ru_utime + use.ru_stime, int(out)

module, _, name = sys.argv[1].partition(':')
load = f'from {module} import {name}' if name else f'import {module}'
count = 'import sys; n = len(sys.modules); {}; print(len(sys.modules) - n)'
(bare, _), (full, modules) = cpu(count.format('pass')), cpu(count.format(load))
answer = dict(cpu_ms=1000*(full - bare), modules=modules)
if len(sys.argv) > 2:
    r = subprocess.run([sys.executable, Path(__file__).with_name('steps.py'), sys.argv[2], 'first'], capture_output=True, text=True, check=True)
    answer |= json.loads(r.stdout)
print(json.dumps(answer))
