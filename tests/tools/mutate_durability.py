"""
Take out each step that makes a transfer durable, one at a time, and see which test turns red.

Run by hand: ``.venv/bin/python tests/tools/mutate_durability.py [WORD …]``, where only mutations that contain one of
the words are tried. Each is made in a copy of the program; the tests are those that are to find it. A mutation that no
test finds is a hole in the tests, or a step that something else makes up for: the table says what is known.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = [
    ["tests/promises/test_power_cuts.py"],
    ["tests/promises/test_faults.py", "-k", "order_of_the_steps or (everything_arrives and lost)"],
]


class Mutation(NamedTuple):
    """In *module*, within *function*, *old*, or each of them, becomes *new*."""

    what: str
    module: str
    function: str
    old: str | tuple[str, ...]
    new: str
    made_up_for: str = ""  # by what, where no test can find it


MUTATIONS = [
    Mutation("bundle: no syncfs", "bundle", "settle", "linux.syncfs(self._dst)", "pass"),
    Mutation("bundle: no fsync of each file", "bundle", "_open_partial", "os.fsync(fd)", "pass"),
    Mutation("bundle: no fsync of new folders' parents", "bundle", "settle", "sync_folder(self._dst, folder)", "pass"),
    Mutation("large: no fdatasync", "large", "settle", "os.fdatasync(fd)", "pass"),
    Mutation(
        "large: an error of fdatasync is ignored",
        "large",
        "settle",
        "os.fdatasync(fd)",
        "_quietly(os.fdatasync, fd)",
        "sync_file_range meets the same error first",
    ),
    Mutation(
        "large: no fsync of the folder after create",
        "large",
        "prepare",
        "sync_folder(dst, folder)",
        "pass",
        "the fdatasync of the new file, on filesystems with one journal",
    ),
    Mutation(
        "recording: no fdatasync of what was rewritten",
        "growing",
        "settle_ranges",
        "os.fdatasync(fd)",
        "pass",
    ),
    Mutation(
        "recording: no fsync of its attributes",
        "growing",
        "finish_attributes",
        "os.fsync(dst_fd)",
        "pass",
        "the fsync of the folder, on filesystems with one journal",
    ),
    Mutation("partial without a ledger: no fsync", "resume", "_compare", "os.fsync(fd)", "pass"),
    Mutation("publish: no fsync of the folder", "publish", "publish", "sync_folder(dst, folder)", "pass"),
    Mutation(
        "publish: an error of the folder's fsync is ignored",
        "publish",
        "publish",
        "failed[folder] = error.trouble",
        "pass",
    ),
    Mutation(
        "folders: no fsync of the parent of a new one",
        "listing",
        "make_folders",
        "sync_folder(dst, folder)",
        "pass",
        "every later fsync, on filesystems with one journal",
    ),
    Mutation(
        "existing: no fsync of what is there",
        "existing",
        "_compare_contents",
        "os.fsync(there)",
        "pass",
        "its content was durable before its name was given, unless others made it",
    ),
    Mutation(
        "existing: no fsync of its folder",
        "existing",
        "_compare_contents",
        "sync_folder(dst, os.path.dirname(target))",
        "pass",
        "the fsync of the file itself, on filesystems with one journal",
    ),
    Mutation(
        "existing: neither",
        "existing",
        "_compare_contents",
        ("os.fsync(there)", "sync_folder(dst, os.path.dirname(target))"),
        "pass",
        "the fsync of the first probe, on filesystems with one journal",
    ),
    Mutation(
        "whole: checkpoint recorded before the data is durable",
        "transfer",
        "_settle_to",
        "bad = await self.settle_span(start, end)",
        "await self.record(end); bad = await self.settle_span(start, end)",
    ),
    Mutation(
        "whole: nothing is settled",
        "transfer",
        "settle_span",
        "bad: list[int] = await self.tools.call(",
        "bad: list[int] = await _nothing(",
    ),
    Mutation(
        "finish: the source goes before the ledger has a row",
        "finish",
        "_record",
        "await tools.ledger.call(_record_all, entries, to_list)",
        "pass",
    ),
    Mutation(
        "finish: the source goes although the name is not given",
        "finish",
        "finish",
        "results = await _publish(job, results, tools)",
        "unpublished, results = results, [r._replace(verdict=Verdict.PUBLISHED, target=i.path)"
        " for r, i in zip(results, job.items)]",
    ),
]
HELPERS = """

def _quietly(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        pass


async def _nothing(*arguments, **settings):
    return []
"""


def mutate(mutation: Mutation, tree: Path) -> None:
    """Make the change in the program below *tree*. Raises ``SystemExit`` where the code is not as it was."""
    (path,) = (tree / "trioft").rglob(f"{mutation.module}.py")
    text = path.read_text()
    begin, end = rf"^(?P<indent> *)(async )?def {mutation.function}\b", r"^(?P=indent)(async def|def|class) |\Z"
    found = re.search(f"{begin}.*?(?={end})", text, re.MULTILINE | re.DOTALL)
    body = found[0] if found is not None else ""
    for old in [mutation.old] if isinstance(mutation.old, str) else mutation.old:
        if body.count(old) != 1:
            raise SystemExit(f"{mutation.what}: {old!r} is not once in {mutation.module}.{mutation.function}")
        body = body.replace(old, mutation.new)
    assert found is not None
    changed = text[: found.start()] + body + text[found.end() :] + HELPERS
    path.write_text(changed)
    compile(changed, path, "exec")


def first_red(tree: Path, tests: list[str]) -> str:
    """Run *tests* on the program below *tree*; return which is the first that turns red, and why. Empty: none."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=short", "-rf", *tests]
    with subprocess.Popen(
        command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=900)
        finally:
            process.send_signal(signal.SIGINT)  # it unmounts what it has mounted
    if process.returncode == 0:
        return ""
    red = re.search(r"^FAILED \S*?::(.*?)(?: - .*)?$", said, re.MULTILINE)
    why = re.search(r"^E +(?:AssertionError: |Failed: )(.*)", said, re.MULTILINE)
    step = re.search(r"^E +(?:power cut after |call \d+ \()(.*?\))", said, re.MULTILINE)
    if red is None:
        return f"ended with {process.returncode}: {said[-300:]}"
    return "; ".join([red[1], *(found[1][:110] for found in (why, step) if found)])


def main(words: list[str]) -> None:
    chosen = [one for one in MUTATIONS if not words or any(word in one.what for word in words)]
    for mutation in [
        Mutation("nothing changed", "large", "settle", "os.fdatasync(fd)", "os.fdatasync(fd)"),
        *chosen,
    ]:
        with tempfile.TemporaryDirectory(prefix="trioft-mutation-") as place:
            tree = Path(place)
            for name in ("trioft", "tests"):
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", tree)
            mutate(mutation, tree)
            print(mutation.what, flush=True)
            for tests in TESTS:
                begun = time.monotonic()
                red = first_red(tree, tests)
                verdict = red or f"not found{f': {mutation.made_up_for}' if mutation.made_up_for else ''}"
                print(f"    {tests[0]:34} {time.monotonic() - begun:4.0f} s  {verdict}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main(sys.argv[1:])
