# make quickstart   train, evaluate, export and load a small model on real data, in a few minutes
# make test         lint, type check, import contracts and the whole test suite
# make docs         build the pages of docs/ into build/docs; make docs-links looks at external addresses too
# make bench        measure memory and time of training steps on the CPU; writes benchmarks/results
# make bench-gpu    the same on a GPU, meant to take under ten minutes; SET="--set KEY=VALUE" changes recipes
# make site         the gallery: a static page of every model, in build/site
# make site-test    test the gallery in headless Chromium, which it installs if there is none (as root, by apt)
# make results      train what the table of results lacks, in pieces; writes results/

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CHROMIUM ?= chromium
RUN ?= runs/quickstart
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test lint schema docs docs-links site site-test bench bench-gpu results clean

$(VENV)/.user: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[fast]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev,docs]"
	touch $@ $(VENV)/.user

$(VENV)/.site: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev,site]"
	touch $@ $(VENV)/.dev $(VENV)/.user

quickstart: $(VENV)/.user
	rm -rf $(RUN)
	$(BIN)/revgnn-zoo train recipes/quickstart.json --out $(RUN) --baseline
	$(BIN)/revgnn-zoo eval $(RUN)
	$(BIN)/revgnn-zoo export $(RUN)
	$(BIN)/python examples/predict.py $(RUN)/bundle

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python benchmarks/size.py

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

site: $(VENV)/.site
	PYTHONPATH=site $(BIN)/python -m gallery --out build/site

site-test: $(VENV)/.site
	command -v $(CHROMIUM) > /dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }
	CHROMIUM=$$(command -v $(CHROMIUM)) $(BIN)/python -m pytest -m browser tests/site

# Writes the JSON Schema of recipes, for editors.
schema: $(VENV)/.dev
	$(BIN)/python -c "import json, zoo.spec.recipe as r; print(json.dumps(r.recipe_schema(), indent=2))" > recipes/schema/recipe.schema.json

# A warning, such as a link that leads nowhere, is an error.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

docs-links: $(VENV)/.dev
	$(BIN)/python -m sphinx -q -b linkcheck docs build/links

# Each line is measured even if one before it fails; what failed, fails the command at the end.
STEPS := $(BIN)/python -m benchmarks.steps
bench: $(VENV)/.user
	failed=0; \
	$(BIN)/python -m benchmarks.ops --device cpu --out benchmarks/results/ops.json || failed=1; \
	$(STEPS) memory --device cpu || failed=1; \
	$(STEPS) peers --device cpu || failed=1; \
	$(STEPS) peers --device cpu --layers 7 --channels 224 || failed=1; \
	$(STEPS) depth --device cpu || failed=1; \
	$(STEPS) edges --device cpu || failed=1; \
	exit $$failed

bench-gpu: $(VENV)/.user
	failed=0; \
	$(STEPS) true_size --device cuda $(SET) || failed=1; \
	$(STEPS) true_size --device cuda --capture $(SET) || failed=1; \
	$(BIN)/python -m benchmarks.captured --device cuda || failed=1; \
	$(BIN)/python -m benchmarks.ops --device cuda --out benchmarks/results/gpu_ops.json || failed=1; \
	$(STEPS) peers --device cuda $(SET) || failed=1; \
	$(STEPS) peers --device cuda --layers 7 --channels 224 $(SET) || failed=1; \
	$(STEPS) memory --device cuda $(SET) || failed=1; \
	$(STEPS) depth --device cuda $(SET) || failed=1; \
	$(STEPS) edges --device cuda $(SET) || failed=1; \
	exit $$failed

# Trains what results/plan.json asks for and results/runs.jsonl lacks; may be stopped and continued at any time.
results: $(VENV)/.user
	$(BIN)/python -m benchmarks.results renew

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
