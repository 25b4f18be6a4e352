# make demo   sets everything up, runs the main job on a laptop CPU, prints the leaderboard and how to open the page
# make test   sets everything up, passes the tests
# make setup  only sets up; a second time it does nothing

PYTHON ?= python3
ACCELERATOR := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
STAMP := .venv/.ready-$(ACCELERATOR)
BIN := .venv/bin

# uv does not read pip's settings: hand over where pip was told to look for wheels.
export UV_FIND_LINKS ?= $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null || echo $(PIP_FIND_LINKS))

.PHONY: setup demo test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements/constraints.txt requirements/overrides-$(ACCELERATOR).txt scripts/system-packages
	./scripts/system-packages
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --compile-bytecode -c requirements/constraints.txt \
		--overrides requirements/overrides-$(ACCELERATOR).txt -e '.[$(ACCELERATOR),test]'
	touch $@

demo: setup
	$(BIN)/harness doctor
	$(BIN)/harness train-and-eval quickstart

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info
