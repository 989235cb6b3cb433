"""One update of vectors that are kept in any type: loaded a cache-sized block at a time, updated in fp32 or
fp64, stored.

Where a vector has the type of computation its own memory is worked on, and nothing is loaded or stored. Where
it is narrower, `Rounding` says what becomes of the digits that do not fit.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from minitrain.arrays.blocks import row_blocks
from minitrain.arrays.narrow import compute_type, store, wide
from minitrain.arrays.types import Array
from minitrain.optim.optimizer import Elementwise, Hyper, State, Stored
from minitrain.optim.quantised import Quantised

Rounding: TypeAlias = Callable[[dict[str, Array], slice, dict[str, Array]], None]
"""(values by name, the elements they are of, where each goes): stores them, rounded."""


def to_nearest(values: dict[str, Array], elements: slice, targets: dict[str, Array]) -> None:
    """Rounds to the nearest value of the target's type."""
    for name, target in targets.items():
        store(values[name], target)


def apply(
    optimizer: Elementwise,
    param: Array,
    grad: Array,
    state: State,
    where: slice,
    hyper: Hyper,
    grad_scale: float,
    rounding: Rounding = to_nearest,
) -> None:
    """One step of `optimizer` on the elements `where`, in place on `param` and `state`. The gradient is
    `grad_scale * grad` (clipping, loss scaling); `grad` is used up. The largest temporary is a block.
    """
    computed = compute_type(param.dtype)
    for block in _blocks(where, computed.itemsize, optimizer.align):
        g = _scaled(grad[block], grad_scale, computed)
        with_param = {"": param, **state}
        values = {name: _load(vector, block) for name, vector in with_param.items()}
        optimizer.update(values[""], g, values, hyper)
        _save(values, block, with_param, rounding)


def absorb(optimizer: Elementwise, state: State, estimate: Array) -> None:
    """The state takes in an estimate of the Hessian's diagonal, which may be overwritten."""
    assert optimizer.absorb is not None
    for block in _blocks(slice(0, estimate.size), estimate.itemsize, optimizer.align):
        values = {name: _load(vector, block) for name, vector in state.items()}
        optimizer.absorb(values, estimate[block])
        _save(values, block, state, to_nearest)


def _blocks(where: slice, itemsize: int, align: int) -> Iterator[slice]:
    """Slices of `where`, each a multiple of `align` after its start. A handful of blocks fit an L2 cache."""
    for rows in row_blocks(-(-(where.stop - where.start) // align), itemsize * align):
        yield slice(where.start + rows.start * align, min(where.start + rows.stop * align, where.stop))


def _scaled(grad: Array, scale: float, dtype: np.dtype[np.generic]) -> Array:
    """`scale * grad` in the type of computation, in the gradient's own memory if it has that type."""
    if grad.dtype != dtype:
        return np.multiply(grad, scale, dtype=dtype)
    if scale != 1:
        grad *= scale
    return grad


def _load(vector: Stored, block: slice) -> Array:
    if isinstance(vector, Quantised):
        return vector.load(block)
    return wide(vector[block])


def _save(values: dict[str, Array], block: slice, vectors: State, rounding: Rounding) -> None:
    targets = {}
    for name, vector in vectors.items():
        if isinstance(vector, Quantised):
            vector.save(block, values[name])
        elif vector.dtype != values[name].dtype:
            targets[name] = vector[block]
    if targets:
        rounding(values, block, targets)
