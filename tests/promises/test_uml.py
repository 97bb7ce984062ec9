"""
trioft on the kernel's own clients of CIFS and NFS, with real servers, and on its FAT, inside User-Mode Linux.

Each server has a guest, which boots once for all its checks; ``uml.checks`` says what they are.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from uml import boot
from uml.checks import CHECKS, PLAN

Boot = Callable[[str], boot.Report]


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """Boots a guest, or, if another worker has done so, or is about to, returns what that guest said."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent

    def report(server: str) -> boot.Report:
        folder = place / f"uml-{server}"
        folder.mkdir(exist_ok=True)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            said = folder / "report.json"
            if not said.exists():
                said.write_text(json.dumps(boot.run(server, folder)))
            return boot.Report(*json.loads(said.read_text()))

    return report


def _all() -> list[Any]:
    cases = []
    for server, shares in PLAN.items():
        for share, names in shares.items():
            for name in names:
                cases.append(pytest.param(server, share, name, id=f"{share}-{name}"))
    return cases


@pytest.mark.parametrize(("server", "share", "name"), _all())
def test_on_a_share(server: str, share: str, name: str, booted: Boot) -> None:
    """What trioft promises it keeps on a share that the kernel mounts, too: see the check of this name."""
    if missing := boot.what_is_missing(server):
        pytest.skip(missing)
    report = booted(server)
    if not report.booted:
        pytest.skip(f"User-Mode Linux does not boot here: {report.console[:800]}")
    ended = report.results.get("machine") or report.console[-4000:]
    failure = report.results.get(f"{share}-{name}", f"the guest did not get to this check:\n{ended}")
    if failure is not None:
        pytest.fail(f"{CHECKS[name].__doc__}\n{failure}", pytrace=False)
