"""
What a name is, the destination decides: which names it takes for one, and how long one may be.
"""

from __future__ import annotations

from typing import NamedTuple

LONGEST = 255  # bytes of one name, on every filesystem that Linux mounts for writing


class Naming(NamedTuple):
    """How a destination treats names, as a probe has found out."""

    folds_case: bool = False  # CLIP.MXF and clip.mxf are one name
    normalises: bool = False  # so are an é that is one character, and one that is two
    trims: bool = False  # so are a name, and the same with dots or blanks after it
    name_max: int = LONGEST  # bytes

    @property
    def folds(self) -> bool:
        """Whether it takes any two names for one."""
        return self.folds_case or self.normalises or self.trims

    def fold(self, path: bytes) -> bytes:
        """Return the same for all paths that are one at the destination; for some that are two there, too."""
        if not self.folds:
            return path
        import unicodedata  # most destinations never need it

        text = path.decode("utf-8", "surrogateescape")
        if self.trims:
            text = "/".join(part.rstrip(". ") or part for part in text.split("/"))
        if self.folds_case:
            text = unicodedata.normalize("NFD", text).casefold()
        if self.folds_case or self.normalises:
            text = unicodedata.normalize("NFC", text)
        return text.encode("utf-8", "surrogateescape")


# What any destination may do to the spelling of a name that it still takes for the same, but for its case.
SPELLING = Naming(normalises=True, trims=True)
CASE = Naming(folds_case=True, normalises=True, trims=True)
