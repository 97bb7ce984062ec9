"""
Bugs: errors that no code of trioft should raise, and how they are told, in a dozen lines.

What matters is where it happened. A traceback of nested groups buries that under a hundred lines of nurseries, and
that of an operation lies in another process.
"""

from __future__ import annotations

from collections.abc import Iterator

_LINES = 8  # of a mover's traceback, at its end
_FRAMES = 3  # of the agent's own


class MoverBug(Exception):
    """An operation raised what no operation should raise. *story* is its traceback in the mover."""

    def __init__(self, operation: str, story: str) -> None:
        super().__init__(story)
        self.operation, self.story = operation, story


def name_bug(error: BaseException) -> str:
    """Return in a line what the bug is that *error*, or a group of errors, comes from."""
    leaf = _leaf_of(error)
    if isinstance(leaf, MoverBug):
        return leaf.story.rstrip().splitlines()[-1]
    return f"{type(leaf).__name__}: {leaf}" if str(leaf) else type(leaf).__name__


def tell_bug(error: BaseException) -> list[str]:
    """Return where the bug happened: the end of its traceback, in the mover where it was there, and in the agent."""
    import traceback  # only then is it needed

    leaf = _leaf_of(error)
    # Trio's own say how tasks are run, which is never where a bug of ours is.
    frames = [frame for frame in traceback.extract_tb(leaf.__traceback__) if "/trio/" not in frame.filename]
    where = [f"{frame.filename}, line {frame.lineno}, in {frame.name}" for frame in frames]
    if isinstance(leaf, MoverBug):
        asked = [line for line in where if "/movers/" not in line][-1:] or where[-1:]
        story = leaf.story.rstrip().splitlines()[1:-1]
        return [f"in a mover, at {leaf.operation}:", *story[-_LINES:], *(f"asked for in {line}" for line in asked)]
    lines = [line.rstrip() for line in "".join(traceback.format_list(frames[-_FRAMES:])).splitlines()]
    return ["in the agent:", *lines] if lines else []


def _leaf_of(error: BaseException) -> BaseException:
    """Return the first error in *error* that is no group, and no cancellation."""
    leaves = list(_leaves_of(error))
    return next((leaf for leaf in leaves if isinstance(leaf, Exception)), leaves[0])


def _leaves_of(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves_of(inner)
    else:
        yield error
