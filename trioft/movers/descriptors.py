"""
Descriptors: how many this process may have, and who gets them. Movers and the ledger come first, viewers get the rest.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import sys

# What keeps a process from being started, and passes: the limits of this process, of its user, or of the machine.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})

# What each mover needs, also while it is started; and each job beside its movers: ledger, lock, events, a gate.
_MOVER, _JOB = 5, 24
_AGENT = 48  # standard streams, log, signals, libraries, a hook, what is opened and closed in between
FEWEST = 8  # connections, however few descriptors there are: else nobody could see that

_given: tuple[int, int] | None = None  # the limits that this process was started with, before they were raised


def raise_limit() -> int:
    """Raise the soft limit of descriptors to the hard limit, and return it."""
    global _given
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # it stays as it was, and is kept to
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            _given = soft, hard
    return limit()


def limit() -> int:
    """Return how many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def lower_for(pid: int) -> None:
    """Give a program of the user's the soft limit that trioft itself got: one that uses select() can take no more."""
    if _given is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it has ended; or this is not Linux
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _given)


def connections_beside(movers: int, jobs: int, most: int) -> int:
    """Return how many connections, *most* at most, there may be beside so many *movers* of so many *jobs*."""
    return max(FEWEST, min(most, limit() - _AGENT - _JOB * jobs - _MOVER * movers))
