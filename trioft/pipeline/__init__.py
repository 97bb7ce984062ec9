"""
A file's way from the source to its final name: found, judged, ordered, copied, verified, published, recorded, removed.

The scanner decides what is ready, copiers carry it, strategies move the bytes, ``finish`` gives the final name. It
reaches files only through movers, and never prints, listens on a port or reads the command line.
"""
