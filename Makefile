# Every target sets up what it needs in $(VENV): python3 with venv, make and a C++ compiler are enough.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= $(MERFAST_DATA)
# `make gpu` sets nothing up: a machine with a GPU may have no network, and a torch of its own outside of any $(VENV).
GPU_PYTHON = $(firstword $(wildcard $(BIN)/python) $(PYTHON))

.PHONY: demo test lint format docs bench gpu sanitize clean

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

docs: $(READY)  ## the documentation's site, in build/site; `python -m http.server -d build/site` shows it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(READY)  ## speed, as ratios within one run; MERFAST_DATA=folder adds real clips, OUT=folder writes JSON there
	$(if $(OUT),mkdir -p "$(OUT)")
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' --benchmark-only \
		$(if $(OUT),--benchmark-json="$(OUT)/bench.json")

gpu:  ## tests, benchmarks and compute-sanitizer on a GPU, to JSON in OUT=; DRY=1 tries it without; WHEELS=, DATA=, ONLY=
	$(GPU_PYTHON) -m benchmarks.gpu $(if $(OUT),--out "$(OUT)") $(if $(COMMIT),--commit "$(COMMIT)") \
		$(if $(WHEELS),--wheels "$(WHEELS)") $(if $(DATA),--data "$(DATA)") $(if $(ONLY),--only "$(ONLY)") \
		$(if $(DRY),--dry-run)

sanitize: $(READY)  ## kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer
	PYTHON=$(abspath $(BIN)/python) csrc/sanitize.sh

clean:
	rm -rf $(VENV) build *.egg-info merfast/*.so
