# make search: set up and run the default search. make test: set up and run the tests. make docs: the documents as a site.
PYTHON ?= python3
UV = .venv/bin/python -m uv
UV_VERSION = 0.13.9

.PHONY: search test test-slow lint docs hooks lock setup
search: setup
	.venv/bin/python -m search.run +search=cpu_latency

test: setup
	.venv/bin/python -m pytest

test-slow: setup
	.venv/bin/python -m pytest -m slow

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet

docs: setup
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs serve

hooks: setup
	.venv/bin/pre-commit install

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=python3.11")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip install --quiet --python .venv/bin/python -r requirements.lock
	$(UV) pip install --quiet --python .venv/bin/python --no-deps --editable .
	touch .venv/installed

# Needs uv on the path; writes versions only, no addresses. What only executorch needs is not installed with the rest.
COMPILE = uv pip compile --quiet --universal --no-header --no-annotate --no-emit-index-url --no-emit-find-links
EXTRAS = openvino tensorboard ray postgresql docs dev
lock:
	$(COMPILE) $(EXTRAS:%=--extra %) --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra executorch --constraint requirements.lock --output-file requirements-executorch.lock pyproject.toml
