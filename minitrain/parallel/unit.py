"""The flat memory of one part of the model (a block, the embedding, the head), and how long each piece of
it lives.

ZeRO (Rajbhandari et al. 2020) is two questions. *Who* shares the work: the ranks of the `shard` axis, each
the owner of 1/shard of every vector. *How long* do full vectors live:

    stage   full parameters      full gradients         optimizer state
    0       always               always                 full (the shard axis has extent 1)
    1       always               always                 own part
    2       always               during one backward    own part
    3       during one use       during one backward    own part

`params()` and `grads()` hide the stage from all that computes; `param` and `grad` are None where not kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from minitrain.arrays.blocks import row_blocks
from minitrain.arrays.flat import Layout, merge, padded, within
from minitrain.arrays.pool import Pool
from minitrain.arrays.types import Array
from minitrain.comm.grid import Grid
from minitrain.model.spec import ParamSpec
from minitrain.optim.optimizer import Optimizer, State
from minitrain.precision import Precision

Fill = Callable[[ParamSpec, tuple[slice, ...]], Array]
"""Gives the initial values of a box of a parameter."""


class Memory:
    """What all units of a rank have in common: the grid, the ZeRO stage, the types, and buffers to borrow."""

    def __init__(self, grid: Grid, zero: int, sequence: bool, precision: Precision) -> None:
        self.grid, self.zero, self.sequence, self.precision = grid, zero, sequence, precision
        self.pool = Pool()


class Unit:
    """Parameters, gradients and optimizer state of a few parameters, as flat vectors.

    Order within a vector: first what does not decay, then what does; within each first parameters that
    every tp rank holds whole, then those of which some tp ranks hold copies (kv heads), then those cut over
    tp. So one collective serves each kind.
    """

    def __init__(
        self, prefix: str, specs: Sequence[ParamSpec], memory: Memory, fill: Fill, counted: bool = True
    ) -> None:
        """`prefix` is cut off the names for the views. `counted` is false for a second copy of what another
        stage holds.
        """
        self.prefix, self._memory = prefix, memory
        tp = memory.grid.tp

        def kind(spec: ParamSpec) -> int:
            return 0 if spec.tp_dim is None else 1 if spec.tp_replicas(tp.size) > 1 else 2

        self.specs = sorted(specs, key=lambda spec: (spec.decays, kind(spec)))
        self.boxes = [spec.tp_slice(tp.rank, tp.size) for spec in self.specs]
        shapes = [tuple(b.stop - b.start for b in box) for box in self.boxes]
        self.layout = Layout(
            [(spec.name.removeprefix(prefix), s) for spec, s in zip(self.specs, shapes, strict=True)]
        )
        runs = list(zip(self.specs, self.layout.slices.values(), strict=True))
        self._whole = merge([run for spec, run in runs if kind(spec) == 0])
        self._kv_copies = merge([run for spec, run in runs if kind(spec) == 1])

        shard = memory.grid.shard
        n = padded(self.layout.size, shard.size)
        own = slice(shard.rank * n // shard.size, (shard.rank + 1) * n // shard.size)
        self.speaks_for = [counted and self._first_of_its_copies(kind(spec)) for spec in self.specs]
        here = [run for (_, run), spoken in zip(runs, self.speaks_for, strict=True) if spoken]
        self.counted = within(merge(here), own)  # of the own shard, what this rank adds to the global norm
        decaying = within(merge([run for spec, run in runs if spec.decays]), own)
        resting = within(merge([run for spec, run in runs if not spec.decays]), own)
        # Of the own shard: (where, decays).
        self.groups = [(run, True) for run in decaying] + [(run, False) for run in resting]
        self._allocate(n, own, fill)

    def _first_of_its_copies(self, kind: int) -> bool:
        """Of the tp ranks that hold the same values one speaks for them: a norm is over every distinct
        parameter.
        """
        grid = self._memory.grid
        return (grid.tp.rank == 0, grid.kv.rank == 0, True)[kind]

    def _allocate(self, n: int, own: slice, fill: Fill) -> None:
        precision, zero, sharded = self._memory.precision, self._memory.zero, self._memory.grid.shard.size > 1
        full = np.zeros(n, precision.param)
        for view, spec, box in zip(self.layout.views(full).values(), self.specs, self.boxes, strict=True):
            view[...] = fill(spec, box)
        if zero < 3:
            self.param: Array | None = full
            self.param_shard = full[own] if sharded else full
        else:
            self.param, self.param_shard = None, full[own].copy()
        if zero < 2:
            self.grad: Array | None = np.zeros(n, precision.grad)
            self.grad_shard = self.grad[own] if sharded else self.grad
        else:
            self.grad, self.grad_shard = None, np.zeros(own.stop - own.start, precision.grad)
        self.master = self.param_shard  # of one type with the gradients: the parameter is its own master copy
        self.state: State = {}
        self._param_views = None if self.param is None else self.layout.views(self.param)
        self._grad_views = None if self.grad is None else self.layout.views(self.grad)

    @contextmanager
    def params(self) -> Iterator[dict[str, Array]]:
        """The full parameters by name, to be read."""
        if self._param_views is not None:
            yield self._param_views
            return
        shard = self._memory.grid.shard
        with self._memory.pool.borrow(self.param_shard.size * shard.size, self.param_shard.dtype) as full:
            shard.all_gather(self.param_shard, full)
            yield self.layout.views(full)

    @contextmanager
    def grads(self) -> Iterator[dict[str, Array]]:
        """The full gradients by name, to be added to."""
        if self._grad_views is not None:
            yield self._grad_views
            return
        pool, n = self._memory.pool, self.grad_shard.size
        with pool.borrow(n * self._memory.grid.shard.size, self.grad_shard.dtype) as full:
            full.fill(0)
            yield self.layout.views(full)
            with pool.borrow(n, self.grad_shard.dtype) as part:
                self.reduce_scatter(full, part)
                self.grad_shard += part

    def reduce_scatter(self, full: Array, part: Array) -> None:
        """part <- this rank's part of the gradient, summed over what tp ranks saw apart and over the shard
        axis.
        """
        grid = self._memory.grid
        if self._memory.sequence:
            for run in self._whole:  # each tp rank saw 1/tp of the rows
                grid.tp.all_reduce(full[run])
        for run in self._kv_copies:  # each copy of a kv head served other query heads
            grid.kv.all_reduce(full[run])
        grid.shard.reduce_scatter(full, part)

    def sum_of_squares(self) -> float:
        """Of the gradient elements that this rank counts: none at all where its part is padding.

        Blocks are added up in fp64: one long product in fp32 would be wrong in its fifth digit.
        """
        total = 0.0
        for run in self.counted:
            grad = self.grad_shard[run]
            for block in row_blocks(grad.size, grad.itemsize):
                total += float(np.dot(grad[block], grad[block]))
        return total

    def distinct(self) -> Iterator[tuple[ParamSpec, tuple[slice, ...], Array]]:
        """(parameter, box, values) of what this rank holds and speaks for; every shard rank of a replica
        gets the same.

        Under ZeRO 3 collective over the shard axis.
        """
        with self.params() as views:
            for spec, box, values, spoken in zip(
                self.specs, self.boxes, views.values(), self.speaks_for, strict=True
            ):
                if spoken:
                    yield spec, box, values

    def update(
        self, optimizer: Optimizer, lr: float, weight_decay: float, grad_scale: float, step: int
    ) -> None:
        """One step of the optimizer on the own part."""
        for run, decays in self.groups:
            state = {name: vector[run] for name, vector in self.state.items()}
            optimizer.update(
                self.master[run], self.grad_shard[run], state,
                lr=lr, decay=weight_decay if decays else 0.0, grad_scale=grad_scale, step=step,
            )  # fmt: skip

    def zero_grads(self) -> None:
        (self.grad if self.grad is not None else self.grad_shard).fill(0)

    def bytes(self) -> dict[str, int]:
        """Persistent memory of this unit by class. A shard that is a view of a full vector, or a master
        copy that is the parameter, takes nothing.
        """
        param = self.param if self.param is not None else self.param_shard
        grad = self.grad if self.grad is not None else self.grad_shard
        master = 0 if self.master is self.param_shard else self.master.nbytes
        moments = sum(vector.nbytes for vector in self.state.values())
        return {"parameters": param.nbytes, "gradients": grad.nbytes, "master": master, "moments": moments}
