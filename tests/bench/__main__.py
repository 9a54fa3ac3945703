import argparse, sys
from tests.bench import __doc__ as about
from tests.bench.cases import cases
from tests.bench.harness import draw_again, run_case

p = argparse.ArgumentParser(prog='python -m tests.bench', description=about.split('\n')[0])
p.add_argument('case', nargs='*', help=f'default: all of {", ".join(cases)}')
p.add_argument('--repeats', type=int, help='turns, instead of what the case says; the result is shown and not written')
p.add_argument('--only', help='rows whose label contains this; the result is shown and not written')
args = p.parse_args()
if unknown := set(args.case) - set(cases): p.error(f'no case {", ".join(sorted(unknown))}; there are: {", ".join(cases)}')
write = not (args.repeats or args.only)
ok = [run_case(cases[o](), args.repeats, args.only, write) for o in args.case or cases]
if write and any(ok): draw_again()
sys.exit(0 if all(ok) else 1)
