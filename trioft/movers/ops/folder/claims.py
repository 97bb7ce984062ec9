"""
The operations behind claims: made, beaten, taken away. Run in a mover.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from trioft.core.claim import CLAIM, CLAIMING, STALE, Claimed, Holder, Standing, content_of, holder_in
from trioft.core.errors import FileTrouble, Remedy, Side, classify, trouble_of
from trioft.core.model import Root
from trioft.movers.ops import beneath, linux
from trioft.movers.ops.files import close_quietly, opened
from trioft.movers.ops.slate import touch

_LARGEST = 64 * 1024  # bytes of a claim that is read
_TRIES = 40  # times that one looks whether it is one's turn
_PAUSE = 0.05  # seconds between two
_FORGOTTEN = 30.0  # seconds after which whoever has the turn, on another machine, is taken for killed
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def claim(destination: Root, name: bytes, mine: Holder) -> Claimed:
    """
    Make *name* a claim of *mine*, unless it is somebody's who lives; who does not is taken over from.

    That a claim cannot be written is said, and no trouble. Raises ``FileTrouble`` where the destination is away.
    """
    with opened(destination, Side.DESTINATION) as dst:
        made = CLAIMING + mine.token.encode()
        try:
            with contextlib.suppress(FileNotFoundError):
                beneath.unlink(made, dir_fd=dst)  # a mover was killed that had begun this
            now = _write(dst, made, content_of(mine, _now()))
        except OSError as error:
            there = _read(dst, name)
            if there is not None and lives(there[0], time.time() - there[1], mine):
                return Claimed(holder=there[0])
            return _not_written(error)
        try:
            return _take(dst, name, made, now, mine)
        except OSError as error:
            return _not_written(error)
        finally:
            with contextlib.suppress(OSError):
                beneath.unlink(made, dir_fd=dst)


def beat(destination: Root, name: bytes, mine: Holder) -> Claimed:
    """Say that *mine* still lives. A claim that is not there any more is made again, if nobody else has."""
    with opened(destination, Side.DESTINATION) as dst:
        there = _read(dst, name)
        if there is not None and there[0] is not None and there[0].token == mine.token:
            touch(Side.DESTINATION)
            try:
                fd = beneath.open_file(name, os.O_WRONLY, dir_fd=dst)
                try:
                    os.pwrite(fd, content_of(mine, _now()), 0)
                finally:
                    os.close(fd)
            except OSError as error:
                return _not_written(error)
            return Claimed()
    return claim(destination, name, mine)


def release(destination: Root, name: bytes, mine: Holder) -> None:
    """Take the claim *name* away, if it is *mine*."""
    with opened(destination, Side.DESTINATION) as dst:
        there = _read(dst, name)
        if there is not None and there[0] is not None and there[0].token in (mine.token, _NOBODY.token):
            touch(Side.DESTINATION)
            try:
                beneath.unlink(name, dir_fd=dst)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise FileTrouble(trouble_of(error, Side.DESTINATION, "unlink", name)) from error


def lives(holder: Holder | None, age: float, mine: Holder) -> bool:
    """
    Return whether the holder of a claim, which was beaten *age* seconds ago, is still at work.

    A process of this machine is looked for; whoever is elsewhere has to be heard of now and then.
    """
    if holder == _NOBODY:
        return False
    is_fresh = abs(age) < STALE
    if holder is None:
        return is_fresh  # it is being written, or it is none
    if mine.began and (holder.boot, holder.pids, holder.pid, holder.began) == (
        mine.boot,
        mine.pids,
        mine.pid,
        mine.began,
    ):
        # This very process, which has the pair to itself: a job that has ended could not take its claim away.
        return False
    if mine.boot and (holder.boot, holder.pids) == (mine.boot, mine.pids):
        began = linux.process_began(holder.pid)
        return began is not None and holder.began in (0, began)
    is_of_before = mine.machine and (holder.machine, holder.host) == (mine.machine, mine.host)
    if is_of_before and holder.boot and holder.boot != mine.boot and mine.boot:
        return False  # this machine has been started anew since
    return is_fresh


def read_claims(destination: Root, names: list[bytes], mine: Holder) -> list[Standing]:
    """Return who holds the claims *names*, and whether he lives; those that are gone by now are left out."""
    standing = []
    with opened(destination, Side.DESTINATION) as dst:
        for name in names:
            if (there := _read(dst, name)) is not None:
                standing.append(Standing(name, there[0], lives(there[0], time.time() - there[1], mine)))
    return standing


def _take(dst: int, name: bytes, made: bytes, now: float, mine: Holder) -> Claimed:
    """Give what was *made* the *name* of a claim, if nobody lives who has it; *now* is the time at the destination."""
    with _by_turns(dst, CLAIMING + b"turn-" + name[len(CLAIM) :], now, mine) as is_ours:
        there = _read(dst, name)
        if there is not None and lives(there[0], now - there[1], mine):
            return Claimed(holder=there[0] or _UNKNOWN)
        if not is_ours:
            return Claimed(holder=_UNKNOWN)
        touch(Side.DESTINATION)
        beneath.rename(made, name, dir_fd=dst)
        return Claimed(instead_of=there[0] if there is not None and there[0] != _NOBODY else None)


@contextlib.contextmanager
def _by_turns(dst: int, turn: bytes, now: float, mine: Holder) -> Iterator[bool]:
    """
    Keep others out who look at the same claim; yield False if it did not become our turn.

    Two who find a claim stale would else both take it: what the one has put there, the other would take for that.
    The file *turn* is there at once with what it holds: one that is empty was left by a power cut, and not just begun.
    """
    is_ours = False
    ready = CLAIMING + b"ready-" + mine.token.encode()
    with contextlib.suppress(FileNotFoundError):
        beneath.unlink(ready, dir_fd=dst)  # a mover was killed that had begun this
    _write(dst, ready, content_of(mine, _now()))
    for _ in range(_TRIES):
        try:
            beneath.rename_noreplace(ready, turn, dir_fd=dst)
            is_ours = True
            break
        except FileExistsError:
            holder, at = _read(dst, turn) or (_NOBODY, now)
            if holder is not None and holder.token == mine.token:
                is_ours = True  # a mover was killed that had it for us
                beneath.unlink(ready, dir_fd=dst)
                break
            if now - at > _FORGOTTEN or not lives(holder, now - at, mine):
                with contextlib.suppress(FileNotFoundError):
                    beneath.unlink(turn, dir_fd=dst)
            time.sleep(_PAUSE)
    try:
        yield is_ours
    finally:
        with contextlib.suppress(OSError):
            beneath.unlink(turn if is_ours else ready, dir_fd=dst)


_NOBODY = Holder("", 0, 0, "", "", "", "", "", "", "")
_UNKNOWN = Holder("a host that nobody knows", 0, 0, "", "", "", "", "", "a moment ago", "")


def _write(dst: int, path: bytes, content: bytes) -> float:
    """Write a new file, durably: no power cut leaves half of it. Return when that was by the destination's clock."""
    touch(Side.DESTINATION)
    fd = beneath.open_file(path, _WRITE, 0o644, dir_fd=dst)
    try:
        try:
            if os.write(fd, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _sync(fd)
            now = os.fstat(fd).st_mtime
        finally:
            os.close(fd)
        return now
    except OSError:
        with contextlib.suppress(OSError):
            beneath.unlink(path, dir_fd=dst)
        raise


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # some servers cannot
            raise


def _read(dst: int, path: bytes) -> tuple[Holder | None, float] | None:
    """Return who holds a claim, and when it was written last; None where there is none that can be read."""
    touch(Side.DESTINATION)
    try:
        fd = beneath.open_file(path, os.O_RDONLY | os.O_NONBLOCK, dir_fd=dst)
    except OSError as error:
        _unless_away(error)
        return None
    try:
        content = os.read(fd, _LARGEST)
        # It had content when it got its name: a power cut has taken that, and whoever held it.
        return (holder_in(content) if content else _NOBODY), os.fstat(fd).st_mtime
    except OSError as error:
        _unless_away(error)
        return None
    finally:
        close_quietly(fd)


def _now() -> str:
    from trioft.core.units import timestamp  # slow to load, and movers that copy need none

    return timestamp(datetime.now(UTC))


def _not_written(error: OSError) -> Claimed:
    _unless_away(error)
    return Claimed(why_not=error.strerror or str(error))


def _unless_away(error: OSError) -> None:
    """Raise ``FileTrouble`` if *error* says that the whole destination is gone."""
    trouble = trouble_of(error, Side.DESTINATION, "claim", b"")
    if classify(trouble) == Remedy.DESTINATION:
        raise FileTrouble(trouble) from error
