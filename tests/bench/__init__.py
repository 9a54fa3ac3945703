"""Measurements of this project beside its peers: `make bench` or `python -m tests.bench [CASE …]`.

A case is a question with rows: one row for this project, one for each peer. Every measurement is a process of its own; rows take turns (A B C A B C …), so
that a machine that slows down slows all of them; what is reported is the median and the range from the lower to the upper quartile. Peers are installed into
environments of their own under ~/.cache/mlstack-bench (or MLSTACK_BENCH_DIR), never into the project's. Results with versions, machine, date and command are
written to tests/bench/results/CASE.json, which nbs/benchmarks.ipynb draws. A count that does not depend on the machine comes before a time that does.
"""
