"""Communicators: one interface, its implementations, and the grid of ranks."""
