# Python 3.11+ and make are all that is needed: every target sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
TRAIN := $(BIN)/hnseg train experiment=demo
export OMP_WAIT_POLICY ?= PASSIVE

help: ## the targets
	@sed -n "s/^\([a-z-]*\):.*## /\1: /p" $(MAKEFILE_LIST) | awk -F": " '{ printf "  make %-16s%s\n", $$1, $$2 }'

.PHONY: docs help demo reproduce open-data test test-slow setup check clean-demo clean-reproduce

demo: .venv/ready-report ## the whole pipeline on a synthetic cohort, 7 to 14 minutes on 2 cores
	$(BIN)/hnseg phantom $(DEMO)/data/train --cases 80 --seed 0
	$(BIN)/hnseg phantom $(DEMO)/data/test --cases 12 --seed 1
	$(TRAIN) stage=localiser model=plainconv fold=all
	$(TRAIN) stage=coarse model=plainconv fold=all
	$(TRAIN) stage=fine model=resenc,segresnet fold=0-1 -m
	$(BIN)/hnseg export $(DEMO)/train --out $(DEMO)/bundle
	$(BIN)/hnseg infer cases=$(DEMO)/data/test bundle=$(DEMO)/bundle out=$(DEMO)/predictions
	$(BIN)/hnseg threshold $(DEMO)/data/test --json $(DEMO)/threshold.json
	$(BIN)/hnseg evaluate $(DEMO)/data/test $(DEMO)/predictions --json $(DEMO)/scores.json --overlays $(DEMO)/overlays
	$(BIN)/hnseg report $(DEMO)/predictions --ground-truth $(DEMO)/data/test
	@echo "In $(DEMO)/: data, train (runs), bundle, predictions/CASE.nii.gz, scores.json, overlays/CASE.png"
	@echo "Look at $(DEMO)/predictions/report.html in a browser"

REPRODUCE := runs/reproduce
reproduce: .venv/ready-report ## the ablation on a synthetic cohort, from sweep to report, at most 20 minutes on 2 cores
	$(BIN)/hnseg phantom $(REPRODUCE)/data --cases 40 --seed 0
	$(BIN)/hnseg train experiment=reproduce sweeps=ablation fold=0-1
	$(BIN)/hnseg ablation $(REPRODUCE)/train --data $(REPRODUCE)/data --arms full,no_cte,srn_cte,resenc_cte,resenc --out $(REPRODUCE)/ablation
	@echo "In $(REPRODUCE)/: data, train (runs), ablation/ARM/CASE.nii.gz, ablation/ablation.{csv,md,tex}, ablation/report.html"

OPEN := runs/open_data
open-data: .venv/ready ## the fine stage on open sarcoma PET/CT: make open-data DATA=PATH
	$(BIN)/hnseg train experiment=open_data data.root="$(DATA)" fold=0-3 -m
	$(BIN)/hnseg export $(OPEN)/fine_plainconv --out $(OPEN)/bundle --checkpoint ema
	$(BIN)/hnseg infer cases="$(DATA)" bundle=$(OPEN)/bundle out_of_fold=true out=$(OPEN)/predictions
	$(BIN)/hnseg evaluate "$(DATA)" $(OPEN)/predictions --json $(OPEN)/scores.json

clean-demo: ## start the demo anew; without it, finished steps are skipped
	rm -rf $(DEMO)

clean-reproduce: ## start the ablation anew
	rm -rf $(REPRODUCE)

# Two files at a time, the tests of one in one process: they share what is slow to make.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0
test: .venv/ready-dev ## the fast tests
	$(PYTEST)

test-slow: .venv/ready-dev ## the others
	$(PYTEST) -m openvino
	$(PYTEST) -m "slow and not openvino"

check: .venv/ready-dev ## lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: .venv/ready-dev ## .venv with everything for development

.venv/uv:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("hnseg needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	touch $@

.venv/ready: .venv/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e .
	touch $@

.venv/ready-report: .venv/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[report]'
	touch $@ .venv/ready

.venv/ready-dev: .venv/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@ .venv/ready .venv/ready-report

docs: .venv/ready-dev ## the documentation in site/, with no broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
