#!/bin/sh
# Install trioft into .venv, make a small tree, transfer it, and show that it has arrived.
set -eu
cd "$(dirname "$0")/.."
sh tests/setup.sh

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
mkdir -p "$place/recordings/day 1/empty" "$place/nas"
head -c 50000000 /dev/urandom >"$place/recordings/day 1/camera.mxf"
for n in 1 2 3 4 5 6 7 8 9; do echo "take $n" >"$place/recordings/day 1/take $n.txt"; done

run() { echo "\$ $*"; "$@" 2>&1; echo; }
cd "$place"
trioft=$OLDPWD/.venv/bin/trioft
PATH=$(dirname "$trioft"):$PATH
echo "A camera file of 50 MB, nine notes and an empty folder go to a destination, durable and read back:"
echo
run trioft sync recordings nas --state-dir state -v
echo "What has arrived (the names are final: each file was complete and verified before it got its own):"
run find nas -printf '%y %10s  %P\n'
run diff -r recordings nas
echo "No difference. The same command again has nothing to do:"
run trioft sync recordings nas --state-dir state --json
