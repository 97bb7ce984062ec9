"""
The source and the destination, as the pipeline asks movers about them.

Each method is one operation of ``core.operations``, at the root that is known now: a share that was mounted again may
have another device number. Any of them raises ``FileTrouble``. When it is cancelled, its mover is killed, and what it
was doing may have happened, or in part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from trioft.core import operations as ask
from trioft.core.answers import (
    Difference,
    Known,
    Leftovers,
    Listing,
    Look,
    Peek,
    Prepared,
    Range,
    Sealed,
    Step,
    Written,
)
from trioft.core.errors import Trouble
from trioft.core.model import (
    Checkpoint,
    Ends,
    Fingerprint,
    Former,
    Item,
    Manner,
    Markers,
    Publication,
    Result,
    Root,
    Routes,
)
from trioft.movers.pool import Call, Owner

Tell = Callable[[Step], None]
TellWriting = Callable[[Step | Written | Sealed], None]


@attrs.frozen
class _End:
    """What both ends have in common: who is called, what the ends are now, and which files it is about."""

    call: Call
    ends: Callable[[], Ends]
    owner: Owner = ()


@attrs.frozen
class Source(_End):
    """What can be asked of the source."""

    @property
    def root(self) -> Root:
        return self.ends().source

    async def scan(
        self,
        folders: list[bytes],
        stamps: dict[bytes, bytes],
        include: Sequence[str],
        exclude: Sequence[str],
        markers: Markers,
        routes: Routes | None,
    ) -> Listing:
        """Read *folders*, as far as one call goes; of those that have their *stamps*, only what has changed."""
        return await self.call(
            ask.SCAN, self.root, folders, stamps, include, exclude, None, None, markers, routes, owner=self.owner
        )

    async def compare(
        self, folders: list[bytes], include: Sequence[str], exclude: Sequence[str], manner: Manner, *, twins: bool
    ) -> Listing:
        """
        Read *folders*, as far as one call goes, and compare them with the destination.

        Files that the destination has with the same size and time are only counted, if *twins* are taken for copies.
        """
        source, destination = self.ends()
        by_name = manner.markers, manner.routes
        return await self.call(
            ask.COMPARE, source, folders, None, include, exclude, destination, manner if twins else None, *by_name
        )

    async def look(
        self,
        paths: list[bytes],
        include: Sequence[str],
        exclude: Sequence[str],
        markers: Markers,
        routes: Routes | None,
    ) -> list[Look]:
        """Look at *paths*, and whether somebody writes them. One answer for each, in order."""
        return await self.call(ask.LOOK, self.root, paths, include, exclude, markers, routes)

    async def peek(
        self, path: bytes, identity: tuple[int, int], copied: int, marker: bytes, routes: Routes | None
    ) -> Peek:
        """Look at a file that may be growing, and of which *copied* bytes are copied."""
        return await self.call(ask.PEEK, self.root, path, identity, copied, marker, routes)

    async def locate(
        self, path: bytes, identity: tuple[int, int], *, everywhere: bool, was: Fingerprint | None = None
    ) -> bytes | None:
        """
        Return what the file *identity*, that was called *path*, is called now; None if it is there no more.

        It may be what it *was*, and only its filesystem have got another device number since.
        """
        return await self.call(ask.LOCATE, self.root, path, identity, everywhere, was)

    async def compare_span(
        self, path: bytes, start: int, end: int, copied: list[tuple[bytes, bytes]], tell: Tell
    ) -> list[Difference]:
        """Return the blocks from *start* to *end* that are not what was *copied*: their digests, and their pieces'."""
        return await self.call(ask.COMPARE_SPAN, self.root, path, start, end, copied, tell=tell, owner=self.owner)

    async def remove(
        self, delivered: list[tuple[bytes, Fingerprint]], archive: bytes | None, marker: bytes
    ) -> list[Result]:
        """Remove delivered sources, or move them to *archive*: the last step of the one gate."""
        return await self.call(ask.REMOVE_SOURCES, self.root, delivered, archive, marker, owner=self.owner)

    async def put_back(self, folders: list[bytes]) -> list[bytes]:
        """Put back what killed runs had taken aside in *folders*, to be removed; return the names it has now."""
        return await self.call(ask.PUT_BACK_SOURCES, self.root, folders)

    async def remove_emptied(self, folders: list[bytes]) -> list[bytes]:
        """Remove those of *folders*, and of those above them, in which nothing is left; return which have gone."""
        return await self.call(ask.REMOVE_EMPTIED, self.root, folders, owner=self.owner)


@attrs.frozen
class Destination(_End):
    """What can be asked of the destination."""

    @property
    def root(self) -> Root:
        return self.ends().destination

    def of(self, owner: Owner) -> Destination:
        """Return the same, for operations about the source files *owner*."""
        return attrs.evolve(self, owner=owner)

    async def make_folders(self, folders: list[bytes]) -> list[Trouble]:
        """Make *folders*, durably; return what could not be made."""
        return await self.call(ask.MAKE_FOLDERS, *self.ends(), folders)

    async def find_leftovers(self, folders: list[bytes]) -> Leftovers:
        """Search *folders* and those below for what trioft itself has made there, as far as one call goes."""
        return await self.call(ask.FIND_LEFTOVERS, self.root, folders)

    async def put_back(self, moved_aside: list[bytes]) -> list[bytes]:
        """Give files that were *moved_aside*, to be replaced, their names again where these are free; return which."""
        return await self.call(ask.PUT_BACK, self.root, moved_aside)

    async def size_of(self, partial: bytes) -> int:
        """Return how many bytes *partial* has; 0 where there is none."""
        return await self.call(ask.SIZE_OF, self.root, partial, owner=self.owner)

    async def holes_of(self, path: bytes) -> int:
        """Return how many bytes of a source file are holes, and stay so at the destination."""
        return await self.call(ask.HOLES_OF, self.ends(), path, owner=self.owner)

    async def discard(self, partials: list[bytes]) -> None:
        """Remove *partials*. One that is not there is fine."""
        await self.call(ask.DISCARD, self.root, partials, owner=self.owner)

    # --- content

    async def write_bundle(self, items: list[Item], manner: Manner, tell: Tell) -> list[Result]:
        """Write small files under their partial names, durable and verified. One result for each, in order."""
        return await self.call(ask.WRITE_BUNDLE, self.ends(), items, manner, tell=tell, owner=self.owner)

    async def adopt(
        self, old: bytes | None, identity: tuple[int, int], partial: bytes, new_partial: bytes, *, routed: bool
    ) -> bool | None:
        """Have a partial go on under another name. False: its file is still called *old*. None: it is not there."""
        return await self.call(ask.ADOPT, self.ends(), old, identity, partial, new_partial, routed, owner=self.owner)

    async def prepare(
        self, item: Item, checkpoint: Checkpoint | None, manner: Manner, *, growing: bool
    ) -> Result | Prepared:
        """Have the partial of a large file ready to be written; a result says why the file is not to be copied."""
        seals: list[Fingerprint] = []

        def tell(message: Step | Written | Sealed) -> None:
            if isinstance(message, Sealed):
                seals.append(message.seal)

        ends, owner = self.ends(), self.owner
        answer = await self.call(ask.PREPARE, ends, item, checkpoint, manner, growing, tell=tell, owner=owner)
        return answer._replace(seal=seals[-1]) if isinstance(answer, Prepared) and seals else answer

    async def copy_span(
        self, item: Item, partial: bytes, start: int, end: int, manner: Manner, tell: TellWriting
    ) -> None:
        """Copy the bytes of a finished file from *start*, a block's first, to *end*. Nothing is durable yet."""
        await self.call(ask.COPY_SPAN, self.ends(), item, partial, start, end, manner, tell=tell, owner=self.owner)

    async def settle(self, partial: bytes, start: int, end: int, digests: bytes, verify: str) -> list[int]:
        """Make a range durable and read it back; return the numbers of the blocks that differ from *digests*."""
        return await self.call(ask.SETTLE, self.root, partial, start, end, digests, verify, owner=self.owner)

    async def copy_growing(
        self, item: Item, partial: bytes, start: int, end: int, known: list[Known], tell: TellWriting, *, final: bool
    ) -> None:
        """Copy what has changed since *known* from *start* to *end*, or to where the file ends by now."""
        await self.call(
            ask.COPY_GROWING, self.ends(), item, partial, start, end, known, final, tell=tell, owner=self.owner
        )

    async def copy_ranges(self, item: Item, partial: bytes, ranges: list[Range], tell: TellWriting) -> list[int]:
        """Copy *ranges* again; return the offsets of those that hold something else by now."""
        return await self.call(ask.COPY_RANGES, self.ends(), item, partial, ranges, tell=tell, owner=self.owner)

    async def settle_ranges(self, partial: bytes, ranges: list[Range], verify: str) -> list[int]:
        """Make a partial durable and read *ranges* back; return the offsets of those that differ."""
        return await self.call(ask.SETTLE_RANGES, self.root, partial, ranges, verify, owner=self.owner)

    async def finish_attributes(self, item: Item, partial: bytes, manner: Manner, tell: TellWriting) -> list[str]:
        """Give a partial the bits and attributes that the source has now, durably; return what is not taken of them."""
        ends, owner = self.ends(), self.owner
        return await self.call(ask.FINISH_ATTRIBUTES, ends, item, partial, manner, tell=tell, owner=owner)

    # --- the final name

    async def seal(self, partial: bytes, mtime_ns: int) -> Fingerprint:
        """Give a partial this modification time, and return what it is: whoever writes to it then is found out."""
        return await self.call(ask.SEAL, self.root, partial, mtime_ns, owner=self.owner)

    async def is_sealed(self, partial: bytes, seal: Fingerprint, digest: bytes | None) -> bool:
        """Return whether a partial still holds what it did when it was sealed."""
        return await self.call(ask.IS_SEALED, self.root, partial, seal, digest, owner=self.owner)

    async def are_sealed(self, copies: list[tuple[bytes, Fingerprint, bytes | None]]) -> list[bool]:
        """Return of each copy (name, what it was, digest) whether it is there and holds what it did."""
        return await self.call(ask.ARE_SEALED, self.root, copies, owner=self.owner)

    async def find_former(self, items: list[Item]) -> list[Former | None]:
        """Find the copies of earlier versions of *items* of which all is in the present ones, each read whole."""
        return await self.call(ask.FIND_FORMER, self.ends(), items, owner=self.owner)

    async def publish(self, publications: list[Publication], manner: Manner) -> list[Result]:
        """Give verified partials their final names, durably. One result for each, in order."""
        return await self.call(ask.PUBLISH, self.ends(), publications, manner, owner=self.owner)

    async def mark(self, targets: list[bytes], suffix: bytes) -> list[Trouble | None]:
        """Make the markers of finished files, durably. One answer for each, in order."""
        return await self.call(ask.MARK, self.root, targets, suffix, owner=self.owner)
