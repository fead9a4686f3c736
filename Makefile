# Two commands need nothing but Python >= 3.10 and a C++ compiler: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
TEST_WORKERS ?= 2

.PHONY: demo test test-slow test-all test-arm faults check docs apk test-android test-android-native clean

demo: .venv/demo
	$(BIN)/qn-deploy demo

test: .venv/test
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope -m "not slow and not device"

# What takes minutes: processes that train together, compilers, the APK, the Java code on a JVM, emulated ARM.
test-slow: .venv/test
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope -m "(slow or device) and not alone" --durations 30
	$(BIN)/python -m pytest -n 0 -m alone tests/test_benchmarks.py

test-all: test test-slow

# Attacks by the thousand, hostile files, kills and full disks, at the length that SECURITY.md speaks of: an hour or two. FAULTS= is the short form.
FAULTS ?= full
faults: .venv/test
	FAULTS=$(FAULTS) $(BIN)/python -m pytest -m faults tests/faults

# Emulated 64-bit ARM processors. What is missing is fetched into the cache folder by apt and pip, without root.
test-arm: .venv/test
	$(BIN)/qn-deploy devices setup qemu
	QN_REQUIRE=all $(BIN)/python -m pytest -n $(TEST_WORKERS) runtime_tests/test_devices.py tests/verification/devices

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/, into build/site; they are read from the disk.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The demo app with the demo's model, and the library as an AAR, without Gradle: android_demo/README.md. AARS=folder adds the runtimes.
apk: .venv/demo
	test -f build/demo/build/manifest.json || $(BIN)/qn-deploy demo
	$(BIN)/qn-deploy android build/demo/build --name digits
	$(BIN)/python android_demo/tools/apk.py $(if $(AARS),--aars $(AARS))

# The app's screens, damaged files, the APK, adb; and its library on the runtimes' real Android libraries, x86-64 and emulated ARM.
test-android: .venv/test
	$(BIN)/python -m pytest tests/android_demo

test-android-native: .venv/test
	$(BIN)/qn-deploy devices setup qemu
	$(BIN)/python -m pytest runtime_tests/test_android.py

clean:
	rm -rf .venv build dist *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "qn-deploy needs Python 3.10 or newer; try make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "this Python can't make a virtual environment; on Debian: apt-get install python3-venv"; exit 2; }

# torch brings its CUDA libraries along, about 3 GB: the first run takes a few minutes.
.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[all]'
	@touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	@touch $@

.venv/docs: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	@touch $@
