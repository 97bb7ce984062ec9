"""Names as the tests make them up: all that Linux allows, the nastiest first."""

from __future__ import annotations

from hypothesis import strategies as st

from trioft.core.naming import NAME_MAX, is_own

LONG_UTF8 = "ä".encode() * 127 + b"x"  # 255 bytes, and no place to cut but between characters
EURO = "€".encode() * 85
NASTY = [
    b"*", b"?", b"[a]", b"[!a]", b"**", b"{a,b}", b"~", b"-rf", b"--", b" ", b" x ", b"\n", b"a\nb", b"\t", b"\r",
    b"\x01", b"\x1b[2J", b"\x7f", b"\\", b"\\n", b"'", b'"', b"`x`", b"$HOME", b"%s", b"%00", b"#", b";", b"|",
    b"&", b"...", b".x", b"x.", b".partial", b"x.partial", b"x.1234567.partial", b"x.1234567G.partial",
    b"x.12345678.partial.", b"_1", b"a_1.b", b"CON", b"a:b", b"\xff", b"\xc3", b"\xe4\xf6", "ä".encode(),
    "a\u0308".encode(), "\u202egnp.exe".encode(), "🎬".encode(), b"\xed\xa0\x80", b"\xed\xb3\xbf", b"x" * 255,
    b"\xff" * 255, b"\x80" * 255, LONG_UTF8, EURO, b"." + b"e" * 254, b"s." + b"e" * 253, b"\n" * 255,
]  # fmt: skip

names = st.one_of(
    st.sampled_from(NASTY),
    st.binary(min_size=1, max_size=NAME_MAX),
    st.text(max_size=NAME_MAX).map(lambda text: text.encode("utf-8", "surrogateescape")[:NAME_MAX]),
    st.integers(200, NAME_MAX).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
).map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"|"))
legal_names = names.filter(lambda name: name not in (b"", b".", b"..") and not is_own(name))
