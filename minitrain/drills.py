"""Bugs to be found: `run.drill` plants one in a run, on purpose, and docs/drills.md is the exercise.

A drill replaces methods of what this rank works with: a verb of a communicator, the forward of a stage, the
batch of the loader. Neither the step nor the model knows of it, and what comes of it is what comes of the
same mistake in their code. Where and when it happens is fixed, so that every run of a configuration has the
same bug. Which axis a drill needs is in `drill_rules.py`.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minitrain.arrays.types import Array
from minitrain.build import Run
from minitrain.comm.interface import Comm, Reduction
from minitrain.drill_rules import STRIKE
from minitrain.parallel.unit import Unit

STRAGGLER_SECONDS = 0.2  # that it takes longer for each forward of a micro-batch


def plant(name: str, run: Run) -> None:
    """From now on `run` has the bug of that name; with "none" it is left alone."""
    if name != "none":
        DRILLS[name](run)


def skipped_all_reduce(run: Run) -> None:
    """The gradient of one block is not summed over replicas, by the ranks of one tp slice."""
    grid, unit = run.trainer.grid, middle_block(run)
    if unit is None or not is_last(grid.tp):
        return

    def all_reduce(original: Any, buffer: Array, op: Reduction = "sum") -> None:
        if buffer is not unit.grad_shard:
            original(buffer, op)

    instead(grid.replica, "all_reduce", all_reduce)


def partial_sum(run: Run) -> None:
    """The gradient of one attention's input stays this rank's part of the sum over tp, in one replica."""
    grid, unit = run.trainer.grid, middle_block(run)
    if unit is None or not is_last(grid.dp):
        return
    sums_until = 0  # the one that is left out

    def grads(original: Any) -> Any:
        nonlocal sums_until
        sums_until = 2  # the backward of a block sums for its MLP, then for its attention
        return original()

    def all_reduce(original: Any, buffer: Array, op: Reduction = "sum") -> None:
        nonlocal sums_until
        sums_until -= 1
        if sums_until != 0:
            original(buffer, op)

    instead(unit, "grads", grads)
    instead(grid.tp, "all_reduce", all_reduce)


def swapped_shard(run: Run) -> None:
    """The last two shards of one block's parameters come back in each other's place, on all ranks alike."""
    shard, unit = run.trainer.grid.shard, middle_block(run)
    if unit is None:
        return

    def all_gather(original: Any, part: Array, target: Array) -> None:
        original(part, target)
        if part is unit.param_shard:
            parts = target.reshape(shard.size, -1)
            parts[-2:] = parts[-2:][::-1].copy()

    instead(shard, "all_gather", all_gather)


def dropped_receive(run: Run) -> None:
    """The first message that the last stage gets in step STRIKE is lost: what it reads is the next one."""
    grid, lost = run.trainer.grid, False
    if not is_last(grid.pp) or grid.dp.rank + grid.tp.rank > 0:
        return

    def lose() -> None:
        nonlocal lost
        lost = True

    def recv(original: Any, buffer: Array, source: int) -> None:
        nonlocal lost
        if lost:
            lost = False
            original(buffer, source)
        original(buffer, source)

    before_strike(run, lose)
    instead(grid.pp, "recv", recv)


def flipped_bit(run: Run) -> None:
    """Before step STRIKE one bit of a weight changes in the second replica: the fifth of an element."""
    grid, unit = run.trainer.grid, middle_block(run)
    if unit is None or grid.replica.rank != 1 or not is_last(grid.shard) or not is_last(grid.tp):
        return

    def flip() -> None:
        middle = unit.master.size // 2
        unit.master[middle : middle + 1].view(np.uint8)[0] ^= 1 << 4

    before_strike(run, flip)


def straggler(run: Run) -> None:
    """The rank in the middle of the world takes longer for each of its forwards."""
    world, stage = run.trainer.grid.world, run.trainer.stage
    if world.rank != world.size // 2:
        return

    def forward(original: Any, x: Array) -> Any:
        time.sleep(STRAGGLER_SECONDS)
        return original(x)

    instead(stage, "forward", forward)


def same_data(run: Run) -> None:
    """The last data-parallel rank reads the sequences of the one before it."""
    if not is_last(run.trainer.grid.dp):
        return

    def batch(original: Any, step: int, rank: int, size: int) -> Any:
        return original(step, rank - 1, size)

    instead(run.loader, "batch", batch)


def sum_for_mean(run: Run) -> None:
    """Each replica divides by its own tokens, not by those of all: the gradient is dp times too long."""
    trainer = run.trainer

    def loss(original: Any, x_SD: Array, targets_N: Array, scale: Any, *drawn: Any) -> Any:
        return original(x_SD, targets_N, scale * trainer.grid.dp.size, *drawn)

    instead(trainer.stage, "loss", loss)


DRILLS: dict[str, Callable[[Run], None]] = {
    "skipped-all-reduce": skipped_all_reduce,
    "partial-sum": partial_sum,
    "swapped-shard": swapped_shard,
    "dropped-receive": dropped_receive,
    "flipped-bit": flipped_bit,
    "straggler": straggler,
    "same-data": same_data,
    "sum-for-mean": sum_for_mean,
}


def instead(owner: object, method: str, other: Callable[..., Any]) -> None:
    """From now on a call of `owner.method` is one of `other`, whose first argument is the original."""
    setattr(owner, method, partial(other, getattr(owner, method)))


def before_strike(run: Run, happen: Callable[[], None]) -> None:
    """`happen` is called before step STRIKE."""

    def batch(original: Any, step: int, rank: int, size: int) -> Any:
        if step == STRIKE:
            happen()
        return original(step, rank, size)

    instead(run.loader, "batch", batch)


def middle_block(run: Run) -> Unit | None:
    """The block in the middle of the model, of two the later one; None on other pipeline stages."""
    stage = run.trainer.stage
    prefix = f"layers.{stage.model.layers // 2}."
    return next((unit for unit in stage.blocks if unit.prefix == prefix), None)


def is_last(comm: Comm) -> bool:
    """Whether this rank is the last of its group."""
    return comm.rank == comm.size - 1
