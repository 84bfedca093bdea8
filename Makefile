# make repro: install and run the whole pipeline. make test: install and run the tests, make test-all: the slow ones too.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test test-all check lint ui clean

repro: $(BIN)/.installed
	python -m src.cli repro
	@git diff --quiet -- dvc.lock data/metrics 2>/dev/null || \
	  echo 'dvc.lock and data/metrics hold the bytes of this machine now, as processors round differently:' \
	    'commit them, or put the recorded ones back with `git restore dvc.lock data/metrics`'

# a thread each: the workers fill the cores
test: $(BIN)/.installed
	OMP_NUM_THREADS=1 python -m pytest -m "not slow" --numprocesses auto --dist loadfile --no-loadscope-reorder

test-all: $(BIN)/.installed
	OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

check: lint test

lint: $(BIN)/.installed
	ruff format --check src tests
	ruff check src tests
	mypy src

ui: $(BIN)/.installed
	python -m src.cli ui

# the mark is renewed when the requirements change; a failed installation leaves none
$(BIN)/.installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Error: $(PYTHON) is older than Python 3.11: install a newer one and run make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "Error: $(PYTHON) can't make a virtual environment: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	@echo 'Installing into $(VENV), a minute or two ...'
	@$(BIN)/python -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
