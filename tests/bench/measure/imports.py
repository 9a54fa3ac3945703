"imports.py MODULE[:NAME]: CPU time and modules of an import, beyond the bare interpreter."
import json, os, subprocess, sys

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
print(json.dumps(dict(cpu_ms=1000*(full - bare), modules=modules)))
