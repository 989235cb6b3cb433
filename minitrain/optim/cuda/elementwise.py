"""`optim/apply.py` on a GPU: one launch updates any number of elements, and rounds once where it stores.

Each kernel also writes the parameters in their own type, where the master copy has another.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from minitrain.arrays.device import Gpu
from minitrain.arrays.narrow import compute_type
from minitrain.arrays.threads import RUN, THREADS, blocks
from minitrain.arrays.types import Array
from minitrain.optim.cuda.chance import NEAREST, Chance
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.optimizer import State
from minitrain.optim.quantised import MAPS, MIDPOINTS, Quantised

SOURCE = "optim/cuda/elementwise.cu"


class Range(NamedTuple):
    """Elements of a flat vector that have one learning rate and one weight decay."""

    where: slice
    lr: float
    decay: float


def together(ranges: Iterable[Range]) -> list[Range]:
    """The same in as few as possible: neighbours that have the same numbers become one."""
    joined: list[Range] = []
    for where, lr, decay in ranges:
        if joined and joined[-1] == (slice(joined[-1].where.start, where.start), lr, decay):
            joined[-1] = Range(slice(joined[-1].where.start, where.stop), lr, decay)
        elif where.stop > where.start:
            joined.append(Range(where, lr, decay))
    return joined


class Updates:
    """The kernels of one GPU."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        tables = {signed: np.concatenate([MAPS[signed], MIDPOINTS[signed]]) for signed in MAPS}
        self._tables = {signed: gpu.to_device(table) for signed, table in tables.items()}  # for 8 bits

    def apply(
        self,
        kernel: Kernel,
        param: Array,
        grad: Array,
        state: State,
        of: Range,
        verdict: Array,
        copy: Array | None = None,
        chance: Chance = NEAREST,
    ) -> None:
        """One step on the elements `of.where`, in place on `param` and `state`; `grad` stays as it is.

        `verdict` (that of judge.py, on the GPU) has the factor of the gradient, the number of the update, and
        whether anything is done at all. `copy` <- the new `param`, rounded to the type of `copy`. The kernel
        takes the vectors of `state` in their order. `chance` is of the first element.
        """
        n = of.where.stop - of.where.start
        if n == 0:
            return
        types = {"M": param.dtype, "G": grad.dtype, "P": param.dtype if copy is None else copy.dtype}
        narrowest = min(dtype.itemsize for dtype in types.values())
        self._gpu.launch(
            SOURCE, kernel.name, types, blocks(n, narrowest), THREADS,
            verdict, grad[of.where], param[of.where], None if copy is None else copy[of.where], n,
            *self._arrays(state, of.where), *map(float, (of.lr, of.decay, *kernel.numbers)), *chance,
        )  # fmt: skip

    def absorb(self, kernel: Kernel, state: State, estimate: Array, rejected: Array) -> None:
        """The state takes in an estimate of the Hessian's diagonal, in the type of computation, unless
        rejected[0] (int64, on the GPU) is not 0.
        """
        n, arrays = estimate.size, self._arrays(state, slice(0, estimate.size))
        dtype = arrays[0].dtype
        assert estimate.dtype == compute_type(dtype), f"an estimate of {estimate.dtype} for {dtype}"
        if n:
            self._gpu.launch(
                SOURCE, f"{kernel.name}_absorb", {"M": dtype, "G": dtype, "P": dtype},
                blocks(n, RUN), THREADS,  # a thread takes one element at a time
                rejected, estimate, *arrays, n, *map(float, kernel.numbers),
            )  # fmt: skip

    def _arrays(self, state: State, where: slice) -> list[Array]:
        """What a kernel takes for the vectors of the state."""
        arrays: list[Array] = []
        for vector in state.values():
            if isinstance(vector, Quantised):
                largest = vector.largest[vector.blocks(where)]
                arrays += [vector.codes[where], largest, self._tables[vector.signed]]
            else:
                arrays.append(vector[where])
        return arrays
