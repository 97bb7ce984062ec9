"""
The operations of ``faultfs``, in which anything can go wrong.

The kernel keeps no names and no attributes, so that each operation arrives here. ``syncfs`` does not, as on most
mounted filesystems: who works here has to fsync each file.
"""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import pyfuse3
import trio

from faultfs_rules import CHANGES, Rule, Rules
from faultfs_tree import Node, Tree

T = TypeVar("T")

LONGEST = 900  # seconds: nobody is to wait for longer, whatever has become of who started it
_FREE = 1 << 40
_FRAGMENT = 4096


class Handle:
    """An open file, or folder."""

    def __init__(self, node: Node, fd: int = -1, names: Sequence[bytes] = ()) -> None:
        self.node, self.fd, self.names = node, fd, names


class FaultFS(pyfuse3.Operations):
    """The operations. Each asks the rules before it happens, and after."""

    def __init__(self, place: bytes) -> None:
        super().__init__()
        self.tree = Tree(place)
        self.rules = Rules()
        self.handles: dict[int, Handle] = {}
        self._next_handle = 1
        self.stirred = trio.Event()
        self.stalled: Counter[int] = Counter()  # by rule
        self.releases: Counter[int] = Counter()
        self.begin()

    def begin(self) -> None:
        """Begin anew: nothing goes wrong, nothing is counted, all that there is, is durable."""
        self.rules.clear()
        self.tree.forget()
        self.free: int | None = None
        self.counts: Counter[str] = Counter()
        self.changes = 0
        self.log: deque[str] = deque(maxlen=200)
        self.renames: list[list[str]] = []
        self.written: set[str] = set()  # names of files that were changed under them
        self.cuts = 0
        self.is_off = False
        self.cut_at, self.cut_stays_off = 0, False
        self.cut_seed: int | None = None
        # What has failed and will happen: before which operation, on which path, and what.
        self.waiting: list[tuple[str, bytes, Callable[[], object]]] = []
        self.stir()

    def stir(self) -> None:
        self.stirred.set()
        self.stirred = trio.Event()

    def set_free(self, number: int) -> None:
        """What is stalled by a rule goes on."""
        self.releases[number] += 1
        self.stir()

    def let_happen(self, op: str | None = None, path: bytes = b"") -> None:
        """What was delayed happens, in order: all, or what has waited for *op* on *path*."""
        due = [late for late in self.waiting if op is None or late[:2] == (op, path)]
        self.waiting = [late for late in self.waiting if late not in due]
        for _, _, action in due:
            try:
                action()
            except (OSError, pyfuse3.FUSEError) as error:
                self.log.append(f"too late: {error}")
            else:
                self.log.append("a delayed operation happened")

    def power_cut(self, seed: int | None, stay_off: bool) -> None:
        self.tree.power_cut(seed)
        self.is_off = stay_off
        self.cut_at = 0
        self.cuts += 1
        self.log.append("power cut")
        self.stir()

    # --- rules

    async def act(
        self,
        op: str,
        paths: tuple[bytes, ...],
        action: Callable[[Rule | None], T],
        undo: Callable[[T], None] | None = None,
        lose: Node | None = None,
    ) -> T:
        """
        Do an operation, or what goes wrong in its place.

        *undo* gives back what an answer that is lost holds; *lose* is the file whose content the operation may cost.
        """
        tree = self.tree.age
        self._check_power(tree)
        self.let_happen(op, paths[0])
        self.counts[op] += 1
        shown = " ".join(os.fsdecode(path) for path in paths)
        rule = self.rules.hit(op, paths)
        self.log.append(f"{op} {shown}" + (f" [{rule.id}]" if rule else ""))
        if rule is not None:
            self.stir()
            if rule.lose and lose is not None:
                self.tree.lose(lose)
            if rule.delayed is not None:
                self.waiting.append((rule.delayed, paths[0], lambda: self._act_late(tree, action)))
                _fail(rule.number)
            if rule.stall is not None:
                await self._stall(rule.id, rule.stall)
                self._check_power(tree)
            if rule.number and not rule.late:
                _fail(rule.number)
        try:
            value = action(rule)
        except OSError as error:
            _fail(error.errno or errno.EIO)
        if op in CHANGES:
            self.changes += 1
            if self.changes == self.cut_at:
                self.power_cut(self.cut_seed, self.cut_stays_off)
        if rule is not None and rule.number:
            if undo is not None:
                undo(value)
            _fail(rule.number)
        return value

    def _act_late(self, age: int, action: Callable[[Rule | None], object]) -> None:
        self._check_power(age)
        action(None)

    def _check_power(self, age: int | None = None) -> None:
        if self.is_off:
            _fail(errno.ENOTCONN)
        if age is not None and self.tree.age != age:
            _fail(errno.ESTALE)

    async def _stall(self, number: int, seconds: float) -> None:
        self.stalled[number] += 1
        before = self.releases[number]
        self.stir()
        with trio.move_on_after(seconds or LONGEST):
            while self.releases[number] == before:
                await self.stirred.wait()
        self.stalled[number] -= 1
        self.stir()

    def _node(self, number: int) -> Node:
        self._check_power()
        try:
            return self.tree.node(number)
        except OSError as error:
            _fail(error.errno or errno.EIO)

    def _handle(self, fh: int) -> Handle:
        """Return an open file, unless the power was cut since it was opened."""
        self._check_power()
        handle = self.handles[fh]
        if self.tree.nodes.get(handle.node.number) is not handle.node:
            _fail(errno.ESTALE)
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
            _fail(errno.EINVAL)

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
            _fail(error.errno or errno.EIO)

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


def _fail(number: int) -> NoReturn:
    raise pyfuse3.FUSEError(number)


def _spoilt(data: bytes, rule: Rule | None) -> bytes:
    if rule is None or not rule.flip or not data:
        return data
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
