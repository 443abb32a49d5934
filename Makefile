# Everything runs in a virtual environment of its own (.venv); every target sets it up first, as far as it needs it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1
# Threads that wait leave the cores to others, unless the user wants them to spin.
OMP_WAIT_POLICY ?= PASSIVE
export OMP_WAIT_POLICY

.PHONY: setup demo notebooks check test test-quick test-gpu lint format bench clean

# All that tests, notebooks and benchmarks need, or only what the demo does: runs and pictures.
setup: $(VENV)/.installed

# One line that says what pip is at; a newer line takes its place.
PROGRESS = awk '/^ *(Collecting|Downloading|Installing)/ { sub(/^ +/, ""); printf "\r\033[K%.78s", $$0; fflush() } END { print "" }'
INSTALL = set -o pipefail; $(BIN)/python -m pip install --progress-bar off --no-compile --editable

$(VENV)/.runs: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing what runs and pictures need into $(VENV), most of it torch and its libraries: this takes minutes"
	@$(INSTALL) '.[plot]' | $(PROGRESS)
	touch $@

$(VENV)/.installed: $(VENV)/.runs
	@echo "installing what tests, notebooks and benchmarks need on top"
	@$(INSTALL) '.[dev]' | $(PROGRESS)
	touch $@

demo: $(VENV)/.runs
	$(BIN)/clip-itm compare recipes/demo/clip.yaml recipes/demo/npc.yaml recipes/demo/crcl.yaml --noise 0.4 --seeds 0 --out runs/demo --montage

notebooks: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --nbmake --nbmake-timeout 1800 notebooks

# What a change is checked with on the way: the rooms of the package by themselves, without what trains or starts processes.
check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow" tests/unit

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "slow"
	$(MAKE) notebooks

test-quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

test-gpu: setup
	CLIP_ITM_TEST_GPU=1 $(BIN)/python -m pytest -q -m gpu tests/training/test_gpu.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/startup.py

clean:
	rm -rf $(VENV) runs build dist *.egg-info
