"""Which kernel is an optimizer's update on a GPU."""

from typing import NamedTuple


class Kernel(NamedTuple):
    """A kernel of `elementwise.cu` and the optimizer's own numbers, in the order in which it takes them."""

    name: str
    numbers: tuple[float, ...] = ()
