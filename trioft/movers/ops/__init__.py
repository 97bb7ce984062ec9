"""
What runs inside a mover: the operations on sources and destinations, as plain synchronous functions.

``main`` names the function behind each operation of the contract; ``folder`` has those of the one kind of destination
that there is, a mounted folder. Only this code touches the two ends. It keeps no state from one operation to the next,
knows nothing of the agent, the ledger or the configuration, and never imports Trio or anything else that is slow to
load.
"""
