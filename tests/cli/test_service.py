"""`trioft service`: the unit says what a service of trioft needs, hides nothing from it, and goes where it belongs."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable

import pytest

from support import Site, make_tree, wait_until
from trioft.cli.service import Service, launchd_plist, systemd_unit, systemd_word
from trioft.config.options import Config, Source, State
from trioft.config.options import Destination as To

Control = Callable[[str], None]


def unit(
    source: str = "/srv/in", dest: str = "/mnt/nas/raw", *, system: bool = True, program: str = "/opt/t/trioft"
) -> str:
    config = Config(source=Source(path=source), destination=To(path=dest), state=State(shutdown_grace=45.0))
    return systemd_unit(
        Service(name="trioft", system=system, words=(source, dest), config=config, program=("/opt/t/trioft",))
    )


@pytest.fixture
def control(site: Site, monkeypatch: pytest.MonkeyPatch) -> Control:
    """A `systemctl` that notes what it is told; called with what is to fail. Units of users lie below the site."""
    folder = site.root / "bin"
    folder.mkdir()
    script = folder / "systemctl"

    def write(failing: str) -> None:
        script.write_text(
            f'#!/bin/sh\necho "$@" >>{site.root}/told\n'
            'case "$*" in *is-system-running) echo running;; '
            f'*{failing or "nothing"}*) echo "no such bus" >&2; exit 1;; esac\n'
        )
        script.chmod(0o755)

    write("")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(site.root / "config"))
    return write


def told(site: Site) -> list[str]:
    """Return what the service manager was told, but not what it was asked."""
    lines = (site.root / "told").read_text().splitlines() if (site.root / "told").exists() else []
    (site.root / "told").unlink(missing_ok=True)
    return [line.removeprefix("--user ") for line in lines if "is-system-running" not in line]


# --- the unit ---------------------------------------------------------------------------------------------------------


def test_a_unit_says_what_trioft_needs() -> None:
    """It is told of the start, feeds a watchdog, gets the time it asked for, and is started again unless in vain."""
    lines = unit().splitlines()
    for line in (
        "Type=notify",
        "ExecStart=/opt/t/trioft watch /srv/in /mnt/nas/raw --state-dir /var/lib/trioft",
        "ExecReload=kill -HUP $MAINPID",
        "WatchdogSec=180",
        "KillMode=mixed",
        "Restart=on-failure",
        "RestartPreventExitStatus=2",
        "StartLimitIntervalSec=0",
        "StateDirectory=trioft",
        "NoNewPrivileges=yes",
    ):
        assert line in lines
    (stop,) = (int(line.partition("=")[2]) for line in lines if line.startswith("TimeoutStopSec="))
    assert stop > 45


def test_no_mount_is_hidden_from_a_service() -> None:
    """A share that is mounted after the start is seen: nothing binds its folder, or one in it."""
    for system in (True, False):
        options = [line.partition("=")[0] for line in unit(system=system).splitlines() if line[:1] not in "#["]
        assert not {"ReadWritePaths", "ReadOnlyPaths", "BindPaths", "PrivateMounts", "MountFlags"} & {*options}
        assert ("ProtectSystem=full" in unit(system=system)) == system


@pytest.mark.parametrize(
    ("place", "left_out"),
    [
        ("/tmp/in", "PrivateTmp=yes"),
        ("/var/tmp", "PrivateTmp=yes"),
        ("/home/me/in", "ProtectHome=yes"),
        ("/run/user/0/gvfs/x", "ProtectHome=yes"),
        ("/usr/local/in", "ProtectSystem=full"),
    ],
)
def test_what_would_hide_or_lock_a_folder_is_left_out(place: str, left_out: str) -> None:
    """A source in /tmp, a share in somebody's home: the service sees it all the same."""
    assert left_out not in unit(source=place)
    assert left_out not in unit(dest=place)


@pytest.mark.parametrize("owner", ["--system", "--user"])
def test_systemd_finds_no_fault_in_a_unit(site: Site, owner: str) -> None:
    """`systemd-analyze verify` has nothing to say, whatever is in the arguments."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    done = site.run(
        "service",
        "show",
        owner,
        site.source,
        site.dest,
        "--exclude",
        'odd "name" \\ %h $HOME;\n',
        "--verify",
        "transfer",
    )
    assert done.code == 0
    file = site.root / "trioft.service"
    file.write_text(done.out)
    verify = ["systemd-analyze", owner, "verify", str(file)]
    checked = subprocess.run(
        verify, capture_output=True, text=True, check=False, env={**os.environ, "XDG_RUNTIME_DIR": str(site.root)}
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/mnt/nas", "/mnt/nas"),
        ("", '""'),
        ("a b", '"a b"'),
        ("100%", '"100%%"'),
        ("$HOME", '"$$HOME"'),
        (";", '";"'),
        ('"', r'"\x22"'),
        ("\\", r'"\x5c"'),
        ("\n", r'"\x0a"'),
        ("\udcff", r'"\xff"'),
        ("tägl", '"tägl"'),
    ],
)
def test_a_word_stays_one_word(word: str, written: str) -> None:
    """systemd reads of each argument what was typed: nothing is split, expanded or taken for a comment."""
    assert systemd_word(word) == written


def test_what_the_unit_starts_works(site: Site) -> None:
    """The command of the unit, started as a service manager does, is up and delivers."""
    make_tree(site.source, {"a b": b"1"})
    done = site.run(
        "service", "show", "--user", site.source, site.dest, "--state-dir", site.state, "--settle", "100ms", "--json"
    )
    (line,) = re.findall("^ExecStart=(.*)", done.out, re.MULTILINE)
    name = f"trioft-unit-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(30)
        manager.bind(f"\0{name}")
        process = subprocess.Popen(
            shlex.split(line), cwd="/", stdout=subprocess.DEVNULL, env={**os.environ, "NOTIFY_SOCKET": f"@{name}"}
        )
        try:
            while manager.recv(4096) != b"READY=1":
                pass
            wait_until((site.dest / "a b").exists)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_a_property_list_says_the_same_to_launchd() -> None:
    """On macOS: started with the system, again after a failure, and given time to end."""
    config = Config(source=Source(path="/in"), destination=To(path="/Volumes/nas"))
    made = Service(name="raw", system=True, words=("/in", "/Volumes/nas"), config=config, program=("/opt/trioft",))
    assert plistlib.loads(launchd_plist(made)) == {
        "Label": "trioft.raw",
        "Comment": "Written by `trioft service install`",
        "ProgramArguments": ["/opt/trioft", "watch", "/in", "/Volumes/nas", "--state-dir", "/var/lib/raw"],
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ExitTimeOut": 30,
        "ProcessType": "Background",
        "StandardErrorPath": "/Library/Logs/raw.log",
    }


# --- arguments --------------------------------------------------------------------------------------------------------


def test_paths_become_absolute(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service does not start where you are: relative paths mean what they mean to you now."""
    monkeypatch.chdir(site.root)
    (site.root / "c.yaml").write_text("copy: {transfers: 2}\n")
    words = [
        "source",
        "dest",
        "-c",
        "c.yaml",
        "--state-dir",
        "state",
        "--on-success",
        "archive:done",
        "--feed",
        "[::1]:0",
    ]
    done = site.run("service", "show", "--user", *words)
    root = site.root
    expected = f"watch {root}/source {root}/dest --config {root}/c.yaml --on-success archive:{root}/done"
    assert f'{expected} --feed "[::1]:0" --state-dir {root}/state\n' in done.out


def test_relative_paths_of_a_file_are_refused(site: Site) -> None:
    """In a configuration file they would mean something else to the service: all of them are told."""
    file = site.root / "c.yaml"
    file.write_text(
        "source: {path: in}\ndestination: {path: /out}\nlog: {file: x.log}\ncopy: {on_success: archive:y}\n"
    )
    done = site.run("service", "show", "-c", file, "--name", "../x")
    assert (done.code, done.out) == (2, "")
    for part in ("source.path", "log.file", "copy.on_success", "--name"):
        assert f"trioft: error: {part}: found" in done.err


def test_all_jobs_of_a_file_are_thought_of(site: Site) -> None:
    """What would hide the folder of any job is left out, and each has absolute paths."""
    file = site.root / "c.yaml"
    jobs = "jobs:\n- {name: a, source: {path: /srv/a}, destination: {path: /mnt/a}}\n"
    file.write_text(jobs + "- {name: b, source: {path: /home/b}, destination: {path: /usr/local/b}}\n")
    done = site.run("service", "show", "--system", "-c", file)
    assert done.code == 0, done.err
    assert "Description=trioft: a, b\n" in done.out
    assert "ProtectHome" not in done.out
    assert "ProtectSystem=full" not in done.out
    file.write_text(jobs + "- {name: b, source: {path: in}, destination: {path: /mnt/b}}\n")
    done = site.run("service", "show", "--system", "-c", file)
    assert done.code == 2
    assert 'job b: source.path: found "in", expected an absolute path' in done.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["show", "/a"], "DEST missing"),
        (["show", "/a", "/b", "--verfy", "size"], "No such option: --verfy"),
        (["show", "/a", "/b", "--verify", "much"], "--verify"),
        (["show", "--user", "--system", "/a", "/b"], "exclude each other"),
        (["uninstall", "/a"], "uninstall needs no /a"),
        (["begin", "/a", "/b"], "show"),
    ],
)
def test_what_watch_would_refuse_is_refused(site: Site, words: list[str], problem: str) -> None:
    """A service that could not start is not installed."""
    done = site.run("service", *words)
    assert (done.code, done.out) == (2, "")
    assert problem in done.err
    assert "Traceback" not in done.err


# --- installing -------------------------------------------------------------------------------------------------------


def test_a_service_is_installed_replaced_and_removed(site: Site, control: Control) -> None:
    """What is written and carried out is said; another unit of that name is replaced only by force."""
    pair = ["--user", str(site.source), str(site.dest)]
    file = site.root / "config" / "systemd" / "user" / "ingest.service"
    first = site.run("service", "install", "--name", "ingest", *pair)
    assert (first.code, first.err) == (0, "")
    assert first.out.splitlines()[:3] == [
        f"wrote {file}",
        "systemctl --user daemon-reload",
        "systemctl --user enable --now ingest.service",
    ]
    assert told(site) == ["daemon-reload", "enable --now ingest.service"]
    again = site.run("service", "install", "--name", "ingest", *pair)
    assert (again.code, again.out.splitlines()[0]) == (0, f"{file} is there already")
    told(site)
    other = site.run("service", "install", "--name", "ingest", *pair, "--verify", "size")
    assert (other.code, told(site)) == (2, [])
    assert "--force replaces it" in other.err
    forced = site.run("service", "install", "--force", "--name", "ingest", *pair, "--verify", "size")
    assert (forced.code, "--verify size" in file.read_text()) == (0, True)
    assert told(site) == ["daemon-reload", "enable ingest.service", "restart ingest.service"]
    removed = site.run("service", "uninstall", "--user", "--name", "ingest")
    assert (removed.code, file.exists()) == (0, False)
    assert told(site) == ["disable --now ingest.service", "daemon-reload"]
    assert site.run("service", "uninstall", "--user", "--name", "ingest").code == 2


def test_what_the_manager_refuses_is_told(site: Site, control: Control) -> None:
    """A command that fails ends it, with what that had to say."""
    control("enable")
    done = site.run("service", "install", "--user", site.source, site.dest)
    assert done.code == 3
    assert "systemctl --user enable --now trioft.service failed: no such bus" in done.err


def test_without_a_manager_the_unit_is_written_and_the_commands_are_said(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container nothing starts services: whoever builds its image is told what to run."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(site.root / "config"))
    monkeypatch.setenv("PATH", str(site.root))
    done = site.run("service", "install", "--user", site.source, site.dest)
    assert (done.code, done.err) == (0, "")
    assert (site.root / "config/systemd/user/trioft.service").exists()
    assert "    systemctl --user enable --now trioft.service" in done.out.splitlines()


def test_a_unit_of_somebody_else_is_left_alone(site: Site, control: Control) -> None:
    """What trioft did not write, it does not remove."""
    folder = site.root / "config" / "systemd" / "user"
    folder.mkdir(parents=True)
    (folder / "trioft.service").write_text("[Service]\nExecStart=/bin/true\n")
    assert site.run("service", "install", "--user", site.source, site.dest).code == 2
    done = site.run("service", "uninstall", "--user")
    assert (done.code, told(site), (folder / "trioft.service").exists()) == (2, [], True)
    assert "was not written by trioft" in done.err


def test_a_folder_that_cannot_be_written_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback where the unit cannot be put."""
    (site.root / "config").write_text("a file in the way")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(site.root / "config"))
    done = site.run("service", "install", "--user", site.source, site.dest)
    assert done.code == 3
    assert "cannot" in done.err
    assert "Traceback" not in done.err
