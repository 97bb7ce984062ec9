"""Movers stay small, the agent does not do their work, and no module grows beyond what can be read at a sitting."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trioft
from trioft.movers.ops.main import OPERATIONS

# What runs in movers and in the watcher: started often, so it has to start fast; touches dead mounts, so it has to be
# simple. watchfiles is the watcher's own, loaded after its parent is known to live.
HEAVY = {"trio", "attrs", "attr", "cattrs", "typer", "rich", "yaml", "platformdirs", "asyncio"}
MOST_LINES = 450

PACKAGE = Path(trioft.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
IN_MOVERS = [name for name in MODULES if name.startswith(("core.", "movers.ops"))]


def imports_of(module: str) -> Iterator[str]:
    """Yield every module, or name of one, that *module* imports, anywhere in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", IN_MOVERS)
def test_what_runs_in_movers_imports_nothing_heavy(module: str) -> None:
    """A mover starts in a few milliseconds, and has no event loop that an operation could block."""
    assert {name.partition(".")[0] for name in imports_of(module)} & HEAVY == set()


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


@pytest.mark.parametrize("module", [name for name in MODULES if name not in IN_MOVERS])
def test_agent_has_operations_done_by_movers(module: str) -> None:
    """An agent that called an operation itself would hang with it on a dead mount."""
    imported = {name.rpartition(".")[2] for name in imports_of(module) if name.startswith("trioft.movers.ops.")}
    assert not imported & set(OPERATIONS)
