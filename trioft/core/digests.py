"""
Digests of blocks and of files: xxh3-128.
"""

from __future__ import annotations

import xxhash


def block_digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the xxh3-128 of one block: 16 bytes."""
    return xxhash.xxh3_128_digest(data)


def file_digest(block_digests: bytes) -> bytes:
    """Return a file's digest: the xxh3-128 of its block digests in order."""
    return xxhash.xxh3_128_digest(block_digests)
