#!/bin/sh
# Install trioft and its tests into .venv, and run all of them: types, style, tests. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
sh tests/setup.sh test
.venv/bin/mypy
.venv/bin/ruff check
.venv/bin/ruff format --check
.venv/bin/python -m pytest -n 3 --dist worksteal "$@"
