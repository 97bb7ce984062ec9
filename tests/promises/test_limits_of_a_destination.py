"""What a destination cannot hold: more files, larger ones, some times, some attributes. It is said."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import TRIOFT, Done, Site, files_of, make_tree, mounted

MIB = 1 << 20


@contextlib.contextmanager
def made(kind: str, image: Path, point: Path, *options: str, size: int = 64 * MIB) -> Iterator[None]:
    """Make a filesystem with these *options*, and mount it while inside."""
    program = f"mkfs.{kind}"
    if os.geteuid() != 0 or shutil.which(program) is None:
        pytest.skip(f"needs root and {program}")
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run([program, "-q", *options, image], check=True, capture_output=True, timeout=60)
    with mounted(image, point, "-o", "loop"):
        yield


def old(site: Site, names: list[str]) -> None:
    for name in names:
        os.utime(site.source / name, (1e9, 1e9))


def test_inodes_that_are_used_up_are_said_and_waited_for(site: Site, tmp_path: Path) -> None:
    """What fits is delivered, the rest says what is missing, and goes on when some files are removed."""
    with made("ext4", tmp_path / "image", site.dest, "-N", "40"):
        make_tree(site.source, {f"f{n}": b"%d" % n for n in range(60)})
        agent = site.watch("-v")
        line = agent.wait_for(lambda line: line.get("state") == "waiting" and "inode" in (line.get("reason") or ""))
        assert line["reason"].startswith("space: ")
        agent.wait_for_file("f0", "done")
        agent.end()
        there = files_of(site.dest)
        assert 20 <= len(there) < 60
        for name in there:
            os.unlink(os.path.join(os.fsencode(site.dest), name))
        again = site.watch("-v")
        again.wait_for(lambda line: line.get("state") == "done", 30)
        again.end()


def test_a_destination_that_has_no_inode_at_all_says_so(site: Site, tmp_path: Path) -> None:
    """Its probe cannot make a file: the reason is not that space is missing."""
    with made("ext4", tmp_path / "image", site.dest, "-N", "16"):
        with contextlib.suppress(OSError):
            for n in range(100):
                (site.dest / f"x{n}").touch()
        make_tree(site.source, {"a": b"a"})
        done = site.sync()
        assert done.code == 3
        assert "no inodes are left" in done.err


@pytest.mark.parametrize("year", [1902, 2050])
def test_times_that_the_destination_cannot_hold_are_delivered_once(site: Site, tmp_path: Path, year: int) -> None:
    """What it makes of them is taken for them by the next sync, which reads nothing."""
    with made("ext4", tmp_path / "image", site.dest, "-I", "128"):
        make_tree(site.source, {"a": 3 * MIB, "b": b"b"})
        for name in "ab":
            os.utime(site.source / name, ((year - 1970) * 31_557_600.0,) * 2)
        first = site.sync()
        assert first.summary["delivered"] == 2, (first.err, first.lines)
        was = os.stat(site.dest / "a")
        for _ in range(2):
            done = site.sync()
            assert (done.summary["delivered"], done.summary["already"], done.code) == (0, 2, 0)
        assert os.stat(site.dest / "a").st_ctime_ns == was.st_ctime_ns, "its copy was not touched"
        assert sorted(os.listdir(site.dest)) == ["a", "b", "lost+found"]


def test_a_file_that_is_too_large_is_refused_before_it_is_copied(site: Site) -> None:
    """As by a FAT: nothing of it is written, the reason names the limit, and the others arrive."""
    make_tree(site.source, {"large": 4 * MIB, "small": b"x"})
    command = [*TRIOFT, "sync", site.source, site.dest, "--state-dir", site.state, "--json", "--settle", "100ms"]
    limited = ["sh", "-c", 'ulimit -f 2048 && exec "$@"', "sh", *map(str, command)]
    ran = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
    done = Done(ran.returncode, ran.stdout, ran.stderr)
    (failed,) = done.files("failed").values()
    assert "no file of more than" in failed["reason"], failed
    assert done.summary["bytes"] == 1
    assert files_of(site.dest) == {b"small": b"x"}


def test_a_file_that_is_too_large_does_not_wait_for_room(site: Site) -> None:
    """No room would do: it fails at once, also where there is less of that than it needs."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    make_tree(site.source, {"large": 16 * MIB, "small": b"x"})
    command = [*TRIOFT, "sync", site.source, site.dest, "--state-dir", site.state, "--json", "--settle", "100ms"]
    limited = ["sh", "-c", 'ulimit -f 2048 && exec "$@"', "sh", *map(str, command), "--min-free", "0%"]
    with mounted("none", site.dest, "-t", "tmpfs", "-o", "size=4m"):
        ran = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
        assert files_of(site.dest) == {b"small": b"x"}
    done = Done(ran.returncode, ran.stdout, ran.stderr)
    assert done.code == 1
    assert "no file of more than" in done.files("failed")["large"]["reason"]


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_an_attribute_that_is_too_large_loses_no_other(site: Site, tmp_path: Path, size: int) -> None:
    """The rest arrive, and it is said which did not; history has it too."""
    source = tmp_path / "xfs"
    source.mkdir()
    with made("xfs", tmp_path / "x", source, size=320 * MIB), made("ext4", tmp_path / "image", site.dest):
        make_tree(source, {"f": size})
        for name, value in (("user.a_first", b"1"), ("user.big", b"x" * 60_000), ("user.c_later", b"2")):
            os.setxattr(source / "f", name, value)
        done = site.run("sync", source, site.dest, "--state-dir", site.state, "--settle", "100ms")
        assert done.code == 0
        assert "user.big" in done.err
        assert sorted(os.listxattr(site.dest / "f")) == ["user.a_first", "user.c_later"]
        told = site.run("explain", source / "f", "--state-dir", site.state)
        assert "user.big" in told.out
