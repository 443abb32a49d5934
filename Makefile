# Everything runs in a virtual environment of its own (.venv); every target sets it up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1

.PHONY: setup demo notebooks test test-quick test-gpu lint format bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/clip-itm compare recipes/sample/clip.yaml recipes/sample/npc.yaml recipes/sample/crcl.yaml --noise 0.4 --seeds 0 --out runs/demo --montage

notebooks: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --nbmake --nbmake-timeout 1800 notebooks

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "slow"
	$(MAKE) notebooks

test-quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

test-gpu: setup
	CLIP_ITM_TEST_GPU=1 $(BIN)/python -m pytest -q -m gpu tests/test_gpu.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/heads.py

clean:
	rm -rf $(VENV) runs build dist *.egg-info
