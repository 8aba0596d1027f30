# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
# The first interpreter of 3.11 or 3.12 that can make virtual environments; another one: make PYTHON=/path/to/python3.12 ...
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test fault lint types docs methods mutants peers clean

setup: $(READY)

# CONSTRAINTS=other.txt installs other versions, for example a CUDA build of torch. pip itself comes first: the one that a Python
# brings may take three times as long. Modules are compiled when they are first imported, most of them never.
PIP := pip install --quiet --disable-pip-version-check --no-compile
$(READY): pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "seedbed needs Python 3.11 or 3.12 with venv; run make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m $(PIP) --constraint $(CONSTRAINTS) --upgrade pip
	$(BIN)/python -m $(PIP) --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/seedbed compare nca-demo --jobs 2 --threads 1 $(if $(OUT),--out $(OUT))

# Side by side on all processors, each test with one thread: `make test JOBS=0` runs them one after the other.
JOBS ?= auto
test: setup
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

# Kills a run fifty times and a study five times: up to twenty minutes.
fault: setup
	SEEDBED_KILLS=50 $(BIN)/python -m pytest tests/experiments/test_faults.py -k killed

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

docs: setup
	$(BIN)/mkdocs build --strict --quiet

methods: setup
	$(BIN)/python -c "from seedbed.experiments.catalog import methods_page; print(methods_page(), end='')" > METHODS.md

mutants: setup
	$(BIN)/python tests/mutants.py

# The others that benchmarks/train.py measures, each in an environment of its own with the same torch.
peers: .venv-peers/hf/.ready .venv-peers/litgpt/.ready

.venv-peers/%/.ready: benchmarks/peers/%.txt $(CONSTRAINTS)
	$(PYTHON) -m venv .venv-peers/$*
	grep '^torch==' $(CONSTRAINTS) > .venv-peers/$*/torch.txt || true
	.venv-peers/$*/bin/python -m $(PIP) --constraint $(CONSTRAINTS) --upgrade pip
	.venv-peers/$*/bin/python -m $(PIP) --constraint .venv-peers/$*/torch.txt --requirement $<
	@touch $@

clean:
	rm -rf .venv .venv-peers build dist site src/*.egg-info
