"""Names: what trioft makes of names itself is legal, and what a pattern matches."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from names import EURO, legal_names
from trioft.core.errors import show_path
from trioft.core.naming import NAME_MAX, Wanted, belongs_to, is_own, is_partial, lies_at, numbered, partial_of

# --- Globs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "matches", "others"),
    [
        ("a", ["a", "x/a", "a/b", "x/a/b/c"], ["b", "aa", "ab", "x/ab", "A"]),
        ("a/", ["a", "a/b", "x/a/b"], ["ab"]),
        ("*", ["a", "x/a", ".a", "a\nb"], []),
        ("*.mov", ["a.mov", ".mov", "x/y/a.mov", "a.mov/b"], ["a.MOV", "a.mov2", "amov", "x.mov_"]),
        ("a?c", ["abc", "x/a.c", "a\nc", "aäc"], ["ac", "abbc", "a/c"]),
        ("?", ["a", "ä", "x/a"], ["ab"]),
        ("x/*", ["x/a", "x/a/b"], ["x", "y/x/a", "a"]),
        ("x/*/a", ["x/y/a", "x/y/a/b"], ["x/a", "x/y/z/a"]),
        ("x/**", ["x/a", "x/y/a"], ["x", "y/x/a", "xx/a"]),
        ("x/**/a", ["x/a", "x/y/a", "x/y/z/a", "x/a/b"], ["a", "x/ya", "y/x/a"]),
        ("**/a", ["a", "x/a", "x/y/a"], ["xa", "x/ya"]),
        ("**/x/a", ["x/a", "y/x/a"], ["a", "yx/a"]),
        ("**", ["a", "x/a"], []),
        ("a**b", ["ab", "a/b", "a/x/b", "axxb"], ["a", "ba"]),
        ("[abc]", ["a", "x/b"], ["d", "ab", ""]),
        ("[!abc]", ["d", "x/e", "ä"], ["a", "dd"]),
        ("[^abc]", ["d"], ["a"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "-x"]),
        ("[]]", ["]"], ["["]),
        ("[!]]", ["["], ["]"]),
        ("[[]", ["["], ["]"]),
        ("[", ["["], ["a"]),
        ("[a", ["[a"], ["a"]),
        ("[*]", ["*", "x/*"], ["a"]),
        ("[?]", ["?"], ["a"]),
        ("[\\]", ["\\"], ["a"]),
        ("a[!b]c", ["adc"], ["a/c", "abc"]),
        ("x[/]y", [], ["x/y"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a+(b)|c$^", ["a+(b)|c$^"], ["aab"]),
        ("a\nb", ["a\nb"], ["a", "b"]),
        ("ä\udcff", ["ä\udcff"], ["ä"]),
    ],
)
def test_globs(glob: str, matches: list[str], others: list[str]) -> None:
    """What patterns mean: the table that README sums up."""
    wanted, unwanted = Wanted([glob], []), Wanted([], [glob])
    for path in map(os.fsencode, matches):
        assert wanted.file(path), path
        assert not unwanted.file(path), path
    for path in map(os.fsencode, others):
        assert not wanted.file(path), path
        assert unwanted.file(path), path


def test_folders_that_are_excluded_are_not_even_read() -> None:
    """An exclude that matches a folder saves reading it; an include does not, as what it matches may lie deeper."""
    wanted = Wanted(["*.mov"], ["tmp", "x/y"])
    assert [wanted.folder(path) for path in (b"tmp", b"a/tmp", b"x/y", b"x/y/z")] == [False] * 4
    assert [wanted.folder(path) for path in (b"a", b"x", b"y", b"z/x/y")] == [True] * 4
    assert wanted.file(b"a.mov")
    assert not wanted.file(b"a/tmp/b.mov")


@given(legal_names)
def test_a_name_can_be_written_as_a_pattern(name: bytes) -> None:
    """Every name can be chosen by a pattern of its own: with its special characters in brackets."""
    glob = "".join(f"[{c}]" if c in "*?[" else c for c in os.fsdecode(name))
    wanted = Wanted([glob], [])
    assert wanted.file(name)
    assert wanted.file(b"x/" + name)
    assert not wanted.file(name + b"x")


# --- Names that trioft makes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"a.mov", [b"a.mov", b"a_1.mov", b"a_2.mov"]),
        (b"x.y/a", [b"x.y/a", b"x.y/a_1", b"x.y/a_2"]),
        (b"a.tar.gz", [b"a.tar.gz", b"a.tar_1.gz", b"a.tar_2.gz"]),
        (b".hidden", [b".hidden", b".hidden_1", b".hidden_2"]),
        (b"a.", [b"a.", b"a_1.", b"a_2."]),
        (b"x" * 255, [b"x" * 255, b"x" * 253 + b"_1", b"x" * 253 + b"_2"]),
        (b"x" * 251 + b".mov", [b"x" * 251 + b".mov", b"x" * 249 + b"_1.mov", b"x" * 249 + b"_2.mov"]),
        (EURO, [EURO, EURO[:252] + b"_1", EURO[:252] + b"_2"]),
    ],
)
def test_numbered_names(path: bytes, expected: list[bytes]) -> None:
    """The second file of a name becomes NAME_1.EXT, the third NAME_2.EXT."""
    assert list(itertools.islice(numbered(path), 3)) == expected


def is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(legal_names, st.sampled_from([b"", b"x/", b"x/\xff/"]))
def test_numbered_names_are_legal_and_different(name: bytes, folder: bytes) -> None:
    """However long a name is, a hundred others are made of it: legal, in its folder, UTF-8 if it was, each its own."""
    made = list(itertools.islice(numbered(folder + name), 101))
    assert made[0] == folder + name
    assert len(set(made)) == 101
    for path in made:
        assert path.startswith(folder)
        assert 0 < len(path) - len(folder) <= NAME_MAX
        assert b"/" not in path[len(folder) :]
        assert is_utf8(path[len(folder) :]) or not is_utf8(name)


@given(legal_names, st.sampled_from([b"", b"x/", b"x/\xff/"]), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_partials_are_legal_and_recognized(name: bytes, folder: bytes, dev: int, ino: int) -> None:
    """A partial lies beside its file, has a legal name that is UTF-8 if the file's is, and is known as a partial."""
    partial = partial_of(folder + name, dev, ino)
    assert partial.startswith(folder)
    assert len(partial) - len(folder) <= NAME_MAX
    assert b"/" not in partial[len(folder) :]
    assert is_partial(partial)
    assert partial[len(folder) :].startswith(name[:216])
    assert is_utf8(partial[len(folder) :]) or not is_utf8(name)
    assert not Wanted([], []).file(partial)


@given(legal_names, st.sampled_from([b"", b"x/"]), st.integers(34, 255))
def test_partials_fit_into_what_the_destination_holds(name: bytes, folder: bytes, name_max: int) -> None:
    """Where names may be less long than elsewhere, a partial's is shortened, and is still a partial of its ledger."""
    partial = partial_of(folder + name, 1, 2, ledger=b"mine", name_max=name_max)
    assert len(partial) - len(folder) <= name_max
    assert belongs_to(partial, b"mine")


def test_partials_of_different_ledgers_are_different() -> None:
    """Two machines of one make, with files of one name, device and inode, do not meet in one partial."""
    mine, theirs = (partial_of(b"C0001.MXF", 2065, 12, ledger=ledger) for ledger in (b"mine", b"theirs"))
    assert mine != theirs
    assert (belongs_to(mine, b"mine"), belongs_to(mine, b"theirs")) == (True, False)
    assert not belongs_to(b"movie.mkv.1a2b3c4d.partial", b"mine")
    assert not belongs_to(b"C0001.MXF.trioft-partial", b"mine")


@pytest.mark.parametrize(
    ("name", "own"),
    [
        (b"a.0123456789abcdef.trioft-partial", True),
        (b"x/a.trioft-partial", True),
        (b"x/.trioft-claim-1", True),
        (b".trioft-/a", False),
        (b"data.0123abcd.partial", False),
        (b"a.trioft-partial.mov", False),
        (b"my.trioft-notes", False),
    ],
)
def test_what_trioft_keeps_for_itself_is_told_from_the_names_of_others(name: bytes, own: bool) -> None:
    """Files of its own are not copied; those of other programs, newer rclones among them, are ordinary files."""
    assert is_own(name) is own
    assert Wanted([], []).file(name) is not own


@given(legal_names, legal_names, st.integers(0, 2**32), st.integers(0, 2**32))
def test_partials_of_different_files_are_different(one: bytes, other: bytes, ino: int, other_ino: int) -> None:
    """Two files never share a partial, also where their names are too long to be told apart by them."""
    assume((one, ino) != (other, other_ino))
    assert partial_of(one, 1, ino) != partial_of(other, 1, other_ino)
    assert partial_of(one, 1, ino) == partial_of(one, 1, ino)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"plain name.mov", "plain name.mov"),
        ("täglich/🎬".encode(), "täglich/🎬"),
        (b"\xff", r"\xff"),
        (b"a\nb\tc", r"a\nb\tc"),
        (b"\x1b[2J", r"\x1b[2J"),
        ("\u202egnp.exe".encode(), r"\u202egnp.exe"),
    ],
)
def test_shown_paths_are_safe_to_print(path: bytes, text: str) -> None:
    """What a terminal would act on, and what is no text, is shown escaped."""
    assert show_path(path) == text
    assert show_path(path).isprintable()


@pytest.mark.parametrize(
    ("path", "folder", "where"),
    [
        (b"/a/b", b"/a", b"b"),
        (b"/a/b/c", b"/a/", b"b/c"),
        (b"/a", b"/a", b""),
        (b"/ab", b"/a", None),
        (b"/a", b"/a/b", None),
        (b"/a", b"/", b"a"),
    ],
)
def test_where_a_path_lies_in_a_folder(path: bytes, folder: bytes, where: bytes | None) -> None:
    """Empty for the folder itself; None outside of it, also where only the names begin alike."""
    assert lies_at(path, folder) == where
