"""
Settings: the configuration of a run that goes on, read again from its file, or changed by an operator.

``Config`` holds what is in effect. A change replaces a whole group of it: who reads ``config.retry.first`` at the
moment of use has the new one, and needs not be told. Only who sleeps on an old value, or keeps what follows from it,
is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import attrs
import trio

from trioft.config.kinds import Kind
from trioft.config.options import GROUPS, Config
from trioft.core.errors import ConfigError
from trioft.core.units import visible
from trioft.state.board import Herald

# Reads the configuration once more: the file, with the same command line laid over it.
Read = Callable[[], Config]


class Settings:
    """
    Those *groups* of *config*, which is that of a *job* or of the agent, as far as they can be changed at run time.

    ``followers`` are called after each change.
    """

    def __init__(self, config: Config, groups: Sequence[str], job: str | None = None) -> None:
        self.config = config
        self.followers: list[Callable[[], None]] = []
        self._groups, self.job = groups, job

    def change(self, group: str, **values: object) -> None:
        """Have these *values* of one group in effect from now on."""
        setattr(self.config, group, attrs.evolve(getattr(self.config, group), **values))
        for follower in self.followers:
            follower()

    def take(self, whole: Config) -> tuple[list[str], list[str]]:
        """Have in effect what can be of a *whole* new configuration; return what has changed, and what waits."""
        new, place = whole.of(self.job), f"{self.job}: " if self.job is not None else ""
        changed: list[str] = []
        later: list[str] = []
        for group in self._groups:
            was, wanted = getattr(self.config, group), getattr(new, group)
            values: dict[str, object] = {}
            for field in attrs.fields(GROUPS[group]):
                name, kind, value = f"{place}{group}.{field.name}", field.metadata["kind"], getattr(wanted, field.name)
                if value == getattr(was, field.name):
                    continue
                if field.metadata["live"]:
                    values[field.name] = value
                    changed.append(f"{name} is {as_text(kind, value)}, was {as_text(kind, getattr(was, field.name))}")
                else:
                    later.append(name)
            if values:
                self.change(group, **values)
        return changed, later


async def reload(settings: Sequence[Settings], read: Read | None, board: Herald) -> None:
    """
    Read the configuration again, have it in effect as far as that is possible, and tell what came of it.

    Where anything is wrong with the new one, all of the old one stays. *read* is None where there is no file.
    """

    def refuse(text: str) -> None:
        board.notice("config", text, level="error", event="config.refused")

    def tell(text: str) -> None:
        board.notice("reload", text, level="info", event="config.reloaded")

    if read is None:
        refuse("there is no configuration file to be read again: it is named with -c or TRIOFT_CONFIG")
        return
    try:
        # The file may be on a filesystem that hangs; then the old one stays, and no end waits for it.
        new = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
        if set(new.jobs) != {its.job for its in settings if its.job is not None}:
            raise ConfigError(["jobs: other jobs than these take effect at the next start"])
    except ConfigError as error:
        for problem in error.problems:
            refuse(problem)
        refuse("the new configuration is refused as a whole: the one in effect stays")
        return
    changed: list[str] = []
    for its in settings:
        now, later = its.take(new)
        changed += now
        for name in later:
            tell(f"{name}: takes effect at the next start")
    tell(f"the configuration was read again: {'; '.join(changed) or 'nothing else holds now'}")


def as_text(kind: Kind, value: object) -> str:
    """Return *value* as the file would have it."""
    shown = kind.show(value)
    return visible(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False))
