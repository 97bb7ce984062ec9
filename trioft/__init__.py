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
                                                         └── backlog ◀───┘ what has to wait
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
partial      ``NAME.<8 hex of the source's identity>.partial``: what a file is called until it is finished
marker       ``NAME.done``, or whatever the configuration calls it: says beside a file that it is complete
publish      give a settled partial its final name

The eight promises
==================

1. **A final name is a finished file.** Under its final name the destination only ever holds complete, verified content.
2. **A checkpoint never leads.** Every byte below a recorded offset is durable at the destination and verified.
3. **A source is removed only by one gate**, evaluated last (``finish``, ``publishio.remove_sources``): content durable,
   verified and renamed, folder fsynced, ledger row committed, source still the same file, nobody has it open for
   writing.
4. **One owner per file.** At any moment one task may change a file's state; an impossible transition raises
   (``board``).
5. **trioft never creates the destination root or a mount point**, and notices when the destination becomes another
   filesystem: it waits, loudly, instead of filling the local disk.
6. **Nothing a viewer does can slow or stop a copy.**
7. **Memory and descriptors are bounded by configuration**, not by the number of files.
8. **Every wait has a reason that a person can read.** Every error names operation, path, offset, errno and a hint.

The modules
===========

Imports go one way: a module imports only from those above it.

================ ====================================================================================================
errors           the error tree with exit codes and hints; ``classify``: the one table from an errno to what is done
model            the values that travel, the file states and their legal transitions
naming           which paths are wanted, what a partial is called, which final name a file gets
routes           where files go that do not keep their path: the rules of ``destination.routes``
notation         sizes, durations and rates as people write them
manifest         which files manifests list, their names, and the lines that sha256sum -c and xxhsum -c read
ascmhl           the files of an ASC Media Hash List
linux            the few system calls that Python does not wrap                                       (in movers)
writers          is anybody still writing this file? lease, then open-file table, then unknown        (in movers)
fileio           what the file operations share: open, read, write, compare                           (in movers)
existingio       is what the destination has under a file's name the same file?                       (in movers)
markerio         what says, beside a file, that it is complete                                        (in movers)
resumeio         what of a partial is still good                                                      (in movers)
bundleio         write a bundle of small files, make it durable, read it back                         (in movers)
copyio           prepare, copy and settle a large file                                                (in movers)
growio           look at a file that grows, copy behind its writer, compare, find its new name        (in movers)
publishio        partial → final name; removal of a delivered source                                  (in movers)
verifyio         read back what was delivered earlier                                                 (in movers)
endsio           what the ends are: which filesystems, whether they can be used                       (in movers)
surveyio         scan, look, make folders, search for partials                                        (in movers)
manifestio       read delivered files; write manifests                                                (in movers)
doctorio         what an end can do, found out by doing it                                            (in movers)
mover            the child process: read a request, run one operation, answer
watcher          the child process behind ``events``
kinds            what the values of an option may be, and how they are read and written
config           frozen attrs classes that are the option manual
joblist          the jobs of a configuration: read, and which do not go together
configfile       strict cattrs from YAML, every problem at once; the example
child            a child process of ours: pipes, messages, its end
commands         programs of the user's: run, read, ended
movers           the pool of movers: call with a deadline, kill, leave behind, replace
shutdown         who is stopped by the first signal, and what may still be finished
throttle         the limit on throughput, and how it is measured
memory           gives free memory back
board            live state of all files, totals; the source of display and JSON lines
overview         the boards of several jobs, read as one
settings         the configuration of a run that goes on: read again, or changed by an operator
signals          stop, stop now, read the configuration again; a terminal that has gone
backlog          files that are not delivered yet, and when to look at each again; bounded; makes the jobs, in order
events           file events: hints for the scanner
lock             one trioft at a time for each pair of source and destination
ledger           SQLite: outcomes, checkpoints, history; readable schema in ``ledger.sql``
unlisted         what of the ledger no manifest lists yet
journal          what was decided about each file on its way becomes history
records          reading ledgers: history, what is known about files, what was delivered
claims           which source file has, or may get, a name that rules give to several
storage          both ends' health and identity, the destination's space; the gates
ends             the two ends, before the first file: found, refused, waited for
walk             movers read the source, and make the folders that the destination lacks
scanner          walks and watches the source, decides what is ready and what grows
transfer         a large file on its way: plan, write, settle; what copiers and strategies work with
follow           the strategy for files that are being written: watch, copy, reconcile
strategies       ``bundle``, ``whole``, ``follow``: the table of them, and which is for which job
finish           partial → delivered → source removed, in commented steps
copier           one job at a time, from admission to report; what happens on an error
lister           has manifests written of what was delivered
lanes            as many copiers of a kind as there should be, more or fewer when that changes
sweeper          removes orphaned partials at the start
control          what an operator may ask of a running job: pause, resume, retry, cancel, other limits
job              one source and one destination: channels, nurseries, the order of ending
view             what the outside sees of a file and of a run: fields of JSON lines and feed
hooks            programs that are told what has come of each file
feed             the state as changes since a cursor
guard            who may talk to the port: Host, Origin, token
front            one port: plain requests, and upgrades to WebSockets
health           is it able to work? metrics
notify           tells a service manager: up, doing what, alive, ending
server           what the port answers; how a client of the feed is kept supplied
agent            composition root: what all have in common, signals
outlet           lines of text leave from a thread of their own
logs             one line an event, as text or JSON, on stderr or in a file that is rotated
display          Rich progress in the terminal
console          JSON lines, talk, summary, exit code of a run
status           ``trioft status``: a running agent's feed in a terminal
history          ``trioft history``: what happened, from the ledgers
findings         what ``trioft verify`` has found so far, kept beside the ledger
verify           ``trioft verify``: delivered files are read back, and compared with the ledger's digests
explanation      all about one file, and whether its source may be removed
explain          ``trioft explain``: the same, in words or as JSON
options          arguments and options, shared by the commands
diagnosis        what the doctor's measurements mean, and what to set
doctor           ``trioft doctor``: measures both ends, one thing after the other
service          ``trioft service``: units for systemd and launchd
cli              Typer commands: arguments → configuration → run
================ ====================================================================================================
"""

__version__ = "0.1.0"
