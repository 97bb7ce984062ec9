"""The lock: who may open a ledger."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import PATIENCE
from trioft.core.errors import LockedError, UnusableError
from trioft.state.lock import Lock


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "pair.sqlite")


# --- the lock ---------------------------------------------------------------------------------------------------------

_HOLDER = """
import sys, time
from trioft.state.lock import Lock

lock = Lock(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def holder(path: str) -> Iterator[subprocess.Popen[str]]:
    """Run another process that holds the lock."""
    command = [sys.executable, "-c", _HOLDER, path]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    """Two agents never work on one pair, and a person learns which process to look at."""
    path = str(tmp_path / "state" / "pair.lock")
    with holder(path) as process:
        with pytest.raises(LockedError, match=rf"process {process.pid}\b") as caught:
            Lock(path)
        assert caught.value.hint is not None
        assert caught.value.exit_code == 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_a_lock_is_free_again_when_its_process_ends(number: signal.Signals, tmp_path: Path) -> None:
    """The kernel releases it: nobody ever has to remove a lock file by hand."""
    path = str(tmp_path / "pair.lock")
    with holder(path) as process:
        process.send_signal(number)
        process.wait(PATIENCE)
        Lock(path).release()


def test_a_released_lock_can_be_taken_and_names_its_new_holder(tmp_path: Path) -> None:
    """What a former holder left in the file is not told of the next one."""
    path = str(tmp_path / "pair.lock")
    Path(path).write_text("123456789012345\n")
    Lock(path).release()
    lock = Lock(path)
    with pytest.raises(LockedError, match=rf"process {os.getpid()}$"):
        Lock(path)
    lock.release()


def test_a_state_directory_that_cannot_be_made_is_an_error_with_a_hint(tmp_path: Path) -> None:
    """A file in the way of the state directory is not a bug in trioft."""
    (tmp_path / "file").touch()
    with pytest.raises(UnusableError, match="cannot use the state directory") as caught:
        Lock(str(tmp_path / "file" / "pair.lock"))
    assert caught.value.hint is not None
    assert "--state-dir" in caught.value.hint


def test_the_state_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Names of files can be as confidential as the files."""
    lock = Lock(str(tmp_path / "state" / "pair.lock"))
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    lock.release()
