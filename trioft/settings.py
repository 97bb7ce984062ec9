"""
Settings: the configuration of a run that goes on, read again from its file, or changed by an operator.

``Config`` holds what is in effect. A change replaces a whole group of it: who reads ``config.retry.first`` at the
moment of use has the new one, and needs not be told. Only who sleeps on an old value, or keeps what follows from it,
is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import attrs
import trio

from trioft.config import GROUPS, Config
from trioft.errors import ConfigError
from trioft.kinds import Kind
from trioft.notation import visible

# Reads the configuration once more: the file, with the same command line laid over it.
Read = Callable[[], Config]
# What is told, and how: (kind of notice, text).
Tell = Callable[[str, str], None]


class Settings:
    """
    Changes *config*, as far as that is possible at run time.

    *read* is None where there is no file. ``followers`` are called after each change.
    """

    def __init__(self, config: Config, read: Read | None, tell: Tell) -> None:
        self.config = config
        self.followers: list[Callable[[], None]] = []
        self._read, self._tell = read, tell

    def change(self, group: str, **values: object) -> None:
        """Have these *values* of one group in effect from now on."""
        setattr(self.config, group, attrs.evolve(getattr(self.config, group), **values))
        for follower in self.followers:
            follower()

    async def reload(self) -> None:
        """
        Read the configuration again, and tell what came of it.

        Where anything is wrong with the new one, all of the old one stays.
        """
        if self._read is None:
            self._tell(
                "config", "there is no configuration file to be read again: it is named with -c or TRIOFT_CONFIG"
            )
            return
        try:
            # The file may be on a filesystem that hangs; then the old one stays, and no end waits for it.
            new = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        except ConfigError as error:
            for problem in error.problems:
                self._tell("config", problem)
            self._tell("config", "the new configuration is refused as a whole: the one in effect stays")
            return
        changed: list[str] = []
        later: list[str] = []
        for group, cls in GROUPS.items():
            was, wanted = getattr(self.config, group), getattr(new, group)
            values: dict[str, object] = {}
            for field in attrs.fields(cls):
                name, kind, value = f"{group}.{field.name}", field.metadata["kind"], getattr(wanted, field.name)
                if value == getattr(was, field.name):
                    continue
                if field.metadata["live"]:
                    values[field.name] = value
                    changed.append(f"{name} is {as_text(kind, value)}, was {as_text(kind, getattr(was, field.name))}")
                else:
                    later.append(name)
            if values:
                self.change(group, **values)
        for name in later:
            self._tell("reload", f"{name}: takes effect at the next start")
        self._tell("reload", f"the configuration was read again: {'; '.join(changed) or 'nothing else holds now'}")


def as_text(kind: Kind, value: object) -> str:
    """Return *value* as the file would have it."""
    shown = kind.show(value)
    return visible(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False))
