"""
Two agents at one destination, round after round, by hand: nothing is lost, and no two files are mixed.

``rounds.py pair``: two triofts that do not know of each other (each in a network of its own, with a state folder of its
own, and the claims are taken away) work on one pair, and remove or archive what they have delivered.
``rounds.py twins``: two machines of one make, whose sources have the same device and inode numbers, deliver other
content of the same names into one folder. In both some agents are killed on the way, and started again.

Only root may do that. A library that is loaded first shows all of both sources under one device number and, for a
path, one inode number: it takes a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from trioft.core.naming import is_own

PROJECT = Path(__file__).parents[2]
TRIOFT = [sys.executable, "-m", "trioft"]
ALONE = ["unshare", "--net", "--uts"]  # the lock of the machine is one of its network
BLOCK = 8 * 1024 * 1024
NAMES = ("large.mxf", "take.mxf", "one", "two", "sub/three")

_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
static void fix(struct stat64 *its) {
    char *device = getenv("FAKE_DEV");
    if (device && its->st_dev == strtoul(device, 0, 10)) { its->st_dev = 2065; its->st_ino = 12 + its->st_size % 7; }
}
#define SHOW(name, arguments, passed) int name arguments { \
    static int (*real) arguments; \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    int done = real passed; \
    if (!done) fix(its); \
    return done; }
SHOW(stat64, (const char *path, struct stat64 *its), (path, its))
SHOW(lstat64, (const char *path, struct stat64 *its), (path, its))
SHOW(fstat64, (int fd, struct stat64 *its), (fd, its))
SHOW(fstatat64, (int fd, const char *path, struct stat64 *its, int flags), (fd, path, its, flags))
"""


def content_of(rng: random.Random, name: str) -> bytes:
    """Return new content: of the large ones several blocks."""
    return rng.randbytes((rng.randrange(1, 4) * BLOCK + 70_001) if name.endswith(".mxf") else 2000)


def fill(folder: Path, rng: random.Random) -> dict[str, bytes]:
    contents = {}
    for name in NAMES:
        contents[name] = content_of(rng, name)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[name])
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return contents


def everything(*folders: Path) -> dict[str, bytes]:
    """Return what is below *folders* and no partial, claim or probe; also what is aside for a moment."""
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not is_own(os.fsencode(path.name))
    }


def without_claims(dest: Path) -> None:
    for claim in dest.glob(".trioft-claim*"):
        with contextlib.suppress(FileNotFoundError):
            claim.unlink()


def lives_of(rng: random.Random, commands: list[list[str]], environments: list[dict[str, str]], dest: Path) -> str:
    """Run all *commands* at once, kill some of them at any moment, start those again; say how all ended."""
    running = [
        subprocess.Popen(command, env=env, cwd=PROJECT) for command, env in zip(commands, environments, strict=True)
    ]
    deaths = {n: time.monotonic() + rng.uniform(0.1, 1.5) for n in range(len(running)) if rng.random() < 0.5}
    end = time.monotonic() + 120
    while any(process.poll() is None for process in running):
        assert time.monotonic() < end, "an agent does not end"
        without_claims(dest)
        for n, moment in list(deaths.items()):
            if time.monotonic() > moment:
                del deaths[n]
                running[n].send_signal(signal.SIGKILL)
                running[n].wait()
                running[n] = subprocess.Popen(commands[n], env=environments[n], cwd=PROJECT)
        time.sleep(0.002)
    return "exit codes " + " and ".join(sorted(str(process.returncode) for process in running))


@contextlib.contextmanager
def place(keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="trioft-rounds-"))
    yield folder
    if not keep:
        shutil.rmtree(folder)


def one_of_pair(number: int) -> str:
    """Return what one round was about; raises ``AssertionError`` if something was lost."""
    rng = random.Random(number)
    with place(keep=False) as folder:
        source, dest, archive = folder / "source", folder / "dest", folder / "archive"
        for its in (source, dest, archive):
            its.mkdir()
        contents = fill(source, rng)
        then = rng.choice(["delete", f"archive:{archive}"])
        level = rng.choice(["readback", "transfer"])
        options = ["--on-success", then, "--verify", level, "--settle", "100ms", "-q", "--bwlimit", "60MiB/s"]
        commands = [
            [*ALONE, *TRIOFT, "sync", str(source), str(dest), "--state-dir", str(folder / f"state{n}"), *options]
            for n in range(2)
        ]
        how = lives_of(rng, commands, [dict(os.environ)] * 2, dest)
        there = everything(source, dest, archive)
        lost = [name for name, content in contents.items() if content not in there.values()]
        mixed = [path for path, content in there.items() if content not in contents.values()]
        assert not lost, f"round {number}: lost {lost}"
        assert not mixed, f"round {number}: nothing that there ever was: {mixed}"
        return f"{then.partition(':')[0]}, {level}, {how}"


def one_of_twins(number: int, shim: Path) -> str:
    """The same for two sources that look like one."""
    rng = random.Random(number)
    with place(keep=False) as folder:
        dest = folder / "dest"
        dest.mkdir()
        level, then = ("readback", "transfer")[number % 2], rng.choice(["keep", "delete"])
        contents: list[bytes] = []
        commands, environments, mounted = [], [], []
        try:
            for n in range(2):
                source = folder / f"card{n}"
                source.mkdir()
                subprocess.run(["mount", "-t", "tmpfs", "none", source], check=True)
                mounted.append(source)
                contents += fill(source, rng).values()
                ends = [str(source), str(dest), "--state-dir", str(folder / f"state{n}")]
                options = ["--on-success", then, "--verify", level, "--settle", "100ms", "-q", "--bwlimit", "60MiB/s"]
                commands.append([*ALONE, *TRIOFT, "sync", *ends, "--if-exists", "rename", *options])
                device = str(os.stat(source).st_dev)
                environments.append({**os.environ, "LD_PRELOAD": str(shim), "FAKE_DEV": device})
            how = lives_of(rng, commands, environments, dest)
            there = everything(dest, *mounted)
            assert all(content in there.values() for content in contents), f"round {number}: something is lost"
            mixed = [path for path, content in there.items() if content not in contents]
            assert not mixed, f"round {number}: nothing that there ever was: {mixed}"
        finally:
            for source in mounted:
                subprocess.run(["umount", source], check=True)
        return f"{then}, {level}, {how}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pair", "twins"])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    with place(keep=False) as folder:
        shim = folder / "shim.so"
        if given.what == "twins":
            (folder / "shim.c").write_text(_SHIM)
            compiler = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(folder / "shim.c"), "-ldl"]
            subprocess.run(compiler, check=True)
        counts: dict[str, int] = {}
        for number in range(given.first, given.first + given.rounds):
            kind = one_of_pair(number) if given.what == "pair" else one_of_twins(number, shim)
            counts[kind] = counts.get(kind, 0) + 1
    print(f"{given.rounds} rounds, nothing lost, nothing mixed:")
    for kind, count in sorted(counts.items()):
        print(f"{count:5} {kind}")


if __name__ == "__main__":
    main()
