"""What the file operations share: roots that must be the right ones, exact reads and writes, partials, folders."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from files import MANNER, Ground, fingerprint, held, need_leases, need_xattrs, open_files, ordinary_user, read, root_of
from support import mounted, pattern
from trioft.core import digests
from trioft.core.errors import IDENTIFY, FileTrouble, Remedy, Side, classify
from trioft.core.model import BLOCK_SIZE, Result, Root, Verdict
from trioft.movers.ops import files, linux, mounts, source, writers
from trioft.movers.ops.beneath import Top
from trioft.movers.ops.files import Away
from trioft.movers.ops.folder import existing, partials, probe


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with Ground(tmp_path) as place:
        yield place


@pytest.fixture
def src(ground: Ground) -> Top:
    return ground.open(ground.source)


@pytest.fixture
def dst(ground: Ground) -> Top:
    return ground.open(ground.dest)


# --- digests ---------------------------------------------------------------------------------------------------------


def test_digest_of_a_file_is_the_digest_of_its_block_digests_in_order() -> None:
    """Spans may be copied in any order, and the file's digest is still one: the xxh3-128 of xxh3-128s."""
    assert digests.block_digest(b"").hex() == "99aa06d3014798d86001c324468d497f"
    one, two = digests.block_digest(b"one"), digests.block_digest(memoryview(b"two"))
    assert len(one) == 16
    assert digests.file_digest(one + two) == digests.block_digest(one + two)
    assert digests.file_digest(one + two) != digests.file_digest(two + one)


# --- the roots -------------------------------------------------------------------------------------------------------


def test_a_root_that_is_what_it_was_is_opened_and_closed(ground: Ground) -> None:
    """An operation reaches everything through one descriptor of the root, and leaves nothing open."""
    before = open_files()
    with files.opened(root_of(ground.source), Side.SOURCE) as fd:
        assert os.path.samestat(os.fstat(fd), ground.source.stat())
    assert open_files() == before


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("what", ["missing", "a file", "another device", "another folder", "a folder below a file"])
def test_a_root_that_is_not_what_it_was_is_away(ground: Ground, what: str, side: Side) -> None:
    """A share that is not mounted is never taken for an empty folder: promise 5."""
    root = root_of(ground.dest)
    if what == "missing":
        ground.dest.rmdir()
    elif what == "a file":
        ground.dest.rmdir()
        ground.dest.write_bytes(b"")
    elif what == "another device":
        root = Root(root.path, root.dev + 1)
    elif what == "another folder":  # of the same disk: what was mounted was a part of it
        root = Root(root.path, root.dev, ground.dest.stat().st_ino + 1)
    else:
        ground.dest.rmdir()
        ground.dest.write_bytes(b"")
        root = Root(root.path + b"/below", root.dev)
    before = open_files()
    with pytest.raises(Away) as caught, files.opened(root, side):
        pytest.fail("it was opened")
    trouble = caught.value.trouble
    op = IDENTIFY if what.startswith("another") else "open"
    assert (trouble.side, trouble.op, trouble.errno) == (side, op, errno.ENODEV)
    assert side in trouble.text
    if side == Side.DESTINATION:
        assert classify(trouble) == Remedy.DESTINATION
    assert open_files() == before
    assert not os.path.isdir(ground.dest) or os.listdir(ground.dest) == []


def test_a_root_that_may_not_be_opened_is_a_trouble_of_its_own(ground: Ground) -> None:
    """A folder without access is not taken for one that is away."""
    ground.dest.chmod(0)
    with ordinary_user(), pytest.raises(FileTrouble) as caught, files.opened(root_of(ground.dest), Side.DESTINATION):
        pytest.fail("it was opened")
    assert not isinstance(caught.value, Away)
    assert caught.value.trouble.errno == errno.EACCES


def test_a_root_whose_server_does_not_answer_is_a_trouble(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of any call on a root is told with its side, and leaves no descriptor behind."""
    before = open_files()

    def stale(fd: int) -> os.stat_result:
        raise OSError(errno.ESTALE, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", stale)
        with pytest.raises(FileTrouble) as caught, files.opened(root_of(ground.dest), Side.DESTINATION):
            pytest.fail("it was opened")
    assert (caught.value.trouble.side, caught.value.trouble.errno) == ("destination", errno.ESTALE)
    assert open_files() == before


@pytest.mark.parametrize("kernel", ["this", "before Linux 6.8"])
@pytest.mark.parametrize("side", list(Side))
def test_what_is_mounted_meanwhile_is_not_taken_for_what_was_there(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, side: Side, kernel: str
) -> None:
    """Not even with its device number, which may be that of what is gone; what is mounted elsewhere changes nothing."""
    if kernel != "this":
        monkeypatch.setattr(linux, "unique_mount_id", lambda fd: 0)
    path = os.fsencode(ground.dest)
    with mounted("none", ground.dest, "-t", "tmpfs"):
        root = mounts.probe_source(path, None)[0] if side == Side.SOURCE else probe.recognize(path, None, None, True)
        with mounted("none", ground.source, "-t", "tmpfs"), files.opened(root, side):
            pass
        with files.opened(root, side):
            pass
    with mounted("none", ground.dest, "-t", "tmpfs"):
        # Most often the kernel sees to that by itself.
        its = ground.dest.stat()
        root = root._replace(dev=its.st_dev, ino=its.st_ino)
        before = open_files()
        with pytest.raises(Away, match="meanwhile") as caught, files.opened(root, side):
            pytest.fail("it was opened")
        assert (caught.value.trouble.side, caught.value.trouble.op) == (side, IDENTIFY)
        assert open_files() == before
        assert list(ground.dest.iterdir()) == []
        again = mounts.probe_source(path, None)[0]
        with files.opened(again, side):
            pass


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_made_with_its_parents_and_their_permission_bits(ground: Ground, src: Top, dst: Top) -> None:
    """The destination's folders have the source's bits, set-group-ID too, and the owner can always write to them."""
    (ground.source / "a" / "b" / "c").mkdir(parents=True)
    (ground.source / "a").chmod(0o755)
    (ground.source / "a" / "b").chmod(0o2770)
    (ground.source / "a" / "b" / "c").chmod(0o555)
    assert partials.make_folder(src, dst, b"a/b/c") == [b"", b"a", b"a/b"]
    bits = [stat.S_IMODE((ground.dest / path).stat().st_mode) for path in ("a", "a/b", "a/b/c")]
    assert bits == [0o755, 0o2770, 0o2755]
    assert partials.make_folder(src, dst, b"a/b/c") == []


def test_a_folder_without_a_twin_at_the_source_is_made_private(ground: Ground, src: Top, dst: Top) -> None:
    """A folder that has vanished from the source meanwhile is still made, for the owner alone."""
    assert partials.make_folder(src, dst, b"gone") == [b""]
    assert stat.S_IMODE((ground.dest / "gone").stat().st_mode) == 0o700


def test_the_root_is_never_made(ground: Ground, src: Top, dst: Top) -> None:
    """When the destination's folder is removed while trioft works, nothing is made in its place: promise 5."""
    ground.dest.rmdir()
    assert partials.make_folder(src, dst, b"") == []
    with pytest.raises(FileNotFoundError):
        partials.make_folder(src, dst, b"a/b")
    assert not ground.dest.exists()


def test_two_movers_may_make_the_same_folders(
    ground: Ground, src: Top, dst: Top, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That another mover makes the parent at the same moment is no trouble."""
    mkdir = os.mkdir

    def overtaken(path: bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if path == b"a":
            mkdir(path, mode, dir_fd=dir_fd)
        mkdir(path, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", overtaken)
        partials.make_folder(src, dst, b"a/b/c")
    assert (ground.dest / "a" / "b" / "c").is_dir()


def test_a_file_in_the_place_of_a_folder_is_a_trouble_that_says_so(ground: Ground, src: Top, dst: Top) -> None:
    """A folder that cannot be made because of a file is told as exactly that."""
    ground.old(b"a")
    with pytest.raises(FileTrouble) as caught:
        partials.create_partial(src, dst, b"a/b.00000000.partial")
    assert caught.value.trouble.errno == errno.ENOTDIR
    with pytest.raises(FileTrouble) as caught:
        partials.create_partial(src, dst, b"a/b/c.00000000.partial")
    assert caught.value.trouble.errno == errno.ENOTDIR
    assert read(ground.at_dest(b"a")) == b"old"


@pytest.mark.parametrize(
    ("number", "matters"),
    [(errno.EINVAL, False), (errno.EOPNOTSUPP, False), (errno.ENOSYS, False), (errno.EIO, True), (errno.ENOSPC, True)],
)
def test_only_a_server_that_cannot_sync_folders_may_refuse_to(
    dst: int, monkeypatch: pytest.MonkeyPatch, number: int, matters: bool
) -> None:
    """A folder that could not be made durable is a trouble, unless the server has no such operation."""

    def refuse(fd: int) -> None:
        raise OSError(number, "")

    before = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        if matters:
            with pytest.raises(FileTrouble) as caught:
                partials.sync_folder(dst, b"")
            assert (caught.value.trouble.op, caught.value.trouble.errno) == ("fsync", number)
        else:
            partials.sync_folder(dst, b"")
    assert open_files() == before


# --- the source ------------------------------------------------------------------------------------------------------


def test_a_quiet_source_is_opened(ground: Ground, src: int) -> None:
    """A file that is the version asked for, and that nobody writes, may be copied."""
    item = ground.add(b"a", b"content")
    fd, opening = source.open_source(src, item)
    assert opening == Result(Verdict.OPEN, closed=opening.closed)
    assert os.read(fd, 10) == b"content"


@pytest.mark.parametrize("change", ["content", "time", "replaced", "attributes", "truncated", "folder"])
def test_another_version_of_the_source_is_refused(ground: Ground, src: int, change: str) -> None:
    """Only the version that was found is copied, whatever was done to the file since."""
    item = ground.add(b"a", b"content")
    path = ground.source / "a"
    match change:
        case "content":
            path.write_bytes(b"CONTENT")
        case "time":
            os.utime(path, (1, 1))
        case "replaced":
            (ground.source / "b").write_bytes(b"content")
            os.replace(ground.source / "b", path)
        case "attributes":
            path.chmod(0o600)
        case "truncated":
            os.truncate(path, 3)
        case "folder":
            path.unlink()
            path.mkdir()
    before = open_files()
    fd, refused = source.open_source(src, item)
    assert fd == -1
    assert refused == Result(Verdict.CHANGED)
    assert open_files() == before


def test_a_source_that_is_gone_is_gone(ground: Ground, src: int) -> None:
    """A file that was removed meanwhile, or its folder, is nobody's fault."""
    item = ground.add(b"folder/a")
    os.unlink(ground.at_source(b"folder/a"))
    assert source.open_source(src, item) == (-1, Result(Verdict.GONE))
    os.rmdir(ground.at_source(b"folder"))
    assert source.open_source(src, item) == (-1, Result(Verdict.GONE))


def test_a_link_in_the_place_of_a_source_is_not_followed(ground: Ground, src: int, tmp_path: Path) -> None:
    """trioft copies the file it found, never what a link put in its place leads to."""
    item = ground.add(b"a", b"mine")
    (tmp_path / "secret").write_bytes(b"not yours")
    os.unlink(ground.at_source(b"a"))
    os.symlink(tmp_path / "secret", ground.at_source(b"a"))
    with pytest.raises(FileTrouble) as caught:
        source.open_source(src, item)
    assert (caught.value.trouble.side, caught.value.trouble.errno) == ("source", errno.ELOOP)


@pytest.mark.timeout(10)
def test_a_pipe_in_the_place_of_a_source_does_not_block(ground: Ground, src: int) -> None:
    """A named pipe that nobody writes to cannot hold a mover up."""
    item = ground.add(b"a")
    os.unlink(ground.at_source(b"a"))
    os.mkfifo(ground.at_source(b"a"))
    assert source.open_source(src, item) == (-1, Result(Verdict.CHANGED))


def test_a_source_that_somebody_writes_is_busy(ground: Ground, src: int) -> None:
    """However long a file has been quiet: while a writer has it open, it is not copied."""
    need_leases(ground.source)
    item = ground.add(b"a")
    with held(ground.at_source(b"a"), "writer"):
        assert source.open_source(src, item) == (-1, Result(Verdict.BUSY))
    assert source.open_source(src, item)[1] == Result(Verdict.OPEN, closed="proved")


def test_where_nothing_can_be_proved_only_a_settled_file_is_copied(
    ground: Ground, src: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a filesystem whose leases prove nothing, a file must have been seen to be quiet; no more is said of it."""
    ground.add(b"a")
    monkeypatch.setattr(writers, "_magic_of_device", {})
    monkeypatch.setattr(linux, "filesystem_magic", lambda fd: 0x6969)  # NFS
    assert source.open_source(src, ground.item(b"a", settled=False)) == (-1, Result(Verdict.UNPROVEN))
    assert source.open_source(src, ground.item(b"a", settled=True))[1] == Result(Verdict.OPEN, closed="timeout")


@pytest.mark.parametrize("change", ["nothing", "appended", "truncated", "time", "attributes"])
def test_a_growing_source_is_opened_in_whatever_version(ground: Ground, src: int, change: str) -> None:
    """It is another one at every look: that somebody writes it, or has, is no reason not to copy it."""
    item = ground.add(b"a", b"content")
    path = ground.source / "a"
    with held(ground.at_source(b"a"), "writer"):
        match change:
            case "appended":
                with path.open("ab") as file:
                    file.write(b"+")
            case "truncated":
                os.truncate(path, 3)
            case "time":
                os.utime(path, (1, 1))
            case "attributes":
                path.chmod(0o600)
        fd, opening = source.open_growing(src, item)
    assert opening == Result(Verdict.OPEN)
    assert os.read(fd, 10) == read(path)


@pytest.mark.parametrize(("change", "verdict"), [("replaced", "changed"), ("folder", "changed"), ("gone", "gone")])
def test_a_growing_source_is_still_the_same_file(ground: Ground, src: int, change: str, verdict: str) -> None:
    """Bytes of another file, that has got its name, are never added to what was copied."""
    item = ground.add(b"a", b"content")
    path = ground.source / "a"
    path.rename(ground.source / "b")
    match change:
        case "replaced":
            path.write_bytes(b"content")
        case "folder":
            path.mkdir()
    before = open_files()
    assert source.open_growing(src, item) == (-1, Result(Verdict(verdict)))
    assert open_files() == before


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_source_that_cannot_be_opened_or_looked_at_is_a_trouble(
    ground: Ground, src: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An error at the source is told as one of the source, and leaves no descriptor behind."""
    item = ground.add(b"a")
    before = open_files()

    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, "")

    for call in ("open", "fstat"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            for opening in (source.open_source, source.open_growing):
                with pytest.raises(FileTrouble) as caught:
                    opening(src, item)
                trouble = caught.value.trouble
                assert (trouble.side, trouble.path, trouble.errno) == ("source", b"a", number)
        assert open_files() == before


# --- what is there already -------------------------------------------------------------------------------------------

POLICIES = ["overwrite", "rename", "skip", "fail"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ("nothing", dict.fromkeys(POLICIES)),
        ("the same", dict.fromkeys(POLICIES, Verdict.ALREADY)),
        ("other size", {"skip": Verdict.EXISTS, "fail": Verdict.EXISTS}),
        ("other time", {"skip": Verdict.EXISTS, "fail": Verdict.EXISTS}),
        ("a link", {"skip": Verdict.EXISTS, "fail": Verdict.EXISTS}),
        ("a folder", {"overwrite": Verdict.TROUBLE, "skip": Verdict.EXISTS, "fail": Verdict.EXISTS}),
    ],
    ids=["nothing", "same", "size", "time", "link", "folder"],
)
def test_what_is_there_already_decides_with_the_policy(
    ground: Ground, src: Top, dst: Top, policy: str, there: str, expected: dict[str, Verdict | None]
) -> None:
    """A file with the same size and time is not copied again; another one is in the way only for some policies."""
    item = ground.add(b"a.txt", b"content")
    match there:
        case "the same":
            ground.old(b"a.txt", b"CONTENT")
            ground.same_times(item)
        case "other size":
            ground.old(b"a.txt", b"content+")
            ground.same_times(item)
        case "other time":
            ground.old(b"a.txt", b"content")
        case "a link":
            ground.old(b"elsewhere", b"content")
            os.symlink(b"elsewhere", ground.at_dest(b"a.txt"))
        case "a folder":
            os.mkdir(ground.at_dest(b"a.txt"))
    fd, _ = source.open_source(src, item)
    manner = MANNER._replace(if_exists=policy)
    if expected.get(policy) == Verdict.TROUBLE:
        with pytest.raises(FileTrouble) as caught:
            existing.look_for_existing(src, fd, dst, item, manner, ground.told.append)
        assert (caught.value.trouble.op, caught.value.trouble.errno) == ("rename", errno.EISDIR)
        return
    result = existing.look_for_existing(src, fd, dst, item, manner, ground.told.append)
    assert (result and result.verdict) == expected.get(policy)
    assert result is None or result.target == b"a.txt"


def test_a_renamed_copy_is_found_under_its_number(ground: Ground, src: Top, dst: Top) -> None:
    """With if_exists rename, a file that was delivered as NAME_1 is not delivered again as NAME_2."""
    item = ground.add(b"take.mov", b"second")
    ground.old(b"take.mov", b"first")
    ground.old(b"take_1.mov", b"second")
    os.utime(ground.at_dest(b"take_1.mov"), ns=(0, item.fingerprint.mtime_ns))
    fd, _ = source.open_source(src, item)
    result = existing.look_for_existing(src, fd, dst, item, MANNER._replace(if_exists="rename"), ground.told.append)
    assert result == Result(Verdict.ALREADY, b"take_1.mov")


@pytest.mark.parametrize("off", [0, 1, 99, 100, -99, -100, 10**9])
def test_times_are_compared_as_exactly_as_the_destination_keeps_them(ground: Ground, off: int) -> None:
    """A destination that keeps 100 ns makes no difference of less, and hides none of more."""
    item = ground.add(b"a")
    ground.old(b"a", read(ground.at_source(b"a")))
    os.utime(ground.at_dest(b"a"), ns=(0, item.fingerprint.mtime_ns + off))
    assert files.is_same(os.stat(ground.at_dest(b"a")), item.fingerprint, 100) == (abs(off) < 100)


@pytest.mark.parametrize("size", [0, 5, BLOCK_SIZE, BLOCK_SIZE + 1], ids=["empty", "small", "block", "more"])
def test_before_a_source_is_removed_what_is_there_is_compared_byte_for_byte(
    ground: Ground, src: Top, dst: Top, size: int
) -> None:
    """Same size and time are enough to leave a file alone, never to remove its source: promise 3."""
    content = pattern(size)
    item = ground.add(b"a", content)
    ground.old(b"a", content)
    ground.same_times(item)
    fd, _ = source.open_source(src, item)
    manner = MANNER._replace(prove_existing=True)
    result = existing.look_for_existing(src, fd, dst, item, manner, ground.told.append)
    blocks = [content[at : at + BLOCK_SIZE] for at in range(0, size, BLOCK_SIZE)]
    digest = digests.file_digest(b"".join(map(digests.block_digest, blocks)))
    assert result == Result(Verdict.ALREADY, b"a", digest, seal=fingerprint(ground.at_dest(b"a")))
    assert sum(count for _, count in ground.told) == size
    if size:
        with open(ground.at_dest(b"a"), "r+b") as file:
            file.seek(size - 1)
            file.write(bytes([content[-1] ^ 1]))
        ground.same_times(item)
        assert existing.look_for_existing(src, fd, dst, item, manner, ground.told.append) is None


def test_what_is_there_is_compared_even_where_it_may_not_be_written(ground: Ground, src: Top, dst: Top) -> None:
    """A delivered copy of a write-protected file is write-protected too, and can still be compared."""
    item = ground.add(b"a", b"content", mode=0o444)
    ground.old(b"a", b"content")
    ground.same_times(item)
    os.chmod(ground.at_dest(b"a"), 0o444)
    fd, _ = source.open_source(src, item)
    with ordinary_user():
        result = existing.look_for_existing(
            src, fd, dst, item, MANNER._replace(prove_existing=True), ground.told.append
        )
    assert result is not None
    assert result.verdict == Verdict.ALREADY


# --- exact reads and writes ------------------------------------------------------------------------------------------


def test_short_reads_and_writes_are_continued(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call may do less than it was asked to: the rest follows, from the right byte on."""
    content = pattern(1000)
    ground.add(b"a", content)
    source = ground.open(ground.at_source(b"a"))
    target = ground.open(ground.at_dest(b"a"), os.O_RDWR | os.O_CREAT)
    preadv, pwrite = os.preadv, os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:7]], at))
        patch.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[:9], at))
        data = files.read_exactly(source, Side.SOURCE, b"a", 100, 800)
        partials.write_all(target, b"a", 50, memoryview(data))
    assert data == content[100:900]
    assert read(ground.at_dest(b"a")) == bytes(50) + content[100:900]


def test_a_file_that_ends_too_soon_is_a_trouble_with_its_offset(ground: Ground) -> None:
    """Missing bytes are never made up."""
    ground.add(b"a", b"12345")
    fd = ground.open(ground.at_source(b"a"))
    with pytest.raises(FileTrouble) as caught:
        files.read_exactly(fd, Side.SOURCE, b"a", 2, 4)
    trouble = caught.value.trouble
    assert (trouble.side, trouble.op, trouble.path, trouble.offset) == ("source", "read", b"a", 5)


def test_errors_of_reads_and_writes_tell_the_byte(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed read or write is told with its side, path, offset and errno: promise 8."""
    fd = ground.open(ground.at_dest(b"a"), os.O_RDWR | os.O_CREAT)
    pwrite = os.pwrite

    def fill_up(fd: int, view: memoryview, at: int) -> int:
        if at >= 300:
            raise OSError(errno.ENOSPC, "")
        return pwrite(fd, view[: 300 - at], at)

    monkeypatch.setattr(os, "pwrite", fill_up)
    with pytest.raises(FileTrouble) as caught:
        partials.write_all(fd, b"a", 200, memoryview(bytes(500)))
    assert caught.value.trouble[:5] == ("destination", "write", b"a", 300, errno.ENOSPC)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(FileTrouble) as caught:
        files.read_exactly(fd, Side.DESTINATION, b"a", 8, 1)
    assert caught.value.trouble[:5] == ("destination", "read", b"a", 8, errno.EIO)


@pytest.mark.timeout(10)
def test_a_write_that_does_nothing_does_not_go_on_for_ever(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts no byte and reports no error has failed."""
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: 0)
    with pytest.raises(FileTrouble) as caught:
        partials.write_all(0, b"a", 0, memoryview(b"1"))
    assert caught.value.trouble.errno == errno.EIO


def test_an_error_at_close_is_an_error_of_writing(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network filesystems report a failed write when the file is closed: then it has failed."""

    def fail(fd: int) -> None:
        raise OSError(errno.EDQUOT, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        with pytest.raises(FileTrouble) as caught:
            partials.close_written(99, b"a")
    assert caught.value.trouble[:5] == ("destination", "close", b"a", None, errno.EDQUOT)
    assert classify(caught.value.trouble) == Remedy.SPACE


# --- partials --------------------------------------------------------------------------------------------------------

PARTIAL = b"a.00000000.partial"


def test_a_partial_is_created_private(ground: Ground, src: Top, dst: Top) -> None:
    """Nobody else reads a file before it is complete."""
    before = os.umask(0)
    try:
        fd, folders = partials.create_partial(src, dst, PARTIAL)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    assert folders == []


def test_a_partial_makes_its_folders_and_tells_which_have_a_new_entry(ground: Ground, src: Top, dst: Top) -> None:
    """The folders that have to be made durable for the partial to be found again are told."""
    _, folders = partials.create_partial(src, dst, b"x/y/" + PARTIAL)
    assert set(folders) == {b"", b"x"}


def test_a_leftover_is_unlinked_never_truncated(ground: Ground, src: Top, dst: Top) -> None:
    """A mover that was left behind writes into its own, nameless file, not into the one of its successor."""
    ground.old(PARTIAL, b"leftover")
    left_behind = ground.open(ground.at_dest(PARTIAL), os.O_RDWR)
    fd, _ = partials.create_partial(src, dst, PARTIAL)
    os.pwrite(left_behind, b"late", 0)
    assert os.fstat(fd).st_size == 0
    assert read(ground.at_dest(PARTIAL)) == b""
    assert os.pread(left_behind, 100, 0) == b"lateover"


@pytest.mark.parametrize("how", ["hard link", "link", "dangling link"])
def test_what_a_leftover_leads_to_is_left_alone(ground: Ground, src: Top, dst: Top, tmp_path: Path, how: str) -> None:
    """A link under a partial's name is replaced: what it leads to is not written."""
    other = tmp_path / "other"
    if how != "dangling link":
        other.write_bytes(b"other")
    (os.link if how == "hard link" else os.symlink)(other, ground.at_dest(PARTIAL))
    fd, _ = partials.create_partial(src, dst, PARTIAL)
    os.write(fd, b"mine")
    assert other.exists() == (how != "dangling link")
    assert how == "dangling link" or other.read_bytes() == b"other"
    assert read(ground.at_dest(PARTIAL)) == b"mine"


def test_a_folder_under_a_partials_name_is_a_trouble(ground: Ground, src: Top, dst: Top) -> None:
    """What cannot be replaced is told, with the path."""
    os.mkdir(ground.at_dest(PARTIAL))
    with pytest.raises(FileTrouble) as caught:
        partials.create_partial(src, dst, PARTIAL)
    assert (caught.value.trouble.side, caught.value.trouble.path) == ("destination", PARTIAL)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_leftover_that_cannot_be_removed_is_a_trouble(
    ground: Ground, src: Top, dst: Top, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An error of the removal is a trouble of the destination like any other."""
    ground.old(PARTIAL, b"leftover")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(FileTrouble) as caught:
            partials.create_partial(src, dst, PARTIAL)
    assert caught.value.trouble[:5] == ("destination", "unlink", PARTIAL, None, number)
    assert read(ground.at_dest(PARTIAL)) == b"leftover"


@pytest.mark.timeout(10)
def test_a_leftover_that_is_there_and_is_not_does_not_go_on_for_ever(
    ground: Ground, src: Top, dst: Top, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may keep the name of a removed file until its last user closes it: later, it may work."""
    ground.old(PARTIAL, b"leftover")

    def pending(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", pending)
        with pytest.raises(FileTrouble) as caught:
            partials.create_partial(src, dst, PARTIAL)
    assert caught.value.trouble[:5] == ("destination", "create", PARTIAL, None, errno.EBUSY)
    assert classify(caught.value.trouble) == Remedy.RETRY


def test_a_partial_in_a_folder_that_may_not_be_written_is_a_trouble(ground: Ground, src: Top, dst: Top) -> None:
    """Missing access is told where it is met."""
    ground.dest.chmod(0o555)
    with ordinary_user(), pytest.raises(FileTrouble) as caught:
        partials.create_partial(src, dst, PARTIAL)
    assert caught.value.trouble[:5] == ("destination", "create", PARTIAL, None, errno.EACCES)
    ground.dest.chmod(0o755)


# --- attributes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [True, False])
def test_user_attributes_are_copied_if_wanted(ground: Ground, wanted: bool) -> None:
    """With metadata.xattrs, user attributes of the source are at the destination; without, they are not."""
    need_xattrs(ground.source)
    item = ground.add(b"a", mode=0o640)
    os.setxattr(ground.at_source(b"a"), "user.take", b"\0\xff7")
    source = ground.open(ground.at_source(b"a"))
    target = ground.open(ground.at_dest(b"a"), os.O_RDWR | os.O_CREAT)
    partials.copy_attributes(source, target, item, MANNER._replace(xattrs=wanted))
    assert os.listxattr(target) == (["user.take"] if wanted else [])
    assert not wanted or os.getxattr(target, "user.take") == b"\0\xff7"
    assert stat.S_IMODE(os.fstat(target).st_mode) == 0o640


def test_a_partial_stays_readable_and_writable_for_its_owner(ground: Ground) -> None:
    """A write-protected source does not protect its own partial from being written."""
    item = ground.add(b"a", mode=0o4455)
    source = ground.open(ground.at_source(b"a"))
    target = ground.open(ground.at_dest(b"a"), os.O_RDWR | os.O_CREAT)
    partials.copy_attributes(source, target, item, MANNER)
    assert stat.S_IMODE(os.fstat(target).st_mode) == 0o655


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_destination_without_attributes_takes_the_file_all_the_same(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Where permission bits and attributes cannot be kept, the content is delivered without them."""
    item = ground.add(b"a")
    target = ground.open(ground.at_dest(b"a"), os.O_RDWR | os.O_CREAT)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "")

    for call in ("fchmod", "setxattr", "listxattr"):
        monkeypatch.setattr(os, call, refuse)
    partials.copy_attributes(ground.open(ground.at_source(b"a")), target, item, MANNER)


def test_a_fingerprint_is_five_facts_of_one_file(ground: Ground) -> None:
    """Device, inode, size, and both times to the nanosecond: any of them tells versions apart."""
    item = ground.add(b"a", b"12345")
    status = os.stat(ground.at_source(b"a"))
    assert item.fingerprint == (status.st_dev, status.st_ino, 5, status.st_mtime_ns, status.st_ctime_ns)
    os.utime(ground.at_source(b"a"), ns=(0, 7))
    changed = fingerprint(ground.at_source(b"a"))
    assert changed.mtime_ns == 7
    assert changed.changed_ns == changed.ctime_ns


@pytest.mark.parametrize("call", ["fchmod", "setxattr", "listxattr"])
def test_attributes_are_not_given_up_because_the_destination_is_gone(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """What a server would keep is set when it is back: the file does not arrive without it."""
    need_xattrs(ground.source)
    item = ground.add(b"a")
    os.setxattr(ground.at_source(b"a"), "user.take", b"7")
    source, target = ground.open(ground.at_source(b"a")), ground.open(ground.at_dest(b"a"), os.O_RDWR | os.O_CREAT)

    def gone(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, gone)
        with pytest.raises(FileTrouble) as caught:
            partials.copy_attributes(source, target, item, MANNER)
    assert classify(caught.value.trouble) == (Remedy.SOURCE if call == "listxattr" else Remedy.DESTINATION)
