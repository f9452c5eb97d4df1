# Everything that a person or CI runs. `make` alone prints this list.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
GENERATED := crds charts/stepdown/templates/crds docs/conditions.md manifests/catalog manifests/crds manifests/base \
  manifests/fleet manifests/argocd/argocd-cm.yaml

.PHONY: help demo demo-cluster prove prove-real fuzz test test-compiled test-cluster test-node lint check golden generate bench bench-control-plane bench-ledger \
  cluster-up cluster-down wheel compiled wheelhouse image lock clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment: exactly what the lock says, by hash, then this project without isolation (its build backend is locked too).
$(STAMP): requirements.lock pyproject.toml
	@test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## a policy at work: routes step down tier by tier, then refuse; the bill never passes the ceiling
	$(BIN)/python -m tests.demo

demo-cluster: wheelhouse ## the same on a Kubernetes with real pods, from nothing: needs root on Linux, or Docker
	$(BIN)/python -m tests.demo.cluster

test: $(STAMP) ## every test that needs nothing but this machine
	$(BIN)/pytest -n 2 --dist worksteal -m "not cluster"

fuzz: $(STAMP) ## the properties alone, on other examples each time and many more: what fails prints how to replay it
	$(BIN)/pytest tests/unit tests/wire -n 2 --dist worksteal -m "hypothesis and not cluster" --hypothesis-profile=search

SEEDS ?= 1000
prove: $(STAMP) ## seeded fault schedules in virtual time, the bill kept apart: SEEDS=1000; a failure says how to replay it
	$(BIN)/python -m tests.proof --seeds $(SEEDS)

prove-real: SEEDS = 30
prove-real: $(STAMP) ## the same with real processes, sockets, kills and time on a real API server: SEEDS=30; as root also full disks and cut networks
	$(BIN)/python -m devcluster build
	$(BIN)/python -m tests.proof.real --seeds $(SEEDS)

test-compiled: compiled ## the proxy's tests against its compiled modules, as the image has them
	STEPDOWN_COMPILED=1 PYTHONPATH=$(COMPILED) $(BIN)/pytest tests/wire/test_proxy_*.py tests/unit/test_proxy_*.py tests/unit/test_money.py \
	  tests/e2e/test_run.py tests/e2e/test_spend_kill.py -n 2 --dist worksteal

test-cluster: $(STAMP) ## the tests against a real API server, which is built first if need be (docs/devcluster.md)
	$(BIN)/python -m devcluster build
	$(BIN)/pytest tests/cluster -n 4 --dist worksteal -m "not node"

test-node: $(STAMP) ## the tests that need pods that run: as root (docs/devcluster.md)
	$(BIN)/python -m devcluster build --size node
	$(BIN)/pytest tests/cluster -m node

lint: $(STAMP) ## format, lint, types, architecture
	$(BIN)/ruff format --check operator tests bench devcluster release
	$(BIN)/ruff check operator tests bench devcluster release
	$(BIN)/mypy
	$(BIN)/mypy -p devcluster -p release
	$(BIN)/lint-imports --no-cache

generate: $(STAMP) ## write all that is generated: the CRDs, docs/conditions.md, the price list, the manifests
	$(BIN)/python -m stepdown.model.crd .
	$(BIN)/python -m release.manifests

check: lint generate ## lint, and fail if anything generated differs from what is committed, or the two locks from each other
	$(BIN)/python -m release.lock
	@test -z "$$(git status --porcelain -- $(GENERATED))" \
	  || { git status --short -- $(GENERATED); echo "What is generated is not what the models say: commit the result of 'make generate'"; exit 1; }

golden: $(STAMP) ## rewrite the golden files from what the code says now; read the diff before you commit it
	$(BIN)/pytest tests/golden --rewrite-golden

BENCH_BUILD ?= compiled
bench: $(if $(filter compiled,$(BENCH_BUILD)),compiled,$(STAMP)) ## the proxy beside nginx on this machine, as the image has it; writes bench/latest.json; BENCH_BUILD=pure
	$(BIN)/python -m bench.proxy $(if $(filter compiled,$(BENCH_BUILD)),--compiled $(COMPILED))

IDLE_S ?= 120
bench-control-plane: $(if $(filter compiled,$(BENCH_BUILD)),compiled,$(STAMP)) ## the operator on a real API server, 1,000 routes, 4 proxies; writes bench/control-plane.json; IDLE_S=600
	$(BIN)/python -m devcluster build
	$(BIN)/python -m bench.control_plane --idle-s $(IDLE_S) $(if $(filter compiled,$(BENCH_BUILD)),--compiled $(COMPILED))

bench-ledger: $(if $(filter compiled,$(BENCH_BUILD)),compiled,$(STAMP)) ## the ledger under sixteen proxies, on SQLite and PostgreSQL, and after a month; writes bench/ledger.json
	$(BIN)/python -m bench.ledger $(if $(filter compiled,$(BENCH_BUILD)),--compiled $(COMPILED))

SIZE ?= control-plane
CLUSTER ?=
cluster-up: $(STAMP) ## a real Kubernetes on this machine; SIZE=node runs pods too (as root), CLUSTER=/a/folder for a second one
	@$(BIN)/python -m devcluster up --size $(SIZE) $(if $(CLUSTER),--state-dir $(CLUSTER))

cluster-down: $(STAMP) ## end it; nothing of it stays
	@$(BIN)/python -m devcluster down $(if $(CLUSTER),--state-dir $(CLUSTER))

# Times in what is built are the commit's, so that the same commit gives the same bytes.
COMPILE ?= 1
wheel: export STEPDOWN_COMPILE = $(COMPILE)
wheel: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
wheel: $(STAMP) ## the project's wheel, in dist/wheel, the proxy's hot path compiled to C; COMPILE=0: pure Python
	@rm -rf dist/wheel
	$(BIN)/pip wheel . --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist/wheel

# The compiled wheel unpacked: before the checkout on PYTHONPATH, its modules are found first.
COMPILED := $(CURDIR)/dist/compiled
compiled: wheel
	@rm -rf $(COMPILED)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(COMPILED) dist/wheel/*.whl

wheelhouse: wheel ## every wheel of the image, in dist/wheelhouse: the lock's, by hash, and the project's own
	$(BIN)/python -m release.wheelhouse

TAG ?= stepdown:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BASE_IMAGE ?= python:3.11-slim-bookworm
image: wheelhouse ## the image, by Docker or buildah; TAG=registry/stepdown:1 names it, BASE_IMAGE=… has Python 3.11
	$(BIN)/python -m release.image --tag $(TAG) --base-image $(BASE_IMAGE)

LOCK := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock: $(STAMP) ## compile the locks from pyproject.toml, for us and for the image: names, versions and hashes, no host
	$(BIN)/uv pip compile $(LOCK) --extra dev -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile $(LOCK) --constraint requirements.lock -o requirements-runtime.lock pyproject.toml

clean: ## remove what make made
	rm -rf .venv dist .demo .demo-cluster .bench .mypy_cache .ruff_cache .hypothesis
