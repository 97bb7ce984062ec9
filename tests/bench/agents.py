"""Agents that run while something else happens: a watch, what it is given, and when that has arrived."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from workbench import TRIOFT, Bench, ended

MOST_SECONDS = 120  # that one wait may take
LOOK_EVERY = 0.001  # seconds between two looks for a final name
LOOK_EVERY_AT_ALL = 0.005  # the same, where there are several


@contextlib.contextmanager
def watching(
    bench: Bench, folder: Path, command: Sequence[str] = TRIOFT, options: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """
    While inside, trioft watches the source in *folder* and delivers to the destination in it; it is at work already.

    What it says is in the files ``events`` and ``errors``.
    """
    source, destination = folder / "source", folder / "destination"
    for path in (source, destination):
        path.mkdir(exist_ok=True)
    arguments = ["watch", str(source), str(destination), "--json", "--state-dir", str(folder / "state"), *options]
    with open(folder / "events", "wb") as out, open(folder / "errors", "wb") as err:
        agent = subprocess.Popen(
            [*command, *arguments], stdout=out, stderr=err, env=bench.environment, start_new_session=True
        )
    try:
        with ended(agent):
            (source / "first").touch()
            await_name(agent, destination / "first", LOOK_EVERY_AT_ALL)
            (source / "first").unlink()
            yield agent
            agent.send_signal(signal.SIGTERM)
            if agent.wait(MOST_SECONDS) != 0:
                raise RuntimeError(f"trioft ended with {agent.returncode}")
    except RuntimeError:
        print(*(folder / "events").read_text("utf-8").splitlines()[-20:], sep="\n", file=sys.stderr)
        print((folder / "errors").read_text("utf-8", "replace"), file=sys.stderr)
        raise


def await_name(agent: subprocess.Popen[bytes], path: Path, every: float) -> float:
    """Return when *path* is there."""
    name, end = str(path), time.perf_counter() + MOST_SECONDS
    while not os.path.exists(name):
        if agent.poll() is not None or time.perf_counter() > end:
            raise RuntimeError(f"{path.name} has not arrived")
        time.sleep(every)
    return time.perf_counter()
