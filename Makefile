# demo, test, lint, seeds, data: each sets up .venv first, once, with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: help demo test lint seeds data

help:
	@echo "make demo   train the baseline and S2SD on the emoji, compare them on unseen ones (minutes)"
	@echo "make test   all tests"
	@echo "make lint   ruff and mypy"
	@echo "make seeds  the README's table: the demo for seeds 0 to 4"
	@echo "make data   draw the emoji data set again (needs npm)"

$(INSTALLED): constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(VENV)/bin/python examples/train.py --name demo

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

seeds: $(INSTALLED)
	$(VENV)/bin/python examples/seeds.py --name demo --seeds 0 1 2 3 4

data: $(INSTALLED)
	$(VENV)/bin/python examples/data/build_emoji.py
