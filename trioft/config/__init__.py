"""
What can be set: the options with their defaults, how they are read from YAML, environment and command line, and what
they mean for the operations.

A new option is one declaration in ``options``; it may need a new kind of value in ``kinds``, a line in ``policy``
where operations depend on it, and a flag of its own in ``cli.arguments`` and ``cli.app``. This wing refuses every
mistake at once and in words, and never acts on what it reads: it opens the configuration file and nothing else.
"""
