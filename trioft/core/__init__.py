"""
Values, failures, names, units, and the contract between the agent and the movers.

``operations`` is that contract; ``errors.classify`` is the one table that says what to do about an error. All of it is
pure: it computes from its arguments and touches neither files nor the clock nor the network, so that both planes, and
any test, can use it. It imports no other wing, and nothing that is slow to load.
"""
