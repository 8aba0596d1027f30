# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
# The newest interpreter of 3.11 to 3.14 that can make virtual environments; another one: make PYTHON=/path/to/python3.12 ...
FITS := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	$$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
READY := .venv/.ready

# Where bytecode is not written, every one of the many processes that a study or the tests start compiles torch's files anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow fault lint types docs methods systems mutants pins peers clean

setup: $(READY)

# CONSTRAINTS=other.txt installs other versions, for example a CUDA build of torch. pip itself comes first: the one that a Python
# brings may take three times as long. Modules are compiled when they are first imported, most of them never.
PIP := pip install --quiet --disable-pip-version-check --no-compile
$(READY): pyproject.toml $(CONSTRAINTS)
	@$(or $(PYTHON),false) -c '$(FITS)' 2>/dev/null || { \
		found=$$($(or $(PYTHON),python3) --version 2>&1 | tail -n 1); \
		echo "seedbed needs Python 3.11 to 3.14 with venv; found: $$found. Install one, for example"; \
		echo "  Debian, Ubuntu: sudo apt install python3 python3-venv    Fedora: sudo dnf install python3.14"; \
		echo "  macOS: brew install python@3.14    anywhere, without rights: uv python install 3.14"; \
		echo "then run make again, or name it: make PYTHON=/path/to/python3.14 ..."; exit 1; }
	@which=$$($(PYTHON) -c 'import sys; print(sys.version, sys.base_prefix)'); \
		test "$$(cat .venv/.made-with 2>/dev/null)" = "$$which" || { rm -rf .venv; $(PYTHON) -m venv .venv; echo "$$which" > .venv/.made-with; }
	$(BIN)/python -m $(PIP) --constraint $(CONSTRAINTS) --upgrade pip
	$(BIN)/python -m $(PIP) --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/seedbed compare nca-demo --jobs 2 --threads 1 $(if $(OUT),--out $(OUT))

# Side by side on all processors, each test with one thread: `make test JOBS=0` runs them one after the other. What takes more
# than three seconds of a processor has the mark `slow` and is in test-slow.
JOBS ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal
test: setup
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow

# Kills a run fifty times and a study five times: some minutes.
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

# docs/systems.md from recipes and the records under results/.
systems: setup
	$(BIN)/python tools/systems.py > docs/systems.md

methods: setup
	$(BIN)/python -c "from seedbed.experiments.catalog import methods_page; print(methods_page(), end='')" > METHODS.md

# SINCE=2: those of the files that the commits of the last two days touched.
mutants: setup
	$(BIN)/python tests/mutants.py $(SINCE)

# Can the pinned versions be installed on every Python that is declared?
pins: setup
	$(BIN)/python tools/pins.py

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
