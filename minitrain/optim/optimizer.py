"""What an optimizer is: a pair of functions on vectors. It knows nothing of tensors, ranks or types.

The caller hands each run of parameters that shares a weight decay to `update` separately; an optimizer that
works element by element therefore gives the same result however vectors are cut.
"""

from typing import NamedTuple, Protocol

from minitrain.arrays.types import Array

State = dict[str, Array]


class Init(Protocol):
    """The state for a vector of parameters: named vectors of the same size, zero at the start."""

    def __call__(self, param: Array) -> State: ...


class Update(Protocol):
    """One step, in place on `param` and `state`.

    The gradient is `grad_scale * grad` (clipping). `step` counts this optimizer's own updates from 1;
    `decay` is the weight decay of these parameters, decoupled and in units of lr.
    """

    def __call__(
        self,
        param: Array,
        grad: Array,
        state: State,
        *,
        lr: float,
        decay: float,
        grad_scale: float,
        step: int,
    ) -> None: ...


class Optimizer(NamedTuple):
    init: Init
    update: Update
