# Two commands: `make demo` shows the whole way, `make test` proves it. `make check test` is the gate.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Processes that tests run in, each of about 1 GB.
WORKERS ?= 2

.PHONY: install demo test soak check lock docs clean js

install: $(STAMP)

# Every package by version and hash: what is not in requirements/ is not installed, and another file under a version's name is refused.
LOCKED := -m pip install --quiet --require-hashes --no-deps -r

$(STAMP): pyproject.toml requirements/install.txt requirements/qnn.txt requirements/litert.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than Python 3.11; call make PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch for CPUs, where the machine or its index has it; else the index's own, which may need CUDA's libraries beside.
	$(BIN)/python $(LOCKED) requirements/cpu.txt || echo "make: no build of torch for CPUs at hand, the index's own is taken" >&2
	$(BIN)/python $(LOCKED) requirements/install.txt
	$(BIN)/python -m pip check >/dev/null || $(BIN)/python $(LOCKED) requirements/cuda.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	$(BIN)/python $(LOCKED) requirements/qnn.txt || echo "make: Qualcomm's compiler is not for this platform, qnn-htp is left out" >&2
	$(BIN)/python $(LOCKED) requirements/litert.txt || echo "make: LiteRT is not for this platform, litert is left out" >&2
	@touch $@

demo: install
	$(BIN)/python -m quad.evaluate.demo

test: install js
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# The JavaScript runtime: its packages by version and digest, its files for quad's page, its checks and its tests; where there is no Node or
# no registry, the others go on.
JS_STAMP := js/node_modules/.installed

js:
	@if ! command -v npm >/dev/null; then echo "make: no Node here, the JavaScript runtime is not tested; install Node 20.16 or newer" >&2; \
	elif test $(JS_STAMP) -nt js/package-lock.json || (cd js && npm ci --ignore-scripts --silent --fetch-retries=1 && touch node_modules/.installed); then \
		cd js && npm run --silent page && npm run --silent check && npm run --silent test -- --reporter=dot; \
	else echo "make: npm could not install the packages of js/ (no registry?), the JavaScript runtime is not tested" >&2; fi

# Before a release, about an hour on two quiet cores: the long tests, and those that wait for other processes 20 times on starved cores.
soak: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "soak or not soak"
	$(BIN)/python -m benchmarks.under_load

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/sizes.py src tests tools benchmarks
	$(BIN)/python tools/names.py src
	$(BIN)/python tools/keyword_only.py src
	$(BIN)/python tools/docstrings.py src
	$(BIN)/python tools/lock.py --check

# requirements/ anew from pyproject.toml, with the versions that are there where they still fit; `make lock UPGRADE=--upgrade` for the newest.
lock: install
	$(BIN)/python tools/lock.py $(UPGRADE)

# The site, in out/site; its generator goes into an environment of its own, and a warning is an error.
docs:
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(LOCKED) requirements/docs.txt
	.venv-docs/bin/zensical build --strict -f zensical.toml

clean:
	rm -rf out .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
