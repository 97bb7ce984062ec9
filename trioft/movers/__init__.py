"""
Child processes as the agent sees them: a pool of movers that can be called, watched, killed and left behind.

Every file operation at a source or destination happens in such a child, since an operation on a dead mount cannot be
interrupted. Nothing here touches either end itself (``ops`` does, in the children), and nothing here decides what is
copied.
"""
