# latentbed. `make` lists what there is; nothing has to be set up before.

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-parity mlserver test-mlserver test-arm64 check format proto up up-direct up-scale up-watch \
	down test-compose test-gpu relay-statuses bench-serving bench-overload bench-soak bench fuzz clean

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The interpreter for the environment: the first of these that the pinned versions have wheels for.
SUITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	"$$p" -c '$(SUITS)' 2>/dev/null && echo "$$p" && break; done)

# An extra index for torch, asked only when it answers. CUDA: make TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export TORCH_INDEX
TORCH := torch==2.13.0

# Of 12,000 files a run imports a third: they are compiled when first imported, which saves half a minute here.
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-compile -c constraints.txt
export PYTHONDONTWRITEBYTECODE :=

# Its stubs do not load beside others of the protocol, and it wants older web libraries than ours.
export MLSERVER ?= .venv-mlserver

COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

# One thread a process: several nodes share the cores, and more threads only wait for one another.
export OMP_NUM_THREADS ?= 1
# Runs of each coverage-guided target, and which there are.
FUZZ_RUNS ?= 200000
FUZZ_TARGETS := request reply metadata bounds codec zstd-frame codec-name frame-id manifest journal telemetry rest sealed \
	header-block splice address

# Test files go to two processes: many tests wait for a socket or a clock.
WORKERS ?= 2

help: ## this list
	@sed -n 's/^\([a-z0-9%-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '  make %-14s %s\n' "$$name" "$$what"; done

demo: $(READY) ## the whole way: train, three processes, clean and attacked passes, a report in runs/latest
	@$(BIN)/latentbed demo

test: $(READY) ## the tests, but the long ones and those with containers, GPU or other libraries
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=15 \
		-m "not compose and not gpu and not parity and not arm64 and not long and not mlserver"

test-long: $(READY) ## the tests that take long: whole runs and trainings, killed processes, what is learned from traffic
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=15 \
		-m "long and not compose and not gpu and not parity and not arm64 and not mlserver"

test-parity: $(VENV)/.parity ## our attacks beside those of ART, foolbox and torchattacks, which this installs
	@$(BIN)/python -m pytest -q -m parity tests/parity

mlserver: $(MLSERVER)/.ready ## MLServer in an environment of its own, for scenarios/mlserver.yaml

test-mlserver: $(READY) $(MLSERVER)/.ready ## an attack on a model that MLServer serves, which this installs
	@$(BIN)/python -m pytest -q -m mlserver

fuzz: $(VENV)/.fuzz ## hostile input: coverage-guided where bytes are parsed, 100,000 bent messages at whole nodes, 10,000 connections
	@set -e; for name in $(FUZZ_TARGETS); do $(MAKE) --no-print-directory fuzz-$$name; done
	@LATENTBED_MUTATIONS=100000 LATENTBED_CROWD=10000 $(BIN)/python -m pytest -q -s tests/hostile \
		tests/splitcore/test_codec_hostile_payloads.py

fuzz-%: $(VENV)/.fuzz
	@echo "fuzz $*: $(FUZZ_RUNS) runs" && mkdir -p runs/fuzz && $(BIN)/python tests/fuzz/run.py $* -runs=$(FUZZ_RUNS) \
		>runs/fuzz/$*.log 2>&1 && tail -n 1 runs/fuzz/$*.log || { tail -n 40 runs/fuzz/$*.log; exit 1; }

check: $(READY) ## ruff, mypy, import-linter, and whether generated files are fresh
	@echo "ruff" && $(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet .
	@echo "mypy" && $(BIN)/mypy
	@echo "import-linter" && $(BIN)/lint-imports --no-cache
	@echo "generated files" && $(BIN)/python -m splitcore.wire.generate --check && $(BIN)/python -m testbed.report.schema --check

format: $(READY) ## ruff, mending what it can
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

proto: $(READY) ## the stubs in splitcore/wire from proto/
	@$(BIN)/python -m splitcore.wire.generate

up: ## the scenario in four containers, to its end
	@mkdir -p runs
	@$(COMPOSE) up --build --abort-on-container-exit --exit-code-from mobile_client

up-direct: ## the same without the adversary, for comparison
	@mkdir -p runs
	@$(COMPOSE) --profile direct up --build --abort-on-container-exit --exit-code-from direct_client \
		edge_server direct_client direct_testbed

up-watch: ## Prometheus, Grafana and Jaeger beside them, on 127.0.0.1:9090, :3000 and :16686
	@$(COMPOSE) --profile watch up --detach prometheus grafana jaeger

up-scale: ## the scenario with two edge servers behind nginx
	@mkdir -p runs
	@SCENARIO=scenarios/compose-scale.yaml $(COMPOSE) -f docker-compose.yml -f docker/scale/compose.yml up --build \
		--abort-on-container-exit --exit-code-from mobile_client

down: ## the containers and their networks away; artefacts stay in their volume
	@$(COMPOSE) --profile direct --profile watch down --remove-orphans

relay-statuses: $(READY) ## 10,000 calls through the relay, rejected, cancelled and late ones too: how many statuses are wrong
	@$(BIN)/python tests/support/interop.py 10000

test-compose: $(READY) ## the tests that need a Docker engine (they fail without one)
	@$(BIN)/python -m pytest -q -m compose tests/compose

test-arm64: $(READY) ## the phone in Debian for 64-bit ARM under qemu (needs root, debootstrap, qemu-user-static)
	@$(BIN)/python -m pytest -q -m arm64 tests/arm64

test-gpu: $(READY) ## the tests that need a CUDA device
	@$(BIN)/python -m pytest -q -m gpu

bench: $(patsubst benchmarks/%.py,bench-%,$(filter-out %/overload.py %/soak.py,$(wildcard benchmarks/[a-z]*.py))) ## every benchmark; make bench-NAME runs one

bench-attacks: $(VENV)/.parity

bench-serving: $(READY) ## the edge server against an echo, the bare tail and MLServer, where that can be installed
	@$(MAKE) -s mlserver || echo "latentbed: MLServer could not be installed, so it is not compared" >&2
	@$(BIN)/python benchmarks/serving.py

bench-overload: $(READY) ## the server at five times what it can do, for a minute; make bench-overload SECONDS=20
	@$(BIN)/python benchmarks/overload.py --seconds $(or $(SECONDS),60)

bench-soak: $(READY) ## half an hour of load: does anything grow; make bench-soak MINUTES=5
	@$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),30)

bench-%: $(READY)
	@$(BIN)/python benchmarks/$*.py

clean: ## the environment and the caches; runs and artefacts stay
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# an environment of its own: MLServer's pins do not go with ours
$(MLSERVER)/.ready: examples/mlserver/requirements.txt | $(READY)
	@echo "latentbed: MLServer in $(MLSERVER) (40 s)"
	@test -x $(MLSERVER)/bin/python || $(BIN)/python -m venv $(MLSERVER)
	@$(MLSERVER)/bin/python -m pip --disable-pip-version-check install -qq --no-compile -r $<
	@touch $@

$(VENV)/.parity: $(READY)
	@echo "latentbed: ART, foolbox and torchattacks"
	@$(PIP) --editable '.[parity]' && $(PIP) --no-deps torchattacks==3.5.1
	@touch $@

$(VENV)/.fuzz: $(READY)
	@$(PIP) --editable '.[fuzz]'
	@touch $@

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "latentbed: expected Python 3.11 to 3.14 with its venv module, got \
	$$(python3 --version 2>&1 || true): install it (Debian: python3-venv), or say make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "latentbed: environment $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "latentbed: $(TORCH) (200 MB for a CPU)"
	@$(PIP) $$($(BIN)/python docker/torch_index.py "$(TORCH_INDEX)") $(TORCH)
	@echo "latentbed: everything else"
	@$(PIP) --editable '.[dev]'
	@touch $@
