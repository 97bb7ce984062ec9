"""The destination's space, identity and health: what is admitted, what closes the gate, and when it is probed again."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

from support import as_call, found
from trioft.config.kinds import MinFree
from trioft.config.options import Config, Destination, Retry
from trioft.core.answers import KEEPS_NO_TIMES, Probed
from trioft.core.errors import IDENTIFY, FileTrouble, Side, Trouble
from trioft.core.folding import Naming
from trioft.core.model import Ends, FileState, Identity, Root
from trioft.movers import hung
from trioft.pipeline.storage import Storage
from trioft.state.board import Board, Entry

IN = Identity("ext4", "/dev/sda1", "", b"/in", b"/")
NAS = Identity("nfs4", "nas:/media", "", b"/", b"/mnt/nas")
ROOT = Root(b"/mnt/nas", 7)
WELL = Probed(ROOT, NAS, free=1000, total=10_000, resolution_ns=1, keeps_permissions=True)
ENDS = Ends(Root(b"/in", 1), Root(b"/mnt/nas", 0))


def trouble(number: int, text: str = "words", side: Side = Side.DESTINATION) -> Trouble:
    return Trouble(side, "fsync", b"a", 8, number, text)


AWAY = trouble(errno.EHOSTDOWN, "Host is down")
Answer = Probed | Trouble


class Place:
    """A storage, what its probes will find, and when they were made."""

    def __init__(self, **groups: Any) -> None:
        self.board = Board()
        self.notices: list[str] = []
        self.board.notices.append(lambda what, text: self.notices.append(text))
        defaults: dict[str, Any] = {"destination": Destination(min_free=MinFree(bytes=0))}
        known: dict[Side, Identity | None] = dict.fromkeys(Side)
        self.storage = Storage(ENDS, known, Config(**(defaults | groups)), self.board)
        self.answers: list[Answer] = []  # the last is for all that follow
        self.source_answers: list[Root | Trouble] = [Root(b"/in", 1)]
        self.views: list[str | Trouble | None] = [None]
        self.views_asked: list[tuple[object, ...]] = []
        self.probed_at: list[float] = []
        self.probes: list[tuple[object, ...]] = []
        self.looked_at: list[float] = []
        self.begun = trio.current_time()

    async def call(
        self,
        operation: Any,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        if operation.name == "find_view":
            view = next_of(self.views)
            self.views_asked.append(arguments)
            if isinstance(view, Trouble):
                raise FileTrouble(view)
            return view
        if operation.name == "find_naming":
            return Naming()
        if operation.name == "probe_source":
            answer: object = next_of(self.source_answers)
            if isinstance(answer, Root):
                return answer, IN
        else:
            assert operation.name == "probe"
            self.probes.append(arguments)
            self.probed_at.append(trio.current_time() - self.begun)
            answer = next_of(self.answers)
        if isinstance(answer, Trouble):
            raise FileTrouble(answer)
        return answer

    async def check(self, answer: Answer) -> None:
        self.answers = [answer]
        await self.storage.gates[Side.DESTINATION]._try_to_open(lambda: self.storage._probe(as_call(self.call)))

    def looked(self) -> None:
        self.looked_at.append(trio.current_time() - self.begun)

    def entry(self, size: int) -> Entry:
        entry = self.board.add(b"a", found(size=size).fingerprint)
        for state in (FileState.READY, FileState.COPYING):
            self.board.move(entry, state)
        return entry


T = TypeVar("T")


def next_of(answers: list[T]) -> T:
    return answers.pop(0) if len(answers) > 1 else answers[0]


async def checked(first: Probed = WELL, **groups: Any) -> Place:
    """Return a place whose first probe found *first*."""
    place = Place(**groups)
    place.answers = [first]
    await place.storage.begin(as_call(place.call))
    place.probes, place.probed_at = [], []
    return place


# --- Space


@pytest.mark.parametrize(
    ("free", "min_free", "promised", "copied_of_promised", "written", "most"),
    [
        (1000, MinFree(bytes=0), 0, 0, 0, 1000),
        (1000, MinFree(bytes=300), 0, 0, 0, 700),
        (1000, MinFree(percent=1), 0, 0, 0, 900),
        (1000, MinFree(bytes=0), 400, 0, 0, 600),
        (1000, MinFree(bytes=0), 400, 150, 0, 600),
        (1000, MinFree(bytes=0), 0, 0, 250, 750),
        (1000, MinFree(bytes=300), 400, 100, 50, 250),
        (300, MinFree(bytes=300), 0, 0, 0, 0),
    ],
    ids=["all", "bytes-kept", "percent-kept", "promised", "promised-and-copied", "written-since", "each", "nothing"],
)
async def test_file_is_admitted_if_it_fits_beside_all_others(
    free: int, min_free: MinFree, promised: int, copied_of_promised: int, written: int, most: int
) -> None:
    """Free space, less what was written since it was looked at, less what others still need, less what is kept free."""
    place = await checked(WELL._replace(free=free), destination=Destination(min_free=min_free))
    other, done = place.entry(promised), place.entry(written)
    place.board.copied(done, written)
    with place.storage.reserved([other]):
        place.board.copied(other, copied_of_promised)
        assert place.storage.why_not_admit(most) is None
        assert place.storage.why_not_admit(most + 1) is not None


async def test_refusal_says_how_much_is_needed_and_where_the_space_is() -> None:
    """Promise 8: a person sees why this file waits although the disk is not full."""
    place = await checked(WELL._replace(free=1000), destination=Destination(min_free=MinFree(bytes=300)))
    with place.storage.reserved([place.entry(400)]):
        assert place.storage.why_not_admit(301) == (
            "space: needs 301 B, the destination has 1 kB free,"
            " of which 400 B are promised to others and 300 B are kept free"
        )


async def test_promise_is_over_when_the_job_is() -> None:
    """What a file did not use is there for others, also if its job failed."""
    place = await checked()
    entry = place.entry(1000)
    with contextlib.suppress(RuntimeError), place.storage.reserved([entry]):
        assert place.storage.why_not_admit(1) is not None
        raise RuntimeError
    assert place.storage.why_not_admit(1000) is None


async def test_smaller_files_go_on_where_a_large_one_waits() -> None:
    """A file that does not fit holds up nobody but itself."""
    place = await checked()
    assert place.storage.why_not_admit(1001) is not None
    assert place.storage.why_not_admit(999) is None


async def test_full_destination_is_believed_until_the_next_look() -> None:
    """A write that was refused is the truth, whatever the filesystem's figures say."""
    place = await checked()
    place.storage.ran_out()
    assert place.storage.why_not_admit(1) is not None
    await place.check(WELL)
    assert place.storage.why_not_admit(1000) is None


async def test_next_look_counts_anew() -> None:
    """What was written before a look is in its figures already."""
    place = await checked()
    place.board.copied(place.entry(600), 600)
    assert place.storage.why_not_admit(500) is not None
    await place.check(WELL._replace(free=500))
    assert place.storage.why_not_admit(500) is None


async def test_destination_too_full_for_a_probe_is_no_outage() -> None:
    """A full disk is told from a dead one: the gate is open, and every file waits for space."""
    place = await checked()
    place.storage.suspect(AWAY)
    await place.check(trouble(errno.ENOSPC))
    assert place.storage.is_open
    assert (place.storage.why_not_admit(1) or "").startswith("space: ")


# --- Recordings


async def recorded(place: Place, rate: int, seconds: float) -> Entry:
    """Return a file that has been followed for *seconds* while it grew by *rate* bytes a second."""
    entry = place.entry(0)
    entry.growing = True
    place.storage._active.add(entry)
    place.storage.why_not_admit(0)
    for _ in range(round(seconds)):
        await trio.sleep(1)
        place.board.grow(entry, entry.size + rate)
        place.board.copied(entry, rate)
        place.storage.why_not_admit(0)
    return entry


async def test_room_is_kept_for_what_recordings_will_write(autojump_clock: MockClock) -> None:
    """A file that is finished does not take the space that a recording needs within the next minute."""
    place = await checked(WELL._replace(free=10_000))
    await recorded(place, 50, 20)
    left = 10_000 - 20 * 50
    assert place.storage.why_not_admit(left - 60 * 50) is None
    assert "3 kB are promised to others" in (place.storage.why_not_admit(left - 60 * 50 + 1) or "")


async def test_recording_that_ends_gives_back_what_was_kept(autojump_clock: MockClock) -> None:
    """What it will not write any more is there for others."""
    place = await checked(WELL._replace(free=10_000))
    entry = await recorded(place, 50, 20)
    with place.storage.reserved([entry]):
        pass
    assert place.storage.why_not_admit(9_000) is None


async def test_full_destination_is_foretold(autojump_clock: MockClock) -> None:
    """An operator hears an hour before that the recordings will have filled the destination, once, and not sooner."""
    place = await checked(WELL._replace(free=10**6))
    await recorded(place, 50, 20)
    await place.check(WELL._replace(free=50 * 7200))
    assert place.board.full_in == pytest.approx(7200)
    assert place.notices == []
    for _ in range(2):
        await place.check(WELL._replace(free=50 * 60 * 41))
    assert place.board.full_in == pytest.approx(60 * 41)
    assert place.notices == ["the destination will be full in 41 min, as fast as the recordings grow now"]
    await place.check(WELL._replace(free=10**12))
    assert place.board.full_in is None


async def test_recording_that_pauses_fills_nothing(autojump_clock: MockClock) -> None:
    """How fast it grows is measured over the last seconds, not over its life."""
    place = await checked(WELL._replace(free=10_000))
    await recorded(place, 50, 20)
    for _ in range(3):
        await trio.sleep(11)
        place.storage.why_not_admit(0)
    await place.check(WELL)
    assert place.board.full_in is None


# --- The gate


async def test_suspicion_closes_the_gate_and_says_why_and_since_when() -> None:
    """Promise 8: what all copiers wait for is one sentence, with operation, path and errno."""
    place = await checked()
    assert place.storage.is_open
    place.storage.suspect(AWAY)
    assert not place.storage.is_open
    assert re.fullmatch(
        r"not usable since \d\d:\d\d:\d\d: "
        r"fsync 'a' at the destination, byte 8: Host is down \(EHOSTDOWN\)",
        place.board.destination or "",
    )
    assert place.notices == [place.board.waits_for] == [f"destination {place.board.destination}"]


async def test_gate_stays_closed_since_the_first_suspicion(monkeypatch: pytest.MonkeyPatch) -> None:
    """More troubles do not make an outage look younger."""
    place = await checked()
    times = iter(["12:04:00", "12:05:00"])
    monkeypatch.setattr("trioft.pipeline.storage.time.strftime", lambda _: next(times))
    place.storage.suspect(AWAY)
    place.storage.suspect(trouble(errno.EIO))
    assert (place.board.destination or "").startswith("not usable since 12:04:00: ")


async def test_copiers_wait_at_the_closed_gate_until_a_probe_succeeds(autojump_clock: MockClock) -> None:
    """One probe lets all of them go on, and a person hears of it."""
    place = await checked()
    place.storage.suspect(AWAY)
    passed: list[float] = []

    async def copier() -> None:
        await place.storage.usable()
        passed.append(trio.current_time() - place.begun)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(copier)
        await trio.sleep(5)
        assert passed == []
        await place.check(WELL)
    assert passed == [5, 5, 5]
    assert place.board.destination is None
    assert place.notices[-1] == "the destination is usable again"


async def test_failed_probe_leaves_the_gate_closed() -> None:
    """Only a probe that has written opens it."""
    place = await checked()
    place.storage.suspect(AWAY)
    with pytest.raises(FileTrouble):
        await place.check(AWAY)
    assert not place.storage.is_open


@pytest.mark.parametrize(
    ("meanwhile", "suspected", "stays_open"),
    [("copied", False, True), ("nothing", False, False), ("given up", False, False), ("copied", True, False)],
    ids=["behind what is sent", "nothing moves", "a file is given up", "closed already"],
)
async def test_probe_that_waits_behind_what_is_sent_says_nothing(
    meanwhile: str, suspected: bool, stays_open: bool
) -> None:
    """A slow link is not dead while bytes arrive; but nothing that gets no answer opens the gate."""
    place = await checked()
    board, entry = place.board, place.entry(100)
    board.verified(entry, 50)
    if suspected:
        place.storage.suspect(AWAY)

    async def no_answer(*_: object, **__: object) -> None:
        if meanwhile == "copied":
            board.copied(entry, 10)
        elif meanwhile == "given up":
            board.move(entry, FileState.FAILED)
        raise FileTrouble(trouble(errno.ETIMEDOUT))

    with contextlib.suppress(FileTrouble):
        await place.storage.gates[Side.DESTINATION]._try_to_open(lambda: place.storage._probe(as_call(no_answer)))
    assert place.storage.is_open == stays_open


async def test_whoever_asks_whether_it_is_well_waits_for_a_probe_that_begins_after_that(
    autojump_clock: MockClock,
) -> None:
    """An error of one file, or of all? What an earlier probe found says nothing; meanwhile the others go on."""
    place = await checked()
    for answer, well in ((WELL, True), (AWAY, False)):
        place.answers = [answer]
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(place.storage.run, as_call(place.call), place.looked)
                await trio.sleep(1)
                assert place.storage.is_open
                assert await place.storage.gates[Side.DESTINATION].is_well() == well
                assert place.storage.is_open == well
                nursery.cancel_scope.cancel()
    assert place.probed_at == [1, 2]


async def test_outage_is_told_in_the_words_of_its_probe(autojump_clock: MockClock) -> None:
    """Copiers that fail meanwhile have nothing new to say: one line for each reason."""
    place = await checked()
    place.answers = [AWAY]
    suspect = functools.partial(place.storage.suspect, trouble(errno.EIO, "Input/output error"))
    await looked_after(place, 30, (1, suspect), (1.5, suspect), (2.5, suspect))
    assert ["Input/output error" in notice for notice in place.notices] == [True, False]


@pytest.mark.parametrize("dev", [1, 2], ids=["same-device", "other-device"])
async def test_each_end_has_a_gate_of_its_own(autojump_clock: MockClock, dev: int) -> None:
    """A source that is away closes no destination: who needs both waits for both."""
    place = await checked()
    place.answers = [WELL]
    place.source_answers = [AWAY._replace(side=Side.SOURCE), Root(b"/in", dev)]
    mounted = place.storage.source_mounted
    await looked_after(place, 0.5, (0, lambda: place.storage.suspect(AWAY._replace(side=Side.SOURCE))))
    assert [gate.is_open for gate in place.storage.gates.values()] == [False, True]
    assert not place.storage.is_open
    assert place.board.waits_for == f"source {place.board.source}"
    assert place.board.destination is None
    assert not mounted.is_set()
    place.storage.suspect(AWAY._replace(side=Side.SOURCE))
    await looked_after(place, 5)
    assert place.storage.is_open
    assert place.storage.ends.source == Root(b"/in", dev)
    assert mounted.is_set()


# --- Identity


async def test_operations_are_told_which_mounting_was_looked_at_last(autojump_clock: MockClock) -> None:
    """The same share, mounted once more, is used after the next look at it; that it is no view of the source, too."""
    place = await checked(WELL._replace(root=ROOT._replace(mounting="1")))
    assert place.storage.ends.destination.mounting == "1"
    mounted, asked = place.storage.source_mounted, len(place.views_asked)
    place.answers = [WELL._replace(root=ROOT._replace(mounting="2"))]
    place.source_answers = [Root(b"/in", 1, mounting="3")]
    away = Trouble(Side.DESTINATION, IDENTIFY, b"", None, errno.ENODEV, "meanwhile")
    both = (lambda: place.storage.suspect(away), lambda: place.storage.suspect(away._replace(side=Side.SOURCE)))
    await looked_after(place, 1, *((0, suspect) for suspect in both))
    assert place.storage.is_open
    assert [end.mounting for end in place.storage.ends] == ["3", "2"]
    assert mounted.is_set()
    assert len(place.views_asked) > asked


async def test_what_a_destination_is_is_asked_for_at_every_probe() -> None:
    """Promise 5: a probe writes only where the destination was in earlier runs, and at the first look of this one."""
    place = await checked()
    assert place.storage.identity == {Side.SOURCE: IN, Side.DESTINATION: NAS}
    await place.check(WELL)
    assert place.probes == [(b"/mnt/nas", NAS, None, False)]


async def test_destination_that_is_another_place_closes_the_gate() -> None:
    """Promise 5: an unmounted share leaves a folder of the local disk behind; nothing is written into it."""
    place = await checked()
    other = Trouble(Side.DESTINATION, IDENTIFY, b"", None, errno.ENODEV, "nothing is mounted at /mnt/nas")
    with pytest.raises(FileTrouble):
        await place.check(other)
    assert not place.storage.is_open
    assert place.storage.ends.destination == ROOT
    assert place.storage.identity[Side.DESTINATION] == NAS
    assert "nothing is mounted at /mnt/nas" in place.notices[-1]


async def test_same_share_mounted_again_is_accepted_under_its_new_device() -> None:
    """A share that comes back may have another device number: operations ask for that one from then on."""
    place = await checked()
    place.storage.suspect(AWAY)
    await place.check(WELL._replace(root=Root(b"/mnt/nas", 8)))
    assert place.storage.is_open
    assert place.storage.ends.destination == Root(b"/mnt/nas", 8)


async def test_required_mount_is_asked_for_at_every_probe() -> None:
    """With ``require_mount``, a folder of the root filesystem is no destination."""
    place = await checked(destination=Destination(require_mount=True))
    await place.check(WELL)
    assert place.probes == [(b"/mnt/nas", NAS, None, True)]


@pytest.mark.parametrize(("marker", "asked"), [(None, None), (".volume\udcff", b".volume\xff")])
async def test_marker_is_asked_for_at_every_probe(marker: str | None, asked: bytes | None) -> None:
    """The right volume is known by a file on it, whatever bytes its name has."""
    place = await checked(destination=Destination(marker=marker))
    await place.check(WELL)
    assert place.probes == [(b"/mnt/nas", NAS, asked, False)]


@pytest.mark.parametrize(
    ("first", "notices"),
    [
        (WELL, []),
        (WELL._replace(resolution_ns=2_000_000_000), []),
        (
            WELL._replace(resolution_ns=KEEPS_NO_TIMES),
            ["the destination keeps no modification times: files are compared by size alone"],
        ),
        (WELL._replace(keeps_permissions=False), ["the destination keeps no permission bits"]),
    ],
    ids=["all", "coarse-times", "no-times", "no-permissions"],
)
async def test_what_a_destination_cannot_keep_is_said_once(first: Probed, notices: list[str]) -> None:
    """At the start, not for every file: it is no error."""
    place = await checked(first)
    await place.check(first)
    assert place.notices == notices
    assert place.storage.resolution_ns == first.resolution_ns


# --- The task that looks after it


async def looked_after(place: Place, seconds: float, *then: tuple[float, Callable[[], None]]) -> None:
    """Let the storage look after itself for *seconds*, and do something at some of them."""
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.storage.run, as_call(place.call), place.looked)
            for when, what in then:
                await trio.sleep_until(place.begun + when)
                what()


async def test_destination_is_looked_at_regularly(autojump_clock: MockClock) -> None:
    """Space that others made or used is seen within ``check_interval``, and what waits for it is offered again."""
    place = await checked(destination=Destination(min_free=MinFree(bytes=0), check_interval=10))
    place.answers = [WELL._replace(free=5), WELL._replace(free=700)]
    await looked_after(place, 25)
    assert place.probed_at == place.looked_at == [10, 20]
    assert place.storage.why_not_admit(700) is None
    assert place.storage.why_not_admit(701) is not None


async def test_suspected_destination_is_probed_at_once(autojump_clock: MockClock) -> None:
    """A hiccup costs no time: where the probe succeeds, all go on in the same moment."""
    place = await checked()
    place.answers = [WELL]
    await looked_after(place, 9, (3, lambda: place.storage.suspect(AWAY)))
    assert place.probed_at == place.looked_at == [3]
    assert place.storage.is_open
    assert place.storage.outages == 0


async def test_what_hangs_below_the_source_is_left_out_until_it_answers(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked once more without it, under the same name, and at once when it is back; not at each probe."""
    monkeypatch.setattr(hung, "mounts_below", lambda path: {b"": (1, b"", b""), b"b": (2, b"", b"")})
    place = Place()
    place.answers = [WELL]
    place.views = [Trouble(Side.SOURCE, "find_view", b"b", None, errno.ETIMEDOUT, "no progress"), None]
    await place.storage.begin(as_call(place.call))
    (first, second) = place.views_asked
    assert (first[-1], second[-1], first[:-1] == second[:-1]) == ([], [b"b"], True)
    assert place.notices == ["the source is left out below b, which does not answer; the rest goes on"]
    await place.check(WELL)
    assert len(place.views_asked) == 2
    place.begun, place.probed_at = trio.current_time(), []
    await looked_after(place, 9, (3, lambda: place.storage.hung.answered(b"b")))
    assert place.probed_at == [3]
    assert [asked[-1] for asked in place.views_asked[2:]] == [[]]


async def test_a_source_that_hangs_as_a_whole_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is mounted where it hangs: nothing can be left out."""
    monkeypatch.setattr(hung, "mounts_below", lambda path: {b"": (1, b"", b"")})
    place = Place()
    place.answers = [WELL]
    place.views = [Trouble(Side.SOURCE, "find_view", b"b", None, errno.ETIMEDOUT, "no progress")]
    with pytest.raises(FileTrouble, match="no progress"):
        await place.storage.begin(as_call(place.call))
    assert len(place.views_asked) == 1


async def test_destination_that_is_away_is_probed_with_growing_pauses(autojump_clock: MockClock) -> None:
    """From ``retry.first``, twice as long each time, up to ``retry.longest``; never quite regularly."""
    place = await checked(retry=Retry(first=1, longest=60))
    place.answers = [AWAY]
    await looked_after(place, 1000, (0, lambda: place.storage.suspect(AWAY)))
    pauses = [after - before for before, after in itertools.pairwise(place.probed_at)]
    assert place.probed_at[0] == 0
    assert 0.8 <= pauses[0] <= 1
    for before, after in itertools.pairwise(pauses):
        assert min(60, 2 * before) * 0.8 <= after <= min(60, 2 * before) + 1e-6
    assert all(48 <= pause <= 60 for pause in pauses[9:])
    assert len(set(pauses)) == len(pauses)
    assert place.storage.outages == len(place.probed_at) == len(place.looked_at)
    assert not place.storage.is_open


async def test_more_suspicions_do_not_shorten_the_pause(autojump_clock: MockClock) -> None:
    """Many copiers that fail at the same time do not drum on a server that is just coming up."""
    place = await checked(retry=Retry(first=10, longest=60))
    place.answers = [AWAY]

    def suspect() -> None:
        place.storage.suspect(AWAY)

    await looked_after(place, 7, *((when, suspect) for when in (1, 1, 2, 3, 4, 5)))
    assert place.probed_at == [1]


async def test_destination_that_is_back_is_used_and_looked_at_regularly_again(autojump_clock: MockClock) -> None:
    """After an outage everything is as before; the next outage begins with short pauses."""
    place = await checked(
        retry=Retry(first=1, longest=60), destination=Destination(min_free=MinFree(bytes=0), check_interval=10)
    )
    place.answers = [AWAY, AWAY, WELL, AWAY, WELL]
    await looked_after(place, 30, (0, lambda: place.storage.suspect(AWAY)))
    first, second, back, regular, back_again, regular_again = place.probed_at
    assert first == 0
    assert 0 < second <= 1
    assert second < back <= 3
    assert regular == pytest.approx(back + 10)
    assert 0 < back_again - regular <= 1
    assert regular_again == pytest.approx(back_again + 10)
    assert [notice.partition(" since ")[0] for notice in place.notices if "usable" in notice][-3:] == [
        "the destination is usable again",
        "destination not usable",
        "the destination is usable again",
    ]


async def test_outage_is_noticed_without_any_transfer(autojump_clock: MockClock) -> None:
    """A destination that goes away while nothing is copied is told by the next regular look."""
    place = await checked(destination=Destination(min_free=MinFree(bytes=0), check_interval=10))
    place.answers = [AWAY]
    await looked_after(place, 10.1)
    assert place.probed_at == [10]
    assert not place.storage.is_open
    assert "Host is down" in (place.board.destination or "")


async def test_suspicion_during_a_probe_is_not_forgotten(autojump_clock: MockClock) -> None:
    """What failed after a probe had begun is not disproved by it: another probe follows at once."""
    place = await checked()
    place.answers = [WELL]
    began = trio.Event()

    async def slow(
        operation: Any,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        if operation.name != "probe":
            return await place.call(operation, *arguments)
        began.set()
        await trio.sleep(2)
        return await place.call(operation, *arguments)

    with trio.move_on_after(6):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.storage.run, as_call(slow), place.looked)
            place.storage.suspect(AWAY)
            await began.wait()
            place.storage.suspect(AWAY)
    assert place.probed_at == [2, 4]
