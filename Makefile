# Every target sets up what it needs in $(VENV): python3 with venv, make and a C++ compiler are enough.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format bench gpu sanitize clean

$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/*.cpp csrc/*.h)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## make a short clip and predict it
	$(BIN)/merfast demo

test: $(READY)  ## all tests; MERFAST_DATA=folder adds those on real clips
	$(BIN)/python -m pytest

lint: $(READY)  ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.cpp csrc/*.h

bench: $(READY)  ## speed, as ratios within one run; MERFAST_DATA=folder adds real clips
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' --benchmark-only

gpu: $(READY)  ## everything that needs a GPU; without one this fails
	$(BIN)/python -m pytest -m cuda --require-cuda

sanitize: $(READY)  ## kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer
	PYTHON=$(abspath $(BIN)/python) csrc/sanitize.sh

clean:
	rm -rf $(VENV) build *.egg-info merfast/*.so
