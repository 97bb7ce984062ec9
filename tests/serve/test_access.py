"""Who may talk to the feed's port: names that are ours, pages that are ours, and who has the token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioft.serve.access import COOKIE, Guard, is_loopback

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
    assert OPEN.why_not({"host": "localhost:8080", "origin": origin}) == (403, "this page comes from elsewhere")


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
