"""
Claims: what a trioft leaves at a destination while it works, so that another one, on whichever machine, is told.

A claim is a small hidden file in the destination's folder, one for each source, whose content is beaten anew as long as
its holder lives. It is a courtesy, no lock: what keeps bytes right is that each ledger has partials of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from trioft.core.naming import HIDDEN

CLAIM = HIDDEN + b"claim-"  # and a digest of the source
CLAIMING = HIDDEN + b"claiming-"  # on its way to be one
BEAT = 20.0  # seconds between two
STALE = 180.0  # seconds after which a holder on another machine is taken for gone


_NUMBERS = ("pid", "began")


def is_claim(path: bytes) -> bool:
    """Return whether this is a claim, or was on its way to be one."""
    return path.startswith((CLAIM, CLAIMING))


class Holder(NamedTuple):
    """The process that holds a claim, and what it works on."""

    host: str
    pid: int
    began: int  # when the process began, in ticks since its machine started; 0 where nobody knows
    boot: str  # of that machine, since it was started; empty where nobody knows
    pids: str  # the namespace that the number of the process is of
    machine: str  # its id; empty where it has none
    mark: str  # of the ledger, as in the names of its partials
    source: str
    since: str
    token: str  # random: it tells this claim from all others

    def __str__(self) -> str:
        return f"trioft on {self.host} (process {self.pid}) works on this since {self.since}"


class Claimed(NamedTuple):
    """What came of a claim."""

    holder: Holder | None = None  # somebody else, who lives
    why_not: str = ""  # it could not be written, as the destination says
    instead_of: Holder | None = None  # who is gone without having taken his claim away


class Standing(NamedTuple):
    """A claim that was found at a destination."""

    path: bytes
    holder: Holder | None  # None: it cannot be read
    lives: bool


def content_of(holder: Holder, beat: str) -> bytes:
    """Return what the file of a claim holds; as long for each *beat*, so that it can be written over."""
    import json  # slow to load, and movers that copy need none

    return json.dumps({"trioft": 1, **holder._asdict(), "beat": beat}, indent=1).encode("ascii") + b"\n"


def holder_in(content: bytes) -> Holder | None:
    """Return who holds a claim with this content; None where it is none."""
    import json

    try:
        written = json.loads(content)
        fields = {name: written[name] for name in Holder._fields}
    except (ValueError, KeyError, TypeError):
        return None
    is_sound = all(type(value) is (int if name in _NUMBERS else str) for name, value in fields.items())
    return Holder(**fields) if is_sound else None
