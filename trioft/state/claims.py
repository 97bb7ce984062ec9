"""
Claims: which source file has, or may get, a name at the destination, where one name can be that of several.

Rules can give it to several, and a destination can take two names for one. Only where names are overwritten: no other
policy replaces a name, whoever has it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

from trioft.core.errors import ROUTE, Side, Trouble, show_path
from trioft.core.folding import Naming
from trioft.core.model import Identity, Item, Manner
from trioft.state import origins, rowsums
from trioft.state.ledger import ARRIVED, Entry, Ledger, Port
from trioft.state.neighbours import Neighbours
from trioft.state.schema import ELSEWHERE

# Takes the names of files, and returns each file, with its rival if it has one, or why it cannot have the name.
Take = Callable[[Sequence[Item], Port], Awaitable[list[Item | Trouble]]]


class Claims:
    """
    The names that files are on their way to. None, where nothing *overwrites* and no two files can have one name; with
    *sole*, what has a name may be all that is left of an earlier source. *neighbours* have names of other sources, and
    other volumes than the source's present one, *volume*, may have had files of the same paths.

    A file that finds its name taken waits: what comes of the other one says what comes of it.
    """

    def __init__(
        self,
        *,
        overwrites: bool,
        routed: bool,
        sole: bool = False,
        naming: Callable[[], Naming] = Naming,
        neighbours: Neighbours | None = None,
        volume: Callable[[], Identity | None] = lambda: None,
    ) -> None:
        self._neighbours, self._volume = neighbours, volume
        self._noted: Identity | None = None  # the source's volume, as the ledger has it
        self._has_others = False
        self._overwrites, self._routed, self._sole, self._naming = overwrites, routed, sole, naming
        self._holders: dict[bytes, bytes] = {}  # target, as the destination takes it → source file
        self._waiting: dict[bytes, dict[int, None]] = {}  # the same → files that wait for it, in order
        self._delivered: dict[bytes, list[bytes]] | None = None  # the same → source files, where names fold
        self._folded_as = Naming()  # how the names above are folded

    @contextlib.contextmanager
    def open(self, wake: Callable[[int], bool]) -> Iterator[Take]:
        """
        Yield what takes the names for one job; they are given back in the end, when the ledger knows what came.

        *wake* is told then who may try next; it says whether that file is still there.
        """
        taken: set[bytes] = set()
        try:
            yield functools.partial(self._take, taken)
        finally:
            for target in taken:
                del self._holders[target]
                waiting = self._waiting.pop(target, {})
                while waiting and not wake(next(iter(waiting))):
                    del waiting[next(iter(waiting))]
                if waiting:
                    self._waiting[target] = waiting

    def is_free(self, target: bytes) -> bool:
        return self._folded_as.fold(target) not in self._holders

    async def heed_others(self, items: Sequence[Item]) -> list[Item]:
        """Return *items* with their rivals in other ledgers, which may have delivered something since."""
        if not self._overwrites or self._neighbours is None:
            return [*items]
        owners = await self._neighbours.owners_of([item.target for item in items])
        return [
            item._replace(rival=owner.rival, kept=owner.why) if (owner := owners.get(item.target)) else item
            for item in items
        ]

    async def _take(self, taken: set[bytes], items: Sequence[Item], ledger: Port) -> list[Item | Trouble]:
        if (volume := self._volume()) is not None and volume != self._noted:
            self._has_others = await ledger.call(origins.note_source, volume)
            self._noted = volume
        named = await self._take_here(taken, items, ledger)
        if self._has_others:
            strangers = await ledger.call(origins.strangers_of, [(item.target, item.path) for item in items])
            named = [
                its._replace(rival=its.path, kept=strangers[its.target])
                if isinstance(its, Item) and self._overwrites and not its.rival and its.target in strangers
                else its
                for its in named
            ]
        heeded = iter(await self.heed_others([its for its in named if isinstance(its, Item)]))
        return [next(heeded) if isinstance(its, Item) else its for its in named]

    async def _take_here(self, taken: set[bytes], items: Sequence[Item], ledger: Port) -> list[Item | Trouble]:
        naming = self._naming()
        if not self._overwrites or not (self._routed or self._sole or naming.folds):
            return [*items]
        if naming != self._folded_as and not self._holders:  # else in a moment: for those the old names hold
            self._folded_as, self._delivered = naming, None
        fold = self._folded_as.fold
        named: list[Item | Trouble] = []
        for item in items:
            target = fold(item.target)
            holder = self._holders.setdefault(target, item.path)
            waiting = self._waiting.setdefault(target, {})
            if holder == item.path:
                taken.add(target)
                waiting.pop(item.id, None)
            else:
                waiting[item.id] = None
            if not waiting:
                del self._waiting[target]
            named.append(item if holder == item.path else _in_use(item, holder))
        owners = await ledger.call(owners_of, [(item.target, item.path) for item in items])
        if self._folded_as.folds:
            owners |= await self._alike(items, ledger)
        return [its._replace(rival=owners.get(its.target, b"")) if isinstance(its, Item) else its for its in named]

    async def _alike(self, items: Sequence[Item], ledger: Port) -> dict[bytes, bytes]:
        """Return, by target, which other source file was delivered under a name that the destination takes for it."""
        fold = self._folded_as.fold
        if self._delivered is None:
            delivered: dict[bytes, list[bytes]] = {}
            for path, target in await ledger.call(delivered_as):
                delivered.setdefault(fold(target), []).append(path)
            # Not before it is filled: another copier, which comes meanwhile, would find no rivals in it.
            if self._delivered is None:
                self._delivered = delivered
        rivals = {}
        for item in items:
            paths = self._delivered.setdefault(fold(item.target), [])
            if item.path not in paths:
                paths.append(item.path)  # when it is delivered, the ledger will know
            others = [path for path in paths if path != item.path]
            for path, known in (await ledger.call(Ledger.known, others)).items() if others else ():
                if known.outcome in ARRIVED and known.target and fold(known.target) == fold(item.target):
                    rivals[item.target] = path
        return rivals


def delivered_as(ledger: Ledger) -> list[tuple[bytes, bytes]]:
    """Return all source files that the destination has, and what they are called there."""
    query = f"SELECT folder, name, target FROM file WHERE outcome IN {ARRIVED} AND target <> x''"
    return [(os.path.join(folder, name), target) for folder, name, target in ledger.execute(query)]


def are_needed(ledger: Ledger, manner: Manner, *, removing: bool) -> bool:
    """May a name that is replaced be that of another source file, or of one that is there no more?"""
    if manner.if_exists != "overwrite":
        return False
    if manner.routes is not None or removing:
        return True
    query = (
        f"SELECT EXISTS (SELECT 1 FROM file WHERE {ELSEWHERE}) OR EXISTS (SELECT 1 FROM file WHERE removal = 'removed')"
        " OR EXISTS (SELECT 1 FROM history WHERE event = 'removed')"
    )
    (is_needed,) = ledger.execute(query).fetchone()
    return bool(is_needed)


def pass_on(ledger: Ledger, entries: Sequence[Entry]) -> None:
    """These are to be recorded. What another file was delivered as, under a name of theirs, is not there any more."""
    columns = rowsums.FILE.replace("target", "x''")
    forget = f"UPDATE file SET target = x'', sum = sum_of({columns})"
    gone = f"{forget} WHERE {rowsums.IS_SOUND} AND target = ? AND {ELSEWHERE} AND (folder, name) <> (?, ?)"
    own = f"{forget} WHERE {rowsums.IS_SOUND} AND folder = ? AND name = ? AND target = ?"
    for entry in entries:
        if entry.outcome == "delivered":
            ledger.execute(gone, (entry.target, *os.path.split(entry.path)))
            if entry.target != entry.path:
                its_own = (*os.path.split(entry.target), entry.target)
                ledger.execute(own, its_own)


def owners_of(ledger: Ledger, names: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """
    Return, of *names* (target, source file), those that are not to be replaced, and what was delivered under them.

    That is another source file, or an earlier one of the same path that was removed since: this is all that is left.
    """
    query = (
        f"SELECT outcome, folder, name FROM file WHERE target = ? AND {ELSEWHERE}"
        " UNION ALL SELECT outcome, folder, name FROM file WHERE folder = ? AND name = ? AND target = ?"
    )
    owners = {}
    for target, path in names:
        for outcome, folder, name in ledger.execute(query, (target, *os.path.split(target), target)):
            if outcome in ARRIVED and (other := os.path.join(folder, name)) != path:
                owners[target] = other
        if target not in owners and _is_all_that_is_left(ledger, target, path):
            owners[target] = path
    return owners


def _is_all_that_is_left(ledger: Ledger, target: bytes, path: bytes) -> bool:
    """Was *target* delivered from a source file called *path* that was removed then?"""
    query = (
        "SELECT 1 FROM file WHERE folder = ? AND name = ? AND target = ? AND removal = 'removed'"
        " UNION ALL SELECT 1 FROM history WHERE path = ? AND event = 'removed' AND target = ? LIMIT 1"
    )
    return ledger.execute(query, (*os.path.split(path), target, path, target)).fetchone() is not None


def _in_use(item: Item, holder: bytes) -> Trouble:
    text = f"{show_path(holder)} is being delivered under the same name, {show_path(item.target)}"
    return Trouble(Side.DESTINATION, ROUTE, item.path, None, errno.EEXIST, text)
