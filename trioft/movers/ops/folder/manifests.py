"""
The operations of manifests: sums of what the destination holds, and the files that list them. Run in a mover.

A manifest gets its name as any file does: written under a partial name, made durable, read back, renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Any

import xxhash

from trioft.core import ascmhl, manifest
from trioft.core.answers import Step
from trioft.core.ascmhl import Creator, Hash, Link, Record
from trioft.core.digests import file_digest
from trioft.core.errors import FileTrouble, Side, Trouble, mismatch, trouble_of
from trioft.core.model import BLOCK_SIZE, MIB, Fingerprint, Result, Root, Unlisted, Verdict
from trioft.core.naming import numbered, partial_of
from trioft.movers.ops import beneath
from trioft.movers.ops.files import (
    READ,
    Progress,
    close_quietly,
    forget,
    is_same,
    opened,
    pieces,
    read_exactly,
    status_of,
)
from trioft.movers.ops.folder.partials import close_written, remove_partial, sync_folder, write_all
from trioft.movers.ops.folder.publish import rename_over

_LARGEST = 256 * MIB  # what a manifest may have that is read as a whole; that of a million files has half of it

Version = tuple[int, int]  # size and modification time: some servers make up all the rest


def sum_delivered(
    destination: Root, file: Unlisted, kind: str, resolution_ns: int, by_number: bool, progress: Progress
) -> Result:
    """
    Read a delivered file at the destination, and return its sum: SUMMED, *target* and *sum*.

    It is read from behind the page cache, and compared with the digest of what was delivered: other bytes are a
    trouble. GONE and CHANGED say that it is not there any more, or not as it was delivered. One that is *doubtful* may
    have got its name or not: it may also be, *by_number*, one of those that are given where the name is taken.
    """
    with opened(destination, Side.DESTINATION) as dst:
        verdict = Verdict.GONE
        for target in numbered(file.target) if file.doubtful and by_number else (file.target,):
            fd = _open(dst, target)
            if fd is None:
                break
            try:
                verdict = Verdict.CHANGED
                if is_same(status_of(fd, Side.DESTINATION, target), _version(file), resolution_ns):
                    hasher = manifest.hasher(kind)
                    digest = _read(fd, target, file.size, hasher, progress)
                    if file.digest in (None, digest):
                        return Result(Verdict.SUMMED, target, sum=hasher.digest())
                    if not file.doubtful:
                        text = "the destination holds other bytes than were delivered"
                        raise FileTrouble(Trouble(Side.DESTINATION, "read", target, None, None, text))
            finally:
                close_quietly(fd)
    return Result(verdict)


def _version(file: Unlisted) -> Fingerprint:
    return Fingerprint(0, 0, file.size, file.mtime_ns, 0)


def _open(dst: int, path: bytes) -> int | None:
    try:
        return beneath.open_file(path, READ, dir_fd=dst)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "open", path)) from error


def _read(fd: int, path: bytes, size: int, hasher: manifest.Hasher, progress: Progress) -> bytes:
    """Read a file of the destination, have *hasher* take it, and return its digest as the ledger has it."""
    digests = bytearray()
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for offset in range(0, size, BLOCK_SIZE):
        length, block = min(BLOCK_SIZE, size - offset), xxhash.xxh3_128()
        for _, piece in pieces(fd, Side.DESTINATION, path, offset, length):
            hasher.update(piece)
            block.update(piece)
        forget(fd, offset, length)  # nobody else is going to need it
        digests += block.digest()
        progress(Step("read", length))
    return file_digest(bytes(digests))


def write_sums(destination: Root, path: bytes, sums: dict[bytes, bytes]) -> bool:
    """Add *sums* to the manifest *path*, or begin it. Returns whether it has changed."""
    with opened(destination, Side.DESTINATION) as dst, _alone_in(dst, os.path.dirname(path)):
        old, version = _content(dst, path)
        new = manifest.with_sums(old or b"", sums)
        if new != old:
            _write(dst, path, new, version)
        else:  # perhaps by an attempt that was cut short just then
            sync_folder(dst, os.path.dirname(path))
        return new != old


@contextlib.contextmanager
def _alone_in(dst: int, folder: bytes) -> Iterator[None]:
    """
    Keep other movers of this machine from writing manifests in *folder*; a trouble, while one does.

    On network filesystems, which mostly have no such lock, ``_write`` finds out what others have done, if only up to a
    moment before the rename.
    """
    try:
        fd = beneath.open_folder(folder, dir_fd=dst)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "open", folder)) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileTrouble(_overtaken("lock", folder)) from error
        except OSError:
            pass
        yield
    finally:
        close_quietly(fd)


def _overtaken(op: str, path: bytes) -> Trouble:
    return Trouble(Side.DESTINATION, op, path, None, errno.EAGAIN, "somebody else writes manifests there too")


def _content(dst: int, path: bytes) -> tuple[bytes | None, Version | None]:
    """Return what a file of the destination holds, and which version that is; nothing if there is none."""
    fd = _open(dst, path)
    if fd is None:
        return None, None
    try:
        status = status_of(fd, Side.DESTINATION, path)
        if status.st_size > _LARGEST:
            text = f"it has {status.st_size} bytes: no manifest that trioft would read"
            raise FileTrouble(Trouble(Side.DESTINATION, "read", path, None, errno.EFBIG, text))
        content = read_exactly(fd, Side.DESTINATION, path, 0, status.st_size)
        return bytes(content), (status.st_size, status.st_mtime_ns)
    finally:
        close_quietly(fd)


def _write(dst: int, path: bytes, data: bytes, version: Version | None) -> None:
    """
    Give *path*, of which this *version* was read, new content, all at once: after a crash it has the old or the new.

    Others may write there too, another trioft for one: each has a partial of its own, and what one of them has added
    meanwhile is a trouble, not lost.
    """
    partial, op = partial_of(path, *struct.unpack("QQ", os.urandom(16))), "create"
    try:
        fd = beneath.open_file(
            partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=dst
        )
        try:
            write_all(fd, partial, 0, memoryview(data))
            op = "fsync"
            os.fsync(fd)
            op = "read back"
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if read_exactly(fd, Side.DESTINATION, partial, 0, len(data)) != data:
                raise FileTrouble(mismatch(partial, 0))
            ours = status_of(fd, Side.DESTINATION, partial)
        except BaseException:
            close_quietly(fd)
            raise
        close_written(fd, partial)
        op = "rename"
        if _version_of(dst, path) != version:
            raise FileTrouble(_overtaken(op, path))
        rename_over(dst, partial, path, ours)
    except (FileTrouble, OSError) as error:
        with contextlib.suppress(FileTrouble):
            remove_partial(dst, partial)
        if isinstance(error, FileTrouble):
            raise
        raise FileTrouble(trouble_of(error, Side.DESTINATION, op, path)) from error
    sync_folder(dst, os.path.dirname(path))


def _version_of(dst: int, path: bytes) -> Version | None:
    try:
        status = beneath.stat_of(path, dir_fd=dst)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "stat", path)) from error
    return status.st_size, status.st_mtime_ns


# --- ASC MHL ----------------------------------------------------------------------------------------------------------


def find_histories(destination: Root, folders: list[bytes], per: str) -> list[bytes]:
    """
    Return for each of *folders* which folder's history documents its files.

    It is the nearest one at or above it that there is. Where there is none, one is begun: *per* ``folder`` for each
    folder at the top of the destination, else for the destination as a whole. The destination's own documents what has
    such a folder only if it came with the files, and was begun by somebody else.
    """
    found: list[bytes] = []
    known: dict[bytes, bool] = {}
    with opened(destination, Side.DESTINATION) as dst:
        for folder in folders:
            top = folder.split(b"/", 1)[0] if per == "folder" else b""
            place = folder
            while place != top and not _has_history(dst, place, known):
                place = os.path.dirname(place)
            if place and place == top and not _has_history(dst, top, known) and _came_along(dst, known):
                place = b""
            found.append(place)
    return found


def _has_history(dst: int, folder: bytes, known: dict[bytes, bool]) -> bool:
    if folder not in known:
        try:
            beneath.stat_of(_in(folder, ascmhl.CHAIN), dir_fd=dst)
            known[folder] = True
        except (FileNotFoundError, NotADirectoryError):
            known[folder] = False
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "stat", folder)) from error
    return known[folder]


def _came_along(dst: int, known: dict[bytes, bool]) -> bool:
    """Is there a history of the whole destination that was begun by somebody else than trioft?"""
    if not _has_history(dst, b"", known):
        return False
    links, generations = _history(dst, b"")
    return bool(links) and generations[0].tool != "trioft"


def _in(folder: bytes, *name: bytes) -> bytes:
    return os.path.join(folder, ascmhl.FOLDER, *name)


def append_generation(
    destination: Root, folder: bytes, files: list[Unlisted], creator: Creator, progress: Progress
) -> list[bytes]:
    """
    Document *files*, which have their sums, in a new generation of the history of *folder*; begin it if need be.

    Returns those that are not what an earlier generation says they are. A file that an earlier one has is verified, or
    has failed; where that one has other formats only, the file is read, and its hash in one of them is in the new
    generation too. A chain that cannot be read, or a generation that was altered, is a trouble: nothing is built upon
    it. Done twice, there are two generations that say the same.
    """
    with contextlib.ExitStack() as stack:
        dst = stack.enter_context(opened(destination, Side.DESTINATION))
        _make_folder(dst, folder)
        stack.enter_context(_alone_in(dst, _in(folder)))
        version = _version_of(dst, _in(folder, ascmhl.CHAIN))
        links, generations = _history(dst, folder)
        known: dict[str, list[Hash]] = {}
        for generation in generations:
            for path, hashes in generation.hashes.items():
                known.setdefault(path, []).extend(hashes)
        records, differ = [], []
        for file in files:
            record = _record(dst, folder, file, known, progress)
            records.append(record)
            if any(its.action == "failed" for its in record.hashes):
                differ.append(file.target)
        numbers = [number for link in links if (number := ascmhl.generation_number(link.name.encode())) is not None]
        number = max(len(links), *numbers, 0) + 1
        name = ascmhl.generation_name(number, ascmhl.folder_name(destination.path, folder), creator.time)
        data = ascmhl.write_generation(records, creator)
        _write(dst, _in(folder, name), data, None)
        links.append(Link(str(len(links) + 1), name.decode(), ascmhl.c4_of(data)))
        _write(dst, _in(folder, ascmhl.CHAIN), ascmhl.write_chain(links), version)
    return differ


def _make_folder(dst: int, folder: bytes) -> None:
    try:
        beneath.mkdir(_in(folder), dir_fd=dst)
    except FileExistsError:
        return
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "mkdir", _in(folder))) from error
    sync_folder(dst, folder)


def _history(dst: int, folder: bytes) -> tuple[list[Link], list[ascmhl.Generation]]:
    """
    Read the chain of a history and its generations.

    A generation that is there, but not in the chain, was written as a run was cut short, or its chain was replaced by
    one that came with the files: it belongs to it.
    """
    chain = _in(folder, ascmhl.CHAIN)
    links = _understood(chain, ascmhl.read_chain, _content(dst, chain)[0])
    try:
        fd = beneath.open_folder(_in(folder), dir_fd=dst)
        try:
            names = [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            close_quietly(fd)
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "read", _in(folder))) from error
    listed = {link.name for link in links}
    strays = [name for name in names if ascmhl.generation_number(name) and ascmhl.name_in_xml(name)]
    generations = []
    for link in links:
        path = _in(folder, link.name.encode())
        data, _ = _content(dst, path)
        if data is None or ascmhl.c4_of(data) != link.c4:
            text = "a generation of this ASC MHL history is not there, or is not what its chain says"
            raise FileTrouble(Trouble(Side.DESTINATION, "read", path, None, None, text))
        generations.append(_understood(path, ascmhl.read_generation, data))
    for name in sorted(name for name in strays if name.decode() not in listed):
        data = _content(dst, _in(folder, name))[0] or b""
        generations.append(_understood(_in(folder, name), ascmhl.read_generation, data))
        links.append(Link(str(len(links) + 1), name.decode(), ascmhl.c4_of(data)))
    return links, generations


def _understood(path: bytes, read: Any, data: bytes | None) -> Any:
    if data is None:
        return []
    try:
        return read(data)
    except ascmhl.Unreadable as error:
        text = f"this file of an ASC MHL history cannot be understood: {error}"
        raise FileTrouble(Trouble(Side.DESTINATION, "read", path, None, None, text)) from None


def _record(dst: int, folder: bytes, file: Unlisted, known: dict[str, list[Hash]], progress: Progress) -> Record:
    assert file.sum is not None
    path = (file.target[len(folder) + 1 :] if folder else file.target).decode("utf-8")
    earlier = [its for its in known.get(path, ()) if its.action != "failed"]
    text = ascmhl.text_of(ascmhl.FORMAT, file.sum)
    same = [its for its in earlier if its.format == ascmhl.FORMAT]
    hashes: tuple[Hash, ...]
    if not earlier:
        hashes = (Hash(ascmhl.FORMAT, text, "original"),)
    elif same:
        hashes = (Hash(ascmhl.FORMAT, text, "verified" if same[0].text == text else "failed"),)
    else:
        its = earlier[0]
        now = _hash_of(dst, file, its.format, progress)
        action = "verified" if now == its.text else "failed"
        hashes = (Hash(its.format, now, action), Hash(ascmhl.FORMAT, text, action))
    return Record(path, file.size, file.mtime_ns, hashes)


def _hash_of(dst: int, file: Unlisted, hash_format: str, progress: Progress) -> str:
    fd = _open(dst, file.target)
    if fd is None:
        text = "it is not there any more"
        raise FileTrouble(Trouble(Side.DESTINATION, "open", file.target, None, None, text))
    try:
        hasher = ascmhl.hasher(hash_format)
        _read(fd, file.target, file.size, hasher, progress)
        return ascmhl.text_of(hash_format, hasher.digest())
    finally:
        close_quietly(fd)
