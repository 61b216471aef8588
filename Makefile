# The index of commands. `make` alone prints it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
export DVC_NO_ANALYTICS := 1
export PYTHONUNBUFFERED := 1

.PHONY: help setup run study serve watch test test-all torture bench lint status clean-scratch lock preset deps

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## ?/  make \1\t/' | expand -t 24

setup: $(BIN)/.installed ## install everything into .venv (PYTHON=python3.12 chooses the interpreter)

$(BIN)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"error: Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}; try make setup PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --system-certs --quiet --compile-bytecode --require-hashes --python $(BIN)/python -r requirements.txt
	@touch $@

NAME ?= $(PRESET)
run: setup $(if $(PRESET),preset) ## reproduce the whole pipeline; only what changed runs (PRESET=faces-dit: with that preset)
	@python -m params
	@python -m flows.repair
	dvc repro
	@echo 'report: $(CURDIR)/report/index.html'

study: setup ## answer the question with as few seeds as it takes (PRESET=cifar10 MAX_SEEDS=5 SLOTS=compute=2)
	@python -m flows.study $(if $(PRESET),--preset $(PRESET)) $(if $(MAX_SEEDS),--max-seeds $(MAX_SEEDS)) $(addprefix --slots ,$(SLOTS))

serve: setup ## start a Prefect server, the deployments and a worker, until Ctrl-C
	@exec python -m flows.serve

LIVE := $(or $(DAE_LIVE),$(or $(DAE_SCRATCH),.scratch)/live)
watch: setup ## curves and pictures of all arms and seeds while they train, in a browser (PORT=6007), until Ctrl-C
	@mkdir -p '$(LIVE)'
	@exec tensorboard --logdir '$(LIVE)' --host 127.0.0.1 --port $(or $(PORT),6006) --reload_interval 5

TEST := python -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder
test: setup ## run the fast tests, which cover everything once, side by side on all cores (8 to 9 minutes on two)
	$(TEST) -m 'not slow'

test-all: setup ## run all tests (about 13 minutes on two cores)
	$(TEST)

torture: setup ## kill the pipeline everywhere, for an hour (MINUTES=5), and compare the bytes
	@python -m tests.killing.torture --minutes $(or $(MINUTES),60)

bench: setup ## measure every claim of speed, each as a ratio within one run
	@failed=0; for script in encode stage2 sampling transformer_sampling dit_step dit_sampling loader evaluation flow watching; do python -m benchmarks.$$script || failed=1; done; exit $$failed

lint: setup ## check style
	ruff check .

status: setup ## say what would run, and why
	dvc status

clean-scratch: ## forget the state of killed stages; they start over
	rm -rf .scratch

preset: setup ## make a preset the parameters: make preset NAME=cifar10; refuses to overwrite edits of yours
	python -m flows.preset $(NAME)

deps: setup ## write into dvc.yaml which files each stage depends on, from what it imports
	python -m tests.imports

lock: ## resolve requirements.in into requirements.txt
	$(BIN)/uv pip compile --system-certs requirements.in --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command 'make lock' --quiet --upgrade -o requirements.txt
