# make demo   the whole story on this machine, from media to a promoted model
# make test   all tests, the shortened story among them
# make lint   format check, lint and types
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two at once: half of a test with a Ray in it is waiting. A file's tests share what they started.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile
UNIT := tests/unit
INTEGRATION := tests/integration

export OMP_NUM_THREADS ?= 1

.PHONY: demo test unit integration lint format setup clean

demo: $(READY)
	$(BIN)/python pipelines/quickstart.py

test: $(READY)
	$(PYTEST) $(UNIT) $(INTEGRATION)

unit: $(READY)
	$(PYTEST) $(UNIT)

integration: $(READY)
	$(PYTEST) $(INTEGRATION)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(READY)

# Pinned to the last byte by constraints.txt; a half-finished set-up leaves no marker and is redone.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else \
	  "error: Python 3.11 is needed and $(PYTHON) is %d.%d: name one with make PYTHON=..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip check
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info
