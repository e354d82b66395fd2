# Everything a person runs. `make` or `make help` lists the targets.

# Any Python >= 3.11; it only creates .venv, which every target then uses.
PYTHON ?= python3
# Handed to pip install. Without CUDA: make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.stamp
NOTEBOOKS := $(basename $(notdir $(wildcard notebooks/[0-9]*.ipynb)))
BENCHMARKS := step scoring gptq sampling

.PHONY: help setup demo test check notebooks figures writeup bench clean
.DEFAULT_GOAL := help

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create or update the environment in .venv
	@echo "environment up to date: $$($(BIN)/python --version) in .venv, $$(cat $(STAMP))"

demo: setup ## train, quantize, pack and score a small model on real text, and draw its figures
	$(BIN)/golfcore notebook 01_one_run

test: setup ## run every test; those marked gpu are skipped where there is no CUDA
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: setup ## lint, check the formatting, check the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Parameters that make a notebook quick; tests/test_notebooks.py executes these very commands.
SMALL := -p preset smoke
SMALL_02_fomaml_ablation := -p size smoke -p seeds 1 -p arms meta-none,meta-exp106
SMALL_03_bucket_contention := -p preset smoke -p size smoke -p seeds 1
SMALL_04_weight_space := -p size smoke -p seeds 1,2 -p rows 8
SMALL_05_error_surface := -p preset smoke -p size smoke -p seeds 1 -p models muon-s1,muon-flag-s1
SMALL_07_ttt_protocols := -p preset smoke -p cells "abc,float,order,stride,epochs 0,error-guided,ppm"
SMALL_09_depth_recurrence := -p preset smoke -p seeds 1 -p size smoke -p arms shared,unique
SMALL_10_ablation_suite := -p size smoke -p seeds 1 -p arms tight-swa,ppm
SMALL_11_claims_and_figures := -p claim C041
SMALL_12_conditioning := -p size smoke -p seeds 1

notebooks: setup $(NOTEBOOKS:%=notebook-%) ## execute every notebook on the smallest preset

notebook-%: setup
	$(BIN)/golfcore notebook $* $(or $(SMALL_$*),$(SMALL))

figures: setup ## draw every figure under figures/ again, from its table
	$(BIN)/golfcore figures

# One thread, because the bits of a run depend on their number and figures are compared to the byte.
writeup: setup ## every study, figure and verdict from nothing, after a forecast of the hours; SIZE=full DATA=DIR on a GPU
	OMP_NUM_THREADS=1 $(BIN)/golfcore figures --remake all --out papermill_runs/writeup \
	$(if $(SIZE),--size $(SIZE)) $(if $(DATA),--data $(DATA))

bench: setup ## time golfcore beside the published arithmetic, half an hour; BENCH=--small takes seconds
	@set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(BENCH); done

clean: ## remove .venv and the tools' caches; results under papermill_runs/ always stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find golfcore tests benchmarks notebooks -name __pycache__ -prune -exec rm -rf {} +
	@echo "kept: papermill_runs/ (results are yours to delete)"

# constraints.txt pins torch, so that an upgrade (several GB where it brings CUDA) never comes in by accident.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "make setup: expected \
	Python 3.11 or newer, found $(PYTHON) = '$$($(PYTHON) --version 2>&1)'; name another: make setup PYTHON=python3.12" >&2; \
	exit 1; }
	@echo "environment: installing into .venv (once, a few minutes; torch is most of it)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[nb,dev]"
	@$(BIN)/python -c 'import torch; print("torch", torch.__version__)' > $@.part && mv $@.part $@
