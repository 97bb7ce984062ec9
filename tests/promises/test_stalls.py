"""
The destination does not answer: for a while, or for good.

Whoever waits for it cannot even be killed. So it is always a mover that waits, never the agent; and what comes of the
operation when everybody has given it up does no harm.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_runs import check_history, config_of, delivered, transfer
from faults_mount import FaultMount, fault_mount
from support import PATIENCE, TRIOFT, files_of, make_tree, pattern, wait_until
from trioft.core.model import BLOCK_SIZE, MIB
from trioft.state.board import Entry
from truth import children_of

GRACE = 1.0
OPTIONS = f"""
copy: {{stall_timeout: 1s}}
retry: {{first: 50ms, longest: 200ms}}
source: {{scan_interval: 200ms, settle_closed: 50ms}}
destination: {{min_free: 0B}}
state: {{shutdown_grace: {GRACE:.0f}s}}
"""
CONTENTS: dict[bytes, bytes] = {b"far/large": pattern(BLOCK_SIZE + 5000, 1), b"near/small": pattern(3000, 2)}


class Agent:
    """A ``trioft`` whose talk goes into files: nothing that lives longer than it can keep them open for a reader."""

    def __init__(self, stand: Stand, command: str) -> None:
        self.out, self.err = stand.root / f"out-{time.monotonic_ns()}", stand.root / f"err-{time.monotonic_ns()}"
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(stand.command(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    @property
    def lines(self) -> list[dict[str, Any]]:
        whole = self.out.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for(self, seconds: float = PATIENCE, **wanted: str) -> None:
        """Wait for a line with these values, or that contain them."""

        def has_come() -> bool:
            assert self.process.poll() is None or self.has(**wanted), self.err.read_text()
            return self.has(**wanted)

        try:
            wait_until(has_come, seconds)
        except AssertionError as error:
            error.add_note(f"{wanted}: {self.lines[-20:]}")
            raise

    def has(self, **wanted: str) -> bool:
        return any(all(value in str(line.get(key)) for key, value in wanted.items()) for line in self.lines)

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM; return the exit code and how long it took."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        return code, time.monotonic() - begun


class Stand:
    """A source, and a destination on a mount; the command line on them."""

    def __init__(self, mount: FaultMount, root: Path) -> None:
        self.mount, self.root = mount, root
        self.source, self.state, self.config = root / "source", root / "state", root / "trioft.yaml"
        self.dest, self.backing = mount.place / "dest", mount.backing / "dest"
        self.backing.mkdir()
        self.config.write_text(OPTIONS)
        make_tree(self.source, dict(CONTENTS.items()))
        self.agents: list[Agent] = []

    def command(self, command: str) -> list[str | Path]:
        ends = (self.source, self.dest)
        return [*TRIOFT, command, *ends, "--state-dir", self.state, "-c", self.config, "--settle", "100ms", "--json"]

    def start(self, command: str) -> Agent:
        self.agents.append(Agent(self, command))
        return self.agents[-1]

    def check(self, contents: dict[bytes, bytes]) -> None:
        """Everything is there, and nothing else; no other content has ever had a final name."""
        assert delivered(self.backing) == contents
        check_history(self.mount, "dest", contents)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with fault_mount() as mount:
        place = Stand(mount, tmp_path)
        try:
            yield place
        finally:
            mount.kill()  # first: until then a stuck mover cannot die
            for agent in place.agents:
                with contextlib.suppress(ProcessLookupError):
                    agent.process.kill()
                agent.process.wait(PATIENCE)


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]


# What stalls, and on which path.
STALLS = {
    "write": ("write", "dest/far/*"),
    "fsync": ("fsync", "dest/far/*"),
    "stat": ("lookup", "dest/far/*.trioft-partial"),
    "rename": ("rename", "dest/far/*"),
}


@pytest.mark.parametrize("operation", STALLS)
async def test_an_agent_gets_away_from_a_destination_that_never_answers(operation: str, stand: Stand) -> None:
    """
    It says that there is no progress, goes on looking at the source, and ends in time, whatever its movers wait for.
    The next one on the same pair starts at once, delivers what can be delivered, and the rest when there is an answer.
    """
    mount, (op, glob) = stand.mount, STALLS[operation]
    (stand.source / "near/small").unlink()
    stuck = mount.fail(op, glob, stall=0)
    agent = stand.start("watch")
    await mount.wait(stalled=1)
    everything = mount.fail("*", "*", stall=0, times=0)
    agent.wait_for(event="storage", text="destination not usable since")
    assert agent.has(event="storage", text="no progress for 1")
    (stand.source / "link").symlink_to("nowhere")
    agent.wait_for(5, path="link", state="skipped")
    code, seconds = agent.stop()
    assert code == 0
    assert seconds < GRACE + 1
    left = children_of(agent.process.pid)
    assert "D" in {state_of(pid) for pid in left}
    # Others are served again.
    mount.ask("stop_rule", id=everything)
    mount.ask("release", id=everything)
    make_tree(stand.source, {"near/small": CONTENTS[b"near/small"]})
    another = stand.start("watch")
    another.wait_for(path="near/small", state="done")
    assert mount.ask("status")["stalled"] == 1
    mount.ask("release", id=stuck)
    another.wait_for(path="far/large", state="done")
    assert another.stop()[0] == 0
    wait_until(lambda: not children_of(agent.process.pid), 5)
    stand.check(CONTENTS)


async def test_what_waits_goes_on_when_the_mount_is_given_up_and_mounted_again(stand: Stand) -> None:
    """All that waited gets an error then; nothing is written to the folder below the mount; and everything arrives."""
    mount = stand.mount
    mount.fail("write", "dest/far/*", stall=0)
    agent = stand.start("watch")
    await mount.wait(stalled=1)
    mount.fail("*", "*", stall=0, times=0)
    agent.wait_for(event="storage", text="no progress for 1")
    mount.kill()
    mount.unmount()
    (mount.place / "dest").mkdir()
    agent.wait_for(event="storage", text="nothing is mounted at")
    assert files_of(mount.place) == {}
    mount.start()
    agent.wait_for(event="storage", text="usable again")
    agent.wait_for(path="far/large", state="done")
    agent.wait_for(path="near/small", state="done")
    assert agent.stop()[0] == 0
    stand.check(CONTENTS)


async def test_whoever_reads_what_an_agent_says_is_not_kept_waiting_by_a_mover_that_hangs(stand: Stand) -> None:
    """Its pipes end soon after the agent has, although a mover that it started still lives."""
    mount = stand.mount
    mount.fail("write", "dest/far/*", stall=0)
    process = subprocess.Popen(  # noqa: ASYNC220 - it takes a moment
        stand.command("sync"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        await mount.wait(stalled=1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=GRACE + 3)
        assert process.returncode == 143
        assert children_of(process.pid)
    finally:
        mount.kill()
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("op", "size"),
    [("write", 3000), ("write", 2 * MIB), ("fsync", 2 * MIB), ("rename", 3000)],
    ids=["write-bundle", "write-whole", "fsync-whole", "rename-bundle"],
)
async def test_a_file_is_not_tried_again_while_an_operation_of_an_earlier_attempt_may_still_happen(
    op: str, size: int, stand: Stand
) -> None:
    """The destination is well again, but one call has not come back: the file waits for it, says so, and arrives."""
    contents = {b"near/a": pattern(size, 1), b"far/b": pattern(3000, 2)}
    shutil.rmtree(stand.source)
    make_tree(stand.source, dict(contents.items()))
    rule = stand.mount.fail(op, "dest/near/a.*", stall=0)
    waits: list[str] = []

    def hear(entry: Entry) -> None:
        if "has not come back" in str(entry.reason):
            waits.append(str(entry.reason))
            if len(waits) == 2:
                stand.mount.ask("release", id=rule)

    config = config_of(stand.source, stand.dest, stand.state, stall_timeout=0.5)
    told = await transfer(config, hear=hear)
    assert waits
    assert told.claims_success, told
    assert any("no progress for" in str(trouble) for trouble in told.troubles[b"near/a"])
    assert told.attempts[b"near/a"] == 0
    assert delivered(stand.backing) == contents
    check_history(stand.mount, "dest", contents)
