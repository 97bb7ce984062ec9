"""What people write for limits on throughput: rates, and timetables by the clock on the wall."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import limits
from trioft.config.kinds import LIMIT, Kind, Limit
from trioft.config.options import GROUPS

MONDAY = datetime(2026, 3, 2)  # noqa: DTZ001 - local time is what is meant
MINUTES = st.integers(0, 7 * 1440 - 1)


def rates(text: str, *moments: str) -> list[int | None]:
    """Return what *text* allows at *moments*, such as ``Tue 09:30``."""
    limit = LIMIT.read(text)
    assert isinstance(limit, Limit)
    days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    when = [(days.index(moment[:3]), int(moment[4:6]), int(moment[7:9])) for moment in moments]
    return [limit.at(MONDAY + timedelta(days=day, hours=hour, minutes=minute)) for day, hour, minute in when]


def test_a_rate_is_the_same_at_any_time() -> None:
    """Without a timetable there is nothing to look up."""
    assert rates("1MB", "Mon 00:00", "Sun 23:59") == [10**6] * 2
    assert rates("off", "Mon 00:00", "Sun 23:59") == [None] * 2


def test_a_turn_holds_from_its_minute_to_the_next_turn_also_over_midnight() -> None:
    """By day the network is others', by night ours."""
    text = "08:00,20B 18:00,off"
    assert rates(text, "Tue 07:59", "Tue 08:00", "Tue 17:59", "Tue 18:00", "Tue 23:59", "Wed 00:00") == [
        *(None, 20, 20),
        *(None, None, None),
    ]
    assert rates(text, "Mon 00:00", "Sun 23:59", "Sun 12:00") == [None, None, 20]


def test_a_turn_of_a_weekday_holds_until_the_next_turn_of_any_kind() -> None:
    """A week begins as the one before it ended; what is said of a weekday beats what is said of every day."""
    text = "Fri-18:00,off Mon-08:00,20B"
    assert rates(text, "Mon 07:59", "Mon 08:00", "Fri 17:59", "Fri 18:00", "Sun 23:59") == [None, 20, 20, None, None]
    text = "08:00,20B 18:00,5B Sat-08:00,off"
    assert rates(text, "Fri 23:59", "Sat 07:59", "Sat 08:00", "Sat 17:59", "Sat 18:00", "Sun 08:00") == [
        *(5, 5, None),
        *(None, 5, 20),
    ]


def test_a_single_turn_always_holds() -> None:
    """There is no other that could."""
    assert rates("12:00,20B", "Mon 00:00", "Mon 11:59", "Mon 12:00") == [20] * 3


@given(limits(), MINUTES)
def test_what_holds_is_the_last_turn_before(limit: Limit, minute: int) -> None:
    """At any minute of the week, the rate is that of the newest turn, looked for minute by minute backwards."""
    expected = limit.rate
    if limit.turns:
        table = {turn[:2]: turn.rate for turn in limit.turns}
        at = minute
        while (at // 1440, at % 1440) not in table and (None, at % 1440) not in table:
            at = (at - 1) % (7 * 1440)
        day, of_day = divmod(at, 1440)
        expected = table[day, of_day] if (day, of_day) in table else table[None, of_day]
    assert limit.at(MONDAY + timedelta(minutes=minute)) == expected


@given(limits())
def test_limits_survive_writing_and_reading(limit: Limit) -> None:
    """What `trioft config show` prints, and what is told after a change, can be used as it is."""
    assert LIMIT.read(LIMIT.show(limit)) == limit


WORDS = st.lists(
    st.sampled_from(
        [
            "08:00",
            "24:00",
            "Mon-",
            "Mo-",
            ",",
            "20MiB",
            "/s",
            "off",
            " ",
            ":",
            "-",
            "1",
            "٣",
            "\n",
            "\0",
            "[",
            "]",
            "!",
            "*",
        ]
    )
)


KINDS = {
    field.metadata["kind"]: f"{group}.{field.name}" for group, cls in GROUPS.items() for field in attrs.fields(cls)
}


@pytest.mark.parametrize("kind", KINDS, ids=KINDS.values())
@given(text=st.text(max_size=20) | WORDS.map("".join), as_list=st.booleans())
def test_any_text_is_read_or_refused_in_a_sentence(kind: Kind, text: str, as_list: bool) -> None:
    """Whatever somebody writes for any option has a meaning, which survives writing and reading, or is refused."""
    sentence = ""
    try:
        value = kind.read([text] if as_list else kind.from_word(text))
    except ValueError as error:
        sentence = str(error)
    if sentence:
        assert re.match(r"(\[0\](\.\w+)?: )?(found .*, expected .|'.*' is no pattern: .)", sentence)
        assert len(sentence.splitlines()) == 1
    else:
        assert kind.read(kind.show(value)) == value
