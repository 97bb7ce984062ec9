"""
Who owns what: two agents, one or two machines and ledgers, users and other programs, at one destination.

What they do, and what must be so after each step, is in ``lives``. ``TRIOFT_TEST_EXAMPLES`` says how many lives there
are.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from support import TOOLS

LIVES = os.environ.get("TRIOFT_TEST_EXAMPLES")
SECONDS = 30  # unless it is asked for so many lives


@pytest.mark.timeout(24 * 3600 if LIVES else 240)
def test_whoever_meets_at_a_destination_nothing_is_lost_and_nobody_touches_what_is_anothers() -> None:
    """Killed, stopped half-way, meddled with, on ledgers of yesterday: each step of each life keeps the promises."""
    seed = 0 if "CI" in os.environ else random.randrange(1 << 40)
    limit = ["--lives", LIVES] if LIVES else ["--lives", "1000", "--seconds", str(SECONDS)]
    command = [sys.executable, str(TOOLS / "lives.py"), "--seed", str(seed), *limit]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)  # what has happened how often
    assert told["lived"] > 0
