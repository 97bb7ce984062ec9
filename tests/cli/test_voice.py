"""What a command says in sentences: what concerns many files is not said of each."""

from __future__ import annotations

from typing import cast

from trioft.cli.output import Outlet
from trioft.cli.voice import Voice
from trioft.core.model import FileState, Wait
from trioft.state.board import Entry


class Lines:
    """Takes what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def put(self, text: str) -> None:
        self.said.append(text)


def waiting(number: int, reason: str, state: FileState = FileState.WAITING) -> Entry:
    wait = Wait.SPACE if state == FileState.WAITING else None
    return Entry(id=number, path=b"f%d" % number, size=1, job=None, state=state, reason=reason, wait=wait)


def test_that_there_is_no_space_is_said_once_for_all_files() -> None:
    """The first is named; that there are others is said once, and again only for another reason, or later."""
    lines = Lines()
    voice = Voice(lambda: "warning", cast(Outlet, lines), as_json=False)
    for number in range(50):
        voice.file_changed(waiting(number, "space: the disk is full"))
    first = "trioft: warning: f0: waiting: space: the disk is full"
    assert lines.said == [first, "trioft: warning: other files wait for the same: space: the disk is full"]
    voice.file_changed(waiting(50, "space: no inodes"))
    assert lines.said[2:] == ["trioft: warning: f50: waiting: space: no inodes"]
    for number in range(50):
        voice.file_changed(waiting(number, "", FileState.DONE))
    voice.file_changed(waiting(51, "space: the disk is full"))
    assert lines.said[3:] == ["trioft: warning: f51: waiting: space: the disk is full"]
