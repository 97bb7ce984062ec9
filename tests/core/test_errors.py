"""The table from an errno to what is done about it, and the words in which a trouble is told."""

from __future__ import annotations

import errno
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioft.core.errors import (
    IDENTIFY,
    NO_MARKER,
    ConfigError,
    FileTrouble,
    LedgerError,
    LockedError,
    Remedy,
    Side,
    TrioftError,
    Trouble,
    UnusableError,
    classify,
    hint_for,
    may_concern_all,
    show_path,
    trouble_of,
)

OPERATIONS = ("open", "create", "mkdir", "read", "write", "fsync", "read back", "close", "stat", "rename", "unlink")

# fmt: off
GONE = [
    "ESTALE", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ETIMEDOUT", "ENOTCONN",
    "ESHUTDOWN", "ENODEV", "ENXIO", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EREMOTEIO",
]
FULL = ["ENOSPC", "EDQUOT"]
NEVER = [
    "EACCES", "EPERM", "ENAMETOOLONG", "EROFS", "EISDIR", "ENOTDIR", "ELOOP", "EINVAL", "EFBIG", "EILSEQ", "EEXIST",
    "EOPNOTSUPP", "EXDEV", "ECANCELED",
]
LATER = ["EBUSY", "ETXTBSY", "EAGAIN", "EINTR", "ENOENT", "ENOLCK", "EMFILE", "ENFILE", "ENOMEM", "EDEADLK"]
# fmt: on

# errno, what is done at the destination, what is done at the source
TABLE = [
    *((name, Remedy.DESTINATION, Remedy.SOURCE) for name in GONE),
    ("EIO", Remedy.DESTINATION, Remedy.RETRY),  # of a disk, it is a bad sector
    *((name, Remedy.SPACE, Remedy.RETRY) for name in FULL),
    *((name, Remedy.GIVE_UP, Remedy.GIVE_UP) for name in NEVER),
    *((name, Remedy.RETRY, Remedy.RETRY) for name in LATER),
]
# A network server that will not replace a file which somebody has open says so in these words.
REFUSED_RENAMES = {"EACCES", "EPERM", "EBUSY"}


def trouble(number: int | None, op: str = "write", side: str = Side.DESTINATION, path: bytes = b"a/b") -> Trouble:
    return Trouble(side, op, path, 0, number, "words")


# --- What is done about it


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize(("name", "at_destination", "at_source"), TABLE, ids=[name for name, *_ in TABLE])
def test_every_errno_has_its_remedy(name: str, at_destination: Remedy, at_source: Remedy, op: str) -> None:
    """Only the outage of an end closes its gate, and only what can never succeed is given up at once."""
    number = getattr(errno, name)
    if op == "rename" and name in REFUSED_RENAMES:
        at_destination = Remedy.RETRY
    assert classify(trouble(number, op, Side.DESTINATION)) == at_destination
    assert classify(trouble(number, op, Side.SOURCE)) == at_source


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("op", OPERATIONS)
def test_errno_that_nobody_thought_of_is_temporary(op: str, side: Side) -> None:
    """Nothing is given up for ever, and nothing stops all transfers, because of an error that is not in the table."""
    known = {getattr(errno, name) for name, *_ in TABLE}
    unknown = (set(errno.errorcode) | {0, 9999}) - known - {errno.ENOTEMPTY}
    assert {classify(trouble(number, op, side)) for number in unknown} == {Remedy.RETRY}
    assert {hint_for(trouble(number, op, side)) for number in unknown} == {
        "trioft does not know this error, and takes it for temporary"
    }


@pytest.mark.parametrize("side", list(Side))
def test_what_trioft_finds_itself_is_temporary(side: Side) -> None:
    """A digest that does not match, or a source that changed, has no errno; the next attempt may be well."""
    assert classify(trouble(None, "read back", side)) == Remedy.RETRY


# --- How it is told


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (
            Trouble(Side.DESTINATION, "write", b"day 1/a.mxf", 4096, errno.ENOSPC, "No space left on device"),
            "write 'day 1/a.mxf' at the destination, byte 4096: No space left on device (ENOSPC)",
        ),
        (
            Trouble(Side.SOURCE, "open", b"a", None, errno.EACCES, "Permission denied"),
            "open 'a' at the source: Permission denied (EACCES)",
        ),
        (
            Trouble(Side.DESTINATION, "read back", b"a", 0, None, "the destination holds other bytes"),
            "read back 'a' at the destination, byte 0: the destination holds other bytes",
        ),
        (
            Trouble(Side.DESTINATION, "open", b"", None, errno.ENODEV, "the folder is not there"),
            "open the destination: the folder is not there (ENODEV)",
        ),
        (
            Trouble(Side.SOURCE, "read", b"a", None, 9999, "Unknown error"),
            "read 'a' at the source: Unknown error (9999)",
        ),
    ],
    ids=["all", "no-offset", "no-errno", "the-end-itself", "unknown-errno"],
)
def test_trouble_names_operation_path_offset_and_errno(told: Trouble, text: str) -> None:
    """Promise 8: a person can tell from one line what failed, where, at which byte, and why."""
    assert str(told) == text
    assert str(FileTrouble(told)) == text


@given(st.binary(max_size=40))
def test_trouble_is_one_printable_line(path: bytes) -> None:
    """No name of a file can break a log line, or do something to the terminal."""
    assert str(trouble(errno.EIO, path=path)).isprintable()


def test_os_errors_are_translated_with_the_systems_own_words() -> None:
    """The text is that of the errno; the path is the one below the root, not the one of the system call."""
    error = OSError(errno.EDQUOT, "something", "/mnt/nas/.hidden")
    assert trouble_of(error, Side.DESTINATION, "fsync", b"a", 7) == Trouble(
        Side.DESTINATION, "fsync", b"a", 7, errno.EDQUOT, os.strerror(errno.EDQUOT)
    )
    assert trouble_of(OSError("no number"), Side.SOURCE, "read", b"a") == Trouble(
        Side.SOURCE, "read", b"a", None, None, "no number"
    )


def test_trouble_survives_the_way_out_of_a_mover() -> None:
    """Nothing of what a mover knows about a trouble is lost on the way to the agent."""
    told = trouble(errno.EIO, path=b"\xff\n")
    copy = pickle.loads(pickle.dumps(FileTrouble(told)))
    assert type(copy) is FileTrouble
    assert copy.trouble == told


# --- Hints


@pytest.mark.parametrize("name", NEVER + FULL)
@pytest.mark.parametrize("side", list(Side))
def test_everything_that_a_person_has_to_solve_comes_with_a_hint(name: str, side: Side) -> None:
    """What fails for good, and what waits for space, says what a person can do about it."""
    hint = hint_for(trouble(getattr(errno, name), "open", side))
    assert hint
    assert "{" not in hint


@pytest.mark.parametrize(
    "name", ["EROFS", "ENAMETOOLONG", "EINVAL", "EILSEQ", "EFBIG", "EOPNOTSUPP", "ENOSPC", "EDQUOT"]
)
def test_hint_speaks_of_the_side_where_it_happened(name: str) -> None:
    """A source that is mounted read-only is no reason to look at the destination."""
    number = getattr(errno, name)
    assert "destination" in (hint_for(trouble(number, "rename", Side.DESTINATION)) or "")
    assert "destination" not in (hint_for(trouble(number, "rename", Side.SOURCE)) or "")


def test_a_hint_is_about_what_is_in_the_way() -> None:
    """A limit of this process, a whole path that is too long, something that is called as a marker is."""
    limit = "this process may write (ulimit -f) no file of more than 1,024 bytes, and this one has 2,048"
    hint = hint_for(Trouble(Side.DESTINATION, "create", b"a", None, errno.EFBIG, limit))
    assert hint is not None
    assert ("filesystem" in hint, "ulimit -f" in hint) == (False, True)
    told = Trouble(Side.SOURCE, "open", b"folder/" * 720 + b"a", None, errno.ENAMETOOLONG, "File name too long")
    assert "path is too long for this system" in (hint_for(told) or "")
    assert len(str(told)) < 400
    assert "cannot hold a name" in (hint_for(told._replace(path=b"x" * 256)) or "")
    in_the_way = hint_for(Trouble(Side.DESTINATION, "stat", b"a.ok", None, errno.EEXIST, NO_MARKER)) or ""
    assert ("if-exists" in in_the_way, "copy.done_file" in in_the_way) == (False, True)


@pytest.mark.parametrize("op", ["write", "fsync", "read"])
def test_hint_about_a_name_is_given_only_where_a_name_was_used(op: str) -> None:
    """EINVAL has many causes: renaming the file helps only where the name was refused."""
    assert hint_for(trouble(errno.EINVAL, op)) is None
    assert "name" in (hint_for(trouble(errno.EINVAL, "create")) or "")


@pytest.mark.parametrize("number", [None, errno.EIO, errno.ETIMEDOUT, errno.EBUSY])
def test_where_there_is_nothing_better_than_to_wait_there_is_no_hint(number: int | None) -> None:
    """A hint that helps nobody is noise."""
    assert hint_for(trouble(number)) is None


@pytest.mark.parametrize("side", list(Side))
def test_another_filesystem_is_answered_with_what_to_mount(side: Side) -> None:
    """Who has moved an end on purpose, learns how to say so."""
    hint = hint_for(Trouble(side, IDENTIFY, b"", None, errno.ENODEV, "nothing is mounted there")) or ""
    assert f"mount the right {side}" in hint
    assert f"--accept-new-{side}" in hint


@pytest.mark.parametrize("name", NEVER)
def test_only_a_probe_can_tell_whether_the_whole_destination_is_refused(name: str) -> None:
    """A share that has become read-only, or lost its permissions, is no reason to fail thousands of files."""
    number = getattr(errno, name)
    assert may_concern_all(trouble(number)) == (name in ("EACCES", "EPERM", "EROFS"))
    assert not may_concern_all(trouble(number, side=Side.SOURCE))


# --- Commands that end


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrioftError("text", hint="hint"), 1),
        (ConfigError(["one", "two"], hint="hint"), 2),
        (UnusableError("text", hint="hint"), 3),
        (LockedError("text", hint="hint"), 5),
        (LedgerError("text", hint="hint"), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_error_that_ends_a_command_has_an_exit_code_and_a_hint(error: TrioftError, code: int) -> None:
    """The exit code and the hint belong to the error, not to whoever prints it."""
    assert error.exit_code == code
    assert error.hint == "hint"
    assert type(error)(["x"] if isinstance(error, ConfigError) else "x").hint is None  # type: ignore[arg-type]


def test_configuration_error_tells_every_problem_on_its_own_line() -> None:
    """All that is wrong is told at once."""
    assert str(ConfigError(["one", "two"])) == "one\ntwo"


# --- Paths


SHOWN = [
    (b"", ""),
    (b"day 1/take 2.mxf", "day 1/take 2.mxf"),
    ("Müller/音声.wav".encode(), "Müller/音声.wav"),
    ("\U0001f3ac.mov".encode(), "\U0001f3ac.mov"),
    (b'it\'s "quoted"', 'it\'s "quoted"'),
    (b"a\nb", "a\\nb"),
    (b"a\tb\rc", "a\\tb\\rc"),
    (b"a\x00b", "a\\x00b"),
    (b"\x1b[31mred", "\\x1b[31mred"),
    (b"\x7f", "\\x7f"),
    (b"\xff", "\\xff"),
    (b"caf\xe9", "caf\\xe9"),
    (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
    (b"half \xe9\x9f", "half \\xe9\\x9f"),
    ("left\u202eright".encode(), "left\\u202eright"),
    ("zero\u200bwidth".encode(), "zero\\u200bwidth"),
    ("two\u2028lines".encode(), "two\\u2028lines"),
    ("no-break\u00a0space".encode(), "no-break\\xa0space"),
]


@pytest.mark.parametrize(("path", "text"), SHOWN, ids=[text for _, text in SHOWN])
def test_path_is_shown_as_it_is_or_escaped(path: bytes, text: str) -> None:
    """Readable names stay readable; control characters, invisible ones and bytes that are no UTF-8 are escaped."""
    assert show_path(path) == text


def test_different_things_are_escaped_differently() -> None:
    """Of the names above, no two look the same."""
    assert len({show_path(path) for path, _ in SHOWN}) == len(SHOWN)


@given(st.binary(max_size=60) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_every_path_is_safe_to_print(path: bytes) -> None:
    """Whatever a file is called, its name is one line, can be encoded, and does nothing to the terminal."""
    text = show_path(path)
    assert text.isprintable()
    assert text.encode("utf-8").decode("utf-8") == text


@given(st.text(max_size=40).filter(str.isprintable))
def test_printable_text_is_shown_unchanged(text: str) -> None:
    """What can be read is not touched."""
    assert show_path(text.encode("utf-8", "surrogateescape")) == text
