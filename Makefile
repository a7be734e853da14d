# Everything starts here: `make lab`, `make train`, `make test`.  VENV and PYTHON may be set from outside.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
N ?= 01
TESTS ?= tests --ignore tests/lab
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock $(PIP_FLAGS)
NBVAL = --nbval-lax --nbval-current-env --nbval-cell-timeout=120 --nbval-sanitize-with=tests/nbval.cfg

.PHONY: train lab lesson test test-lab check site links benchmarks clean

train: $(VENV)/ready  ## set everything up and train DDPM (real MNIST if it can be had, else the built-in digits)
	$(BIN)/diffusion-course train ddpm --resume

lab: $(VENV)/ready-lab  ## set everything up and open the first lesson in JupyterLab
	$(BIN)/python -m jupyterlab lessons/00_start_here.ipynb

lesson: $(VENV)/ready-lab  ## set everything up and run one lesson without a browser: make lesson N=01
	$(BIN)/diffusion-course run $(N)

test: $(VENV)/ready-test check  ## set everything up, run the tests, then every lesson at its smallest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) -n 2 --dist loadfile
	DIFFUSION_COURSE_PRESET=smoke DIFFUSION_COURSE_OFFLINE=1 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest $(NBVAL) -n 2 --dist loadfile lessons

test-lab: $(VENV)/ready-test  ## lessons in JupyterLab and Chromium, in a bare environment as Colab's, and as a site
	$(BIN)/python -m pytest tests/lab

check: $(VENV)/ready-test  ## style only
	$(BIN)/ruff check .

site: $(VENV)/ready-site  ## the lessons as pages to publish: build/site/index.html; a broken link is an error
	$(BIN)/python -m sphinx -q -E -W --keep-going -d build/site-trees lessons build/site

links: $(VENV)/ready-site  ## are the addresses of other sites still there? needs the internet
	$(BIN)/python -m sphinx -q -E -b linkcheck -d build/site-trees lessons build/links

benchmarks: $(VENV)/ready-test  ## speed and quality, on demand; nothing else should be running
	$(BIN)/python tests/benchmarks/speed.py
	$(BIN)/python tests/benchmarks/quality.py

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch -e .
	touch $@

$(VENV)/ready-lab: $(VENV)/ready
	$(INSTALL) -e '.[lab]'
	touch $@

$(VENV)/ready-test: $(VENV)/ready
	$(INSTALL) -e '.[test]'
	touch $@

$(VENV)/ready-site: $(VENV)/ready
	$(INSTALL) -e '.[site]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info build
