"""
Half an hour of everything at once: files and recordings arrive while mounts, space and processes fail.

Run by hand, as root: ``.venv/bin/python tests/tools/soak.py [--minutes 30] [--seed N]``.

A ``trioft watch`` moves (``--on-success delete``) what three producers make to a loop-mounted ext4. A reader at the
destination checks all the time that whatever has a final name is complete and right, and takes it away once its source
is gone. The agent itself is killed in the first half only: in the second one its memory, descriptors, threads and
children are fitted by a line, which is to be flat. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from disks import Disk
from inotify import IN_ISDIR, IN_OPEN, read_events, watched
from support import Running, Site, make_tree, movers_of, pattern
from trioft.core.model import MIB
from trioft.core.naming import is_own
from truth import children_of, recorded

OPTIONS = """
source: {settle_closed: 300ms, scan_interval: 2s}
destination: {check_interval: 500ms, min_free: 1MiB}
copy: {checkpoint_size: 8MiB, stall_timeout: 2s, on_success: delete}
growing: {min_size: 4MiB}
retry: {first: 100ms, longest: 1s}
"""
DISK_SIZE = 512 * MIB
MOST_WAITING = 160 * MIB  # what may be at the source: more than fits is a test of another kind
NAME = re.compile(rb"(?:.*/)?\w+-(\d+)-(\d+)(?:_\d+)?\.\w+")


def content_of(path: bytes) -> bytes | None:
    """Return what a file of this name has to hold; None if it is none of ours."""
    found = NAME.fullmatch(path)
    return pattern(int(found[1]), int(found[2])) if found else None


class Soak:
    """What is shared: the site, the disk, and what has been found wrong."""

    def __init__(self, root: Path, minutes: float, seed: int) -> None:
        self.site = Site(root)
        self.chance = random.Random(seed)
        self.length = minutes * 60
        self.begun = time.monotonic()
        self.bare = watched(self.site.dest)
        self.disk = Disk("ext4", root / "disk.img", self.site.dest, DISK_SIZE)
        self.disk.mount()
        self.mounted = threading.Lock()  # held while the disk must stay as it is
        self.config = root / "trioft.yaml"
        self.config.write_text(OPTIONS)
        self.stop = threading.Event()  # no more files, no more faults
        self.end = threading.Event()
        self.wrong: list[str] = []
        self.made: dict[bytes, int] = {}
        self.arrived: set[bytes] = set()
        self.faults: Counter[str] = Counter()
        self.samples: list[tuple[float, int, int, int, int, int]] = []
        self.running = self.start()

    def start(self) -> Running:
        return self.site.watch("-c", self.config, "--settle", "1s")

    @property
    def age(self) -> float:
        return time.monotonic() - self.begun

    @property
    def is_running(self) -> bool:
        return self.running.process.poll() in (None, -signal.SIGKILL)  # it is killed here, and started again

    def complain(self, text: str) -> None:
        self.wrong.append(f"{self.age:.0f} s: {text}")
        print("WRONG", self.wrong[-1], flush=True)

    # --- what arrives

    def name(self, kind: str, size: int) -> bytes:
        seed = self.chance.randrange(1 << 30)
        path = b"%s/%d/%s-%d-%d.bin" % (kind.encode(), len(self.made) % 5, kind.encode(), size, seed)
        self.made[path] = size
        return path

    def waits(self) -> bool:
        """Is there enough at the source already?"""
        left = sum(size for path, size in list(self.made.items()) if path not in self.arrived)
        return left > MOST_WAITING or self.stop.wait(0)

    def make_small(self) -> None:
        if not self.waits():
            paths = [self.name("small", self.chance.randrange(1, 200_000)) for _ in range(self.chance.randrange(1, 60))]
            make_tree(self.site.source, {path: content_of(path) for path in paths})
        self.stop.wait(self.chance.uniform(0.5, 3))

    def make_large(self) -> None:
        if not self.waits():
            path = self.name("large", self.chance.randrange(2 * MIB, 40 * MIB))
            make_tree(self.site.source, {path: content_of(path)})
        self.stop.wait(self.chance.uniform(1, 6))

    def record(self) -> None:
        """A recorder: writes with pauses, rewrites its header, closes."""
        if self.waits():
            self.stop.wait(1)
            return
        path = self.name("take", self.chance.randrange(5 * MIB, 30 * MIB))
        content = content_of(path)
        assert content is not None
        target = os.path.join(os.fsencode(self.site.source), path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "xb", buffering=0) as file:
            file.write(bytes(4096))
            at = 4096
            while at < len(content):
                step = self.chance.randrange(100_000, 2 * MIB)
                file.write(content[at : at + step])
                at += step
                self.stop.wait(0.1)
            file.seek(0)
            file.write(content[:4096])

    # --- what is seen at the destination

    def read(self) -> None:
        """Check whatever has a final name, and take away what has no source any more."""
        with self.mounted:
            if self.disk.is_mounted:
                self.read_once()
        self.end.wait(0.5)

    def read_once(self) -> None:
        base = os.fsencode(self.site.dest)
        for folder, _, names in os.walk(base):
            for name in names:
                whole = os.path.join(folder, name)
                path = os.path.relpath(whole, base)
                if is_own(path) or path in (b"lost+found", b"filler"):
                    continue
                with contextlib.suppress(FileNotFoundError), open(whole, "rb") as file:
                    if file.read() != content_of(path):
                        self.complain(f"{path!r} has a final name and wrong content")
                if not os.path.exists(os.path.join(os.fsencode(self.site.source), path)):
                    os.unlink(whole)
                    self.arrived.add(re.sub(rb"_\d+\.", b".", path))

    # --- what goes wrong

    def hurt(self) -> None:
        kinds: list[Callable[[], None]] = [self.remount, self.unmount, self.fill, self.kill_mover, self.stop_mover]
        kinds += [self.kill_mover, self.stop_agent]
        if self.age < self.length / 2:
            kinds.append(self.kill_agent)
        chosen = self.chance.choice(kinds)
        chosen()
        self.faults[chosen.__name__] += 1
        self.stop.wait(self.chance.uniform(1, 6))

    def look_at_bare(self) -> None:
        for mask, name in read_events(self.bare):
            if mask & ~IN_ISDIR != IN_OPEN:
                self.complain(f"{name!r} in the bare mount point: event {mask:#x}")

    def unmount_for(self, seconds: float) -> None:
        with self.mounted:
            self.disk.unmount("--lazy")
            self.stop.wait(seconds)
            self.look_at_bare()
            self.disk.mount()

    def remount(self) -> None:
        self.unmount_for(0)

    def unmount(self) -> None:
        self.unmount_for(self.chance.uniform(1, 5))

    def fill(self) -> None:
        """Take all the space for a while."""
        with self.mounted:
            filler = self.site.dest / "filler"
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                for _ in range(DISK_SIZE // MIB):
                    file.write(bytes(MIB))
            self.stop.wait(self.chance.uniform(1, 4))
            filler.unlink(missing_ok=True)

    def some_mover(self) -> int | None:
        movers = movers_of(self.running.process.pid)
        return self.chance.choice(movers) if movers else None

    def kill_mover(self) -> None:
        if (mover := self.some_mover()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(mover, signal.SIGKILL)

    def stop_mover(self) -> None:
        """A mover hangs for longer than ``stall_timeout``, or a little shorter."""
        if (mover := self.some_mover()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(mover, signal.SIGSTOP)
                self.stop.wait(self.chance.uniform(0.5, 4))
                os.kill(mover, signal.SIGCONT)

    def stop_agent(self) -> None:
        self.running.process.send_signal(signal.SIGSTOP)
        self.stop.wait(self.chance.uniform(0.5, 4))
        self.running.process.send_signal(signal.SIGCONT)

    def kill_agent(self) -> None:
        self.running.end(signal.SIGKILL)
        if any(line.get("state") == "failed" for line in self.running.lines):
            self.complain(f"a file failed: {[line for line in self.running.lines if line.get('state') == 'failed']}")
        self.running = self.start()

    # --- what it costs

    def sample(self) -> None:
        pid = self.running.process.pid
        with contextlib.suppress(OSError, KeyError):  # it has just been killed
            with open(f"/proc/{pid}/status", encoding="utf-8") as file:
                fields = dict(line.split(":", 1) for line in file)
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            memory, threads = int(fields["VmRSS"].split()[0]), int(fields["Threads"])
            self.samples.append((self.age, pid, memory, descriptors, threads, len(children_of(pid))))
        self.end.wait(0.5)

    # --- the whole

    def run(self) -> None:
        def repeat(work: Callable[[], None], until: threading.Event) -> None:
            while not until.is_set():
                try:
                    work()
                except Exception as error:
                    self.complain(f"{work.__name__}: {error!r}")
                    until.wait(1)

        begun = [(self.make_small, self.stop), (self.make_large, self.stop), (self.record, self.stop)]
        begun += [(self.hurt, self.stop), (self.read, self.end), (self.sample, self.end)]
        threads = [threading.Thread(target=repeat, args=args) for args in begun]
        for thread in threads:
            thread.start()
        try:
            while self.age < self.length:
                time.sleep(min(10, max(0.1, self.length - self.age)))
                self.report_progress()
                if not self.is_running:
                    self.complain(f"the agent has ended: {self.running.errors[-2000:]}")
                    break
            self.stop.set()
            for thread in threads[:4]:
                thread.join()
            deadline = time.monotonic() + 120
            while self.made.keys() - self.arrived and time.monotonic() < deadline and self.is_running:
                time.sleep(0.5)
        finally:
            self.stop.set()
            self.end.set()
            for thread in threads:
                thread.join()
        self.judge()

    def report_progress(self) -> None:
        print(f"{self.age:5.0f} s  {len(self.made)} made, {len(self.arrived)} arrived, {dict(self.faults)}", flush=True)

    def judge(self) -> None:
        done = self.running.end()
        if done.code != 0:
            self.complain(f"it ended with {done.code}: {done.err[-2000:]}")
        if missing := self.made.keys() - self.arrived:
            self.complain(f"{len(missing)} files have not arrived: {sorted(missing)[:5]}")
        if failed := done.files("failed"):
            self.complain(f"failed: {failed}")
        left = [path for path in self.site.dest.rglob("*") if is_own(os.fsencode(path.name))]
        # The file of a probe that died with its mover is swept a day later.
        if left := [path for path in left if not path.name.startswith(".trioft-probe-")]:
            self.complain(f"partials are left: {left}")
        if checkpoints := recorded(self.site).checkpoints:
            self.complain(f"checkpoints are left: {checkpoints}")
        self.fit()

    def fit(self) -> None:
        """Print how the last half of the samples goes on, and complain of what grows."""
        late = [sample for sample in self.samples if sample[0] > self.length * 0.55 and sample[0] < self.length]
        print(f"\n{'':12} {'first':>9} {'median':>9} {'most':>9} {'last':>9} {'slope':>16}")
        for column, (name, tolerated) in enumerate(
            [("memory, KiB", 4096.0), ("descriptors", 12.0), ("threads", 3.0), ("children", 4.0)], start=2
        ):
            points = [(sample[0], float(sample[column])) for sample in late]
            if len(points) < 3:
                continue
            values = [value for _, value in points]
            slope = slope_of(points)
            grown = slope * (points[-1][0] - points[0][0])
            median = sorted(values)[len(values) // 2]
            figures = " ".join(f"{value:9.0f}" for value in (values[0], median, max(values), values[-1]))
            print(f"{name:12} {figures} {slope * 3600:10.1f} an hour")
            if grown > tolerated and grown > median * 0.1:
                self.complain(f"{name} grew by {grown:.0f}")

    def dismantle(self) -> None:
        self.site.stop_all()
        self.disk.dismantle()
        os.close(self.bare)


def slope_of(points: list[tuple[float, float]]) -> float:
    """Return the slope of the line that fits best."""
    middle = sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
    spread = sum((x - middle[0]) ** 2 for x, _ in points)
    return sum((x - middle[0]) * (y - middle[1]) for x, y in points) / spread if spread else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**31 else None
    with tempfile.TemporaryDirectory(dir=place, prefix="trioft-soak-") as folder:
        soak = Soak(Path(folder), options.minutes, options.seed)
        try:
            soak.run()
        finally:
            soak.dismantle()
    size = sum(soak.made.values())
    print(f"\n{len(soak.made)} files, {size / MIB:.0f} MiB; faults: {dict(soak.faults)}; wrong: {len(soak.wrong)}")
    for text in soak.wrong:
        print(text)
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and leave nothing mounted
    sys.exit(main())
