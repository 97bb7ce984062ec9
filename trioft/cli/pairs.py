"""
Which ledger is meant: by path, by pair of source and destination, by job.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import trio

from trioft.config.options import Config
from trioft.core import operations as ask
from trioft.core.errors import ConfigError, FileTrouble, LedgerError, Side, UnusableError, first_of, show_path
from trioft.core.model import Place
from trioft.movers.pool import Movers
from trioft.pipeline.ends import refuse_archive_elsewhere
from trioft.state.ledger import ledger_path
from trioft.state.reader import Records

_SHOWN = 5  # pairs named in a hint

_RESOLVING = 10.0  # seconds to find out what a path leads to


def all_ledgers(state_dir: str) -> list[str]:
    """Return the ledgers' files."""
    try:
        return sorted(entry.path for entry in os.scandir(state_dir) if entry.name.endswith(".sqlite"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnusableError(f"cannot use the state directory {state_dir}: {error.strerror}") from error


def ledgers_of(config: Config, state_dir: str) -> list[str]:
    """Return the ledger's file of the pair that *config* names; where it names none, those of all."""
    if config.source.path is None and config.destination.path is None:
        return all_ledgers(state_dir)
    return [ledger_of(config, state_dir)]


def ledger_of(config: Config, state_dir: str) -> str:
    """
    Return the ledger's file of the pair that *config* names; where it names none, the only one there is.

    Neither end is touched, unless a path leads there over a symbolic link. Raises ``TrioftError``.
    """
    ends = config.source.path, config.destination.path
    there = all_ledgers(state_dir)
    if ends == (None, None) and len(there) == 1:
        return there[0]
    if None in ends:
        missing = " and ".join(word for word, end in zip(("SOURCE", "DEST"), ends, strict=True) if end is None)
        raise ConfigError([f"{missing} missing"], hint=_known_hint(there))
    paths = [os.fsencode(os.path.abspath(end)) for end in ends if end is not None]
    path = ledger_path(state_dir, *paths)
    if path not in there:
        path = ledger_path(state_dir, *trio.run(resolved, paths, min(_RESOLVING, config.copy.stall_timeout)))
    if path not in there:
        names = " and ".join(map(show_path, paths))
        raise UnusableError(f"nothing is on record of {names} in {state_dir}", hint=_known_hint(there))
    return path


def _known_hint(there: list[str]) -> str:
    if not there:
        return "nothing was transferred with this state directory yet: another one is named with --state-dir"
    pairs = []
    for path in there[:_SHOWN]:
        with contextlib.suppress(LedgerError), contextlib.closing(Records(path)) as records:
            pairs.append(f"{show_path(records.source)} {show_path(records.destination)}")
    more = f"; and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
    return f"known are: {'; '.join(pairs)}{more}"


async def resolved(paths: list[bytes], patience: float) -> list[bytes]:
    """Return *paths* without symbolic links. A mover looks: what is mounted there may be dead."""
    async with Movers(1, patience) as movers:
        try:
            ends = await movers.call(ask.INSPECT, [Place(Side.SOURCE, path) for path in paths])
        except FileTrouble as error:
            raise UnusableError(f"cannot find out what the paths lead to: {error}") from None
        return [end.path for end in ends]


def check_archives(jobs: Sequence[Config]) -> None:
    """Raise ``ConfigError`` if files of a source cannot be moved to its archive. A source that is away is not asked."""

    ends = [
        (os.fsencode(os.path.abspath(source)), os.fsencode(os.path.abspath(archive)))
        for job in jobs
        if (source := job.source.path) is not None and (archive := job.copy.on_success.folder) is not None
    ]

    async def check() -> None:
        async with Movers(1, min(_RESOLVING, *[job.copy.stall_timeout for job in jobs])) as movers:
            for source, archive in ends:
                with contextlib.suppress(FileTrouble):
                    await refuse_archive_elsewhere(movers.call, source, archive)

    try:
        trio.run(check)
    except BaseExceptionGroup as group:
        if (error := first_of(group, ConfigError)) is not None:
            raise error from None
        raise


def state_dir_of(settings: Config) -> str:
    if settings.state.dir is not None:
        return os.path.abspath(os.path.expanduser(settings.state.dir))
    import platformdirs

    return platformdirs.user_state_dir("trioft")
