"""
How an operation of ``faultfs`` happens, or what goes wrong in its place; what is counted, and written down.
"""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from collections.abc import Callable
from typing import NoReturn, TypeVar

import pyfuse3
import trio

from faultfs_rules import CHANGES, Rule, Rules
from faultfs_tree import Node, Tree

T = TypeVar("T")

LONGEST = 900  # seconds: nobody is to wait for longer, whatever has become of who started it


def fail(number: int) -> NoReturn:
    raise pyfuse3.FUSEError(number)


class Faults:
    """The state that rules, stalls and power cuts are about."""

    def __init__(self, place: bytes) -> None:
        super().__init__()
        self.tree = Tree(place)
        self.rules = Rules()
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
        self.check_power(tree)
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
                fail(rule.number)
            if rule.stall is not None:
                await self._stall(rule.id, rule.stall)
                self.check_power(tree)
            if rule.number and not rule.late:
                fail(rule.number)
        try:
            value = action(rule)
        except OSError as error:
            fail(error.errno or errno.EIO)
        if op in CHANGES:
            self.changes += 1
            if self.changes == self.cut_at:
                self.power_cut(self.cut_seed, self.cut_stays_off)
        if rule is not None and rule.number:
            if undo is not None:
                undo(value)
            fail(rule.number)
        return value

    def _act_late(self, age: int, action: Callable[[Rule | None], object]) -> None:
        self.check_power(age)
        action(None)

    def check_power(self, age: int | None = None) -> None:
        if self.is_off:
            fail(errno.ENOTCONN)
        if age is not None and self.tree.age != age:
            fail(errno.ESTALE)

    async def _stall(self, number: int, seconds: float) -> None:
        self.stalled[number] += 1
        before = self.releases[number]
        self.stir()
        with trio.move_on_after(seconds or LONGEST):
            while self.releases[number] == before:
                await self.stirred.wait()
        self.stalled[number] -= 1
        self.stir()
