"""The benches work; what they measure is looked at by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support import ROOT

BENCH = ROOT / "tests" / "bench" / "bench.py"


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_bench_prints_a_table_keeps_its_figures_and_leaves_nothing(tmp_path: Path) -> None:
    """One command measures, and another compares two runs; the temporary folder is removed."""
    (tmp_path / "place").mkdir()
    kept = tmp_path / "run.json"
    done = bench("--quick", "--only", "start", "--json", kept, "--where", tmp_path / "place")
    assert done.returncode == 0, done.stderr
    assert "| `trioft --help` | `python -c pass` |" in done.stdout
    figures = json.loads(kept.read_text("utf-8"))["cases"]["start"][0]
    assert figures["ours"][0]["seconds"] > 0
    assert figures["ours"][0]["cpu"] > 0
    assert list((tmp_path / "place").iterdir()) == []
    compared = bench("--compare", kept, kept)
    assert compared.returncode == 0, compared.stderr
    assert "| 1.00 | 1.00 |" in compared.stdout


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    """Who compares the wrong files is told so."""
    (tmp_path / "no.json").write_text("{}", "utf-8")
    done = bench("--compare", tmp_path / "no.json", tmp_path / "none.json")
    assert done.returncode == 1
    assert done.stderr.startswith("no two runs to compare: ")
    assert "Traceback" not in done.stderr
