"""Files with holes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def make_sparse(path: Path, size: int, *parts: tuple[int, bytes]) -> None:
    """Make a file of *size* bytes with nothing in it but *parts*."""
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, content in parts:
            file.seek(offset)
            file.write(content)
    os.utime(path, (1e9, 1e9))
    if os.stat(path).st_blocks * 512 > size // 2:
        pytest.skip("this filesystem keeps no holes")
