"""What was measured, in rows: a table in Markdown, and a file with every single figure, to compare two runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workbench import Run

TIMES = "\N{MULTIPLICATION SIGN}"  # the unit of ratios
HEAD = ["work", "against", "trioft", "the other", "CPU", "memory", "figure", "target", ""]


class Row(NamedTuple):
    """One comparison: runs of ours, those of another (or of ours too, under other circumstances), and what it says."""

    work: str
    against: str
    figure: float  # what the target is about
    unit: str  # of it: TIMES (a ratio), s, ms, %, MiB, B, ...
    target: float | None = None  # at most; None: nothing was promised
    ours: Sequence[Run] = ()
    theirs: Sequence[Run] = ()
    note: str = ""

    @property
    def verdict(self) -> str:
        return "" if self.target is None else "met" if self.figure <= self.target else "**missed**"


def compared(
    work: str, against: str, ours: Sequence[Run], theirs: Sequence[Run], target: float | None = None, note: str = ""
) -> Row:
    """Return a row about the median of ratios of the same round: what slowed one of them slowed the other too."""
    ratio = statistics.median(a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True))
    return Row(work, against, ratio, TIMES, target, ours, theirs, note)


def grown(
    work: str, against: str, ours: Sequence[Run], theirs: Sequence[Run], factor: float, unit: str, target: float | None
) -> Row:
    """Return a row about what one unit takes, where there are *factor* times as many of them; 1 is linear."""
    row = compared(work, against, ours, theirs, target)
    return row._replace(figure=row.figure / factor, unit=f"{TIMES} time a {unit}")


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table in Markdown, notes below it."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|---|---:|---:|---:|---:|---:|---:|---|"]
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    for row in rows:
        mark = f" [{notes.index(row.note) + 1}]" if row.note else ""
        cells = [row.work + mark, row.against, _seconds(row.ours), _seconds(row.theirs), _cpu(row), _memory(row)]
        cells += [_figure(row.figure, row.unit), "" if row.target is None else f"≤ {_figure(row.target, row.unit)}"]
        lines.append(f"| {' | '.join([*cells, row.verdict])} |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1)), ""])


def _figure(value: float, unit: str) -> str:
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    text = f"{value:,.{digits}f}"
    return text + unit if unit == TIMES else f"{text} {unit}"


def _time(seconds: float) -> str:
    if seconds >= 0.5:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _seconds(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    seconds = [run.seconds for run in runs]
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return _time(middle) if low == high else f"{_time(middle)} ({_time(low)} to {_time(high)})"


def _cpu(row: Row) -> str:
    sides = [[run.cpu for run in runs] for runs in (row.ours, row.theirs) if any(run.cpu for run in runs)]
    return " : ".join(_time(statistics.median(side)) for side in sides)


def _memory(row: Row) -> str:
    sides = [max(run.memory for run in runs) for runs in (row.ours, row.theirs) if any(run.memory for run in runs)]
    return " : ".join(f"{side / 2**20:.0f}" for side in sides) + " MiB" if sides else ""


# --- The file


def save(path: Path, about: list[str], rows: dict[str, list[Row]]) -> None:
    """Write everything to *path*, case by case."""
    cases = {case: [row._asdict() | _runs_of(row) for row in found] for case, found in rows.items()}
    path.write_text(json.dumps({"about": about, "cases": cases}, indent=1, ensure_ascii=False), "utf-8")


def _runs_of(row: Row) -> dict[str, list[dict[str, Any]]]:
    return {side: [run._asdict() for run in runs] for side, runs in (("ours", row.ours), ("theirs", row.theirs))}


def changes(before: Path, after: Path) -> str:
    """Return a table of what two files have both: the second's figures over the first's."""
    old, new = (_rows_of(path) for path in (before, after))
    head = ["work", "against", "before", "after", "after ÷ before", "trioft's own seconds"]
    lines = [f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|---:|"]
    for key in [key for key in new if key in old]:
        was, now = old[key], new[key]
        figures = [_figure(row.figure, row.unit) for row in (was, now)]
        figures.append(f"{now.figure / was.figure:.2f}" if was.figure else "")
        medians = [statistics.median(run.seconds for run in row.ours) for row in (was, now) if row.ours]
        figures.append(f"{medians[1] / medians[0]:.2f}" if len(medians) == 2 else "")
        lines.append(f"| {' | '.join([*key[1:], *figures])} |")
    lone = [key for key in [*old, *new] if (key in old) != (key in new)]
    return "\n".join([*lines, "", *(f"* only in one of them: {', '.join(key)}" for key in lone), ""])


def _rows_of(path: Path) -> dict[tuple[str, str, str], Row]:
    cases: dict[str, list[dict[str, Any]]] = json.loads(path.read_text("utf-8"))["cases"]
    return {
        (case, row["work"], row["against"]): Row(
            **{**row, "ours": [Run(**run) for run in row["ours"]], "theirs": [Run(**run) for run in row["theirs"]]}
        )
        for case, found in cases.items()
        for row in found
    }
