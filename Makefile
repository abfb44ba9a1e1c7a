# Everything a person or CI does here, one word each. A fresh machine needs Python 3.11+, make and the package
# registries; uv comes into .tools/ by itself when it is not on the PATH.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
WORKERS ?= 2
TOOLS := .tools
UV := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)
PY := .venv/bin/python
INSTALLED := .venv/.installed
MEMBERS := $(wildcard libs/*/pyproject.toml services/*/pyproject.toml)
SOURCES := src $(wildcard libs/*/src services/*/src)
TESTS := $(wildcard tests libs/*/tests services/*/tests)
EXTRA := $(wildcard conftest.py scripts benchmarks testbed deploy/examples)

# A Python that somebody downloaded behind your back is not the one you tested.
export UV_PYTHON_DOWNLOADS := never

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[36m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(INSTALLED) ## Create the environment in .venv, exactly as uv.lock says

.PHONY: demo
demo: $(INSTALLED) ## Send real studies through the whole platform and prove that they come back byte for byte
	@$(PY) -m isocenter.cli demo

.PHONY: up
up: $(INSTALLED) ## Start the platform in this terminal; prints addresses and what to try
	@$(PY) -m isocenter.cli up

.PHONY: doctor
doctor: $(INSTALLED) ## Check this machine: ports, disk, clock, versions
	@$(PY) -m isocenter.cli doctor

.PHONY: servers
servers: $(INSTALLED) ## Bring Kafka, MongoDB and an S3 server for the tests to this machine (into ~/.cache/isocenter)
	@$(PY) -m testbed.install

.PHONY: test
test: $(INSTALLED) servers ## Run all tests, on WORKERS (2) processes; ARGS go to pytest
	$(PY) -m pytest -n $(WORKERS) $(ARGS)

.PHONY: check
check: lint typecheck walls test ## All gates, the same as CI

.PHONY: lint
lint: $(INSTALLED) ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

.PHONY: typecheck
typecheck: $(INSTALLED) ## mypy --strict over sources and tests
	$(PY) -m mypy $(SOURCES) $(TESTS) $(EXTRA)

.PHONY: walls
walls: $(INSTALLED) ## Each service alone: imports nothing of another, installs and collects its tests without it
	$(PY) scripts/check_walls.py --uv $(UV)

.PHONY: schemas
schemas: $(INSTALLED) ## Write the JSON Schemas of the events anew, after a change of a model
	$(PY) -m isocenter.common.events.generate

.PHONY: format
format: $(INSTALLED) ## Rewrite sources to the house style
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

.PHONY: faults
faults: $(INSTALLED) ## kill -9 the running platform 1,000 times under load; nothing acknowledged may be lost
	ISOCENTER_FAULT_KILLS=1000 $(PY) -m pytest tests/faults -q -s

.PHONY: hostile
hostile: $(INSTALLED) ## 100,000 damaged associations, instances and requests; the platform must take them and go on
	ISOCENTER_HOSTILE_CASES=$${ISOCENTER_HOSTILE_CASES:-100000} $(PY) -m pytest tests/hostile -q -s

.PHONY: large
large: $(INSTALLED) ## One instance of 4 GB over C-STORE; the process that takes it stays below 128 MB
	ISOCENTER_TEST_LARGE_INSTANCE=4000000000 $(PY) -m pytest services/ingest/tests/test_memory.py -q -s

.PHONY: cluster-test
cluster-test: $(INSTALLED) servers ## The whole journey on Kafka, MongoDB and S3 with two replicas of ingest and indexer
	$(PY) -m pytest tests/cluster -q -s --deselect tests/cluster/test_faults.py

.PHONY: cluster-faults
cluster-faults: $(INSTALLED) servers ## 100 rounds of kills, cuts, pauses and a full store; nothing acknowledged may be lost
	ISOCENTER_CLUSTER_ROUNDS=$${ISOCENTER_CLUSTER_ROUNDS:-100} $(PY) -m pytest tests/cluster/test_faults.py -q -s

.PHONY: images
images: $(INSTALLED) ## Build the image of every service; where no registry answers, on bases made here
	$(PY) -m testbed.docker images

.PHONY: sbom
sbom: images ## Bills of materials of the images (CycloneDX), in deploy/sbom
	$(PY) scripts/sbom.py --uv $(UV)

.PHONY: cluster-up
cluster-up: $(INSTALLED) ## The whole platform in containers on this machine: engines, two replicas, what operators watch
	@$(PY) -m testbed.compose up

.PHONY: cluster-demo
cluster-demo: $(INSTALLED) ## The same, and a study through it: in over DICOM, out over DICOMweb, its trace
	@$(PY) -m testbed.compose demo

.PHONY: cluster-down
cluster-down: $(INSTALLED) ## Stop it and keep its data; `docker compose -f deploy/compose.yaml down -v` removes that, too
	@$(PY) -m testbed.compose down

.PHONY: bench-scale
bench-scale: $(INSTALLED) servers ## The same load on 1, 2 and 4 replicas of ingest and indexer
	$(PY) -m benchmarks.scale

.PHONY: dashboards
dashboards: $(INSTALLED) ## Write the Grafana dashboards anew, after a change of a metric's name
	$(PY) -m scripts.dashboards

.PHONY: chart
chart: $(INSTALLED) ## Kubernetes: lint and render the Helm chart with every example, validate what comes out
	$(PY) -m pytest tests/kubernetes -q -p no:randomly

.PHONY: chart-files
chart-files: ## Copy the alerts into the chart, which can read only its own folder
	rm -f deploy/helm/isocenter/files/alerts/*.yaml
	cp deploy/observability/alerts/*.yaml deploy/helm/isocenter/files/alerts/

.PHONY: bench-ingest
bench-ingest: $(INSTALLED) ## Measure ingest beside the tools you would pick instead: C-STORE and STOW-RS
	$(PY) -m benchmarks.ingest $(ARGS)

.PHONY: bench
bench: bench-ingest

.PHONY: bench-staging
bench-staging: $(INSTALLED) ## Measure a staged volume beside the DICOM files it was made of
	$(PY) -m benchmarks.staging $(ARGS)

.PHONY: bench-gpu
bench-gpu: $(INSTALLED) ## Measure staged volumes on a node with a GPU, B1 to B15 (ARGS=--quick: does it run at all?)
	$(PY) -m benchmarks.gpu.run $(ARGS)

.PHONY: bench-flat
bench-flat: $(INSTALLED) ## Measure C-STORE in archives of 10,000 and 100,000 instances (ARGS=--long: a million, 25 GB)
	$(PY) -m benchmarks.flat $(ARGS)

.PHONY: bench-index
bench-index: $(INSTALLED) ## Measure lookups and searches in archives of 1 and 10 million instances (25 GB of disk)
	$(PY) -m benchmarks.index

.PHONY: clean
clean: ## Remove the environment, tools, caches and demo data (not the data of `make up`)
	rm -rf .venv $(TOOLS) .data/demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(TOOLS)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Isocenter needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing uv into $(TOOLS)/ (it is not on the PATH)"
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<0.14'

$(INSTALLED): uv.lock pyproject.toml $(MEMBERS) | $(filter $(TOOLS)/bin/uv,$(UV))
	@$(UV) sync --locked --quiet
	@touch $@
