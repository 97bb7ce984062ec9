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
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import attrs

COOKIE = "trioft"
# What is looked at of a header: whoever has no token yet may send what he likes.
_LONGEST = 4096
# Wrong tokens from one address that cost nothing; then the pause before another one doubles, up to the longest.
_FREE, _FIRST_PAUSE, _LONGEST_PAUSE = 5, 0.5, 10.0
_ADDRESSES = 4096  # that are remembered


@attrs.frozen
class Guard:
    """
    *hosts* are the names under which the port may be asked for, beside addresses and localhost; *port* is its number.

    The page of one of *hosts* is ours whatever its scheme and port: a proxy may stand in between.
    """

    hosts: frozenset[str]
    token: str | None
    tls: bool
    port: int = 0

    def why_not(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Return status and reason why a request with *headers* is not served to anybody, or None."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 421, "this host name is not one of feed.hosts"
        origin = headers.get("origin")
        if origin is not None and not self._is_our_page(origin, host):
            return 403, "this page comes from elsewhere: behind a proxy, its name has to be one of feed.hosts"
        return None

    def _is_our_page(self, origin: str, host: str) -> bool:
        if origin == f"{'https' if self.tls else 'http'}://{host}":
            return True
        if len(origin) > _LONGEST:
            return False
        try:
            page = urlsplit(origin)
            name = page.hostname
        except ValueError:
            return False
        if page.scheme not in ("http", "https") or name is None:
            return False
        if name in self.hosts:
            return True
        # A proxy that leaves the port out. A browser that asks here says it, unless it is the one that is not said.
        is_unsaid = self.port in (0, 443 if self.tls else 80)
        return not is_unsaid and host.lower() in (name, f"[{name}]")

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Return whether the request brings the token, where there is one."""
        if self.token is None:
            return True
        bearer, cookie = _brought(headers)
        return self.is_token(bearer) or _same(cookie, self.cookie)

    def guess(self, headers: Mapping[str, str]) -> str:
        """Return what the request brings that could be the token; an empty text if there is nothing like it."""
        return "\n".join(filter(None, _brought(headers))) if self.token is not None else ""

    def is_token(self, given: str) -> bool:
        return self.token is not None and _same(given, self.token)

    @property
    def cookie(self) -> str:
        """What a browser that has brought the token gets for it: of no use elsewhere."""
        return hashlib.sha256(f"trioft {self.token}".encode()).hexdigest()

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        return name in self.hosts or name == "localhost" or is_address(name)


class Guesses:
    """Wrong tokens, by the address that they come from: after some, no more are looked at for a while."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # How many, until when none is looked at, and which was the last.
        self._wrong: OrderedDict[str, tuple[int, float, str]] = OrderedDict()

    def pause(self, address: str, given: str) -> float:
        """
        Return for how many seconds no token from *address* is looked at; 0: it may try.

        What was wrong just now is no guess: a browser brings its old cookie again and again.
        """
        _, until, last = self._wrong.get(_network_of(address), (0, -math.inf, ""))
        return 0.0 if given == last else max(0.0, until - self._clock())

    def right(self, address: str) -> None:
        """The token came from *address*."""
        self._wrong.pop(_network_of(address), None)

    def wrong(self, address: str, given: str) -> None:
        """Something else came from *address*."""
        network = _network_of(address)
        count, until, last = self._wrong.pop(network, (0, -math.inf, ""))
        if given != last:
            count += 1
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(count - _FREE - 1, 32)) if count > _FREE else 0.0
            until = self._clock() + pause
        self._wrong[network] = count, until, given
        if len(self._wrong) > _ADDRESSES:
            self._wrong.popitem(last=False)


def _network_of(address: str) -> str:
    """Return whose an address is: a machine has as many IPv6 addresses as it likes, in one network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False).network_address
    return str(parsed)


def address_of(peer: str, headers: Mapping[str, str]) -> str:
    """Return where a request comes from: what a proxy on this machine says of it, else its *peer*."""
    forwarded = headers.get("x-forwarded-for", "")[-_LONGEST:].rpartition(",")[2].strip()
    return forwarded if is_address(forwarded) and is_loopback(peer) else peer


def is_address(name: str) -> bool:
    """Is it an IP address, which cannot be made to mean something else?"""
    if len(name) > _LONGEST:
        return False
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


def _brought(headers: Mapping[str, str]) -> tuple[str, str]:
    """Return the bearer token and the cookie of a request, empty where there is none."""
    kind, _, bearer = headers.get("authorization", "").partition(" ")
    return bearer.strip() if kind.lower() == "bearer" else "", _cookie(headers.get("cookie", ""))


def _cookie(header: str) -> str:
    """Return our cookie. By hand, as ``http.cookies`` takes a time that is quadratic in what a stranger sends."""
    for part in header.split(";"):
        name, _, value = part.partition("=")
        if name.strip() == COOKIE:
            return value.strip().strip('"')
    return ""


def _same(given: str, wanted: str) -> bool:
    """Compare in constant time, so that nobody can find it out letter by letter."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode("utf-8"))
