"""`optim/stochastic.py` on a GPU, where a kernel computes the chances itself: from these numbers."""

import math
from typing import NamedTuple

from minitrain.optim.stochastic import rounding_key


class Chance(NamedTuple):
    """As in elementwise.cu. The first of the elements at hand is number `at` of the box that tensor
    parallelism has cut out of the tensor; the box has rows of `columns`, the tensor of `stride` elements, and
    the box begins at the tensor's element `offset`. Without columns values are rounded to the nearest.
    """

    key: int
    at: int
    columns: int
    stride: int
    offset: int


NEAREST = Chance(0, 0, 0, 0, 0)


def chance(
    seed: int, count: int, name: str, shape: tuple[int, ...], box: tuple[slice, ...], run: slice
) -> Chance:
    """Of update `count` of the elements `run` of a box of the tensor `name`."""
    key = rounding_key(seed, count, name)
    key -= key >> 63 << 64  # as a `long long`
    columns = box[-1].stop - box[-1].start
    if len(box) == 2 and columns < shape[1]:
        return Chance(key, run.start, columns, shape[1], box[1].start)
    return Chance(key, run.start, 1, 1, box[0].start * math.prod(shape[1:]))
