#!/bin/sh
# Install trioft into .venv; transfer a small tree, and a recording while it is being made; show that all has arrived.
set -eu
cd "$(dirname "$0")/.."
sh tests/setup.sh

place=$(mktemp -d)
watcher=
trap '[ -z "$watcher" ] || kill $watcher 2>/dev/null; rm -rf "$place"' EXIT
mkdir -p "$place/recordings/day 1/empty" "$place/nas"
head -c 50000000 /dev/urandom >"$place/recordings/day 1/camera.mxf"
for n in 1 2 3 4 5 6 7 8 9; do echo "take $n" >"$place/recordings/day 1/take $n.txt"; done

run() { echo "\$ $*"; "$@" 2>&1; echo; }
here=$PWD
cd "$place"
PATH=$here/.venv/bin:$PATH
echo "A camera file of 50 MB, nine notes and an empty folder go to a destination, durable and read back:"
echo
run trioft sync recordings nas --state-dir state -v
echo "What has arrived (the names are final: each file was complete and verified before it got its own):"
run find nas -printf '%y %10s  %P\n'
run diff -r recordings nas
echo "No difference. The same command again has nothing to do:"
run trioft sync recordings nas --state-dir state --json

echo "Now a recording: an MXF of 100 MB, written at 20 MB/s, whose header and index are written again when it is closed."
echo "trioft follows it: what is written arrives under a partial name, durable and read back, a moment later:"
echo
mkdir ingest
echo "\$ trioft watch ingest nas --state-dir state -v"
trioft watch ingest nas --state-dir state -v 2>&1 &
watcher=$!
python "$here/tests/tools/recorder.py" mxf ingest/take.mxf --size 100000000 --rate 20000000 >said &
recorder=$!
size() { set -- $(stat -c %s "$@" 2>/dev/null) 0; echo "$1"; }
while ! grep -q '^closed' said; do
    echo "  recorded: $(size ingest/take.mxf)   at the destination: $(size nas/take.mxf.*.trioft-partial)"
    sleep 0.5
done
wait $recorder
echo "  It is closed: $(size ingest/take.mxf) bytes. What was written again meanwhile is found by comparing all of it."
tenths=0
while [ ! -e nas/take.mxf ]; do
    sleep 0.1
    tenths=$((tenths + 1))
    [ $tenths -lt 600 ] || { echo "it did not arrive" >&2; exit 1; }
done
run cmp ingest/take.mxf nas/take.mxf
kill $watcher
wait $watcher
watcher=
echo "No difference: a few tenths of a second after its recorder had closed it, all of it was there."
