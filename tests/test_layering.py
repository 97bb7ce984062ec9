"""Imports go one way, movers stay small, and no module grows beyond what can be read at a sitting."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trioft
from trioft.mover import OPERATIONS

# From low to high: a module may import those before it, and no other.
ORDER = """
    errors model naming routes notation manifest ascmhl linux writers fileio existingio markerio resumeio bundleio
    copyio growio publishio verifyio endsio surveyio manifestio doctorio mover watcher kinds config joblist configfile
    child commands movers shutdown throttle memory board overview settings signals backlog events lock ledger
    unlisted journal records claims storage ends walk scanner transfer follow strategies finish copier lister lanes
    sweeper control job view hooks feed guard front health notify server agent outlet logs display console status
    history findings verify explanation explain options diagnosis doctor service cli __main__
""".split()  # noqa: SIM905

# What runs in movers and in the watcher: started often, so it has to start fast; touches dead mounts, so it has to be
# simple. watchfiles is the watcher's own, loaded after its parent is known to live.
IN_MOVERS = ORDER[: ORDER.index("watcher") + 1]
HEAVY = {"trio", "attrs", "attr", "cattrs", "typer", "rich", "yaml", "platformdirs", "asyncio"}
MOST_LINES = 450

PACKAGE = Path(trioft.__file__).parent
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}


def imports_of(module: str) -> Iterator[tuple[str, bool]]:
    """Yield every module that *module* imports, anywhere in it, and whether it is loaded when the program runs."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    only_for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        loaded = node not in only_for_types
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, loaded
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            assert node.module is not None
            if node.module == "trioft":
                for alias in node.names:
                    yield (f"trioft.{alias.name}" if alias.name in MODULES else "trioft"), loaded
            else:
                yield node.module, loaded


def own_imports_of(module: str) -> set[str]:
    return {name.removeprefix("trioft.") for name, _ in imports_of(module) if name.startswith("trioft.")}


def test_every_module_has_its_place() -> None:
    """A new module is put into the order, and into the map of the package, at the same height."""
    assert {*ORDER, "__init__"} == set(MODULES)
    assert trioft.__doc__ is not None
    map_ = re.findall(r"^(\w+) {2,}", trioft.__doc__.partition("The modules\n")[2], re.MULTILINE)
    assert map_ == [module for module in ORDER if module != "__main__"]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module: str) -> None:
    """A module can be understood with those before it, and changed without a thought of those before it."""
    allowed = ORDER[: ORDER.index(module)] if module in ORDER else []
    assert own_imports_of(module) <= set(allowed)


@pytest.mark.parametrize("module", IN_MOVERS)
def test_what_runs_in_movers_imports_nothing_heavy(module: str) -> None:
    """A mover starts in a few milliseconds, and has no event loop that an operation could block."""
    assert {name.partition(".")[0] for name, _ in imports_of(module)} & HEAVY == set()
    assert own_imports_of(module) <= set(IN_MOVERS)


@pytest.mark.parametrize("module", ["mover", "watcher"])
def test_child_process_has_loaded_nothing_heavy(module: str) -> None:
    """What the imports say is what happens: nothing heavy comes in through somebody else."""
    code = f"import sys, trioft.{module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) & HEAVY - modules_at_start() == set()


def modules_at_start() -> set[str]:
    """Return what the interpreter of these tests loads by itself, in whatever way it was installed."""
    code = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_command_line_loads_no_more_than_it_needs() -> None:
    """``trioft --help`` waits for neither Trio nor YAML nor SQLite."""
    code = "import sys, trioft.cli; print(*{name.partition('.')[0] for name in sys.modules})"
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


@pytest.mark.parametrize("module", ORDER[len(IN_MOVERS) :])
def test_agent_has_operations_done_by_movers(module: str) -> None:
    """An agent that called an operation itself would hang with it on a dead mount."""
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not {alias.name for alias in node.names} & set(OPERATIONS)
            if node.module == "trioft":
                # Of these two only constants are used; with a whole module at hand that could not be seen here.
                assert not {alias.name for alias in node.names} & set(IN_MOVERS) - {"errors", "writers"}
