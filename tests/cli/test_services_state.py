"""The commands that read ledgers find those of installed services."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from support import Site, make_tree
from trioft.cli.service import Service, systemd_unit
from trioft.cli.services_state import state_dir_for, state_dirs_of_services
from trioft.config.options import Config, State
from trioft.config.options import Destination as DestinationOptions
from trioft.config.options import Source as SourceOptions
from trioft.core.errors import ConfigError


def install(folder: Path, name: str, state: str | Path) -> None:
    """Write a unit as `trioft service install` does."""
    made = Service(
        name=name,
        system=True,
        words=("/ingest", "/mnt/nas", "--state-dir", str(state)),
        config=Config(state=State(dir=str(state))),
        program=("/usr/bin/trioft",),
    )
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.service").write_text(systemd_unit(made))


def test_units_say_where_their_ledgers_are(tmp_path: Path) -> None:
    """Whatever the folder is called; units of others do not count."""
    odd = f'{tmp_path}/odd % $ " name'
    install(tmp_path / "units", "a", "/var/lib/a")
    install(tmp_path / "units", "b", odd)
    (tmp_path / "units/c.service").write_text("[Service]\nExecStart=/usr/bin/x --state-dir /var/lib/c\n")
    own = Service(name="own", system=True, words=("/s", "/d"), config=Config(), program=("/usr/bin/trioft",))
    (tmp_path / "units/own.service").write_text(systemd_unit(own))
    folders = [str(tmp_path / "nothing"), str(tmp_path / "units")]
    assert state_dirs_of_services(folders) == ["/var/lib/a", odd, "/var/lib/own"]


def test_a_services_ledger_is_found_where_ones_own_knows_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By a path or by the pair; where it could be several, one has to be named; what is named, is read."""
    monkeypatch.setenv("XDG_STATE_HOME", str(site.root / "mine"))
    units = [str(site.root / "units")]
    make_tree(site.source, {"a": b"1"})
    assert site.sync().code == 0
    install(site.root / "units", "ingest", site.state)
    pair = Config(source=SourceOptions(path=str(site.source)), destination=DestinationOptions(path=str(site.dest)))
    assert state_dir_for(Config(), [str(site.source / "a")], units) == str(site.state)
    assert f"reading the ledgers of an installed service, in {site.state}" in capfd.readouterr().err
    assert state_dir_for(pair, (), units) == str(site.state)
    assert state_dir_for(Config(), (), units) == str(site.state)
    mine = str(site.root / "mine/trioft")
    assert state_dir_for(Config(), ["/etc/passwd"], units) == mine
    named = attrs.evolve(pair, state=State(dir=mine))
    assert state_dir_for(named, (), units) == mine
    other = site.root / "other"
    assert site.run("sync", site.source, site.dest, "--state-dir", other, "--settle", "0s").code == 0
    install(site.root / "units", "again", other)
    with pytest.raises(ConfigError, match="several services have it on record"):
        state_dir_for(pair, (), units)
