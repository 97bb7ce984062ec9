"""The board: what its figures mean, that they always add up, and that no impossible step is taken."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import found
from trioft.core.errors import Side, Trouble
from trioft.core.model import FINAL, TRANSITIONS, FileState
from trioft.state.board import Board, Entry, Totals

S = FileState


def entry_of(board: Board, size: int, state: FileState = S.SETTLING) -> Entry:
    """Put a file on the board, and bring it into *state* along the shortest way."""
    entry = board.add(b"a", found(size=size).fingerprint)
    ways: list[list[FileState]] = [[S.SETTLING]]
    for way in ways:
        if way[-1] == state:
            break
        ways += [[*way, following] for following in sorted(TRANSITIONS[way[-1]])]
    for step in way[1:]:
        board.move(entry, step)
    return entry


# --- States


@pytest.mark.parametrize("following", list(S))
@pytest.mark.parametrize("state", list(S))
async def test_impossible_transition_raises(state: FileState, following: FileState) -> None:
    """Promise 4: a step that must not happen is a bug that shows at once, and changes nothing."""
    board = Board()
    entry = entry_of(board, 1, state)
    before = board.revision
    if following == state or following in TRANSITIONS[state]:
        board.move(entry, following)
        assert entry.state == following
    else:
        with pytest.raises(ValueError, match=f"cannot go from {state} to {following}"):
            board.move(entry, following, "for a reason")
        assert (entry.state, entry.reason, board.revision) == (state, None, before)


@pytest.mark.parametrize("state", sorted(FINAL))
async def test_final_state_takes_the_file_off_the_board(state: FileState) -> None:
    """Promise 7: the board holds what is going on, not what has been."""
    board = Board()
    entry_of(board, 10, state)
    assert (board.live, board.pending_files, board.pending_bytes) == ({}, 0, 0)


async def test_listeners_hear_every_change_of_state_or_reason_once() -> None:
    """What is told is what happened: no change is missed, and none is told twice."""
    board = Board()
    heard: list[tuple[str, str | None]] = []
    board.listeners.append(lambda entry: heard.append((str(entry.state), entry.reason)))
    entry = board.add(b"a", found().fingerprint)
    for state, reason in [
        (S.SETTLING, "somebody has it open for writing"),
        (S.SETTLING, "somebody has it open for writing"),
        (S.READY, None),
        (S.WAITING, "space"),
        (S.WAITING, "retry in 1 s"),
        (S.COPYING, None),
        (S.DONE, None),
    ]:
        board.move(entry, state, reason)
    assert heard == [
        ("settling", "somebody has it open for writing"),
        ("ready", None),
        ("waiting", "space"),
        ("waiting", "retry in 1 s"),
        ("copying", None),
        ("done", None),
    ]


async def test_first_copying_is_when_the_file_was_started() -> None:
    """A second attempt does not make a file look younger."""
    board = Board()
    entry = entry_of(board, 1, S.COPYING)
    started = entry.started_at
    assert started is not None
    board.move(entry, S.WAITING, "retry")
    board.move(entry, S.COPYING)
    assert entry.started_at == started


async def test_revision_grows_with_every_change_and_with_nothing_else() -> None:
    """A viewer that has seen a revision has seen everything before it."""
    board = Board()
    seen = [board.revision]

    def grown() -> bool:
        seen.append(board.revision)
        return seen[-1] > seen[-2]

    entry = board.add(b"a", found(size=100).fingerprint)
    assert grown()
    board.move(entry, S.READY)
    assert grown()
    board.move(entry, S.READY)
    assert not grown()
    board.resize(entry, 50)
    assert grown()
    board.move(entry, S.COPYING)
    assert grown()
    board.resumed(entry, 10)
    assert grown()
    board.copied(entry, 10)
    assert grown()
    board.verified(entry, 20)
    assert grown()
    board.grow(entry, 60)
    assert grown()
    board.grow(entry, 60)
    assert not grown()
    board.lag(entry, 40, 0.5)
    assert grown()
    board.compared(entry, None)
    assert grown()
    board.compared(entry, 20)
    assert grown()
    board.patched(entry, 5)
    assert grown()
    board.set_destination("away")
    assert grown()
    board.set_destination("away")
    assert not grown()
    board.skip(b"link", "symbolic link")
    assert grown()
    board.drop(entry)
    assert grown()


# --- Figures


async def test_copied_bytes_are_no_longer_pending() -> None:
    """What is written now counts as written in this run, and is not still to do."""
    board = Board()
    entry = entry_of(board, 100, S.COPYING)
    board.copied(entry, 30)
    assert (entry.bytes_copied, board.pending_bytes) == (30, 70)
    assert (board.totals.bytes, board.totals.bytes_resumed) == (30, 0)


async def test_resumed_bytes_are_not_counted_as_written() -> None:
    """What an earlier run left at the destination is neither pending nor this run's work."""
    board = Board()
    entry = entry_of(board, 100, S.COPYING)
    board.resumed(entry, 60)
    assert (entry.bytes_copied, entry.bytes_verified, board.pending_bytes) == (60, 60, 40)
    assert (board.totals.bytes, board.totals.bytes_resumed) == (0, 60)
    board.copied(entry, 40)
    assert (board.totals.bytes, board.totals.bytes_resumed, board.pending_bytes) == (40, 60, 0)


async def test_what_this_run_wrote_itself_is_not_resumed() -> None:
    """After a failed attempt a file goes on from its checkpoint: those bytes were counted when they were written."""
    board = Board()
    entry = entry_of(board, 100, S.COPYING)
    board.copied(entry, 80)
    board.resumed(entry, 50)
    assert (entry.bytes_copied, board.pending_bytes) == (50, 50)
    assert (board.totals.bytes, board.totals.bytes_resumed) == (80, 0)
    board.copied(entry, 50)
    assert (board.totals.bytes, board.pending_bytes) == (130, 0)


async def test_bytes_written_again_are_work_but_no_progress() -> None:
    """A file is never more than complete, however often a part of it is written."""
    board = Board()
    entry = entry_of(board, 100, S.COPYING)
    board.copied(entry, 90)
    board.copied(entry, 90)
    assert (entry.bytes_copied, board.pending_bytes, board.totals.bytes) == (100, 0, 180)


async def test_resized_file_is_wholly_pending_again() -> None:
    """Another version has another size, and nothing of it is copied yet."""
    board = Board()
    entry = entry_of(board, 100, S.COPYING)
    board.copied(entry, 90)
    board.verified(entry, 80)
    board.resize(entry, 40)
    assert (entry.size, entry.bytes_copied, entry.bytes_verified, board.pending_bytes) == (40, 0, 0, 40)


async def test_grown_file_keeps_what_is_copied_of_it() -> None:
    """A recording is longer at each look: only what is new is still to be done."""
    board = Board()
    entry = entry_of(board, 100, S.COPYING)
    board.copied(entry, 90)
    board.verified(entry, 80)
    board.grow(entry, 250)
    assert (entry.size, entry.bytes_copied, entry.bytes_verified, board.pending_bytes) == (250, 90, 80, 160)
    board.copied(entry, 160)
    assert (entry.bytes_copied, board.pending_bytes, board.totals.bytes) == (250, 0, 250)


async def test_file_that_became_shorter_has_no_more_copied_than_it_holds() -> None:
    """Who truncates a recording takes from what was copied, and verified, of it; nothing is less than nothing."""
    board = Board()
    entry = entry_of(board, 100, S.COPYING)
    board.copied(entry, 90)
    board.verified(entry, 80)
    board.grow(entry, 40)
    assert (entry.size, entry.bytes_copied, entry.bytes_verified, board.pending_bytes) == (40, 40, 40, 0)


async def test_how_far_a_copy_is_behind_is_told_as_long_as_it_is_known() -> None:
    """Unknown is None, never 0: before a recording is followed, and when it is over."""
    board = Board()
    entry = entry_of(board, 100)
    assert (entry.lag_bytes, entry.lag_seconds) == (None, None)
    for count, seconds in ((30, 1.5), (0, 0.0), (None, None)):
        board.lag(entry, count, seconds)
        assert (entry.lag_bytes, entry.lag_seconds) == (count, seconds)
    assert (board.pending_bytes, board.totals) == (100, Totals())


async def test_compared_bytes_add_up_until_a_comparison_begins_anew() -> None:
    """Unknown before the first, nothing when one begins; comparing is no work on the destination."""
    board = Board()
    entry = entry_of(board, 100, S.COPYING)
    seen = [entry.bytes_compared]
    for count in (None, 30, 40, None, 100):
        board.compared(entry, count)
        seen.append(entry.bytes_compared)
    assert seen == [None, 0, 30, 70, 0, 100]
    assert (board.pending_bytes, board.totals) == (100, Totals())


async def test_patched_bytes_are_counted_for_the_file_and_for_the_run() -> None:
    """What a recorder had rewritten is told, and is a part of what was written: it is not counted twice."""
    board = Board()
    entry, other = entry_of(board, 100, S.COPYING), entry_of(board, 100, S.COPYING)
    for patched, count in ((entry, 8), (entry, 2), (other, 5)):
        board.copied(patched, count)
        board.patched(patched, count)
    assert (entry.bytes_patched, other.bytes_patched) == (10, 5)
    assert (board.totals.bytes, board.totals.bytes_patched) == (15, 15)


async def test_dropped_file_leaves_nothing_behind() -> None:
    """A file that is left for the next run is no longer to do in this one."""
    board = Board()
    board.drop(entry_of(board, 100))
    assert (board.live, board.pending_files, board.pending_bytes) == ({}, 0, 0)


async def test_what_is_no_file_is_counted_and_told_but_never_pending() -> None:
    """Links and unreadable folders are reported, with their reason, and hold nothing up."""
    board = Board()
    heard: list[Entry] = []
    board.listeners.append(heard.append)
    trouble = Trouble(Side.SOURCE, "open", b"folder", None, errno.EACCES, "Permission denied")
    board.skip(b"link", "symbolic link")
    board.fail_folder(trouble)
    assert [(entry.path, entry.state, entry.reason, entry.trouble) for entry in heard] == [
        (b"link", S.SKIPPED, "symbolic link", None),
        (b"folder", S.FAILED, str(trouble), trouble),
    ]
    assert board.totals == Totals(skipped=1, failed=1)
    assert (board.live, board.pending_files, board.pending_bytes) == ({}, 0, 0)


async def test_destination_is_told_when_it_changes() -> None:
    """A person hears once that the destination is away, and once that it is back."""
    board = Board()
    told: list[tuple[str, str]] = []
    board.notices.append(lambda what, text: told.append((what, text)))
    for text in (None, "away", "away", "still away", None, None):
        board.set_destination(text)
    assert told == [
        ("storage", "destination away"),
        ("storage", "destination still away"),
        ("storage", "the destination is usable again"),
    ]


# --- Everything together


class Figures:
    """Random steps that are legal, and what must hold after each."""

    def __init__(self, data: st.DataObject) -> None:
        self.board = Board()
        self.data = data
        self.written = 0

    def add(self) -> None:
        size = self.data.draw(st.integers(0, 1000))
        self.board.add(b"%d" % size, found(size=size).fingerprint)

    def move(self, entry: Entry) -> None:
        following = sorted({entry.state, *TRANSITIONS[entry.state]})
        self.board.move(entry, self.data.draw(st.sampled_from(following)), self.data.draw(st.sampled_from([None, "x"])))

    def resize(self, entry: Entry) -> None:
        self.board.resize(entry, self.data.draw(st.integers(0, 1000)))

    def grow(self, entry: Entry) -> None:
        self.board.grow(entry, self.data.draw(st.integers(0, 1000)))

    def resume(self, entry: Entry) -> None:
        self.board.resumed(entry, self.data.draw(st.integers(0, entry.size)))

    def copy(self, entry: Entry) -> None:
        count = self.data.draw(st.integers(0, 1000))
        self.written += count
        self.board.copied(entry, count)

    def verify(self, entry: Entry) -> None:
        self.board.verified(entry, self.data.draw(st.integers(0, entry.bytes_copied)))

    def drop(self, entry: Entry) -> None:
        self.board.drop(entry)

    def step(self) -> None:
        live = list(self.board.live.values())
        if not live:
            self.add()
            return
        steps = [self.move, self.resize, self.grow, self.resume, self.copy, self.verify, self.drop]
        chosen = self.data.draw(st.sampled_from([None, *steps, self.move, self.copy]))
        if chosen is None:
            self.add()
        else:
            chosen(self.data.draw(st.sampled_from(live)))

    def check(self) -> None:
        board, live = self.board, list(self.board.live.values())
        assert board.pending_files == len(live)
        assert board.pending_bytes == sum(entry.size - entry.bytes_copied for entry in live)
        assert all(0 <= entry.bytes_verified <= entry.bytes_copied <= entry.size for entry in live)
        assert board.totals.bytes == self.written
        assert not {entry.state for entry in live} & FINAL


@given(st.data())
async def test_figures_always_add_up(data: st.DataObject) -> None:
    """Whatever happens to files in whatever order, what is pending is what is missing, and in the end nothing is."""
    figures = Figures(data)
    for _ in range(data.draw(st.integers(0, 30))):
        before = figures.board.revision
        figures.step()
        figures.check()
        assert figures.board.revision >= before
    for entry in list(figures.board.live.values()):
        figures.board.move(entry, S.GONE)
        figures.check()
    assert figures.board.pending_bytes == 0
