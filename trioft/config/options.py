"""
The configuration: the classes below are the manual of every option.

An option is declared once: its type, its default in the notation of the file, what its values may be (``kinds``), and
one sentence that says what it is for. Reading, checking, messages and examples (``config.file``) follow from it.

What ``load_config`` returns has been checked. A class that is built by hand, as tests do, is not.
"""

# ruff: noqa: RUF009  (``option`` declares a field, it is not a default that is shared by accident)

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from trioft.config.kinds import (
    ADDRESS,
    BASE_PATH,
    COUNT,
    COUNT_OR_NONE,
    LIMIT,
    MARKER,
    MIN_FREE,
    NAME_PRESETS,
    NAMES,
    ON_SUCCESS,
    PATH,
    PATTERNS,
    PERIOD,
    PRESETS,
    ROUTES,
    SIZE,
    SUFFIX,
    SWITCH,
    TIME,
    TOKEN,
    Address,
    Kind,
    Limit,
    MinFree,
    OnSuccess,
    command,
    duration,
    one_of,
    size,
    whole,
)
from trioft.core.model import Rule


def option(default: object, kind: Kind, reason: str, *, at_most: str | None = None, live: bool = False) -> Any:
    """
    Declare an option: its *default* in the notation of the file, its *kind*, and what it is for.

    *at_most* names an option declared before it that its value may not exceed. Its default goes down with
    that one, so that only what a person wrote is ever refused. *live* says that another value holds at once when the
    configuration of a running agent is read again; others hold from the next start on.
    """
    value: Any = kind.read(default)
    metadata = {"kind": kind, "reason": reason, "at_most": at_most, "live": live}
    if at_most is None:
        return attrs.field(default=value, metadata=metadata)
    bounded = attrs.Factory(lambda self: min(value, getattr(self, at_most)), takes_self=True)
    return attrs.field(default=bounded, metadata=metadata)


@attrs.frozen(kw_only=True)
class Source:
    """Where the files come from."""

    path: str | None = option(None, PATH, "The folder, or the one file, that is transferred.")
    include: tuple[str, ...] = option(
        [], PATTERNS, "Only files that match one of these are transferred; all, where there is none.", live=True
    )
    exclude: tuple[str, ...] = option(
        [], PATTERNS, "Files that match one of these are left alone, even where include matches too.", live=True
    )
    exclude_presets: tuple[str, ...] = option(
        [],
        NAME_PRESETS,
        "Leave alone what programs have not finished, or keep for themselves, by the names they give to it.",
        live=True,
    )
    settle: float = option(
        "10s",
        TIME,
        "A file must be left alone this long before it is copied, where there is no better proof.",
        live=True,
    )
    settle_closed: float = option(
        "500ms",
        TIME,
        "The same for closed files, as some programs open them again; <= settle.",
        at_most="settle",
        live=True,
    )
    scan_interval: float = option(
        "10s", PERIOD, "The whole source is looked through this often, as file events can get lost.", live=True
    )
    done_suffix: str | None = option(
        None, SUFFIX, "Such as .done: NAME is delivered when its writer has made NAME.done beside it, to say so."
    )

    remove_empty_folders: bool = option(
        False, SWITCH, "Remove the source's folders that deliveries have emptied, where copy.on_success removes files."
    )

    @property
    def excluded(self) -> tuple[str, ...]:
        """The patterns of all that is left alone."""
        return (*self.exclude, *(pattern for name in self.exclude_presets for pattern in PRESETS[name]))


@attrs.frozen(kw_only=True)
class Destination:
    """Where the files go. Moved to another filesystem on purpose? Start once with --accept-new-destination."""

    path: str | None = option(None, PATH, "The folder that receives the files; it must exist.")
    if_exists: Literal["rename", "overwrite", "skip", "fail"] | None = option(
        None,
        one_of("rename", "overwrite", "skip", "fail", None),
        "For names that are taken; null: rename in watch, and where on_success is not keep; else overwrite.",
    )
    min_free: MinFree = option(
        "1%", MIN_FREE, "Files wait rather than leave less space than this, as others write there too.", live=True
    )
    check_interval: float = option(
        "10s", PERIOD, "The destination's health and free space are looked at this often.", live=True
    )
    require_mount: bool = option(
        False, SWITCH, "Wait until something is mounted there; files would fill the local disk otherwise."
    )
    marker: str | None = option(
        None,
        MARKER,
        "A file that must exist in the destination folder, to tell the right volume from others.",
    )
    routes: tuple[Rule, ...] = option(
        [],
        ROUTES,
        'What does not keep its path, such as [{match: "*.mxf", to: "KAMERA/{name}"}]; the first that matches counts.',
    )


@attrs.frozen(kw_only=True)
class Growing:
    """What happens to files that are still being written."""

    mode: Literal["follow", "wait"] = option(
        "follow",
        one_of("follow", "wait"),
        "Copy them while they grow, and sync stays for them; or wait for the close, and sync leaves them.",
        live=True,
    )
    min_size: int = option(
        "16MiB", SIZE, "Smaller ones wait until they are closed, as most of them soon are.", live=True
    )
    transfers: int = option(
        8, COUNT, "Files followed at the same time, each with a lane of its own beside copy.transfers.", live=True
    )
    headroom: int = option(
        "0B", SIZE, "Stay this far behind the end, for recorders that write its last part more than once.", live=True
    )
    poll: float = option(
        "250ms", duration("50ms"), "Look at each this often, where no event tells that it has grown.", live=True
    )
    reconcile: Literal["full", "edges"] = option(
        "full",
        one_of("full", "edges"),
        "Compare all of it once it is closed, or its first and last 64 MiB only, for slow source disks.",
        live=True,
    )
    include: tuple[str, ...] = option(
        [], PATTERNS, "Only files that match one of these are followed; all, where there is none.", live=True
    )
    exclude: tuple[str, ...] = option(
        [], PATTERNS, "Files that match one of these wait until they are closed.", live=True
    )


@attrs.frozen(kw_only=True)
class Copy:
    """How files are copied."""

    transfers: int = option(4, COUNT, "Files or bundles copied at the same time, to keep a network busy.", live=True)
    movers: int = option(4, COUNT, "Processes for files, as many again for growing ones: a dead mount stops only them.")
    verify: Literal["size", "transfer", "readback"] = option(
        "readback",
        one_of("size", "transfer", "readback"),
        "Compare sizes; what was read with what was written; or what is read back, which finds most.",
    )
    checksum: bool = option(
        False,
        SWITCH,
        "Compare contents with what is there already, byte for byte: size and time can agree by chance.",
    )
    on_success: OnSuccess = option(
        "keep",
        ON_SUCCESS,
        "For delivered source files; DIR is on the source's filesystem, as they are moved there.",
    )
    manifest: Literal["none", "xxh128sum", "sha256sum", "ascmhl"] = option(
        "none",
        one_of("none", "xxh128sum", "sha256sum", "ascmhl"),
        "Have delivered files listed with their sums, for others to check: xxhsum -c, sha256sum -c, ASC MHL.",
    )
    manifest_per: Literal["folder", "day"] = option(
        "folder",
        one_of("folder", "day"),
        "One manifest in each folder, or one a day for all; ASC MHL: a history for each folder at the top, or one.",
    )
    order: Literal["oldest", "newest", "smallest", "largest", "name"] = option(
        "oldest",
        one_of("oldest", "newest", "smallest", "largest", "name"),
        "Which of the files that are ready comes first, as far as they are known yet.",
        live=True,
    )
    bwlimit: Limit = option(
        "off",
        LIMIT,
        "The most that all transfers use, such as 20MiB/s, or by the clock: 08:00,20MiB 18:00,off Sat-08:00,off.",
        live=True,
    )
    stall_timeout: float = option(
        "30s",
        duration("1s"),
        "An operation without progress for this long has failed; dead mounts never answer.",
    )
    checkpoint_size: int = option(
        "256MiB",
        size("8MiB"),
        "Progress is made durable after this much, 8 MiB or more, so that no more is ever copied again.",
        live=True,
    )
    checkpoint_time: float = option(
        "5s", duration("1ms"), "Progress is made durable after this long too, for slow destinations.", live=True
    )
    done_file: str | None = option(
        None, SUFFIX, "Such as .done: make an empty NAME.done beside NAME, last of all, for those who wait for it."
    )
    gate: tuple[str, ...] | None = option(
        None,
        command("{partial}", "{source}", "{name}", "{size}"),
        "A program that looks at the copy before it gets its final name; unless it ends with 0, the file has failed.",
    )
    gate_timeout: float = option("10m", PERIOD, "A file has failed too if the gate takes longer than this.")


@attrs.frozen(kw_only=True)
class Retry:
    """What happens after an error with one file."""

    retries: int = option(
        5,
        whole("whole number from 0", range(2**63)),
        "A file is tried again this often; then it failed, until it changes.",
        live=True,
    )
    longest: float = option("60s", TIME, "The longest pause before another attempt; pauses double up to it.", live=True)
    first: float = option(
        "1s", TIME, "The first pause, as most errors pass soon; <= longest.", at_most="longest", live=True
    )

    def pause(self, attempt: int) -> float:
        """Return the seconds after so many failed attempts: twice as long each time, up to ``longest``."""
        return min(self.longest, self.first * 2.0 ** min(attempt - 1, 32)) if attempt else 0.0

    def longer(self, pause: float) -> float:
        """Return the seconds after a *pause* that did not help: twice as long, and never quite the same for all."""
        return min(self.longest, max(self.first, pause * 2)) * random.uniform(0.8, 1.0)


@attrs.frozen(kw_only=True)
class Metadata:
    """What is copied beside the content."""

    xattrs: bool = option(True, SWITCH, "Copy extended attributes (user.*) where both ends have them.")


@attrs.frozen(kw_only=True)
class Feed:
    """Watching trioft at work: the feed, the page, health and metrics, all on one port."""

    listen: Address | None = option(
        None, ADDRESS, "The port, such as 127.0.0.1:8080; null: none. Others than loopback need a token."
    )
    token: str | None = option(
        None, TOKEN, "Who has it may watch; TRIOFT_FEED_TOKEN in the environment does the same, unseen by others."
    )
    control: bool = option(False, SWITCH, "Let who watches also pause, resume, retry and cancel.")
    hosts: tuple[str, ...] = option(
        [], NAMES, "Names under which the port is reached, beside addresses: pages elsewhere cannot borrow them."
    )
    base_path: str | None = option(
        None, BASE_PATH, "The path below which a proxy has the port, such as /trioft, where it passes that on."
    )
    tls_cert: str | None = option(None, PATH, "The certificate chain (PEM), for https; with tls_key.")
    tls_key: str | None = option(None, PATH, "Its key (PEM).")
    stalled_after: float = option(
        "10m", TIME, "Unhealthy, at /healthz, is who has files waiting and finished none for this long."
    )


@attrs.frozen(kw_only=True)
class Hooks:
    """Programs that are told what has come of each file, as JSON on standard input; one runs at a time."""

    delivered: tuple[str, ...] | None = option(None, command(), "Told of each file that is at the destination.")
    failed: tuple[str, ...] | None = option(None, command(), "Told of each file that has failed.")
    timeout: float = option("30s", PERIOD, "One that takes longer is ended, as others wait for it.")


@attrs.frozen(kw_only=True)
class Log:
    """What is logged: by watch; by sync only where it is told so by file, or by format: json."""

    level: Literal["debug", "info", "warning", "error"] = option(
        "info", one_of("debug", "info", "warning", "error"), "Messages of less weight are not written.", live=True
    )
    format: Literal["text", "json"] = option(
        "text", one_of("text", "json"), "Lines of key=value for people and grep, or JSON objects for programs."
    )
    file: str | None = option(None, PATH, "Log to this file instead; standard error then has sentences for people.")
    max_size: int = option("10MiB", size("1KiB"), "The file is rotated (FILE.1, FILE.2, …) before it exceeds this.")
    keep: int = option(5, COUNT, "So many rotated files are kept, so that logs do not fill the disk.")


@attrs.frozen(kw_only=True)
class Agent:
    """What all jobs share; each has its own limits too."""

    transfers: int | None = option(
        None,
        COUNT_OR_NONE,
        "Files or bundles copied at the same time by all jobs; recordings do not count, they do not wait.",
    )
    bwlimit: Limit = option(
        "off", LIMIT, "The most that all jobs together use, such as 100MiB/s, or by the clock.", live=True
    )


@attrs.frozen(kw_only=True)
class State:
    """What trioft remembers."""

    dir: str | None = option(None, PATH, "The folder of the ledgers; null: the user's state folder for trioft.")
    keep_history: float = option("14d", TIME, "The history goes back this long, so that it does not grow for ever.")
    shutdown_grace: float = option("10s", TIME, "After the signal to stop, this long remains to reach a checkpoint.")


@attrs.define(kw_only=True)
class Config:
    """
    All options.

    While an agent runs, a group may be replaced as a whole (``settings``): who reads an option from here at the moment
    of use has the one in effect, who keeps a group keeps what was.
    """

    source: Source = Source()
    destination: Destination = Destination()
    growing: Growing = Growing()
    copy: Copy = Copy()
    retry: Retry = Retry()
    metadata: Metadata = Metadata()
    feed: Feed = Feed()
    hooks: Hooks = Hooks()
    log: Log = Log()
    agent: Agent = Agent()
    state: State = State()
    jobs: Mapping[str, Config] = attrs.field(factory=dict)
    """By name; empty where there is only one, without a name, which is this. The groups of the agent are in each."""

    def of(self, job: str | None) -> Config:
        """Return the options of one *job*."""
        return self if job is None else self.jobs[job]


GROUPS: dict[str, type[Any]] = {
    group.name: type(group.default) for group in attrs.fields(Config) if attrs.has(type(group.default))
}
# Those that belong to the agent alone; of the others, a job may have its own.
AGENT_GROUPS = ("feed", "log", "agent", "state")
JOB_GROUPS = tuple(group for group in GROUPS if group not in AGENT_GROUPS)
