"""How much is on its way to a destination behind a network, before it is waited for."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from trioft.core.answers import Step
from trioft.core.model import KIB, MIB
from trioft.movers.ops import linux
from trioft.movers.ops.folder import pace


@pytest.mark.parametrize("rate", [16 * KIB, 64 * KIB, 10 * MIB, 1024 * MIB])
def test_each_wait_takes_seconds_at_any_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    """However slow the link is, something is told long before thirty seconds; a fast one is hardly ever waited for."""
    now = 0.0
    waiting = 0
    waits: list[float] = []
    write = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        nonlocal waiting
        waiting += len(data)
        return write(fd, data[:1], offset) and len(data)

    def fdatasync(fd: int) -> None:
        nonlocal now, waiting
        now, waiting = now + waiting / rate + 0.05, 0
        waits.append(now)

    monkeypatch.setattr(pace, "_sizes", {})
    monkeypatch.setattr(linux, "SHARED", {0, *range(1 << 4), linux.EXT4, linux.TMPFS, linux.OVERLAYFS, linux.XFS})
    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now))
    told: list[Step] = []
    fd = os.open(tmp_path / "partial", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        writer = pace.Pace(fd, b"partial", told.append)
        block = memoryview(bytes(8 * MIB))
        for number in range(2 if rate < MIB else 64):
            writer.write(number * len(block), block)
    finally:
        os.close(fd)
    pauses = [after - before for before, after in zip([0.0, *waits], waits, strict=False)]
    assert max(pauses) < 10
    assert len(told) == len(waits) > 0
    if rate == 1024 * MIB:
        assert len(waits) < 20, "512 MiB"


def test_a_local_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the kernel writes as fast as it can, and what settles is waited for anyway."""
    monkeypatch.setattr(linux, "SHARED", set())
    monkeypatch.setattr(os, "fdatasync", lambda fd: pytest.fail("it was waited for"))
    fd = os.open(tmp_path / "partial", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        pace.Pace(fd, b"partial", lambda _: None).write(0, memoryview(bytes(MIB)))
        assert os.fstat(fd).st_size == MIB
    finally:
        os.close(fd)
