# Everything that a person or CI runs. `make` alone prints this list.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
GENERATED := crds charts/stepdown/templates/crds manifests/catalog

.PHONY: help demo test test-cluster lint check golden generate bench cluster-up cluster-down lock clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment: exactly what the lock says, by hash, then this project without isolation (its build backend is locked too).
$(STAMP): requirements.lock pyproject.toml
	@test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## a policy at work: routes step down tier by tier, then refuse; the bill never passes the ceiling
	$(BIN)/python -m tests.demo

test: $(STAMP) ## every test that needs nothing but this machine
	$(BIN)/pytest -n 2 --dist worksteal -m "not cluster"

test-cluster: $(STAMP) ## the tests against a real API server, which is built first if need be (docs/devcluster.md)
	$(BIN)/python -m devcluster build
	$(BIN)/pytest tests/cluster -n 2 --dist worksteal -m "not node"

lint: $(STAMP) ## format, lint, types, architecture
	$(BIN)/ruff format --check operator tests bench devcluster
	$(BIN)/ruff check operator tests bench devcluster
	$(BIN)/mypy
	$(BIN)/mypy -p devcluster
	$(BIN)/lint-imports --no-cache

generate: $(STAMP) ## write all that is generated: the CRDs, also as the chart's templates, and the built-in price list
	$(BIN)/python -m stepdown.model.crd .

check: lint generate ## lint, and fail if anything generated differs from what is committed
	@test -z "$$(git status --porcelain -- $(GENERATED))" \
	  || { git status --short -- $(GENERATED); echo "What is generated is not what the models say: commit the result of 'make generate'"; exit 1; }

golden: $(STAMP) ## rewrite the golden files from what the code says now; read the diff before you commit it
	$(BIN)/pytest tests/golden --rewrite-golden

bench: $(STAMP) ## the proxy beside nginx on this machine; writes bench/latest.json
	$(BIN)/python -m bench.proxy

SIZE ?= control-plane
CLUSTER ?=
cluster-up: $(STAMP) ## a real Kubernetes on this machine; SIZE=node runs pods too (as root), CLUSTER=/a/folder for a second one
	@$(BIN)/python -m devcluster up --size $(SIZE) $(if $(CLUSTER),--state-dir $(CLUSTER))

cluster-down: $(STAMP) ## end it; nothing of it stays
	@$(BIN)/python -m devcluster down $(if $(CLUSTER),--state-dir $(CLUSTER))

lock: $(STAMP) ## compile requirements.lock from pyproject.toml: names, versions and hashes, no host
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-emit-index-url --no-header \
	  -o requirements.lock pyproject.toml

clean: ## remove what make made
	rm -rf .venv .demo .bench .mypy_cache .ruff_cache .hypothesis
