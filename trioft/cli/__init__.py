"""
Commands and what they say: arguments become a configuration, a run becomes text, JSON lines and an exit code.

This is the only place that prints. It holds no logic that a second caller, such as the port, would need too.
"""
