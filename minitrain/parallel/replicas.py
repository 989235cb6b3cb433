"""Is what several ranks hold alike still alike? Bit for bit, found by comparing 64-bit hashes (XXH3).

The same numbers are held by, tensor by tensor,

    dp        parameters, where they are kept whole (ZeRO 0 to 2)
    replica   own parts: parameters (ZeRO 3), master copies, what the optimizer remembers
    tp        parameters that are not cut
    kv        copies of kv heads
    tied      the embedding, in the first and the last stage

All of it is computed from sums that have the same bits on every rank, in the same way, so it never differs
but by a defect: of a machine, which happens (Dixit et al. 2021, Silent Data Corruptions at Scale), or of the
program. What a single rank holds cannot be compared: nothing is said of it.
"""

from collections.abc import Iterator

import numpy as np
import xxhash

from minitrain.arrays.device import on_host
from minitrain.arrays.types import Array
from minitrain.comm.agree import agree, alike
from minitrain.comm.grid import Grid
from minitrain.comm.interface import Comm
from minitrain.comm.ranks import grouped, name_ranks
from minitrain.errors import NumericsError
from minitrain.optim.optimizer import Elementwise, Optimizer, Stored
from minitrain.optim.quantised import BLOCK, Quantised
from minitrain.parallel.stage import Stage
from minitrain.parallel.unit import Unit

Marks = dict[str, int]
"""Hashes by what was hashed, in the same order on all ranks that are compared."""

REMEDY = "restart from the last checkpoint with --run.resume auto; if it happens again, test that machine"


def compare_replicas(stage: Stage, optimizer: Optimizer, grid: Grid, step: int) -> None:
    """Raises the same NumericsError on every rank if anything differs that should not. Collective."""
    marks: dict[str, Marks] = {axis: {} for axis in ("dp", "replica", "tp", "kv", "tied")}
    for unit in stage.units:
        tied = unit is stage.embedding and grid.tied.size > 1
        if (unit.param is not None and grid.dp.size > 1) or grid.tp.size > 1 or tied:
            for name, mark, copies in _whole(unit, grid):
                if unit.param is not None:
                    marks["dp"][name] = mark
                if copies > 1:
                    marks["tp" if copies == grid.tp.size else "kv"][name] = mark
                if tied:
                    marks["tied"][name] = mark
        if grid.replica.size > 1:
            marks["replica"].update((what, _hash(arrays)) for what, arrays in _own_parts(unit, optimizer))
    errors = [_difference(getattr(grid, axis), of_axis, step) for axis, of_axis in marks.items()]
    agree(grid.world, next((error for error in errors if error), None))


def _whole(unit: Unit, grid: Grid) -> Iterator[tuple[str, int, int]]:
    """(name, hash, tp ranks that hold the same) of every parameter; under ZeRO 3 collective over shard."""
    with unit.params() as views:
        for spec, values in zip(unit.specs, views.values(), strict=True):
            yield f"the parameter {spec.name}", _hash((values,)), spec.tp_replicas(grid.tp.size)


def _own_parts(unit: Unit, optimizer: Optimizer) -> Iterator[tuple[str, tuple[Array, ...]]]:
    """What this rank holds as its own, and all ranks of its replica group."""
    for held in unit.held:
        name, where = held.spec.name, held.where
        if unit.param is None:
            yield f"the parameter {name}", (unit.param_shard[where],)
        if unit.master is not unit.param_shard:
            yield f"the master copy of {name}", (unit.master[where],)
        if isinstance(optimizer, Elementwise):
            for moment, vector in unit.state.items():
                yield f"{moment} of {name}", _arrays(vector, where)
    if not isinstance(optimizer, Elementwise):
        for key, vector in unit.state.items():
            tensor, _, moment = key.rpartition(".")
            yield f"{moment} of {unit.prefix}{tensor}", _arrays(vector, slice(None))


def _arrays(vector: Stored, where: slice) -> tuple[Array, ...]:
    """The memory of some elements of the optimizer's state."""
    if isinstance(vector, Quantised):
        return vector.codes[where], vector.largest[where.start // BLOCK : -(-where.stop // BLOCK)]
    return (vector[where],)


def _hash(arrays: tuple[Array, ...]) -> int:
    hasher = xxhash.xxh3_64()
    for array in arrays:
        hasher.update(on_host(array).reshape(-1).view(np.uint8).data)
    return hasher.intdigest()


def _difference(comm: Comm, marks: Marks, step: int) -> NumericsError | None:
    """The error of this group, the same on all its ranks, or None. Collective over `comm`."""
    mine = np.array(list(marks.values()), np.uint64).view(np.int64)
    different = np.flatnonzero(~alike(comm, mine))
    if different.size == 0:
        return None
    of_all = np.empty((comm.size, different.size), np.int64)
    comm.all_gather(mine[different], of_all)
    # Ranks are told apart by all their differing tensors together: one damaged rank is one group.
    groups = grouped({rank: str(row.tolist()) for rank, row in zip(comm.members, of_all, strict=True)})
    names = list(marks)
    tensors = names[different[0]]
    if different.size > 1:
        tensors += f" and {different.size - 1} more"
    most = groups[0][0]
    if 2 * len(most) > comm.size:
        odd = [rank for ranks, _ in groups[1:] for rank in ranks]
        verb = "has" if len(odd) == 1 else "have"
        what = f"{name_ranks(odd)} {verb} other bits in {tensors} than {name_ranks(most)}"
    else:
        parties = " and ".join(name_ranks(ranks) for ranks, _ in groups[:4])
        what = f"{parties} hold different bits of {tensors}, and no majority tells who is right"
    return NumericsError(what, f"step {step}, compared over {comm.name}", REMEDY)
