# `make help` lists the targets. `make demo` and `make test` do all set-up on a fresh machine.
#
# PYTHON  the interpreter that makes the virtual environment; for cuda-check, the one that is used as it is
# TORCH   what pip installs as torch, options included; for a CPU build name torch's CPU index with --index-url
# INSTALL what pip installs of this project: in place, or another source
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
INSTALL ?= -e .

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := $(wildcard csrc/*.h csrc/*.cuh csrc/*.cpp csrc/*/*.h csrc/*/*.cuh csrc/*/*.cpp csrc/*/*.cu)
EMULATION := $(wildcard tests/emulation/*)

.DEFAULT_GOAL := help
.PHONY: help build dist demo test test-all torture fuzz bench lint format pictures docs sanitize cuda-compile cuda-check clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Stamp files stand for finished steps, so that a second run installs nothing.
$(VENV)/stamp.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	$(PIP) install "setuptools>=77" "pybind11>=3.0" ninja
	touch $@

# No build isolation: the extension is compiled against the torch that it will run with, and torch is not fetched twice.
$(VENV)/stamp.build: $(VENV)/stamp.torch pyproject.toml setup.py $(NATIVE)
	$(PIP) install --no-build-isolation $(INSTALL)
	touch $@

# An extra of what is installed: `.[test]` would build the extension once more.
$(VENV)/stamp.%: $(VENV)/stamp.build
	$(PIP) install "tcwarp[$*]"
	touch $@

build: $(VENV)/stamp.build  ## set up .venv and build the extension

# The wheel is made of the unpacked source distribution, and holds no module of Python: it serves every Python.
SDIST := build/sdist
dist: $(VENV)/stamp.torch  ## make the source distribution and the wheel, into dist, and check them
	$(PIP) install build twine check-wheel-contents auditwheel
	rm -rf dist $(SDIST)
	$(BIN)/python -m build --no-isolation --sdist
	mkdir -p $(SDIST) && tar -xzf dist/*.tar.gz --strip-components=1 -C $(SDIST)
	TCWARP_PORTABLE=1 $(BIN)/python -m build --no-isolation --wheel --outdir dist $(SDIST)
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist
	$(BIN)/auditwheel show dist/*.whl

demo: $(VENV)/stamp.tcseg  ## train on the phantom with 5 labels, without and with consistency, and show the gain
	$(BIN)/tcseg demo --out runs/demo

test: $(VENV)/stamp.test  ## run the tests but for the slow ones: four minutes on two cores
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-all: $(VENV)/stamp.test  ## run all tests
	$(BIN)/python -m pytest -n auto --dist loadfile

bench: $(VENV)/stamp.bench  ## run the CPU benchmarks against their peers
	$(BIN)/python -m pytest benchmarks
	$(BIN)/python -m benchmarks.scaling --out build/scaling

lint: $(VENV)/stamp.lint  ## check formatting, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/clang-format --dry-run --Werror $(NATIVE) $(EMULATION)

format: $(VENV)/stamp.lint  ## format Python, C++ and CUDA sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE) $(EMULATION)

pictures: $(VENV)/stamp.test demo  ## draw the pictures of README and guides anew, from the phantom; needs Chromium
	$(BIN)/python docs/pictures.py runs/demo

docs: $(VENV)/stamp.test  ## build the guides into build/site
	$(BIN)/python -m mkdocs build

# The library is built apart from the usual one. Leaks are Python's own; the runtimes of both sanitizers come first.
SANITIZED := $(CURDIR)/build/sanitize/lib
SANITIZE_TESTS := sanitized warp warp_gradients algebra inverse derivatives points fields fuzz native_header cuda_emulated
sanitize: $(VENV)/stamp.test  ## run the tests of the operators with AddressSanitizer and UndefinedBehaviorSanitizer
	TCWARP_SANITIZE=1 $(BIN)/python setup.py build --build-lib $(SANITIZED) --build-temp build/sanitize/temp
	PYTHONPATH=$(SANITIZED) LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 TCWARP_EXPECTED=$(SANITIZED) \
	$(BIN)/pytest -p no:cacheprovider $(addprefix tests/tcwarp/test_,$(addsuffix .py,$(SANITIZE_TESTS))) -k "not compile and not opcheck"

# Nothing is linked, so torch may lack CUDA. Users build from source beside any torch from 2.10 on: other headers.
cuda-compile: $(VENV)/stamp.torch  ## compile the CUDA sources with nvcc, and all against torch 2.10 and 2.11; needs no GPU
	TCWARP_TORCH_HEADERS="$$($(BIN)/python .ci/torch_headers.py)" $(BIN)/python setup.py -q compile_only

# The build is one of its parts. OUT: a file, or a folder for cuda-check.json; REHEARSE=--rehearse needs no GPU.
OUT ?= benchmarks/results/cuda-check.json
MINUTES := 10
torture: $(VENV)/stamp.test  ## damage files, and stop trainings by signals, for MINUTES; print the counts
	PYTHONPATH=tests/helpers $(BIN)/python tests/torture.py $(MINUTES) $(SEED)

# FILES: names of what `tests/fuzz_readers.py` makes, if not all. No extra, as CI does without it.
fuzz: $(VENV)/stamp.test  ## change files so that they reach more of our readers, for MINUTES, with atheris; print the counts
	$(PIP) install --quiet atheris
	$(BIN)/python tests/fuzz_readers.py $(MINUTES) $(FILES)

cuda-check:  ## on a machine with a GPU, with PYTHON as it is: build, benchmarks, CUDA tests, compute-sanitizer, one JSON
	$(PYTHON) -m benchmarks.cuda_check --out "$(OUT)" $(REHEARSE)

clean:  ## remove what the build made (.venv and runs stay)
	rm -rf build dist *.egg-info tcwarp/*.so $(VENV)/stamp.build
