"""
One port for everything: plain requests are answered with h11, upgrades become WebSockets.

trio-websocket wants a handshake and nothing else, so the request's head is read here, and replayed to it. Everything is
bounded: how long a head is and how long it takes, how many connections there are, how long an answer may take to be
read. Where there are too many connections, the oldest that has brought nothing makes room. An error in one connection
ends that one.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import h11
import trio
import trio_websocket

from trioft.core.model import KIB

HEAD = 16 * KIB  # bytes of a request's head
_RECEIVE = 2 * KIB
BODY = 64 * KIB  # bytes of a request's body, and of a client's message
CONNECTIONS = 1024  # at most, where there are descriptors for so many
# Seconds between two that are let in while there are too many, and before the port is tried again where it failed.
_CROWDED_SECONDS, _FAILED_SECONDS = 0.01, 0.5
# Seconds: for a head, once its first byte is there; between two requests; for an answer to be taken.
_HEAD_SECONDS, _IDLE_SECONDS, _SEND_SECONDS = 10.0, 60.0, 20.0
_CLOSING_SECONDS = 1.0  # that clients get to hear that the agent ends

# On every answer. Nothing from elsewhere is loaded, nothing is framed, no name of a file is ever taken for a script.
_ALWAYS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer browsers say of the form that it comes from nowhere
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]  # lower case; of several only the last
    body: bytes
    peer: str = ""  # the address that it comes from


class Answer(NamedTuple):
    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = {}
    known: bool = False  # whoever asked may see what there is: he brought the token, or needs none


Conversation = Callable[[trio_websocket.WebSocketConnection], Awaitable[None]]


class Upgrade(NamedTuple):
    """In place of an answer: the request becomes a WebSocket, which *converse* serves until either side has enough."""

    converse: Conversation


class Later(NamedTuple):
    """In place of an answer: it takes a moment."""

    answer: Callable[[], Awaitable[Answer]]
    known: bool = False  # as an ``Answer`` has it


Outcome = Answer | Later | Upgrade


class _Refused(Exception):
    """The request is answered with an error, and the connection closed."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


# It has gone, does not read, or never meant it.
_GONE = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    trio_websocket.ConnectionClosed,
    ssl.SSLError,
)


class Front:
    """
    *respond* returns the ``Answer`` to a request. *told* is called with errors that no client should cause. There are
    *most* connections.
    """

    def __init__(
        self, respond: Callable[[Request], Outcome], told: Callable[[str], None], most: int | None = None
    ) -> None:
        self._respond = respond
        self._told = told
        self._most = most
        self._readers: trio.Nursery
        self._open: dict[_Connection, trio.CancelScope] = {}  # the oldest first

    @property
    def connections(self) -> int:
        return len(self._open)

    async def serve(self, listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]) -> None:
        """Serve until cancelled: then who has a WebSocket is told (1001), and a second later all is closed."""
        ready, ended = trio.Event(), trio.Event()
        async with trio.open_nursery() as outer:
            outer.start_soon(self._hold_readers, ready, ended)
            try:
                await ready.wait()
                async with trio.open_nursery() as connections:
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(self._accept, listener, connections)
            finally:
                ended.set()
                for listener in listeners:  # where it was cancelled before anybody served them, they are open still
                    await trio.aclose_forcefully(listener)

    async def _hold_readers(self, ready: trio.Event, ended: trio.Event) -> None:
        """Have a nursery for the tasks that read WebSockets: they are needed until the last client has been told."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as self._readers:
                ready.set()
                await ended.wait()
                self._readers.cancel_scope.cancel()

    async def _accept(self, listener: trio.abc.Listener[trio.abc.Stream], connections: trio.Nursery) -> None:
        """
        Let clients in. Runs until cancelled.

        Not ``trio.serve_listeners``, which lets everybody in, and writes a traceback where there is no descriptor left.
        """
        failed = False
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if not failed:
                    self._told(f"no client can connect for the moment: {error.strerror or error}")
                failed = True
                await trio.sleep(_FAILED_SECONDS)
                continue
            failed = False
            if self.connections >= (self._most or CONNECTIONS):
                if not self._make_room():
                    await trio.aclose_forcefully(stream)
                    await trio.sleep(_CROWDED_SECONDS)
                    continue
                await trio.sleep(_CROWDED_SECONDS)  # those who come back at once do not keep the agent busy
            connection = _Connection(stream, self._respond, self._readers)
            self._open[connection] = scope = trio.CancelScope()
            connections.start_soon(self._connected, connection, stream, scope)

    def _make_room(self) -> bool:
        """Cut the oldest connection that has not brought the token; return whether there is one."""
        for connection, scope in self._open.items():
            if not connection.is_known:
                del self._open[connection]
                scope.cancel()
                return True
        return False

    async def _connected(self, connection: _Connection, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await connection.run()
        except* _GONE:
            pass
        except* Exception as group:  # one connection's bug is not everybody's end
            self._told(f"an error while a client was served: {group.exceptions!r}")
        finally:
            self._open.pop(connection, None)
            await trio.aclose_forcefully(stream)


class _Connection:
    """One client: requests, one after the other, until one of them becomes a WebSocket."""

    def __init__(self, stream: trio.abc.Stream, respond: Callable[[Request], Outcome], readers: trio.Nursery) -> None:
        self._stream = stream
        self._respond = respond
        self._readers = readers
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD)
        self._peer = _peer_of(stream)
        self.is_known = False

    async def run(self) -> None:
        seconds = _HEAD_SECONDS  # who connects has something to say
        while True:
            try:
                request = await self._read(seconds)
                if request is None:
                    return
                outcome = self._respond(request._replace(peer=self._peer))
                self.is_known = isinstance(outcome, Upgrade) or outcome.known
                if isinstance(outcome, Upgrade):
                    await self._upgrade(outcome, request)
                    return
            except _Refused as refusal:
                await self._send(Answer(refusal.status, f"{refusal}\n".encode()), close=True)
                await self._linger()
                return
            except h11.RemoteProtocolError as error:
                if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self._send(Answer(error.error_status_hint, f"{error}\n".encode()), close=True)
                    await self._linger()
                return
            answer = await outcome.answer() if isinstance(outcome, Later) else outcome
            await self._send(answer, head=request.method == "HEAD")
            if self._http.our_state is h11.MUST_CLOSE:
                await self._linger()
                return
            self._http.start_next_cycle()
            seconds = _IDLE_SECONDS

    async def _read(self, seconds: float) -> Request | None:
        """Return the next request; None if the client has gone, or says nothing."""
        with trio.move_on_after(seconds) as scope:
            event = await self._event(scope)
            if not isinstance(event, h11.Request):
                return None
            body = b""
            while not isinstance(piece := await self._event(scope), h11.EndOfMessage):
                if not isinstance(piece, h11.Data):
                    return None
                body += piece.data
                if len(body) > BODY:
                    raise _Refused(413, "this is too much")
            return _request_of(event, body)
        return None

    async def _event(self, scope: trio.CancelScope) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                raise _Refused(417, "nothing is waited for here")
            data = await self._stream.receive_some(_RECEIVE)  # little: h11 only refuses heads that are not complete yet
            # From the first byte on it has to be quick, and a slow rest wins no time.
            scope.deadline = min(scope.deadline, trio.current_time() + _HEAD_SECONDS)
            self._http.receive_data(bytes(data))
        return event

    async def _send(self, answer: Answer, *, head: bool = False, close: bool = False) -> None:
        headers = {"content-type": answer.kind, "content-length": str(len(answer.body)), **_ALWAYS, **answer.headers}
        if close:
            headers["connection"] = "close"
        pieces = [self._http.send(h11.Response(status_code=answer.status, headers=list(headers.items())))]
        if not head:
            pieces.append(self._http.send(h11.Data(data=answer.body)))
        pieces.append(self._http.send(h11.EndOfMessage()))
        with trio.fail_after(_SEND_SECONDS):
            await self._stream.send_all(b"".join(piece for piece in pieces if piece))

    async def _linger(self) -> None:
        """Take what is still coming: closed with unread bytes, the kernel resets, and the answer may get lost."""
        with trio.move_on_after(_CLOSING_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            if isinstance(self._stream, trio.SocketStream):
                await self._stream.send_eof()
            while await self._stream.receive_some(HEAD):
                pass

    async def _upgrade(self, upgrade: Upgrade, request: Request) -> None:
        if self._http.trailing_data[0]:
            raise _Refused(400, "nothing may be sent before the answer")
        replay = _Replay(_head_of(request), self._stream)
        with trio.fail_after(_HEAD_SECONDS):
            socket_request = await trio_websocket.wrap_server_stream(self._readers, replay, max_message_size=BODY)
            socket = await socket_request.accept()
        try:
            await upgrade.converse(socket)
        finally:
            with trio.move_on_after(_CLOSING_SECONDS, shield=True):
                await socket.aclose(1001, "the agent ends")


class _Replay(trio.abc.Stream):
    """A stream whose first bytes have been read already."""

    def __init__(self, first: bytes, stream: trio.abc.Stream) -> None:
        self._first = first
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._first:
            await trio.lowlevel.checkpoint()
            first, self._first = self._first, b""
            return first
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _peer_of(stream: trio.abc.Stream) -> str:
    """Return the address at the other end."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if not isinstance(stream, trio.SocketStream):
        return ""
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:  # it has gone
        return ""


def _request_of(event: h11.Request, body: bytes) -> Request:
    headers: dict[str, str] = {}
    for name, value in event.headers:
        headers[name.decode("ascii").lower()] = value.decode("latin-1")
    try:
        target = urlsplit(event.target.decode("ascii"))
        query = dict(parse_qsl(target.query, max_num_fields=16))
    except ValueError:
        raise _Refused(400, "this is no target") from None
    return Request(event.method.decode("ascii"), target.path, query, headers, body)


def is_handshake(request: Request) -> bool:
    """Is it a request for a WebSocket that trio-websocket will accept? One that it refuses, it never answers."""
    headers = request.headers
    return (
        headers.get("upgrade", "").lower() == "websocket"
        and "upgrade" in headers.get("connection", "").lower()
        and headers.get("sec-websocket-version") == "13"
        and re.fullmatch(r"[A-Za-z0-9+/]{22}==", headers.get("sec-websocket-key", "")) is not None
    )


def _head_of(request: Request) -> bytes:
    """Return a head that asks for the same WebSocket, and nothing else."""
    wanted = ("host", "upgrade", "connection", "sec-websocket-version", "sec-websocket-key")
    lines = [f"GET {request.path} HTTP/1.1", *(f"{name}: {request.headers[name]}" for name in wanted)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
