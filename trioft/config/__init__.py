"""
What can be set: the options with their defaults, how they are read from YAML, environment and command line, and what
they mean for the operations.

It refuses every mistake at once and in words, and never acts on what it reads: it opens the configuration file and
nothing else.
"""
