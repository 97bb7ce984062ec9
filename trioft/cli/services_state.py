"""
Where installed services keep their ledgers: asked where the state directory of whoever asks knows nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Iterable, Sequence

from trioft.cli.pairs import all_ledgers, state_dir_of
from trioft.config.options import Config
from trioft.core.errors import ConfigError, LedgerError, TrioftError, UnusableError
from trioft.core.naming import lies_at
from trioft.state.reader import Records

_MARK = "Written by `trioft service install`"


def _unit_folders() -> list[str]:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return ["/etc/systemd/system", f"{home}/systemd/user"]


def state_dirs_of_services(folders: Iterable[str]) -> list[str]:
    """Return the state directories of the services whose units lie in *folders*, as far as the units name them."""
    found: dict[str, None] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.name.endswith(".service"):
                    with contextlib.suppress(OSError, UnicodeDecodeError), open(entry.path, encoding="utf-8") as file:
                        if (state_dir := _state_dir_in(file.read())) is not None:
                            found[state_dir] = None
    return list(found)


def _state_dir_in(unit: str) -> str | None:
    """Return the state directory that a unit of trioft names; None where it names none, or is not one."""
    start = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    if _MARK not in unit or start is None:
        return None
    words = [_plain(word) for word in re.findall(r'"(?:[^"\\]|\\.)*"|\S+', start[1])]
    named = [after for word, after in itertools.pairwise(words) if word == "--state-dir"]
    return named[-1] if named else None


def _plain(word: str) -> str:
    """Return what a word of ``ExecStart`` stands for."""
    if not word.startswith('"'):
        return word
    text = word[1:-1].replace("%%", "%").replace("$$", "$")
    data = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), text.encode("utf-8"))
    return os.fsdecode(data)


def state_dir_for(settings: Config, paths: Sequence[str] = (), folders: Iterable[str] | None = None) -> str:
    """
    Return the state directory in which something is on record of what is asked for: a pair, or *paths*.

    That is the one of *settings*, if they name one, or if it knows of it; else that of an installed service, and
    that is said. Raises ``TrioftError`` where it could be several.
    """
    usual = state_dir_of(settings)
    if settings.state.dir is not None or _knows(usual, settings, paths):
        return usual
    found, shut = [], []
    for state_dir in state_dirs_of_services(_unit_folders() if folders is None else folders):
        try:
            if _knows(state_dir, settings, paths):
                found.append(state_dir)
        except UnusableError as error:
            shut.append(str(error))
    if len(found) > 1:
        hint = "name one with --state-dir, or the pair"
        raise ConfigError([f"several services have it on record: {', '.join(found)}"], hint=hint)
    if found:
        print(f"trioft: reading the ledgers of an installed service, in {found[0]}", file=sys.stderr)  # noqa: T201
        return found[0]
    for text in shut:
        print(f"trioft: warning: an installed service: {text}", file=sys.stderr)  # noqa: T201
    return usual


def _knows(state_dir: str, settings: Config, paths: Sequence[str]) -> bool:
    """Return whether a ledger there is about the pair that is named, or about any of *paths*."""
    pair = [
        os.fsencode(os.path.abspath(end)) if end else None for end in (settings.source.path, settings.destination.path)
    ]
    wanted = [os.path.abspath(os.fsencode(path)) for path in paths]
    try:
        ledgers = all_ledgers(state_dir)
    except TrioftError:
        if state_dir == state_dir_of(settings):
            return True  # that is for whoever reads it to say
        raise
    for ledger in ledgers:
        try:
            with contextlib.closing(Records(ledger)) as records:
                ends = records.source, records.destination
        except LedgerError:
            continue
        if any(pair):
            if all(end is None or end == its for end, its in zip(pair, ends, strict=True)):
                return True
        elif not wanted or any(lies_at(path, end) is not None for end in ends for path in wanted):
            return True
    return False
