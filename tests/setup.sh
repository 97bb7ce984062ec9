#!/bin/sh
# Make a virtual environment in .venv with trioft and, with "test", what its tests need.
# Works on a Debian that has nothing but Python: what is missing is installed through apt-get (as root, or with sudo).
set -eu
cd "$(dirname "$0")/.."

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}
apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

find_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            command -v "$name"
            return
        fi
    done
}

if [ ! -x .venv/bin/pip ]; then
    python=$(find_python)
    if [ -z "$python" ]; then
        apt_install python3 python3-venv
        python=$(find_python)
    fi
    [ -n "$python" ] || { echo "trioft needs Python 3.11 or newer" >&2; exit 1; }
    # Debian's python3 comes without the part that makes virtual environments.
    "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
    "$python" -m venv .venv
fi
.venv/bin/pip install --quiet --disable-pip-version-check -e ".${1:+[$1]}"
