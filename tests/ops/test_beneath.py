"""Paths below a root: whose links are followed, and that nobody leads an operation elsewhere while it is at work."""

from __future__ import annotations

import ast
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import trioft.movers.ops
from files import Ground, open_files, ordinary_user, root_of
from support import files_of
from trioft.core.errors import Side, hint_for, trouble_of
from trioft.movers.ops import beneath, linux
from trioft.movers.ops.beneath import LinkRefused, Top
from trioft.movers.ops.files import READ, opened
from trioft.movers.ops.folder.partials import make_folder, sync_folder

_STRANGER = 12_345
_RACE = 3.0  # seconds
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with Ground(tmp_path) as place:
        yield place


@pytest.fixture(params=["openat2", "name by name"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Folders are opened by the kernel's own walk, and where there is none."""
    if request.param != "openat2":

        def missing(*_: object) -> int:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(linux, "openat2", missing)
    return str(request.param)


OPERATIONS: dict[str, Callable[[Top, bytes], object]] = {
    "open": lambda top, path: beneath.open_file(path, READ, dir_fd=top),
    "create": lambda top, path: beneath.open_file(path + b".new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=top),
    "stat": lambda top, path: beneath.stat_of(path, dir_fd=top),
    "mkdir": lambda top, path: beneath.mkdir(path + b".new", dir_fd=top),
    "make folders": lambda top, path: beneath.make_folders(path + b".new/further", dir_fd=top),
    "rmdir": lambda top, path: beneath.rmdir(os.path.dirname(path) + b"/empty", dir_fd=top),
    "unlink": lambda top, path: beneath.unlink(path, dir_fd=top),
    "utime": lambda top, path: beneath.utime(path, (1, 1), dir_fd=top),
    "chmod": lambda top, path: beneath.chmod(path, 0o600, dir_fd=top),
    "rename out": lambda top, path: beneath.rename(path, b"out", dir_fd=top),
    "rename in": lambda top, path: beneath.rename(b"mine", path, dir_fd=top),
    "rename to a free name": lambda top, path: beneath.rename_noreplace(b"mine", path + b".new", dir_fd=top),
    "list": lambda top, path: beneath.open_folder(os.path.dirname(path), dir_fd=top),
}


def elsewhere(ground: Ground) -> dict[bytes, tuple[bytes | None, int, int]]:
    """Return all that lies beside source and destination: contents, permission bits, times."""
    found: dict[bytes, tuple[bytes | None, int, int]] = {}
    for path in (ground.source.parent / "elsewhere").rglob("*"):
        status = path.lstat()
        found[bytes(path)] = (path.read_bytes() if path.is_file() else None, status.st_mode, status.st_mtime_ns)
    return found


def lay_link(ground: Ground, at: Path, owner: int) -> None:
    """Let *at* be a link to a folder elsewhere, which belongs to *owner*."""
    target = ground.source.parent / "elsewhere"
    (target / "empty").mkdir(parents=True)
    (target / "private").write_bytes(b"secret")
    at.symlink_to(target)
    os.lchown(at, owner, owner)


@needs_root
@pytest.mark.parametrize("call", OPERATIONS)
def test_a_link_of_somebody_else_at_the_destination_is_refused(ground: Ground, way: str, call: str) -> None:
    """Nothing is read, made, changed or removed behind it, and the error says which link it is and whose."""
    lay_link(ground, ground.dest / "link", _STRANGER)
    (ground.dest / "mine").write_bytes(b"mine")
    before, open_before = elsewhere(ground), open_files()
    with opened(root_of(ground.dest), Side.DESTINATION) as top, pytest.raises(LinkRefused) as caught:
        OPERATIONS[call](top, b"link/private")
    assert elsewhere(ground) == before
    assert open_files() == open_before
    trouble = trouble_of(caught.value, Side.DESTINATION, "open", b"link/private")
    assert (trouble.errno, trouble.text.startswith(f"link is a symbolic link of another user (uid {_STRANGER})")) == (
        errno.ELOOP,
        True,
    )
    assert "chown -h root" in (hint_for(trouble) or "")


@pytest.mark.parametrize("call", OPERATIONS)
def test_what_lies_behind_a_link_at_the_source_is_not_there(ground: Ground, way: str, call: str) -> None:
    """At a source no link is followed, whoever it belongs to."""
    lay_link(ground, ground.source / "link", os.geteuid())
    (ground.source / "mine").write_bytes(b"mine")
    before = elsewhere(ground)
    with opened(root_of(ground.source), Side.SOURCE) as top, pytest.raises(FileNotFoundError):
        OPERATIONS[call](top, b"link/private")
    assert elsewhere(ground) == before


@pytest.mark.parametrize("how", ["absolute", "relative", "through another", "up and down"])
def test_a_link_of_ones_own_at_the_destination_is_followed(ground: Ground, way: str, how: str) -> None:
    """An administrator may spread a destination over several disks by links, however they are written."""
    disk = ground.source.parent / "disk"
    (disk / "deep").mkdir(parents=True)
    link = ground.dest / "link"
    match how:
        case "absolute":
            link.symlink_to(disk)
        case "relative":
            link.symlink_to(os.path.relpath(disk, ground.dest))
        case "through another":
            (ground.dest / "hop").symlink_to(disk)
            link.symlink_to("hop/./")
        case _:
            link.symlink_to("../disk/deep/..")
    with opened(root_of(ground.dest), Side.DESTINATION) as top:
        os.close(beneath.open_file(b"link/deep/new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=top))
        os.close(beneath.open_folder(b"link", dir_fd=top))
    assert (disk / "deep" / "new").exists()


@needs_root
def test_every_link_on_the_way_has_to_be_trusted(ground: Ground, way: str) -> None:
    """A link of root's that leads through one of somebody else's leads nowhere."""
    lay_link(ground, ground.dest / "his", _STRANGER)
    (ground.dest / "mine").symlink_to("his")
    with (
        opened(root_of(ground.dest), Side.DESTINATION) as top,
        pytest.raises(LinkRefused, match="his is a symbolic link"),
    ):
        beneath.stat_of(b"mine/private", dir_fd=top)


def test_links_in_a_ring_end(ground: Ground, way: str) -> None:
    """A link that leads to itself is an error, not a walk without end."""
    (ground.dest / "ring").symlink_to("ring")
    with opened(root_of(ground.dest), Side.DESTINATION) as top, pytest.raises(LinkRefused, match="too many"):
        beneath.stat_of(b"ring/x", dir_fd=top)


def test_a_link_in_the_place_of_a_file_is_not_followed(ground: Ground, way: str) -> None:
    """The last name is never followed, not even a link of one's own."""
    lay_link(ground, ground.dest / "link", os.geteuid())
    before = elsewhere(ground)
    with opened(root_of(ground.dest), Side.DESTINATION) as top:
        assert stat.S_ISLNK(beneath.stat_of(b"link", dir_fd=top).st_mode)
        for call in (
            lambda: beneath.open_file(b"link", READ, dir_fd=top),
            lambda: beneath.chmod(b"link", 0o777, dir_fd=top),
        ):
            with pytest.raises(OSError, match="symbolic links") as caught:
                call()
            assert caught.value.errno == errno.ELOOP
        beneath.utime(b"link", (5, 5), dir_fd=top)
        beneath.rename(b"link", b"moved", dir_fd=top)
        beneath.unlink(b"moved", dir_fd=top)
    assert elsewhere(ground) == before


@pytest.mark.parametrize("path", [b"../elsewhere/private", b"a/../../elsewhere/private", b"a/.."])
def test_no_path_leads_up(ground: Ground, way: str, path: bytes) -> None:
    """Dots in a path are no way out of a root."""
    lay_link(ground, ground.dest / "link", os.geteuid())
    (ground.dest / "a").mkdir()
    with opened(root_of(ground.dest), Side.DESTINATION) as top, pytest.raises(OSError, match=r"(Cross-device|Invalid)"):
        beneath.stat_of(path, dir_fd=top)


def test_files_in_folders_may_be_reached_without_the_right_to_list_them(ground: Ground, way: str) -> None:
    """A folder that may be searched, not read, is enough for a file whose name is known."""
    (ground.dest / "drop").mkdir()
    (ground.dest / "drop" / "box").write_bytes(b"content")
    (ground.dest / "drop").chmod(0o711)
    with ordinary_user(), opened(root_of(ground.dest), Side.DESTINATION) as top:
        assert beneath.stat_of(b"drop/box", dir_fd=top).st_size == 7


def test_few_folders_are_kept_open(ground: Ground, way: str) -> None:
    """Hundreds of folders in one call cost no more descriptors than four, and none when it is over."""
    before = open_files()
    for n in range(100):
        (ground.dest / f"{n}").mkdir()
    with opened(root_of(ground.dest), Side.DESTINATION) as top:
        for n in range(100):
            os.close(beneath.open_file(b"%d/file" % n, os.O_WRONLY | os.O_CREAT, dir_fd=top))
            beneath.rename(b"%d/file" % n, b"%d/file" % (99 - n), dir_fd=top)
            assert len(open_files() - before) <= 5
    assert open_files() == before


def test_a_folder_that_was_renamed_meanwhile_is_told_before_it_is_made_durable(ground: Ground, way: str) -> None:
    """What went into the old folder is not at its path: the last step says so instead of calling it finished."""
    (ground.dest / "a").mkdir()
    with opened(root_of(ground.dest), Side.DESTINATION) as top:
        os.close(beneath.open_file(b"a/file", os.O_WRONLY | os.O_CREAT, dir_fd=top))
        (ground.dest / "a").rename(ground.dest / "b")
        (ground.dest / "a").mkdir()
        with pytest.raises(Exception, match=r"fsync 'a'.*No such file"):
            sync_folder(top, b"a")
        sync_folder(top, b"a")  # the next one is about what is there now


# --- while somebody exchanges things ---------------------------------------------------------------------------------


def exchanging(one: bytes, other: bytes, until: float) -> None:
    """Exchange two names as fast as it goes."""
    fd = os.open(os.path.dirname(one), os.O_RDONLY)
    try:
        while time.monotonic() < until:
            for _ in range(20):
                linux.renameat2(os.path.basename(one), os.path.basename(other), fd, 2)
            time.sleep(0)
    finally:
        os.close(fd)


def test_a_folder_of_the_source_that_is_exchanged_for_a_link_all_the_time_leads_nowhere(
    ground: Ground, way: str
) -> None:
    """Whatever is read or removed is the source's: never what the link leads to."""
    secret = ground.source.parent / "elsewhere"
    (ground.source / "a" / "deep").mkdir(parents=True)
    (secret / "deep").mkdir(parents=True)
    (secret / "deep" / "file").write_bytes(b"secret")
    (ground.source / "b").symlink_to(secret)
    end, reached = time.monotonic() + _RACE, 0
    ours = ground.source / "a" / "deep" / "file"
    ours.write_bytes(b"ours")
    thread = threading.Thread(target=exchanging, args=(bytes(ground.source / "a"), bytes(ground.source / "b"), end))
    thread.start()
    while time.monotonic() < end:
        with opened(root_of(ground.source), Side.SOURCE) as src:
            try:
                fd = beneath.open_file(b"a/deep/file", READ, dir_fd=src)
            except FileNotFoundError:
                continue
            assert os.read(fd, 10) == b"ours"
            os.close(fd)
            beneath.unlink(b"a/deep/file", dir_fd=src)
            os.close(beneath.open_file(b"a/deep/file", os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=src))
            fd = beneath.open_file(b"a/deep/file", os.O_WRONLY, dir_fd=src)
            os.write(fd, b"ours")
            os.close(fd)
            reached += 1
    thread.join()
    assert reached > 10
    assert files_of(secret) == {b"deep/file": b"secret"}


@needs_root
def test_a_new_folder_that_is_exchanged_for_a_link_keeps_its_mode_to_itself(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making of a folder and the setting of its permission bits somebody puts a link in its place."""
    private = ground.source.parent / "elsewhere"
    private.mkdir(mode=0o700)
    (ground.source / "d").mkdir()
    (ground.source / "d").chmod(0o777)
    real = os.mkdir

    def overtaken(path: bytes, mode: int = 0o777, *, dir_fd: int) -> None:
        real(path, mode, dir_fd=dir_fd)
        os.rmdir(path, dir_fd=dir_fd)
        os.symlink(private, path, dir_fd=dir_fd)

    with opened(root_of(ground.source), Side.SOURCE) as src, opened(root_of(ground.dest), Side.DESTINATION) as dst:
        monkeypatch.setattr(os, "mkdir", overtaken)
        make_folder(src, dst, b"d")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


# --- that nothing passes by ------------------------------------------------------------------------------------------

# These work by descriptors, or below none: on the roots themselves, which the user has named.
_ELSEWHERE = {"beneath.py", "linux.py"}


def test_every_operation_by_name_below_a_root_goes_this_way() -> None:
    """No module of the movers gives the system a name below a descriptor by itself."""
    folder = Path(next(iter(trioft.movers.ops.__path__)))
    found = []
    for module in folder.rglob("*.py"):
        if module.name in _ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            names = {keyword.arg for keyword in node.keywords}
            if of == "os" and names & {"dir_fd", "src_dir_fd", "dst_dir_fd"}:
                found.append(f"{module.name}:{node.lineno}")
    assert found == []
