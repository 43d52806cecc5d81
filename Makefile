# Synapse Saltworks. `make lab` builds and runs everything, `make test` tests everything.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
STAMP := .venv/.stamp
LAB := $(PY) -m tests.lab
# What is installed before the first step counts as well.
BEGAN := $(shell date +%s)

.PHONY: help venv lab lab-base lab-status clean-lab shell testhost test lint soak bench lock

help:
	@echo 'make lab          build the lab, seed the old server, run the milestones'
	@echo 'make lab-base     only the machines, empty'
	@echo 'make lab-status   what of the lab exists and runs'
	@echo "make shell M=name [C='command']   a shell, or one command, in a machine"
	@echo 'make clean-lab    remove every trace of the lab (the cache stays)'
	@echo 'make test         every test      make lint   make soak   make bench'

venv: $(STAMP)

$(STAMP): requirements/dev.txt tests/lab/bootstrap.sh
	@tests/lab/bootstrap.sh

lab: venv
	@SALTWORKS_BEGAN=$(BEGAN) $(LAB) up

lab-base: venv
	@$(LAB) up --base

lab-status: venv
	@$(LAB) status

clean-lab: venv
	@$(LAB) clean

shell: venv
	@test -n '$(M)' || { echo 'name the machine: make shell M=legacy (make lab-status lists them)' >&2; exit 2; }
	@$(LAB) shell $(M) $(if $(C),-- '$(C)')

lint: venv
	@$(LAB) lint

testhost: venv
	@tests/lab/bootstrap.sh test

test: testhost
	@$(LAB) test $(T)

soak: testhost
	@$(LAB) test --only soak $(T)

bench: testhost
	@$(LAB) test --only bench $(T)

lock: venv
	@$(LAB) lock
