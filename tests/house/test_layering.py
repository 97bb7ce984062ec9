"""Children start fast, each module says what it is, and none grows beyond what can be read at a sitting."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trioft

# What runs in movers and in the watcher: started often, so it has to start fast; touches dead mounts, so it has to be
# simple. watchfiles is the watcher's own, loaded after its parent is known to live.
HEAVY = {"trio", "attrs", "attr", "cattrs", "typer", "rich", "yaml", "platformdirs", "asyncio"}
MOST_LINES = 450

PACKAGE = Path(trioft.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@pytest.mark.parametrize("module", ["main", "watcher"])
def test_child_process_has_loaded_nothing_heavy(module: str) -> None:
    """What the imports say is what happens: nothing heavy comes in through somebody else."""
    code = f"import sys, trioft.movers.ops.{module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) & HEAVY - modules_at_start() == set()


def modules_at_start() -> set[str]:
    """Return what the interpreter of these tests loads by itself, in whatever way it was installed."""
    code = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_command_line_loads_no_more_than_it_needs() -> None:
    """``trioft --help`` waits for neither Trio nor YAML nor SQLite."""
    code = "import sys, trioft.cli.app; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) & {"trio", "cattrs", "yaml", "sqlite3", "xxhash", "watchfiles"} == set()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_says_what_it_is(module: str) -> None:
    """Every module begins with the sentence that a newcomer needs."""
    text = ast.get_docstring(ast.parse(MODULES[module].read_text("utf-8")))
    assert text
    assert text.partition("\n\n")[0].rstrip("`")[-1] in ".:?"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_is_too_long(module: str) -> None:
    """What does not fit is two modules."""
    assert len(MODULES[module].read_text("utf-8").splitlines()) <= MOST_LINES
