"""How people write sizes, durations, rates and percentages, and that nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioft.core import units

DURATION = "a duration with its unit, such as 10s"
SIZE = "a size with its unit, such as 64MiB"
RATE = "a rate with its unit, such as 20MiB/s, or off"
PERCENT = "a percentage from 0% to 100%"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("1B", 1),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("64MiB", 64 * 2**20),
        ("10GB", 10**10),
        ("1.5GiB", 3 * 2**29),
        ("0.1KiB", 102),
        ("2TB", 2 * 10**12),
        ("2TiB", 2 * 2**40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """KiB … TiB are powers of 1024, KB … TB powers of 1000."""
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("500ms", 0.5),
        ("10s", 10.0),
        ("1.5h", 5400.0),
        ("2h45m", 9900.0),
        ("14d", 1209600.0),
        ("1d1h1m1s1ms", 90061.001),
        ("36500d", 3153600000.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """Durations have their unit, and may have several, the largest first."""
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "rate"),
    [("off", None), (False, None), ("20MiB", 20 * 2**20), ("20MiB/s", 20 * 2**20), ("1B/s", 1)],
)
def test_rates(text: object, rate: int | None) -> None:
    """A rate is a size, ``/s`` goes without saying, and off is no rate at all, also where YAML has made false of it."""
    assert units.parse_rate(text) == rate


@pytest.mark.parametrize(("text", "percent"), [("0%", 0.0), ("0.5%", 0.5), ("1%", 1.0), ("100%", 100.0)])
def test_percentages(text: str, percent: float) -> None:
    """A percentage has its sign."""
    assert units.parse_percent(text) == percent


@pytest.mark.parametrize(
    ("size", "text"),
    [(268435456, "256MiB"), (10**10, "10GB"), (1536, "1536B"), (0, "0B"), (2**40, "1TiB"), (10**6, "1MB")],
)
def test_sizes_are_written_in_the_unit_that_reads_best(size: int, text: str) -> None:
    """The shortest exact text is the one that a person would have written."""
    assert units.format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.5, "500ms"),
        (0.0005, "0.5ms"),
        (1.5, "1.5s"),
        (60.0, "60s"),
        (120.0, "2m"),
        (9900.0, "2h45m"),
        (1209600.0, "14d"),
        (90061.5, "1d1h1m1.5s"),
        (3600, "1h"),
    ],
)
def test_durations_are_written_in_the_unit_that_reads_best(seconds: float, text: str) -> None:
    """Round durations are short, and none is rounded."""
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("parse", "text", "sentence"),
    [
        (units.parse_size, "64", f'found "64", expected {SIZE}'),
        (units.parse_duration, "10", f'found "10", expected {DURATION}'),
        (units.parse_duration, 10, f"found 10, expected {DURATION}"),
        (units.parse_rate, "20MiB/s/s", f'found "20MiB/s/s", expected {RATE}'),
        (units.parse_rate, "9999999999TiB", 'found "9999999999TiB", expected a size below 8388608TiB'),
        (units.parse_percent, "100.1%", f'found "100.1%", expected {PERCENT}'),
        (units.parse_percent, 1, f"found 1, expected {PERCENT}"),
        (units.parse_size, ["64MiB"], f"found a list, expected {SIZE}"),
        (units.parse_size, {"a": 1}, f"found a mapping, expected {SIZE}"),
        (units.parse_size, "64MiB\n", f'found "64MiB\\n", expected {SIZE}'),
        (units.parse_size, "\x1b[31m\u202e", f'found "\\u001b[31m\\u202e", expected {SIZE}'),
    ],
)
def test_what_cannot_be_parsed_is_told_in_a_sentence(
    parse: Callable[[object], object], text: object, sentence: str
) -> None:
    """The parsers serve others too, and speak for themselves."""
    with pytest.raises(ValueError, match=r"^found ") as caught:
        parse(text)
    assert str(caught.value) == sentence


@given(st.integers(0, 2**63 - 1))
def test_sizes_survive_writing_and_reading(size: int) -> None:
    """No byte is lost by notation."""
    assert units.parse_size(units.format_size(size)) == size
    assert units.parse_rate(units.format_rate(size or None)) == (size or None)


@given(st.floats(0, 36500 * 86400, allow_subnormal=False))
def test_durations_survive_writing_and_reading(seconds: float) -> None:
    """Every float in the range comes back exactly."""
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@given(st.floats(0, 100, allow_subnormal=False))
def test_percentages_survive_writing_and_reading(percent: float) -> None:
    """Every float in the range comes back exactly."""
    assert units.parse_percent(units.format_percent(percent)) == percent


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left_in_a_visible_text(text: str) -> None:
    """A message shows what was found; it does not colour, move or hide anything."""
    assert units.visible(text).isprintable()
    assert len(units.as_written(text).splitlines()) == 1


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", datetime(2026, 3, 1, 10, tzinfo=UTC)),
        ("1d12h", datetime(2026, 2, 28, 0, tzinfo=UTC)),
        ("2026-01-31T12:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:30+02:00", datetime(2026, 1, 31, 10, 0, 30, tzinfo=UTC)),
        ("2026-01-31", datetime(2026, 1, 31).astimezone(UTC)),
        ("2026-01-31 07:15", datetime(2026, 1, 31, 7, 15).astimezone(UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    """So long ago, or a date; without an offset by this machine's clock."""
    assert units.parse_moment(text, NOW) == moment


@given(st.text() | st.datetimes().map(str) | st.from_regex(r"\A[0-9]{1,6}[dhms]{0,2}\Z"))
def test_no_text_makes_a_moment_that_cannot_be_told(text: str) -> None:
    """Whatever somebody types is a moment that the ledger can be asked for, or is refused in words."""
    refusal = ""
    try:
        moment = units.parse_moment(text, NOW)
    except ValueError as error:
        moment, refusal = NOW, str(error)
    assert not refusal or "expected a duration, such as 2h, or a date" in refusal
    assert datetime.fromisoformat(units.timestamp(moment)).tzinfo is not None
