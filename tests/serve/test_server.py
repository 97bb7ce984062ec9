"""The feed's port, over real sockets: what is answered, to whom, within which bounds, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import h11
import jsonschema
import pytest
import trio
import trio_websocket
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import SCHEMA
from support import Site, found, make_tree, wait_until
from trioft.agent.job import JobRun
from trioft.config.kinds import Address
from trioft.config.options import Config, Feed
from trioft.core.errors import ConfigError, UnusableError
from trioft.core.model import FileState
from trioft.serve import http, server
from trioft.serve.server import Server, listen, url_of
from trioft.state.board import Board

TOKEN = "correct-horse-battery"


class Agent:
    """A board, served as an agent serves it."""

    def __init__(self, **settings: Any) -> None:
        self.board = Board()
        self.told: list[str] = []
        self.board.notices.append(lambda what, text: self.told.append(text))
        self.config = Config(feed=Feed(listen=Address("127.0.0.1", 0), **settings))
        self.token = self.config.feed.token
        self.server = Server(self.config, self.token, self.board, [JobRun(self.config, self.board)], False)
        self.port = 0

    def add(self, path: bytes = b"a", state: FileState = FileState.READY) -> Any:
        entry = self.board.add(path, found(size=1000).fingerprint)
        self.board.move(entry, FileState.READY)
        if state != FileState.READY:
            self.board.move(entry, state)
        return entry


@contextlib.asynccontextmanager
async def serving(agent: Agent) -> AsyncIterator[Agent]:
    listeners = await listen(agent.config, agent.token)
    agent.port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.server.run, agent.server.wrapped(listeners))
        with trio.fail_after(60):
            yield agent
        nursery.cancel_scope.cancel()


class Client:
    """A connection, and what is said on it."""

    def __init__(self, stream: trio.abc.Stream, port: int) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)
        self.host = f"127.0.0.1:{port}"

    async def ask(
        self, path: str, method: str = "GET", body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request and return status, headers and body of the answer."""
        sent = {"host": self.host} | {name.replace("_", "-"): value for name, value in headers.items()}
        if body:
            sent["content-length"] = str(len(body))
        request = h11.Request(method=method, target=path, headers=list(sent.items()))
        parts = [self.http.send(request)]
        if body:
            parts.append(self.http.send(h11.Data(data=body)))
        parts.append(self.http.send(h11.EndOfMessage()))
        await self.stream.send_all(b"".join(part for part in parts if part))
        status, answered, content = 0, {}, b""
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(bytes(await self.stream.receive_some()))
            elif isinstance(event, h11.Response):
                status = event.status_code
                answered = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                content += event.data
            else:
                break
        with contextlib.suppress(h11.ProtocolError):
            self.http.start_next_cycle()
        return status, answered, content


@contextlib.asynccontextmanager
async def connected(agent: Agent) -> AsyncIterator[Client]:
    async with await trio.open_tcp_stream("127.0.0.1", agent.port) as stream:
        yield Client(stream, agent.port)


async def ask(agent: Agent, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Any:
    async with connected(agent) as client:
        return await client.ask(path, method, body, **headers)


@contextlib.asynccontextmanager
async def feed_of(
    agent: Agent, path: str = "/feed", headers: list[tuple[bytes, bytes]] | None = None
) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    async with await trio.open_tcp_stream("127.0.0.1", agent.port) as stream, trio.open_nursery() as nursery:
        yield await trio_websocket.wrap_client_stream(
            nursery, stream, f"127.0.0.1:{agent.port}", path, extra_headers=headers or []
        )
        nursery.cancel_scope.cancel()


async def read(socket: trio_websocket.WebSocketConnection) -> dict[str, Any]:
    """Take one message, which must be one that the schema knows."""
    message: dict[str, Any] = json.loads(await socket.get_message())
    jsonschema.validate(message, SCHEMA)
    return message


async def closed(socket: trio_websocket.WebSocketConnection) -> int:
    """Read until the other side closes the connection, and return its code."""
    try:
        while True:
            await socket.get_message()
    except trio_websocket.ConnectionClosed as error:
        return int(error.reason.code) if error.reason is not None else 0


# --- Plain requests


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 200),
        ("/page.css", "GET", 200),
        ("/page.js", "HEAD", 200),
        ("/icon.svg", "GET", 200),
        ("/feed.schema.json", "GET", 200),
        ("/healthz", "GET", 200),
        ("/metrics", "GET", 200),
        ("/status", "GET", 200),
        ("/nothing", "GET", 404),
        ("/../etc/passwd", "GET", 404),
        ("//feed", "GET", 404),
        ("/metrics", "POST", 405),
        ("/status", "DELETE", 405),
        ("/login", "GET", 405),
        ("/feed", "GET", 426),
        ("/feed", "POST", 405),
    ],
)
async def test_each_request_has_its_answer(path: str, method: str, status: int) -> None:
    """A table of exact paths; HEAD is GET without the body; nothing may be stored, framed or guessed."""
    async with serving(Agent()) as agent:
        got, headers, body = await ask(agent, path, method)
        assert got == status
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert (body == b"") == (method == "HEAD")
        assert "content-length" in headers
        if status == 405:
            assert headers["allow"] in ("GET, HEAD", "POST")


async def test_one_connection_serves_many_requests() -> None:
    """Monitoring and browsers keep their connection."""
    async with serving(Agent()) as agent, connected(agent) as client:
        for path in ("/healthz", "/nothing", "/metrics", "/healthz"):
            status, *_ = await client.ask(path)
            assert status == (404 if path == "/nothing" else 200)


async def test_health_is_503_with_the_reasons_while_an_end_is_away() -> None:
    """A load balancer, or whoever is on call, hears why."""
    async with serving(Agent()) as agent:
        assert json.loads((await ask(agent, "/healthz"))[2]) == {"status": "ok", "reasons": []}
        agent.board.set_destination("not usable since 12:04:00: Host is down")
        status, _, body = await ask(agent, "/healthz")
        assert status == 503
        assert json.loads(body)["reasons"] == ["destination not usable since 12:04:00: Host is down"]


async def test_health_is_503_while_files_wait_and_nothing_is_finished() -> None:
    """An agent that is alive and does nothing is not well."""
    async with serving(Agent(stalled_after=0.05)) as agent:
        await trio.sleep(0.1)
        assert (await ask(agent, "/healthz"))[0] == 200
        entry = agent.add()
        status, _, body = await ask(agent, "/healthz")
        assert (status, "1 files wait" in body.decode()) == (503, True)
        agent.board.move(entry, FileState.COPYING)
        assert (await ask(agent, "/healthz"))[0] == 200


async def test_metrics_tell_figures_and_no_names() -> None:
    """Units are in the names; what files are called is nobody's business who scrapes."""
    async with serving(Agent()) as agent:
        agent.add(b"secret-name.mxf")
        agent.board.totals.delivered = 7
        _, headers, body = await ask(agent, "/metrics")
        text = body.decode()
        assert headers["content-type"].startswith("text/plain; version=")
        assert 'trioft_files_total{outcome="delivered"} 7.0' in text
        assert "trioft_pending_bytes 1000.0" in text
        assert "secret" not in text


async def test_state_is_one_message_of_the_feed() -> None:
    """Who does not want to listen asks once."""
    async with serving(Agent()) as agent:
        for n in range(500):
            agent.add(b"%d" % n)
        _, _, body = await ask(agent, "/status")
        message = json.loads(body)
        jsonschema.validate(message, SCHEMA)
        assert message["rev"] == message["head"]
        assert len(message["files"]) == 500


# --- Who may


@pytest.mark.parametrize("path", ["/status", "/metrics", "/page.js", "/feed"])
async def test_without_the_token_nothing_is_told(path: str) -> None:
    """401 with the way to do it; with it, or with the cookie, as without one."""
    async with serving(Agent(token=TOKEN)) as agent:
        status, headers, _ = await ask(agent, path)
        assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="trioft"')
        assert (await ask(agent, path, authorization="Bearer wrong"))[0] == 401
        assert (await ask(agent, path, authorization=f"Bearer {TOKEN}"))[0] in (200, 426)


async def test_health_without_the_token_says_no_more_than_yes_or_no() -> None:
    """The reasons name paths and servers."""
    async with serving(Agent(token=TOKEN)) as agent:
        agent.board.set_destination("nas-7 is down")
        status, _, body = await ask(agent, "/healthz")
        assert (status, json.loads(body)) == (503, {"status": "unwell", "reasons": []})
        _, _, body = await ask(agent, "/healthz", authorization=f"Bearer {TOKEN}")
        assert json.loads(body)["reasons"] == ["destination nas-7 is down"]


async def test_a_browser_signs_in_with_a_form() -> None:
    """It gets a cookie that scripts cannot read and other pages cannot use; the token is in no address."""
    async with serving(Agent(token=TOKEN)) as agent:
        status, _, body = await ask(agent, "/")
        assert status == 401
        assert b'action="login"' in body
        assert (await ask(agent, "/login", "POST", b"token=wrong"))[0] == 401
        status, headers, _ = await ask(agent, "/login", "POST", f"token={TOKEN}".encode())
        assert (status, headers["location"]) == (303, "./")
        cookie = headers["set-cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly; SameSite=Strict; Path=/" in cookie
        assert (await ask(agent, "/status", cookie=cookie.partition(";")[0]))[0] == 200


@pytest.mark.parametrize("path", ["/", "/feed", "/status", "/healthz"])
async def test_other_names_and_other_pages_are_refused_everywhere(path: str) -> None:
    """DNS rebinding, and pages that use the operator's browser."""
    async with serving(Agent()) as agent:
        assert (await ask(agent, path, host="evil.example"))[0] in (400, 421)  # two Host headers are none
        assert (await ask(agent, path, origin="http://evil.example"))[0] == 403


async def test_a_port_for_others_needs_a_token() -> None:
    """Refused before it is opened, with what to do."""
    config = Config(feed=Feed(listen=Address("0.0.0.0", 0)))
    with pytest.raises(ConfigError, match="there is no token") as caught:
        await listen(config, None)
    assert "TRIOFT_FEED_TOKEN" in (caught.value.hint or "")
    for listener in await listen(config, TOKEN):
        await listener.aclose()


async def test_a_port_that_is_taken_says_so() -> None:
    """Exit code 3, and no traceback."""
    async with serving(Agent()) as agent:
        with pytest.raises(UnusableError, match="Address already in use"):
            await listen(Config(feed=Feed(listen=Address("127.0.0.1", agent.port))), None)


# --- The feed


async def test_the_feed_tells_what_changes() -> None:
    """A snapshot first, then each change within a quarter of a second."""
    async with serving(Agent()) as agent:
        entry = agent.add(b"a.mxf")
        async with feed_of(agent) as socket:
            first = await read(socket)
            assert first["reset"]
            assert [file["path"] for file in first["files"]] == ["a.mxf"]
            agent.board.move(entry, FileState.COPYING)
            begun = trio.current_time()
            message = await read(socket)
            assert [file["state"] for file in message["files"]] == ["copying"]
            assert trio.current_time() - begun < 2


async def test_an_empty_message_is_the_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser does not see pings: it would take silence for a dead connection."""
    monkeypatch.setattr(server, "_HEARTBEAT", 0.2)
    async with serving(Agent()) as agent, feed_of(agent) as socket:
        await read(socket)
        for _ in range(2):
            message = await read(socket)
            assert (message["files"], message["gone"], message["reset"]) == ([], [], False)


async def test_who_returns_gets_what_he_missed() -> None:
    """``?epoch=…&since=…`` goes on where the connection was lost."""
    async with serving(Agent()) as agent:
        first, _ = agent.add(b"a"), agent.add(b"b")
        async with feed_of(agent) as socket:
            last = await read(socket)
        agent.board.move(first, FileState.COPYING)
        async with feed_of(agent, f"/feed?epoch={last['epoch']}&since={last['rev']}") as socket:
            message = await read(socket)
            assert not message["reset"]
            assert [file["path"] for file in message["files"]] == ["a"]
        queries = ["epoch=other&since=1", "since=1", "epoch=&since=x", f"epoch={last['epoch']}&since=-1"]
        for query in [*queries, f"epoch={last['epoch']}&since={'9' * 5000}"]:
            async with feed_of(agent, f"/feed?{query}") as socket:
                assert (await read(socket))["reset"]


async def test_who_speaks_where_nobody_listens_is_cut() -> None:
    """Without ``feed.control`` the feed only speaks: close code 1008."""
    async with serving(Agent()) as agent, feed_of(agent) as socket:
        await read(socket)
        await socket.send_message('{"do": "pause"}')
        assert await closed(socket) == 1008


async def test_the_end_of_the_agent_is_told() -> None:
    """Close code 1001, at once, to each client."""
    agent = Agent()
    async with trio.open_nursery() as nursery:
        codes: list[int] = []

        async def watch(seen: Callable[[], None]) -> None:
            async with feed_of(agent) as socket:
                await read(socket)
                seen()
                codes.append(await closed(socket))

        async with serving(agent):
            reading = 0

            def seen() -> None:
                nonlocal reading
                reading += 1

            for _ in range(5):
                nursery.start_soon(watch, seen)
            while reading < 5:  # noqa: ASYNC110 - five tasks, one condition
                await trio.sleep(0.01)
            begun = trio.current_time()
        assert trio.current_time() - begun < 3
    assert codes == [1001] * 5


async def test_an_end_in_the_moment_of_the_beginning_is_an_end() -> None:
    """Whatever is being set up then."""
    for checkpoints in range(6):
        agent = Agent()
        listeners = await listen(agent.config, None)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(agent.server.run, agent.server.wrapped(listeners))
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        for listener in listeners:
            await listener.aclose()


# --- Bounds


async def test_a_client_that_never_reads_is_cut_and_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No queue grows for it; others go on as if it were not there."""
    monkeypatch.setattr(server, "_SEND_SECONDS", 3.0)
    async with serving(Agent()) as agent:
        entries = [agent.add(b"%0200d" % n) for n in range(2000)]
        async with await trio.open_tcp_stream("127.0.0.1", agent.port) as mute:
            mute.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            await mute.send_all(handshake(agent.port))
            while agent.server.clients == 0:  # noqa: ASYNC110 - it tells nobody
                await trio.sleep(0.01)
            async with feed_of(agent) as socket:
                message = json.loads(await socket.get_message())
                while message["rev"] != message["head"]:
                    message = json.loads(await socket.get_message())
                assert agent.server.clients == 2
                begun = trio.current_time()
                while agent.server.clients == 2:
                    agent.board.move(entries[0], FileState.SETTLING)
                    agent.board.move(entries[0], FileState.READY)
                    json.loads(await socket.get_message())
                assert trio.current_time() - begun < 15
            assert agent.told == [], "that is no bug of ours"


def handshake(port: int) -> bytes:
    return (
        f"GET /feed HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"x" * 20_000), b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n" % (b"x" * 20_000), b"431"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000, b"413"),
    ],
    ids=["long-target", "long-head", "nonsense", "no-host", "long-body"],
)
async def test_what_is_too_much_is_refused(sent: bytes, status: bytes) -> None:
    """Bounded memory for each connection, and an answer that arrives."""
    async with serving(Agent()) as agent, await trio.open_tcp_stream("127.0.0.1", agent.port) as stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(sent)
        answer = bytes(await stream.receive_some())
        assert answer.startswith(b"HTTP/1.1 " + status), answer
        assert (await ask(agent, "/healthz"))[0] == 200


@pytest.mark.parametrize("how", ["silent", "slow", "half a handshake"])
async def test_who_does_not_finish_is_cut(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A head has ten seconds, however often a byte of it comes."""
    monkeypatch.setattr(http, "_HEAD_SECONDS", 0.5)
    async with serving(Agent()) as agent, await trio.open_tcp_stream("127.0.0.1", agent.port) as stream:
        begun = trio.current_time()
        data = handshake(agent.port)
        with contextlib.suppress(trio.BrokenResourceError):
            if how == "slow":
                for at in range(len(data)):
                    await stream.send_all(data[at : at + 1])
                    await trio.sleep(0.05)
                    if trio.current_time() - begun > 3:
                        break
            elif how == "half a handshake":
                await stream.send_all(data[:60])
            assert await stream.receive_some() == b""
        assert trio.current_time() - begun < 5
        while agent.server._front.connections:  # noqa: ASYNC110 - it tells nobody
            await trio.sleep(0.01)


async def test_no_more_connections_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is closed at once; when another leaves there is room again."""
    monkeypatch.setattr(http, "CONNECTIONS", 2)
    async with serving(Agent()) as agent:
        async with connected(agent) as first, connected(agent) as second:
            for client in (first, second):
                assert (await client.ask("/healthz"))[0] == 200
            async with await trio.open_tcp_stream("127.0.0.1", agent.port) as third:
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await third.receive_some() == b""
        while agent.server._front.connections:  # noqa: ASYNC110 - it hears of their end by itself
            await trio.sleep(0.01)
        assert (await ask(agent, "/healthz"))[0] == 200


async def test_bytes_behind_the_handshake_are_refused() -> None:
    """They would get lost: no client may send before it is answered."""
    async with serving(Agent()) as agent, await trio.open_tcp_stream("127.0.0.1", agent.port) as stream:
        await stream.send_all(handshake(agent.port) + b"\x81\x00")
        assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 400")


async def test_a_message_that_is_too_long_ends_the_conversation() -> None:
    """64 KiB are more than anybody has to say."""
    async with serving(Agent(control=True)) as agent, feed_of(agent) as socket:
        await read(socket)
        await socket.send_message("x" * (http.BODY + 1))
        assert await closed(socket) == 1009


LINES = [b"GET / HTTP/1.1\r\n", b"Host: localhost\r\n", b"Content-Length: 5\r\n", b"Expect: 100-continue\r\n", b"\r\n"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=200), st.sampled_from([b"GET / HTTP/1.1\r\n", b"Host: localhost\r\n", b"\r\n"]))
    )
)
def test_no_bytes_break_the_port(pieces: list[bytes]) -> None:
    """Whatever is sent, it is answered or cut, nothing is told as a bug, and the next client is served."""

    async def run() -> None:
        async with serving(Agent()) as agent:
            async with await trio.open_tcp_stream("127.0.0.1", agent.port) as stream:
                with contextlib.suppress(trio.BrokenResourceError):
                    for piece in pieces:
                        await stream.send_all(piece)
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass
            assert (await ask(agent, "/healthz"))[0] == 200
            assert agent.told == []

    trio.run(run)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_frames_break_the_feed(data: bytes) -> None:
    """A client that speaks nonsense after its handshake is cut, and nobody else notices."""

    async def run() -> None:
        async with serving(Agent(control=True)) as agent:
            async with await trio.open_tcp_stream("127.0.0.1", agent.port) as stream:
                await stream.send_all(handshake(agent.port))
                await stream.receive_some()
                with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(0.05):
                    await stream.send_all(data)
                    while await stream.receive_some():
                        pass
            async with feed_of(agent) as socket:
                await read(socket)
            assert agent.told == []

    trio.run(run)


# --- TLS


async def test_the_port_speaks_tls(tmp_path: Path) -> None:
    """With a certificate it is https and wss, and nothing else."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(cert)]
    await trio.run_process([*command, "-days", "2", *subject], capture_stdout=True, capture_stderr=True)
    agent = Agent(tls_cert=str(cert), tls_key=str(key))
    context = ssl.create_default_context(cafile=str(cert))
    async with serving(agent):
        plain = await trio.open_tcp_stream("127.0.0.1", agent.port)
        async with trio.SSLStream(plain, context, server_hostname="localhost", https_compatible=True) as stream:
            assert (await Client(stream, agent.port).ask("/healthz"))[0] == 200
        plain = await trio.open_tcp_stream("127.0.0.1", agent.port)
        async with trio.SSLStream(plain, context, server_hostname="localhost", https_compatible=True) as stream:
            async with trio.open_nursery() as nursery:
                socket = await trio_websocket.wrap_client_stream(nursery, stream, f"127.0.0.1:{agent.port}", "/feed")
                assert (await read(socket))["reset"]
                nursery.cancel_scope.cancel()
        async with await trio.open_tcp_stream("127.0.0.1", agent.port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with contextlib.suppress(trio.BrokenResourceError):
                assert not bytes(await stream.receive_some()).startswith(b"HTTP")
        assert agent.told == []


async def test_a_certificate_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    """Refused at the start."""
    (tmp_path / "cert.pem").write_text("no certificate")
    path = str(tmp_path / "cert.pem")
    agent = Agent(tls_cert=path, tls_key=path)
    with pytest.raises(ConfigError, match="tls_cert"):
        agent.server.wrapped([])
    with pytest.raises(ConfigError, match="go together"):
        await listen(attrs.evolve(agent.config, feed=attrs.evolve(agent.config.feed, tls_key=None)), None)


async def test_the_address_is_one_for_a_browser() -> None:
    """Also for IPv6, and where the port was chosen by the system."""
    config = Config(feed=Feed(listen=Address("127.0.0.1", 0)))
    listeners = await listen(config, None)
    port = listeners[0].socket.getsockname()[1]
    assert url_of(config, listeners) == f"http://127.0.0.1:{port}/"
    six = attrs.evolve(config, feed=attrs.evolve(config.feed, listen=Address("::1", 0), tls_cert="x"))
    assert url_of(six, listeners) == f"https://[::1]:{port}/"
    for listener in listeners:
        await listener.aclose()


# --- A real run


def test_every_message_of_a_real_run_is_as_the_schema_says(site: Site) -> None:
    """A recording, a failure, small files: what a tool was promised is what it gets."""
    make_tree(site.source, {"small": b"1", "taken": b"mine", "b": b"2"})
    make_tree(site.dest, {"taken": b"another"})
    agent = site.watch("--feed", "127.0.0.1:0", "--if-exists", "fail")
    url = agent.wait_for(lambda line: line["event"] == "feed")["text"].rpartition(" ")[2]
    port = int(url.rstrip("/").rpartition(":")[2])
    states: dict[str, set[str]] = {}

    async def consume() -> None:
        files: dict[int, dict[str, Any]] = {}
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:
            socket = await trio_websocket.wrap_client_stream(nursery, stream, f"127.0.0.1:{port}", "/feed")
            with trio.fail_after(60):
                while not {"done"} <= states.get("take.mxf", set()):
                    message = await read(socket)
                    for file in message["files"]:
                        files[file["id"]] = file
                        states.setdefault(file["path"], set()).add(file["state"])
            nursery.cancel_scope.cancel()

    import threading

    thread = threading.Thread(target=trio.run, args=(consume,))
    thread.start()
    with open(site.source / "take.mxf", "wb", buffering=0) as recording:
        for _ in range(20):
            recording.write(bytes(1024 * 1024))
            time.sleep(0.05)
    thread.join()
    assert states["take.mxf"] >= {"copying", "done"}
    wait_until(lambda: "failed" in states["taken"])
    agent.end()


async def test_who_says_nothing_makes_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connect without the token: the oldest of them is cut, never somebody who has brought it."""
    monkeypatch.setattr(http, "CONNECTIONS", 4)
    async with serving(Agent(token=TOKEN)) as agent, contextlib.AsyncExitStack() as stack:
        viewer = await stack.enter_async_context(connected(agent))
        assert (await viewer.ask("/status", authorization=f"Bearer {TOKEN}"))[0] == 200
        silent = [await stack.enter_async_context(connected(agent)) for _ in range(9)]
        polite = await stack.enter_async_context(connected(agent))
        assert (await polite.ask("/healthz"))[0] == 200
        for client in silent[:7]:
            with contextlib.suppress(trio.BrokenResourceError):
                assert await client.stream.receive_some() == b""
        assert agent.server._front.connections == 4
        assert (await viewer.ask("/status", authorization=f"Bearer {TOKEN}"))[0] == 200
        assert (await silent[-1].ask("/healthz"))[0] == 200


async def test_a_port_without_descriptors_is_told_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No traceback for each client that has to wait."""
    agent, failures = Agent(), iter(range(3))
    accept = trio.SocketListener.accept

    async def refuse(listener: trio.SocketListener) -> trio.SocketStream:
        if next(failures, None) is not None:
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(listener)

    monkeypatch.setattr(http, "_FAILED_SECONDS", 0.01)
    monkeypatch.setattr(trio.SocketListener, "accept", refuse)
    async with serving(agent):
        assert (await ask(agent, "/healthz"))[0] == 200
    assert agent.told == ["no client can connect for the moment: Too many open files"]
    assert capfd.readouterr() == ("", "")


async def test_guesses_are_not_even_looked_at_after_some() -> None:
    """Neither as a header, nor as a cookie, nor in the form; who has the right token on another address is served."""
    async with serving(Agent(token=TOKEN)) as agent:
        answers = [(await ask(agent, "/status", authorization=f"Bearer guess-{number}"))[0] for number in range(8)]
        assert answers[:6] == [401] * 6
        assert answers[-1] == 429
        assert (await ask(agent, "/status", cookie="trioft=guess"))[0] == 429
        assert (await ask(agent, "/status", cookie=f"trioft={agent.server._guard.cookie}"))[0] == 429
        form = b"token=guess"
        assert (await ask(agent, "/login", "POST", form))[0] == 429
        status, headers, _ = await ask(agent, "/status", authorization="Bearer guess-99")
        assert (status, headers["retry-after"]) == (429, "1")
        assert (await ask(agent, "/healthz"))[0] == 200
        bearer = f"Bearer {TOKEN}"
        assert (await ask(agent, "/status", authorization=bearer, x_forwarded_for="10.1.1.1"))[0] == 200


@pytest.mark.parametrize("token", ["a", " ", "short", "aaaaaaaaaaaaaaaaaaaa", "with a blank in it"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_no_port_is_opened_with_a_weak_token(token: str, host: str) -> None:
    """Wherever it comes from: it is looked at where the port is opened."""
    with pytest.raises(ConfigError, match="the token of the feed is too weak"):
        await listen(Config(feed=Feed(listen=Address(host, 0))), token)


@pytest.mark.parametrize("base", [None, "/tools/trioft"])
async def test_page_works_below_a_path(base: str | None) -> None:
    """Behind a proxy that strips the path, and, with feed.base_path, behind one that does not."""
    async with serving(Agent(token=TOKEN, base_path=base)) as agent:
        prefix = base or ""
        for path in ("/page.css", "/icon.svg", "/healthz"):
            assert (await ask(agent, path))[0] == 200
            assert (await ask(agent, prefix + path))[0] == 200
        if base:
            status, headers, _ = await ask(agent, base)
            assert (status, headers["location"]) == (308, base + "/")
            assert (await ask(agent, base + "x/healthz"))[0] == 404
        origin = f"http://127.0.0.1:{agent.port}"
        status, headers, _ = await ask(agent, prefix + "/login", "POST", f"token={TOKEN}".encode(), origin=origin)
        assert (status, headers["location"]) == (303, "./")
        cookie, *rest = headers["set-cookie"].split("; ")
        assert f"Path={prefix}/" in rest
        status, _, body = await ask(agent, prefix + "/", cookie=cookie)
        assert status == 200
        assert not re.findall(rb'(?:src|href|action)="/', body)
        assert (await ask(agent, prefix + "/page.js", cookie=cookie))[0] == 200
        assert b'"/' not in (await ask(agent, prefix + "/feed.js", cookie=cookie))[2]
