"""
The commands about what was delivered: ``history``, ``explain``, ``safe``, ``verify``. Each reads the ledgers.
"""

from __future__ import annotations

from typing import Annotated

import typer

from trioft.cli.arguments import (
    Again,
    AllowChanged,
    AllowNone,
    Bwlimit,
    ConfigFile,
    Destination,
    Event,
    Failed,
    JobName,
    Json,
    JsonLines,
    Limit,
    NoProgress,
    PathGlob,
    Quiet,
    Since,
    Source,
    StateDir,
    Transfers,
    Until,
    load,
)


def history(
    source: Source = None,
    dest: Destination = None,
    config: ConfigFile = None,
    job: JobName = None,
    since: Since = None,
    until: Until = None,
    failed: Failed = False,
    event: Event = None,
    path: PathGlob = None,
    limit: Limit = None,
    state_dir: StateDir = None,
    json: JsonLines = False,
) -> None:
    """
    Tell what was delivered, failed, removed, or waited for, newest last; of one pair, or of all.

    Example:  trioft history /ingest /mnt/nas/ingest --since 24h --failed
    """
    settings = load(locals(), ends=False)
    from trioft.cli.history import Wish, run_history
    from trioft.cli.services_state import state_dir_for

    wish = Wish(since, until, tuple(event or ()), failed, path)
    raise typer.Exit(run_history(settings, state_dir_for(settings), wish, limit=limit, as_json=json))


def explain(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="The file, absolute or below SOURCE; or its copy's name at DEST.")
    ],
    source: Source = None,
    dest: Destination = None,
    config: ConfigFile = None,
    job: JobName = None,
    state_dir: StateDir = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """
    Tell all that is known about one file: its history, what it is at both ends, whether its source may be removed.

    Example:  trioft explain /ingest/take1.mxf
    """
    settings = load(locals(), ends=False)
    from trioft.cli.explain import run_explain
    from trioft.cli.services_state import state_dir_for

    raise typer.Exit(run_explain(settings, state_dir_for(settings, [path]), path, as_json=json))


def safe(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Files or folders of a source; the source itself; an archive.")
    ],
    read: Annotated[bool, typer.Option("--read", help="Read every copy again, and compare it.")] = False,
    config: ConfigFile = None,
    job: JobName = None,
    state_dir: StateDir = None,
    json: JsonLines = False,
) -> None:
    """
    Tell whether files may be removed from the source: yes, no, or unknown, and why. Looks at both ends, now.

    Example:  trioft safe /ingest/card-7 --read
    """
    settings = load({"config": config, "job": job, "state_dir": state_dir}, ends=False)
    from trioft.cli.safe import run_safe
    from trioft.cli.services_state import state_dir_for

    raise typer.Exit(run_safe(settings, state_dir_for(settings, paths), paths, read=read, as_json=json))


def verify(
    source: Source = None,
    dest: Destination = None,
    config: ConfigFile = None,
    job: JobName = None,
    since: Since = None,
    path: PathGlob = None,
    again: Again = False,
    allow_changed: AllowChanged = False,
    allow_none: AllowNone = False,
    transfers: Transfers = None,
    bwlimit: Bwlimit = None,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """
    Read delivered files again at DEST, and compare them with the digests on record. An interrupted one goes on.

    Example:  trioft verify /ingest /mnt/nas/ingest --since 7d
    """
    settings = load(locals(), ends=False)
    from trioft.cli.history import Wish
    from trioft.cli.services_state import state_dir_for
    from trioft.cli.verify import Allowed, run_verify

    code = run_verify(
        settings,
        state_dir_for(settings),
        Wish(since=since, path=path),
        again=again,
        allowed=Allowed(allow_changed, allow_none),
        as_json=json,
        quiet=quiet,
        progress=not no_progress,
    )
    raise typer.Exit(code)
