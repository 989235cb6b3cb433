"""What an optimizer is: a pair of functions (init, update). It knows nothing of ranks, and computes in fp32
or fp64 whatever the type in which its vectors are kept (`apply.py` loads and stores them).

There are two kinds. Most work element by element, so the result does not depend on how vectors are cut. A
few look at whole tensors: norms, rows and columns, matrices. They see a tensor as the `Piece` of it that this
rank holds, and may add numbers up over all ranks that hold other pieces of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from minitrain.arrays.types import Array
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.quantised import Quantised

Curvature = Literal["gauss-newton-bartlett", "hutchinson"]
Group = Literal["matrix", "vector", "embedding", "head"]


class Hyper(NamedTuple):
    """What a step gives an optimizer. `t` counts its own updates from 1; `decay` is the weight decay,
    decoupled and in units of lr.
    """

    lr: float
    decay: float
    t: int


Stored: TypeAlias = Array | Quantised
"""A vector of the state as it is kept."""

State: TypeAlias = dict[str, Stored]
"""Vectors by name: what an optimizer remembers."""

Moments: TypeAlias = Mapping[str, Array]
"""The same in the type of computation, of the elements at hand."""


class Update(Protocol):
    """One step, in place on `w` and the moments. `g` is the gradient, scaled already; it may be
    overwritten.
    """

    def __call__(self, w: Array, g: Array, moments: Moments, hyper: Hyper) -> None: ...


class Elementwise(NamedTuple):
    """An optimizer in which every element is on its own.

    `init` gives the state for a vector of parameters, zero at the start. `kernel` does on a GPU what `update`
    does here. `align`: tensors and shards begin at multiples of it. `curvature` says which estimate of the
    Hessian's diagonal `absorb` wants to see now and then: (moments, estimate), in place.
    """

    init: Callable[[Array], State]
    update: Update
    kernel: Kernel
    align: int = 1
    curvature: Curvature | None = None
    absorb: Callable[[Moments, Array], None] | None = None


class Piece(NamedTuple):
    """What this rank holds of one tensor: the elements `run` of the box `box` of it, `box` being cut by
    tensor parallelism and `run`, in the order of memory, by ZeRO.

    `w`, `g` and the moments are vectors of those elements, in the type of computation. `counts` is false
    where another rank holds the same piece and speaks for it in sums.
    """

    name: str
    group: Group
    shape: tuple[int, ...]
    box: tuple[slice, ...]
    run: slice
    counts: bool
    w: Array
    g: Array
    moments: Moments
    hyper: Hyper

    def boxed(self, values: Array) -> Array:
        """`values` of the run in their places in the box, zero elsewhere."""
        box = np.zeros_like(values, shape=[cut.stop - cut.start for cut in self.box])
        box.reshape(-1)[self.run] = values
        return box

    def taken(self, box: Array) -> Array:
        """The run's elements of an array as large as the box."""
        return box.reshape(-1)[self.run]


Total: TypeAlias = Callable[[Array], None]
"""Adds an array up over all ranks that hold pieces of the same tensors, in place. Collective."""


class WholeTensor(NamedTuple):
    """An optimizer that looks at whole tensors.

    `init` gives the moments of one piece, zero at the start (its `g` and `moments` are not there yet).
    `update` takes one step, in place, on all pieces of a few tensors at once; every rank that holds some of
    these tensors has the same list, with pieces that may be empty.
    """

    init: Callable[[Piece], dict[str, Array]]
    update: Callable[[Sequence[Piece], Total], None]


Optimizer: TypeAlias = Elementwise | WholeTensor
