"""All-reduce in a ring: a reduce-scatter and an all-gather."""

from collections.abc import Callable

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.study.algorithms.hop import Hops
from minitrain.study.algorithms.ring_all_gather import all_gather
from minitrain.study.algorithms.ring_reduce_scatter import reduce_scatter


def all_reduce(comm: Comm, buffer: Array, combine: Callable[[Array, Array], Array] = np.add) -> Hops:
    """In 2(n - 1) hops: buffer <- the sum over ranks of their buffers."""
    yield from reduce_scatter(comm, buffer, combine)  # now rank r has the sum of slice r
    yield from all_gather(comm, buffer)
