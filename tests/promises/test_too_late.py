"""
What was given up happens all the same, later: a server executes what nobody waits for any more.

Soft mounts do so: the client gives up, and tells an error, while the request is still on its way, or waits for a disk.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_runs import check_history, config_of, delivered, transfer
from faults_mount import FaultMount, fault_mount
from support import make_tree, pattern
from trioft.core.model import MIB
from trioft.state.board import Entry

NUMBERS = itertools.count(1)
CONTENTS: dict[str, dict[bytes, bytes]] = {
    "bundle": {b"a": pattern(3000, 1), b"b": pattern(3000, 2)},
    "whole": {b"a": pattern(2 * MIB, 1)},
}
# Just before what it happens; or when all is done.
MOMENTS = ("write", "fsync", "rename", "")
HOW = {"write": ("bundle", "whole"), "truncate": ("whole",), "rename": tuple(CONTENTS)}


def _cases() -> Iterator[Any]:
    for op, changed, moment in itertools.product(HOW, (False, True), MOMENTS):
        for contents in HOW[op]:
            words = (op, contents, "changed" if changed else "same", f"before {moment}" if moment else "at the end")
            yield pytest.param(op, contents, changed, moment, id=" ".join(words).replace(" ", "-"))


@pytest.fixture(scope="module")
def mount() -> Iterator[FaultMount]:
    with fault_mount() as mounted:
        yield mounted


@pytest.mark.parametrize(("op", "contents", "changed", "moment"), list(_cases()))
async def test_what_happens_after_it_was_given_up_never_puts_wrong_content_under_a_final_name(
    op: str, contents: str, changed: bool, moment: str, mount: FaultMount, tmp_path: Path
) -> None:
    """
    Of one file an operation fails, and happens all the same, later.

    With *changed*, the source has become another version meanwhile.
    """
    source, state = tmp_path / "source", tmp_path / "state"
    number = str(next(NUMBERS))
    (mount.backing / number).mkdir()
    mount.begin()
    old = CONTENTS[contents]
    new = old | {b"a": old[b"a"][::-1]} if changed else old
    make_tree(source, dict(old.items()))

    def change(entry: Entry) -> None:
        if changed and entry.trouble is not None and (source / "a").read_bytes() == old[b"a"]:
            (source / "a").write_bytes(new[b"a"])

    mount.fail(op, f"{number}/a.*", errno="ETIMEDOUT", delayed=moment)
    told = await transfer(config_of(source, mount.place / number, state), hear=change)
    mount.ask("happen")
    if mount.ask("status")["fired"] == 0:
        assert op == "truncate"  # there was nothing to be cut off
        return
    assert told.claims_success
    assert delivered(mount.backing / number) == new
    check_history(mount, number, old, new, late=True)
