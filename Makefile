# Everything runs in .venv inside this checkout; `make help` lists the targets.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: help demo test lint format wheel figures docs clean

help:
	@echo "make demo    environment, detection on the bundled phantom, evaluation, a report to open"
	@echo "make test    environment with the development requirements, then the tests"
	@echo "make lint    ruff and mypy"
	@echo "make format  ruff's formatter and its safe fixes"
	@echo "make docs    the documentation as a site in site/"
	@echo "make figures what README and docs show, made anew from its sources"
	@echo "make wheel   source distribution and manylinux wheel in dist/"
	@echo "make clean   remove the environment and the demo's output"

KERNEL := $(filter-out %.py %.so,$(wildcard cmb_jax/ops/cpu/*.*))

.venv/base: requirements.txt pyproject.toml setup.py $(KERNEL)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "[setup] making .venv and installing the requirements (a few minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet -e '.[all]'
	@ls cmb_jax/ops/cpu/_kernels*.so >/dev/null 2>&1 || echo "[setup] no C++ compiler: the CPU kernels were not built, so a scan takes about 1.4 times as long; to have them, install g++ and run: make clean demo"
	@touch $@

.venv/dev: .venv/base
	@echo "[setup] installing the development requirements (PyTorch and MONAI as peers of the tests)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet -e '.[dev]'
	@touch $@

demo: .venv/base
	@$(BIN)/cmb-jax demo --out demo_output --overwrite

figures: .venv/dev
	@$(BIN)/cmb-jax demo --out demo_output --overwrite --quiet
	@$(BIN)/python tools/readme_picture.py demo_output docs/images/result.png
	@$(BIN)/python tools/figures.py

docs: .venv/dev
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet -e '.[docs]'
	@$(BIN)/python tools/figures.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html"

test: .venv/dev
	@$(BIN)/python -m pytest

lint: .venv/dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: .venv/dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

wheel: .venv/dev
	@tools/build_wheel.sh $(BIN)/python dist

clean:
	rm -rf .venv demo_output
