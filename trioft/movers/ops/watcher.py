"""
The child process behind ``events``: runs watchfiles on the source and reports paths, until its parent ends.

Messages are as a mover's: a list of paths relative to the source, None for "anything may have changed", which also
says that the watches are set, or a text that says why there will be no events.
"""

from __future__ import annotations

import os
import signal
import time

from trioft.movers.ops import linux
from trioft.movers.ops.wire import MOST, send

# Watches that a name has ended are set again after this many times as long as it took to set them.
_SHARE = 10


def main(parent: int, source: bytes) -> None:
    """Report changes below *source* to standard output."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not linux.die_with_parent(parent):
        return
    import watchfiles

    prefix = len(source.rstrip(b"/")) + 1
    while True:
        began, first, took = time.monotonic(), True, 0.0
        try:
            # No filter: nothing is left out. The timings are for latency; watchfiles' own cost up to seconds. The first
            # time-out comes when all watches are set.
            for found in watchfiles.watch(
                os.fsdecode(source), watch_filter=None, debounce=50, step=10, rust_timeout=200, yield_on_timeout=True
            ):
                paths = [os.fsencode(path)[prefix:] for _, path in found]
                if first or len(paths) > MOST:
                    send(1, None)
                    first, took = False, time.monotonic() - began
                elif paths:
                    send(1, paths)
        except BrokenPipeError:
            return
        except Exception as error:  # whatever watchfiles has: without events trioft still finds everything
            if "decode" not in str(error):
                send(1, f"no file events: {error}")
                return
            # A name that is no UTF-8 ends the watch. Another one tells that anything may have changed; not too often,
            # as the source is walked for it.
            send(1, None)
            time.sleep(max(0.2, _SHARE * (took - 0.2)))
