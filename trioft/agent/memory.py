"""
Memory that is free is given back, so that a run of many million files needs no more than one of a thousand.
"""

from __future__ import annotations

import trio

_PAUSE = 30.0  # seconds; it takes a millisecond


async def stay_small() -> None:
    """
    Have the C library give back what it keeps. Runs until cancelled; ends where there is no such library.

    Without this, memory grows by half a kilobyte with each small file, although none of it is in use: what is left of
    many requests of many sizes, in pieces.
    """
    import ctypes  # takes some milliseconds

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await trio.sleep(_PAUSE)
        trim(0)
