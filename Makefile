# make quickstart   train, evaluate, export and load a small model on real data, in a few minutes
# make test         lint, type check, import contracts and the whole test suite
# make bench        measure memory and time of training steps; writes benchmarks/results

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test lint schema bench clean

$(VENV)/.user: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[fast]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.user

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

test: lint
	$(BIN)/python -m pytest

# Writes the JSON Schema of recipes, for editors.
schema: $(VENV)/.dev
	$(BIN)/python -c "import json, zoo.spec.recipe as r; print(json.dumps(r.recipe_schema(), indent=2))" > recipes/schema/recipe.schema.json

bench: $(VENV)/.user
	$(BIN)/revgnn-zoo bench memory
	$(BIN)/revgnn-zoo bench peers
	$(BIN)/revgnn-zoo bench peer_memory
	$(BIN)/revgnn-zoo bench depth
	$(BIN)/revgnn-zoo bench edges

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
