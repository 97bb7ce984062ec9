"""A real network filesystem: sshfs, from a real OpenSSH server that dies in the middle of everything and comes back."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import SshServer, ssh_server, sshfs
from support import Site, files_of, make_tree, pattern, wait_until
from trioft.core.model import BLOCK_SIZE, MIB
from trioft.core.naming import is_own

OPTIONS = """
source: {settle_closed: 100ms, scan_interval: 1s}
copy: {checkpoint_size: 8MiB, stall_timeout: 10s}
growing: {min_size: 4MiB}
retry: {first: 100ms, longest: 500ms}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    with ssh_server(tmp_path / "ssh") as running:
        yield running


@pytest.fixture
def shared(site: Site, server: SshServer) -> Iterator[Path]:
    """The destination is mounted from the server; this is the folder as the server has it."""
    remote = site.root / "shared"
    remote.mkdir()
    (site.root / "trioft.yaml").write_text(OPTIONS)
    with sshfs(server, remote, site.dest):
        yield remote
        site.stop_all()


def partials_in(folder: Path) -> dict[bytes, int]:
    """Return the partials below *folder* and their sizes, as the server has them."""
    return {path: len(content) for path, content in files_of(folder).items() if is_own(path)}


def test_everything_of_a_file_that_sftp_keeps_arrives(site: Site, shared: Path) -> None:
    """Content, odd names, permissions, times to the second; an older file is replaced; a second run copies nothing."""
    names = [b"plain", b"with blank", b"new\nline", b"\xff\xfe", "größe".encode(), b"-rf", b"x" * 255, b"a\\b", b"CON"]
    tree: dict[str | bytes, bytes | int | None] = {b"folder \xe9/" + name: name * 1000 for name in names[:4]}
    tree |= {name: pattern(len(name) * 999, 3) for name in names[:6] + names[7:]}
    tree |= {b"empty": b"", b"large.mov": pattern(2 * BLOCK_SIZE + 1, 7), b"older": b"new version", b"hollow": None}
    make_tree(site.source, tree)
    for number, path in enumerate(sorted(site.source.rglob("*"))):
        if path.is_file():
            os.utime(path, ns=(0, 1_234_567_890_123_456_789 + number * 10**9))
    os.chmod(site.source / "plain", 0o440)
    (shared / "older").write_bytes(b"old version")
    done = site.sync()
    assert done.code == 0, done.err
    assert files_of(shared) == files_of(site.source)
    assert (shared / "hollow").is_dir()
    assert stat.S_IMODE((shared / "plain").stat().st_mode) == 0o440
    for name in files_of(site.source):
        mine, its = (os.stat(os.path.join(os.fsencode(end), name)) for end in (site.source, shared))
        assert mine.st_mtime_ns // 10**9 == its.st_mtime_ns // 10**9, name
    again = site.sync()
    assert (again.code, again.summary["delivered"], again.summary["bytes"]) == (0, 0, 0)
    assert again.summary["already"] == len(files_of(site.source))


def test_a_server_that_dies_and_comes_back_costs_nothing_but_time(site: Site, server: SshServer, shared: Path) -> None:
    """
    A large file, small ones, and one that is being recorded arrive although the server was away in the middle of them.

    That is nobody's fault: no attempt is counted against a file, and nothing is left over.
    """
    contents = {b"small/%d" % number: pattern(number * 997, number) for number in range(60)}
    contents[b"large.mov"] = pattern(5 * BLOCK_SIZE + 77, 1)
    make_tree(site.source, {name: content for name, content in contents.items() if name == b"large.mov"})
    take = contents[b"take.mxf"] = pattern(3 * BLOCK_SIZE + 5, 2)
    recorder = os.open(site.source / "take.mxf", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        assert os.pwrite(recorder, bytes(4096) + take[4096 : BLOCK_SIZE + MIB], 0) == BLOCK_SIZE + MIB
        running = site.watch("--bwlimit", "16MiB/s", "-c", site.root / "trioft.yaml")
        # In the middle of both.
        wait_until(lambda: sum(size > MIB for size in partials_in(shared).values()) == 2)
        server.kill()
        gone_at = time.monotonic()
        make_tree(site.source, {name: content for name, content in contents.items() if name.startswith(b"small")})
        assert os.pwrite(recorder, take[BLOCK_SIZE + MIB :], BLOCK_SIZE + MIB) == len(take) - BLOCK_SIZE - MIB
        said = running.wait_for(lambda line: line["event"] == "storage")
        assert "not usable" in said["text"]
        while time.monotonic() - gone_at < 2.5:
            assert running.process.poll() is None
            time.sleep(0.05)
        server.start()
        running.wait_for(lambda line: line["event"] == "storage" and "usable again" in line["text"])
        assert os.pwrite(recorder, take[:4096], 0) == 4096
    finally:
        os.close(recorder)
    for name in contents:
        running.wait_for_file(os.fsdecode(name), "done")
    done = running.end()
    assert done.code == 0, done.err
    assert files_of(shared) == contents
    lines = [line for line in done.lines if line["event"] == "file"]
    assert {line["attempt"] for line in lines} == {0}
    assert done.summary["failed"] == 0
    assert done.summary["delivered"] == len(contents)
