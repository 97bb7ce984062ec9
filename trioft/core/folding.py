"""
What a name is, the destination decides: which names it takes for one, and how long one may be.
"""

from __future__ import annotations

import re
from typing import NamedTuple

LONGEST = 255  # bytes of one name, on every filesystem that Linux mounts for writing
# What Unicode calls default-ignorable: ext4 and f2fs do not see it in folders where capitals make no difference.
_UNSEEN = (
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


class Naming(NamedTuple):
    """How a destination treats names, as a probe has found out."""

    folds_case: bool = False  # CLIP.MXF and clip.mxf are one name
    normalises: bool = False  # so are an é that is one character, and one that is two
    trims: bool = False  # so are a name, and the same with dots or blanks after it
    ignores: bool = False  # so are a name, and the same with characters that are not seen (soft hyphens and the like)
    name_max: int = LONGEST  # bytes

    @property
    def folds(self) -> bool:
        """Whether it takes any two names for one."""
        return self.folds_case or self.normalises or self.trims or self.ignores

    def fold(self, path: bytes) -> bytes:
        """Return the same for all paths that are one at the destination; for some that are two there, too."""
        if not self.folds:
            return path
        import unicodedata  # most destinations never need it

        text = path.decode("utf-8", "surrogateescape")
        if self.ignores:
            text = re.sub(_UNSEEN, "", text)
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
