"""The names that files take at the destination, where some of them are one."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from support import found
from trioft.core.folding import Naming
from trioft.core.model import Item
from trioft.state.claims import Claims, delivered_as
from trioft.state.ledger import Known, Ledger, Port


class Slow(Port):
    """A ledger that has ``CLIP`` and ``TAKE`` on record, and is slow to answer."""

    def __init__(self) -> None:
        pass

    async def call(self, method: Any, /, *args: Any, **kwargs: Any) -> Any:
        await trio.testing.wait_all_tasks_blocked()
        if method is delivered_as:
            return [(name, name) for name in (b"CLIP", b"TAKE")]
        if method == Ledger.known:
            return {name: Known("delivered", "removed", 1, 1, 1, name) for name in args[0]}
        return {}


async def test_no_copier_misses_a_rival_that_another_one_is_still_asking_for() -> None:
    """Two files come at once, each with a name that the destination takes for one of an earlier file: both are told."""
    claims = Claims(overwrites=True, routed=False, sole=True, naming=lambda: Naming(folds_case=True))
    rivals: dict[bytes, bytes] = {}

    async def copier(number: int, path: bytes) -> None:
        its = found(path)
        with claims.open(lambda item: True) as take:
            (named,) = await take([Item(number, path, its.mode, its.fingerprint, True)], Slow())
            assert isinstance(named, Item)
            rivals[path] = named.rival

    async with trio.open_nursery() as nursery:
        nursery.start_soon(copier, 1, b"clip")
        nursery.start_soon(copier, 2, b"take")
    assert rivals == {b"clip": b"CLIP", b"take": b"TAKE"}
