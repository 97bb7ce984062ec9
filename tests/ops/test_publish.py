"""A verified partial gets its final name."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from typing import Any

import pytest

from files import MANNER, Ground, failing, ordinary_user, publication, read
from support import files_of
from trioft.core.errors import FileTrouble, Remedy, classify
from trioft.core.model import Ends, Item, Result, Root, Verdict
from trioft.core.naming import is_own, is_partial
from trioft.movers.ops import linux
from trioft.movers.ops.files import Away
from trioft.movers.ops.folder import partials
from trioft.movers.ops.folder import publish as publish_module

POLICIES = ["overwrite", "rename", "skip", "fail"]


def ready(ground: Ground, path: bytes, content: bytes = b"new content", mode: int = 0o644) -> Item:
    """Make a source file, and its partial as it is when everything has been written and verified."""
    item = ground.add(path, content, mode)
    os.makedirs(os.path.dirname(ground.partial(item)), exist_ok=True)
    with open(ground.partial(item), "wb") as file:
        file.write(content)
    return item


def publish(ground: Ground, *items: Item, **manner: Any) -> list[Result]:
    its = MANNER._replace(**manner)
    return publish_module.publish(ground.ends, [publication(item, its.if_exists) for item in items], its)


# --- the final name --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_free_name_is_given(ground: Ground, policy: str) -> None:
    """The file has its name, its content, its time to the nanosecond, and nothing is left of the partial."""
    item = ready(ground, b"x/a.mov")
    os.utime(ground.at_source(b"x/a.mov"), ns=(111, 1_234_567_890_123_456_789))
    item = ground.item(b"x/a.mov")
    assert publish(ground, item, if_exists=policy) == [Result(Verdict.PUBLISHED, b"x/a.mov")]
    assert files_of(ground.dest) == {b"x/a.mov": b"new content"}
    assert os.stat(ground.at_dest(b"x/a.mov")).st_mtime_ns == 1_234_567_890_123_456_789


@pytest.mark.parametrize("there", ["a file", "a link", "a dangling link"])
@pytest.mark.parametrize(
    ("policy", "verdict", "target"),
    [
        ("overwrite", "published", b"a.mov"),
        ("rename", "published", b"a_1.mov"),
        ("skip", "exists", b"a.mov"),
        ("fail", "exists", b"a.mov"),
    ],
)
def test_a_taken_name_is_treated_as_the_policy_says(
    ground: Ground, policy: str, verdict: str, target: bytes, there: str
) -> None:
    """Only overwrite replaces what is there; what a link leads to is never touched."""
    item = ready(ground, b"a.mov")
    ground.old(b"elsewhere")
    match there:
        case "a file":
            ground.old(b"a.mov")
        case "a link":
            os.symlink(b"elsewhere", ground.at_dest(b"a.mov"))
        case "a dangling link":
            os.symlink(b"nowhere", ground.at_dest(b"a.mov"))
    before = os.lstat(ground.at_dest(b"a.mov"))
    (result,) = publish(ground, item, if_exists=policy)
    assert (str(result.verdict), result.target) == (verdict, target)
    assert read(ground.at_dest(b"elsewhere")) == b"old"
    assert os.path.exists(ground.partial(item)) == (verdict == "exists")
    if verdict == "published":
        assert stat.S_ISREG(os.lstat(ground.at_dest(target)).st_mode)
        assert read(ground.at_dest(target)) == b"new content"
    if policy != "overwrite":
        assert os.path.samestat(os.lstat(ground.at_dest(b"a.mov")), before)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_folder_in_the_way_is_never_replaced(ground: Ground, policy: str) -> None:
    """A folder that has a file's name stays, with all that is in it."""
    item = ready(ground, b"a")
    ground.old(b"a/inside")
    (result,) = publish(ground, item, if_exists=policy)
    assert str(result.verdict) == {"overwrite": "trouble", "rename": "published"}.get(policy, "exists")
    assert result.trouble is None or result.trouble.errno == errno.EISDIR
    assert files_of(ground.dest)[b"a/inside"] == b"old"


def test_rename_takes_the_first_free_number(ground: Ground) -> None:
    """The second and third recording of a name stand beside the first."""
    for name in (b"a.mov", b"a_1.mov", b"a_2.mov", b"a_4.mov"):
        ground.old(name)
    item = ready(ground, b"a.mov")
    (result,) = publish(ground, item, if_exists="rename")
    assert result.target == b"a_3.mov"
    assert sorted(files_of(ground.dest).values()) == [b"new content"] + [b"old"] * 4


@pytest.mark.parametrize("way", ["one step", "look and rename"])
@pytest.mark.parametrize("policy", ["rename", "skip", "fail"])
def test_a_name_that_is_taken_at_the_last_moment_is_never_replaced(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, policy: str, way: str
) -> None:
    """Whoever creates the name just before the rename keeps it, however the filesystem renames."""
    item = ready(ground, b"a.mov")
    if way == "look and rename":
        _without_renameat2(monkeypatch)
    real = linux.rename_noreplace

    def overtaken(old: bytes, new: bytes, dir_fd: int, new_dir_fd: int, *, lock: int) -> None:
        if new == b"a.mov":
            ground.old(b"a.mov", b"somebody was faster")
        real(old, new, dir_fd, new_dir_fd, lock=lock)

    monkeypatch.setattr(linux, "rename_noreplace", overtaken)
    (result,) = publish(ground, item, if_exists=policy)
    assert read(ground.at_dest(b"a.mov")) == b"somebody was faster"
    assert str(result.verdict) == ("published" if policy == "rename" else "exists")
    assert policy != "rename" or read(ground.at_dest(b"a_1.mov")) == b"new content"


def _without_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let renameat2 answer as it does on NFS."""
    real = linux._call

    def call(name: str, *args: object) -> int:
        if name == "renameat2":
            raise OSError(errno.EINVAL, "")
        return real(name, *args)

    monkeypatch.setattr(linux, "_call", call)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_filesystem_without_renameat2_does_as_well(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Where a rename that replaces nothing does not exist, the name is looked at first."""
    _without_renameat2(monkeypatch)
    free, taken = ready(ground, b"free"), ready(ground, b"taken")
    ground.old(b"taken")
    results = publish(ground, free, taken, if_exists=policy)
    assert str(results[0].verdict) == "published"
    assert str(results[1].verdict) == ("published" if policy in ("overwrite", "rename") else "exists")
    assert read(ground.at_dest(b"taken")) == (b"new content" if policy == "overwrite" else b"old")


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ("content", "changed"),
        ("time", "changed"),
        ("replaced", "changed"),
        ("replaced by a link", "changed"),
        ("gone", "gone"),
    ],
)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_version_that_is_not_the_sources_any_more_gets_no_name(
    ground: Ground, policy: str, change: str, verdict: str
) -> None:
    """A copy of what the source was a moment ago is not published as what it is now."""
    item = ready(ground, b"a")
    path = ground.source / "a"
    match change:
        case "content":
            path.write_bytes(b"NEW CONTENT")
        case "time":
            os.utime(path, (1, 1))
        case "replaced":
            shutil.copy2(path, ground.source / "b")
            os.replace(ground.source / "b", path)
        case "replaced by a link":
            path.rename(ground.source / "b")
            path.symlink_to("b")
        case "gone":
            path.unlink()
    assert [str(result.verdict) for result in publish(ground, item, if_exists=policy)] == [verdict]
    assert [is_own(name) for name in files_of(ground.dest)] == [True]


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o755, 0o444, 0o400, 0o666, 0o000], ids=oct)
def test_a_published_file_has_the_permission_bits_of_its_source(ground: Ground, mode: int) -> None:
    """Bits that would have kept trioft from writing the partial are taken away with the last step."""
    item = ready(ground, b"a", mode=mode)
    fd = ground.open(ground.partial(item), os.O_RDWR)
    try:
        partials.copy_attributes(fd, fd, item, MANNER)
    finally:
        os.close(fd)
    with ordinary_user():
        publish(ground, item)
    assert stat.S_IMODE(os.stat(ground.at_dest(b"a")).st_mode) == mode


def test_a_destination_that_keeps_no_times_gets_the_file(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a time cannot be set is known from the probe: it does not keep a file from its name."""
    item = ready(ground, b"a")
    failing(monkeypatch, "utime", errno.EPERM)
    assert [str(result.verdict) for result in publish(ground, item)] == ["published"]


def test_one_file_that_cannot_be_published_fails_alone(ground: Ground) -> None:
    """The others of a bundle get their names, in the order they were given."""
    items = [ready(ground, b"file %d" % n) for n in range(4)]
    os.unlink(ground.partial(items[1]))
    os.unlink(ground.at_source(b"file 2"))
    results = publish(ground, *items)
    assert [str(result.verdict) for result in results] == ["published", "trouble", "gone", "published"]
    assert [result.target for result in results] == [b"file 0", b"", b"", b"file 3"]
    assert results[1].trouble is not None
    assert results[1].trouble[:5] == ("destination", "utimens", b"file 1", None, errno.ENOENT)


def test_a_file_is_published_when_its_folder_is_durable(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder is made durable once, after its last rename; before that nothing counts as published."""
    items = [ready(ground, path) for path in (b"x/1", b"x/2", b"y/1", b"top")]
    calls: list[str] = []
    rename, fsync = os.rename, os.fsync

    def renamed(old: bytes, new: bytes, **kwargs: int) -> None:
        rename(old, new, **kwargs)
        calls.append(os.fsdecode(new))

    def synced(fd: int) -> None:
        fsync(fd)
        calls.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    publish(ground, *items)
    assert calls[:4] == ["1", "2", "1", "top"]
    assert sorted(calls[4:]) == ["sync dest", "sync x", "sync y"]


def test_a_folder_that_cannot_be_made_durable_fails_its_files(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that a power cut could take back is no delivery; files of other folders are not concerned."""
    items = [ready(ground, path) for path in (b"x/1", b"y/1", b"x/2")]
    failing(
        monkeypatch,
        "fsync",
        errno.EIO,
        lambda fd: os.readlink(f"/proc/self/fd/{fd}").endswith("/x"),
    )
    results = publish(ground, *items)
    assert [str(result.verdict) for result in results] == ["trouble", "published", "trouble"]
    assert results[0].trouble is not None
    assert results[0].trouble[:5] == ("destination", "fsync", b"x", None, errno.EIO)


@pytest.mark.parametrize("side", ["source", "destination"])
def test_nothing_is_published_when_a_root_is_not_what_it_was(ground: Ground, side: str) -> None:
    """With another filesystem at either end, no name is given: promise 5."""
    item = ready(ground, b"a")
    ends = ground.ends
    wrong = {side: Root(getattr(ends, side).path, getattr(ends, side).dev + 1)}
    with pytest.raises(Away) as caught:
        publish_module.publish(Ends(**{**ends._asdict(), **wrong}), [publication(item)], MANNER)
    assert caught.value.trouble.side == side
    assert not os.path.exists(ground.at_dest(b"a"))


# --- lost answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_publishing_twice_is_publishing_once(ground: Ground, policy: str) -> None:
    """A mover may die after the rename: its successor finds the file under the name it got, and gives no second one."""
    item = ready(ground, b"a.mov")
    if policy in ("overwrite", "rename"):
        ground.old(b"a.mov")
    first = publish(ground, item, if_exists=policy)
    before = files_of(ground.dest)
    assert publish(ground, item, if_exists=policy) == first
    assert files_of(ground.dest) == before


def test_the_second_call_does_what_the_first_did_not_reach(ground: Ground) -> None:
    """A mover that died between two renames is continued, not repeated."""
    items = [ready(ground, b"file %d" % n) for n in range(3)]
    publish(ground, items[0])
    assert [str(result.verdict) for result in publish(ground, *items)] == ["published"] * 3


@pytest.mark.parametrize("policy", POLICIES)
def test_a_partial_that_vanished_is_not_taken_for_published(ground: Ground, policy: str) -> None:
    """Another file under the final name is not proof that ours got it."""
    item = ready(ground, b"a.mov")
    ground.old(b"a.mov", b"other content")
    os.unlink(ground.partial(item))
    (result,) = publish(ground, item, if_exists=policy)
    assert result.trouble is not None
    assert result.trouble.errno == errno.ENOENT
    assert classify(result.trouble) == Remedy.RETRY


@pytest.mark.parametrize("policy", POLICIES)
def test_before_a_source_is_removed_same_size_and_time_prove_nothing(ground: Ground, policy: str) -> None:
    """Where the source may go, a vanished partial is a trouble: the next attempt compares every byte: promise 3."""
    item = ready(ground, b"a.mov")
    ground.old(b"a.mov", b"NEW CONTENT")
    ground.same_times(item)
    os.unlink(ground.partial(item))
    (result,) = publish(ground, item, if_exists=policy, prove_existing=True)
    assert result.verdict == Verdict.TROUBLE


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOENT, errno.EEXIST, errno.ETIMEDOUT])
def test_a_rename_that_raised_and_has_happened_counts(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A server may rename and lose its answer: what counts is what is there."""
    item = ready(ground, b"a.mov")
    ground.old(b"a.mov")
    real = os.rename

    def lose(old: bytes, new: bytes, **kwargs: int) -> None:
        real(old, new, **kwargs)
        raise OSError(number, "")

    monkeypatch.setattr(os, "rename", lose)
    assert publish(ground, item) == [Result(Verdict.PUBLISHED, b"a.mov")]
    assert files_of(ground.dest) == {b"a.mov": b"new content"}


# --- servers that refuse to replace ----------------------------------------------------------------------------------


def refusing(
    monkeypatch: pytest.MonkeyPatch, ground: Ground, number: int, also: Callable[[bytes, bytes], bool]
) -> list[tuple[bytes, bytes]]:
    """Let the server refuse to rename over a name that exists; *also* says what else. Returns the renames."""
    renames: list[tuple[bytes, bytes]] = []
    real = os.rename

    def rename(old: bytes, new: bytes, **kwargs: int) -> None:
        if os.path.lexists(os.path.join(os.readlink(b"/proc/self/fd/%d" % kwargs["dst_dir_fd"]), new)) or also(
            old, new
        ):
            raise OSError(number, os.strerror(number))
        real(old, new, **kwargs)
        renames.append((old, new))

    monkeypatch.setattr(os, "rename", rename)
    return renames


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EBUSY, errno.EEXIST, errno.ETXTBSY])
def test_where_a_name_cannot_be_replaced_the_old_file_is_moved_aside_first(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The server never sees a rename over a file, and nothing of the old one is left in the end."""
    item = ready(ground, b"x/a.mov")
    ground.old(b"x/a.mov")
    renames = refusing(monkeypatch, ground, number, lambda *_: False)
    assert [str(result.verdict) for result in publish(ground, item)] == ["published"]
    assert files_of(ground.dest) == {b"x/a.mov": b"new content"}
    assert [old for old, _ in renames] == [b"a.mov", os.path.basename(publication(item).partial)]


def test_an_old_file_comes_back_when_the_new_one_cannot_take_its_place(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the second rename fails too, the old file has its name again, and the partial is kept."""
    item = ready(ground, b"a.mov")
    ground.old(b"a.mov")
    partial = publication(item).partial
    refusing(monkeypatch, ground, errno.EACCES, lambda old, _: old == partial)
    (result,) = publish(ground, item)
    assert result.trouble is not None
    assert result.trouble[:5] == ("destination", "rename", b"a.mov", None, errno.EACCES)
    assert classify(result.trouble) == Remedy.RETRY
    assert files_of(ground.dest) == {b"a.mov": b"old", partial: b"new content"}


def test_an_old_file_is_never_lost_even_if_the_server_goes_away_in_the_middle(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved aside, and then nothing works any more: its content is still there, and nobody sweeps it away."""
    item = ready(ground, b"a.mov")
    ground.old(b"a.mov")
    moved: list[bytes] = []
    real = os.rename

    def rename(old: bytes, new: bytes, **kwargs: int) -> None:
        if os.path.lexists(ground.at_dest(new)):
            raise OSError(errno.EACCES, "")
        if moved:
            raise OSError(errno.EHOSTDOWN, "")
        real(old, new, **kwargs)
        moved.append(new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        patch.setattr(linux, "rename_noreplace", lambda old, new, *_, **__: rename(old, new))
        (result,) = publish(ground, item)
    assert result.trouble is not None
    assert classify(result.trouble) == Remedy.DESTINATION
    assert read(ground.at_dest(moved[0])) == b"old"
    assert not is_partial(moved[0])
    # The next attempt delivers the new one.
    assert [str(result.verdict) for result in publish(ground, item)] == ["published"]
    assert read(ground.at_dest(b"a.mov")) == b"new content"


def test_a_refusal_that_is_not_about_the_old_file_is_told_as_it_is(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is nothing to move aside, the error of the rename is the error: promise 8."""
    item = ready(ground, b"a.mov")
    failing(monkeypatch, "rename", errno.EACCES)
    (result,) = publish(ground, item)
    assert result.trouble is not None
    assert result.trouble[:5] == ("destination", "rename", b"a.mov", None, errno.EACCES)


def test_a_partial_of_another_size_gets_no_final_name(ground: Ground) -> None:
    """Promise 1: what somebody has truncated or appended to since it was verified is not published."""
    for policy in ("overwrite", "rename"):
        for change in (3, 1000):
            item = ready(ground, b"a.mov")
            os.truncate(ground.partial(item), change)
            (result,) = publish(ground, item, if_exists=policy)
            assert result.trouble is not None
            assert f"the partial has {change} bytes" in result.trouble.text
            assert classify(result.trouble) == Remedy.RETRY
            assert not (ground.dest / "a.mov").exists()


def test_the_size_under_the_final_name_is_looked_at(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says something else after the rename than before is not believed."""
    item = ready(ground, b"a.mov")
    real = os.rename

    def lossy(old: bytes, new: bytes, **kwargs: int) -> None:
        real(old, new, **kwargs)
        os.truncate(ground.at_dest(new), 3)

    monkeypatch.setattr(os, "rename", lossy)
    (result,) = publish(ground, item)
    assert result.trouble is not None
    assert "3 bytes" in result.trouble.text


# --- discard ---------------------------------------------------------------------------------------------------------


def test_partials_that_nobody_continues_are_removed(ground: Ground) -> None:
    """What is there goes, what is not there, or was never possible, is no trouble."""
    ground.old(b"x/a.00000000.partial")
    ground.old(b"file")
    publish_module.discard(
        ground.ends.destination,
        [b"x/a.00000000.partial", b"x/a.00000000.partial", b"none/b.00000000.partial", b"file/c.00000000.partial"],
    )
    assert files_of(ground.dest) == {b"file": b"old"}


def test_a_partial_that_cannot_be_removed_is_a_trouble(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the removal names the partial."""
    failing(monkeypatch, "unlink", errno.EIO)
    with pytest.raises(FileTrouble) as caught:
        publish_module.discard(ground.ends.destination, [b"a.00000000.partial"])
    assert caught.value.trouble[:5] == ("destination", "unlink", b"a.00000000.partial", None, errno.EIO)
