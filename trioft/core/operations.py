"""
The contract between the planes: what the agent may ask of a mover.

Each operation is a value that knows the types of its arguments, of what it tells on its way, and of its answer, so that
a call with a wrong one is refused by mypy. ``movers.ops.main`` names the function behind each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Never, TypeVar, TypeVarTuple

from trioft.core.errors import Side

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trioft.core.answers import (
        Difference,
        End,
        Known,
        Leftovers,
        Listing,
        Look,
        Peek,
        Piece,
        Prepared,
        Probed,
        Range,
        Sealed,
        Searched,
        Seen,
        Step,
        Survey,
        Written,
    )
    from trioft.core.ascmhl import Creator
    from trioft.core.claim import Claimed, Holder, Standing
    from trioft.core.errors import Trouble
    from trioft.core.folding import Naming
    from trioft.core.measured import Measured, Planted
    from trioft.core.model import (
        Checkpoint,
        Ends,
        Fingerprint,
        Former,
        Identity,
        Item,
        Manner,
        Markers,
        Place,
        Publication,
        Result,
        Root,
        Routes,
        Unlisted,
    )

Told = TypeVar("Told")
Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")

SOURCE = (Side.SOURCE,)
DESTINATION = (Side.DESTINATION,)
BOTH = (Side.SOURCE, Side.DESTINATION)

# Operations that end in one barrier, whose progress nobody can tell, get this many stall timeouts.
_BARRIER = 10.0


class Operation(Generic[Told, Answer, *Arguments]):
    """
    Something that a mover does: its name, and which ends of a transfer it touches.

    An operation that tells nothing for *patience* stall timeouts is taken for stuck. One in the *background* leaves a
    mover to the others, where there are several.
    """

    __slots__ = ("background", "name", "patience", "sides")

    def __init__(self, name: str, sides: tuple[Side, ...], *, patience: float = 1.0, background: bool = False) -> None:
        self.name, self.sides, self.patience, self.background = name, sides, patience, background

    def __repr__(self) -> str:
        return f"<operation {self.name}>"

    def with_patience(self, patience: float) -> Operation[Told, Answer, *Arguments]:
        """Return the same operation, with other *patience*."""
        return Operation(self.name, self.sides, patience=patience, background=self.background)


# --- the ends --------------------------------------------------------------------------------------------------------

INSPECT: Operation[Never, list[End], Sequence[Place]] = Operation("inspect", BOTH)
CONTAINS: Operation[Never, bool, Place, Place] = Operation("contains", BOTH)
CAN_MOVE: Operation[Never, bool, bytes, bytes] = Operation("can_move", SOURCE)
PROBE_SOURCE: Operation[Never, tuple[Root, Identity], bytes, Identity | None] = Operation("probe_source", SOURCE)
PROBE: Operation[Never, Probed, bytes, Identity | None, bytes | None, bool] = Operation("probe", DESTINATION)
RECOGNIZE: Operation[Never, Root, bytes, Identity | None, bytes | None, bool] = Operation("recognize", DESTINATION)
FIND_NAMING: Operation[Never, Naming, Root] = Operation("find_naming", DESTINATION)
FIND_VIEW: Operation[Never, str | None, Ends, bool, bytes, list[bytes]] = Operation("find_view", BOTH)

CLAIM: Operation[Never, Claimed, Root, bytes, Holder] = Operation("claim", DESTINATION)
BEAT: Operation[Never, Claimed, Root, bytes, Holder] = Operation("beat", DESTINATION)
READ_CLAIMS: Operation[Never, list[Standing], Root, list[bytes], Holder] = Operation("read_claims", DESTINATION)
RELEASE: Operation[Never, None, Root, bytes, Holder] = Operation("release", DESTINATION)

# --- looking at the source -------------------------------------------------------------------------------------------

# A scan that compares with the destination touches both ends; one that does not must work while that is away.
SCAN: Operation[
    Never,
    Listing,
    Root,
    list[bytes],
    dict[bytes, bytes] | None,
    Sequence[str],
    Sequence[str],
    Root | None,
    Manner | None,
    Markers,
    Routes | None,
] = Operation("scan", SOURCE)
COMPARE: Operation[
    Never,
    Listing,
    Root,
    list[bytes],
    dict[bytes, bytes] | None,
    Sequence[str],
    Sequence[str],
    Root | None,
    Manner | None,
    Markers,
    Routes | None,
] = Operation("compare", BOTH)
LOOK: Operation[Never, list[Look], Root, list[bytes], Sequence[str], Sequence[str], Markers, Routes | None] = Operation(
    "look", SOURCE
)
SURVEY: Operation[Step, Survey, Root, list[bytes]] = Operation("survey", SOURCE, background=True)
PEEK: Operation[Never, Peek, Root, bytes, tuple[int, int], int, bytes, Routes | None] = Operation("peek", SOURCE)
LOCATE: Operation[Searched, bytes | None, Root, bytes, tuple[int, int], bool, Fingerprint | None] = Operation(
    "locate", SOURCE
)
COMPARE_SPAN: Operation[Step, list[Difference], Root, bytes, int, int, list[tuple[bytes, bytes]]] = Operation(
    "compare_span", SOURCE, background=True
)
REMOVE_SOURCES: Operation[Never, list[Result], Root, list[tuple[bytes, Fingerprint]], bytes | None, bytes] = Operation(
    "remove_sources", SOURCE
)
PUT_BACK_SOURCES: Operation[Never, list[bytes], Root, list[bytes]] = Operation("put_back_sources", SOURCE)
REMOVE_EMPTIED: Operation[Never, list[bytes], Root, list[bytes]] = Operation("remove_emptied", SOURCE)

# --- copying ---------------------------------------------------------------------------------------------------------

MAKE_FOLDERS: Operation[Never, list[Trouble], Root, Root, list[bytes]] = Operation("make_folders", BOTH)
WRITE_BUNDLE: Operation[Step, list[Result], Ends, list[Item], Manner] = Operation(
    "write_bundle", BOTH, patience=_BARRIER
)
PREPARE: Operation[Step | Written | Sealed, Result | Prepared, Ends, Item, Checkpoint | None, Manner, bool] = Operation(
    "prepare", BOTH, patience=_BARRIER
)
COPY_SPAN: Operation[Step | Written | Sealed, None, Ends, Item, bytes, int, int, Manner] = Operation("copy_span", BOTH)
SETTLE: Operation[Step, list[int], Root, bytes, int, int, bytes, str] = Operation(
    "settle", DESTINATION, background=True
)
COPY_GROWING: Operation[Step | Written | Sealed, None, Ends, Item, bytes, int, int, list[Known], bool] = Operation(
    "copy_growing", BOTH
)
COPY_RANGES: Operation[Step | Written | Sealed, list[int], Ends, Item, bytes, list[Range]] = Operation(
    "copy_ranges", BOTH
)
SETTLE_RANGES: Operation[Step, list[int], Root, bytes, list[Range], str] = Operation(
    "settle_ranges", DESTINATION, background=True
)
FINISH_ATTRIBUTES: Operation[Step | Written | Sealed, list[str], Ends, Item, bytes, Manner] = Operation(
    "finish_attributes", BOTH, patience=_BARRIER
)
ADOPT: Operation[Never, bool | None, Ends, bytes | None, tuple[int, int], bytes, bytes, bool] = Operation("adopt", BOTH)
SIZE_OF: Operation[Never, int, Root, bytes] = Operation("size_of", DESTINATION)
HOLES_OF: Operation[Never, int, Ends, bytes] = Operation("holes_of", BOTH)
DISCARD: Operation[Never, None, Root, list[bytes]] = Operation("discard", DESTINATION)
FIND_LEFTOVERS: Operation[Never, Leftovers, Root, list[bytes]] = Operation("find_leftovers", DESTINATION)
PUT_BACK: Operation[Never, list[bytes], Root, list[bytes]] = Operation("put_back", DESTINATION)

# --- finishing -------------------------------------------------------------------------------------------------------

SEAL: Operation[Never, Fingerprint, Root, bytes, int] = Operation("seal", DESTINATION)
IS_SEALED: Operation[Step, bool, Root, bytes, Fingerprint, bytes | None] = Operation("is_sealed", DESTINATION)
FIND_FORMER: Operation[Step, list[Former | None], Ends, list[Item]] = Operation("find_former", BOTH)
ARE_SEALED: Operation[Step, list[bool], Root, list[tuple[bytes, Fingerprint, bytes | None]]] = Operation(
    "are_sealed", DESTINATION, patience=_BARRIER
)
PUBLISH: Operation[Step, list[Result], Ends, list[Publication], Manner] = Operation("publish", BOTH, patience=_BARRIER)
MARK: Operation[Never, list[Trouble | None], Root, list[bytes], bytes] = Operation(
    "mark", DESTINATION, patience=_BARRIER
)

# --- what was delivered ----------------------------------------------------------------------------------------------

READ_DELIVERED: Operation[Step, list[Seen], Root, list[Piece], bytes] = Operation("read_delivered", DESTINATION)
SUM_DELIVERED: Operation[Step, Result, Root, Unlisted, str, int, bool] = Operation(
    "sum_delivered", DESTINATION, patience=_BARRIER, background=True
)
WRITE_SUMS: Operation[Never, bool, Root, bytes, dict[bytes, bytes]] = Operation(
    "write_sums", DESTINATION, patience=_BARRIER
)
FIND_HISTORIES: Operation[Never, list[bytes], Root, list[bytes], str] = Operation(
    "find_histories", DESTINATION, patience=_BARRIER
)
APPEND_GENERATION: Operation[Step, list[bytes], Root, bytes, list[Unlisted], Creator] = Operation(
    "append_generation", DESTINATION, patience=_BARRIER
)

# --- measuring the ends ----------------------------------------------------------------------------------------------

PLANT: Operation[Never, Planted | None, bytes, bytes] = Operation("plant", SOURCE)
UPROOT: Operation[Never, None, bytes, bytes] = Operation("uproot", SOURCE)
BEGIN_MEASURING: Operation[Never, None, Root, bytes] = Operation("begin_measuring", DESTINATION)
MEASURE: Operation[Never, Measured, Root, bytes, str] = Operation("measure", DESTINATION)
END_MEASURING: Operation[Never, None, Root, bytes] = Operation("end_measuring", DESTINATION)
