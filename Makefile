# Everything happens in .venv, which each target fills with what it lacks.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

# Test files that need no extra but `cli`.
CORE := attention_distillation augment checkpoints compress compress_init compress_saved contract dense_backbone \
	dense_golden dense_loading deploy_layers distill_losses folders head_count hub_folder hubconf import \
	inference_layers loading minivit_contract minivit_golden minivit_layers official_views plain_vit_golden \
	plain_vit_loading pretrain_d_mae pretrain_loading pretrain_mae pretrain_mocov3 pretrain_tinymim profile pyramid \
	relation_distillation releases resolution sources taps tinymim_contract tinyvit_contract tinyvit_golden \
	tinyvit_resolution view_parameters

.DEFAULT_GOAL := help
.PHONY: help demo test test-all quick core lint types format docs gallery bench clean

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.demo  ## Train, save, reload and classify on real images (3 minutes, no network needed)
	$(BIN)/tinyvit-zoo demo

test: $(VENV)/.dev  ## Every behaviour, timm's own suite included
	$(BIN)/python -m pytest -m 'not full' -n 2 --dist worksteal

test-all: $(VENV)/.dev  ## The same for every architecture, tag and combination
	$(BIN)/python -m pytest -m 'full or not full' -n 2 --dist worksteal

quick: $(VENV)/.dev  ## The tests without the slow ones
	$(BIN)/python -m pytest -n 2 --dist worksteal

core: $(VENV)/.core  ## The quick tests of the package without its extras
	$(BIN)/python -m pytest -n 2 $(CORE:%=tests/test_%.py)

lint: $(VENV)/.dev  ## Check style and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev  ## Check types, over the unpacked wheel
	rm -rf build/types
	$(BIN)/python -m build --wheel --no-isolation -o build/types . > /dev/null
	$(BIN)/python -m zipfile -e build/types/*.whl build/types/site
	cd build/types/site && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p tinyvit_zoo -m _tinyvit_zoo_cli

format: $(VENV)/.dev  ## Put style and format right
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

docs: $(VENV)/.dev  ## Build the documentation in docs/_build/html, warnings as errors
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

gallery: $(VENV)/.dev  ## The gallery of the documentation again, on digits and textures (4 CPU minutes)
	OMP_NUM_THREADS=1 $(BIN)/python docs/make_gallery.py

bench: $(VENV)/.dev  ## Ours beside timm's, in one process
	rm -f build/bench.csv
	$(BIN)/python benchmarks/record.py --csv build/bench.csv
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/sam.py
	$(BIN)/python benchmarks/minivit.py
	$(BIN)/python benchmarks/plain_vit.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/few_shot.py
	$(BIN)/python benchmarks/knn.py
	$(BIN)/python benchmarks/linear_probe.py
	$(BIN)/python benchmarks/soft_labels.py
	$(BIN)/python benchmarks/analysis.py

clean:  ## Remove .venv and everything built
	rm -rf $(VENV) build dist docs/_build docs/api/generated .ruff_cache .cache

$(VENV)/bin/python:
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 to 3.14 found; name one: make PYTHON=/path/to/python3.12 ...'; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[eval]'
	@touch $@

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[cli]' pytest pytest-timeout pytest-xdist pyyaml
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	@touch $@
