"""
The operations of ``faultfs``, in which anything can go wrong.

The kernel keeps no names and no attributes, so that each operation arrives here. ``syncfs`` does not, as on most
mounted filesystems: who works here has to fsync each file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

import pyfuse3

from faultfs_faults import Faults, fail
from faultfs_rules import Rule
from faultfs_tree import Node

_FREE = 1 << 40
_FRAGMENT = 4096


class Handle:
    """An open file, or folder."""

    def __init__(self, node: Node, fd: int = -1, names: Sequence[bytes] = ()) -> None:
        self.node, self.fd, self.names = node, fd, names


class FaultFS(Faults, pyfuse3.Operations):
    """The operations, each of which happens through ``act``."""

    def __init__(self, place: bytes) -> None:
        super().__init__(place)
        self.handles: dict[int, Handle] = {}
        self._next_handle = 1

    def _node(self, number: int) -> Node:
        self.check_power()
        try:
            return self.tree.node(number)
        except OSError as error:
            fail(error.errno or errno.EIO)

    def _handle(self, fh: int) -> Handle:
        """Return an open file, unless the power was cut since it was opened."""
        self.check_power()
        handle = self.handles[fh]
        if self.tree.nodes.get(handle.node.number) is not handle.node:
            fail(errno.ESTALE)
        return handle

    def _paths(self, parent: Node, name: bytes) -> tuple[bytes, ...]:
        return (os.path.join(self.tree.shown(parent), name),)

    def _add(self, handle: Handle) -> int:
        number, self._next_handle = self._next_handle, self._next_handle + 1
        self.handles[number] = handle
        if handle.fd >= 0:
            handle.node.opened.append(handle.fd)
        return number

    def _gain(self, parent: Node, name: bytes) -> None:
        """There is going to be room for what a file has taken."""
        if self.free is not None and os.path.lexists(path := os.path.join(self.tree.path(parent), name)):
            self.free += os.lstat(path).st_size

    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        status = self.tree.status(node)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.number
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = 0
        for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks"):
            setattr(entry, name, getattr(status, name))
        for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
            setattr(entry, name, getattr(status, name))
        return entry

    # --- names

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        parent = self._node(parent_inode)
        if name in (b".", b".."):
            parent = parent if name == b"." else parent.parent or parent
            return self._attributes(parent)
        paths = self._paths(parent, name)
        return await self.act("lookup", paths, lambda _: self._attributes(self.tree.child(parent, name)))

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        node = self._node(inode)
        return await self.act("getattr", (self.tree.shown(node),), lambda _: self._attributes(node))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        parent = self._node(parent_inode)

        def make(_: Rule | None) -> pyfuse3.EntryAttributes:
            os.mkdir(os.path.join(self.tree.path(parent), name), mode & 0o777)
            return self._attributes(self.tree.created(parent, name))

        return await self.act("mkdir", self._paths(parent, name), make)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        parent = self._node(parent_inode)

        def unlink(_: Rule | None) -> None:
            self._gain(parent, name)
            self.tree.remove(parent, name)

        await self.act("unlink", self._paths(parent, name), unlink)

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        old, new = self._node(parent_inode_old), self._node(parent_inode_new)
        paths = self._paths(old, name_old) + self._paths(new, name_new)
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            fail(errno.EINVAL)

        def rename(_: Rule | None) -> None:
            digests = self.tree.digests(self.tree.child(old, name_old))
            if not flags:
                self._gain(new, name_new)
            self.tree.rename(old, name_old, new, name_new, not flags)
            self.renames.append([*map(os.fsdecode, paths), *digests])

        await self.act("rename", paths, rename)

    async def opendir(self, inode: int, ctx: Any) -> int:
        node = self._node(inode)
        return await self.act(
            "opendir",
            (self.tree.shown(node),),
            lambda _: self._add(Handle(node, names=sorted(os.listdir(self.tree.path(node))))),
        )

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self._handle(fh)

        def reply(_: Rule | None) -> None:
            for at, name in enumerate(handle.names[start_id:], start_id):
                try:
                    entry = self._attributes(self.tree.child(handle.node, name))
                except FileNotFoundError:
                    continue
                if not pyfuse3.readdir_reply(token, name, entry, at + 1):
                    break

        await self.act("readdir", (self.tree.shown(handle.node),), reply)

    async def releasedir(self, fh: int) -> None:
        del self.handles[fh]

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        node = self._handle(fh).node
        await self.act("fsyncdir", (self.tree.shown(node),), lambda _: self.tree.sync_names(node))

    # --- content

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        parent = self._node(parent_inode)

        def create(_: Rule | None) -> Handle:
            path = os.path.join(self.tree.path(parent), name)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode & 0o777)
            return Handle(self.tree.created(parent, name), fd)

        handle = await self.act("create", self._paths(parent, name), create, lambda made: os.close(made.fd))
        return pyfuse3.FileInfo(fh=self._add(handle)), self._attributes(handle.node)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        node = self._node(inode)

        def open_(_: Rule | None) -> Handle:
            access = os.O_RDONLY if flags & os.O_ACCMODE == os.O_RDONLY else os.O_RDWR
            return Handle(node, os.open(self.tree.path(node), access | os.O_NOFOLLOW))

        handle = await self.act("open", (self.tree.shown(node),), open_, lambda opened: os.close(opened.fd))
        return pyfuse3.FileInfo(fh=self._add(handle))

    async def release(self, fh: int) -> None:
        handle = self.handles.pop(fh)
        handle.node.opened.remove(handle.fd)
        if not self.waiting:  # what was delayed may need it
            os.close(handle.fd)

    async def flush(self, fh: int) -> None:
        handle = self._handle(fh)
        await self.act("flush", (self.tree.shown(handle.node),), lambda _: None, lose=handle.node)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self._handle(fh)

        def read(rule: Rule | None) -> bytes:
            return _spoilt(os.pread(handle.fd, size, off), rule)

        return await self.act("read", (self.tree.shown(handle.node),), read)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._handle(fh)
        node, fd = handle.node, handle.fd

        def write(rule: Rule | None) -> int:
            data = _spoilt(buf, rule)
            if rule is not None and rule.short:
                data = data[: max(1, len(data) // 2)]
            growth = max(0, off + len(data) - max(off, os.fstat(fd).st_size))
            if self.free is not None:
                if growth > self.free:  # as much as there is room for, as some filesystems do
                    data = data[: len(data) - growth + self.free]
                    growth = self.free
                    if not data:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.free -= growth
            self.written.add(os.fsdecode(self.tree.shown(node)))
            if rule is not None and rule.drop:
                data = bytes(len(data))
            return self.tree.write(fd, node, off, data)

        return await self.act("write", (self.tree.shown(node),), write)

    async def fsync(self, fh: int, datasync: bool) -> None:
        node = self._handle(fh).node
        await self.act("fsync", (self.tree.shown(node),), lambda _: self.tree.sync(node), lose=node)

    # --- attributes

    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        node = self._node(inode)
        if fh is not None:
            self._handle(fh)
        op = "truncate" if fields.update_size else "chmod" if fields.update_mode else "utimens"
        size, mode, atime, mtime = attr.st_size, attr.st_mode, attr.st_atime_ns, attr.st_mtime_ns
        which = fields.update_size, fields.update_mode, fields.update_atime, fields.update_mtime

        def change(_: Rule | None) -> pyfuse3.EntryAttributes:
            path, before = self.tree.path(node), self.tree.status(node)
            if which[0]:
                if self.free is not None:
                    self.free += before.st_size - size
                self.tree.truncate(node, size)
                self.written.add(os.fsdecode(self.tree.shown(node)))
            if which[1]:
                os.chmod(path, mode & 0o7777)
            if which[2] or which[3]:
                times = (atime if which[2] else before.st_atime_ns, mtime if which[3] else before.st_mtime_ns)
                os.utime(path, ns=times, follow_symlinks=False)
            return self._attributes(node)

        return await self.act(op, (self.tree.shown(node),), change)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        node = self._node(inode)
        await self.act("setxattr", (self.tree.shown(node),), lambda _: os.setxattr(self.tree.path(node), name, value))

    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        node = self._node(inode)
        await self.act("removexattr", (self.tree.shown(node),), lambda _: os.removexattr(self.tree.path(node), name))

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        path = self.tree.path(self._node(inode))
        try:
            return os.getxattr(path, name, follow_symlinks=False)
        except OSError as error:
            fail(error.errno or errno.EIO)

    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        path = self.tree.path(self._node(inode))
        return [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        def ask(_: Rule | None) -> pyfuse3.StatvfsData:
            free = (_FREE if self.free is None else self.free) // _FRAGMENT
            data = pyfuse3.StatvfsData()
            data.f_bsize = data.f_frsize = _FRAGMENT
            data.f_blocks = 2 * _FREE // _FRAGMENT
            data.f_bfree = data.f_bavail = free
            data.f_files = data.f_ffree = data.f_favail = 1 << 20
            data.f_namemax = 255
            return data

        return await self.act("statfs", (b"",), ask)


def _spoilt(data: bytes, rule: Rule | None) -> bytes:
    if rule is None or not rule.flip or not data:
        return data
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
