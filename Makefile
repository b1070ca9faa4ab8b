PYTHON := .venv/bin/python

.PHONY: help setup check format test integration bench fuzz soak demo bundle deb import-cost protos

help:  ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## install what the tests need (as root): packages, .venv, peers
	integration/setup

check:  ## formatting, lint, types and the unit tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest tests

format:  ## put the code into the project's format
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

test:  ## the unit tests: no root, seconds
	$(PYTHON) -m pytest tests

integration:  ## everything, against real containerd and runsc (as root)
	integration/test

bench:  ## compare with containerd-shim-runc-v2 (as root)
	integration/setup -q
	integration/bench

fuzz:  ## feed random input and random calls to the shim, SECONDS for each of its fuzzers
	integration/setup -q
	$(PYTHON) -m pip --quiet install --retries 5 $$(sed -n '/^fuzz =/,/^$$/s/^    //p' setup.cfg)
	$(PYTHON) -m tests.fuzz --seconds $(or $(SECONDS),60)

soak:  ## 2,000 pods through CRI, while shims, sentries, gofers and containerd are killed (as root)
	integration/setup -q
	integration/soak

demo:  ## show a container under gVisor, from creation to exit (as root)
	integration/demo

bundle:  ## build dist/gvisor-shim-VERSION-ARCH.tar.zst, which needs nothing on a node but a kernel (as root)
	integration/setup -q
	$(PYTHON) -m deploy.bundle

deb:  ## build the bundle and dist/gvisor-shim_VERSION_ARCH.deb of the same content (as root)
	integration/setup -q
	$(PYTHON) -m deploy.debian_package

import-cost:  ## measure what our processes load, and what libraries would add
	$(PYTHON) docs/import_cost.py

protos:  ## regenerate protos/*_pb2.py from protos/*.proto
	$(PYTHON) protos/generate.py
