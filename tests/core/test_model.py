"""The values that travel, and the states of a file: which may follow which."""

from __future__ import annotations

import errno
import pickle

import pytest

from trioft.core.digests import block_digest
from trioft.core.errors import Side, Trouble
from trioft.core.model import (
    BLOCK_SIZE,
    BUNDLE_BYTES,
    BUNDLE_FILE_SIZE,
    BUNDLE_FILES,
    FINAL,
    SPAN_SIZE,
    TRANSITIONS,
    VOID,
    Checkpoint,
    Ends,
    FileState,
    Fingerprint,
    Found,
    Item,
    Job,
    Manner,
    Publication,
    Result,
    Root,
    Unlisted,
    Verdict,
)

S = FileState
PRINT = Fingerprint(dev=1, ino=2, size=3, mtime_ns=4, ctime_ns=5)

LEGAL = {
    S.SETTLING: "ready growing failed gone",
    S.GROWING: "settling ready copying verifying waiting failed gone",
    S.READY: "settling copying waiting failed gone",
    S.COPYING: "settling verifying waiting done failed skipped gone",
    S.VERIFYING: "settling copying waiting done failed skipped gone",
    S.WAITING: "settling ready growing copying failed gone",
    S.DONE: "",
    S.FAILED: "",
    S.SKIPPED: "",
    S.GONE: "",
}


@pytest.mark.parametrize("state", list(S))
def test_states_follow_one_another_in_one_way(state: FileState) -> None:
    """Promise 4: what may come after a state is written down, and nothing else may."""
    assert {str(following) for following in TRANSITIONS[state]} == set(LEGAL[state].split())


def test_ends_are_final() -> None:
    """A file that is done, failed, skipped or gone stays that; if it comes back it is a new entry."""
    assert {S.DONE, S.FAILED, S.SKIPPED, S.GONE} == FINAL


def test_only_a_file_that_was_copied_or_verified_can_be_done() -> None:
    """Nothing is called done that no copier has had in its hands."""
    assert {state for state in S if S.DONE in TRANSITIONS[state]} == {S.COPYING, S.VERIFYING}


def test_a_file_may_be_followed_whenever_no_copier_has_it() -> None:
    """One that grew is followed again after a pause; one that is ready has to settle anew before it can grow."""
    assert {state for state in S if S.GROWING in TRANSITIONS[state]} == {S.SETTLING, S.WAITING}


def reachable(start: FileState) -> set[FileState]:
    seen: set[FileState] = set()
    ahead = {start}
    while ahead:
        seen |= ahead
        ahead = {following for state in ahead for following in TRANSITIONS[state]} - seen
    return seen


def test_every_state_can_be_reached_from_the_first() -> None:
    """No state exists that a file can never be in."""
    assert reachable(S.SETTLING) == set(S)


@pytest.mark.parametrize("state", sorted(set(S) - FINAL))
def test_from_every_state_a_file_can_still_be_delivered_or_vanish(state: FileState) -> None:
    """No state is a dead end, and a source may be deleted at any moment."""
    assert S.DONE in reachable(state)
    assert S.GONE in TRANSITIONS[state]


def test_attribute_changes_count_as_changes() -> None:
    """A program that sets an old modification time cannot make a fresh file look old."""
    assert PRINT.changed_ns == 5
    assert PRINT._replace(mtime_ns=9).changed_ns == 9


@pytest.mark.parametrize("field", Fingerprint._fields)
def test_every_part_of_a_fingerprint_tells_versions_apart(field: str) -> None:
    """Same name, but another device, inode, size or time: another version."""
    assert PRINT._replace(**{field: 99}) != PRINT


def test_job_is_as_large_as_its_files() -> None:
    """What is reserved for a job is what its files need."""
    items = tuple(Item(n, b"%d" % n, 0o644, PRINT._replace(size=n), False) for n in (1, 2, 3))
    assert Job(items).size == 6
    assert Job(()).size == 0


def test_no_empty_or_zero_block_has_the_digest_of_one_that_is_written_again() -> None:
    """VOID is as long as a digest, and none: it stands for no content."""
    assert len(VOID) == len(block_digest(b""))
    assert VOID not in {block_digest(bytes(size)) for size in (0, 1, 16, BUNDLE_FILE_SIZE, BLOCK_SIZE)}


def test_sizes_fit_into_each_other() -> None:
    """Spans are whole blocks, and a file that travels in a bundle is one block, so that it has one digest."""
    assert SPAN_SIZE % BLOCK_SIZE == 0
    assert BUNDLE_FILE_SIZE <= BLOCK_SIZE
    assert BUNDLE_FILE_SIZE <= BUNDLE_BYTES
    assert BUNDLE_FILES > 1


@pytest.mark.parametrize(
    "value",
    [
        Found(b"\xff\n", 0o644, PRINT),
        Ends(Root(b"/a", 1), Root(b"/b", 2)),
        Job((Item(1, b"a", 0o644, PRINT, True),), growing=True),
        Manner("readback", "rename", True, 100, True, "sha256sum"),
        Result(
            *(Verdict.TROUBLE, b"a", b"d" * 16, Trouble(Side.SOURCE, "read", b"a", 0, errno.EIO, "text"), "closed"),
            *("proved", Found(b"a", 0o644, PRINT), "not all of it", b"s" * 32),
        ),
        Checkpoint(b"a.01234567.partial", PRINT, 8, b"d" * 16, growing=True),
        Publication(b"a", b"a.01234567.partial", 0o644, PRINT, b"b", "rename"),
        Unlisted(b"a", 1, 2, b"d" * 16, b"s" * 32, "2026-01-02T03:04:05.678Z", True),
        *S,
    ],
    ids=lambda value: value if isinstance(value, FileState) else type(value).__name__,
)
def test_values_survive_the_way_to_a_mover_and_back(value: object) -> None:
    """What arrives is what was sent, of the same type."""
    copy = pickle.loads(pickle.dumps(value, protocol=5))
    assert copy == value
    assert type(copy) is type(value)
