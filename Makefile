PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test lint bench bench-gpu format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/tokenprune demo

test: setup
	$(BIN)/python -m pytest -q -n auto --dist worksteal

# mypy wants the packages where their import names say they are; they are mapped there at install.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .cache/typed && mkdir -p .cache/typed/tokenprune
	ln -s $(CURDIR)/tokenprune/* $(CURDIR)/patches $(CURDIR)/eval .cache/typed/tokenprune/
	MYPYPATH=.cache/typed $(BIN)/mypy -p tokenprune

bench: setup
	$(BIN)/python -m tokenprune.eval.bench_ops --docs docs/ops.md

bench-gpu: setup
	$(BIN)/python -m tokenprune.eval.bench_ops --device cuda --docs docs/ops.md

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .cache build dist *.egg-info out
