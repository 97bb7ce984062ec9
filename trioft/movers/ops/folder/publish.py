"""
The operations that finish: a verified partial gets its final name, or is removed. Run in a mover.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from trioft.core.errors import FileTrouble, Side, Trouble, trouble_of
from trioft.core.model import Ends, Former, Manner, Publication, Result, Root, Verdict
from trioft.core.naming import NAME_MAX, aside_of, numbered, target_of_aside
from trioft.movers.ops import beneath, linux
from trioft.movers.ops.beneath import Top
from trioft.movers.ops.files import Progress, fingerprint_of, is_same, is_steady, opened
from trioft.movers.ops.folder.markers import remove_marker
from trioft.movers.ops.folder.names import leads_elsewhere, spelled_otherwise, taken_as
from trioft.movers.ops.folder.partials import (
    as_far_as_possible,
    each,
    make_folder,
    remove_partial,
    set_times,
    sync_folder,
    touched,
)
from trioft.movers.ops.folder.seals import held_still, is_untouched
from trioft.movers.ops.identity import identify
from trioft.movers.ops.slate import touch

# What a server answers that will not replace a name: somebody has it open, or it never does.
_REFUSED = {errno.EACCES, errno.EPERM, errno.EBUSY, errno.EEXIST, errno.ETXTBSY}


def publish(
    ends: Ends, publications: list[Publication], manner: Manner, progress: Progress = lambda step: None
) -> list[Result]:
    """
    Give verified, durable partials their final names. One Result for each, in order.

    For each: the source must still be the version that was copied, and the partial what was verified, or it is read
    again; the times are set after the last close; the
    rename never replaces what *if_exists* protects, not even a file that appeared a moment ago; a marker that an
    earlier file of that name has left goes first. Then each folder is made durable once: only after that is a file
    PUBLISHED.
    """
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        steady = is_steady(dst)

        def publish_one(publication: Publication) -> Result:
            try:
                return _publish_one(src, dst, publication, manner, progress, steady)
            except FileTrouble as error:
                return Result(Verdict.TROUBLE, trouble=error.trouble)

        results = each(dst, publish_one, publications)
        failed: dict[bytes, Trouble] = {}
        published = [result.target for result in results if result.verdict == Verdict.PUBLISHED]
        for folder in {os.path.dirname(target) for target in published}:
            try:
                sync_folder(dst, folder)
            except FileTrouble as error:
                failed[folder] = error.trouble
    return [
        Result(Verdict.TROUBLE, trouble=failed[os.path.dirname(result.target)])
        if result.verdict == Verdict.PUBLISHED and os.path.dirname(result.target) in failed
        else result
        for result in results
    ]


def _publish_one(src: Top, dst: Top, what: Publication, manner: Manner, progress: Progress, steady: bool) -> Result:
    touch(Side.SOURCE)
    try:
        source = beneath.stat_of(what.path, dir_fd=src)
    except FileNotFoundError:
        return Result(Verdict.GONE)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.SOURCE, "stat", what.path)) from error
    if identify(source, what.path, top=src) != what.fingerprint:
        return Result(Verdict.CHANGED)
    if what.seal is None:
        return _give_name(src, dst, what, source, manner, steady)
    with held_still(dst, what.partial) if steady else contextlib.nullcontext():
        if is_untouched(dst, what.partial, what.seal, what.digest, progress, held=steady) is False:
            raise FileTrouble(touched(what.partial))
        return _give_name(src, dst, what, source, manner, steady)


def _give_name(src: Top, dst: Top, what: Publication, source: os.stat_result, manner: Manner, steady: bool) -> Result:
    op = "utimens"
    is_watched = steady and what.seal is not None
    touch(Side.DESTINATION)
    try:
        times = (source.st_atime_ns, source.st_mtime_ns)
        try:
            set_times(dst, what.partial, times)
        except FileNotFoundError:
            # An earlier try may have renamed it, and its answer was lost.
            target = _find_published(dst, what, manner)
            if target is None:
                raise
            return Result(Verdict.PUBLISHED, target)
        if os.path.dirname(what.target) != os.path.dirname(what.partial):
            op = "mkdir"
            for folder in make_folder(src, dst, os.path.dirname(what.target), made_up=what.target != what.path):
                sync_folder(dst, folder)
        if what.mode & 0o600 != 0o600:  # a partial's owner may always read and write it
            with as_far_as_possible("chmod", what.path):
                kept = beneath.stat_of(what.partial, dir_fd=dst).st_mode & stat.S_ISGID
                beneath.chmod(what.partial, what.mode & 0o777 | kept, dir_fd=dst)
        op = "stat"
        ours = beneath.stat_of(what.partial, dir_fd=dst)
        if ours.st_size != what.fingerprint.size:  # somebody else was at it since it was verified
            text = f"the partial has {ours.st_size} bytes, the source has {what.fingerprint.size}"
            raise FileTrouble(Trouble(Side.DESTINATION, op, what.partial, None, None, text))
        if is_watched and not _has_time(ours, source, manner):
            # Whoever writes to it now sets its time. If that is the same once more, the destination can hold no other.
            set_times(dst, what.partial, times)
            if beneath.stat_of(what.partial, dir_fd=dst).st_mtime_ns != ours.st_mtime_ns:
                raise FileTrouble(touched(what.partial))
        op = "rename"
        target = None
        if what.former is not None and _is_still_there(dst, what.former):
            target = what.former.target
            remove_marker(dst, target, manner.markers.destination)
            rename_over(dst, what.partial, target, ours)
        elif what.if_exists == "overwrite":
            target = what.target
            # In a folder that is really another one, the file would take the place of one that is still to come there.
            real = leads_elsewhere(dst, os.path.dirname(target))
            if real is None and _is_taken(dst, target):
                real = spelled_otherwise(dst, target)
            if real is not None:
                return Result(Verdict.EXISTS, target, note=taken_as(real))
            remove_marker(dst, target, manner.markers.destination)
            rename_over(dst, what.partial, target, ours, manner.name_max)
        else:
            for candidate in numbered(what.target, manner.name_max):
                try:
                    if manner.markers.destination and _is_taken(dst, candidate):
                        raise FileExistsError  # and its marker is its own
                    remove_marker(dst, candidate, manner.markers.destination)
                    beneath.rename_noreplace(what.partial, candidate, dir_fd=dst)
                    target = candidate
                    break
                except FileExistsError:
                    if what.if_exists != "rename":
                        return Result(Verdict.EXISTS, candidate)
        assert target is not None
        op = "stat"
        there = beneath.stat_of(target, dir_fd=dst)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, op, what.target)) from error
    if there.st_size != what.fingerprint.size:
        text = f"the destination says {there.st_size} bytes after the rename, the source has {what.fingerprint.size}"
        raise FileTrouble(Trouble(Side.DESTINATION, op, target, None, None, text))
    if steady and (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
        text = "another file has taken the final name right after the rename"
        raise FileTrouble(Trouble(Side.DESTINATION, op, target, None, None, text))
    if is_watched and there.st_mtime_ns != ours.st_mtime_ns:
        _take_back(dst, target, what.partial)  # somebody wrote to it when it had been looked at for the last time
        raise FileTrouble(touched(what.partial))
    return Result(Verdict.PUBLISHED, target, seal=fingerprint_of(there) if what.seal is not None else None)


def _has_time(ours: os.stat_result, source: os.stat_result, manner: Manner) -> bool:
    return abs(ours.st_mtime_ns - source.st_mtime_ns) < max(manner.resolution_ns, 1)


def _take_back(dst: int, target: bytes, partial: bytes) -> None:
    """What has just got its final name is no finished file: it is a partial again, durably."""
    with contextlib.suppress(OSError):
        beneath.rename_noreplace(target, partial, dir_fd=dst)
        sync_folder(dst, os.path.dirname(target))


def _is_still_there(dst: int, former: Former) -> bool:
    """Is the copy of an earlier version, that may be replaced, what it was when it was compared?"""
    with contextlib.suppress(OSError):
        return fingerprint_of(beneath.stat_of(former.target, dir_fd=dst)) == former.there
    return False


def _find_published(dst: int, what: Publication, manner: Manner) -> bytes | None:
    """Find a partial that is gone under its final name; not where its source may be removed: this proves too little."""
    if manner.prove_existing or what.doubtful:
        return None  # the next attempt compares every byte
    if what.former is not None:
        with contextlib.suppress(FileNotFoundError):
            there = beneath.stat_of(what.former.target, dir_fd=dst)
            if is_same(there, what.fingerprint, manner.resolution_ns):
                return what.former.target
    for candidate in numbered(what.target, manner.name_max):
        try:
            there = beneath.stat_of(candidate, dir_fd=dst)
        except FileNotFoundError:
            return None
        if is_same(there, what.fingerprint, manner.resolution_ns):
            return candidate
        if what.if_exists != "rename":
            return None
    return None


def rename_over(dst: int, partial: bytes, target: bytes, ours: os.stat_result, name_max: int = NAME_MAX) -> None:
    """
    Rename, replacing *target* if there is one.

    Where the server refuses to replace it, the old file is moved aside first, so that it cannot be lost.
    """
    try:
        _rename(dst, partial, target)
        return
    except OSError as error:
        if _has_arrived(dst, ours, partial, target):
            return  # the rename had happened: only its answer was an error
        if error.errno not in _REFUSED:
            raise
        try:
            there = beneath.stat_of(target, dir_fd=dst)
        except FileNotFoundError:
            raise error from None  # there is nothing that could be moved aside
        if stat.S_ISDIR(there.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
    # No partial's name: whatever happens before the new file is in place, nobody may take the old one for litter.
    aside = aside_of(target, partial, name_max)
    beneath.rename(target, aside, dir_fd=dst)
    try:
        _rename(dst, partial, target)
    except OSError:
        if not _has_arrived(dst, ours, partial, target):
            with contextlib.suppress(FileExistsError):  # somebody else has the name by now: the old file stays aside
                beneath.rename_noreplace(aside, target, dir_fd=dst)
            raise
    with contextlib.suppress(FileNotFoundError):
        beneath.unlink(aside, dir_fd=dst)


def _rename(dst: int, old: bytes, new: bytes) -> None:
    """
    Rename, replacing *new* if there is one; on CIFS, ``FileExistsError`` if there is one.

    Where a CIFS server refuses to replace a file, as somebody has it open, Linux marks that file for deletion: it is
    gone when it is closed, and until then it cannot be moved aside any more, and nothing else can have its name.
    """
    if linux.filesystem_magic(dst) in linux.CIFS:
        beneath.rename_noreplace(old, new, dir_fd=dst)
    else:
        beneath.rename(old, new, dir_fd=dst)


def _has_arrived(dst: int, ours: os.stat_result, partial: bytes, target: bytes) -> bool:
    """Decide by looking: is the partial gone, and what lies under the final name the file that it was?"""
    with contextlib.suppress(FileNotFoundError):
        beneath.stat_of(partial, dir_fd=dst)
        return False
    try:
        there = beneath.stat_of(target, dir_fd=dst)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino, there.st_size) == (ours.st_dev, ours.st_ino, ours.st_size)


def _is_taken(dst: int, name: bytes) -> bool:
    try:
        beneath.stat_of(name, dir_fd=dst)
    except FileNotFoundError:
        return False
    return True


def put_back(destination: Root, moved_aside: list[bytes]) -> list[bytes]:
    """
    Give files that were *moved_aside*, so that they could be replaced, their names again, durably; return which.

    Not where that name has been taken since, or the one that it was given aside was too short to hold it.
    """
    back: list[bytes] = []
    with opened(destination, Side.DESTINATION) as dst:
        for aside in moved_aside:
            if (target := target_of_aside(aside)) is None:
                continue
            touch(Side.DESTINATION)
            try:
                linux.rename_noreplace(aside, target, dst)
            except (FileExistsError, FileNotFoundError):
                continue
            except OSError as error:
                raise FileTrouble(trouble_of(error, Side.DESTINATION, "rename", aside)) from error
            sync_folder(dst, os.path.dirname(target))
            back.append(aside)
    return back


def size_of(destination: Root, partial: bytes) -> int:
    """Return how many bytes a partial has: they need no more room. None is no more than an empty one."""
    with opened(destination, Side.DESTINATION) as dst:
        try:
            return beneath.stat_of(partial, dir_fd=dst).st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "stat", partial)) from error


def discard(destination: Root, partials: list[bytes]) -> None:
    """Remove partials that will not be continued. One that is not there is fine."""
    with opened(destination, Side.DESTINATION) as dst:
        for partial in partials:
            remove_partial(dst, partial)
