"""How a step adds up what becomes one number: the loss of micro-batches, the squares of gradient elements.

Each is an array to be all-reduced by addition, over the ranks that have a part in it, and then a number.
`PlainSums` adds as it comes: one partial sum a rank, whose rounding depends on what the rank has. `ExactSums`
(run.exact) brings arrays whose addition over ranks rounds nothing:

    losses    one number for each micro-batch of the step, in a place of its own; zero elsewhere
    squares   sums over blocks of the gradient that no layout cuts, as integers (arrays/fixed_point.py)
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from minitrain.arrays.device import Device
from minitrain.arrays.fixed_point import digits, value
from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.parallel.unit import Unit


class Sums(Protocol):
    def losses(self, n_micro: int) -> Array:
        """Zeros, for `n_micro` micro-batches of each data-parallel rank."""

    def place(self, micro: int) -> tuple[int, int]:
        """Where the loss of this rank's micro-batch is to be added."""

    def squares(self, units: Sequence[Unit]) -> Array:
        """Of the gradient elements that this rank counts."""

    def square(self, squares: Array) -> Array:
        """The sum of squares, once `squares` are added up over ranks. fp64 [1]"""


class PlainSums:
    """On the device."""

    def __init__(self, device: Device) -> None:
        self._xp = device.xp

    def losses(self, n_micro: int) -> Array:
        losses: Array = self._xp.zeros((1, 1))
        return losses

    def place(self, micro: int) -> tuple[int, int]:
        return 0, 0

    def squares(self, units: Sequence[Unit]) -> Array:
        total: Array = self._xp.zeros(1)
        for unit in units:
            unit.add_squares(total)
        return total

    def square(self, squares: Array) -> Array:
        return squares


class ExactSums:
    """Losses on the device; squares on the host, which waits for them."""

    def __init__(self, device: Device, dp: Comm) -> None:
        self._xp, self._dp = device.xp, dp

    def losses(self, n_micro: int) -> Array:
        losses: Array = self._xp.zeros((self._dp.size, n_micro))
        return losses

    def place(self, micro: int) -> tuple[int, int]:
        return self._dp.rank, micro

    def squares(self, units: Sequence[Unit]) -> Array:
        return digits(np.concatenate([unit.squares_of_blocks() for unit in units]))

    def square(self, squares: Array) -> Array:
        return np.array([value(squares)])
