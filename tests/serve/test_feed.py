"""The feed: whoever applies its messages, in whatever rhythm, has what the agent has; and what that costs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from support import found
from trioft.core.model import FileState
from trioft.serve import feed as feed_module
from trioft.serve.feed import MESSAGE, Cursor, Feed
from trioft.state.board import Board, Entry

S = FileState


class Consumer:
    """The four lines that the README promises to be enough, and nothing else."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.cursor = feed.begin()
        self.files: dict[int, dict[str, Any]] = {}
        self.sections: dict[str, Any] = {}
        self.complete = False
        self.messages = 0
        self.resets = 0

    def read(self) -> dict[str, Any]:
        """Take one message."""
        text, self.cursor = self.feed.message(self.cursor)
        message: dict[str, Any] = json.loads(text)
        if message["reset"]:
            self.files.clear()
        self.files |= {file["id"]: file for file in message["files"]}
        for number in message["gone"]:
            self.files.pop(number, None)
        self.complete = message["rev"] == message["head"]
        self.sections |= {key: value for key, value in message.items() if isinstance(value, dict)}
        self.messages += 1
        self.resets += message["reset"]
        return message

    def catch_up(self) -> None:
        """Read until nothing is missing."""
        for _ in range(1000):
            self.read()
            if self.complete:
                return
        pytest.fail("it never becomes complete")


class World:
    """A board, its feed, and what the feed should show."""

    def __init__(self) -> None:
        self.board = Board()
        self.sections: dict[str, dict[str, object]] = {"agent": {"pid": 1}, "totals": {"delivered": 0}}
        self.feed = Feed(self.board, lambda: self.sections)
        self.entries: list[Entry] = []
        self.finished: list[Entry] = []
        self.feed.tick()

    def add(self, path: bytes = b"a", size: int = 1000) -> Entry:
        entry = self.board.add(path, found(size=size).fingerprint)
        self.board.move(entry, S.READY)
        self.entries.append(entry)
        return entry

    def finish(self, entry: Entry) -> None:
        self.board.move(entry, S.GONE)
        self.entries.remove(entry)
        self.finished = [*self.finished, entry][-feed_module.FINISHED :]

    def drop(self, entry: Entry) -> None:
        self.board.drop(entry)
        self.entries.remove(entry)

    def check(self, consumer: Consumer) -> None:
        """It has every file there is, as it is now, and no other."""
        expected = {entry.id: (str(entry.state), entry.reason) for entry in [*self.entries, *self.finished]}
        assert {number: (file["state"], file["reason"]) for number, file in consumer.files.items()} == expected
        assert consumer.sections == self.sections


async def test_a_snapshot_is_what_changed_since_nothing() -> None:
    """One kind of message: the first has all that there is, and says that nothing before it counts."""
    world = World()
    entry = world.add(b"day 1/a.mxf", 4096)
    consumer = Consumer(world.feed)
    message = consumer.read()
    assert (message["type"], message["v"], message["reset"]) == ("state", 1, True)
    assert message["rev"] == message["head"]
    assert message["agent"] == {"pid": 1}
    (file,) = message["files"]
    assert (file["id"], file["path"], file["state"], file["size"]) == (entry.id, "day 1/a.mxf", "ready", 4096)
    assert file["eta"] is file["rate"] is file["digest"] is file["finished_at"] is None


async def test_nothing_is_told_twice() -> None:
    """After a change a message holds what has changed, and nothing else."""
    world = World()
    first, _ = world.add(b"a"), world.add(b"b")
    consumer = Consumer(world.feed)
    consumer.read()
    world.board.move(first, S.COPYING)
    message = consumer.read()
    assert [file["path"] for file in message["files"]] == ["a"]
    assert message["gone"] == []
    assert not {"agent", "totals", "source"} & set(message)
    empty = consumer.read()
    assert (empty["files"], empty["gone"], empty["reset"]) == ([], [], False)


async def test_sections_are_told_when_they_change() -> None:
    """Totals that did not change cost nobody anything."""
    world = World()
    consumer = Consumer(world.feed)
    consumer.read()
    world.sections = {"agent": {"pid": 1}, "totals": {"delivered": 5}}
    world.feed.tick()
    message = consumer.read()
    assert message["totals"] == {"delivered": 5}
    assert "agent" not in message


async def test_progress_is_noticed_by_the_tick(autojump_clock: MockClock) -> None:
    """The copiers tell the feed nothing: it looks at what they have done, and knows how fast they are."""
    world = World()
    entry = world.add(size=10_000)
    world.board.move(entry, S.COPYING)
    world.feed.tick()
    consumer = Consumer(world.feed)
    consumer.read()
    for _ in range(4):
        await trio.sleep(0.25)
        world.board.copied(entry, 250)
        world.feed.tick()
    (file,) = consumer.read()["files"]
    assert (file["bytes_copied"], file["rate"], file["eta"]) == (1000, 1000, 9)
    world.feed.tick()
    assert consumer.read()["files"] == [], "nothing has changed"


async def test_a_large_state_comes_in_parts() -> None:
    """No message is much longer than 64 KiB; what changes between two of them comes last, once."""
    world = World()
    entries = [world.add(b"%05d" % n) for n in range(1000)]
    consumer = Consumer(world.feed)
    sizes, last = [], {}
    while not consumer.complete:
        sizes.append(len(world.feed.message(consumer.cursor)[0]))
        last = consumer.read()
        if len(sizes) == 1:
            world.board.move(entries[-1], S.COPYING)
    assert len(sizes) > 5
    assert max(sizes) < MESSAGE + 1024
    assert consumer.resets == 1
    assert last["files"][-1]["path"] == "00999"
    world.check(consumer)


async def test_a_message_is_made_once_for_all_who_are_at_the_same_place() -> None:
    """500 clients that keep up share one string."""
    world = World()
    world.add()
    first, second = Consumer(world.feed), Consumer(world.feed)
    assert world.feed.message(first.cursor)[0] is world.feed.message(second.cursor)[0]


async def test_who_comes_back_goes_on_where_he_was() -> None:
    """After a lost connection only what has changed meanwhile is told; to another run's client everything."""
    world = World()
    entry = world.add()
    consumer = Consumer(world.feed)
    consumer.read()
    world.board.move(entry, S.COPYING)
    consumer.cursor = world.feed.begin(world.feed.epoch, consumer.cursor.rev)
    message = consumer.read()
    assert (message["reset"], len(message["files"])) == (False, 1)
    for epoch, since in (("another", 3), (world.feed.epoch, world.feed.head + 1), (None, 3), (world.feed.epoch, -1)):
        assert world.feed.begin(epoch, since).rev == 0


async def test_who_was_away_for_too_long_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removals are not remembered for ever: who may have missed one that is forgotten, gets everything."""
    monkeypatch.setattr(feed_module, "REMOVED", 3)
    world = World()
    consumer = Consumer(world.feed)
    kept, *entries = [world.add(b"%d" % n) for n in range(6)]
    consumer.catch_up()
    for entry in entries:
        world.drop(entry)
    message = consumer.read()
    assert message["reset"]
    assert list(consumer.files) == [kept.id]


async def test_the_newest_finished_files_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 7: what was delivered lately can be seen, and memory stays as it is."""
    monkeypatch.setattr(feed_module, "FINISHED", 3)
    world = World()
    consumer = Consumer(world.feed)
    for n in range(10):
        entry = world.add(b"%d" % n)
        consumer.catch_up()
        world.finish(entry)
    consumer.catch_up()
    assert [file["path"] for file in consumer.files.values()] == ["7", "8", "9"]
    assert all(file["finished_at"] for file in consumer.files.values())


STEPS = st.lists(
    st.sampled_from(
        ["add", "change", "finish", "drop", "tick", "totals", "read 0", "read 1", "read 2", "return 0", "return 1"]
    ),
    max_size=80,
)


@settings(deadline=None, max_examples=300)
@given(STEPS, st.randoms(use_true_random=False))
def test_every_rhythm_of_reading_leads_to_the_same_state(steps: list[str], chance: Any) -> None:
    """Fast, slow and returning clients: each has in the end what there is, and never begins for ever."""

    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(feed_module, "REMOVED", 3)
            patch.setattr(feed_module, "FINISHED", 3)
            patch.setattr(feed_module, "MESSAGE", 1500)
            world = World()
            consumers = [Consumer(world.feed) for _ in range(3)]
            for step in steps:
                match step.split():
                    case ["add"]:
                        world.add()
                    case ["change"] if world.entries:
                        entry = chance.choice(world.entries)
                        world.board.move(entry, S.SETTLING if entry.state == S.READY else S.READY)
                    case ["finish"] if world.entries:
                        world.finish(chance.choice(world.entries))
                    case ["drop"] if world.entries:
                        world.drop(chance.choice(world.entries))
                    case ["tick"]:
                        world.feed.tick()
                    case ["totals"]:
                        world.sections = world.sections | {"totals": {"delivered": chance.randrange(3)}}
                    case ["read", number]:
                        consumers[int(number)].read()
                    case ["return", number]:
                        consumer = consumers[int(number)]
                        consumer.cursor = world.feed.begin(world.feed.epoch, consumer.cursor.rev)
            world.feed.tick()
            for consumer in consumers:
                consumer.catch_up()
                world.check(consumer)

    trio.run(run)


async def test_a_cursor_of_a_snapshot_under_way_survives_forgotten_removals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot in parts whose beginning is older than the oldest removal that is remembered comes to its end."""
    monkeypatch.setattr(feed_module, "REMOVED", 1)
    monkeypatch.setattr(feed_module, "MESSAGE", 10)
    world = World()
    for n in range(20):
        world.add(b"%d" % n)
    for entry in [world.add(b"gone") for _ in range(3)]:
        world.drop(entry)
    consumer = Consumer(world.feed)
    assert consumer.cursor == Cursor(0, world.feed._floor)
    consumer.catch_up()
    assert (consumer.resets, consumer.messages) == (1, 21)
    world.check(consumer)
