# `make demo` runs everything; `make test` passes the tests. Both make their own environment in .venv.
PYTHON ?= python3
CORES ?= $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
# where the photos of `make photos64` lie: train.parquet and val.parquet with the columns key, image and label
PHOTOS ?= ../shared/data/photos64
# where the images of `make fashion28` lie: train.parquet and test.parquet, the same columns
FASHION ?= ../shared/data/fashion28
BIN := .venv/bin
SHELL := /bin/bash

.PHONY: help sample demo photos64 fashion28 dashboard audit test endurance-test slurm-test bench gpu-check check format slurm-dry-run clean

help:
	@echo "make sample     garments from the model in models/fashion28: results/garments.png, seconds"
	@echo "make demo       the whole pipeline on generated images, about ten minutes on two cores"
	@echo "make photos64   the same on real photos, about 100 minutes of CPU time; PHOTOS=FOLDER with train.parquet and val.parquet"
	@echo "make fashion28  every table of the paper on small images, hours of CPU time; FASHION=FOLDER with train and test.parquet"
	@echo "make dashboard  the MLflow dashboard of the last run"
	@echo "make audit      proof that every output of the demo belongs to a finished run"
	@echo "make test       all tests that need no GPU"
	@echo "make endurance-test  the graph, killed again and again"
	@echo "make slurm-test  the graph through a Slurm of two nodes on this machine, whose packages root installs"
	@echo "make bench      time and FLOPs of a training step compared with LlamaGen's, under ten minutes on two idle cores"
	@echo "make gpu-check  what one GPU does in eight minutes; WHEELS=, RESULTS= and LLAMAGEN=FOLDER (docs/benchmarks.md)"
	@echo "make check      formatting, lint, types, and which package may import which"

sample: .venv/.installed
	$(BIN)/dpar sample --checkpoint models/fashion28 --labels all --n 80 --cfg 1.5 --out results/garments.png

demo: .venv/.installed
	$(BIN)/dpar run --config config/demo.yaml --cores $(CORES)

photos64: .venv/.installed
	$(BIN)/dpar run --config config/photos64.yaml --cores $(CORES) -- \
	  --config 'images={train: $(PHOTOS)/train.parquet, val: $(PHOTOS)/val.parquet}'

fashion28: .venv/.installed
	$(BIN)/dpar run --config config/fashion28.yaml --cores $(CORES) -- \
	  --config 'images={train: $(FASHION)/train.parquet, val: $(FASHION)/test.parquet}'

dashboard: .venv/.installed
	$(BIN)/dpar track ui

audit: .venv/.installed
	$(BIN)/dpar track audit --results results/demo

test: .venv/oracles/.installed
	OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR)/.venv/oracles" $(BIN)/python -m pytest --numprocesses $(CORES) --dist worksteal

endurance-test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m endurance

slurm-test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm -rs

bench: .venv/.installed
	$(BIN)/dpar bench train --json

# On a machine with CUDA, by $(PYTHON) as it is: nothing is installed. Numbers and the table are in $(CHECK).
CHECK ?= results/gpu_check
gpu-check:
	$(PYTHON) -m dpar.benchmarks.gpu_check --out $(CHECK) $(if $(WHEELS),--wheels $(WHEELS)) \
	  $(if $(RESULTS),--results $(RESULTS)) $(if $(LLAMAGEN),--llamagen $(LLAMAGEN))

check: .venv/.installed-dev
	$(BIN)/ruff format --check dpar tests
	$(BIN)/ruff check dpar tests
	$(BIN)/snakefmt --check workflow Snakefile
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv/.installed-dev
	$(BIN)/ruff format dpar tests
	$(BIN)/ruff check --fix dpar tests
	$(BIN)/snakefmt workflow Snakefile

slurm-dry-run: .venv/.installed-dev
	$(BIN)/snakemake --profile slurm --dry-run all

clean:
	rm -rf results .snakemake

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version) found, Python 3.11 or newer needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Making the environment .venv (a minute or two, once)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,slurm]'
	@touch $@

# Other implementations of the metrics, for tests/evaluation/test_parity.py alone: without what they ask for, since the
# registry's torchvision would bring a CUDA build of torch, and next to the environment, which stays as users have it.
# Where they cannot be had, those tests are skipped.
.venv/oracles/.installed: .venv/.installed-dev
	@mkdir -p $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) \
	  --constraint constraints.txt torchvision clean-fid torch-fidelity prdc && touch $@ \
	  || echo "no torch-fidelity, clean-fid and prdc here: the tests that compare with them are skipped"
