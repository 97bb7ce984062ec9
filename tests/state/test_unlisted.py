"""What the ledger knows of files that no manifest lists yet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trioft.core.model import Fingerprint, Unlisted
from trioft.state import unlisted
from trioft.state.ledger import Entry, Ledger

SUM = b"s" * 16


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(str(tmp_path / "pair.sqlite"))) as one:
        yield one


def do(ledger: Ledger, function: Any, *arguments: Any) -> Any:
    with ledger.transaction():
        return function(ledger, *arguments)


def unlisted_file(target: bytes = b"a", sum: bytes | None = SUM, size: int = 1) -> Unlisted:
    return Unlisted(target, size, 5, b"d" * 16, sum)


def deliver(ledger: Ledger, *files: Unlisted, announced: bytes | None = None) -> None:
    entries = [
        Entry("delivered", file.target, file.target, Fingerprint(1, 2, file.size, 5, 6), file.digest, "")
        for file in files
    ]
    do(ledger, unlisted.record, entries, [(announced or file.target, file) for file in files])


def targets(files: list[Unlisted]) -> list[bytes]:
    return [file.target for file in files]


def test_a_file_is_to_be_listed_once_its_delivery_is_recorded(ledger: Ledger) -> None:
    """Before, nobody knows whether it will have its final name."""
    do(ledger, unlisted.announce, [unlisted_file(b"a"), unlisted_file(b"b")])
    assert do(ledger, unlisted.to_list, b"", 9) == []
    deliver(ledger, unlisted_file(b"a"))
    assert targets(do(ledger, unlisted.to_list, b"", 9)) == [b"a"]
    assert do(ledger, Ledger.execute, "SELECT event, path FROM history").fetchall() == [("delivered", b"a")]


def test_a_file_that_was_being_published_by_an_earlier_run_is_looked_at(ledger: Ledger) -> None:
    """Its delivery may have happened, and not been recorded; one of this run only has not happened yet."""
    do(ledger, unlisted.announce, [unlisted_file(b"a")])
    assert do(ledger, unlisted.next_to_read, []) is None
    do(ledger, unlisted.begin, 16)
    file = do(ledger, unlisted.next_to_read, [])
    assert (file.target, bool(file.doubtful), file.sum) == (b"a", True, None)
    assert do(ledger, unlisted.to_list, b"", 9) == []
    do(ledger, unlisted.was_read, file, b"a", SUM)
    assert targets(do(ledger, unlisted.to_list, b"", 9)) == [b"a"]
    assert do(ledger, unlisted.next_to_read, []) is None


def test_a_sum_that_was_read_lets_a_file_be_listed(ledger: Ledger) -> None:
    """It is listed under the name it has got, and not read again."""
    deliver(ledger, unlisted_file(b"a", None))
    assert do(ledger, unlisted.to_list, b"", 9) == []
    file = do(ledger, unlisted.next_to_read, [])
    assert do(ledger, unlisted.next_to_read, [b"a"]) is None
    do(ledger, unlisted.was_read, file, b"a_1", SUM)
    assert [(f.target, f.sum, f.time) for f in do(ledger, unlisted.to_list, b"", 9)] == [(b"a_1", SUM, file.time)]
    assert do(ledger, unlisted.next_to_read, []) is None


def test_what_is_listed_is_forgotten_but_not_what_was_delivered_meanwhile(ledger: Ledger) -> None:
    """A file that was replaced while its manifest was written is listed once more."""
    deliver(ledger, unlisted_file(b"a"), unlisted_file(b"b"))
    listed = do(ledger, unlisted.to_list, b"", 9)
    deliver(ledger, unlisted_file(b"b", size=2))
    do(ledger, unlisted.forget, listed)
    assert [(f.target, f.size) for f in do(ledger, unlisted.to_list, b"", 9)] == [(b"b", 2)]


def test_two_versions_under_two_names_are_both_listed(ledger: Ledger) -> None:
    """The second recording of a name is announced under the first one's name, and gets another."""
    deliver(ledger, unlisted_file(b"a"))
    do(ledger, unlisted.announce, [unlisted_file(b"a", size=2)])
    deliver(ledger, unlisted_file(b"a_1", size=2), announced=b"a")
    assert [(f.target, f.size) for f in do(ledger, unlisted.to_list, b"", 9)] == [(b"a", 1), (b"a_1", 2)]
    do(ledger, unlisted.begin, 16)
    assert do(ledger, unlisted.next_to_read, []) is None


def test_sums_of_another_algorithm_are_read_anew(ledger: Ledger) -> None:
    """Who changes the format of his manifests between two runs has in the new one what the old run left."""
    deliver(ledger, unlisted_file(b"a"), unlisted_file(b"b", b"S" * 32))
    do(ledger, unlisted.begin, 32)
    assert targets(do(ledger, unlisted.to_list, b"", 9)) == [b"b"]
    assert do(ledger, unlisted.next_to_read, []).target == b"a"
