# make train        train on the embedded digits; ARGS="--recipe cifar10 --total_steps 1000" are train.py's options
# make test         lint, types and tests;        ARGS="tests/schedulers -x" are pytest's options, JOBS=1 its processes
# make test-slow    the tests that take minutes
# make test-browser the app of `hf-ddpm demo` and of Spaces in a real Chromium, which it installs by apt-get
# make bench        the tables of benchmarks/;    DATA=<folder with train.parquet and test.parquet> is what they train on
# make bench-gpu    ten minutes on one GPU;       DATA=<folder of CIFAR-10 parquet>; ARGS="--recipe cifar10-ddgan" is the
#                   GAN's, ARGS=--rehearse two minutes on a CPU
# make style        counts of the habits in CONTRIBUTING.md; ARGS=--places lists what some counts are made of
# make clean        remove what builds and checks leave behind (not runs/, not the virtual environment)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
ARGS ?=
DATA ?=
JOBS ?= auto
# One process, whatever is on this machine. LAUNCH="--config_file my.yaml" takes an `accelerate config` instead.
LAUNCH ?= --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

BIN := $(VENV)/bin
PY := $(BIN)/python
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
DESCRIPTION := setup.cfg pyproject.toml constraints.txt

.PHONY: train test test-slow test-browser chromium bench bench-gpu style clean

train: $(VENV)/.train
	@$(BIN)/accelerate launch -q $(LAUNCH) training/train.py $(ARGS)

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow $(ARGS)

test-browser: $(VENV)/.browser chromium
	OMP_NUM_THREADS=1 $(PY) -m pytest -m browser $(ARGS)

# Debian's own; without it the tests could only be skipped, which would tell nothing.
chromium:
	@{ command -v chromium && command -v chromedriver; } > /dev/null \
	|| { $(AS_ROOT) apt-get update -qq && $(AS_ROOT) apt-get install -y -qq chromium chromium-driver; } \
	|| { echo "make test-browser needs Debian's chromium and chromium-driver, which apt-get could not install" >&2; exit 1; }

bench: $(VENV)/.dev
	$(PY) -m benchmarks.run $(if $(DATA),--data "$(DATA)") $(ARGS)

bench-gpu: $(VENV)/.dev
	$(PY) -m benchmarks.gpu $(if $(DATA),--data "$(DATA)") $(ARGS)

style:
	@$(PYTHON) tests/style.py $(ARGS)

clean:
	rm -rf build dist src/*.egg-info .ruff_cache .mypy_cache .pytest_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A stamp says that its extra is installed as setup.cfg and constraints.txt now describe it.
$(VENV)/.train: EXTRA := train
$(VENV)/.dev: EXTRA := dev
$(VENV)/.browser: EXTRA := dev,space,browser
$(VENV)/.train $(VENV)/.dev $(VENV)/.browser: $(DESCRIPTION)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("the pinned packages need Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA)]'
	@touch $@
