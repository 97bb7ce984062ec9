"""
A destination that is a mounted folder: partials are written, settled, published, listed and read back here.

Operations go through the descriptor of the destination's root and never create that root. Outside this folder, only
the user's gate command learns where a partial lies.
"""
