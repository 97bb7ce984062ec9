"""
Markers: what stands beside a file, as NAME.done, and says that it is complete. Run in a mover.

At the source, who writes a file makes its marker. At the destination, trioft does, last of all, for those who read
there: an empty file, which is never there before its file is complete.
"""

from __future__ import annotations

import errno
import os
import stat

from trioft.core.errors import NO_MARKER, FileTrouble, Side, Trouble, trouble_of
from trioft.core.model import Root
from trioft.movers.ops import beneath
from trioft.movers.ops.files import opened
from trioft.movers.ops.folder.partials import each, sync_folder

# --- at the source ----------------------------------------------------------------------------------------------------


# --- at the destination -----------------------------------------------------------------------------------------------


def remove_marker(dst: int, target: bytes, suffix: bytes) -> None:
    """Durably remove the marker of an earlier file called *target*. What is not empty is no marker of trioft's."""
    marker = target + suffix
    try:
        if not suffix or _is_marker(dst, marker) is None:
            return
        beneath.unlink(marker, dir_fd=dst)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "unlink", marker)) from error
    sync_folder(dst, os.path.dirname(marker))


def _is_marker(dst: int, name: bytes) -> bool | None:
    """Is there a marker under this name? None: nothing is. Raises ``FileTrouble`` if it is something else."""
    try:
        status = beneath.stat_of(name, dir_fd=dst)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        raise FileTrouble(Trouble(Side.DESTINATION, "stat", name, None, errno.EEXIST, NO_MARKER))
    return True


def mark(destination: Root, targets: list[bytes], suffix: bytes) -> list[Trouble | None]:
    """
    Make the markers of *targets*, finished files: empty, and durable. One answer for each, in order.

    One that is there is fine. It lasts when its folder is durable: it and its entry are made in one step.
    """
    with opened(destination, Side.DESTINATION) as dst:

        def make(target: bytes) -> Trouble | None:
            marker = target + suffix
            try:
                if _is_marker(dst, marker) is None:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    os.close(beneath.open_file(marker, flags, 0o644, dir_fd=dst))
            except FileTrouble as error:
                return error.trouble
            except FileExistsError:
                pass  # a twin of this call, whose answer was lost, was faster
            except OSError as error:
                return trouble_of(error, Side.DESTINATION, "create", marker)
            return None

        answers = each(dst, make, targets)
        for folder in {os.path.dirname(target) for target in targets}:
            try:
                sync_folder(dst, folder)
            except FileTrouble as error:
                answers = [
                    answer or (error.trouble if os.path.dirname(target) == folder else None)
                    for target, answer in zip(targets, answers, strict=True)
                ]
    return answers
