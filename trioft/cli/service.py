"""
``trioft service``: a watch that the system starts, looks after and stops; by systemd, or launchd on macOS.
"""

from __future__ import annotations

import math
import os
import plistlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from trioft.config.kinds import PATH
from trioft.config.options import GROUPS, Config
from trioft.core.errors import ConfigError, UnusableError
from trioft.core.units import visible

_MARK = "Written by `trioft service install`"
# Seconds beyond the grace period until what has not ended is killed: movers end, and the ledger is closed.
_ENDING = 20
# Where these hardening options would hide or lock what the service works on, they are left out.
_TEMPORARY = ("/tmp", "/var/tmp")
_HOMES = ("/home", "/root", "/run/user")
_LOCKED = ("/usr", "/boot", "/efi", "/etc")


@attrs.frozen(kw_only=True)
class Service:
    """A watch as a service: of the whole system, or of one user."""

    name: str
    system: bool
    words: tuple[str, ...]  # the arguments of `trioft watch`; their paths are absolute
    config: Config  # what they amount to
    program: tuple[str, ...]  # how trioft is started

    @property
    def keeps_own_state(self) -> bool:
        """Is its state where those of system services are, as nobody said otherwise?"""
        return self.system and self.config.state.dir is None

    @property
    def command(self) -> tuple[str, ...]:
        state = ["--state-dir", f"/var/lib/{self.name}"] if self.keeps_own_state else []
        return (*self.program, "watch", *self.words, *state)

    @property
    def writes(self) -> list[str | None]:
        """Where it writes, or may."""
        paths = [self.config.log.file, self.config.state.dir]
        for config in _all(self.config).values():
            paths += [config.source.path, config.destination.path, config.copy.on_success.folder]
        return paths

    @property
    def reads(self) -> list[str | None]:
        """What it needs besides."""
        return [sys.prefix, *self.program, *self.words, self.config.feed.tls_cert, self.config.feed.tls_key]


def _all(config: Config) -> dict[str, Config]:
    """Return the configuration itself, and those of its jobs, by what they are called."""
    return {"": config} | {f"job {name}: ": job for name, job in config.jobs.items()}


def _lie_in(places: Sequence[str], paths: Sequence[str | None]) -> bool:
    """Is any of *paths*, those that are absolute, in one of *places*?"""
    real = [os.path.realpath(path) for path in paths if path is not None and path.startswith("/")]
    return any((path + "/").startswith(f"{place}/") for path in real for place in places)


def how_to_start() -> tuple[str, ...]:
    """Return the command that starts the trioft that is running."""
    script = os.path.abspath(sys.argv[0])
    if os.path.basename(script) == "trioft" and os.access(script, os.X_OK):
        return (script,)
    return (sys.executable, "-m", "trioft")


def absolute(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the *arguments* of `trioft watch` with absolute paths: a service does not start where we are."""
    made = dict(arguments)
    for key in ("source", "dest", "config", "state_dir"):
        if made[key] is not None:
            made[key] = os.path.abspath(os.path.expanduser(made[key]))
    action, _, folder = (made["on_success"] or "").partition(":")
    if folder:
        made["on_success"] = f"{action}:{os.path.abspath(folder)}"
    return made


def words_of(parameters: Iterable[Any], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the words of a command line with these *arguments*, for a command with these *parameters*."""
    ends: list[str] = []
    options: list[str] = []
    for parameter in parameters:
        value = arguments[parameter.name]
        if value in (None, False):
            continue
        if parameter.param_type_name == "argument":
            ends.append(value)
        elif value is True:
            options.append(parameter.opts[-1])
        else:
            for word in [value] if isinstance(value, str) else value:
                options += [parameter.opts[-1], word]
    return (*ends, *options)


def check(name: str, config: Config) -> None:
    """Raise ``ConfigError`` for what a service cannot have: a name that is none, a path relative to nothing."""
    problems = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        problems.append(f'--name: found "{visible(name)}", expected letters, digits, and - _ . between them')
    for job, its in _all(config).items():
        paths = {
            f"{group}.{field.name}": getattr(getattr(its, group), field.name)
            for group, cls in GROUPS.items()
            for field in attrs.fields(cls)
            if field.metadata["kind"] is PATH
        }
        for option, value in paths.items():
            if value is not None and not value.startswith(("/", "~")):
                problems.append(f'{job}{option}: found "{visible(value)}", expected an absolute path')
        folder = its.copy.on_success.folder
        if folder is not None and not folder.startswith("/"):
            problems.append(f'{job}copy.on_success: found "archive:{visible(folder)}", expected an absolute path')
    if problems:
        raise ConfigError(problems, hint="a service is not started where you are now")


# --- systemd ----------------------------------------------------------------------------------------------------------


def systemd_unit(service: Service) -> str:
    """Return the unit of *service*."""
    config = service.config
    jobs = ", ".join(config.jobs) or f"{config.source.path} to {config.destination.path}"
    stall = max(its.copy.stall_timeout for its in _all(config).values())
    after = "After=network-online.target remote-fs.target\nWants=network-online.target\n" if service.system else ""
    return f"""\
# {_MARK}, which writes it anew; changes of yours belong into
# `systemctl {"" if service.system else "--user "}edit {service.name}`.
[Unit]
Description=trioft: {visible(jobs).replace("%", "%%")}
{after}# However long a source or a share is away, that is no reason to give up.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={" ".join(map(systemd_word, service.command))}
ExecReload=kill -HUP $MAINPID
# Such as TRIOFT_FEED_TOKEN=…
EnvironmentFile=-%E/trioft/{service.name}.env
{_state_of(service)}Restart=on-failure
RestartSec=10
# Wrong usage or configuration: only a person can help.
RestartPreventExitStatus=2
# It is up as soon as it knows its ends, or what it waits for.
TimeoutStartSec={math.ceil(2 * stall) + 60}
# Sent from trioft's event loop, while the source is looked at when it should be.
WatchdogSec=180
# The signal goes to the agent alone: its movers finish what a checkpoint needs, and end with it.
KillMode=mixed
TimeoutStopSec={math.ceil(config.state.shutdown_grace) + _ENDING}
{_hardening(service)}
[Install]
WantedBy={"multi-user.target" if service.system else "default.target"}
"""


def _state_of(service: Service) -> str:
    return (
        f"StateDirectory={service.name}\nStateDirectoryMode=0700\n"
        if service.system and service.config.state.dir is None
        else ""
    )


def _hardening(service: Service) -> str:
    """
    Return what the service may not do. It must see mounts come and go.

    Therefore no ``ProtectSystem=strict`` with ``ReadWritePaths=``: the latter is a bind mount of the folder, which
    keeps hold of a share that is unmounted, so that the service never sees what is mounted in its place (tried out).
    ``full`` binds only what no share is mounted in, and what the system mounts elsewhere gets in, as the namespace of
    a service is a slave of the system's. Users' units get no namespace at all.
    """
    lines = ["NoNewPrivileges=yes", "LockPersonality=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes"]
    lines += ["SystemCallArchitectures=native"]
    if service.system:
        lines += ["# No ProtectSystem=strict: its ReadWritePaths= would keep hold of a share that is unmounted."]
        listen = service.config.feed.listen
        everything = service.reads + service.writes
        lines += [] if _lie_in(_LOCKED, service.writes) else ["ProtectSystem=full"]
        lines += [] if _lie_in(_HOMES, everything) else ["ProtectHome=yes"]
        lines += [] if _lie_in(_TEMPORARY, everything) else ["PrivateTmp=yes"]
        lines += ["PrivateDevices=yes", "ProtectClock=yes", "ProtectControlGroups=yes", "ProtectHostname=yes"]
        lines += ["ProtectKernelLogs=yes", "ProtectKernelModules=yes", "ProtectKernelTunables=yes"]
        lines += ["RestrictNamespaces=yes"]
        lines += ["# To read and write files of all users, to prove that nobody writes one, to see who does."]
        low = " CAP_NET_BIND_SERVICE" if listen is not None and 0 < listen.port < 1024 else ""
        needed = f"CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_LEASE CAP_SYS_PTRACE{low}"
        lines += [f"CapabilityBoundingSet={needed}"]
    return "".join(f"{line}\n" for line in lines)


def systemd_word(word: str) -> str:
    """Return *word* as one word of ``ExecStart``, whatever is in it."""
    if re.fullmatch(r"[A-Za-z0-9/_.,:=@+~-]+", word):
        return word
    escaped = "".join(
        c if c.isprintable() and c not in '"\\' else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c)) for c in word
    )
    return '"' + escaped.replace("%", "%%").replace("$", "$$") + '"'


# --- launchd ----------------------------------------------------------------------------------------------------------


def launchd_plist(service: Service) -> bytes:
    """Return the property list of *service*."""
    logs = "/Library/Logs" if service.system else os.path.expanduser("~/Library/Logs")
    return plistlib.dumps(
        {
            "Label": f"trioft.{service.name}",
            "Comment": _MARK,
            "ProgramArguments": list(service.command),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": math.ceil(service.config.state.shutdown_grace) + _ENDING,
            "ProcessType": "Background",
            "StandardErrorPath": f"{logs}/{service.name}.log",
        }
    )


# --- installing -------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Place:
    """Where a service is written down, and the commands that make it known, start it and stop it."""

    file: str
    is_there: tuple[str, ...]  # the command that says whether there is anybody to start it
    start: tuple[tuple[str, ...], ...]
    restart: tuple[tuple[str, ...], ...]
    stop: tuple[tuple[str, ...], ...]
    after_removal: tuple[tuple[str, ...], ...] = ()


def place_of(name: str, *, system: bool) -> Place:
    """Return where the service *name* belongs on this machine."""
    if sys.platform == "darwin":
        folder = "/Library/LaunchDaemons" if system else os.path.expanduser("~/Library/LaunchAgents")
        file, domain = f"{folder}/trioft.{name}.plist", "system" if system else f"gui/{os.getuid()}"
        start = ("launchctl", "bootstrap", domain, file)
        stop = ("launchctl", "bootout", f"{domain}/trioft.{name}")
        return Place(
            file=file, is_there=("launchctl", "print", domain), start=(start,), restart=(stop, start), stop=(stop,)
        )
    unit = f"{name}.service"
    control = ("systemctl",) if system else ("systemctl", "--user")
    folder = "/etc/systemd/system"
    if not system:
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        folder = f"{home}/systemd/user"
    reload = (*control, "daemon-reload")
    return Place(
        file=f"{folder}/{unit}",
        is_there=(*control, "is-system-running"),
        start=(reload, (*control, "enable", "--now", unit)),
        restart=(reload, (*control, "enable", unit), (*control, "restart", unit)),
        stop=((*control, "disable", "--now", unit),),
        after_removal=(reload,),
    )


def text_of(service: Service) -> str:
    """Return what is written down of *service* on this machine."""
    return launchd_plist(service).decode() if sys.platform == "darwin" else systemd_unit(service)


def install(service: Service, say: Callable[[str], None], *, force: bool) -> None:
    """Write *service* down, and have it started, now and with the system. Raises ``TrioftError``."""
    place, text = place_of(service.name, system=service.system), text_of(service)
    there = _read(place.file)
    if there not in (None, text) and not force:
        raise ConfigError([f"{place.file} exists already, and is another one"], hint="--force replaces it")
    if there == text:
        say(f"{place.file} is there already")
    else:
        _write(place.file, text)
        say(f"wrote {place.file}")
    _carry_out(place, place.start if there in (None, text) else place.restart, say)
    if not service.system and sys.platform != "darwin":
        say(f"it runs while you are logged in; always: loginctl enable-linger {os.environ.get('USER', '')}".rstrip())


def uninstall(name: str, say: Callable[[str], None], *, system: bool, force: bool) -> None:
    """Stop a service, and forget it. Its state and its files stay. Raises ``TrioftError``."""
    place = place_of(name, system=system)
    there = _read(place.file)
    if there is None:
        raise ConfigError([f"there is no such service: {place.file}"], hint="see --name, --user and --system")
    if _MARK not in there and not force:
        raise ConfigError([f"{place.file} was not written by trioft"], hint="--force removes it all the same")
    _carry_out(place, place.stop, say)
    try:
        os.unlink(place.file)
    except OSError as error:
        raise _cannot("remove", place.file, error) from None
    say(f"removed {place.file}")
    _carry_out(place, place.after_removal, say)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot("read", path, error) from None


def _write(path: str, text: str) -> None:
    new = f"{path}.new"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(new, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(new, path)
    except OSError as error:
        raise _cannot("write", path, error) from None


def _cannot(what: str, path: str, error: OSError) -> UnusableError:
    hint = "run it as root, or with --user" if isinstance(error, PermissionError) else None
    return UnusableError(f"cannot {what} {path}: {error.strerror}", hint=hint)


def _carry_out(place: Place, commands: Sequence[Sequence[str]], say: Callable[[str], None]) -> None:
    """Run *commands*, or, where nobody would listen to them, say them."""
    if not commands:
        return
    if not _has_manager(place.is_there):
        say("nothing here starts services now (a container?); where something does:")
        for command in commands:
            say(f"    {' '.join(command)}")
        return
    for command in commands:
        say(f"{' '.join(command)}")
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            why = done.stderr.strip() or f"exit code {done.returncode}"
            raise UnusableError(f"{' '.join(command)} failed: {why}")


def _has_manager(question: Sequence[str]) -> bool:
    if shutil.which(question[0]) is None:
        return False
    done = subprocess.run(question, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout.strip() not in ("", "offline", "unknown")
