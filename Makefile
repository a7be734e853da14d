# Everything starts here: `make train`, `make test`.  VENV and PYTHON may be set from outside.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock $(PIP_FLAGS)

.PHONY: train test check benchmarks clean

train: $(VENV)/ready  ## set everything up and train DDPM (real MNIST if it can be had, else the built-in digits)
	$(BIN)/diffusion-course train ddpm --resume

test: $(VENV)/ready-test check  ## set everything up and run the tests
	$(BIN)/python -m pytest tests

check: $(VENV)/ready-test  ## style only
	$(BIN)/ruff check .

benchmarks: $(VENV)/ready-test  ## speed and quality, on demand; nothing else should be running
	$(BIN)/python tests/benchmarks/speed.py
	$(BIN)/python tests/benchmarks/quality.py

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch -e .
	touch $@

$(VENV)/ready-test: $(VENV)/ready
	$(INSTALL) -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info build
