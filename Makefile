# make train    .venv, install, train CONFIG (default: letters) and print the path of its grid of images
# make smoke    train the checkerboard and fail if a score is beyond its limit
# make article  after make smoke: the flow in motion, densities, the loss and its irreducible part, and a finer board
# make test     lint, types, the default tests (make lint, make fast)
# make slow     the tests that take minutes
# make wheel    build the wheel, and train the digits for a few steps from it
# make soak     a run killed at 30 random times, about 4 minutes
# make bench    a training step of CONFIG compared with its lower bound and with other trainers (TORCHCFM=, META=,
#               DIFFUSERS=checkout), or only with another checkout of flowimg: FLOWIMG=checkout
PYTHON ?= python3
CONFIG ?= configs/letters.yaml
BIN := .venv/bin
SMOKE := runs/smoke
# the tests start many processes: what Python compiled is kept for the next, whatever the shell says
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train smoke article test lint fast slow soak bench wheel clean

train: .venv/installed
	$(BIN)/flowimg train $(CONFIG)

smoke: .venv/installed
	rm -rf $(SMOKE)
	$(BIN)/flowimg train configs/checkerboard.yaml --run $(SMOKE)
	$(BIN)/flowimg evaluate $(SMOKE) --max-off 0.07 --max-sw2 0.06 --max-mass-ratio 1.2

article: .venv/installed
	$(BIN)/flowimg figures $(SMOKE)
	$(BIN)/python examples/frequency/run.py --run runs/article --cells 4 8 --plain-only true

test: .venv/installed
	$(MAKE) --jobs 2 --no-print-directory fast lint

# three tests at once on two cores: many wait for a process or a disk
fast: .venv/installed
	$(BIN)/pytest -m "not slow and not gpu" -n 3 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: .venv/installed
	$(BIN)/pytest -m "slow and not gpu" -n 3 --dist worksteal --durations=20

soak: .venv/installed
	$(BIN)/python tests/soak.py

wheel: .venv/installed
	bash .ci/wheel

bench: .venv/installed
	$(BIN)/python benchmarks/speed.py train $(CONFIG) --figures false --train.steps 1000000 --train.sample-every 1000000 \
		$(if $(FLOWIMG),--flowimg $(FLOWIMG)) \
		$(if $(TORCHCFM),--torchcfm $(TORCHCFM)) $(if $(META),--meta $(META)) $(if $(DIFFUSERS),--diffusers $(DIFFUSERS))

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flowimg needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
