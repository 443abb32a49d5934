# Everything runs in a virtual environment of its own (.venv); every target sets it up first, as far as it needs it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1
# Threads that wait leave the cores to others, unless the user wants them to spin.
OMP_WAIT_POLICY ?= PASSIVE
export OMP_WAIT_POLICY

.PHONY: setup browser demo dist docs notebooks check test test-quick test-gpu lint format bench clean

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

# What the tests in a browser need beside setup, on Debian and Ubuntu: as root, or with sudo.
AS_ROOT = $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
APT = $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get
BROWSER = chromium chromium-driver
browser:
	command -v chromium && command -v chromedriver || $(APT) install -y --no-install-recommends $(BROWSER) \
	  || { $(APT) update && $(APT) install -y --no-install-recommends $(BROWSER); }

demo: $(VENV)/.runs
	$(BIN)/clip-itm compare recipes/demo/clip.yaml recipes/demo/crcl.yaml recipes/demo/crossfit.yaml --noise 0.4 --seeds 0 --out runs/demo --montage
	$(BIN)/clip-itm audit --run runs/demo/crossfit/noise-0.4/seed-0 --picture runs/demo/audit.png
	@echo "look at runs/demo/comparison.md, queries.png (what each model finds) and audit.png (captions found to be wrong)"

notebooks: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --nbmake --nbmake-timeout 1800 notebooks

# The site in site/, without network: a link or a section that leads nowhere, or a page that nothing leads to, is an error.
SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
docs: setup
	$(SITE)
	@echo "open site/index.html"

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
	$(SITE) --site-dir build/site

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/startup.py

# The wheel and the sdist, in dist/: what is built here is what a user installs.
dist: setup
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) runs build dist site *.egg-info
