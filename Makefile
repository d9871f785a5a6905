# Everything here needs nothing but Python 3.11+ and sets up .venv by itself. With a C++ compiler the kernels are
# native; without one they are numpy's, give the same bits, and the install says so.
#
#   make demo     a broker and five workers train on real images, and are measured
#   make test     unit, parity, differential, simulation, integration, hostile and chaos tests (installs torch)
#   make chaos    real processes killed, stopped, cut and starved, for long
#   make soak     new seeds of the simulation, until Ctrl-C
#   make lint     ruff, mypy, import directions
#   make sanitize the kernels' tests under ASan + UBSan, and under TSan
#   make aarch64  the kernels cross-compiled and their bits compared (apt: g++-aarch64-linux-gnu qemu-user)
#   make budget   count the kernels' instructions anew, after a change that is meant (apt: valgrind)
#   make clean    forget .venv and build/

# The first Python that is new enough; PYTHON=… chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip
PACKAGES := broker cli fedcore worker
SOURCES := $(shell find $(PACKAGES) csrc -type f ! -name '*.pyc') CMakeLists.txt LICENSE README.md pyproject.toml

.PHONY: help demo test chaos soak lint sanitize aarch64 budget clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   make/make/p' Makefile

demo: .venv/demo.stamp
	$(BIN)/fedmq demo

test: .venv/dev.stamp
	$(BIN)/pytest
	$(BIN)/pytest --doctest-modules --pyargs fedmq

chaos: .venv/dev.stamp
	FEDMQ_CHAOS=long $(BIN)/pytest tests/chaos

soak: .venv/dev.stamp
	$(BIN)/python -m tests.simulation.soak

lint: .venv/lint.stamp build/mypy.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pytest tests/unit/test_house.py

sanitize: .venv/dev.stamp
	$(BIN)/python -m tests.native.sanitize

aarch64: .venv/dev.stamp
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/aarch64 -G Ninja -DFEDMQ_MODULE=OFF -DFEDMQ_DRIVER=ON \
		-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/aarch64
	FEDMQ_DRIVER="qemu-aarch64 build/aarch64/driver" $(BIN)/pytest tests/native/test_digests.py

budget: .venv/dev.stamp
	$(BIN)/python -m tests.native.instructions

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Which extras each target needs.
.venv/demo.stamp: EXTRAS := broker,privacy,sklearn
.venv/lint.stamp: EXTRAS := lint
.venv/dev.stamp: EXTRAS := dev

.venv/demo.stamp .venv/lint.stamp .venv/dev.stamp: build/wheel.stamp constraints.txt
	@echo "installing fedmq[$(EXTRAS)] into .venv"
	@$(PIP) install -q -c constraints.txt "$$(echo build/wheel/*.whl)[$(EXTRAS)]"
	@$(PIP) install -q --no-deps --force-reinstall build/wheel/*.whl
	@$(BIN)/python -c 'import os, sys; from fedmq.fedcore import kernels; \
		native = kernels.backend == "native"; \
		print("kernels:", kernels.backend, "" if native else "(no C++ compiler; the same bits, only slower)"); \
		sys.exit(not native and os.environ.get("FEDMQ_REQUIRE_NATIVE", "0") != "0")'
	@touch $@

# Without build isolation CMake sees the same paths every time and recompiles only what changed.
build/wheel.stamp: $(SOURCES) | .venv/tools.stamp
	@echo "building the wheel and its native kernels"
	@rm -rf build/wheel
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) wheel -q --no-deps --no-build-isolation -w build/wheel .
	@touch $@

.venv/tools.stamp: constraints.txt
	@test -n "$(PYTHON)" || { echo "fedmq needs Python 3.11 or newer; say which with PYTHON=…" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install -q -c constraints.txt cmake ninja pybind11 scikit-build-core
	@touch $@

# Type-checked as installed, and every file of it: a file that the wheel forgot would be one that nobody checked.
build/mypy.stamp: build/wheel.stamp | .venv/lint.stamp
	@rm -rf build/mypy
	@$(BIN)/python -m zipfile -e build/wheel/*.whl build/mypy
	$(BIN)/mypy build/mypy/fedmq > build/mypy.log || { cat build/mypy.log; exit 1; }
	@cat build/mypy.log
	@files=$$(( $$(find $(PACKAGES) -name '*.py' -o -name '*.pyi' | wc -l) + 1 )); \
		grep -q "in $$files source files" build/mypy.log || { echo "mypy should have seen $$files files"; exit 1; }
	@touch $@
