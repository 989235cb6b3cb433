"""A flat vector as the home of many tensors: where each lies, and views of it by name.

Everything that moves or updates parameters sees one vector; everything that computes with them sees named
views into it. No copy.
"""

import math
from collections.abc import Sequence

from minitrain.arrays.types import Array


class Layout:
    """Maps names to places in a flat vector; the tensors lie one after another in the order given, each at
    a multiple of `align`.
    """

    def __init__(self, shapes: Sequence[tuple[str, tuple[int, ...]]], align: int = 1) -> None:
        self.shapes = dict(shapes)
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name, shape in shapes:
            start = padded(self.size, align)
            self.size = start + math.prod(shape)
            self.slices[name] = slice(start, self.size)

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


def overlap(piece: slice, window: slice) -> tuple[slice, slice]:
    """The part of `piece` inside `window`: counted from the piece's start, and from the window's."""
    start, stop = max(piece.start, window.start), min(piece.stop, window.stop)
    if start >= stop:
        return slice(0, 0), slice(0, 0)
    return slice(start - piece.start, stop - piece.start), slice(start - window.start, stop - window.start)
