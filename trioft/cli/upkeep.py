"""
Commands that look after what is there already. ``app`` puts them on the command line.
"""

from __future__ import annotations

from typing import Annotated

import typer

from trioft.cli.arguments import ConfigFile, JsonLines, StateDir, load

CLEAN_STATUS = """
EXIT STATUS:  0 done.  1 something that was to be removed is in use, or could not be removed.  2 wrong usage or
configuration.  3 the destination cannot be used.
"""


def clean(
    dest: Annotated[str, typer.Argument(metavar="DEST", help="The destination's folder.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="What is meant, as it is listed, or a pattern.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it. Without, it is only listed.")] = False,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="DURATION", help="What nobody has written for so long: 7d.")
    ] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: JsonLines = False,
) -> None:
    """
    List what trioft has left at DEST, and whose it is: partials, claims, probes. Remove what is asked for.

    What another trioft is at work with stays. What may be another program's, and former versions of files that were
    about to be replaced, are removed by name only.

    Example:  trioft clean /mnt/nas/ingest --older-than 7d --remove
    """
    settings = load({"config": config, "state_dir": state_dir}, ends=False)
    from trioft.cli.clean import run_clean
    from trioft.cli.pairs import state_dir_of

    code = run_clean(dest, names or [], state_dir_of(settings), remove=remove, older_than=older_than, as_json=json)
    raise typer.Exit(code)
