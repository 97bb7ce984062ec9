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
    """Find out by trying how a destination treats names. Where that cannot be tried, any that may be one are one."""
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
    return Naming(folds_case=True, normalises=True, trims=True, ignores=True)


def _look(dst: Top, name: bytes) -> Naming:
    """Ask for the file *name* by other names."""
    text, decomposed = name.decode(), name.replace("é".encode(), "e\u0301".encode())
    return Naming(
        folds_case=_is_there(dst, text.upper().encode()),
        normalises=decomposed != name and _is_there(dst, decomposed),
        trims=_is_there(dst, name + b".") or _is_there(dst, name + b" "),
        ignores=_is_there(dst, name + "\u200b".encode()),
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
    Return what *path*, which is there, is really called, if that is another name; else None.

    It has been made under another name then, which the destination takes for the same one: one with other capitals, the
    long name that FAT has a short one for (``LONGFI~1.MOV``), or one with characters that it does not see.
    """
    real = b""
    parts = path.split(b"/")
    for part in parts:
        real = os.path.join(real, _real_name(dst, real, part))
    return real if real != path and SPELLING.fold(real) != SPELLING.fold(path) else None


def leads_elsewhere(dst: Top, folder: bytes) -> bytes | None:
    """
    Return what *folder* is really called, if that is a name that nobody can know before; else None.

    Which short name FAT has for a long one, for instance. Other names that are one are known by ``Naming.fold``.
    """
    return spelled_otherwise(dst, folder) if _may_be_made_up(folder) else None


def _may_be_made_up(name: bytes) -> bool:
    """Is this perhaps a short name that a server or FAT has made of a long one, or one that is no text to all?"""
    if b"~" in name:
        return True
    try:
        name.decode()
    except UnicodeDecodeError:
        return True
    return False


def _real_name(dst: Top, folder: bytes, name: bytes) -> bytes:
    """Return what *name* is called in *folder*, which is only read where it may be called otherwise."""
    other = name.decode("utf-8", "surrogateescape").swapcase().encode("utf-8", "surrogateescape")
    has_case = other != name
    # Without a letter that has two cases nothing tells whether capitals make a difference.
    if not _may_be_made_up(name) and (not _is_there(dst, os.path.join(folder, other)) if has_case else name.isascii()):
        return name
    if name in _names_in(dst, folder):
        return name
    dst.names.pop(folder, None)  # it may have been made since
    names = _names_in(dst, folder)
    if name in names:
        return name
    wanted, spelled = CASE.fold(name), SPELLING.fold(name)
    alike = [its for its in names if CASE.fold(its) == wanted]
    if alike:
        return next((its for its in alike if SPELLING.fold(its) == spelled), alike[0])
    return _find_same(dst, folder, name, names)


def _names_in(dst: Top, folder: bytes) -> set[bytes]:
    if folder not in dst.names:
        fd = beneath.open_folder(folder, dir_fd=dst)
        try:
            dst.names[folder] = {os.fsencode(name) for name in os.listdir(fd)}
        finally:
            close_quietly(fd)
    return dst.names[folder]


def _find_same(dst: Top, folder: bytes, name: bytes, names: set[bytes]) -> bytes:
    """Return which of the *names* in *folder* is the same file as *name*, which is none of them; if none is, *name*."""
    try:
        fd = beneath.open_file(os.path.join(folder, name), os.O_PATH, dir_fd=dst)
    except FileNotFoundError:
        return name
    try:
        its = os.fstat(fd)  # open, it keeps its inode, also on FAT
        for other in names:
            touch(Side.DESTINATION)
            with contextlib.suppress(OSError):
                if os.path.samestat(its, beneath.stat_of(os.path.join(folder, other), dir_fd=dst)):
                    return other
    finally:
        close_quietly(fd)
    return name


def taken_as(real: bytes) -> str:
    """Say that a name is taken by another file."""
    return f"the destination has {show_path(real)} already, and takes the two names for one"
