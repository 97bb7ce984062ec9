"""The process that reports file events: what it tells of, also where watches run out, and of what is mounted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import PATIENCE, make_tree, mounted
from trioft.movers.child import child_command
from trioft.movers.ops.wire import receive

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


class Watcher:
    """The process, and what it has told so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.told: list[tuple[str, Any]] = []
        self._process = process
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # it has been closed meanwhile
            while (message := receive(self._process.stdout.fileno())) is not None:
                with self._changed:
                    self.told.append(message)
                    self._changed.notify_all()

    @property
    def paths(self) -> set[bytes]:
        return {path for kind, value in self.told if kind == "paths" for path in value}

    def until(self, holds: Callable[[Watcher], object], seconds: float = PATIENCE) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self), seconds), self.told

    def until_told(self, kind: str, value: object = None) -> None:
        self.until(lambda its: (kind, value) in its.told)

    def until_path(self, path: bytes) -> None:
        self.until(lambda its: path in its.paths)

    def until_watched(self, folder: Path, below: bytes) -> None:
        """Make files in a *folder*, which is *below* the source, until one is told of."""
        for number in range(100):
            (folder / f"sentinel-{number}").touch()
            wanted = below + b"/sentinel-%d" % number
            with self._changed:
                if self._changed.wait_for(lambda wanted=wanted: wanted in self.paths, 0.5):  # type: ignore[misc]
                    return
        raise AssertionError(self.told)


@contextlib.contextmanager
def watching(source: Path, *around: str) -> Iterator[Watcher]:
    command = [*around, *child_command("movers.ops.watcher", os.fsencode(source))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            yield Watcher(process)
        finally:
            process.kill()


def test_everything_that_changes_is_told(tmp_path: Path) -> None:
    """Files and folders, below folders that came, moved and are called otherwise, with any name."""
    make_tree(tmp_path, {"there/file": b"1", b"odd\xff/\n": None})
    with watching(tmp_path) as watcher:
        watcher.until_told("watching", (0, ""))
        make_tree(tmp_path, {b"there/new": b"1", b"odd\xff/\n/x\xfe": b"2", "a/b/c/d": b"3"})
        for path in (b"there/new", b"odd\xff/\n/x\xfe", b"a"):
            watcher.until_path(path)
        (tmp_path / "a").rename(tmp_path / "there/z")
        watcher.until_path(b"there/z")
        make_tree(tmp_path, {"there/z/b/c/e": b"4"})
        watcher.until_path(b"there/z/b/c/e")
        assert not {path for path in watcher.paths if path.startswith(b"a/b/c/e")}
        shutil.rmtree(tmp_path / "there")
        watcher.until_path(b"there")
        make_tree(tmp_path, {"there/again/x": b"5"})
        watcher.until_watched(tmp_path / "there/again", b"there/again")
        (tmp_path / "there/again/x").chmod(0o600)
        watcher.until_path(b"there/again/x")
    assert {kind for kind, _ in watcher.told} == {"watching", "paths"}


def test_more_changes_than_can_be_told_are_told_as_that(tmp_path: Path) -> None:
    """The kernel keeps so many; what got lost among them may be a folder, which is watched all the same."""
    with watching(tmp_path) as watcher:
        watcher.until_told("watching", (0, ""))
        pid = watcher._process.pid
        os.kill(pid, signal.SIGSTOP)
        for number in range(9000):
            os.mknod(tmp_path / f"{number}")
            os.rename(tmp_path / f"{number}", tmp_path / f"{number}x")
        (tmp_path / "folder").mkdir()
        os.kill(pid, signal.SIGCONT)
        watcher.until_told("lost")
        watcher.until_watched(tmp_path / "folder", b"folder")


def test_watches_that_run_out_are_told_and_set_later(tmp_path: Path) -> None:
    """While it runs, too: a folder without a watch has no events, and somebody has to look there."""
    limit = "/proc/sys/user/max_inotify_watches"
    around = ["unshare", "--user", "--map-root-user", "sh", "-c", f'echo 4 >{limit} && exec "$@"', "sh"]
    if subprocess.run([*around, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    make_tree(tmp_path, {"a": None, "b": None})
    again = "import sys; from trioft.movers.ops import watcher; watcher._AGAIN = 0.1; watcher._SHARE = 0"
    command = [*around, sys.executable, "-c", f"{again}; watcher.main(int(sys.argv[1]), sys.argv[2].encode())"]
    with subprocess.Popen([*command, str(os.getpid()), str(tmp_path)], stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            watcher = Watcher(process)
            watcher.until_told("watching", (0, ""))
            for name in ("c", "d", "e"):
                (tmp_path / name).mkdir()
            watcher.until(_unwatched)
            assert _unwatched(watcher) == "there are no more watches: raise fs.inotify.max_user_watches"
            for name in ("a", "b"):
                (tmp_path / name).rmdir()
            watcher.until(lambda its: [told for told in its.told if told == ("watching", (0, ""))][1:])
            watcher.until_told("lost")
            make_tree(tmp_path, {"e/x": b"1"})
            watcher.until_path(b"e/x")
        finally:
            process.kill()


def _unwatched(watcher: Watcher) -> str | None:
    return next((value[1] for kind, value in watcher.told if kind == "watching" and value[0]), None)


@needs_root
def test_what_is_mounted_below_is_watched(tmp_path: Path) -> None:
    """A card that is mounted below the source, taken out and put in again: nobody has to scan to find out."""
    source, card = tmp_path / "source", tmp_path / "card"
    make_tree(tmp_path, {"source/cards/1": None, "card/DCIM": None})
    with watching(source) as watcher:
        watcher.until_told("watching", (0, ""))
        for number in range(3):
            with mounted(card, source / "cards/1", "--bind"):
                watcher.until_told("lost")
                watcher.until_watched(card / "DCIM", b"cards/1/DCIM")
                make_tree(card, {f"DCIM/{number}": b"1"})
                watcher.until_path(b"cards/1/DCIM/%d" % number)
                watcher.told.clear()
            watcher.until_told("lost")
            watcher.until_watched(source / "cards/1", b"cards/1")
            watcher.told.clear()


@needs_root
def test_a_source_that_is_mounted_again_is_watched_again(tmp_path: Path) -> None:
    """However short the time was, and although the root's name has never changed."""
    source, first, second = tmp_path / "source", tmp_path / "first", tmp_path / "second"
    make_tree(tmp_path, {"source": None, "first/a": None, "second/a": None})
    with mounted(first, source, "--bind"), watching(source) as watcher:
        watcher.until_told("watching", (0, ""))
        subprocess.run(["umount", source], check=True)
        subprocess.run(["mount", "--bind", second, source], check=True)
        watcher.until_told("lost")
        watcher.until_watched(second / "a", b"a")


def test_it_ends_when_nobody_reads_any_more(tmp_path: Path) -> None:
    """Without an event, too."""
    with subprocess.Popen(
        child_command("movers.ops.watcher", os.fsencode(tmp_path)), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert receive(process.stdout.fileno()) == ("watching", (0, ""))
        process.stdout.close()
        begun = time.monotonic()
        process.wait(PATIENCE)
        assert time.monotonic() - begun < 10
