"""
How fast trioft is, beside the tools that people use instead. Run by hand; needs free disk space and a quiet machine.

    python tests/bench/bench_transfers.py            everything, some ten minutes
    python tests/bench/bench_transfers.py --quick    a look whether it works, half a minute

Tools take turns in one run (A B C A B C …), each into a fresh, empty folder, from a source that is in the page cache.
What they wrote is checked, and removed outside of the timed part. All of it lies in one temporary folder, which is
removed at the end; nothing else is touched, no cache is dropped. Before the rounds that count, each tool runs once, to
warm up and to have the memory of its processes sampled.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import trio

from trioft import __version__
from trioft.movers import Movers
from trioft.notation import format_size, parse_size

TRIOFT = [sys.executable, "-m", "trioft"]
READBACK, TRANSFER = "trioft --verify readback", "trioft --verify transfer"
SPARE = 2**30  # bytes that must stay free
MOST_SECONDS = 1800  # that one run may take
SAMPLE_EVERY = 0.02  # seconds between two looks at the memory
A_FOLDER = 100  # files

Command = Callable[[Path, Path], list[str]]


class Run(NamedTuple):
    """What one run of one tool took."""

    seconds: float
    cpu: float  # user and system, of all its processes


class Measured(NamedTuple):
    """One tool in one case."""

    tool: str
    runs: list[Run]
    memory: int  # bytes: the most that all its processes together had, shared pages counted once

    @property
    def seconds(self) -> list[float]:
        return [run.seconds for run in self.runs]


# --- The tools


def tools(state: Path) -> dict[str, Command]:
    """Return those that are installed: how to copy what is in one folder into another."""

    def trioft(level: str) -> Command:
        def command(source: Path, destination: Path) -> list[str]:
            shutil.rmtree(state, ignore_errors=True)
            ends = [str(source), str(destination)]
            return [*TRIOFT, "sync", *ends, "--verify", level, "--settle", "100ms", "--state-dir", str(state), "-q"]

        return command

    found: dict[str, Command] = {READBACK: trioft("readback"), TRANSFER: trioft("transfer")}
    found["cp -r; sync"] = lambda source, destination: [
        "sh", "-c", 'cp -r "$1/." "$2" && sync -f "$2"', "sh", str(source), str(destination)
    ]  # fmt: skip
    if shutil.which("rsync"):
        help_ = subprocess.run(["rsync", "--help"], capture_output=True, text=True, check=False).stdout
        if "--fsync" in help_:
            found["rsync -a --fsync"] = lambda source, destination: [
                "rsync", "-a", "--fsync", f"{source}/", str(destination)
            ]  # fmt: skip
        found["rsync -a"] = lambda source, destination: ["rsync", "-a", f"{source}/", str(destination)]
    if shutil.which("rclone"):
        found["rclone copy"] = lambda source, destination: ["rclone", "copy", "-q", str(source), str(destination)]
    return found


def versions() -> list[str]:
    lines = [f"trioft {__version__}, Python {platform.python_version()}, Trio {trio.__version__}"]
    for tool in ("cp", "rsync", "rclone"):
        if shutil.which(tool):
            done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
            lines.append(" ".join(done.stdout.splitlines()[0].split()))
    return lines


# --- Running them


class Bench:
    """The temporary folder, and what is done in it."""

    def __init__(self, place: Path, rounds: int) -> None:
        self.place = place
        self.rounds = rounds
        # Tools that keep settings or caches of their own find an empty home.
        self.environment = {
            **os.environ, "HOME": str(place / "home"), "RCLONE_CONFIG": str(place / "home" / "rclone.conf")
        }  # fmt: skip
        self.environment = {key: value for key, value in self.environment.items() if not key.startswith("XDG_")}
        (place / "home").mkdir()
        (place / "home" / "rclone.conf").touch()

    def run(self, command: list[str], memory: list[int] | None = None) -> Run:
        """Run *command* to its end; with *memory*, sample what its processes have."""
        with open(self.place / "output", "wb") as output:
            begun = time.perf_counter()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
                start_new_session=True,
            )
            with self._killed_on_error(process), sampled(process.pid, memory), deadline(process):
                _, status, usage = os.wait4(process.pid, 0)
                seconds = time.perf_counter() - begun
                process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            text = (self.place / "output").read_text("utf-8", "replace")
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
        return Run(seconds, usage.ru_utime + usage.ru_stime)

    @staticmethod
    @contextlib.contextmanager
    def _killed_on_error(process: subprocess.Popen[bytes]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            raise

    def compare(self, source: Path, commands: dict[str, Command]) -> list[Measured]:
        """Let *commands* copy *source* in turns."""
        runs: dict[str, list[Run]] = {tool: [] for tool in commands}
        memory: dict[str, list[int]] = {tool: [0] for tool in commands}
        destination = self.place / "destination"
        for round_ in range(self.rounds + 1):
            for tool, command in commands.items():
                show(f"{source.name}: round {round_} of {self.rounds}: {tool}")
                destination.mkdir()
                arguments = command(source, destination)
                os.sync()  # nobody pays for what others left behind
                run = self.run(arguments, memory[tool] if round_ == 0 else None)
                if sizes_below(destination) != sizes_below(source):
                    sys.exit(f"{tool} did not copy everything")
                if round_:
                    runs[tool].append(run)
                shutil.rmtree(destination)
        show("")
        return [Measured(tool, runs[tool], max(memory[tool])) for tool in commands]

    def compare_nothing_to_do(self, source: Path, commands: dict[str, Command]) -> list[Measured]:
        """Let *commands* find out in turns that the destination has everything."""
        runs: dict[str, list[Run]] = {tool: [] for tool in commands}
        memory: dict[str, list[int]] = {tool: [0] for tool in commands}
        destination = self.place / "destination"
        shutil.copytree(source, destination)
        os.sync()
        for round_ in range(self.rounds + 1):
            for tool, command in commands.items():
                run = self.run(command(source, destination), memory[tool] if round_ == 0 else None)
                if round_:
                    runs[tool].append(run)
        shutil.rmtree(destination)
        return [Measured(tool, runs[tool], max(memory[tool])) for tool in commands]


def show(text: str) -> None:
    """Say on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r{text:79}\r", end="", file=sys.stderr, flush=True)


def sizes_below(folder: Path) -> dict[str, int]:
    base = str(folder)
    return {
        os.path.relpath(os.path.join(above, name), base): os.lstat(os.path.join(above, name)).st_size
        for above, _, names in os.walk(base)
        for name in names
    }


@contextlib.contextmanager
def deadline(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End *process*, which is waited for in another way, if it takes for ever."""
    timer = threading.Timer(MOST_SECONDS, lambda: os.killpg(process.pid, signal.SIGKILL))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def sampled(pid: int, memory: list[int] | None) -> Iterator[None]:
    """While inside, append to *memory* what the processes from *pid* down have, shared pages counted once."""
    if memory is None:
        yield
        return
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_EVERY):
            memory.append(sum(map(memory_of, family_of(pid))))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def family_of(pid: int) -> list[int]:
    family = [pid]
    for member in family:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{member}/task"):
                children = Path(f"/proc/{member}/task/{thread}/children").read_text("ascii")
                family += [int(child) for child in children.split()]
    return family


def memory_of(pid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


# --- Sources


def make_files(folder: Path, count: int, size: int) -> Path:
    """Make *count* files of *size* incompressible bytes, a hundred in a folder."""
    for number in range(count):
        path = folder / f"{number // A_FOLDER:04d}" / f"{number:06d}.bin" if count > 1 else folder / "recording.mxf"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            for start in range(0, size, 2**23):
                file.write(os.urandom(min(2**23, size - start)))
    time.sleep(0.2)  # older than the settle time
    return folder


# --- Starting


def time_starts(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Return how long it takes to start things, in seconds."""
    script = Path(sys.executable).parent / "trioft"
    trioft = [str(script)] if script.exists() else TRIOFT
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "trioft --version": [*trioft, "--version"],
        "trioft --help": [*trioft, "--help"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    taken |= {"a mover, to its first answer": [], "a mover's next answer": []}
    for _ in range(rounds):
        for name, command in commands.items():
            taken[name].append(bench.run(command).seconds)
        first, next_ = trio.run(time_a_mover, os.fsencode(bench.place))
        taken["a mover, to its first answer"].append(first)
        taken["a mover's next answer"].append(next_)
    return taken


async def time_a_mover(folder: bytes) -> tuple[float, float]:
    async with Movers(1, 30) as movers:
        times = [time.perf_counter()]
        for _ in range(2):
            await movers.call("inspect", [folder])
            times.append(time.perf_counter())
    first, next_ = (after - before for before, after in itertools.pairwise(times))
    return first, next_


# --- Telling


def table(title: str, measured: list[Measured], amount: float, unit: str) -> str:
    """Return a Markdown table; ratios are medians over rounds, below 1 where trioft is faster."""
    ours = {tool.tool: tool for tool in measured if tool.tool in (READBACK, TRANSFER)}
    head = ["tool", "median", "range", unit, "CPU", "memory", *(f"{tool.split()[-1]} ÷ this" for tool in ours)]
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for tool in measured:
        median = statistics.median(tool.seconds)
        cells = [
            tool.tool,
            f"{median:.2f} s",
            f"{min(tool.seconds):.2f} to {max(tool.seconds):.2f}",
            f"{amount / median:,.0f}",
            f"{statistics.median(run.cpu for run in tool.runs):.2f} s",
            f"{tool.memory / 2**20:.0f} MiB" if tool.memory else "",  # over before anybody looked
            *(f"{ratio(mine, tool):.2f}" for mine in ours.values()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def ratio(ours: Measured, theirs: Measured) -> float:
    """Compare runs of the same round: what slowed one of them slowed the other too."""
    return statistics.median(a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True))


def table_of_starts(taken: dict[str, list[float]]) -> str:
    lines = ["### Starting", "", "| what | median | range |", "|---|---:|---:|"]
    for name, seconds in taken.items():
        low, middle, high = (1000 * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
        lines.append(f"| {name} | {middle:.1f} ms | {low:.1f} to {high:.1f} |")
    return "\n".join([*lines, ""])


def size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time trioft beside cp, rsync and rclone.")
    parser.add_argument("--quick", action="store_true", help="small and few: whether it works, not how fast it is")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every single figure to FILE, too")
    parser.add_argument("--size", type=size, help="of the large file (1GiB; quick: 64MiB)")
    parser.add_argument("--files", type=int, help="how many small ones (10000; quick: 500)")
    parser.add_argument("--file-size", type=size, default=4096, help="of a small one (4KiB)")
    parser.add_argument("--rounds", type=int, help="that count (5; quick: 2)")
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()), help="for the temporary folder")
    given = parser.parse_args()
    given.size = given.size if given.size is not None else 2**26 if given.quick else 2**30
    given.files = given.files if given.files is not None else 500 if given.quick else 10_000
    given.rounds = given.rounds if given.rounds is not None else 2 if given.quick else 5
    if given.rounds < 1 or given.files < 1:
        parser.error("at least one round and one file")
    return given


def main() -> None:
    given = arguments()
    needed = 2 * max(given.size, given.files * max(given.file_size, 4096)) + SPARE
    free = shutil.disk_usage(given.where).free
    if free < needed:
        sys.exit(f"{given.where} has {free / 2**30:.1f} GiB free, this needs {needed / 2**30:.1f} GiB")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with tempfile.TemporaryDirectory(prefix="trioft-bench-", dir=given.where) as place:
        bench = Bench(Path(place), given.rounds)
        commands = tools(bench.place / "state")
        print("\n".join(f"* {line}" for line in [*versions(), machine(bench.place)]), end="\n\n")
        figures: dict[str, object] = {}

        starts = time_starts(bench, 2 + given.rounds)
        print(table_of_starts(starts), flush=True)
        figures["starting"] = starts

        source = make_files(bench.place / "large", 1, given.size)
        measured = bench.compare(source, commands)
        print(table(f"One file of {format_size(given.size)}", measured, given.size / 10**6, "MB/s"), flush=True)
        figures["large"] = [tool._asdict() for tool in measured]
        shutil.rmtree(source)

        source = make_files(bench.place / "small", given.files, given.file_size)
        measured = bench.compare(source, commands)
        title = f"{given.files:,} files of {format_size(given.file_size)}"
        print(table(title, measured, given.files, "files/s"), flush=True)
        figures["small"] = [tool._asdict() for tool in measured]

        idle = {tool: commands[tool] for tool in (READBACK, "rsync -a", "rclone copy") if tool in commands}
        measured = bench.compare_nothing_to_do(source, idle)
        print(table(f"{title}, and nothing to do", measured, given.files, "files/s"), flush=True)
        figures["nothing to do"] = [tool._asdict() for tool in measured]
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1), "utf-8")


def machine(place: Path) -> str:
    kind = subprocess.run(["stat", "-f", "-c", "%T", place], capture_output=True, text=True, check=False).stdout.strip()
    return f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, {kind}; load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
