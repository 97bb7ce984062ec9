"""Is anybody still writing? And the system calls that Python does not wrap."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from files import Ground, held, need_leases, open_files, ordinary_user, other_filesystem, read, without_privileges
from trioft.core import answers
from trioft.movers.ops import linux, writers

PATH = b"recording"


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with Ground(tmp_path) as place:
        place.add(PATH, b"content")
        yield place


def ask(ground: Ground) -> str:
    """Ask as the movers do: by a descriptor that only reads."""
    fd = os.open(ground.at_source(PATH), os.O_RDONLY | os.O_NONBLOCK)
    try:
        return writers.ask_lease(fd, os.fstat(fd).st_dev)
    finally:
        os.close(fd)


# --- leases ----------------------------------------------------------------------------------------------------------


def test_a_closed_file_is_proved_to_be_closed(ground: Ground) -> None:
    """Nobody has it open: the kernel says so, again and again."""
    need_leases(ground.source)
    assert [ask(ground) for _ in range(3)] == [answers.CLOSED] * 3


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ("writer", answers.BUSY),
        ("reader and writer", answers.BUSY),
        ("memory map", answers.BUSY),  # its descriptor is closed: only the kernel still knows of it
        ("reader", answers.CLOSED),
    ],
)
def test_a_writer_is_proved_as_long_as_it_is_there(ground: Ground, how: str, answer: str) -> None:
    """Whoever can still change the file makes it busy; whoever only reads it does not."""
    need_leases(ground.source)
    with held(ground.at_source(PATH), how):
        assert ask(ground) == answer
    assert ask(ground) == answers.CLOSED


def test_a_writer_of_another_name_of_the_file_is_found(ground: Ground) -> None:
    """What is asked about is the file, not its name: hard links cannot hide a writer."""
    need_leases(ground.source)
    os.link(ground.at_source(PATH), ground.at_source(b"other name"))
    with held(ground.at_source(b"other name"), "writer"):
        assert ask(ground) == answers.BUSY
    assert ask(ground) == answers.CLOSED


def test_one_of_two_writers_is_enough(ground: Ground) -> None:
    """A file is closed when the last writer has closed it, whatever an event said when the first one did."""
    need_leases(ground.source)
    with held(ground.at_source(PATH), "writer"):
        with held(ground.at_source(PATH), "writer"):
            assert ask(ground) == answers.BUSY
        assert ask(ground) == answers.BUSY
    assert ask(ground) == answers.CLOSED


@pytest.mark.timeout(20)
def test_a_question_keeps_no_writer_waiting(ground: Ground) -> None:
    """The lease is given back at once: whoever opens the file for writing afterwards does not wait."""
    need_leases(ground.source)
    fd = ground.open(ground.at_source(PATH))
    assert writers.ask_lease(fd, os.fstat(fd).st_dev) == answers.CLOSED
    with held(ground.at_source(PATH), "writer"):
        assert writers.ask_lease(fd, os.fstat(fd).st_dev) == answers.BUSY


def test_an_opener_that_meets_a_lease_does_not_kill_the_asker(ground: Ground) -> None:
    """The kernel tells a lease holder by SIGIO, which kills by default: a mover ignores it from the start."""
    script = (
        f"import os, sys, signal; sys.path.extend({sys.path!r}); from trioft.movers.ops import writers; "
        "writers.prepare_leases(); os.kill(os.getpid(), signal.SIGIO); print('alive')"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"alive\n")
    script = "import os, signal; os.kill(os.getpid(), signal.SIGIO)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGIO


@pytest.mark.parametrize("magic", [0, 0x6969, 0xFF534D42, 0xFE534D42, 0x65735546, 0x4D44], ids=hex)
def test_where_the_kernel_does_not_know_all_writers_a_lease_proves_nothing(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, magic: int
) -> None:
    """On NFS, CIFS, FUSE, FAT and whatever nobody has measured, the answer is unknown, not closed: promise 3."""
    monkeypatch.setattr(writers, "_magic_of_device", {})
    monkeypatch.setattr(linux, "filesystem_magic", lambda fd: magic)
    assert ask(ground) == answers.UNKNOWN
    with held(ground.at_source(PATH), "writer"):
        assert ask(ground) == answers.UNKNOWN


def test_a_file_of_somebody_else_proves_nothing_to_an_ordinary_user(ground: Ground) -> None:
    """Leases are for a file's owner: where they are refused, the answer is unknown."""
    need_leases(ground.source)
    if os.getuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(ground.at_source(PATH), 65534, -1)
    with ordinary_user():
        assert ask(ground) == answers.UNKNOWN
    assert ask(ground) == answers.CLOSED


def test_each_filesystem_is_judged_by_itself(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one filesystem can prove says nothing about a file that lies on another."""
    need_leases(ground.source)
    monkeypatch.setattr(writers, "_magic_of_device", {})
    with other_filesystem(ground.source) as elsewhere:
        (elsewhere / "file").write_bytes(b"")
        real = linux.filesystem_magic
        device = elsewhere.stat().st_dev
        monkeypatch.setattr(linux, "filesystem_magic", lambda fd: 0 if os.fstat(fd).st_dev == device else real(fd))
        fd = os.open(elsewhere / "file", os.O_RDONLY)
        try:
            assert writers.ask_lease(fd, device) == answers.UNKNOWN
            assert ask(ground) == answers.CLOSED
            assert writers.ask_lease(fd, device) == answers.UNKNOWN
        finally:
            os.close(fd)


# --- the open-file table ---------------------------------------------------------------------------------------------


def identity(path: bytes) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def test_writers_on_this_machine_are_found_in_the_open_file_table(ground: Ground) -> None:
    """Of many files, those that a process has open for writing are named; readers are not writers."""
    paths = [ground.at_source(b"%d" % n) for n in range(4)]
    for n in range(4):
        ground.add(b"%d" % n)
    wanted = [identity(path) for path in paths]
    with held(paths[1], "writer"), held(paths[2], "reader"), held(paths[3], "reader and writer"):
        assert writers.find_writers(wanted) == {wanted[1], wanted[3]}
        assert writers.find_writers([wanted[0], wanted[2]]) == set()
    assert writers.find_writers(wanted) == set()


def test_a_writer_of_this_process_is_found_too(ground: Ground) -> None:
    """The table knows everybody."""
    wanted = identity(ground.at_source(PATH))
    fd = os.open(ground.at_source(PATH), os.O_WRONLY)
    try:
        assert writers.find_writers([wanted]) == {wanted}
    finally:
        os.close(fd)
    assert writers.find_writers([wanted]) == set()


def test_the_same_inode_number_of_another_device_is_another_file(ground: Ground) -> None:
    """Inode numbers are the same on many filesystems: the device tells them apart."""
    device, inode = identity(ground.at_source(PATH))
    with held(ground.at_source(PATH), "writer"):
        assert writers.find_writers([(device + 1, inode)]) == set()


def test_a_removed_file_that_is_still_written_is_found(ground: Ground) -> None:
    """A name is not needed to be found."""
    wanted = identity(ground.at_source(PATH))
    with held(ground.at_source(PATH), "writer"):
        os.unlink(ground.at_source(PATH))
        assert writers.find_writers([wanted]) == {wanted}


def test_asking_about_nothing_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is not read where there is nothing to be found."""
    monkeypatch.setattr(os, "listdir", lambda path: pytest.fail("it was read"))
    assert writers.find_writers([]) == set()


# --- what Python does not wrap ---------------------------------------------------------------------------------------


def test_the_kind_of_a_filesystem_is_told(ground: Ground) -> None:
    """Known kinds by their number, and none, not an error, for what is no file."""
    with open("/proc/self/stat", "rb") as file:
        assert linux.filesystem_magic(file.fileno()) == 0x9FA0
    fd = ground.open(ground.source)
    kind = subprocess.run(["stat", "-f", "-c", "%t", ground.source], capture_output=True, check=True, text=True)
    assert linux.filesystem_magic(fd) == int(kind.stdout, 16)
    assert linux.filesystem_magic(99_999) == 0


@pytest.mark.parametrize(
    ("release", "reports"),
    [
        ("4.19.0-27-amd64", False),
        ("5.7.19", False),
        ("5.8.0", True),
        ("5.15.0-1-generic", True),
        ("6.1", True),
        ("6.18-rc1", True),
        ("unknown", False),
    ],
)
def test_syncfs_is_relied_on_only_where_it_reports_errors(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, release: str, reports: bool
) -> None:
    """Before Linux 5.8 its silence proves nothing: then each file is synced by itself: promise 2."""
    uname = os.uname()
    monkeypatch.setattr(os, "uname", lambda: type("Uname", (), {"release": release, "sysname": uname.sysname}))
    linux._syncfs_reports_errors.cache_clear()
    monkeypatch.setattr(linux, "filesystem_magic", lambda fd: linux.XFS)
    try:
        assert linux.can_syncfs(0) == reports
        monkeypatch.setattr(linux, "filesystem_magic", lambda fd: 0x6969)  # NFS
        assert not linux.can_syncfs(0)
    finally:
        linux._syncfs_reports_errors.cache_clear()


def test_durability_calls_work_and_report_errors(ground: Ground) -> None:
    """They reach the kernel, and its errors come back."""
    fd = ground.open(ground.at_source(PATH), os.O_RDWR)
    linux.write_back(fd, 0, 7)
    linux.syncfs(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        linux.write_back(99_999, 0, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        linux.syncfs(99_999)
    pipe = os.pipe()
    linux.write_back(pipe[0], 0, 1)  # cannot be done there, and is only an optimisation
    for end in pipe:
        os.close(end)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, None], ids=str)
def test_a_rename_that_replaces_nothing(ground: Ground, monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    """A free name is given, a taken one is an error, and a missing file too: with or without the system call for it."""
    if number is not None:

        def cannot(name: str, *args: object) -> int:
            raise OSError(number, "")

        monkeypatch.setattr(linux, "_call", cannot)
    folder = ground.open(ground.source)
    ground.add(b"taken", b"untouched")
    (ground.source / "dangling").symlink_to("nowhere")
    for taken in (b"taken", b"dangling", PATH):
        with pytest.raises(FileExistsError):
            linux.rename_noreplace(PATH, taken, folder)
    assert read(ground.at_source(b"taken")) == b"untouched"
    linux.rename_noreplace(PATH, b"free", folder)
    assert read(ground.at_source(b"free")) == b"content"
    assert not os.path.exists(ground.at_source(PATH))
    with pytest.raises(FileNotFoundError):
        linux.rename_noreplace(PATH, b"another", folder)
    # An absolute name leads out of the folder.
    linux.rename_noreplace(b"free", ground.at_dest(b"moved"), folder)
    assert read(ground.at_dest(b"moved")) == b"content"


def test_errors_of_the_rename_are_told(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not about the call being unknown is an error."""

    def stale(name: str, *args: object) -> int:
        raise OSError(errno.ESTALE, "stale")

    monkeypatch.setattr(linux, "_call", stale)
    with pytest.raises(OSError, match="stale") as caught:
        linux.rename_noreplace(PATH, b"free", ground.open(ground.source))
    assert caught.value.errno == errno.ESTALE


def test_a_call_that_the_c_library_does_not_have_is_not_supported() -> None:
    """An old or small C library lacks some calls: the stand-in for each takes over."""
    with pytest.raises(OSError, match="implemented") as caught:
        linux._call("no_such_function_of_trioft")
    assert caught.value.errno == errno.ENOSYS


_CHILD = """
import os, sys, time
sys.path.extend({path!r})
from trioft.movers.ops import linux
print(linux.die_with_parent(os.getppid()), linux.die_with_parent(1 << 22), os.getpid(), flush=True)
time.sleep(600)
"""


def test_a_child_does_not_outlive_its_parent() -> None:
    """A mover of a killed agent must not change what the next agent works on: the kernel kills it."""
    child = [sys.executable, "-I", "-S", "-c", _CHILD.format(path=sys.path)]
    script = f"import subprocess, time; subprocess.Popen({child!r}); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-I", "-S", "-c", script], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        alive, of_another, pid = parent.stdout.readline().split()
        assert (alive, of_another) == (b"True", b"False")
        parent.kill()
        assert parent.stdout.read() == b""  # its end: the last process that holds the pipe, the child, is gone
    assert not os.path.exists(f"/proc/{int(pid)}/exe")


def test_nothing_stays_open(ground: Ground) -> None:
    """Questions about writers leave no descriptor behind."""
    before = open_files()
    ask(ground)
    writers.find_writers([identity(ground.at_source(PATH))])
    assert open_files() == before


# --- where a proof would prove nothing --------------------------------------------------------------------------------


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The table in which the NFS server says what it exports."""
    table = tmp_path / "etab"
    monkeypatch.setattr(writers, "_EXPORTS", (str(table), str(tmp_path / "no such table")))
    monkeypatch.setattr(writers, "_SERVERS", str(tmp_path / "threads"))
    monkeypatch.setattr(writers, "_exports", writers._Exports())
    monkeypatch.setattr(writers, "_EXPORTS_LAST", 0)
    return table


def test_a_lease_proves_nothing_in_a_folder_that_this_machine_exports(ground: Ground, exports: Path) -> None:
    """The NFS server opens a file for each write only: a writer behind it is seen by nobody here: promise 3."""
    need_leases(ground.source)
    assert ask(ground) == answers.CLOSED
    name = os.fsencode(ground.source).replace(b" ", b"\\040")
    exports.write_bytes(b"# version 1\n/elsewhere *(rw)\n%s\t*(rw,sync,no_subtree_check)\n" % name)
    assert ask(ground) == answers.UNKNOWN
    with held(ground.at_source(PATH), "writer"):
        assert ask(ground) == answers.BUSY
    (exports.parent / "threads").write_text("0\n")  # the server does not run
    assert ask(ground) == answers.CLOSED
    (exports.parent / "threads").write_text("8\n")
    exports.write_bytes(os.fsencode(ground.dest) + b"\t*(rw)\n")
    assert ask(ground) == answers.CLOSED
    exports.write_bytes(b"/\t*(rw)\n")
    assert ask(ground) == answers.UNKNOWN
    exports.unlink()
    exports.mkdir()  # what cannot be read says nothing
    assert ask(ground) == answers.UNKNOWN


def test_what_is_exported_is_known_under_another_name_too(ground: Ground, exports: Path, tmp_path: Path) -> None:
    """A bind mount of a part of an exported folder is a part of it."""
    need_leases(ground.source)
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    (ground.source / "below").mkdir()
    ground.add(b"below/file")
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["mount", "--bind", ground.source / "below", other], check=True)
    try:
        exports.write_bytes(os.fsencode(ground.source) + b"\t*(rw)\n")
        fd = os.open(other / "file", os.O_RDONLY)
        assert writers.ask_lease(fd, os.fstat(fd).st_dev) == answers.UNKNOWN
        os.close(fd)
    finally:
        subprocess.run(["umount", other], check=True)


def test_a_lease_on_an_overlay_proves_no_close(ground: Ground, tmp_path: Path) -> None:
    """Who writes to the layer below is unknown there; who writes through the overlay is told: promise 3."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    for folder in (lower, upper, work, merged):
        folder.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=False)
    if mounted.returncode:
        pytest.skip("there are no overlays here")
    try:
        (merged / "file").write_bytes(b"content")
        fd = os.open(merged / "file", os.O_RDONLY)
        device = os.fstat(fd).st_dev
        with held(bytes(upper / "file"), "writer"):
            assert writers.ask_lease(fd, device) == answers.UNKNOWN
            assert writers.strength(fd, device, answers.UNKNOWN) == answers.TIMEOUT
        with held(bytes(merged / "file"), "writer"):
            assert writers.ask_lease(fd, device) == answers.BUSY
        os.close(fd)
    finally:
        subprocess.run(["umount", merged], check=True)


def test_who_may_not_look_into_all_processes_says_no_more_than_that_it_was_quiet(ground: Ground) -> None:
    """Root without CAP_SYS_PTRACE, as in a container, is told nothing of other users' files: not `likely`."""
    fd = ground.open(ground.at_source(PATH))
    device = os.fstat(fd).st_dev
    assert without_privileges(writers.sees_all_processes) is False
    assert without_privileges(lambda: writers.strength(fd, device, answers.UNKNOWN)) == answers.TIMEOUT
    assert without_privileges(lambda: writers.strength(fd, device, answers.UNKNOWN, True)) == answers.MARKED
    if writers.sees_all_processes():
        assert writers.strength(fd, device, answers.UNKNOWN) == answers.LIKELY


@pytest.mark.parametrize("how", ["--pid", "--user"])
def test_who_is_in_a_container_does_not_see_all_processes(how: str) -> None:
    """All capabilities of a namespace of one's own are none over the processes outside."""
    code = f"import sys; sys.path.extend({sys.path!r}); from trioft.movers.ops import writers; "
    command = [sys.executable, "-I", "-S", "-c", code + "print(writers.sees_all_processes())"]
    options = ["--fork", "--mount-proc"] if how == "--pid" else ["--map-root-user"]
    done = subprocess.run(["unshare", how, *options, *command], capture_output=True, check=False, text=True)
    if done.returncode:
        pytest.skip(f"no namespaces here: {done.stderr}")
    assert done.stdout == "False\n"
