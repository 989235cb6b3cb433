"""Collectives made of messages, to be read: one algorithm a file, one hop a step.

Each is a generator that every rank runs and that yields after each hop, so that a reader can look at the
buffers between two hops; `finish` runs it to its end. Training uses the collectives of a library, which does
the same, or better.
"""
