"""The training and evaluation stack of a machine-learning team, in notebooks

Modules:

- `mlstack.tracking.page`: The runs and their curves in a browser: `track.ui()` in Python, `mlstack ui` in a shell.
- `mlstack.tracking.recorder`: `init`, `log`, `config`, `summary`, `finish`: the record of one execution, written to a folder while it happens."""

__version__ = "0.0.1"
