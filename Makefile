# make demo · make test · make test-all · make lint: each makes its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# Training on a CPU asks for large arrays at every step; these keep the C library from handing each back to the system
# and getting it again page by page. The second line shortens compilation. The demo's figures were taken with both.
demo: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456
demo: export XLA_FLAGS := --xla_llvm_disable_expensive_passes=true $(XLA_FLAGS)
demo: $(VENV)/.demo
	$(BIN)/python -m launch.demo --workdir runs/demo

# Two test files at a time: most of the time is compilation, which uses one core. More of them need more memory each.
test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The environment with one extra of pyproject.toml: .demo, .dev. The converter to ONNX comes without its dependencies:
# it asks for an older Orbax, for a helper that is not used here.
$(VENV)/.%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("glipv2_jax needs Python 3.11 or newer, %s is %s: make PYTHON=python3.11" % (sys.executable, sys.version.split()[0])) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	@[ $* != dev ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps jax2onnx
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache

.PHONY: demo test test-all lint clean
