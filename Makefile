# `make help` lists the targets. Everything is installed into .venv/, and nowhere else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# onnxruntime-gpu cannot be installed beside onnxruntime.
GPU_VENV := .venv-gpu
GPU_INSTALLED := $(GPU_VENV)/.installed
# Real data for a few tests, if a checkout has it beside it; they are skipped elsewhere.
export GLOWSERVE_SHARED ?= ../shared
PROTOS := $(wildcard protos/glowserve/*/*.proto)
MODEL ?= out/cifar/models/cifar
AGAINST = out/against/$(notdir $(MODEL:/=))
# As pyproject.toml allows them. What users install today, unless they ask for other releases.
NEWEST := 'grpcio<1.83' 'grpcio-status<1.83' 'grpcio-health-checking<1.83' 'grpcio-reflection<1.83' 'protobuf<8'
SERVICES := $(wildcard protos/glowserve/*/*_service.proto)

# The recipes are the presets for images of that size; FLAGS are for other ones, as in
# `make train-cifar FLAGS='--device cuda --size paper'`. $(call recipe,NAME,DATA)
define recipe
	$(BIN)/glowserve train --out out/$(1) --data $(2) $(FLAGS)
	$(BIN)/glowserve evaluate out/$(1)/model.ckpt
	$(BIN)/glowserve evaluate out/$(1)/model.ckpt --importance-samples 8
	$(BIN)/glowserve export out/$(1)/model.ckpt out/$(1)/models/$(1)
	$(BIN)/glowserve sample --model out/$(1)/models/$(1) --n 64 --temperature 0.7 --seed 0 --out out/$(1)/samples.png
endef

.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(INSTALLED)  ## install glowserve and all that working on it needs into .venv/

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "glowserve needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[cpu,train,dev]'
	touch $@

demo: $(INSTALLED)  ## train, export, serve, score and sample handwritten digits: out/demo/
	@$(BIN)/glowserve demo --out out/demo

train-mnist: $(INSTALLED)  ## the recipe for MNIST, an hour on two cores: out/mnist/ (DATA=..., FLAGS=...)
	$(call recipe,mnist,$(or $(DATA),ylecun/mnist))

train-cifar: $(INSTALLED)  ## the recipe for CIFAR-10, an hour on two cores: out/cifar/ (DATA=..., FLAGS=...)
	$(call recipe,cifar,$(or $(DATA),uoft-cs/cifar10))

bench: $(INSTALLED) out/demo/models  ## speed of training, of graphs and of the service, memory, and the 1x1 convolution's parametrizations (DATA=...)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt openvino
	$(BIN)/python tests/benchmarks/bench_training.py speed
	$(BIN)/python tests/benchmarks/bench_training.py memory
	$(BIN)/python tests/benchmarks/bench_training.py parametrizations --data $(or $(DATA),uoft-cs/cifar10)
	$(BIN)/python tests/benchmarks/bench_graphs.py --model small
	$(BIN)/python tests/benchmarks/bench_graphs.py --model paper
	$(BIN)/python tests/benchmarks/bench_service.py
	$(BIN)/python tests/benchmarks/bench_threads.py
	$(BIN)/python tests/benchmarks/bench_sharing.py
	$(BIN)/python tests/benchmarks/bench_frontends.py
	$(BIN)/python tests/benchmarks/bench_growth.py
	$(BIN)/python tests/benchmarks/bench_start.py --repository out/demo/models

ablate: $(INSTALLED)  ## which choices of the recipe pay, three minutes a row: out/ablation/ (TABLE=photographs, DATA=...)
	$(BIN)/python tests/benchmarks/ablate.py $(or $(TABLE),drawings) --data $(or $(DATA),ylecun/mnist)

against: $(INSTALLED)  ## how well a model's scores find images that do not belong: out/against/ (MODEL=..., DIGITS=..., FONT=..., SETS=...)
	rm -rf $(AGAINST)
	$(BIN)/python tests/benchmarks/out_of_distribution.py $(MODEL) $(AGAINST)/sets \
		$(if $(DIGITS),--digits $(DIGITS)) $(if $(FONT),--font $(FONT))
	$(BIN)/glowserve evaluate $(MODEL) --against $(AGAINST)/sets/* $(SETS) --plots $(AGAINST) > $(AGAINST)/tables.txt
	@cat $(AGAINST)/tables.txt

tutorial: $(INSTALLED)  ## the model of the tutorial on normalizing flows beside ours, three hours: out/tutorial/ (DATA=...)
	$(BIN)/python tests/benchmarks/bench_tutorial.py --data $(or $(DATA),ylecun/mnist)

soak: $(INSTALLED)  ## what only minutes of load show: out/soak.txt (SOAK_CALLS=200000)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt libfaketime
	@mkdir -p out
	$(BIN)/pytest tests/soak -s > out/soak.txt 2>&1; status=$$?; cat out/soak.txt; exit $$status

# Four on two cores, too: much of the time, tests wait for servers.
test: $(INSTALLED)  ## run every test but those that need Docker
	$(BIN)/pytest --numprocesses 4 --dist loadfile

test-frontends: $(INSTALLED)  ## the tests of the service and of the clients, with two front-ends in each service
	TEST_FRONTENDS=2 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile tests/client \
		tests/service/front tests/service/models tests/service/observability tests/service/security \
		tests/service/test_server_start.py tests/service/test_server_stop.py tests/service/test_last_answers.py

test-newest: $(INSTALLED)  ## the tests of the service and of the clients with the newest gRPC and protobuf, which constraints.txt holds back: build/newest/
	rm -rf build/newest
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target build/newest $(NEWEST)
	PYTHONPATH=$(CURDIR)/build/newest $(BIN)/pytest --numprocesses 4 --dist loadfile tests/client tests/service

test-ray: $(INSTALLED)  ## scores of a folder from a cluster of Ray on this machine: 250 MB more in .venv/
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[ray]'
	$(BIN)/pytest tests/cli/bulk/test_ray_engine.py

test-gpu-wheel: $(INSTALLED) $(GPU_INSTALLED)  ## the engine's tests with onnxruntime-gpu, which needs no GPU but 2.6 GB: .venv-gpu/
	rm -rf $(GPU_VENV)/test-files
	GLOWSERVE_TEST_FILES=$(GPU_VENV)/test-files $(BIN)/pytest -q tests/runtime/test_engine.py
	GLOWSERVE_TEST_FILES=$(GPU_VENV)/test-files $(GPU_VENV)/bin/pytest tests/runtime/test_engine*.py tests/runtime/test_buffers.py tests/runtime/test_sessions.py

$(GPU_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[gpu]' pytest pytest-asyncio pytest-timeout
	touch $@

lint: $(INSTALLED)  ## ruff, mypy, import-linter, buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code
	cd protos && ../$(BIN)/buf breaking --against released/*.yaml

protos: $(INSTALLED)  ## make glowserve/v1/ and glowserve/oip/ from protos/
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. $(PROTOS)
	$(BIN)/python -m grpc_tools.protoc -Iprotos --grpc_python_out=. $(SERVICES)

docs: $(INSTALLED)  ## generate tables in docs/, lists of settings for docker compose, rules for Kubernetes, and Grafana's dashboards
	$(BIN)/python docs/generate.py
	$(BIN)/python deploy/grafana/make_dashboards.py

check-protos: protos  ## fail if glowserve/v1/ or glowserve/oip/ is not what protos/ makes
	@git diff --exit-code --stat -- glowserve/v1 glowserve/oip \
		&& test -z "$$(git status --porcelain -- glowserve/v1 glowserve/oip)" \
		|| { echo "glowserve/v1 or glowserve/oip is not what protos/ makes: run make protos and commit it"; exit 1; }

release-protos: $(INSTALLED)  ## at a release: store the contract in protos/released/, which lint compares protos/ with
	rm -f protos/released/*.yaml
	$(BIN)/buf build protos --exclude-source-info --output protos/released/$$($(BIN)/glowserve --version).yaml

test-docker: $(INSTALLED) out/demo/models  ## build and start docker-compose.yml on a real engine, and use it
	deploy/test-docker.sh

out/demo/models:
	$(MAKE) demo

clean:  ## remove what was made, .venv/ included
	rm -rf $(VENV) $(GPU_VENV) out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help install demo train-mnist train-cifar bench ablate against tutorial test test-frontends test-newest test-ray test-gpu-wheel lint protos check-protos release-protos test-docker clean
