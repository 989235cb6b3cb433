"""A flat vector as the home of many tensors: where each lies, and views of it by name.

Everything that moves or updates parameters sees one vector; everything that computes with them sees named
views into it. No copy.
"""

import math
from collections.abc import Sequence

from minitrain.arrays.types import Array


class Layout:
    """Maps names to places in a flat vector; the tensors lie one after another in the order given."""

    def __init__(self, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        self.shapes = dict(shapes)
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name, shape in shapes:
            n = math.prod(shape)
            self.slices[name] = slice(self.size, self.size + n)
            self.size += n

    def views(self, flat: Array) -> dict[str, Array]:
        """Every tensor as a view of `flat`, which may be longer than the layout (padding)."""
        return {name: flat[self.slices[name]].reshape(shape) for name, shape in self.shapes.items()}


def padded(size: int, parts: int) -> int:
    """The smallest multiple of `parts` that is not below `size`."""
    return -(-size // parts) * parts


def merge(slices: Sequence[slice]) -> list[slice]:
    """The same elements as the given ordered slices in as few slices as possible."""
    merged: list[slice] = []
    for piece in slices:
        if merged and merged[-1].stop == piece.start:
            merged[-1] = slice(merged[-1].start, piece.stop)
        elif piece.stop > piece.start:
            merged.append(piece)
    return merged


def within(pieces: Sequence[slice], window: slice) -> list[slice]:
    """The parts of `pieces` inside `window`, counted from the window's start."""
    cut = [slice(max(p.start, window.start), min(p.stop, window.stop)) for p in pieces]
    return [slice(p.start - window.start, p.stop - window.start) for p in cut if p.stop > p.start]
