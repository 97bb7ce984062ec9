"""
The operation that finds out which names a destination takes for one, and whose name it is that is there already.

Runs in a mover.
"""

from __future__ import annotations

import contextlib
import errno
import os

from trioft.core.errors import FileTrouble, Remedy, Side, classify, show_path, trouble_of
from trioft.core.folding import CASE, LONGEST, SPELLING, Naming
from trioft.core.model import Root
from trioft.core.naming import PROBE
from trioft.movers.ops import beneath
from trioft.movers.ops.beneath import Top
from trioft.movers.ops.files import close_quietly, opened
from trioft.movers.ops.slate import touch

_SHORTEST = 64  # bytes of a name that every destination holds
_NOT_THIS_NAME = {errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG}


def find_naming(destination: Root) -> Naming:
    """Find out by trying how a destination treats names. What cannot be tried is taken for usual."""
    with opened(destination, Side.DESTINATION) as dst:
        touch(Side.DESTINATION)
        try:
            most = os.fstatvfs(dst).f_namemax or LONGEST
            unique = PROBE + b"names-" + os.urandom(8).hex().encode()
            name_max = _measure(dst, unique, min(most, LONGEST))
            for name in (unique + "-é".encode(), unique):
                if _make(dst, name):
                    try:
                        return _look(dst, name)._replace(name_max=name_max)
                    finally:
                        _remove(dst, name)
        except OSError as error:
            trouble = trouble_of(error, Side.DESTINATION, "create", b"")
            if classify(trouble) == Remedy.DESTINATION:
                raise FileTrouble(trouble) from error
    return Naming()


def _look(dst: Top, name: bytes) -> Naming:
    """Ask for the file *name* by other names."""
    text, decomposed = name.decode(), name.replace("é".encode(), "e\u0301".encode())
    return Naming(
        folds_case=_is_there(dst, text.upper().encode()),
        normalises=decomposed != name and _is_there(dst, decomposed),
        trims=_is_there(dst, name + b".") or _is_there(dst, name + b" "),
    )


def _measure(dst: Top, unique: bytes, most: int) -> int:
    """Return how many bytes a name may have: what a filesystem says of itself is a guess, where it encrypts names."""
    low, high = _SHORTEST, most
    middle = high
    while low < high:
        if _make(dst, name := unique.ljust(middle, b"n")):
            _remove(dst, name)
            low = middle
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    return low


def _make(dst: Top, name: bytes) -> bool:
    try:
        close_quietly(beneath.open_file(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=dst))
    except OSError as error:
        if error.errno not in _NOT_THIS_NAME:
            raise
        return False
    return True


def _remove(dst: Top, name: bytes) -> None:
    """Remove a file, at the second try if need be: what stays is cleared up as what a killed probe leaves."""
    for _ in range(2):
        with contextlib.suppress(OSError):
            beneath.unlink(name, dir_fd=dst)
            return


def _is_there(dst: Top, name: bytes) -> bool:
    try:
        beneath.stat_of(name, dir_fd=dst)
    except OSError as error:
        if error.errno != errno.ENOENT and error.errno not in _NOT_THIS_NAME:
            raise
        return False
    return True


def spelled_otherwise(dst: Top, path: bytes) -> bytes | None:
    """
    Return what *path*, which is there, is really called, if that has other capitals; else None.

    It has been made under another name then, which the destination takes for the same one.
    """
    real = b""
    parts = path.split(b"/")
    for part in parts:
        real = os.path.join(real, _real_name(dst, real, part))
    return real if real != path and SPELLING.fold(real) != SPELLING.fold(path) else None


def _real_name(dst: Top, folder: bytes, name: bytes) -> bytes:
    """Return what *name* is called in *folder*, which is only read where capitals make no difference."""
    other = name.decode("utf-8", "surrogateescape").swapcase().encode("utf-8", "surrogateescape")
    if other == name or not _is_there(dst, os.path.join(folder, other)):
        return name
    if folder not in dst.names:
        fd = beneath.open_folder(folder, dir_fd=dst)
        try:
            dst.names[folder] = {os.fsencode(name) for name in os.listdir(fd)}
        finally:
            close_quietly(fd)
    names = dst.names[folder]
    if name in names:
        return name
    wanted, spelled = CASE.fold(name), SPELLING.fold(name)
    alike = [its for its in names if CASE.fold(its) == wanted]
    return next((its for its in alike if SPELLING.fold(its) == spelled), alike[0] if alike else name)


def taken_as(real: bytes) -> str:
    """Say that a name is taken by another file."""
    return f"the destination has {show_path(real)} already, and takes the two names for one"
