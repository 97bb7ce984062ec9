"""
What the operations need of the configuration.
"""

from __future__ import annotations

import os

from trioft.config.options import Config
from trioft.core.answers import KEEPS_NO_TIMES
from trioft.core.folding import LONGEST
from trioft.core.manifest import own_names
from trioft.core.model import Manner, Markers, Routes


def markers_of(config: Config) -> Markers:
    """Return what says, after a file's name, that it is complete."""
    return Markers(os.fsencode(config.source.done_suffix or ""), os.fsencode(config.copy.done_file or ""))


def routes_of(config: Config) -> Routes | None:
    """Return the rules for names at the destination, and what trioft itself writes there; None where no rule is."""
    if not config.destination.routes:
        return None
    return Routes(config.destination.routes, markers_of(config).destination, own_names(config.copy.manifest))


def how_to_copy(
    config: Config, once: bool, resolution_ns: int, *, permissions: bool = True, name_max: int = LONGEST
) -> Manner:
    """Put together what the file operations need of the configuration."""
    removes = config.copy.on_success.action != "keep"
    return Manner(
        # A source goes only when its copy was read back as a whole, whatever is enough for those that stay.
        verify="readback" if removes and config.copy.verify == "transfer" else config.copy.verify,
        # Where sources go, what is there may be all that is left of one.
        if_exists=config.destination.if_exists or ("overwrite" if once and not removes else "rename"),
        # Also where a second recording of the same size would pass for the first, or a name may be that of several.
        prove_existing=removes
        or config.copy.checksum
        or (not once and resolution_ns == KEEPS_NO_TIMES)
        or bool(config.destination.routes),
        resolution_ns=resolution_ns,
        xattrs=config.metadata.xattrs,
        manifest=config.copy.manifest,
        markers=markers_of(config),
        routes=routes_of(config),
        if_rival="fail" if config.destination.if_exists else "rename",
        permissions=permissions,
        name_max=name_max,
    )
