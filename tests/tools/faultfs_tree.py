"""
The files of ``faultfs``: a folder of the disk, and what of it a power cut would take back.

Nothing is durable before it is asked for: the content and the size of a file are when the file is fsynced, a name
(created, renamed, removed, a new folder) when the folder that it is in is. What is in the way of that is kept as a log
of how to undo it, so that a power cut costs what it would cost on a disk, and no more. Times and permission bits are
durable at once.

All of this works on real files below a real folder: tests look there to see what a destination holds.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import shutil
import stat
from typing import NamedTuple

ROOT = 1
_FIRST = 1 << 40  # unlike the inodes of any other filesystem, which somebody may search the open files for
_PAGE = 64 * 1024  # what a torn write is torn at


class Undo(NamedTuple):
    """How to take a write or a truncation back."""

    size: int  # of the file before
    offset: int
    data: bytes  # that was there before
    length: int  # of what was written


class Node:
    """A file or a folder. Its number is never used again, other than those of the disk."""

    def __init__(self, number: int, parent: Node | None, name: bytes, key: tuple[int, int]) -> None:
        self.number, self.parent, self.name, self.key = number, parent, name, key
        self.removed = False
        self.opened: list[int] = []  # descriptors
        self.written: list[Undo] = []  # of a file, since it was fsynced
        self.renamed: list[list[tuple[bytes, Node | None]]] = []  # of a folder: what had these names before, by change


class Tree:
    """The nodes below the folder *place*. What loses its name lies beside it until that is durable."""

    def __init__(self, place: bytes) -> None:
        self.place, self.grave = place, place + b".removed"
        self._next = _FIRST
        self.age = 0  # what was known in another is stale
        self.nodes: dict[int, Node] = {}
        self.forget()

    def forget(self) -> None:
        """What is in the folder now has always been there; whatever is open is stale."""
        self.age += 1
        shutil.rmtree(self.grave, ignore_errors=True)
        os.mkdir(self.grave)
        status = os.lstat(self.place)
        root = Node(ROOT, None, b"", (status.st_dev, status.st_ino))
        self.nodes = {ROOT: root}
        self._known = {root.key: root}

    def node(self, number: int) -> Node:
        if number not in self.nodes:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self.nodes[number]

    def path(self, node: Node) -> bytes:
        """Return where a node lies on the disk."""
        if node.removed:
            return os.path.join(self.grave, b"%d" % node.number)
        return os.path.join(self.place, self.shown(node))

    def shown(self, node: Node) -> bytes:
        """Return the path below the root, as the users see it, or saw it last."""
        parts = []
        at: Node | None = node
        while at is not None and at.parent is not None:
            parts.append(at.name)
            at = at.parent
        return b"/".join(reversed(parts))

    def child(self, parent: Node, name: bytes) -> Node:
        """Return what is called *name* in a folder."""
        status = os.lstat(os.path.join(self.path(parent), name))
        key = (status.st_dev, status.st_ino)
        known = self._known.get(key)
        if known is None or known.parent is not parent or known.name != name or known.removed:
            known = Node(self._next, parent, name, key)
            self._next += 1
            self._known[key] = self.nodes[known.number] = known
        return known

    def status(self, node: Node) -> os.stat_result:
        return os.fstat(node.opened[0]) if node.opened else os.lstat(self.path(node))

    # --- content

    def write(self, fd: int, node: Node, offset: int, data: bytes) -> int:
        size = os.fstat(fd).st_size
        old = os.pread(fd, max(0, min(len(data), size - offset)), offset)
        node.written.append(Undo(size, offset, old, len(data)))
        return os.pwrite(fd, data, offset)

    def truncate(self, node: Node, size: int) -> None:
        fd = os.open(self.path(node), os.O_RDWR | os.O_NOFOLLOW)
        try:
            before = os.fstat(fd).st_size
            node.written.append(Undo(before, size, os.pread(fd, max(0, before - size), size), max(0, size - before)))
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def sync(self, node: Node) -> None:
        """Content and size of a file are durable."""
        node.written.clear()

    def lose(self, node: Node) -> None:
        """Take back what was written of a file since it was fsynced, all but its size; nobody is told."""
        with open(self.path(node), "r+b") as file:
            durable = bytearray(live := file.read())
            for undo in reversed(node.written):
                _undo(durable, undo)
            file.seek(0)
            file.write(durable[: len(live)] + bytes(max(0, len(live) - len(durable))))
        node.written.clear()

    def digests(self, node: Node) -> tuple[str, str]:
        """Return the SHA-256 of what a file holds, and of what of that is durable."""
        with open(self.path(node), "rb") as file:
            live = file.read()
        durable = bytearray(live)
        for undo in reversed(node.written):
            _undo(durable, undo)
        return hashlib.sha256(live).hexdigest(), hashlib.sha256(durable).hexdigest()

    # --- names

    def created(self, parent: Node, name: bytes) -> Node:
        """Something has just been made in a folder."""
        parent.renamed.append([(name, None)])
        return self.child(parent, name)

    def remove(self, parent: Node, name: bytes) -> None:
        node = self.child(parent, name)
        if stat.S_ISDIR(os.lstat(self.path(node)).st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        parent.renamed.append([(name, node)])
        self._bury(node)

    def rename(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, replace: bool) -> None:
        node = self.child(parent, name)
        target: Node | None = None
        with contextlib.suppress(FileNotFoundError):
            target = self.child(new_parent, new_name)
        if target is node:
            return
        if target is not None:
            if not replace:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            if stat.S_ISDIR(os.lstat(self.path(target)).st_mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._bury(target)
        os.rename(self.path(node), os.path.join(self.path(new_parent), new_name))
        node.parent, node.name = new_parent, new_name
        if parent is new_parent:
            parent.renamed.append([(name, node), (new_name, target)])
        else:
            parent.renamed.append([(name, node)])
            new_parent.renamed.append([(new_name, target)])

    def sync_names(self, folder: Node) -> None:
        """The names in a folder are durable, and so is that others are gone."""
        folder.renamed.clear()
        wanted = {node for at in self.nodes.values() for change in at.renamed for _, node in change}
        for node in list(self.nodes.values()):
            if node.removed and node not in wanted:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path(node))
                if not node.opened:
                    del self.nodes[node.number]
                    if self._known.get(node.key) is node:
                        del self._known[node.key]

    def _bury(self, node: Node) -> None:
        there = self.path(node)
        node.removed = True
        os.rename(there, self.path(node))

    # --- the end

    def power_cut(self, seed: int | None) -> None:
        """
        Take back what is not durable. Whatever is open is stale.

        With a *seed* only a part is lost, as it happens: some pages of what was written, the size, and the last ones
        of the changes of a folder.
        """
        chance = random.Random(seed) if seed is not None else None
        for node in self.nodes.values():
            if node.written:
                self._lose_content(node, chance)
        wanted: dict[tuple[Node, bytes], Node | None] = {}
        for folder in self.nodes.values():
            kept = chance.randint(0, len(folder.renamed)) if chance else 0
            for change in reversed(folder.renamed[kept:]):
                wanted.update({(folder, name): node for name, node in change})
        for at, name in wanted:
            with contextlib.suppress(FileNotFoundError):
                self._bury(self.child(at, name))
        for (at, name), before in wanted.items():
            if before is not None and not self._is_lost(at):
                os.link(self.path(before), os.path.join(self.path(at), name))
        self.forget()

    def _is_lost(self, folder: Node) -> bool:
        return folder.removed or (folder.parent is not None and self._is_lost(folder.parent))

    def _lose_content(self, node: Node, chance: random.Random | None) -> None:
        with open(self.path(node), "r+b") as file:
            status = os.fstat(file.fileno())
            live = file.read()
            durable = bytearray(live)
            for undo in reversed(node.written):
                _undo(durable, undo)
            if chance:
                size = chance.choice((len(durable), len(live)))
                durable = durable[:size] + bytes(max(0, size - len(durable)))
                for undo in node.written:
                    for start in range(undo.offset, min(undo.offset + undo.length, size), _PAGE):
                        if chance.random() < 0.5:
                            end = min(start + _PAGE, size, len(live))
                            durable[start:end] = live[start:end]
            file.seek(0)
            file.write(durable)
            file.truncate(len(durable))
            file.flush()
            os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


def _undo(content: bytearray, undo: Undo) -> None:
    del content[undo.size :]
    content.extend(bytes(undo.size - len(content)))
    content[undo.offset : undo.offset + len(undo.data)] = undo.data
