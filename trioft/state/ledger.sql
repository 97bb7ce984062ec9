-- The ledger of one source and one destination. Everything in it can be read with the sqlite3 shell.
-- Paths are BLOBs: bytes, relative to the source or the destination, since a legal name need not be UTF-8.
-- Times are RFC 3339, UTC. The file's `application_id` is 0x7472696F ("trio"), its `user_version` this schema's number.

-- Which two ends this ledger is about, and what trioft has noted about them.
CREATE TABLE about (
    key   TEXT PRIMARY KEY,         -- source, destination: their paths; source_filesystem, destination_filesystem: what
                                    -- was mounted there, as JSON, so that another one is not mistaken for it;
                                    -- destination_resolution: of its times, in nanoseconds; destination_mounts: what is
                                    -- mounted below it and was delivered to; source_volumes: all that were mounted
                                    -- there, in order; source_volume: the number of the present one, once there were
                                    -- two (then a table `origin` says from which a name was delivered); made_by; id:
                                    -- 16 random bytes, of which the names of this ledger's partials have a mark
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- The newest thing known about each source file: what makes a restart copy nothing twice.
CREATE TABLE file (
    folder    BLOB NOT NULL,        -- the source file's folder, empty for the root; a rescan asks for one folder at a time
    name      BLOB NOT NULL,
    outcome   TEXT NOT NULL CHECK (outcome IN ('delivered', 'already', 'skipped', 'failed')),
    removal   TEXT NOT NULL DEFAULT '' CHECK (removal IN ('', 'pending', 'removed', 'refused')),
    target    BLOB NOT NULL,        -- its final name at the destination; empty where it has none, or another file has it now
    size      INTEGER NOT NULL,     -- bytes; with mtime_ns this tells whether the file has changed since
    mtime_ns  INTEGER NOT NULL,
    ctime_ns  INTEGER NOT NULL,     -- a failed file is tried again when this changes too: its permissions may have
    digest    BLOB,                 -- xxh3-128 of the xxh3-128 of its 8 MiB blocks, in order; NULL at level `size`
    closed    TEXT NOT NULL DEFAULT '', -- that nobody was writing it was 'proved' (the kernel says so), 'marked' (its marker
                                    -- does), 'likely' (no process of this machine, and quiet time) or a 'timeout' (quiet
                                    -- time alone); '' where unknown
    sum       BLOB,                 -- digest of the columns above: what does not fit is not believed; NULL before version 5
    PRIMARY KEY (folder, name)
) STRICT, WITHOUT ROWID;

-- A start forgets these, so that they are tried again: it must not read the whole table for that.
CREATE INDEX file_to_try_again ON file (outcome) WHERE outcome IN ('failed', 'skipped');

-- Who was delivered under a name that is not its path: no file replaces another one's.
CREATE INDEX file_by_target ON file (target)
    WHERE target <> x'' AND target <> CAST(iif(folder = x'', name, folder || '/' || name) AS BLOB);

-- Transfers in progress: where each may be continued. A checkpoint never leads: all below `offset` is durable and verified.
CREATE TABLE checkpoint (
    path      BLOB PRIMARY KEY,     -- the source file
    partial   BLOB NOT NULL,        -- its partial at the destination
    dev       INTEGER NOT NULL,     -- the version of the source that the bytes were read from: device, inode,
    ino       INTEGER NOT NULL,
    size      INTEGER NOT NULL,     -- size (of a file that grows: so far),
    mtime_ns  INTEGER NOT NULL,     -- and times
    ctime_ns  INTEGER NOT NULL,
    offset    INTEGER NOT NULL,     -- bytes
    digests   BLOB NOT NULL,        -- xxh3-128 of each 8 MiB block below `offset`, 16 bytes each; empty at level `size`;
                                    -- 16 zero bytes: the block is being written again, as its recorder has rewritten it
    time      TEXT NOT NULL,
    growing   INTEGER NOT NULL DEFAULT 0, -- 1: it was being written; all will be compared with the source once it is closed
    sum       BLOB                  -- digest of the columns above: a row that does not fit it is not believed
) STRICT, WITHOUT ROWID;

CREATE INDEX checkpoint_by_partial ON checkpoint (partial);

-- A recording that was renamed is found again by what it is.
CREATE INDEX checkpoint_by_identity ON checkpoint (dev, ino);

-- What happened; order it by time and id, as some rows are written a moment later. Only ever added to; rows older than
-- `state.keep_history` are deleted.
CREATE TABLE history (
    id        INTEGER PRIMARY KEY,
    time      TEXT NOT NULL,
    event     TEXT NOT NULL,        -- an outcome: delivered, already, failed, skipped, removed, refused (to remove); or what was
                                    -- decided on the way: growing, copying, verifying, settling, waiting, renamed, retried,
                                    -- gone. The latter are left out where a small file arrives at the first attempt
    path      BLOB NOT NULL,
    target    BLOB NOT NULL,
    size      INTEGER NOT NULL,
    digest    BLOB,
    detail    TEXT NOT NULL         -- what a person wants to know: the reason, the error, or the proofs behind a removal
) STRICT;

CREATE INDEX history_by_path ON history (path);
CREATE INDEX history_by_time ON history (time);

-- Files that no manifest lists yet (`copy.manifest`): what a run that is cut short leaves to the next one.
CREATE TABLE unlisted (
    target    BLOB NOT NULL,        -- its final name at the destination
    state     TEXT NOT NULL,        -- publishing (about to get it), doubtful (an earlier run did not say whether it has got it),
                                    -- delivered
    size      INTEGER NOT NULL,
    mtime_ns  INTEGER NOT NULL,
    digest    BLOB,                 -- as in `file`
    sum       BLOB,                 -- what a manifest says of it: xxh128 (16 bytes) or SHA-256 (32) of all its bytes; NULL:
                                    -- these are still to be read, at the destination
    time      TEXT NOT NULL,        -- of its delivery
    PRIMARY KEY (target, state)
) STRICT, WITHOUT ROWID;

CREATE INDEX unlisted_to_read ON unlisted (time) WHERE sum IS NULL;
