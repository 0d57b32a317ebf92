# Everything is one command.  A new machine needs python3 (3.11 or newer, with venv), git and make.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test check parity sim check-kernels mutate-kernels launches predictions bench results fuzz format clean .venv

# Run as an installed package: the repository's own folders are never import names.
export PYTHONSAFEPATH := 1

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# MLX's wheel for Linux bundles a reference BLAS; the distribution's OpenBLAS, where there is one,
# makes float32 products 25 times faster.  Results stay within rounding.
OPENBLAS := $(firstword $(wildcard \
	/usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0 /usr/lib/*-linux-gnu/libopenblas.so.0 \
	/usr/lib64/libopenblas.so.0))
FAST_BLAS := $(if $(OPENBLAS),LD_PRELOAD=$(OPENBLAS))

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/run.stamp  ## ask the bundled checkpoint about a picture, a sound, and a clip
	@$(FAST_BLAS) .venv/bin/mlx-gemma4 demo

test: .venv/test.stamp  ## run the whole test suite (installs the test tools)
	$(FAST_BLAS) .venv/bin/pytest $(PYTEST_ARGS)

check: .venv/dev.stamp  ## format, lint, types, layers, tests: what CI runs
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/basedpyright
	.venv/bin/lint-imports --no-logo
	$(MAKE) --no-print-directory test

parity: .venv-parity/parity.stamp  ## compare with transformers, live (installs torch, in an environment of its own)
	$(FAST_BLAS) .venv-parity/bin/pytest -m parity $(PYTEST_ARGS)

sim: .venv/test.stamp  ## run a kernel's check cases in the simulator: make sim KERNEL=name
	$(FAST_BLAS) PYTHONPATH=tests/support .venv/bin/python -m metal_sim $(KERNEL)

check-kernels: .venv/test.stamp  ## the whole matrix of kernel calls in the simulator (an hour)
	$(FAST_BLAS) OPENBLAS_NUM_THREADS=1 PYTHONPATH=tests/support .venv/bin/python tests/kernels/check_matrix.py

mutate-kernels: .venv/test.stamp  ## break every kernel in many ways, and see whether it is noticed
	$(FAST_BLAS) OPENBLAS_NUM_THREADS=1 PYTHONPATH=tests/support .venv/bin/python benchmarks/mutate_kernels.py

launches: .venv/test.stamp .venv-peers/peers.stamp  ## count kernel launches of a decoded token, ours and the peers'
	@$(COUNT_LAUNCHES) --operations | grep -v '^{'

predictions: .venv/test.stamp .venv-peers/peers.stamp  ## count launches anew, and write what kernels/README.md predicts
	@$(COUNT_LAUNCHES) | PYTHONPATH=benchmarks .venv/bin/python benchmarks/predictions.py --write

bench: .venv/test.stamp .venv-peers/peers.stamp  ## measure the CPU set beside the peers: JSON, plots, results/README.md
	$(FAST_BLAS) PYTHONPATH=benchmarks .venv/bin/python benchmarks/bench_set.py build/bench \
		--python-of mlx-lm=.venv-peers/bin/python --python-of mlx-vlm=.venv-peers/bin/python $(BENCH_ARGS)

results: .venv/test.stamp  ## write benchmarks/results/README.md from the JSON beside it
	PYTHONPATH=benchmarks .venv/bin/python benchmarks/results_table.py --write

fuzz: .venv/test.stamp  ## mutated files against all that reads files: make fuzz FUZZ_ARGS="--cases 1000000 --jobs 4"
	@OPENBLAS_NUM_THREADS=1 PYTHONPATH=benchmarks .venv/bin/python -m fuzz $(FUZZ_ARGS)

format: .venv/dev.stamp  ## format the code and mend what can be mended
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:  ## remove the environments and everything built
	rm -rf .venv .venv-parity .venv-peers build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache

.venv: .venv/dev.stamp  ## make the development environment

# One environment, grown in steps: what running needs, what the tests need, what `check` needs.
.venv/run.stamp: pyproject.toml
	$(call make_venv,.venv)
	.venv/bin/pip install --quiet --editable '.[media]'
	@touch $@

.venv/test.stamp: .venv/run.stamp
	.venv/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv/bin/pip install --quiet --group test
	@touch $@

.venv/dev.stamp: .venv/test.stamp
	.venv/bin/pip install --quiet --group dev
	@touch $@

# torch stays out of .venv, where tests show that running needs neither it nor its start-up time.
.venv-parity/parity.stamp: pyproject.toml
	$(call make_venv,.venv-parity)
	.venv-parity/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-parity/bin/pip install --quiet --editable '.[media]' --group parity
	@touch $@

# PYTHONPATH: scripts in benchmarks/ import each other.
COUNT_LAUNCHES := PYTHONPATH=benchmarks .venv/bin/python benchmarks/launches.py \
	--python-of mlx-lm=.venv-peers/bin/python --python-of mlx-vlm=.venv-peers/bin/python

# mlx-vlm without its server's and its audio's packages: these are what loading a model imports.
.venv-peers/peers.stamp: pyproject.toml
	$(call make_venv,.venv-peers)
	.venv-peers/bin/pip install --quiet $(if $(filter Linux,$(shell uname)),'mlx[cpu]') \
		'mlx-lm>=0.32.2' requests miniaudio opencv-python-headless pillow
	.venv-peers/bin/pip install --quiet --no-deps 'mlx-vlm>=0.7.10'
	@touch $@

# $(1): folder.  An environment whose interpreter has gone is made anew.
define make_venv
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "$(or $(PYTHON),python3 of version 3.11 or newer) is not there; install it, or say make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); 3.11 or newer is needed; install it, or say make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@$(1)/bin/python -c 'import pip' 2>/dev/null || { \
		echo "making $(1) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(1); }
endef
