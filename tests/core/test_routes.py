"""Where files go that do not keep their path: rules, and the names they make."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trioft.config.kinds import Faults, _read_routes
from trioft.core.manifest import own_names
from trioft.core.model import Fingerprint, Found, Routes, Rule
from trioft.core.naming import NAME_MAX, is_own
from trioft.core.routes import FIELDS, Unroutable, explain, faults_of, find_rule, route, target_of

pytestmark = pytest.mark.usefixtures("east_of_greenwich")

# 2026-05-01 12:30:15 UTC
VERSION = Fingerprint(1, 2, 1234, 1_777_638_615 * 10**9 + 5, 7)


def to(template: str, path: bytes = b"a/b/x.tar.gz", **rule: str) -> bytes:
    """Return the name that a rule makes of *path*."""
    rules = (Rule(rule.get("match", "" if "regex" in rule else "*"), rule.get("regex", ""), template),)
    assert list(faults_of(rules[0])) == []
    return target_of(Routes(rules), path, VERSION)


# --- templates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "path", "target"),
    [
        ("{name}", b"a/b/x.mxf", b"x.mxf"),
        ("K/{stem}-{size}{suffix}", b"a/x.tar.gz", b"K/x.tar-1234.gz"),
        ("{stem}|{suffix}|", b".bashrc", b".bashrc||"),
        ("{parent}/new/{name}", b"a/b/x", b"a/b/new/x"),
        ("{parent}/new/{name}", b"x", b"new/x"),
        ("K//{parent}/{name}", b"x", b"K/x"),
        ("K/{path}", b"a/b/x", b"K/a/b/x"),
        ("{mtime:%Y-%m-%d}/{mtime:%H:%M:%S}{suffix}", b"x.mov", b"2026-05-01/14:30:15.mov"),
        ("{mtime:%Y/%m}/100%/{name}", b"x", b"2026/05/100%/x"),
        ("{{{name}}}", b"x", b"{x}"),
        ("{{name}}", b"x", b"{name}"),
        ("K/{name}", b"\xff\n\xe9", b"K/\xff\n\xe9"),
        ("\u00e9/{stem}{suffix}", b"\xc3/x\xa9.\xff", b"\xc3\xa9/x\xa9.\xff"),
    ],
)
def test_a_template_makes_a_path_of_a_file(template: str, path: bytes, target: bytes) -> None:
    """Fields are filled in, braces are doubled, empty parts vanish, and a name keeps every byte it has."""
    assert to(template, path) == target


@pytest.mark.parametrize(
    ("regex", "path", "target"),
    [
        (r"(?P<date>\d{6})_\d{4}_.*Cam\d+\.mxf", b"in/deep/260501_1200_A_Cam1.mxf", b"260501/260501_1200_A_Cam1.mxf"),
        (r"(?P<date>\d{6})_\d{4}_.*Cam\d+\.mxf", b"260501_1200_A_Cam1.mxf.tmp", b"260501_1200_A_Cam1.mxf.tmp"),
        (r"(?P<date>\d+)/.*", b"2026/05/x", b"2026/x"),
        (r"(?P<date>\d+)/.*", b"in/2026/x", b"in/2026/x"),
        (r"(?P<date>\d)?.*", b"x", b"x"),
        (r"(?P<date>.*)", b"\xff\n", b"\xff\n/\xff\n"),
        (r"(?i)(?P<date>a)\.MXF", b"in/A.mxf", b"A/A.mxf"),
    ],
)
def test_a_regex_without_a_slash_is_about_the_name_at_any_depth(regex: str, path: bytes, target: bytes) -> None:
    """As with patterns: with a slash it is about the whole path; it always has to match all of it."""
    assert to("{date}/{name}", path, regex=regex) == target


def test_the_first_rule_that_matches_counts() -> None:
    """Without one, a file keeps its path."""
    rules = (Rule("cards", "", "card/{name}"), Rule("*.mxf", "", "mxf/{name}"), Rule("", "x.*", "x/{name}"))
    paths = [b"cards/1/a.mxf", b"in/b.mxf", b"in/x.mxf", b"in/x.txt", b"in/y.txt"]
    targets = [target_of(Routes(rules), path, VERSION) for path in paths]
    assert targets == [b"card/a.mxf", b"mxf/b.mxf", b"mxf/x.mxf", b"x/x.txt", b"in/y.txt"]


@pytest.mark.parametrize(
    ("template", "regex", "path", "why"),
    [
        ("{x}/name", "(?P<x>.*)-a", b"..-a", "part . or .."),
        ("{x}/name", "(?P<x>.*)-a", b".-a", "part . or .."),
        ("K/{x}", "(?P<x>.*)-a", b"-a", "does not end in the name of a file"),
        ("{x}", "(?P<x>.*)-a", b"-a", "does not end in the name of a file"),
        ("{name}{name}", ".*", b"x" * 128, "more than 255 bytes"),
        ("{x}.trioft-partial", "(?P<x>.*)-a", b"m.0123abcd-a", "keeps for itself"),
    ],
)
def test_what_is_no_name_is_refused_file_by_file(template: str, regex: str, path: bytes, why: str) -> None:
    """Where only the file shows that a rule makes no path of it, this file fails, and says which rule that was."""
    with pytest.raises(Unroutable, match=re.escape(why)):
        to(template, path, regex=regex)
    found = route(Found(path, 0o644, VERSION), Routes((Rule("", "other", "y"), Rule("", regex, template))))
    assert found.trouble is not None
    assert "destination.routes[1]: " in found.trouble.text


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{stem}.done", "'x.tar.done' says there that another file is complete (copy.done_file)"),
        ("K/trioft.sha256", "'K/trioft.sha256' is what trioft calls manifests (copy.manifest)"),
        ("trioft-2026-05-01.sha256", "'trioft-2026-05-01.sha256' is what trioft calls manifests (copy.manifest)"),
        ("trioft.sha256/{name}", "'trioft.sha256/x.tar.gz' is what trioft calls manifests (copy.manifest)"),
    ],
)
def test_no_file_gets_a_name_under_which_trioft_itself_writes(template: str, why: str) -> None:
    """Neither that of a marker nor that of a manifest, where there are such."""
    rules = (Rule("*", "", template),)
    with pytest.raises(Unroutable, match=re.escape(why)):
        target_of(Routes(rules, b".done", own_names("sha256sum")), b"x.tar.gz", VERSION)
    assert target_of(Routes(rules, b".ok", own_names("xxh128sum")), b"x.tar.gz", VERSION)


_TEMPLATES = st.lists(
    st.sampled_from(
        [
            "{",
            "}",
            "{{",
            "}}",
            "/",
            "..",
            ".",
            "a",
            "é",
            "\udcff",
            ".trioft-partial",
            ".trioft-",
            "{mtime:%Y}",
            "{mtime:%}",
        ]
    )
    | st.sampled_from([f"{{{field}}}" for field in (*FIELDS, "x", "y", "")])
    | st.text(max_size=3),
    max_size=6,
).map("".join)
_REGEXES = st.sampled_from(["", "(?P<x>.*)", "(?P<x>[^/]*)/?(?P<y>.*)", "(?P<name>a)", "["]) | st.text(max_size=5)
_PATHS = st.lists(
    st.binary(min_size=1, max_size=20)
    .map(lambda name: name.translate(None, b"\0/"))
    .filter(lambda name: name not in (b"", b".", b"..")),
    min_size=1,
    max_size=3,
).map(b"/".join)


@given(template=_TEMPLATES, regex=_REGEXES, path=_PATHS)
@example(template="{x}/a", regex="(?P<x>..).*", path=b"..b")
@example(template="{y}{x}", regex="(?P<x>[^/]*)/?(?P<y>.*)", path=b"../a")
def test_any_rule_is_refused_or_keeps_files_below_the_destination(template: str, regex: str, path: bytes) -> None:
    """Whatever text it is: no traceback, and no file that leaves the destination or is taken for a partial."""
    try:
        (rule,) = _read_routes([{"regex": regex, "to": template} if regex else {"match": "*", "to": template}])
    except Faults as error:
        assert all(where.startswith("[0]") and text for where, text in error.faults)  # noqa: PT017 (or it is accepted)
        return
    try:
        target = target_of(Routes((rule,)), path, VERSION)
    except Unroutable:
        return
    assert not target.startswith(b"/")
    assert all(part not in (b"", b".", b"..") and len(part) <= NAME_MAX for part in target.split(b"/"))
    assert target == path or not is_own(target)


@given(path=_PATHS, text=st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=9))
def test_what_is_taken_apart_can_be_put_together_again(path: bytes, text: str) -> None:
    """The fields of a path make up that path, and a text with its braces doubled is that text."""
    if not any(map(is_own, path.split(b"/"))):
        for template in ("{path}", "{parent}/{name}", "{parent}/{stem}{suffix}"):
            assert to(template, path) == path
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert to(f"K/_{escaped}") == f"K/_{text}".encode()


def test_a_rule_and_what_it_makes_of_a_file_can_be_told() -> None:
    """Who asks why a file is where it is hears which rule sent it there."""
    routes = Routes((Rule("*.mxf", "", "K/{mtime:%Y}/{name}"), Rule("", "(?P<x>.*)x", "{x}")))
    assert explain(routes, b"a/b", VERSION) == (None, b"a/b", "no rule matches: it goes to a/b")
    number, target, text = explain(routes, b"a/b.mxf", VERSION)
    assert (number, target) == (0, b"K/2026/b.mxf")
    assert text == "destination.routes[0] (match '*.mxf'): it goes to K/2026/b.mxf"
    number, target, text = explain(routes, b"b.mxf", None)
    assert (number, target) == (0, None)
    assert text.endswith("it goes to K/{mtime:%Y}/{name}, as soon as its time and size are known")
    number, target, text = explain(routes, b"x", None)
    assert (number, target) == (1, None)
    assert text.endswith("it cannot be transferred, as '' does not end in the name of a file")


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        (r"(?P<who>(?:a|aa)+)_cam\d\.mxf", b"a" * 60 + b"-cam1.mxf"),
        (r"(?P<who>.*?a.*?a.*?a.*?a.*?a.*?a.*?)_cam\d\.mxf", b"a" * 240),
    ],
)
def test_an_expression_that_takes_too_long_fails_the_file_that_has_the_name(expression: str, name: bytes) -> None:
    """Others are found as ever, and a folder full of such names is done with in seconds."""
    rules = Routes((Rule("", expression, "{who}/{name}"),))
    begun = time.process_time()
    for number in range(500):
        found = route(Found(b"%d/" % number + name, 0o644, VERSION), rules)
        assert found.trouble is not None
        assert "its regex takes too long for this name" in str(found.trouble)
        assert found.trouble.text.startswith("destination.routes[0]: ")
    assert time.process_time() - begun < 20
    assert target_of(rules, b"aaaaaaa_cam1.mxf", VERSION) == b"aaaaaaa/aaaaaaa_cam1.mxf"
    told = explain(rules, name, None)
    assert (told.number, told.target) == (0, None)
    assert "it cannot be transferred, as its regex takes too long" in told.text


def test_expressions_are_what_python_calls_so() -> None:
    """What only another library knows is refused, and what Python knows means the same."""
    assert [key for key, _ in faults_of(Rule("", r"\p{Lu}.*", "{name}"))] == ["regex"]
    rules = (Rule("", r"(?P<a>[[a-z&&]+)(?>x+)(?P<b>\d*+)", "{a}{b}"),)
    assert find_rule(rules, b"[a&xx12") == (0, {"a": "[a&x", "b": "12"})
