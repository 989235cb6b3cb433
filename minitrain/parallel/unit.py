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

Under run.exact gradients of micro-batches are added up as the leaves of a binary tree (`arrays/tree.py`), at
every stage: of M micro-batches up to log2(M) full gradients wait for their siblings, and that of the last is
cut as it comes. So M = 1 keeps no full gradient, and M > 1 keeps some even under ZeRO 2 and 3.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from minitrain.arrays.device import Device, on_host, put
from minitrain.arrays.flat import Layout, merge, overlap, padded
from minitrain.arrays.owners import owners
from minitrain.arrays.pool import Pool
from minitrain.arrays.tree import TreeSum
from minitrain.arrays.types import Array
from minitrain.comm.grid import Grid
from minitrain.model.spec import ParamSpec
from minitrain.optim.optimizer import State
from minitrain.optim.quantised import Quantised
from minitrain.optim.vectors import NOWHERE, vector_ops
from minitrain.precision import Precision

Fill = Callable[[ParamSpec, tuple[slice, ...]], Array]
"""Gives the initial values of a box of a parameter."""

SQUARES_BLOCK = 256
"""Under run.exact tensors and shards begin at multiples of it, so that nothing cuts a block of so many."""


class Memory:
    """What all units of a rank have in common: the device, the grid, the ZeRO stage, the types, a multiple at
    which tensors begin, and buffers to borrow. `leaves`: under run.exact, the micro-batches of a rank in a
    step.
    """

    def __init__(
        self,
        device: Device,
        grid: Grid,
        zero: int,
        sequence: bool,
        precision: Precision,
        align: int,
        leaves: int | None,
    ) -> None:
        self.device, self.vectors = device, vector_ops(device)
        self.grid, self.zero, self.sequence, self.precision = grid, zero, sequence, precision
        self.align = align if leaves is None else math.lcm(align, SQUARES_BLOCK)
        self.leaves = leaves
        self.pool = Pool(device)


class Held(NamedTuple):
    """What this rank updates of one parameter: of its box `box`, cut by tensor parallelism, the elements
    `run` in the order of memory, cut by ZeRO. They lie at `where` in the own shard.
    """

    spec: ParamSpec
    box: tuple[slice, ...]
    run: slice
    where: slice
    speaks: bool  # for the tp ranks that hold the same

    def places(self, elements: slice, like: Array) -> Array:
        """The places of some elements of the own shard in the whole tensor, counted row by row. uint64, in
        the memory that `like` is in.
        """
        shift = self.run.start - self.where.start
        place = np.arange(elements.start + shift, elements.stop + shift, like=like)
        columns = self.box[-1].stop - self.box[-1].start
        if len(self.box) == 2 and columns < self.spec.shape[1]:
            row, column = np.divmod(place, columns)
            place = row * self.spec.shape[1] + column + self.box[1].start
        else:
            place += self.box[0].start * math.prod(self.spec.shape[1:])
        return place.astype(np.uint64)


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
        names = [spec.name.removeprefix(prefix) for spec in self.specs]
        self.layout = Layout(list(zip(names, shapes, strict=True)), memory.align)
        runs = list(zip(self.specs, self.layout.slices.values(), strict=True))
        self._whole = self._merged([run for spec, run in runs if kind(spec) == 0])
        self._kv_copies = self._merged([run for spec, run in runs if kind(spec) == 1])

        shard = memory.grid.shard
        n = padded(self.layout.size, shard.size * memory.align)
        own = slice(shard.rank * n // shard.size, (shard.rank + 1) * n // shard.size)
        speaks = [self._first_of_its_copies(kind(spec)) for spec in self.specs]
        self.held = [
            Held(spec, box, *overlap(run, own), speaks=first)
            for (spec, run), box, first in zip(runs, self.boxes, speaks, strict=True)
        ]
        self.speaks_for = [counted and first for first in speaks]
        # Of the own shard, what this rank adds to the global norm.
        self.counted = merge([h.where for h, c in zip(self.held, self.speaks_for, strict=True) if c])
        # Of the gradient before any sum over ranks, the first element that was not finite.
        self.not_finite: Array = memory.device.xp.full(1, NOWHERE, np.int64)
        self._allocate(n, own, fill)

    def _merged(self, runs: list[slice]) -> list[slice]:
        """As few slices as possible, with the gaps that `align` leaves, which hold zeros."""
        return merge([slice(run.start, padded(run.stop, self._memory.align)) for run in runs])

    def _first_of_its_copies(self, kind: int) -> bool:
        """Of the tp ranks that hold the same values one speaks for them: a norm is over every distinct
        parameter.
        """
        grid = self._memory.grid
        return (grid.tp.rank == 0, grid.kv.rank == 0, True)[kind]

    def _allocate(self, n: int, own: slice, fill: Fill) -> None:
        types, zero, sharded = self._memory.precision, self._memory.zero, self._memory.grid.shard.size > 1
        xp, n_own = self._memory.device.xp, own.stop - own.start
        full = xp.zeros(n, types.param)
        master = xp.zeros(n_own, types.master) if types.master != types.param else None
        for view, held in zip(self.layout.views(full).values(), self.held, strict=True):
            values = fill(held.spec, held.box)
            put(view, values)
            if master is not None:
                put(master[held.where], values.reshape(-1)[held.run])
        if zero < 3:
            self.param: Array | None = full
            self.param_shard = full[own] if sharded else full
        else:
            self.param, self.param_shard = None, full[own].copy()
        exact = self._memory.leaves is not None
        self._tree = TreeSum(self._memory.leaves or 1, self._memory.pool)
        if zero < 2 and not exact:
            self.grad: Array | None = xp.zeros(n, types.grad)
            self.grad_shard = self.grad[own] if sharded else self.grad
        else:
            self.grad, self.grad_shard = None, xp.zeros(n_own, types.grad)
        self.master = self.param_shard if master is None else master
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
        """The full gradients by name, to be added to. Where they are not kept the own part takes them in when
        they are complete: after each backward, or under run.exact after the last.
        """
        if self._grad_views is not None:
            yield self._grad_views
            return
        pool, shard = self._memory.pool, self._memory.grid.shard
        n, dtype = self.grad_shard.size, self.grad_shard.dtype
        full = pool.take(n * shard.size, dtype)
        full.fill(0)
        yield self.layout.views(full)
        self.sum_over_tp(full)
        total = self._tree.add(full)
        if total is not None:
            with pool.borrow(n, dtype) as part:
                shard.reduce_scatter(total, part)
                self.grad_shard += part
            pool.give_back(total)

    def reduce_scatter(self, full: Array, part: Array) -> None:
        """part <- this rank's part of the gradient, summed over what tp ranks saw apart and over the shard
        axis.
        """
        grid = self._memory.grid
        self.sum_over_tp(full)
        grid.shard.reduce_scatter(full, part)

    def sum_over_tp(self, full: Array) -> None:
        """In place, what tp ranks saw apart."""
        grid = self._memory.grid
        self._memory.vectors.first_not_finite(full, self.not_finite)
        if self._memory.sequence:
            for run in self._whole:  # each tp rank saw 1/tp of the rows
                grid.tp.all_reduce(full[run])
        for run in self._kv_copies:  # each copy of a kv head served other query heads
            grid.kv.all_reduce(full[run])

    def name_at(self, element: int) -> str:
        """The parameter that has this element of the full vectors."""
        places = zip(self.specs, self.layout.slices.values(), strict=True)
        return next(spec.name for spec, place in places if element < place.stop)

    def first_not_finite(self, first: Array) -> None:
        """first <- the place of the first element of the own part of the gradient that is not, if less."""
        self._memory.vectors.first_not_finite(self.grad_shard, first)

    def add_squares(self, total: Array) -> None:
        """total <- total + the squares of the gradient elements that this rank counts: none at all where its
        part is padding. fp64 [1].
        """
        for run in self.counted:
            self._memory.vectors.add_squares(self.grad_shard[run], total)

    def squares_of_blocks(self) -> Array:
        """The same, as one number for each block of SQUARES_BLOCK elements: whole blocks, in every layout.
        On the host.
        """
        runs = [slice(run.start, padded(run.stop, SQUARES_BLOCK)) for run in self.counted]
        blocks = [self.grad_shard[run].reshape(-1, SQUARES_BLOCK) for run in runs]
        return np.concatenate(
            [np.zeros(0), *(on_host(self._memory.vectors.squares_of_rows(rows)) for rows in blocks)]
        )

    def publish(self) -> None:
        """After an update of the master copy: the own part of the parameters, rounded to their type."""
        if self.master is not self.param_shard:
            self.param_shard[...] = self.master

    def zero_grads(self) -> None:
        (self.grad if self.grad is not None else self.grad_shard).fill(0)
        self.not_finite.fill(NOWHERE)

    def bytes(self) -> dict[str, int]:
        """Persistent memory of this unit by class. Views of one vector keep it once, and whole; a master copy
        that is the parameter takes nothing.
        """
        parameters = owners((self.param, self.param_shard))
        held = {
            "parameters": parameters,
            "gradients": owners((self.grad, self.grad_shard)),
            "master": {who: n for who, n in owners([self.master]).items() if who not in parameters},
            "moments": owners([v.arrays if isinstance(v, Quantised) else v for v in self.state.values()]),
        }
        return {name: sum(found.values()) for name, found in held.items()}
