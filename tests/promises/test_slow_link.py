"""A link that is slow gets files through: nothing that moves is taken for dead, however long it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from servers import ssh_server, sshfs
from slow_link import slow_link
from support import Site, files_of, make_tree
from trioft.core.naming import is_own

KIB = 1 << 10


@pytest.mark.parametrize(
    "tree",
    [{"clip.mxf": 3072 * KIB}, {f"small-{n}": 100 * KIB for n in range(30)}],
    ids=["large", "small"],
)
def test_a_slow_link_gets_files_through(site: Site, tmp_path: Path, tree: dict[str | bytes, int]) -> None:
    """They take four times as long as anything may take without progress; no end is told to be lost meanwhile."""
    remote = tmp_path / "remote"
    remote.mkdir()
    make_tree(site.source, {**tree})
    config = site.root / "config.yaml"
    config.write_text("copy: {stall_timeout: 3s}\ndestination: {check_interval: 1s}\n", encoding="utf-8")
    with ssh_server(tmp_path / "ssh") as server, slow_link(server.port, 256 * KIB) as port:
        with sshfs(server, remote, site.dest, port):
            agent = site.watch("-c", config, "-v")
            for path in tree:
                agent.wait_for_file(str(path), "done")
            done = agent.end()
    # A probe that waited too long behind what is being sent leaves its file; that is swept later.
    assert {name: content for name, content in files_of(remote).items() if not is_own(name)} == files_of(site.source)
    assert "destination.lost" not in done.err
    assert "source.lost" not in done.err
    assert not [line for line in done.lines if line.get("error")], done.err
