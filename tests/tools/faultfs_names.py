"""
A ``FaultFS`` that treats names as others do: options ``case``, ``normal``, ``trim`` take names for one, ``dos`` has a
second, short name for each long one, as FAT, ``short`` has names of 143 bytes at most, as eCryptfs does, and says 255.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Sequence
from typing import Any

import pyfuse3

from faultfs_faults import fail
from faultfs_operations import FaultFS

_SHORT = 143


class NamingFS(FaultFS):
    """Finds a file under each of its names, and keeps the one that it was made with."""

    def __init__(self, backing: bytes, options: Sequence[str]) -> None:
        super().__init__(backing)
        self._options = set(options)

    def _fold(self, name: bytes) -> str:
        text = name.decode("utf-8", "surrogateescape")
        if "trim" in self._options:
            text = text.rstrip(". ")
        if "case" in self._options:
            text = text.upper()
        return unicodedata.normalize("NFC", text) if "normal" in self._options else text

    def real(self, inode: int, name: bytes) -> bytes:
        """Return what is called so in a folder, or *name*."""
        if "short" in self._options and len(name) > _SHORT:
            fail(errno.ENAMETOOLONG)
        wanted = self._fold(name)
        names = sorted(map(os.fsencode, os.listdir(self.tree.path(self._node(inode)))))
        if "dos" in self._options and name not in names:
            return next((its for its in names if name.upper() in (its.upper(), _dos_name(its))), name)
        return next((its for its in names if self._fold(its) == wanted), name)

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        return await super().lookup(parent_inode, self.real(parent_inode, name), ctx)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return await super().mkdir(parent_inode, self.real(parent_inode, name), mode, ctx)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        await super().unlink(parent_inode, self.real(parent_inode, name), ctx)

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        return await super().create(parent_inode, self.real(parent_inode, name), mode, flags, ctx)

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        old, new = self.real(parent_inode_old, name_old), self.real(parent_inode_new, name_new)
        await super().rename(parent_inode_old, old, parent_inode_new, new, flags, ctx)


def _dos_name(name: bytes) -> bytes | None:
    """Return the short name of a long one: ``LONGFI~1.MOV``. No two are the same where one is all there is."""
    stem, _, suffix = name.upper().replace(b" ", b"").partition(b".")
    if len(stem) <= 8 and len(suffix) <= 3 and b" " not in name:
        return None
    return stem[:6] + b"~1" + (b"." + suffix[:3] if suffix else b"")
