# Everything is started from here; `make help` lists it. Set-up needs Python 3.11 or newer, pip, venv and git.

PYTHON ?= python3
VENV ?= .venv
EXTRA ?= dev
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CHAIN := $(PY) -m dvpo_lib
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install repro smoke full reference tune test lint lab real-data bench bench-trl pin clean

help:  ## list all targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

install: $(STAMP)  ## create .venv with the pinned set (done by every other target)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "Installing the pinned packages into $(VENV) (about 2 minutes) ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRA)]'
	@touch $(STAMP)

repro: $(STAMP)  ## run the whole chain (dvc repro); a second run does only what has changed
	@$(CHAIN) repro $(STAGE)

smoke: $(STAMP)  ## run the whole chain at its smallest scale in a temporary copy
	@$(CHAIN) profile smoke

full: $(STAMP)  ## run the large profile in work/full, resumable; in pieces with STAGE=train@dvpo
	@$(CHAIN) profile --workdir work/full full $(STAGE)

reference: $(STAMP)  ## run the profile of the reference run, with real data, and write reports/
	@$(CHAIN) profile --workdir work/reference --set real.dir=$(CURDIR)/data/real --export reports reference

tune: $(STAMP)  ## tune every method on the same grid and write winners into params.yaml (about 25 minutes on two cores)
	@$(CHAIN) tune --seeds $(or $(SEEDS),1)

test: $(STAMP)  ## run all tests, the smoke chain included
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(or $(JOBS),2) --dist worksteal $(TESTS)

lint: $(STAMP)  ## check style
	@$(PY) -m ruff check .

lab: $(STAMP)  ## open JupyterLab in notebooks/
	@$(PY) -m jupyter lab --notebook-dir . notebooks

real-data: $(STAMP)  ## download and check the real data sets into data/real
	@$(CHAIN) download data/real

bench: $(STAMP)  ## measure speed and memory, write benchmarks/
	@$(PY) -m benchmarks

bench-trl:  ## measure grpo beside TRL's, in an environment of its own, .venv-trl
	@$(MAKE) --no-print-directory install VENV=.venv-trl EXTRA=trl
	@.venv-trl/bin/python -m benchmarks.against_trl
	@test ! -d data/base || .venv-trl/bin/python -m benchmarks.against_trl --policy data/base

pin: $(STAMP)  ## write what is installed to constraints.txt (after trying newer versions)
	@{ grep '^#' constraints.txt; $(PY) -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## delete scratch and profile copies (keeps .venv, results, DVC's cache and trained runs)
	rm -rf work dvc_plots
