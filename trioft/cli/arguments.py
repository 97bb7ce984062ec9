"""
The command line's arguments and options, each declared once and shared; what they amount to; exit codes.
"""

from __future__ import annotations

import enum
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trioft.core.errors import ConfigError, TrioftError

if TYPE_CHECKING:
    from trioft.config.options import Config

# What a command's help ends with.
ENVIRONMENT = """
ENVIRONMENT:  TRIOFT_GROUP_KEY stands for each key of the configuration, such as TRIOFT_COPY_TRANSFERS=8; the command
line beats it, and it beats the configuration file.
"""

EXIT_STATUS = """
EXIT STATUS:  0 everything that was to be transferred is at the destination; what was skipped is said, and counted
(watch: stopped by a signal).  1 some files failed.  2 wrong usage or configuration.  3 source or destination unusable.
4 nothing failed, but files still being written were left for the next run.  5 another trioft works on the same pair.
130, 143 sync was interrupted; partials are resumable.
Of several jobs it is the code of the one that is worst off: 2, 3, 5, 1, 4, 0.
"""

PLAIN_STATUS = """
EXIT STATUS:  0 done.  2 wrong usage or configuration.  3 what it needs is not there, or cannot be used.
"""

SAFE_STATUS = """
EXIT STATUS:  0 yes, of all that was asked about.  1 no.  2 wrong usage or configuration.  3 the ledger cannot be used.
4 unknown: something could not be looked at, or nothing can prove it.
"""

VERIFY_STATUS = """
EXIT STATUS:  0 all that was delivered is there, as it was delivered.  1 something is missing, has other bytes, cannot
be read, or was replaced by somebody (--allow-changed); or nothing is on record (--allow-none).  2 wrong usage or
configuration.  3 the destination or the ledger cannot be used.  130, 143 interrupted; the same command goes on where
it stopped.
"""

Source = Annotated[
    str | None, typer.Argument(metavar="SOURCE", help="A local folder, or one file. May come from the config file.")
]
Destination = Annotated[
    str | None, typer.Argument(metavar="DEST", help="An existing folder, such as a mounted share. Never created.")
]
ConfigFile = Annotated[
    str | None,
    typer.Option("-c", "--config", metavar="FILE", envvar="TRIOFT_CONFIG", help="Configuration file (YAML)."),
]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="GLOB", help="Transfer only what matches. Repeatable. Default: everything."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="GLOB", help="Leave out what matches; beats --include. Repeatable."),
]
Transfers = Annotated[
    str | None, typer.Option("--transfers", metavar="N", help="Files or bundles copied at a time. Default: 4.")
]
Verify = Annotated[
    str | None,
    typer.Option("--verify", metavar="LEVEL", help="size, transfer, or readback. Default: readback."),
]
Checksum = Annotated[
    bool | None,
    typer.Option("--checksum", help="Compare the contents of what is there already, not only size and time."),
]
GrowingMode = Annotated[
    str | None,
    typer.Option(
        "--growing",
        metavar="MODE",
        help="follow: copy files while they are being written; sync stays until they are closed. wait: copy them when"
        " they are closed; sync leaves them for the next run. Default: follow.",
    ),
]
Settle = Annotated[
    str | None,
    typer.Option(
        "--settle", metavar="DURATION", help="Quiet time after which a file counts as finished. Default: 10s."
    ),
]
OnSuccess = Annotated[
    str | None,
    typer.Option("--on-success", metavar="ACTION", help="keep, delete, or archive:DIR the source. Default: keep."),
]
IfExists = Annotated[
    str | None,
    typer.Option(
        "--if-exists",
        metavar="POLICY",
        help="rename, overwrite, skip, or fail, where another file has the name. Default: overwrite in sync, rename in"
        " watch.",
    ),
]
Bwlimit = Annotated[
    str | None,
    typer.Option(
        "--bwlimit",
        metavar="RATE",
        help="Limit of all transfers together, as 20MiB/s, or by the clock, as '08:00,20MiB 18:00,off'. Default: off.",
    ),
]
MinFree = Annotated[
    str | None, typer.Option("--min-free", metavar="SIZE", help="Space to leave free, as 1% or 10GB. Default: 1%.")
]
Feed = Annotated[
    str | None,
    typer.Option("--feed", metavar="HOST:PORT", help="Serve the page, the feed and metrics there. Default: off."),
]
JobNames = Annotated[
    list[str] | None,
    typer.Option("--job", metavar="NAME", help="Only this one of the configuration file's jobs. Repeatable."),
]
JobName = Annotated[
    str | None, typer.Option("--job", metavar="NAME", help="The pair of this one of the configuration file's jobs.")
]
StateDir = Annotated[
    str | None,
    typer.Option("--state-dir", metavar="DIR", help="Where the ledger lives. Default: the user's state folder."),
]
AcceptNewDestination = Annotated[
    bool,
    typer.Option(
        "--accept-new-destination",
        help="DEST is on another filesystem than in earlier runs, on purpose: use it from now on.",
    ),
]
AcceptNewSource = Annotated[
    bool,
    typer.Option(
        "--accept-new-source", help="Nothing is mounted at SOURCE any more, on purpose: transfer what is there."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", envvar="TRIOFT_JSON", help="One JSON object a line on stdout, `summary` last.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", envvar="TRIOFT_QUIET", help="Say only what failed.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", envvar="TRIOFT_VERBOSE", help="Say more.")]
NoProgress = Annotated[
    bool, typer.Option("--no-progress", envvar="TRIOFT_NO_PROGRESS", help="No progress display in the terminal.")
]

# --- of the ledger's commands -----------------------------------------------------------------------------------------

Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="TIME", help="From then on: a duration, such as 2h, or a date, as 2026-01-31T12:00."
    ),
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before then, in the same notation.")]
Event = Annotated[
    list[str] | None, typer.Option("--event", metavar="NAME", help="Only this, such as removed. Repeatable.")
]
Failed = Annotated[bool, typer.Option("--failed", help="Only what failed, and sources that were not removed.")]
PathGlob = Annotated[
    str | None, typer.Option("--path", metavar="GLOB", help="Only files whose path below SOURCE matches.")
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="Only the newest N. Default: everything there is.")
]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Again = Annotated[bool, typer.Option("--again", help="Begin anew, also where an earlier one was interrupted.")]
AllowChanged = Annotated[
    bool, typer.Option("--allow-changed", help="What somebody has replaced since its delivery is no failure.")
]
AllowNone = Annotated[bool, typer.Option("--allow-none", help="Nothing to verify is no failure.")]

# --- of services ------------------------------------------------------------------------------------------------------


class Action(enum.StrEnum):
    """What to do about a service."""

    SHOW = "show"
    INSTALL = "install"
    UNINSTALL = "uninstall"


WhatToDo = Annotated[
    Action,
    typer.Argument(
        metavar="show|install|uninstall",
        help="Print the unit; write it down and start it, now and with the system; stop it and remove it.",
        show_choices=False,
    ),
]
OfUser = Annotated[bool, typer.Option("--user", help="A service of yours. Default, but for root.")]
OfSystem = Annotated[bool, typer.Option("--system", help="A service of the system. Default for root.")]
ServiceName = Annotated[str, typer.Option("--name", metavar="NAME", help="What it is called.")]
Force = Annotated[bool, typer.Option("--force", help="Replace, or remove, also what is another one.")]

# --- what they amount to ----------------------------------------------------------------------------------------------

# Which key of the configuration each stands for.
KEYS = {
    "source": ("SOURCE", "source.path"),
    "dest": ("DEST", "destination.path"),
    "include": ("--include", "source.include"),
    "exclude": ("--exclude", "source.exclude"),
    "transfers": ("--transfers", "copy.transfers"),
    "verify": ("--verify", "copy.verify"),
    "checksum": ("--checksum", "copy.checksum"),
    "growing": ("--growing", "growing.mode"),
    "settle": ("--settle", "source.settle"),
    "on_success": ("--on-success", "copy.on_success"),
    "if_exists": ("--if-exists", "destination.if_exists"),
    "bwlimit": ("--bwlimit", "copy.bwlimit"),
    "min_free": ("--min-free", "destination.min_free"),
    "feed": ("--feed", "feed.listen"),
    "state_dir": ("--state-dir", "state.dir"),
}


def load_run(arguments: dict[str, Any]) -> Config:
    """Do as ``load``, for a command whose last line of JSON is its summary: that comes also where this fails."""
    try:
        return load(arguments)
    except TrioftError as error:
        if arguments["json"]:
            from trioft.cli.run import print_failure

            print_failure(error)
        raise


def load(arguments: dict[str, Any], *, ends: bool = True) -> Config:
    """Lay the command line's options over the environment's, and these over the configuration file's."""
    from trioft.config.file import from_environment, load_config

    options = from_environment(os.environ)
    for name, (label, key) in KEYS.items():
        if (value := arguments.get(name)) not in (None, []):
            options[key] = label, value
    settings = load_config(arguments["config"], options)
    if wanted := arguments.get("job"):
        from trioft.config.jobs import choose

        settings = choose(settings, wanted) if isinstance(wanted, list) else choose(settings, [wanted]).of(wanted)
    missing = [
        label for label, path in (("SOURCE", settings.source.path), ("DEST", settings.destination.path)) if not path
    ]
    if ends and missing and not settings.jobs:
        raise ConfigError(
            [f"{' and '.join(missing)} missing"],
            hint="give them as arguments, or as source.path and destination.path in the configuration file",
        )
    return settings


def reader(arguments: dict[str, Any]) -> Callable[[], Config] | None:
    """Return what reads the configuration file again, with the same command line laid over it; None without a file."""
    return functools.partial(load, arguments) if arguments["config"] is not None else None
