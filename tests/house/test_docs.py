"""What the documents say is true."""

from __future__ import annotations

import re
import shlex
import tomllib

import attrs
import pytest

import trioft
from support import ROOT, Site
from trioft.config.options import GROUPS

README = (ROOT / "README.md").read_text("utf-8")


def test_the_map_in_the_package_docstring_names_every_wing_in_the_order_of_imports() -> None:
    """A newcomer finds every wing in the package's docstring, and nothing there that is not."""
    assert trioft.__doc__ is not None
    house = trioft.__doc__.split("The house\n")[1]
    named = re.findall(r"^    (\w+(?: \| \w+)*) {2,}", house, re.MULTILINE)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    assert named == [layer.replace("trioft.", "") for layer in settings["contracts"][0]["layers"]]
    wings = [wing for names in named for wing in names.split(" | ")]
    assert sorted(wings) == sorted(path.parent.name for path in (ROOT / "trioft").glob("*/__init__.py"))


COMMANDS = ["sync", "watch", "config", "status", "history", "explain", "safe", "verify", "service", "doctor"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_stands_in_the_readme(site: Site, command: str) -> None:
    """Each command says what it does, and the README shows it."""
    done = site.run(command, "--help")
    assert done.code == 0
    assert "Usage:" in done.out
    assert f"trioft {command}" in README


@pytest.mark.parametrize("command", ["sync", "watch"])
def test_help_tells_the_exit_status(site: Site, command: str) -> None:
    """The exit codes stand where somebody who writes a script looks for them."""
    text = " ".join(site.run(command, "--help").out.split())
    for code in ("0 everything", "1 some files failed", "2 wrong usage", "3 source or destination", "4 nothing failed"):
        assert code in text


@pytest.mark.parametrize("command", [*COMMANDS[:2], *COMMANDS[3:], "config check", "config show", "config init"])
def test_every_command_tells_its_exit_status_and_most_an_example(site: Site, command: str) -> None:
    """A manual page would."""
    text = site.run(*command.split(), "--help").out
    assert text.count("EXIT STATUS:") == 1
    assert "Example:" in text or command.startswith("config ")


def test_the_readmes_commands_are_those_of_the_continuous_integration() -> None:
    """What a reader is told to run is what runs on every change."""
    commands = re.findall(r"^sh (tests/\w+\.sh)", README, re.MULTILINE)
    assert commands == ["tests/demo.sh", "tests/run.sh"]
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert [line for line in ci.splitlines() if line.startswith("sh ")] == [f"sh {command}" for command in commands]


def test_the_readme_names_the_options_that_hold_at_once() -> None:
    """Whoever changes the configuration of a running agent knows beforehand what a SIGHUP is good for."""
    (text,) = re.findall(r"Whatever can change at once does, and is said: (.*?)\. What is being", README, re.DOTALL)
    live = {
        f"{group}.{field.name}"
        for group, cls in GROUPS.items()
        for field in attrs.fields(cls)
        if field.metadata["live"] and f"all of `{group}`" not in text
    }
    assert {*re.findall(r"`(\w+\.\w+)`", text)} == live
    for group in re.findall(r"all of `(\w+)`", text):
        assert all(field.metadata["live"] for field in attrs.fields(GROUPS[group]))


def test_every_option_in_the_readme_exists(site: Site) -> None:
    """The README speaks of no option that a command does not have."""
    commands = [[], *([command] for command in COMMANDS)]
    helps = "".join(site.run(*command, "--help").out for command in commands)
    ours = re.sub(r"^## Beside other tools\n.*?^## ", "", README, flags=re.MULTILINE | re.DOTALL)
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)):
        assert option in helps, option


def test_every_field_of_the_summary_is_documented(site: Site) -> None:
    """A script's author finds each field of the JSON lines in the README."""
    (site.source / "a").write_bytes(b"a")
    done = site.sync()
    for line in done.lines:
        for field in line:
            assert f"`{field}`" in README, field


# --- What the README shows, runs


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", _blocks("yaml"), ids=lambda text: text.split()[0] + str(len(text)))
def test_every_configuration_in_the_readme_can_be_used(site: Site, text: str) -> None:
    """Whoever copies one has no more to do than to put in his own paths."""
    file = site.root / "config.yaml"
    file.write_text(text)
    done = site.run("config", "check", "-c", file)
    assert (done.code, done.err) == (0, "")


COMMAND_LINES = [
    line.partition("  #")[0].partition(" #")[0].strip()
    for block in _blocks("console")
    for line in re.findall(r"^\$ (trioft .*)", block, re.MULTILINE)
]
_FOLDERS = ["data/raw", "ingest", "mnt/nas/raw", "mnt/nas/ingest", "mnt/new", "etc/trioft"]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_in_the_readme_runs(site: Site, line: str) -> None:
    """With its paths in a folder of the test; what would stay, or change the system, is only taken apart."""
    for folder in _FOLDERS:
        (site.root / folder).mkdir(parents=True)
    (site.root / "data/raw/take1.mxf").write_bytes(b"a")
    (site.root / "ingest/take1.mxf").write_bytes(b"a")
    for file in ("etc/trioft/ingest.yaml", "etc/trioft/raw.yaml", "trioft.yaml"):
        (site.root / file).write_text("source: {path: /ingest}\ndestination: {path: /mnt/nas/ingest}\n")
    there = re.sub(r"(?<![\w.])/(?=(data|ingest|mnt|etc)\b)", f"{site.root}/", line.partition(" | ")[0])
    there = there.replace("50GB", "1MB")  # which not every machine has
    there = re.sub(r"(?<= )trioft\.yaml", f"{site.root}/trioft.yaml", there)
    arguments = shlex.split(there)[1:]
    env = {"TRIOFT_STATE_DIR": str(site.state), "TRIOFT_SOURCE_SETTLE": "100ms"}
    if arguments[0] in ("watch", "service", "status", "doctor") or "station.yaml" in arguments:
        arguments.append("--help")
    elif arguments[0] in ("history", "explain", "safe", "verify"):
        ends = [site.root / "ingest", site.root / "mnt/nas/ingest"]
        assert site.run("sync", *ends, env=env).code == 0
    elif arguments[:2] == ["config", "init"]:
        (site.root / "trioft.yaml").unlink()
    done = site.run(*arguments, env=env)
    assert done.code == 0, done.err
