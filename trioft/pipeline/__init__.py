"""
A file's way from the source to its final name: found, judged, ordered, copied, verified, published, recorded, removed.

The scanner says what is ready, the backlog keeps it and decides which file goes next, lanes say how many copiers there
are, strategies move the bytes, ``finish`` gives the final name and asks for the removal, and ``outcomes`` does about
an error what ``core.errors.classify`` says; ``storage`` watches both ends and the space. It reaches files only through
movers, and never prints, listens on a port or reads the command line.
"""
