"""
What the port answers: the page, the feed, health, metrics, the state as one message; and how a client is kept supplied.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import json
import math
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from urllib.parse import parse_qs

import trio
import trio_websocket

from trioft.agent.job import JobRun, movers_of
from trioft.config.kinds import why_weak
from trioft.config.options import Config
from trioft.core.errors import ConfigError, LedgerError, UnusableError
from trioft.core.model import FINAL
from trioft.movers.descriptors import connections_beside
from trioft.serve.access import COOKIE, Guard, Guesses, address_of, is_loopback
from trioft.serve.feed import Cursor, Feed
from trioft.serve.http import CONNECTIONS, Answer, Front, Later, Outcome, Request, Upgrade, is_handshake
from trioft.serve.metrics import Health, metrics
from trioft.serve.sections import View
from trioft.serve.verdicts import Verdicts
from trioft.state.board import Board, Entry
from trioft.state.overview import Overview

_TICK = 0.25  # seconds: at most four messages a second for each client
_HEARTBEAT = 5.0  # seconds without a change after which an empty message says that all is well
_SEND_SECONDS = 20.0  # a client that has not taken a message by then is cut
# Clients are woken some at a time, so that the engine is never late for long.
_WOKEN, _WAKE_PAUSE = 16, 0.001
_SCRIPTS = ("page", "feed", "files", "jobs", "table", "dom", "words")
# The page's files, by the path they are asked for.
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in _SCRIPTS},
    **{f"/{name}.svg": (f"{name}.svg", "image/svg+xml") for name in ("icon", "icon-active", "icon-failed")},
    "/feed.schema.json": ("feed.schema.json", "application/schema+json"),
}
# Also without the token: the form that asks for it, and what that needs; and whether all is well.
_OPEN = {"/login", "/page.css", "/icon.svg", "/healthz"}
_TOKEN_HINT = "set another one in feed.token or TRIOFT_FEED_TOKEN, such as what `openssl rand -hex 16` makes"
_LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>trioft</title><link rel="stylesheet" href="page.css"><link rel="icon" href="icon.svg">
<body class="login"><main><h1>trioft</h1><form method="post" action="login">
<label for="token">Token</label><input id="token" name="token" type="password" autocomplete="current-password" required
 autofocus><button>Sign in</button>{hint}</form></main></body></html>
"""


async def listen(config: Config, token: str | None) -> list[trio.SocketListener]:
    """
    Open the port. Raises ``ConfigError`` for one that must not be opened like that, ``UnusableError`` if it is taken.
    """
    feed, problems = config.feed, []
    assert feed.listen is not None
    if not is_loopback(feed.listen.host) and token is None:
        problems.append(f"feed.listen: {feed.listen} can be reached from other machines, and there is no token")
    if (feed.tls_cert is None) != (feed.tls_key is None):
        problems.append("feed.tls_cert and feed.tls_key go together")
    if token is not None and (why := why_weak(token)) is not None:
        raise ConfigError([f"the token of the feed is too weak: {why}"], hint=_TOKEN_HINT)
    if problems:
        raise ConfigError(problems, hint="set feed.token or TRIOFT_FEED_TOKEN, or listen on 127.0.0.1")
    try:
        return await trio.open_tcp_listeners(feed.listen.port, host=feed.listen.host)
    except OSError as error:
        raise UnusableError(f"cannot listen on {feed.listen}: {error.strerror or error}") from error


def url_of(config: Config, listeners: list[trio.SocketListener]) -> str:
    """Return where a browser finds the page."""
    assert config.feed.listen is not None
    port = listeners[0].socket.getsockname()[1]
    scheme = "http" if config.feed.tls_cert is None else "https"
    return f"{scheme}://{config.feed.listen._replace(port=port)}/"


@contextlib.asynccontextmanager
async def serving(
    config: Config, board: Board | Overview, runs: Sequence[JobRun], *, once: bool, state_dir: str
) -> AsyncIterator[Server]:
    """
    Serve the port of an agent while inside, and have its address where ``trioft status`` looks for it.

    Raises ``ConfigError`` or ``UnusableError`` if it cannot be opened.
    """
    token = os.environ.get("TRIOFT_FEED_TOKEN") or config.feed.token
    listeners = await listen(config, token)
    url = url_of(config, listeners)
    most = connections_beside(sum(movers_of(run.config) for run in runs), len(runs), CONNECTIONS)
    server = Server(config, token, board, runs, once, port=listeners[0].socket.getsockname()[1], most=most)
    streams = server.wrapped(listeners)
    card = os.path.join(state_dir, f"feed-{os.getpid()}.json")
    with contextlib.suppress(OSError):  # the ledger will say what is wrong with the state directory
        _write_card(card, url)
    board.notice("feed", f"watch it at {url}", level="info", event="feed.opened", url=url)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run, streams)
            yield server
            nursery.cancel_scope.cancel()
    finally:
        with contextlib.suppress(OSError):
            os.unlink(card)


def _write_card(path: str, url: str) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name in os.listdir(folder):  # those of agents that were killed
        if (match := re.fullmatch(r"feed-(\d+)\.json", name)) and not os.path.exists(f"/proc/{match[1]}"):
            os.unlink(os.path.join(folder, name))
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"url": url, "pid": os.getpid()}, file)


class Server:
    """The port of one agent."""

    def __init__(
        self,
        config: Config,
        token: str | None,
        board: Board | Overview,
        runs: Sequence[JobRun],
        once: bool,
        *,
        port: int = 0,
        most: int | None = None,
    ) -> None:
        self._config = config
        self._jobs = {run.board.job: run for run in runs}
        self._health = [Health(run) for run in runs]
        self._feed = Feed(board, View(config, board, runs, once=once).sections)
        self._guard = Guard(frozenset(config.feed.hosts), token, config.feed.tls_cert is not None, port)
        self._guesses = Guesses(trio.current_time)
        self._base = config.feed.base_path or ""
        self._front = Front(self._respond, lambda text: board.notice("feed", text, event="feed.failed"), most)
        self._routes: dict[str, Callable[[Request], Outcome]] = {
            **dict.fromkeys(_FILES, _file),
            "/feed": self._open_feed,
            "/status": self._status,
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/login": self._login,
            "/api/v1/safe": self._safe,
        }
        self._verdicts = Verdicts(runs)
        self.clients = 0
        self._parked = trio.lowlevel.ParkingLot()

    async def run(self, listeners: list[trio.abc.Listener[trio.abc.Stream]]) -> None:
        """Serve until cancelled; then clients of the feed get a Close frame (1001) first."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            nursery.start_soon(self._verdicts.run)
            await self._front.serve(listeners)

    def wrapped(self, listeners: list[trio.SocketListener]) -> list[trio.abc.Listener[trio.abc.Stream]]:
        settings = self._config.feed
        if settings.tls_cert is None:
            return [*listeners]
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError([f"feed.tls_cert, feed.tls_key: {error.strerror or error}"]) from None
        # https_compatible: clients that end without a word are the rule.
        return [trio.SSLListener(listener, context, https_compatible=True) for listener in listeners]

    async def _tick(self) -> None:
        """Notice what has changed, and wake those who wait for it."""
        while True:
            before = self._feed.head
            self._feed.tick()
            waiting = self._parked.statistics().tasks_waiting if self._feed.head != before else 0
            for _ in range(0, waiting, _WOKEN):
                self._parked.unpark(count=_WOKEN)
                await trio.sleep(_WAKE_PAUSE)
            await trio.sleep(_TICK)

    # --- requests

    def _respond(self, request: Request) -> Outcome:
        refused = self._guard.why_not(request.headers)
        if refused is not None:
            return _text(*refused)
        address, given = address_of(request.peer, request.headers), self._guard.guess(request.headers)
        if given and (pause := self._guesses.pause(address, given)):
            return _too_many(pause)
        known = self._guard.knows(request.headers)
        if given and known:
            self._guesses.right(address)
        elif given:
            self._guesses.wrong(address, given)
        outcome = self._answer_to(self._below_base(request), known)
        return outcome if isinstance(outcome, Upgrade) else outcome._replace(known=known)

    def _below_base(self, request: Request) -> Request:
        """Return *request* without the path below which a proxy has the port, which may leave it out or not."""
        if self._base and (request.path + "/").startswith(self._base + "/"):
            return request._replace(path=request.path[len(self._base) :])
        return request

    def _answer_to(self, request: Request, known: bool) -> Outcome:
        if not request.path and self._base:
            return Answer(308, b"", headers={"location": f"{self._base}/"})
        methods = ("POST",) if request.path == "/login" else ("GET", "HEAD")
        route = self._routes.get(request.path)
        if route is None:
            return _text(404, "there is nothing here")
        if request.method not in methods:
            return _text(405, f"only {' and '.join(methods)}", {"allow": ", ".join(methods)})
        if not known and request.path not in _OPEN:
            if request.path == "/":
                return Answer(401, _LOGIN.format(hint="").encode(), "text/html; charset=utf-8")
            return _text(401, "the token is missing, or wrong", {"www-authenticate": 'Bearer realm="trioft"'})
        return route(request)

    def _status(self, _: Request) -> Answer:
        """The whole state as one message, however long."""
        self._feed.tick()
        return Answer(200, self._feed.snapshot().encode(), "application/json")

    def _metrics(self, _: Request) -> Answer:
        return Answer(200, metrics(self._health, self.clients), "text/plain; version=0.0.4; charset=utf-8")

    def _safe(self, _: Request) -> Later:
        """May the sources be removed? What is known of that; asking has it looked at once more."""
        return Later(self._answer_safe)

    async def _answer_safe(self) -> Answer:
        return Answer(200, json.dumps(await self._verdicts.fields()).encode() + b"\n", "application/json")

    def _healthz(self, request: Request) -> Answer:
        """Anybody may know whether all is well; why not, says paths, and is for those with the token."""
        reasons = [reason for job in self._health for reason in job.reasons()]
        told = reasons if self._guard.knows(request.headers) else []
        body = {"status": "unwell" if reasons else "ok", "reasons": told}
        return Answer(503 if reasons else 200, json.dumps(body).encode() + b"\n", "application/json")

    def _login(self, request: Request) -> Answer:
        given = parse_qs(request.body.decode("utf-8", "replace")).get("token", [""])[0]
        address = address_of(request.peer, request.headers)
        if pause := self._guesses.pause(address, given):
            return _too_many(pause)
        if not self._guard.is_token(given):
            self._guesses.wrong(address, given)
            hint = '<p role="alert">This is not the token.</p>'
            return Answer(401, _LOGIN.format(hint=hint).encode(), "text/html; charset=utf-8")
        self._guesses.right(address)
        is_secure = self._guard.tls or request.headers.get("origin", "").startswith("https:")
        secure = "; Secure" if is_secure else ""
        cookie = f"{COOKIE}={self._guard.cookie}; HttpOnly; SameSite=Strict; Path={self._base}/{secure}"
        return Answer(303, b"", headers={"location": "./", "set-cookie": cookie})

    def _open_feed(self, request: Request) -> Answer | Upgrade:
        if not is_handshake(request):
            headers = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13"}
            return _text(426, "this is a WebSocket", headers)
        since = request.query.get("since", "0")
        cursor = self._feed.begin(request.query.get("epoch"), int(since) if re.fullmatch("[0-9]{1,18}", since) else 0)
        return Upgrade(functools.partial(self._converse, cursor))

    # --- clients of the feed

    async def _converse(self, cursor: Cursor, socket: trio_websocket.WebSocketConnection) -> None:
        """Keep a client supplied until it leaves, says something, or takes nothing any more."""
        self.clients += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, socket, nursery.cancel_scope)
                while True:
                    text, cursor = self._feed.message(cursor)
                    with trio.move_on_after(_SEND_SECONDS) as sending:
                        await socket.send_message(text)
                    if sending.cancelled_caught:
                        raise trio.BrokenResourceError("it does not read")
                    while self._feed.is_complete(cursor):
                        with trio.move_on_after(_HEARTBEAT) as waiting:
                            await self._parked.park()
                        if waiting.cancelled_caught:
                            break
        finally:
            self.clients -= 1

    async def _listen(self, socket: trio_websocket.WebSocketConnection, conversation: trio.CancelScope) -> None:
        """Do what a client asks for, where that is allowed; and see it leave, which nobody would who did not listen."""
        try:
            while True:
                asked = await socket.get_message()
                if not self._config.feed.control:
                    await socket.aclose(1008, "this feed only speaks")
                    break
                await socket.send_message(await self._answer(asked))
        except trio_websocket.ConnectionClosed:
            pass
        conversation.cancel()

    async def _answer(self, asked: str | bytes) -> str:
        """Do what a client asks for, and return what is said to that."""
        ref = None
        try:
            message = json.loads(asked)
            ref, what, number, job = (message.get(key) for key in ("ref", "do", "id", "job"))
        except (ValueError, AttributeError, RecursionError):
            done, text = False, "this is no JSON object"
        else:
            entry = self._feed.entry_of(number) if type(number) is int else None
            done, text = await self._obey(what, number, message.get("value"), entry, job)
            if done and what == "retry" and entry is not None and entry.state in FINAL:
                self._feed.remove(entry)  # it begins a new life, under another id
        return json.dumps({"type": "answer", "v": 1, "ref": ref, "ok": done, "text": text})

    async def _obey(
        self, what: object, number: object, value: object, entry: Entry | None, name: object
    ) -> tuple[bool, str]:
        """Have a file's job, the one with a *name*, or all do what is asked for."""
        is_of_file = number is not None or what in ("retry", "cancel")
        if is_of_file and entry is not None:
            jobs = [self._jobs[entry.job]]
        else:
            jobs = [run for job, run in self._jobs.items() if name in (None, job) or is_of_file]
        done, text = False, "there is no such job"
        try:
            for run in jobs:
                done, text = await run.control.obey(what, number, value, entry)
        except (LedgerError, trio.ClosedResourceError) as error:  # the job ends in this moment
            return False, f"it has not been done: {error or 'the job has ended'}"
        return done, text


def _too_many(pause: float) -> Answer:
    text = "too many wrong tokens came from this address: try again later"
    return _text(429, text, {"retry-after": str(math.ceil(pause))})


def _file(request: Request) -> Answer:
    name, kind = _FILES[request.path]
    return Answer(200, _content(name), kind)


@functools.cache
def _content(name: str) -> bytes:
    return importlib.resources.files("trioft.serve").joinpath("page", name).read_bytes()


def _text(status: int, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, f"{text}\n".encode(), headers=headers or {})
