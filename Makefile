# Everything here sets up what it needs: a virtual environment in .venv, and a RabbitMQ (see "make help").

PYTHONS := python3.14 python3.13 python3.12 python3.11 python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# two processes, each with a RabbitMQ of its own; the slow files first
AT_ONCE := --numprocesses 2 --dist loadfile --no-loadscope-reorder
SUITABLE := import sys; sys.exit(sys.version_info < (3, 11))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test faults fuzz cluster-test backfill-test soak exactly-once bench bench-full pictures check clean

help:
	@echo 'make demo    watch the shop: eight services, orders, a kill -9, a broken event; ends with the verdict'
	@echo '             ORDERS=20  how many orders (1 to 1000)'
	@echo '             KEEP=1     leave the services and RabbitMQ running at the end, and say how to stop them'
	@echo 'make test    run all tests on a real RabbitMQ (about ten minutes); ARGS="-k packing" goes to pytest'
	@echo 'make faults  the whole fault matrix on each RabbitMQ to be had (about an hour); writes docs/reliability.md'
	@echo '             ARGS="-k killed" runs a part of it, and keeps the other results; ARGS=--direct=off: on plain aio-pika'
	@echo 'make fuzz    10,000 hostile messages each way, 1,000 reconnects (about 15 minutes)'
	@echo 'make cluster-test  three nodes: one killed, one frozen, all restarted in turn; writes docs/reliability.md'
	@echo 'make backfill-test  100,000 events backfilled under load, 40 kills, RabbitMQ restarted (about five minutes)'
	@echo 'make soak    random faults under load (about 15 minutes); writes docs/reliability.md'
	@echo '             SEED=7 EVENTS=100000 FAULTS=30  which faults, how many events and faults'
	@echo '             RABBITMQ=container  on which: installed, container, or any (the first to be had)'
	@echo 'make exactly-once  2,000 orders while everybody is killed 200 times, on SQLite, then on PostgreSQL'
	@echo '             (about 20 minutes); writes docs/exactly-once.md'
	@echo '             SEED=7 ORDERS=2000 KILLS=200 DATABASES=sqlite,postgresql  which kills, how many, on what'
	@echo 'make bench   measure beside other clients and RabbitMQ itself (under 5 minutes); ARGS="--rows 1,3" measures a part'
	@echo 'make bench-full  the same at length (about 20 minutes); writes docs/performance.md'
	@echo 'make pictures  run the demo, and take the pictures of README and docs from it'
	@echo 'make check   ruff, mypy --strict, import-linter'
	@echo 'make clean   remove the virtual environment, caches and the data of demo runs'
	@echo
	@echo 'RabbitMQ is the one at BROKER_URL, or comes from Docker, or from the rabbitmq-server of this'
	@echo 'machine (as a private node), or, on Debian and Ubuntu as root, from apt.'
	@echo 'Tests that look at pages want a Chromium: the one of this machine, else Playwright downloads it, else apt (as root).'
	@echo 'Two tests ask the official AsyncAPI parser and Mermaid: npm brings them, to the Node.js (18 or later) of this machine,'
	@echo 'or to one that pip brings.'

demo: $(READY)
	@$(BIN)/python -m services.demo

test: $(READY)
	@$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(or $(ARGS),$(AT_ONCE))
	@$(BIN)/coverage combine --quiet
	@$(if $(ARGS),$(BIN)/coverage report --fail-under=0 | tail -n 1,$(BIN)/coverage report --skip-covered)

faults: $(READY)
	@$(BIN)/python -m tests.faults $(ARGS)

fuzz: $(READY)
	$(BIN)/pytest -m full tests/fuzz tests/leaks $(ARGS)

cluster-test: $(READY)
	$(BIN)/pytest -m full tests/cluster $(ARGS)

backfill-test: $(READY)
	$(BIN)/pytest -m full tests/acceptance $(ARGS)

pictures: $(READY)
	@$(BIN)/python -m tests.pictures

bench: $(READY)
	@$(BIN)/python -m bench $(ARGS)

bench-full: $(READY)
	@$(BIN)/python -m bench --full $(ARGS)

soak: $(READY)
	@$(BIN)/python -m tests.soak

exactly-once: $(READY)
	$(BIN)/pytest -m full tests/sql
	@$(BIN)/python -m tests.exactly_once

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .venv-bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* data/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment whose Python is gone or too old is made anew; one that works is kept.
$(READY): pyproject.toml
	@$(BIN)/python -c '$(SUITABLE)' 2>/dev/null || { \
	  old=; bare=; found=; \
	  for python in $(PYTHONS); do \
	    $$python -c '' 2>/dev/null || continue; \
	    if ! $$python -c '$(SUITABLE)'; then old=$$python; \
	    elif ! $$python -c 'import ensurepip, venv' 2>/dev/null; then bare=$$python; \
	    else found=$$python; break; fi; \
	  done; \
	  if [ -n "$$found" ]; then echo "Making $(VENV) with $$($$found --version)."; \
	  elif [ -n "$$bare" ]; then \
	    echo "$$bare lacks the module venv or ensurepip. Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
	  else echo "Python 3.11 or later is needed$${old:+; $$old is $$($$old --version 2>&1)}." >&2; exit 1; fi; \
	  $$found -m venv --clear $(VENV); \
	}
	@echo 'Installing the packages of pyproject.toml (a minute the first time).'
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
