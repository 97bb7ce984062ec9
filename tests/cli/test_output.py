"""Lines leave from a thread of their own: a reader that does not read stops nobody but itself."""

from __future__ import annotations

import os
import threading

from trioft.cli.output import Outlet, write_to


def test_lines_arrive_in_order() -> None:
    """What was put first is written first, and drain returns when all of it is."""
    written: list[str] = []
    outlet = Outlet(written.append)
    for n in range(1000):
        outlet.put(str(n))
    outlet.drain()
    assert written == [str(n) for n in range(1000)]


def test_a_reader_that_does_not_read_holds_up_nobody() -> None:
    """put never waits, and drain no longer than it is told to."""
    stuck = threading.Event()
    outlet = Outlet(lambda line: print(stuck.wait(), end=""))
    for n in range(10):
        outlet.put(str(n))
    outlet.drain(0.05)
    stuck.set()
    outlet.drain()


def test_more_than_fits_is_lost_and_counted_but_not_the_last_line() -> None:
    """Memory is bounded: beyond a hundred thousand lines that wait, lines are counted as lost; the summary is not."""
    stuck, written = threading.Event(), []

    def write(line: str) -> None:
        stuck.wait()
        written.append(line)

    outlet = Outlet(write)
    for n in range(100_100):
        outlet.put(str(n))
    outlet.put("summary", always=True)
    stuck.set()
    outlet.drain()
    assert 90 <= outlet.lost <= 100
    assert len(written) == 100_101 - outlet.lost
    assert written[-1] == "summary"


def test_a_reader_that_has_gone_silences_it() -> None:
    """A closed pipe is no error: what is put then is dropped."""
    read, write = os.pipe()
    os.close(read)
    outlet = Outlet(write_to(write))
    outlet.put("to nobody")
    outlet.put("and again")
    outlet.drain()
    os.close(write)


def test_what_is_no_text_is_escaped() -> None:
    """Whatever is in a line, it is written as UTF-8."""
    read, write = os.pipe()
    outlet = Outlet(write_to(write))
    outlet.put("a\udcffb")
    outlet.drain()
    assert os.read(read, 100) == b"a\\udcffb\n"
    os.close(read)
    os.close(write)
