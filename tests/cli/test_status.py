"""``trioft status``: a running agent is found, asked, and shown; as any other tool would do it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from operators import url_of
from support import Site, make_tree, wait_until
from trioft.cli.status import Place, State, find_agents, parse_url, render
from trioft.core.errors import ConfigError

TOKEN = "correct-horse-battery"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://localhost:8080/", Place(False, "localhost", 8080)),
        ("localhost:8080", Place(False, "localhost", 8080)),
        ("https://[::1]:8443", Place(True, "::1", 8443)),
        ("wss://ingest-1:1/feed", Place(True, "ingest-1", 1)),
    ],
)
def test_an_address_is_one_of_a_browser(url: str, place: Place) -> None:
    """What trioft says at its start can be pasted here."""
    assert parse_url(url) == place


@pytest.mark.parametrize(
    "url", ["", "nas", "http://nas/", "ftp://nas:21/", "http://nas:x/", "http://:80/", "http://[::1"]
)
def test_what_is_no_address_is_said(url: str) -> None:
    """Exit code 2, and what is expected."""
    with pytest.raises(ConfigError, match="no address of a feed") as caught:
        parse_url(url)
    assert caught.value.hint is not None


def test_a_running_agent_is_found_and_shown(site: Site) -> None:
    """Without an address those of the state folder are asked; several, one after the other."""
    make_tree(site.source, {"day 1/a.mxf": 3_000_000, "b": b"2"})
    agent = site.watch("--feed", "127.0.0.1:0")
    url_of(agent)
    for path in ("day 1/a.mxf", "b"):
        agent.wait_for_file(path, "done")
    done = site.run("status", "--state-dir", site.state)
    assert done.code == 0, done.err
    assert "watch on " in done.out
    assert f"source      {site.source}" in done.out
    assert " free" in done.out
    assert "2 delivered, 0 already there, 0 failed; 0 to go" in done.out
    assert "day 1/a.mxf" in done.out
    agent.end()
    done = site.run("status", "--state-dir", site.state)
    assert done.code == 3
    assert "no agent with a feed runs" in done.err


def test_json_is_one_snapshot(site: Site) -> None:
    """For scripts: one object, all there is, and an end."""
    make_tree(site.source, {"a": b"1"})
    agent = site.watch("--feed", "127.0.0.1:0")
    url = url_of(agent)
    agent.wait_for_file("a", "done")
    done = site.run("status", url, "--json")
    (line,) = done.out.splitlines()
    state = json.loads(line)
    assert state["totals"]["delivered"] == 1
    assert [file["state"] for file in state["files"]] == ["done"]
    assert state["agent"]["mode"] == "watch"
    agent.end()


def test_a_token_comes_from_the_environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the command line, which everybody on the machine can read."""
    monkeypatch.setenv("TRIOFT_FEED_TOKEN", TOKEN)
    agent = site.watch("--feed", "127.0.0.1:0")
    url = url_of(agent)
    assert site.run("status", url).code == 0
    monkeypatch.setenv("TRIOFT_FEED_TOKEN", "something-else")
    done = site.run("status", url)
    assert (done.code, "refuses: 401" in done.err, "TRIOFT_FEED_TOKEN" in done.err) == (3, True, True)
    agent.end()


def test_nobody_there_is_said(site: Site) -> None:
    """Exit code 3, no traceback."""
    done = site.run("status", "127.0.0.1:9")
    assert done.code == 3
    assert "cannot reach 127.0.0.1:9" in done.err
    assert "Traceback" not in done.err


def test_cards_of_agents_that_were_killed_count_for_nothing(tmp_path: Path) -> None:
    """Nor do files that are none of ours."""
    (tmp_path / "feed-1.json").write_text("nonsense")
    (tmp_path / "feed-2.json").write_text(json.dumps({"pid": 2**22 + 1, "url": "http://localhost:1/"}))
    (tmp_path / "other.json").write_text("{}")
    assert find_agents(str(tmp_path)) == []
    (tmp_path / "feed-3.json").write_text(json.dumps({"pid": os.getpid(), "url": "http://localhost:1/"}))
    assert find_agents(str(tmp_path)) == ["http://localhost:1/"]
    assert find_agents(str(tmp_path / "none")) == []


def test_an_agent_leaves_no_card_behind(site: Site) -> None:
    """It is there while the feed is; one of an agent that was killed is removed by the next."""
    site.state.mkdir(exist_ok=True)
    (site.state / f"feed-{2**22 + 1}.json").write_text("{}")
    agent = site.watch("--feed", "127.0.0.1:0")
    url = url_of(agent)
    wait_until(lambda: find_agents(str(site.state)) == [url])
    agent.end()
    assert list(site.state.glob("feed-*")) == []


def test_one_agent_that_cannot_be_reached_hides_no_other(site: Site) -> None:
    """It may have been killed a moment ago, or hang."""
    agent = site.watch("--feed", "127.0.0.1:0")
    url_of(agent)
    (site.state / "feed-1.json").write_text(json.dumps({"pid": 1, "url": "http://127.0.0.1:9/"}))
    done = site.run("status", "--state-dir", site.state)
    assert (done.code, "watch on " in done.out) == (0, True)
    agent.end()
    done = site.run("status", "--state-dir", site.state)
    assert (done.code, "cannot reach 127.0.0.1:9" in done.err) == (3, True)


# --- What is shown

END: dict[str, Any] = {"path": "/in", "filesystem": "/dev/sda1 (ext4)", "state": "ok", "reason": None}
SECTIONS: dict[str, Any] = {
    "agent": {"version": "1", "mode": "watch", "host": "ingest-1", "paused": False},
    "source": END,
    "destination": END | {"path": "/out", "free": 10**12, "total": 4 * 10**12, "full_in": None},
    "totals": {
        "delivered": 7,
        "already": 0,
        "failed": 1,
        "pending_files": 3,
        "pending_bytes": 10**9,
        "rate": 10**8,
        "eta": 90,
    },
}
FILE: dict[str, Any] = {
    "id": 1, "path": "a.mxf", "state": "copying", "size": 2000, "bytes_copied": 500, "rate": 100, "reason": None,
    "lag_seconds": None,
}  # fmt: skip


def text(state: State) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(render(state))
    return capture.get()


def state_of(*files: dict[str, Any], **sections: dict[str, Any]) -> State:
    state = State()
    state.sections = {name: fields | sections.get(name, {}) for name, fields in SECTIONS.items()}
    state.files = {number: FILE | file | {"id": number} for number, file in enumerate(files)}
    return state


def test_the_ends_and_the_totals_come_first() -> None:
    """What an operator looks for first."""
    lines = text(state_of()).splitlines()
    assert lines[0].strip() == "trioft 1, watch on ingest-1"
    assert lines[2].strip() == "destination /out on /dev/sda1 (ext4), 1 TB of 4 TB free"
    assert "7 delivered, 0 already there, 1 failed; 3 to go (1 GB); 100 MB/s, 2 min left" in lines[3]


def test_what_is_wrong_is_said() -> None:
    """An end that is away, a pause, and when it will be full."""
    shown = text(
        state_of(
            agent={"paused": True},
            source={"reason": "not usable since 12:04:00: gone"},
            destination={"full_in": 41 * 60},
        )
    )
    assert "not usable since 12:04:00: gone" in shown
    assert "full in 41 min" in shown
    assert "paused" in shown


def test_files_that_need_somebody_come_first() -> None:
    """Failures, then what moves, then what waits, then what is done; and not thousands of lines."""
    states = ["done", "ready", "waiting", "copying", "failed", *["ready"] * 30]
    shown = text(state_of(*({"state": state, "path": f"{state}-file"} for state in states)))
    rows = [line.split()[0] for line in shown.splitlines() if "-file" in line]
    assert rows[:4] == ["failed", "copying", "waiting", "ready"]
    assert len(rows) == 20
    assert "and 15 more" in shown
    assert "25 %, 100 B/s" in text(state_of({}))
    assert "0.3 s behind" in text(state_of({"lag_seconds": 0.3}))


def test_no_name_can_disturb_the_screen() -> None:
    """A file's name is shown, never obeyed."""
    assert "[bold]a[/bold]" in text(state_of({"path": "[bold]a[/bold]"}))
