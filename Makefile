# Every target sets up what it needs. `make help` lists them.
PYTHON ?=
VENV := .venv
RUN := $(VENV)/bin/python
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Recipes take these from the environment, so that quotes, blanks and dollar signs in them stay as they were typed.
override DOCS := $(value DOCS)
override Q := $(value Q)
export DOCS MODEL PORT K Q CONF STORE FORMAT ROWS

.PHONY: help demo test check docs sql package clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: export DEMO_BEGAN := $(shell date +%s)
demo: $(VENV)/ready  ## web text to personas to math problems on a local model; DOCS=path MODEL=name PORT=number
	@$(RUN) demo/run.py $${DOCS:+--documents "$$DOCS"} $${MODEL:+--model "$$MODEL"} $${PORT:+--port "$$PORT"}

test: $(VENV)/ready  ## all tests, in two processes; K=expression selects some
	@if [ -n "$$K" ]; then $(RUN) -m pytest -k "$$K"; else $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25; fi

check: $(VENV)/ready  ## ruff, mypy and the import law
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(RUN) -m pytest -q tests/unit/test_import_law.py

sql: $(VENV)/ready  ## ask the tables: make sql Q="select * from hub"; FORMAT=table|csv|json ROWS=number (0: all), STORE=folder of other tables, CONF=other settings
	@$(RUN) jobs/query_tables.py --conf "$${CONF:-conf/local.yaml}" $${STORE:+--set "store.root=$$STORE"} --format "$${FORMAT:-table}" --rows "$${ROWS:-100}" -- "$${Q:-select * from hub limit 20}"

docs: $(VENV)/ready  ## write docs/settings.md and docs/tables.md from the declarations
	@$(RUN) scripts/make_docs.py

package: $(VENV)/ready  ## the zip that executors need, for spark-submit --py-files
	@mkdir -p dist && $(RUN) -c 'from pathlib import Path; from personahub_spark.program.code import package_zip; print(package_zip(Path("dist/personahub_spark.zip")))'

clean:  ## remove what the other targets made, the demo's tables included; downloads stay in ~/.cache/personahub
	@rm -rf $(VENV) build dist *.egg-info warehouse .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/ready: pyproject.toml constraints.txt scripts/make_environment.sh
	@PYTHON='$(PYTHON)' scripts/make_environment.sh $(VENV)
