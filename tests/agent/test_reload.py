"""What of a new configuration holds at once, and that the rest is told, option by option."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from configs import CONFIGS
from trioft.agent.reload import Settings, reload
from trioft.config.file import load_config
from trioft.config.options import AGENT_GROUPS, GROUPS, JOB_GROUPS, Config
from trioft.core.errors import ConfigError
from trioft.state.board import Board


class Told(Board):
    """Hears what is told."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.notices.append(lambda what, text: self.texts.append(text))


def options(config: Config) -> dict[str, tuple[Any, Any]]:
    """Return every option: its declaration, and its value in *config*."""
    return {
        f"{group}.{field.name}": (field, getattr(getattr(config, group), field.name))
        for group, cls in GROUPS.items()
        for field in attrs.fields(cls)
    }


@given(CONFIGS, CONFIGS)
async def test_each_option_holds_at_once_or_is_told_to_need_a_start(old: Config, new: Config) -> None:
    """No change of any option is lost without a word."""
    told, before, wanted = Told(), options(old), options(new)
    await reload([Settings(old, AGENT_GROUPS), Settings(old, JOB_GROUPS)], lambda: new, told)
    for name, (field, value) in options(old).items():
        differs = before[name][1] != wanted[name][1]
        assert value == (wanted[name][1] if field.metadata["live"] else before[name][1])
        assert (f"{name}: takes effect at the next start" in told.texts) == (differs and not field.metadata["live"])
        assert (f"{name} is " in told.texts[-1]) >= (differs and field.metadata["live"])
        if field.metadata["live"]:
            assert field.metadata["kind"].read(field.metadata["kind"].show(value)) == value


@given(CONFIGS, st.lists(st.text(min_size=1), min_size=1))
async def test_nothing_of_a_refused_configuration_holds(old: Config, problems: list[str]) -> None:
    """All its problems are told, and what was in effect stays."""

    def refuse() -> Config:
        raise ConfigError(problems)

    told, before = Told(), options(old)
    await reload([Settings(old, tuple(GROUPS))], refuse, told)
    assert options(old) == before
    assert told.texts == [*problems, "the new configuration is refused as a whole: the one in effect stays"]


async def test_who_has_something_to_do_about_a_change_is_called_once_it_holds() -> None:
    """Whoever is called finds the new value."""
    config, seen = load_config(None, {}), list[int]()
    settings = Settings(config, JOB_GROUPS)
    settings.followers.append(lambda: seen.append(config.copy.transfers))
    settings.change("copy", transfers=9)
    settings.change("growing", transfers=3)
    assert seen == [9, 9]
    assert (config.copy.movers, config.growing.transfers) == (4, 3)
