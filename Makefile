# make demo and make test each work as the first command on a fresh clone.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: install install-test demo test test-slow lint format bench soak
install: .venv/installed
install-test: .venv/tested

# what runs needs no test tools: a demo from a fresh clone is not kept waiting for them
.venv/installed: constraints.txt setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: found no python 3.11 or newer; install one, or make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# what we export must be read by transformers 4 too, which cannot stand beside 5; its tests skip where it does not install
.venv/transformers4: .venv/tested
	@mkdir -p $@
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ 'transformers==4.57.6' \
		'huggingface-hub<1' 'tokenizers>=0.22,<=0.23.0' requests urllib3 idna certifi charset-normalizer

demo: install
	$(BIN)/mae-compare --config demo
	$(BIN)/mae-predict --checkpoint runs/demo/mae-fine-tuned-mae75-n206-seed0 shipped:radiographs \
		--out runs/demo/answers.csv --heatmaps runs/demo/heatmaps

test: install-test .venv/transformers4
	$(BIN)/python -m pytest -n 2 --dist worksteal

# simulations of coverage and type I error: some minutes on one core
test-slow: install-test
	$(BIN)/python -m pytest -m slow

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# a hundred interruptions of whole commands at random moments: about ten minutes
soak: install-test
	PYTHONPATH=tests/worlds $(BIN)/python tests/soak.py

bench: install-test
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/pretrain_step.py --preset vit_tiny_patch16 --batch 16 --rounds 5
