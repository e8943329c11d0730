# Every target needs only Python 3.11+, make and a package index; .venv is made on first use.
PYTHON ?= python3
BIN := .venv/bin
# A file's tests share what took long to make, so they stay in one process. The runs through Flower
# come first: they are few and long, and what is short fills the rest of both processes.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# The published rule on the same data, steps and budget as the default confs.
PUBLISHED := loss=ce rounds.lr_schedule=last_two_halved
# Where torch comes from: a CPU-only one takes far less than the package index's.
TORCH_INDEX ?=
FASHION := $(if $(DATA),data.path=$(DATA)/fashion_mnist)

.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: .venv/installed  ## install, then run DC-CCL on scikit-learn's digits (about a minute)
	$(BIN)/dccl run digits

deploy-demo: .venv/installed  ## DC-CCL over a SuperLink with TLS and three SuperNodes with keys, against the simulation
	$(BIN)/python -m dccl_flower.simulations.deploy.demo

test: lint docs .venv/installed  ## lint, types, the documentation, unit tests and the runs through Flower
	$(PYTEST) -m "not slow"

lint: .venv/installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# mypy does not follow setuptools' package-dir, so it gets the layout that installs.
	rm -rf .lint && mkdir .lint && cp -r dccl_flower .lint/
	cp -r conf strategies simulations .lint/dccl_flower/
	cd .lint && ../$(BIN)/mypy --config-file ../pyproject.toml -p dccl_flower

docs: .venv/installed  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

unit: .venv/installed  ## tests without Flower's runtime
	$(PYTEST) -m "not integration and not slow"

integration: .venv/installed  ## tests through the real flwr run
	$(PYTEST) -m "integration and not slow"

test-slow: .venv/installed  ## the wheel in a clean environment, dccl scale, a deployment, and more workers
	$(BIN)/pytest -m slow

results: .venv/installed  ## the table of docs/dc-ccl.md: three seeds, DATA=folder with fashion_mnist/
	for seed in 0 1 2; do \
	  $(BIN)/dccl run digits --seed $$seed --output runs/results/digits-$$seed && \
	  $(BIN)/dccl run digits $(PUBLISHED) --seed $$seed --output runs/results/digits-published-$$seed && \
	  $(BIN)/dccl run fashion_mnist $(FASHION) --seed $$seed --output runs/results/fashion-$$seed && \
	  $(BIN)/dccl run fashion_mnist $(FASHION) $(PUBLISHED) --seed $$seed \
	    --output runs/results/fashion-published-$$seed || exit 1; \
	done
	$(BIN)/dccl summary runs/results/*

backbones: .venv/installed  ## docs/backbones.md: which models can be cut by width (half an hour)
	( cat docs/backbones.head && \
	  $(BIN)/dccl split $$(cat docs/backbones.txt) 2> /dev/null ) > docs/backbones.new
	mv docs/backbones.new docs/backbones.md

faults: .venv/installed  ## inject every fault and print how each ends
	PYTHONPATH=tests/helpers $(BIN)/python -m fault_rows

clean:  ## remove the environment and everything built
	rm -rf .venv .lint site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

# torch and torchvision are resolved in one go so that their builds match.
.venv/installed: pyproject.toml
	@echo "installing torch and all else into .venv: minutes, and some 7 GB, less with TORCH_INDEX"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch torchvision
	$(BIN)/pip install --quiet -e ".[dev]"
	@touch $@

.PHONY: help demo deploy-demo test lint docs unit integration test-slow results backbones faults clean
