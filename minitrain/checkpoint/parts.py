"""Which parts of every tensor this rank writes, so that all ranks together write each element once.

A tensor is cut into boxes by tensor parallelism and each box, in the order of memory, into runs by ZeRO
(`parallel/unit.py`). Here the run of a rank is cut once more among the replicas, which hold the same. A
run of a matrix is up to three boxes: the rest of a row, whole rows, the beginning of a row.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from minitrain.comm.grid import Grid
from minitrain.parallel.unit import Held, Unit


class Part(NamedTuple):
    """A box of a tensor; its elements are these of what the rank holds of the tensor."""

    held: Held
    box: tuple[slice, ...]
    elements: slice

    @property
    def where(self) -> slice:
        """The same elements in the vectors of the unit."""
        start = self.held.where.start
        return slice(start + self.elements.start, start + self.elements.stop)

    @property
    def shape(self) -> list[int]:
        return [cut.stop - cut.start for cut in self.box]


def parts_to_write(unit: Unit, grid: Grid) -> Iterator[Part]:
    """What this rank writes of the unit."""
    replica = grid.replica
    for held, speaks in zip(unit.held, unit.speaks_for, strict=True):
        if speaks:
            n = held.run.stop - held.run.start
            mine = slice(replica.rank * n // replica.size, (replica.rank + 1) * n // replica.size)
            yield from _parts(held, mine)


def parts_to_read(held: Held) -> Iterator[Part]:
    """All that this rank holds of a parameter."""
    return _parts(held, slice(0, held.run.stop - held.run.start))


def _parts(held: Held, elements: slice) -> Iterator[Part]:
    first = held.run.start
    for box, run in boxes_of_run(held.box, slice(first + elements.start, first + elements.stop)):
        yield Part(held, box, slice(run.start - first, run.stop - first))


def boxes_of_run(box: tuple[slice, ...], run: slice) -> Iterator[tuple[tuple[slice, ...], slice]]:
    """The elements `run` of `box`, counted row by row, as boxes of the tensor, each with its elements."""
    rows = box[0]
    width = box[1].stop - box[1].start if len(box) == 2 else 1
    whole_from, whole_to = -(-run.start // width) * width, run.stop // width * width
    cuts = {run.start, run.stop} | ({whole_from, whole_to} if whole_from <= whole_to else set())
    for start, stop in itertools.pairwise(sorted(cuts)):
        row, column = divmod(start, width)
        n_rows = max(1, (stop - start) // width)
        part: tuple[slice, ...] = (slice(rows.start + row, rows.start + row + n_rows),)
        if len(box) == 2:
            n_columns = min(width, stop - start)
            part += (slice(box[1].start + column, box[1].start + column + n_columns),)
        yield part, slice(start, stop)
