#!/bin/sh
# Install trioft and its tests into .venv, and run all of them: types, style, tests. With "quick" first, all but whole
# runs (tests/promises), in two minutes. Other arguments go to pytest.
set -eu
if [ "${1-}" = quick ]; then
    shift
    set -- --ignore=tests/promises "$@"
fi
cd "$(dirname "$0")/.."
sh tests/setup.sh test
.venv/bin/mypy
.venv/bin/ruff check
.venv/bin/ruff format --check
.venv/bin/lint-imports --no-cache --no-logo
# In a folder of this run alone. In pytest's own a run removes what earlier ones left, and what a killed one left may
# still be mounted: that would fail this run, all of whose tests have passed. Kept when a test fails.
base=$(mktemp -d "${TMPDIR:-/tmp}/trioft-tests-XXXXXX")
.venv/bin/python -m pytest -n 3 --dist worksteal --basetemp "$base/run" "$@"
rm -rf --one-file-system "$base" || echo "left behind: $base" >&2
