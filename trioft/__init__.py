"""
trioft gets every file of a local folder to a network destination: complete, verified, and as early as possible.

The flow
========

Two planes. The **agent** is one Trio process: it decides, orders, records and reports, and never touches SOURCE or
DEST. The **movers** are a few disposable child processes that do nothing but file operations, one at a time::

    cli ─▶ config ─▶ agent: owns signals ─▶ job: opens the channels and the nurseries, owns the order of ending

      services (outlive the pipeline)             pipeline (ended by the first signal)
        ledger    ◀─ outcomes, checkpoints ─────────  scanner ─ jobs ▶ copier × N    (files that are finished)
        storage   health, space, identity; gates ──▶     ▲    └ jobs ▶ copier × M    (files that grow)
        movers    child processes ◀─ calls ─────────     │               │ choose a strategy, finish, report
                                                         └── backlog ◀───┘ what is not delivered, which goes next
        events    hints that something changed ────▶  sweeper: removes orphaned partials at the start
        display   progress ◀─ board

Glossary
========

ready        nobody has the file open for writing, and it has been quiet for long enough
growing      somebody is writing the file: it is followed, that is, copied meanwhile
job          of an agent: one source and one destination, with their options; one agent may have several
job          of a copier: what it takes at a time, that is, one large file, or a bundle of small ones
block        8 MiB: one digest, one comparison
span         up to eight blocks: what a mover copies in one call
settle       make what was written durable, read it back, compare
reconcile    compare all that was copied of a file that grew with what it holds once it is closed; write what differs
checkpoint   an offset below which everything is settled, recorded in the ledger
partial      ``NAME.<hash of the ledger and the source>.trioft-partial``: what a file is called until it is finished
marker       ``NAME.done``, or whatever the configuration calls it: says beside a file that it is complete
publish      give a settled partial its final name

The eight promises
==================

1. **A final name is a finished file.** Under its final name the destination only ever holds complete, verified content.
2. **A checkpoint never leads.** Every byte below a recorded offset is durable at the destination and verified.
3. **A source is removed only by one gate**, evaluated last (``pipeline.finish``, then
   ``movers.ops.removal.remove_sources``): content durable,
   verified and renamed, folder fsynced, ledger row committed, source still the same file, nobody has it open for
   writing.
4. **One owner per file.** At any moment one task may change a file's state; an impossible transition raises
   (``state.board``).
5. **trioft never creates the destination root or a mount point**, and notices when the destination becomes another
   filesystem: it waits, loudly, instead of filling the local disk.
6. **Nothing a viewer does can slow or stop a copy.**
7. **Memory and descriptors are bounded by configuration**, not by the number of files.
8. **Every wait has a reason that a person can read.** Every error names operation, path, offset, errno and a hint.

The house
=========

Eight wings; a module imports only from its own wing and from those below it, and import-linter sees to that. What a
wing is, and what it must never do, stands in its ``__init__``::

    cli                 commands, and what they say
    serve               the port: feed, page, metrics
    agent               a run: jobs, signals, reload, hooks
    pipeline            a file's way: scan, order, copy, verify, publish, remove
    movers              child processes as the agent sees them; movers.ops is what runs in them
    state | config      what is known | what can be set
    core                values, failures, names, units, the contract between agent and movers
"""

__version__ = "0.1.0"
