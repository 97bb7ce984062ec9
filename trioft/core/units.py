"""
Notation: how sizes, durations, rates and percentages are written by people, and read.

Each ``parse_*`` takes what the configuration file or the command line holds, of whatever type, and raises
``ValueError`` with a sentence that says what was found and what is expected. Each ``format_*`` is its exact inverse.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

_SIZES = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_SIZES |= {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}
_SECONDS = {
    "d": Decimal(86400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_SIZE = re.compile(f"{_NUMBER}({'|'.join(_SIZES)})")
_DURATION = re.compile("(?=.)" + "".join(f"(?:{_NUMBER}{unit}(?![a-z]))?" for unit in _SECONDS))
_PERCENT = re.compile(f"{_NUMBER}%")


def parse_size(text: object) -> int:
    """Return the bytes of ``64MiB`` (binary) or ``10GB`` (decimal); a fraction of a byte is dropped."""
    match = _match(_SIZE, text, "a size with its unit, such as 64MiB")
    size = int(Decimal(match[1]) * _SIZES[match[2]])
    if size >= 2**63:
        raise wrong(text, "a size below 8388608TiB")  # no file and no database column holds more
    return size


def format_size(size: int) -> str:
    """Return the shortest text from which ``parse_size`` reads exactly *size*."""
    return min((f"{size // unit}{name}" for name, unit in _SIZES.items() if size % unit == 0), key=len)


def size_text(count: int) -> str:
    """Return *count* bytes as people read them, in three digits: ``1.23 GB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "B" or value >= 999.5 else f"{value:.3g} {unit}"


def parse_duration(text: object) -> float:
    """Return the seconds of ``500ms``, ``10s``, ``1.5h``, ``2h45m`` or ``14d``."""
    match = _match(_DURATION, text, "a duration with its unit, such as 10s")
    seconds = sum(Decimal(n) * unit for n, unit in zip(match.groups(), _SECONDS.values(), strict=True) if n)
    if seconds > 36500 * _SECONDS["d"]:
        raise wrong(text, "a duration of at most 36500d")  # calendars overflow some way beyond
    return float(seconds)


def format_duration(seconds: float) -> str:
    """Return a text from which ``parse_duration`` reads exactly *seconds*."""
    rest = Decimal(repr(seconds))  # the decimal number that a person would write for this float
    if 0 < rest < 1:
        return f"{_digits(rest * 1000)}ms"
    text = ""
    for unit in "dhm" if rest >= 120 else "":  # 60s and 90s read better than 1m and 1m30s
        count, rest = divmod(rest, _SECONDS[unit])
        text += f"{int(count)}{unit}" if count else ""
    return text if text and not rest else f"{text}{_digits(rest)}s"


def span_text(seconds: float) -> str:
    """Return *seconds* as people read them, in one or two units: ``41 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def timestamp(at: datetime) -> str:
    """Return *at* as RFC 3339, UTC, to the millisecond: two of them compare as texts do."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_moment(text: object, now: datetime) -> datetime:
    """Return when ``2h`` before *now* was, or ``2026-01-31`` or ``2026-01-31T12:00``, by this machine's clock."""
    try:
        return now - timedelta(seconds=parse_duration(text))
    except ValueError:
        pass
    try:
        # What has no offset is local time. Years at either end are beyond what a clock can say elsewhere.
        return datetime.fromisoformat(text if isinstance(text, str) else "").astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise wrong(text, "a duration, such as 2h, or a date, such as 2026-01-31 or 2026-01-31T12:00") from None


def parse_rate(text: object) -> int | None:
    """Return the bytes per second of ``20MiB`` or ``20MiB/s``, and None for ``off``."""
    if text is False or text == "off":  # YAML 1.1 takes a plain off for false
        return None
    size = text.removesuffix("/s") if isinstance(text, str) else ""
    rate = parse_size(size) if _SIZE.fullmatch(size) else 0
    if rate == 0:
        raise wrong(text, "a rate with its unit, such as 20MiB/s, or off")
    return rate


def format_rate(rate: int | None) -> str:
    """Return the text from which ``parse_rate`` reads exactly *rate*."""
    return "off" if rate is None else f"{format_size(rate)}/s"


def parse_percent(text: object) -> float:
    """Return the number of ``1%`` or ``0.5%``."""
    expected = "a percentage from 0% to 100%"
    percent = float(_match(_PERCENT, text, expected)[1])
    if percent > 100:
        raise wrong(text, expected)
    return percent


def format_percent(percent: float) -> str:
    """Return the text from which ``parse_percent`` reads exactly *percent*."""
    return f"{_digits(Decimal(repr(percent)))}%"


def wrong(value: object, expected: str) -> ValueError:
    """Return the error that says what was found in the place of what is *expected*."""
    return ValueError(f"found {as_written(value)}, expected {expected}")


def as_written(value: object) -> str:
    """Return *value* as the file would have it, on one line; of a list or a mapping, only what it is."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    return visible(json.dumps(value, ensure_ascii=False, default=str))


def visible(text: str) -> str:
    """Return *text* with everything escaped that a terminal would not print as it is."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _match(pattern: re.Pattern[str], value: object, expected: str) -> re.Match[str]:
    match = pattern.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise wrong(value, expected)
    return match


def _digits(number: Decimal) -> str:
    return f"{number.normalize():f}"
