"""
Who may talk to the feed's port: Host, Origin, token. Pure.

Three attacks are meant. A page that the operator has open elsewhere can make his browser connect to loopback: its
Origin gives it away. It can have its own name resolve to loopback (DNS rebinding): then the Host is its name. And
whoever is on the network can connect, once the port is not on loopback: only the token keeps him out.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

import attrs

COOKIE = "trioft"


@attrs.frozen
class Guard:
    """*hosts* are the names under which the port may be asked for, beside addresses and localhost."""

    hosts: frozenset[str]
    token: str | None
    tls: bool

    def why_not(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Return status and reason why a request with *headers* is not served to anybody, or None."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 421, "this host name is not one of feed.hosts"
        origin = headers.get("origin")
        if origin is not None and origin != f"{'https' if self.tls else 'http'}://{host}":
            return 403, "this page comes from elsewhere"
        return None

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Does the request bring the token, where there is one?"""
        if self.token is None:
            return True
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        return self.is_token(bearer.strip() if kind.lower() == "bearer" else "") or _same(
            _cookie(headers.get("cookie", "")), self.cookie
        )

    def is_token(self, given: str) -> bool:
        return self.token is not None and _same(given, self.token)

    @property
    def cookie(self) -> str:
        """What a browser that has brought the token gets for it: of no use elsewhere."""
        return hashlib.sha256(f"trioft {self.token}".encode()).hexdigest()

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        return name in self.hosts or name == "localhost" or is_address(name)


def is_address(name: str) -> bool:
    """Is it an IP address, which cannot be made to mean something else?"""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Does only this machine reach *host*?"""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def _name_of(host: str) -> str:
    """Return a Host header's name without its port, and an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _cookie(header: str) -> str:
    try:
        cookies = SimpleCookie(header)
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def _same(given: str, wanted: str) -> bool:
    """Compare in constant time, so that nobody can find it out letter by letter."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode("utf-8"))
