"""
Take out each mechanism that says whose a file is, one at a time, and see what turns red.

Run by hand: ``.venv/bin/python tests/tools/mutate_ownership.py [WORD …]``, where only mutations that contain one of the
words are tried. Each is made in a copy of the program. First the lives of ``lives.py`` are to find it, then the tests
that are named. ``SECONDS`` is how long each mutant lives.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from mutate_durability import ROOT, Mutation, first_red, mutate

SECONDS = float(os.environ.get("SECONDS", "120"))


class Taken(NamedTuple):
    """A mechanism that is taken out, by one or more changes, and the tests that are to find that."""

    what: str
    changes: list[Mutation]
    tests: list[str]


def _out(module: str, function: str, old: str, new: str) -> Mutation:
    return Mutation("", module, function, old, new)


TAKEN = [
    Taken("nothing changed", [_out("rowsums", "sum_of", "parts = []", "parts = []")], []),
    Taken(
        "1 partial of one ledger: all have one name",
        [
            _out("naming", "partial_of", "(ledger, dev, ino", '(b"", dev, ino'),
            _out("naming", "mark_of", 'b"ledger:" + ledger', 'b"ledger:"'),
        ],
        ["tests/promises/test_ownership.py", "-k", "wrong_every_byte or partial_of_another"],
    ),
    Taken(
        "1 partial of one ledger: whoever sweeps takes all",
        [_out("naming", "belongs_to", "mark_in(path) == mark_of(ledger)", 'mark_in(path) != b""')],
        ["tests/promises/test_ownership.py", "-k", "partial_of_another"],
    ),
    Taken(
        "2 one agent: no lock of the machine",
        [_out("lock", "_bind", "held.bind(name)", "held.bind(name + os.urandom(4).hex())")],
        ["tests/state/test_lock.py", "tests/pipeline/test_claiming.py"],
    ),
    Taken(
        "2 one agent: no claim",
        [
            _out(
                "folder/claims", "_take", "if there is not None and lives(there[0], now - there[1], mine):", "if False:"
            ),
        ],
        ["tests/promises/test_ownership.py", "-k", "another_machine"],
    ),
    Taken(
        "3 seal before publish",
        [
            _out("publish", "_publish_one", "if is_untouched(", "if False and is_untouched("),
            _out("publish", "_give_name", "is_watched and not _has_time", "False and not _has_time"),
            _out("publish", "_give_name", "is_watched and there.st_mtime_ns", "False and there.st_mtime_ns"),
        ],
        ["tests/ops/test_seals.py"],
    ),
    Taken(
        "3 seal before publish: no lease",
        [_out("seals", "held_still", "fcntl.fcntl(", "(lambda *_: None)(")],
        ["tests/ops/test_seals.py"],
    ),
    Taken(
        "3 seal before publish: neither that nor what is taken back",
        [
            _out("seals", "held_still", "fcntl.fcntl(", "(lambda *_: None)("),
            _out("publish", "_give_name", "is_watched and there.st_mtime_ns", "False and there.st_mtime_ns"),
        ],
        ["tests/ops/test_seals.py"],
    ),
    Taken(
        "3 seal before publish: what is broken is not compared anew",
        [_out("copier", "_carry", "trouble.op == SEAL", "False")],
        ["tests/promises/test_attempts.py"],
    ),
    Taken(
        "3 seal before removal",
        [
            _out(
                "finish",
                "_check_copies",
                "answers = iter(sealed)",
                "return results; answers = iter(sealed)",
            )
        ],
        ["tests/promises/test_kill.py", "tests/pipeline/test_vanishing.py"],
    ),
    Taken(
        "4 the only copy: the ledger is not asked whose a name is",
        [_out("state/claims", "owners_of", "owners = {}", "return {}; owners = {}")],
        ["tests/promises/test_only_copies.py"],
    ),
    Taken(
        "4 the only copy: nobody remembers that its source was removed",
        [_out("state/claims", "_is_all_that_is_left", "query = (", "return False; query = (")],
        ["tests/promises/test_only_copies.py"],
    ),
    Taken(
        "5 folded names: how it is really spelled",
        [_out("names", "spelled_otherwise", 'real = b""', 'return None; real = b""')],
        ["tests/promises/test_names_that_are_one.py"],
    ),
    Taken(
        "5 folded names: neither that nor the probe",
        [
            _out("names", "spelled_otherwise", 'real = b""', 'return None; real = b""'),
            _out("names", "find_naming", "with opened(", "return Naming()\n    with opened("),
        ],
        ["tests/promises/test_names_that_are_one.py"],
    ),
    Taken(
        "6 alias probe: single folders and files",
        [
            _out("views", "refuse_view", "if not there or (here, there) in dst.separate:", "if True:"),
            _out("views", "is_source_itself", "touch(Side.SOURCE)", "return False; touch(Side.SOURCE)"),
        ],
        ["tests/promises/test_views_of_the_source.py"],
    ),
    Taken(
        "6 alias probe: the whole destination",
        [_out("views", "find_view", "with opened(", "return None\n    with opened(")],
        ["tests/promises/test_views_of_the_source.py"],
    ),
    Taken(
        "7 beneath: links are followed",
        [
            _out(
                "beneath",
                "_walk",
                "fd = linux.openat2(path, flags, top, linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS)",
                "fd = os.open(path, flags, dir_fd=top)",
            ),
        ],
        ["tests/ops/test_beneath.py", "tests/ops/test_conflicts_by_link.py"],
    ),
    Taken(
        "8 removal in three steps: removed at once",
        [
            _out(
                "removal",
                "__init__",
                'self._aside = self._going + b"/" + path.rpartition(b"/")[2]',
                "self._aside = path",
            ),
            _out("removal", "_take_aside", "try:", "return\n        try:"),
            _out("removal", "_put_back", "name = _put_back(self._src, self._aside, self._path)", "name = self._path"),
        ],
        ["tests/ops/test_three_steps.py"],
    ),
    Taken(
        "8 removal in three steps: not looked at again",
        [
            _out(
                "removal",
                "remove",
                "[os.fstat(fd), named], archive, 4)) is not None:",
                "[os.fstat(fd), named], archive, 4)) is not None and False:",
            )
        ],
        ["tests/ops/test_three_steps.py"],
    ),
    Taken(
        "9 proofs: what is unproven is removed",
        [
            _out(
                "removal",
                "_why_not",
                "return Verdict.UNPROVEN if writer == answers.UNKNOWN and archive is None else None",
                "return None",
            )
        ],
        ["tests/ops/test_removal.py"],
    ),
    Taken(
        "10 digests of rows",
        [
            _out("ledger", "checkpoint_of", "if is_sound:", "if True:"),
            _out("ledger", "known_in", "if is_sound:", "if True:"),
            _out("ledger", "known", "row is not None and row[0]:", "row is not None:"),
        ],
        ["tests/state/test_damaged_rows.py"],
    ),
    Taken(
        "10 comparison at resume: of the partial with its digests",
        [
            _out(
                "resume",
                "_check",
                "digests = bytearray(checkpoint.digests)",
                "return checkpoint.digests; digests = bytearray(checkpoint.digests)",
            )
        ],
        ["tests/ops/test_resume.py"],
    ),
    Taken(
        "10 comparison at resume: without a checkpoint",
        [
            _out(
                "resume",
                "_compare",
                "if there == digest_of_block(src_fd,",
                "if True or there == digest_of_block(src_fd,",
            )
        ],
        ["tests/ops/test_resume.py"],
    ),
]


def lives_of(tree: Path) -> str:
    """Have the program below *tree* live; return what was broken. Empty: nothing."""
    command = [sys.executable, tree / "tests/tools/lives.py", "--seconds", str(SECONDS), "--lives", "100000"]
    done = subprocess.run(
        [*map(str, command), "--as-it-is"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    return next((line for line in done.stdout.splitlines() if line.startswith("life ")), done.stderr[-300:])


def main(words: list[str]) -> None:
    for taken in TAKEN:
        if words and not any(word in taken.what for word in words):
            continue
        with tempfile.TemporaryDirectory(prefix="trioft-mutation-") as place:
            tree = Path(place)
            for name in ("trioft", "tests"):
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", tree)
            for change in taken.changes:
                mutate(change, tree)
            print(taken.what, flush=True)
            for module in {f"{change.module}.{change.function}" for change in taken.changes}:
                print(f"    in {module}")
            begun = time.monotonic()
            red = lives_of(tree) or "not found"
            print(f"    {'lives':40} {time.monotonic() - begun:4.0f} s  {red[:150]}", flush=True)
            if taken.tests and not os.environ.get("LIVES_ONLY"):
                begun = time.monotonic()
                red = first_red(tree, taken.tests) or "not found"
                print(f"    {taken.tests[0]:40} {time.monotonic() - begun:4.0f} s  {red}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main(sys.argv[1:])
