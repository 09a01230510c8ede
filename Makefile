# Everything a contributor runs; works with GNU make 3.81 and newer.

SHELL := /bin/sh
VENV ?= .venv
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11)
PY := $(VENV)/bin/python
BENCH := .venv-bench
LOWEST := .venv-lowest

.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest soak check fmt schema bench clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile
	@echo '  PYTHON=… and VENV=… choose the Python and the folder of the environment'

demo: $(VENV)/.made ## make the environment and run the flights example
	@$(PY) -m examples.flights

test: $(VENV)/.made-dev ## run the tests; ARGS="-k pool" goes to pytest
	@$(PY) -m pytest $(ARGS)

# What touches each library; the rest of the tests would find nothing more.
LOWEST_TESTS := settings configuration definition build_checks containers lifetimes retries function_results sources \
  http http_retries filesystem database database_drivers redis llm pytest_plugin
SKIPPED := --deselect tests/test_settings.py::test_the_schema_is_not_stale # written with the pydantic of constraints.txt
COMMANDS := -k 'page or counts or narrow or progress'

test-lowest: $(LOWEST)/.made-lowest ## run a fast part of the tests with the lowest versions that are allowed
	@$(LOWEST)/bin/python -m pytest -q $(SKIPPED) $(LOWEST_TESTS:%=tests/test_%.py) $(ARGS)
	@$(LOWEST)/bin/python -m pytest -q tests/test_cli.py $(COMMANDS)

soak: $(VENV)/.made-dev ## let chaos rage in pools for a minute in each world; SECONDS=600 for longer
	@case '$(SECONDS)' in *[!0-9]*|0*) echo "SECONDS=$(SECONDS): write a whole number above 0, such as SECONDS=600" >&2; exit 2;; esac
	@CHAOS_SECONDS=$(or $(SECONDS),60) $(PY) -m pytest -q tests/test_pool_under_fire.py -k chaos $(ARGS)

check: $(VENV)/.made-dev ## format, lint, types, layers: changes nothing
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m pyright --pythonpath $(PY)
	@$(PY) -m pytest -q tests/test_layers.py

fmt: $(VENV)/.made-dev ## format the code and sort its imports
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

schema: $(VENV)/.made ## write settings/schema.json anew
	@$(PY) -c 'from wirestate.settings import schema_text; print(schema_text(), end="")' > settings/schema.json.part
	@mv settings/schema.json.part settings/schema.json

bench: $(BENCH)/.made-bench ## compare with the peers; writes benchmarks/RESULTS.md
	@$(BENCH)/bin/python -m benchmarks $(ARGS)

clean: ## remove the environments and everything that was generated
	rm -rf .venv .venv-bench .venv-lowest examples/flights/output build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments ---------------------------------------------------------------------
# A stamp is written last, and an environment that could not be finished is removed: there is a
# whole one or none. One whose Python is gone, or whose project has moved, is made anew.

define USABLE
$(shell $(1)/bin/python -c 'import importlib.util as u; print(u.find_spec("wirestate").origin)' 2>/dev/null)
endef
HERE := $(CURDIR)/src/wirestate/__init__.py

ifneq "$(call USABLE,$(VENV))" "$(HERE)"
$(VENV)/.made: remake
endif
ifneq "$(call USABLE,$(LOWEST))" "$(HERE)"
$(LOWEST)/.made-lowest: remake
endif
ifneq "$(call USABLE,$(BENCH))" "$(HERE)"
$(BENCH)/.made-bench: remake
endif
.PHONY: remake
remake:

# $(1): the folder. Takes the first Python that runs (a version manager's shim may not) and has venv.
define new_environment
set -eu; chosen=; bare=; \
for python in $(PYTHONS); do \
  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
  if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then chosen=$$python; break; fi; \
  bare=$$("$$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])'); \
done; \
if [ -z "$$chosen" ] && [ -n "$$bare" ]; then \
  echo "$$bare has no venv. Install it: apt install $$bare-venv (Debian, Ubuntu), or choose another: make PYTHON=…" >&2; exit 1; \
elif [ -z "$$chosen" ]; then \
  echo "none of these is a Python 3.11 or newer that runs: $(PYTHONS). Install one, or say which: make PYTHON=…" >&2; exit 1; \
fi; \
trap 'rm -rf "$(1)"' EXIT; trap 'exit 130' INT TERM HUP; \
rm -rf "$(1)"; echo "making $(1) with $$chosen"; "$$chosen" -m venv "$(1)"
endef

# $(1): the folder, $(2): what goes into it, $(3): its stamp, $(4): another file of constraints.
define install
trap 'rm -rf "$(1)"' EXIT; trap 'exit 130' INT TERM HUP; \
"$(1)/bin/python" -m pip install --disable-pip-version-check --quiet -c $(or $(4),constraints.txt) $(2); \
touch "$(1)/$(3)"; trap - EXIT
endef

$(VENV)/.made: pyproject.toml constraints.txt
	@$(call new_environment,$(VENV)); $(call install,$(VENV),-e '.[cli]',.made)

$(VENV)/.made-dev: $(VENV)/.made
	@set -eu; $(call install,$(VENV),-e '.[dev]',.made-dev)

EXTRAS := cli,postgresql,mysql,asyncpg,aiomysql,redis,aiosqlite,s3,llm,schema
TOOLS := hatchling pytest pytest-randomly pytest-timeout zstandard

# Old wheels are there for old Pythons.
$(LOWEST)/.made-lowest: PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13)
$(LOWEST)/.made-lowest: pyproject.toml constraints-lowest.txt
	@$(call new_environment,$(LOWEST)); $(call install,$(LOWEST),-e '.[$(EXTRAS)]' $(TOOLS),.made-lowest,constraints-lowest.txt)

$(BENCH)/.made-bench: pyproject.toml benchmarks/requirements.txt
	@$(call new_environment,$(BENCH)); $(call install,$(BENCH),-e . -r benchmarks/requirements.txt,.made-bench)
