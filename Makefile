# Everything a person or a machine runs here. Needs make and Python 3.11 or newer; each target sets itself up, once.
#
#   make demo    fit the shipped flight table: 2,724 aircraft, one mixture each; writes demo/report.html
#   make test    linter, type checker, the tests that matter most, in six minutes at most
#   make slow    all other tests: every law on every family by itself, processes, kills, examples, stress; half an hour
#   make fuzz    100,000 random cases against exact answers, file by file; hours. FUZZ_SEED=n chooses others
#   make bench   against scikit-learn and lock-step vmap; writes benchmarks/RESULTS.md
#   make lowest  all tests again, with the oldest dependencies that pyproject.toml allows
#   make newest  all tests again, with the newest Python here and the newest dependencies that it can install
#   make clean   remove what these made

VENV := .venv
BIN := $(VENV)/bin
OUT := demo
PIP_FLAGS := -qq --disable-pip-version-check
# Tests on two cores. Each process takes its half in the order of the files, since neighbours share compiled programs;
# who is ready first steals from the other.
BOTH := -n 2 --dist worksteal

# The first interpreter that runs, is new enough and can make a virtual environment; `make PYTHON=...` picks another.
PYTHON ?=
define find_python
for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then break; fi; \
  python=; \
done; \
if [ -z "$$python" ]; then \
  echo "jaxem needs Python 3.11 or newer with its venv module; none was found. Name one: make PYTHON=/path/to/python3" >&2; \
  exit 1; \
fi
endef

# The newest one, also among those that pyenv keeps out of sight; `make PYTHON=...` picks another.
NEWEST = import sys, venv, ensurepip; sys.version_info[3] == "final" and print("%d.%d.%d" % sys.version_info[:3], sys.executable)
define find_newest
python=$$(for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 $(HOME)/.pyenv/versions/*/bin/python); do \
  $$python -c '$(NEWEST)' 2>/dev/null; \
done | sort -V | tail -n 1 | cut -d ' ' -f 2-); \
if [ -z "$$python" ]; then echo "no Python was found; name one: make newest PYTHON=/path/to/python3" >&2; exit 1; fi
endef

# Made by pattern rules, and not to be thrown away as make does with such.
.PRECIOUS: %/bin/python $(VENV)/.%

.PHONY: demo test slow fuzz bench lowest newest clean

demo: $(VENV)/.cli
	@$(BIN)/jaxem fit jaxem/datasets/flights.parquet --by tailnum --columns dep_delay,arr_delay --family gaussian \
	  --missing drop --components 1:6 --restarts 4 --min-rows 30 --select bic --seed 0 --out $(OUT)
	@echo "The report is $(abspath $(OUT))/report.html"

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest $(BOTH) -m "not slow"

slow: $(VENV)/.test
	$(BIN)/pytest $(BOTH) -m slow

# Each file by itself, for its memory, and without the time limit of a test.
fuzz: $(VENV)/.test
	for file in tests/fuzz/test_*.py; do FUZZ_CASES=100000 $(BIN)/pytest -n 0 -o timeout=0 $$file || exit 1; done

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py

# A virtual environment of its own: the versions must not mix with those of the other targets.
lowest: .venv-lowest/.lowest
	.venv-lowest/bin/pytest $(BOTH)

newest: .venv-newest/.newest
	.venv-newest/bin/pytest $(BOTH)

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest demo build *.egg-info .pytest_cache .ruff_cache .hypothesis .jax_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras: installed again only when pyproject.toml changes.
$(VENV)/.%: pyproject.toml | $(BIN)/python
	@echo "Installing jaxem[$*] into $(VENV)"
	@$(BIN)/pip install $(PIP_FLAGS) --editable '.[$*]'
	@touch $@

.venv-lowest/.lowest: pyproject.toml tests/lowest.py | .venv-lowest/bin/python
	@echo "Installing jaxem[test] with its oldest dependencies into .venv-lowest"
	@.venv-lowest/bin/python tests/lowest.py > .venv-lowest/lowest.txt
	@.venv-lowest/bin/pip install $(PIP_FLAGS) --editable '.[test]' --constraint .venv-lowest/lowest.txt
	@touch $@

.venv-newest/.newest: pyproject.toml | .venv-newest/bin/python
	@echo "Installing jaxem[test] with its newest dependencies into .venv-newest"
	@.venv-newest/bin/pip install $(PIP_FLAGS) --upgrade --upgrade-strategy eager --editable '.[test]'
	@touch $@

.venv-newest/bin/python:
	@$(find_newest); \
	echo "Making .venv-newest with $$($$python --version)"; \
	$$python -m venv .venv-newest || { rm -rf .venv-newest; exit 1; }

%/bin/python:
	@$(find_python); \
	echo "Making $* with $$($$python --version)"; \
	$$python -m venv $* || { rm -rf $*; exit 1; }
