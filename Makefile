# What a newcomer types. Everything is installed into .venv; nothing else on the machine is touched.
PYTHON ?= python3
EXTRAS ?= test
BIN := .venv/bin

.PHONY: help demo test check bench clean

help:
	@echo "make demo    run the whole pipeline on this machine"
	@echo "make test    run the tests (HAR_EDGE_DATA=... for those on real recordings)"
	@echo "make check   lint and type-check"
	@echo "make bench   measure throughput, latency, footprint, correctness, cuts, reducers, sensors, faults and accuracy;"
	@echo "             as root, also what slices on several emulated devices gain"

demo: .venv/.installed-broker
	$(BIN)/har-edge demo

test: .venv/.installed-$(EXTRAS)
	$(BIN)/python -m pytest

check: .venv/.installed-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check har_edge tests bench
	$(BIN)/mypy

bench: .venv/.installed-$(EXTRAS)
	$(BIN)/python bench/throughput.py
	$(BIN)/python bench/latency.py
	$(BIN)/python bench/footprint.py
	$(BIN)/python bench/correctness.py
	$(BIN)/python bench/cuts.py --cache build/bench
	$(BIN)/python bench/reducers.py
	$(BIN)/python bench/sensor.py
	@if $(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("tensorflow") is None)'; \
	then echo $(BIN)/python bench/accuracy.py; $(BIN)/python bench/accuracy.py; \
	else echo "left out: bench/accuracy.py (needs TensorFlow: make bench EXTRAS=test,training)"; fi
	@if [ "$$(id -u)" = 0 ]; \
	then echo $(BIN)/har-edge bench speedup --model int8 --out build/bench/speedup; \
	  $(BIN)/har-edge bench speedup --model int8 --out build/bench/speedup; \
	else echo "left out: har-edge bench speedup (needs root, for emulated devices)"; fi
	$(BIN)/python bench/faults.py --faults 10

.venv/.installed-%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

# Debian keeps venv in a package of its own.
.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq python3-venv; \
	  else echo "python3 cannot make environments: sudo apt-get install python3-venv" >&2; exit 1; fi && \
	  $(PYTHON) -m venv .venv; }

clean:
	rm -rf .venv build *.egg-info
