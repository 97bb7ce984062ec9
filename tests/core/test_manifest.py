"""The lines of manifests, and the files of ASC MHL histories."""

from __future__ import annotations

import os
import subprocess

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from trioft.core import ascmhl
from trioft.core.ascmhl import Creator, Hash, Link, Record, Unreadable
from trioft.core.manifest import is_listed, manifest_of, own_names, sum_of, with_sums
from trioft.core.naming import Wanted

CREATOR = Creator("2026-01-31T12:00:00+01:00", "a host", "1.0")
names = st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & {0, 0x2F} and name not in (b".", b".."))
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


# --- lines ------------------------------------------------------------------------------------------------------------


@given(st.lists(names, min_size=1, max_size=8, unique=True))
def test_sha256sum_finds_a_file_of_any_name(tmp_path_factory: pytest.TempPathFactory, files: list[bytes]) -> None:
    """Names are bytes: newlines, backslashes, a lonely dash and what is no UTF-8 are written as GNU coreutils do."""
    folder = os.fsencode(tmp_path_factory.mktemp("files"))
    for name in files:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(name)
    manifest = with_sums(b"", {name: sum_of("sha256sum", name) for name in files})
    done = subprocess.run(
        ["sha256sum", "--strict", "--quiet", "-c"], input=manifest, cwd=folder, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@given(st.dictionaries(names, st.sampled_from([b"a" * 32, b"b" * 32])), st.dictionaries(names, st.just(b"c" * 32)))
def test_a_manifest_that_is_added_to_keeps_what_it_had(first: dict[bytes, bytes], second: dict[bytes, bytes]) -> None:
    """Each name has one line, with its newest sum; the order does not depend on that of the deliveries."""
    merged = with_sums(with_sums(b"", first), second)
    assert merged == with_sums(b"", first | second)
    assert with_sums(merged, {}) == with_sums(merged, second) == merged


def test_lines_of_somebody_else_stay() -> None:
    """A manifest may have been begun, or commented, by others."""
    line = b"%s  a\n" % (b"0" * 64)
    assert with_sums(b"# made by hand\n" + line.replace(b"  a", b" *./a"), {b"a": bytes(32)}) == (
        b"# made by hand\n" + line
    )
    assert with_sums(line + b"no end", {}) == b"no end\n" + line


def test_a_manifest_lies_with_its_files_or_at_the_top() -> None:
    """Per folder the names are those in the folder; per day they are those below the destination."""
    assert manifest_of("sha256sum", "folder", b"a/b/c", "2026-01-31") == (b"a/b/trioft.sha256", b"c")
    assert manifest_of("xxh128sum", "folder", b"c", "2026-01-31") == (b"trioft.xxh128", b"c")
    assert manifest_of("xxh128sum", "day", b"a/b/c", "2026-01-31") == (b"trioft-2026-01-31.xxh128", b"a/b/c")


@pytest.mark.parametrize("kind", ["sha256sum", "xxh128sum"])
def test_what_changes_is_not_listed_and_not_taken_from_a_source(kind: str) -> None:
    """A manifest has no line for itself, nor does a source's manifest come in the place of that of the destination."""
    for per in ("folder", "day"):
        path, _ = manifest_of(kind, per, b"a/b", "2026-01-31")
        assert not is_listed(kind, path)
        assert not Wanted((), own_names(kind)).file(path)
    for path in (b"a/ascmhl/ascmhl_chain.xml", b"trioft.txt", b"a/trioft-1.sha256", b"my-trioft.sha256"):
        assert is_listed(kind, path)
        assert Wanted((), own_names(kind)).file(path)


# --- ASC MHL ----------------------------------------------------------------------------------------------------------


def test_c4_is_that_of_its_authors() -> None:
    """These are the examples of its specification, and of its reference implementation."""
    empty = "c459dsjfscH38cYeXXYogktxf4Cd9ibshE3BHUo6a58hBXmRQdZrAkZzsWcbWtDg5oQstpDuni4Hirj75GEmTc1sFT"
    assert ascmhl.c4_of(b"") == empty
    assert len(ascmhl.c4_of(b"x")) == 90
    assert ascmhl.text_of("c4", bytes(64)) == "c4" + 88 * "1"
    assert ascmhl.text_of("xxh128", xxhash.xxh3_128_digest(b"x")) == xxhash.xxh3_128_hexdigest(b"x")


@given(st.lists(st.builds(Record, texts, st.integers(0), st.integers(-(2**63), 2**63 - 1), st.just(())), max_size=5))
def test_a_generation_is_read_as_it_was_written(records: list[Record]) -> None:
    """Whatever the names are that XML can hold, and whatever the times."""
    hashes = (Hash("md5", "0" * 32, "verified"), Hash("xxh128", "1" * 32, "verified"))
    written = ascmhl.write_generation((record._replace(hashes=hashes) for record in records), CREATOR)
    read = ascmhl.read_generation(written)
    assert read.tool == "trioft"
    assert set(read.hashes) == {record.path for record in records}
    assert all(its[:2] == list(hashes) for its in read.hashes.values())


@given(st.lists(st.builds(Link, st.just("1"), texts.filter(lambda text: "/" not in text), st.just("c4")), max_size=5))
def test_a_chain_is_read_as_it_was_written(links: list[Link]) -> None:
    """And continues itself, and every beginning of itself, but nothing that has more."""
    chain = ascmhl.write_chain(links)
    assert ascmhl.read_chain(chain) == links
    assert ascmhl.continues(chain, ascmhl.write_chain(links[:-1]))
    more = ascmhl.write_chain([*links, Link("9", "more", "c4")])
    assert ascmhl.continues(more, chain)
    assert not ascmhl.continues(chain, more)


@pytest.mark.parametrize("path", [b"\xff", b"a\0", b"a/\x01", "￾".encode(), b"\xed\xa0\x80"])
def test_names_that_xml_cannot_hold_are_known(path: bytes) -> None:
    """Nothing would be worse than a manifest that no tool can read."""
    assert ascmhl.name_in_xml(path) is None


@given(st.binary() | st.text().map(str.encode))
def test_what_is_no_history_is_said_to_be_none(data: bytes) -> None:
    """Whatever lies in the place of a chain or a generation, it is no bug of trioft's."""
    for read in (ascmhl.read_chain, ascmhl.read_generation):
        with pytest.raises(Unreadable):
            read(data)
    assert not ascmhl.continues(data, data)


def test_a_chain_does_not_lead_out_of_its_folder() -> None:
    """The names in it are those of files beside it."""
    with pytest.raises(Unreadable):
        ascmhl.read_chain(ascmhl.write_chain([Link("1", "../../etc/passwd", "c4")]))


def test_a_generation_is_called_what_the_specification_says() -> None:
    """A number, the folder, the time in UTC; as long as a name may be, and readable by all."""
    assert ascmhl.generation_name(7, b"A001", CREATOR.time) == b"0007_A001_2026-01-31_110000Z.mhl"
    assert ascmhl.generation_name(12345, b"\xff", CREATOR.time) == b"12345_root_2026-01-31_110000Z.mhl"
    assert len(ascmhl.generation_name(1, b"n" * 255, CREATOR.time)) == 255
    assert [ascmhl.generation_number(name) for name in (b"0012_a.mhl", b"0012.mhl", b"a.mhl", b"0012_a.txt")] == [
        12,
        12,
        None,
        None,
    ]
