"""
``trioft status``: what a running agent is doing, in a terminal, or as JSON; from its feed, as any other tool would.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import trio
import trio_websocket

from trioft.config.kinds import Address
from trioft.core.errors import ConfigError, UnusableError, first_of
from trioft.core.units import size_text, span_text

if TYPE_CHECKING:
    from rich.console import RenderableType

_CONNECTING = 10.0  # seconds
_MESSAGE = 1024 * 1024  # bytes: the feed cuts its messages well below that
_ROWS = 20
_SECTIONS = ("agent", "source", "destination", "totals", "jobs")
# What a person looks for first, first.
_ORDER = ("failed", "verifying", "copying", "growing", "waiting", "ready", "settling", "done", "skipped", "gone")


class Place(NamedTuple):
    """Where an agent's feed is."""

    tls: bool
    host: str
    port: int

    @property
    def authority(self) -> str:
        return str(Address(self.host, self.port))


def parse_url(url: str) -> Place:
    """Return the place of ``http://HOST:PORT/``, also without scheme. Raises ``ConfigError``."""
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        port = parts.port
    except ValueError:
        port = None
    if port is None or not parts.hostname or parts.scheme not in ("", "http", "https", "ws", "wss"):
        raise ConfigError([f"{url} is no address of a feed"], hint="give it as http://HOST:PORT/")
    return Place(parts.scheme in ("https", "wss"), parts.hostname, port)


def find_agents(state_dir: str) -> list[str]:
    """Return the addresses of the agents that run with this state directory and have a feed."""
    urls = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(state_dir)):
            if name.startswith("feed-") and name.endswith(".json"):
                with contextlib.suppress(OSError, ValueError, KeyError):
                    with open(os.path.join(state_dir, name), encoding="utf-8") as file:
                        card = json.load(file)
                    os.kill(card["pid"], 0)  # whoever was killed has left it behind
                    urls.append(card["url"])
    return urls


class State:
    """The state of an agent, put together from its feed."""

    def __init__(self) -> None:
        self.sections: dict[str, Any] = {}
        self.files: dict[int, dict[str, Any]] = {}
        self.complete = False

    def apply(self, message: dict[str, Any]) -> None:
        if message["reset"]:
            self.files.clear()
        self.files |= {file["id"]: file for file in message["files"]}
        for number in message["gone"]:
            self.files.pop(number, None)
        self.sections |= {name: message[name] for name in _SECTIONS if name in message}
        self.complete = message["rev"] == message["head"]


@contextlib.asynccontextmanager
async def _feed_of(place: Place, token: str | None) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """Have a connection to the feed while inside. Raises ``UnusableError``."""
    try:
        with trio.fail_after(_CONNECTING):
            plain = await trio.open_tcp_stream(place.host, place.port)
    except (OSError, trio.TooSlowError) as error:
        raise UnusableError(f"cannot reach {place.authority}: {error or 'it does not answer'}") from error
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = plain
    if place.tls:
        context = ssl.create_default_context()
        stream = trio.SSLStream(plain, context, server_hostname=place.host, https_compatible=True)
    headers = [(b"Authorization", f"Bearer {token}".encode())] if token else []
    try:
        async with stream, trio.open_nursery() as nursery:
            try:
                with trio.fail_after(_CONNECTING):
                    socket = await trio_websocket.wrap_client_stream(
                        nursery, stream, place.authority, "/feed", extra_headers=headers, max_message_size=_MESSAGE
                    )
            except (trio_websocket.HandshakeError, trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError) as error:
                raise UnusableError(f"{place.authority} is no feed of trioft: {error!r}") from error
            yield socket
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # What the task that reads was answered is the reason for all the rest.
        refused = first_of(group, trio_websocket.ConnectionRejected)
        if not isinstance(refused, trio_websocket.ConnectionRejected):
            raise
        hint = "set TRIOFT_FEED_TOKEN to its token" if refused.status_code == 401 else None
        raise UnusableError(f"{place.authority} refuses: {refused.status_code}", hint=hint) from None


async def read_once(place: Place, token: str | None) -> State:
    """Return the whole state. Raises ``UnusableError``."""
    state = State()
    async with _feed_of(place, token) as socket:
        with trio.move_on_after(_CONNECTING):
            while not state.complete:
                state.apply(await _next(socket))
            return state
    raise UnusableError(f"{place.authority} does not send its state")


async def _next(socket: trio_websocket.WebSocketConnection) -> dict[str, Any]:
    try:
        message: dict[str, Any] = json.loads(await socket.get_message())
    except trio_websocket.ConnectionClosed as error:
        raise UnusableError("the agent has ended, or cut the connection") from error
    return message


async def show_live(place: Place, token: str | None) -> None:
    """Show the state, four times a second, until the agent ends or this is cancelled."""
    from rich.console import Console
    from rich.live import Live

    state = State()
    live = Live(console=Console(), auto_refresh=False, screen=True)
    draw = functools.partial(trio.to_thread.run_sync, abandon_on_cancel=True)
    async with _feed_of(place, token) as socket:
        await draw(live.start)
        try:
            while True:
                state.apply(await _next(socket))
                if state.complete:
                    live.update(render(state))
                    await draw(live.refresh)
        finally:
            with trio.move_on_after(1, shield=True):
                await draw(live.stop)


def render(state: State) -> RenderableType:
    """Return what the terminal shows: pure, so that a test can read it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    agent, jobs = state.sections["agent"], state.sections.get("jobs", [])
    lines: list[RenderableType] = [Text(f"trioft {agent['version']}, {agent['mode']} on {agent['host']}", style="bold")]
    for job in jobs or [state.sections]:
        if jobs:
            text = Text(f"{job['name']}: {job['state']}", style="bold")
            lines.append(text.append(f": {job['reason']}" if job["reason"] else "", style="bold red"))
        lines += _lines_of(job, is_paused=job["paused"] if jobs else agent["paused"])
    table = Table.grid(padding=(0, 2))
    files = sorted(state.files.values(), key=lambda file: (_ORDER.index(file["state"]), -file["id"]))
    for file in files[:_ROWS]:
        share = 100 * file["bytes_copied"] // file["size"] if file["size"] else 100
        what = file["reason"] or ""
        if file["rate"]:
            what = f"{share} %, {size_text(file['rate'])}/s"
        if file["lag_seconds"] is not None:
            what += f", {file['lag_seconds']:.1f} s behind"
        cells = [file["state"], *([file["job"]] if jobs else []), size_text(file["size"]), file["path"], what]
        table.add_row(*(Text(cell, justify="right" if n == len(cells) - 3 else None) for n, cell in enumerate(cells)))
    lines.append(table)
    if len(files) > _ROWS:
        lines.append(Text(f"and {len(files) - _ROWS:,} more"))
    return Group(*lines)


def _lines_of(job: dict[str, Any], *, is_paused: bool) -> list[RenderableType]:
    """Return what there is to say of one job: its ends, and how far it is."""
    from rich.text import Text

    totals = job["totals"]
    lines: list[RenderableType] = []
    for name in ("source", "destination"):
        end = job[name]
        text = Text(f"{name:12}{end['path']}")
        if end["filesystem"]:
            text.append(f" on {end['filesystem']}")
        if end.get("free") is not None:
            text.append(f", {size_text(end['free'])} of {size_text(end['total'])} free")
        if end.get("full_in") is not None:
            text.append(f", full in {span_text(end['full_in'])}", style="yellow")
        is_news = end["reason"] is not None and end["reason"] != job.get("reason")
        text.append(f": {end['reason']}" if is_news else "", style="yellow")
        lines.append(text)
    head = Text(f"{totals['delivered']:,} delivered, {totals['already']:,} already there, ")
    head.append(f"{totals['failed']:,} failed", style="bold red" if totals["failed"] else "")
    head.append(f"; {totals['pending_files']:,} to go ({size_text(totals['pending_bytes'])})")
    if totals["rate"]:
        head.append(f"; {size_text(totals['rate'])}/s")
    if totals["eta"]:
        head.append(f", {span_text(totals['eta'])} left")
    lines.append(head)
    if is_paused:
        lines.append(Text("paused", style="yellow"))
    return lines


def run_status(url: str | None, state_dir: str, *, as_json: bool) -> int:
    """Run ``trioft status``; return its exit code. Raises ``TrioftError``."""
    from rich.console import Console

    urls = [url] if url is not None else find_agents(state_dir)
    if not urls:
        raise UnusableError(
            f"no agent with a feed runs with the state directory {state_dir}",
            hint="start it with --feed HOST:PORT, or name its address",
        )
    token = os.environ.get("TRIOFT_FEED_TOKEN")
    places = [parse_url(found) for found in urls]
    if len(places) == 1 and not as_json and sys.stdout.isatty():
        with contextlib.suppress(KeyboardInterrupt):
            _run(show_live, places[0], token)
        return 0
    console = Console(soft_wrap=True)
    unreachable: list[UnusableError] = []
    for place in places:
        try:
            state = _run(read_once, place, token)
        except UnusableError as error:
            unreachable.append(error)
            continue
        if as_json:
            files = sorted(state.files.values(), key=lambda file: file["id"])
            print(json.dumps({**state.sections, "files": files}), flush=True)  # noqa: T201 - this is its purpose
        else:
            console.print(render(state), highlight=False)
    if len(unreachable) == len(places):
        raise unreachable[0]
    return 0


def _run(function: Any, *args: Any) -> Any:
    """Run a task; what ends it, comes out of the groups that Trio brings it in."""
    try:
        return trio.run(function, *args)
    except BaseExceptionGroup as group:
        for kind in (UnusableError, KeyboardInterrupt):
            if (error := first_of(group, kind)) is not None:
                raise error from None
        raise
