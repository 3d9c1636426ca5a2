# What a newcomer types. Everything is installed into .venv; nothing else on the machine is touched.
PYTHON ?= python3
EXTRAS ?= test
VENV ?= .venv
BIN ?= $(VENV)/bin
# Processes that test at once: three a processor, as most tests wait for something. TensorFlow fills processors by
# itself. What hurts or emulates devices comes last, a few at a time, so that no other test computes beside it.
CORES := $(shell nproc 2>/dev/null || echo 2)
WORKERS ?= $(shell echo $$((3 * $(CORES))))
TRAINERS ?= $(CORES)
DEVICES ?= $(shell echo $$((2 * $(CORES))))

.PHONY: help demo test quick fuzz suite check lint docs site bench lock lowest clean anew

help:
	@echo "make demo    run the whole pipeline on this machine"
	@echo "make test    run the tests (HAR_EDGE_DATA=... for those on real recordings)"
	@echo "make quick   run those that take less than a second each"
	@echo "make fuzz    feed mutated messages to every decoder and state machine for an hour (FUZZ_SECONDS)"
	@echo "make check   lint and type-check"
	@echo "make docs    build the site of docs/ into build/site"
	@echo "make bench   measure throughput, latency, footprint, correctness, cuts, reducers, sensors, faults and accuracy;"
	@echo "             as root, also what slices on several emulated devices gain"
	@echo "make lock    resolve anew what locks/ pins, with hashes, for x86-64 and aarch64"
	@echo "make lowest  use har_edge with the lowest versions that pyproject.toml allows"

demo: $(VENV)/.installed-broker
	$(BIN)/har-edge demo

test: $(VENV)/.installed-$(EXTRAS)
	$(MAKE) suite

# As it stands, also where the wheel is installed and no tree is in sight (.ci/run).
suite:
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not alone and not training"
	$(BIN)/python -m pytest -n $(TRAINERS) --dist loadfile -m "training and not alone"
	$(BIN)/python -m pytest -n $(DEVICES) --dist loadgroup -m "alone and not training"

quick: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/python -m pytest -n $(CORES) --dist worksteal -m "not slow"

# Every decoder and state machine, with another seed each time; the default tests do a few hundred messages of it.
FUZZ_SECONDS ?= 3600
fuzz: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

check: $(VENV)/.installed-$(EXTRAS)
	$(MAKE) lint

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check har_edge tests bench examples docs/tools data .ci setup.py
	$(BIN)/mypy

# A dead link or anchor ends it (not with --quiet, which hides warnings from --strict). Nothing is fetched.
docs: $(VENV)/.installed-docs
	$(MAKE) site
	@echo "build/site/index.html"

SITE ?= build/site
site:
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir $(abspath $(SITE))

bench: $(VENV)/.installed-$(EXTRAS)
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

UV := $(BIN)/python -m uv pip
RESOLVE := $(UV) compile pyproject.toml --universal --python-version 3.10 --no-python-downloads --generate-hashes \
  --upgrade --quiet --custom-compile-command "make lock"

# Every extra but two that pin what they require, and so have lock files of their own: Flower's, and the quantizer's,
# which wants one release of LiteRT.
EVERY := broker dask docs evaluation images privacy secure test training zstd
lock: $(VENV)/.uv
	$(RESOLVE) $(EVERY:%=--extra %) --output-file locks/all.txt
	$(RESOLVE) --constraint locks/all.txt --output-file locks/device.txt
	$(RESOLVE) --extra flower --output-file locks/flower.txt
	$(RESOLVE) --extra quantize --output-file locks/quantize.txt

lowest: $(VENV)/.uv
	rm -rf build/lowest
	$(PYTHON) -m venv build/lowest
	$(UV) install --python build/lowest/bin/python --resolution lowest-direct --no-python-downloads '.[zstd]'
	build/lowest/bin/python .ci/installed.py --tree .

$(VENV)/.uv: | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	touch $@

# `pip install .` puts a copy in the place of this folder; whoever then says make means what stands here.
COPY := $(wildcard $(VENV)/lib/python3*/site-packages/har_edge/__init__.py)

$(VENV)/.installed-%: pyproject.toml setup.py $(if $(COPY),anew) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

# Debian keeps venv in a package of its own.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq python3-venv; \
	  else echo "python3 cannot make environments: sudo apt-get install python3-venv" >&2; exit 1; fi && \
	  $(PYTHON) -m venv $(VENV); }

clean:
	rm -rf $(VENV) build *.egg-info
