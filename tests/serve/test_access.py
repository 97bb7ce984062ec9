"""Who may talk to the feed's port: names that are ours, pages that are ours, and who has the token."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioft.config.kinds import why_weak
from trioft.serve.access import COOKIE, Guard, Guesses, address_of, is_loopback

TOKEN = "correct-horse-battery"
OPEN = Guard(frozenset({"ingest-1.example.org"}), None, False)
LOCKED = Guard(frozenset(), TOKEN, False)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8080",
        "localhost",
        "localhost:1",
        "[::1]:8080",
        "10.1.2.3",
        "ingest-1.example.org:8080",
        "LOCALHOST:9",
    ],
)
def test_port_is_asked_for_by_address_or_by_a_name_of_ours(host: str) -> None:
    """An address cannot be made to mean another machine, and our own names are known."""
    assert OPEN.why_not({"host": host}) is None


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "[evil]:80"]
)
def test_rebound_name_is_refused(host: str) -> None:
    """A page elsewhere that has its own name resolve to loopback still asks for that name."""
    assert OPEN.why_not({"host": host}) == (421, "this host name is not one of feed.hosts")


def test_no_host_at_all_is_refused() -> None:
    """HTTP/1.0, or somebody who hides something."""
    assert OPEN.why_not({}) is not None


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost:8080", "http://localhost:80", ""])
def test_pages_from_elsewhere_are_refused(origin: str) -> None:
    """A page that the operator has open in another tab must not read the feed with his browser."""
    text = "this page comes from elsewhere: behind a proxy, its name has to be one of feed.hosts"
    assert OPEN.why_not({"host": "localhost:8080", "origin": origin}) == (403, text)


def test_our_own_page_and_tools_are_served() -> None:
    """Browsers say where a page comes from; tools say nothing."""
    assert OPEN.why_not({"host": "localhost:8080", "origin": "http://localhost:8080"}) is None
    secure = Guard(frozenset(), None, True)
    assert secure.why_not({"host": "localhost:8080", "origin": "https://localhost:8080"}) is None
    assert secure.why_not({"host": "localhost:8080", "origin": "http://localhost:8080"}) is not None


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ({}, False),
        ({"authorization": f"Bearer {TOKEN}"}, True),
        ({"authorization": f"bearer  {TOKEN} "}, True),
        ({"authorization": f"Basic {TOKEN}"}, False),
        ({"authorization": f"Bearer {TOKEN}x"}, False),
        ({"authorization": "Bearer"}, False),
        ({"cookie": f"{COOKIE}={LOCKED.cookie}"}, True),
        ({"cookie": f"a=b; {COOKIE}={LOCKED.cookie}; c=d"}, True),
        ({"cookie": f"{COOKIE}={TOKEN}"}, False),
        ({"cookie": "no cookie at all; ="}, False),
    ],
)
def test_token_comes_as_a_bearer_or_as_the_cookie_that_it_was_changed_for(headers: dict[str, str], known: bool) -> None:
    """Never in an address, which is logged; and the browser does not keep the token itself."""
    assert LOCKED.knows(headers) == known


def test_without_a_token_everybody_is_known() -> None:
    """Which is why such a port is opened on loopback only."""
    assert OPEN.knows({})
    assert not OPEN.is_token("")


@given(st.text(), st.text())
def test_no_header_breaks_it(name: str, value: str) -> None:
    """Whatever is sent is served or refused, and never known without the token."""
    headers = {"host": value, "origin": name, "cookie": value, "authorization": name}
    LOCKED.why_not(headers)
    assert not LOCKED.knows(headers)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("ingest-1", False),
    ],
)
def test_only_loopback_needs_no_token(host: str, loopback: bool) -> None:
    """All interfaces are more than loopback, and a name may mean anything."""
    assert is_loopback(host) == loopback


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("ingest-1.example.org", "https://ingest-1.example.org"),
        ("127.0.0.1:8080", "https://ingest-1.example.org"),
        ("ingest-1.example.org:8080", "https://ingest-1.example.org:8443"),
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("[::1]", "https://[::1]:8443"),
    ],
)
def test_our_page_is_ours_behind_a_proxy(host: str, origin: str) -> None:
    """Whether it keeps Host, leaves the port out of it, or says its own name for the port, and ends TLS."""
    guard = Guard(frozenset({"ingest-1.example.org"}), None, False, 8080)
    assert guard.why_not({"host": host, "origin": origin}) is None


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8000"),  # no proxy leaves the port in: another server of this machine
        ("127.0.0.1", "http://127.0.0.2:8000"),
        ("127.0.0.1", "ftp://127.0.0.1"),
        ("127.0.0.1", "http://[evil"),
        ("127.0.0.1", "http://" + "a" * 10_000),
        ("ingest-1.example.org", "https://ingest-1.example.org.evil.example"),
    ],
)
def test_no_other_page_is_ours_because_of_that(host: str, origin: str) -> None:
    """A page elsewhere gets nothing from what proxies need."""
    guard = Guard(frozenset({"ingest-1.example.org"}), None, False, 8080)
    assert guard.why_not({"host": host, "origin": origin}) is not None
    assert Guard(frozenset(), None, False, 80).why_not({"host": "127.0.0.1", "origin": "http://127.0.0.1:8000"})


def test_a_header_is_read_in_a_time_that_grows_with_its_length() -> None:
    """Strangers, who have no token yet, cannot make the agent busy with backslashes."""
    begun = time.process_time()
    for filler in ("\\", '"\\', "a=b;", COOKIE, "=;", " "):
        for header in ("cookie", "authorization", "host", "origin", "x-forwarded-for"):
            headers = {"host": "localhost", header: f"{COOKIE}=" + filler * (16_000 // len(filler))}
            for _ in range(20):
                LOCKED.why_not(headers)
                assert not LOCKED.knows(headers)
                address_of("127.0.0.1", headers)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "token", ["a", " ", "", "a b" * 10, "a" * 16, "abab" * 8, "correct-horse-1", "x" * 201, "ü" * 9]
)
def test_what_can_be_guessed_is_no_token(token: str) -> None:
    """One letter, a blank, always the same: no port is opened with that."""
    assert why_weak(token) is not None
    assert why_weak("0123456789abcdef") is None


def test_guesses_are_slowed_down() -> None:
    """After some wrong tokens from one address the pauses grow; others, and who has the token, are not concerned."""
    now = [0.0]
    guesses = Guesses(lambda: now[0])
    pauses = []
    for number in range(12):
        now[0] += (pause := guesses.pause("10.0.0.1", str(number)))
        pauses.append(pause)
        guesses.wrong("10.0.0.1", str(number))
        assert guesses.pause("10.0.0.1", str(number)) == 0  # no guess: the same again
        guesses.wrong("10.0.0.1", str(number))
    assert pauses == [0, 0, 0, 0, 0, 0, 0.5, 1, 2, 4, 8, 10]
    assert guesses.pause("10.0.0.2", "0") == 0
    guesses.right("10.0.0.1")
    assert guesses.pause("10.0.0.1", "x") == 0
    for number in range(100):
        guesses.wrong(f"2001:db8::{number:x}", str(number))
    assert guesses.pause("2001:db8::ffff", "x") > 0


def test_whom_a_proxy_speaks_for_is_believed_on_this_machine_only() -> None:
    """Else everybody could make up another address for each guess."""
    headers = {"x-forwarded-for": "1.2.3.4, 10.0.0.9"}
    assert address_of("127.0.0.1", headers) == "10.0.0.9"
    assert address_of("10.0.0.1", headers) == "10.0.0.1"
    assert address_of("127.0.0.1", {"x-forwarded-for": "nobody"}) == "127.0.0.1"
