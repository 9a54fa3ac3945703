# make demo · make test · make bench · make docs · make lab          (all begin with `make venv`)
#
# PYTHON=python3.12   another interpreter         TORCH=system   over an installed torch, which is left alone
# MLSTACK_ARGS=--quick   options for the demo     TESTS=tests/test_laws.py   a part of the suite
# WORKERS=1   test files one after the other; default: one more at once than there are cores, at most 4 (many tests wait for something)

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
TORCH ?= locked
TESTS ?= tests
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$((n<4 ? n+1 : 4)))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: demo test bench docs lab venv lock export readme clean debian

demo: venv
	@$(BIN)/mlstack demo $(MLSTACK_ARGS)

test: venv debian
	@$(BIN)/python -m pytest $(TESTS) $(if $(filter tests,$(TESTS)),-n $(WORKERS) --dist loadfile) $(PYTEST_ARGS)

bench: venv
	@$(BIN)/python -m tests.bench $(CASES)
	@$(if $(CASES),true,echo "random moments of kills, the full number" && MLSTACK_FULL=1 $(BIN)/python -m pytest tests -k "kill")

docs: venv
	@$(BIN)/python docs/site.py build

lab: venv
	@cd $(CURDIR) && PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-install-hooks && $(BIN)/jupyter lab --notebook-dir=$(CURDIR)/nbs $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS)

# The environment: made from the lock, left alone while the files that define it are the same.
venv:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "mlstack needs Python 3.11 to 3.13 and %s is %d.%d; install one of them, then: make venv PYTHON=python3.11" % (sys.executable, *v))'
	@want="$$(cat pyproject.toml requirements/*.txt | sha256sum | cut -c1-16)-$(TORCH)-$(CURDIR)"; \
	if [ "$$(cat $(VENV)/.mlstack-lock 2>/dev/null)" != "$$want" ]; then \
	  set -e; echo "mlstack: making $(VENV) from requirements/ (the first time takes a few minutes)"; \
	  if [ "$(TORCH)" = system ]; then $(PYTHON) -m venv --system-site-packages $(VENV); else $(PYTHON) -m venv $(VENV); fi; \
	  if [ "$(TORCH)" != system ]; then echo "  1/3 torch"; $(PIP) -r requirements/torch.txt; fi; \
	  echo "  2/3 everything else, locked"; $(PIP) -r requirements/dev.txt; \
	  echo "  3/3 mlstack itself"; $(PIP) --no-deps --no-build-isolation -e .; \
	  echo "$$want" > $(VENV)/.mlstack-lock; \
	fi

# The lock, from pyproject.toml. torch is one line of its own (requirements/torch.txt), so no line of torch's own wheels is kept.
lock: venv
	@$(BIN)/pip-compile --quiet --extra demo --extra tutorials --extra dev --extra onnx --no-emit-index-url --no-emit-find-links --allow-unsafe --strip-extras \
	  --no-header --annotation-style line --constraint requirements/torch.txt $(LOCK_ARGS) --output-file requirements/dev.txt pyproject.toml
	@sed -i.bak -E '/^(torch|triton|pytorch-triton.*|cuda-.*|nvidia-[a-z]+[a-z0-9-]*(-cu[0-9]+)?)==/{/^nvidia-ml-py==/!d}' requirements/dev.txt && rm requirements/dev.txt.bak

# Debian packages that tests of real servers and browsers need, where we may install them.
debian:
	@if [ -n "$(filter-out tests,$(TESTS))" ] || [ "$$(uname)" != Linux ]; then exit 0; fi; \
	missing=; for p in $$(cat requirements/debian.txt); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else exit 0; fi; \
	command -v apt-get >/dev/null || exit 0; echo "mlstack: installing Debian packages:$$missing"; \
	($$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing) >/tmp/mlstack-apt.$$$$ 2>&1 \
	  || { tail -5 /tmp/mlstack-apt.$$$$; echo "mlstack: they could not be installed; their tests will be listed as not run"; }; rm -f /tmp/mlstack-apt.$$$$

export: venv
	@$(BIN)/nbdev-export && $(BIN)/nbdev-clean && $(BIN)/python docs/site.py readme

clean:
	@rm -rf _proc _docs _site build dist *.egg-info .ruff_cache
