"""Case: how soon a small file that appears is at the destination, beside lsyncd."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from agents import LOOK_EVERY, await_name, watching
from rows import Row
from workbench import Bench, Run, ended, show

SETTLE_CLOSED = 0.5  # seconds: trioft waits so long in case that the file is opened again; the default
LSYNCD = """\
settings {{ nodaemon = true, inotifyMode = "CloseWrite" }}
sync {{ default.rsync, source = "{source}", target = "{destination}", delay = 1 }}
"""


def new_files(bench: Bench) -> Iterator[Row]:
    """A new file of 4 KiB, from its close to its final name; lsyncd with a delay of 1 s, the least that it has."""
    rounds = bench.size(10, 3) * bench.rounds
    with contextlib.ExitStack() as stack:
        agents: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        folder = stack.enter_context(bench.folder("arriving"))
        agents["trioft"] = stack.enter_context(watching(bench, folder)), folder
        if shutil.which("lsyncd"):
            folder = stack.enter_context(bench.folder("lsyncd"))
            agents["lsyncd"] = stack.enter_context(_lsyncd(bench, folder)), folder
        taken: dict[str, list[Run]] = {name: [] for name in agents}
        for round_ in range(rounds):
            for name, (agent, folder) in agents.items():
                show(f"new files: {round_ + 1} of {rounds}: {name}")
                time.sleep(0.1 + 0.9 * round_ / rounds)  # at all moments of a second
                with open(folder / "source" / f"{round_}", "wb") as file:
                    file.write(os.urandom(4096))
                closed = time.perf_counter()
                arrived = await_name(agent, folder / "destination" / f"{round_}", LOOK_EVERY)
                taken[name].append(Run(arrived - closed))
        show("")
    seconds = sorted(run.seconds for run in taken["trioft"])
    work, against = "a new small file: close to final name", "lsyncd, delay 1 s" if "lsyncd" in taken else ""
    ours, theirs, target = taken["trioft"], taken.get("lsyncd", []), 0.5 + SETTLE_CLOSED
    yield Row(f"{work}, median", against, seconds[len(seconds) // 2], "s", target, ours, theirs)
    yield Row(f"{work}, longest", "", seconds[-1], "s", target, ours)


@contextlib.contextmanager
def _lsyncd(bench: Bench, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """While inside, lsyncd does the same; it is at work already."""
    source, destination = folder / "source", folder / "destination"
    for path in (source, destination):
        path.mkdir()
    (folder / "config").write_text(LSYNCD.format(source=source, destination=destination), "utf-8")
    (source / "first").touch()
    command = ["lsyncd", str(folder / "config")]
    with open(folder / "output", "wb") as output:
        agent = subprocess.Popen(command, stdout=output, stderr=output, env=bench.environment, start_new_session=True)
    with ended(agent):
        await_name(agent, destination / "first", LOOK_EVERY)
        yield agent
