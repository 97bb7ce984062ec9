"""Claims at a destination: who is told that somebody works there, and whom one takes over from."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from files import Ground, root_of
from trioft.core.claim import STALE, Claimed, Holder, content_of, holder_in
from trioft.movers.ops import linux
from trioft.movers.ops.folder import claims

NAME = b".trioft-claim-1"
HERE = Holder("here", os.getpid(), linux.process_began(os.getpid()) or 0, "boot", "pids", "id", "m", "/s", "then", "t1")
ELSEWHERE = HERE._replace(host="elsewhere", boot="another boot", machine="another", token="t2")


def claim(ground: Ground, mine: Holder) -> Claimed:
    return claims.claim(root_of(ground.dest), NAME, mine)


def aged(ground: Ground, seconds: float) -> None:
    """Have the claim be beaten last so many seconds ago."""
    os.utime(ground.at_dest(NAME), (time.time() - seconds,) * 2)


def gone() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_claim_is_made_beaten_and_taken_away(ground: Ground) -> None:
    """While it is there it says who works; a beat is heard of; at the end nothing is left."""
    assert claim(ground, HERE) == Claimed()
    assert os.listdir(ground.dest) == [os.fsdecode(NAME)]
    aged(ground, 1000)
    assert claims.beat(root_of(ground.dest), NAME, HERE) == Claimed()
    assert time.time() - os.stat(ground.at_dest(NAME)).st_mtime < 100
    (standing,) = claims.read_claims(root_of(ground.dest), [NAME], ELSEWHERE)
    assert (standing.holder, standing.lives) == (HERE, True)
    claims.release(root_of(ground.dest), NAME, HERE)
    assert os.listdir(ground.dest) == []


@pytest.mark.parametrize(
    ("holder", "age", "lives"),
    [
        (ELSEWHERE, 0, True),
        (ELSEWHERE, STALE - 20, True),
        (ELSEWHERE, STALE + 20, False),
        (ELSEWHERE, -STALE - 20, False),
        (HERE, 10 * STALE, True),
        (HERE._replace(pid=gone()), 0, False),
        (HERE._replace(began=1), 0, False),
        (HERE._replace(began=0), 0, True),
        (HERE._replace(pids="of a container", pid=gone()), 0, True),
        (HERE._replace(pids="of a container", pid=gone()), STALE + 20, False),
        (HERE._replace(boot="before", pid=gone()), 0, False),
        (None, 0, True),
        (None, STALE + 20, False),
    ],
    ids=[
        *("elsewhere", "late", "too late", "in the future", "here, stuck", "here, gone", "its number used again"),
        *("its start unknown", "in a container", "in a container, too late", "before a restart", "torn", "torn, old"),
    ],
)
def test_a_holder_lives_or_is_gone(holder: Holder | None, age: float, lives: bool, ground: Ground) -> None:
    """A process of this machine is looked for; one elsewhere has to be heard of. Who is gone is taken over from."""
    mine = HERE._replace(token="mine", pid=1)
    path = ground.at_dest(NAME)
    Path(os.fsdecode(path)).write_bytes(content_of(holder, "then") if holder is not None else b"{")
    aged(ground, age)
    claimed = claim(ground, mine)
    assert (claimed.holder is not None) == lives
    with open(path, "rb") as file:
        held = holder_in(file.read())
    assert held == (holder if lives else mine)
    if not lives:
        assert claimed.instead_of == holder
    assert os.listdir(ground.dest) == [os.fsdecode(NAME)]


def test_what_this_process_could_not_take_away_is_no_claim_of_another(ground: Ground) -> None:
    """A job ended while its destination was away, and begins anew in the same process: it has the pair to itself."""
    claim(ground, HERE)
    again = HERE._replace(token="of the next run")
    assert claim(ground, again) == Claimed(instead_of=HERE)
    assert os.listdir(ground.dest) == [os.fsdecode(NAME)]


@pytest.mark.parametrize(
    "holder", [HERE, HERE._replace(pid=gone(), token="of a run before")], ids=["a mover", "the agent"]
)
def test_who_was_killed_while_it_claimed_keeps_nobody_out(holder: Holder, ground: Ground) -> None:
    """What it leaves is recognized at once: the operation is tried again, or trioft is started again."""
    for name in (b".trioft-claiming-turn-1", b".trioft-claiming-" + holder.token.encode()):
        Path(os.fsdecode(ground.at_dest(name))).write_bytes(content_of(holder, "then"))
    assert claim(ground, HERE) == Claimed()
    left = {b".trioft-claiming-" + holder.token.encode()} if holder != HERE else set()
    assert set(map(os.fsencode, os.listdir(ground.dest))) == {NAME} | left


def test_who_was_taken_over_from_is_told_at_his_next_beat(ground: Ground) -> None:
    """A machine that was asleep wakes up: somebody else works on its pair by now, and keeps it."""
    assert claim(ground, ELSEWHERE) == Claimed()
    aged(ground, STALE + 20)
    assert claim(ground, HERE).instead_of == ELSEWHERE
    assert claims.beat(root_of(ground.dest), NAME, ELSEWHERE).holder == HERE
    claims.release(root_of(ground.dest), NAME, ELSEWHERE)
    assert os.listdir(ground.dest) == [os.fsdecode(NAME)]


def test_a_claim_that_somebody_has_removed_is_made_again(ground: Ground) -> None:
    """By the next beat, unless somebody else has made one meanwhile."""
    claim(ground, HERE)
    os.unlink(ground.at_dest(NAME))
    assert claims.beat(root_of(ground.dest), NAME, HERE) == Claimed()
    assert os.listdir(ground.dest) == [os.fsdecode(NAME)]


@pytest.mark.parametrize("call", ["open", "write"])
def test_that_a_claim_cannot_be_written_is_said(call: str, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or read-only destination is no reason not to work; but somebody else's claim is."""
    real = getattr(os, call)

    def fail(*args: object, **kwargs: object) -> object:
        if call == "write" or (isinstance(args[1], int) and args[1] & os.O_CREAT):
            raise OSError(28, os.strerror(28))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        assert claim(ground, HERE) == Claimed(why_not="No space left on device")
        assert os.listdir(ground.dest) == []
    claim(ground, ELSEWHERE)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        assert claim(ground, HERE) == Claimed(holder=ELSEWHERE)


def test_of_two_that_find_a_claim_stale_one_gets_it(ground: Ground) -> None:
    """However many start at once, one of them works, and the others are told of it."""
    claim(ground, ELSEWHERE)
    aged(ground, STALE + 20)
    script = (
        "import sys\n"
        "from test_claims import *\n"
        "got = claims.claim(root_of(Path(sys.argv[1])), NAME, HERE._replace(token=sys.argv[2])).holder is None\n"
        "print(got, flush=True)\n"
        "sys.stdin.read()"  # whoever has ended holds nothing any more
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", script, ground.dest, f"token{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for n in range(4)
    ]
    answers = [process.stdout.readline().strip() for process in starting if process.stdout]
    for process in starting:
        process.communicate()
    assert answers.count("True") == 1
    assert os.listdir(ground.dest) == [os.fsdecode(NAME)]
