"""
What is known: the board (now, in memory), the ledger (for good, in SQLite), and what is read back from ledgers.

One task owns each of them; nobody else writes. It decides nothing about files: it records what the pipeline decided,
and never touches a source or a destination.
"""
