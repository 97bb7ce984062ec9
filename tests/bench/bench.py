"""
How fast trioft is, and how its cost grows, beside the tools that people use instead. Run by hand; needs free disk
space and a quiet machine.

    python tests/bench/bench.py                      everything, an hour or more
    python tests/bench/bench.py --quick              a look whether it works, three minutes: small, few, not comparable
    python tests/bench/bench.py --only large small   some of the cases, which --list lists
    python tests/bench/bench.py --compare A.json B.json    ratios of two runs that were kept with --json

Who is compared takes turns in one run (A B, B A, ...), after a run of each that does not count; ratios are medians
over rounds. Warm: the source is in the page cache; cold: it was dropped from there (from this machine's: the storage
may have a cache of its own). Processor time and memory are those of all processes. What was copied is checked, and
removed, outside of the timed part. All of it lies in one temporary folder, which is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from arriving import new_files
from clients import feed_clients
from copying import many_small_files, one_large_file, slow_link
from growth import growing_numbers, growing_sizes
from ledgers import large_ledger
from recordings import closes, streams
from rivals import versions
from rows import Row, changes, save, table
from scanning import a_million, idle, nothing_to_do
from starts import starting
from workbench import Bench, CannotRun

CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "start": starting,
    "large": one_large_file,
    "small": many_small_files,
    "link": slow_link,
    "nothing": nothing_to_do,
    "idle": idle,
    "new": new_files,
    "streams": streams,
    "closes": closes,
    "clients": feed_clients,
    "million": a_million,
    "numbers": growing_numbers,
    "sizes": growing_sizes,
    "ledger": large_ledger,
}


def main() -> None:
    given = arguments()
    if given.list:
        for name, case in CASES.items():
            print(f"{name:12} {(case.__doc__ or '').strip()}")
        return
    if given.compare:
        try:
            print(changes(*given.compare))
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"no two runs to compare: {error}")
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit("stopped"))
    rows: dict[str, list[Row]] = {}
    failed = []
    with tempfile.TemporaryDirectory(prefix="trioft-bench-", dir=given.where) as place:
        bench = Bench(Path(place), given.rounds or (1 if given.quick else 3), given.quick, given.drop_caches)
        about = [*versions(), machine(bench), f"{bench.rounds} rounds"]
        about += ["quick: small and few, not comparable"] if given.quick else []
        print("\n".join(f"* {line}" for line in about), end="\n\n", flush=True)
        for name in given.only or CASES:
            begun = time.perf_counter()
            rows[name] = []
            try:
                for row in CASES[name](bench):
                    rows[name].append(row._replace(target=None) if bench.quick else row)
            except CannotRun as reason:
                print(f"{name} was left out: {reason}", file=sys.stderr)
            except (OSError, RuntimeError) as error:
                failed.append(name)
                print(f"{name} failed: {error}", file=sys.stderr)
            print(f"{name} took {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
            if given.json is not None:
                save(given.json, about, rows)
    print(table([row for found in rows.values() for row in found]))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="small and few: whether it works, not how fast it is")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CASES, help="only these cases")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--rounds", type=int, help="that count (3; quick: 1)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every single figure to FILE, too")
    parser.add_argument(
        "--compare", nargs=2, metavar="FILE", type=Path, help="two such files: the second over the first"
    )
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()), help="for the temporary folder")
    parser.add_argument(
        "--drop-caches",
        action="store_true",
        help="cold: drop all caches of this machine (needs root), not only the pages",
    )
    given = parser.parse_args()
    if given.drop_caches and not os.access("/proc/sys/vm/drop_caches", os.W_OK):
        parser.error("--drop-caches needs root")
    if given.rounds is not None and given.rounds < 1:
        parser.error("at least one round")
    for folder in (given.where, *([given.json.parent] if given.json is not None else [])):
        if not os.access(folder, os.W_OK):
            parser.error(f"{folder} is no folder to write to")
    return given


def machine(bench: Bench) -> str:
    kind = subprocess.run(["stat", "-f", "-c", "%T", bench.place], capture_output=True, text=True, check=False).stdout
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cold = "by drop_caches" if bench.drop_caches else "by posix_fadvise(DONTNEED) on each file"
    system = f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, {memory:.0f} GiB, {kind.strip()}"
    return f"{system}; load {os.getloadavg()[0]:.1f}; cold {cold}"


if __name__ == "__main__":
    main()
