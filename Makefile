# Two commands: `make demo` shows the whole way, `make test` proves it. `make check test` is the gate.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Processes that tests run in, each of about 1 GB.
WORKERS ?= 2

.PHONY: install demo test check docs clean

install: $(STAMP)

# torch goes first and alone: resolved together with the rest, it is replaced by a build of several gigabytes.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than Python 3.11; call make PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[build,openvino,delivery,serve,dev]' -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[qnn]' -c constraints.txt || echo "make: Qualcomm's compiler is not for this platform, qnn-htp is left out" >&2
	@touch $@

demo: install
	$(BIN)/python -m quad.evaluate.demo

test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/sizes.py src tests tools benchmarks
	$(BIN)/python tools/names.py src
	$(BIN)/python tools/keyword_only.py src
	$(BIN)/python tools/docstrings.py src

# The site, in out/site; its generator goes into an environment of its own, and a warning is an error.
docs:
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet mkdocstrings-python zensical -c constraints.txt
	.venv-docs/bin/zensical build --strict -f zensical.toml

clean:
	rm -rf out .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
