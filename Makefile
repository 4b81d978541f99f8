# make demo: train a scheduler and compare it with the rules, and one that has learned before where models swap all the time.  make test: lint, types, tests.
# Both make .venv first; nothing but python3 (3.11+), venv, gcc and make is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all lint clean

demo: $(INSTALLED)
	$(BIN)/python -m mmsched_env train experiment=demo resume=true out=runs/demo/train
	$(BIN)/python -m mmsched_env evaluate "policies=[fcfs,random,least_loaded,mect,preemptive,composite,agents/pretrained/default-v0.zip,runs/demo/train/best.zip]" out=runs/demo/evaluate
	$(BIN)/python -m mmsched_env evaluate "policies=[mect,composite,agents/pretrained/one-gpu.json]" scenarios=[swap-thrash] tuned=true episodes=40 out=runs/demo/swap

# a file is one worker's, as its tests share what they make; slow tests measure or take minutes: one after the other
test: $(INSTALLED) lint
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-all: test
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and by its exact version: a plain `torch` may bring gigabytes of CUDA libraries
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
