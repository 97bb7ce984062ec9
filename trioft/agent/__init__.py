"""
A run: which jobs there are, what they share, how they begin, are stopped, reconfigured and told of.

It opens the channels and the nurseries and owns signals and the order of ending. It decides nothing about a single
file, and never prints.
"""
