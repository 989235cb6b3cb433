"""One training step, with every collective on this screen or named here; and one validation.

tp         inside `stage.forward`, `.loss`, `.backward` (model/tensor.py, model/head.py)
kv, tp     inside `unit.reduce_scatter`: gradients of copies of kv heads; under sequence parallelism, of what
           every tp rank holds whole (parallel/unit.py)
shard      inside `unit.params()` under ZeRO 3 and `unit.grads()` under ZeRO 2 and 3, else below
pp, replica, tied, and the sums for loss and norm: below
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.grid import Grid
from minitrain.config import OptimConfig
from minitrain.errors import NumericsError, Problem
from minitrain.observe.memory import MemoryMeter
from minitrain.optim.clip import clip_scale
from minitrain.optim.optimizer import Optimizer
from minitrain.parallel.outbox import Outbox
from minitrain.parallel.schedule import Kind, Schedule, forward_only
from minitrain.parallel.stage import Stage, StageSaved


class Batch(NamedTuple):
    """This data-parallel rank's part of the global batch: M micro-batches of N = B*T tokens."""

    ids_MN: Array
    targets_MN: Array
    n_tokens: int  # of the global batch, over all ranks


class Trainer(NamedTuple):
    """What this rank trains with."""

    stage: Stage
    grid: Grid
    schedule: Schedule
    optimizer: Optimizer
    optim: OptimConfig
    meter: MemoryMeter


class StepResult(NamedTuple):
    loss: float  # mean nats per token of the global batch
    grad_norm: float  # of the whole model, before clipping


def train_step(trainer: Trainer, batch: Batch, lr: float, step: int) -> StepResult:
    """Forward and backward of every micro-batch, sums over ranks, clipping, update. `step` counts from 1.

    Losses are divided by the *global* number of tokens before the backward, so every sum over micro-batches
    and ranks is a plain sum. Raises NumericsError, on every rank and before the update, if loss or norm is
    not finite.
    """
    stage, grid, optim = trainer.stage, trainer.grid, trainer.optim
    loss = backpropagate(trainer, batch)

    for unit in stage.units:  # every rank holds a partial sum of dL/dw
        if unit.grad is not None:  # ZeRO 0 and 1; under 2 and 3 each backward has done it
            unit.reduce_scatter(unit.grad, unit.grad_shard)
        grid.replica.all_reduce(unit.grad_shard)
        if unit is stage.embedding:
            grid.tied.all_reduce(unit.grad_shard)  # the tied matrix works in the first stage and in the last

    squares = np.array([sum(unit.sum_of_squares() for unit in stage.units)])
    for comm in (grid.shard, grid.tp, grid.pp):
        comm.all_reduce(squares)
    for comm in (grid.pp, grid.dp):
        comm.all_reduce(loss)  # of the last stages, over all sequences
    norm = math.sqrt(squares[0])  # one number, the same on every rank: all take the same branch
    require_finite({"loss": float(loss[0]), "gradient norm": norm}, step)

    for unit in stage.units:
        unit.update(trainer.optimizer, lr, optim.weight_decay, clip_scale(norm, optim.clip), step)
        if unit.param is not None:  # ZeRO 3 gathers on use instead
            grid.shard.all_gather(unit.param_shard, unit.param)
        unit.zero_grads()
    return StepResult(float(loss[0]), norm)


def backpropagate(trainer: Trainer, batch: Batch) -> Array:
    """Adds the gradients of all micro-batches to the units. Returns this rank's part of the mean loss, as
    an array of one.
    """
    stage, pp = trainer.stage, trainer.grid.pp
    outbox, loss = Outbox(pp), np.zeros(1)
    act: dict[int, Array] = {}
    dact: dict[int, Array] = {}
    saved: dict[int, StageSaved] = {}
    for kind, m in trainer.schedule(pp.rank, pp.size, len(batch.ids_MN)):
        match kind:
            case Kind.LOAD:
                act[m] = batch.ids_MN[m]
            case Kind.RECV_ACT:
                act[m] = stage.empty_activations(batch.ids_MN[m].size)
                pp.recv(act[m], pp.rank - 1)
            case Kind.FORWARD:
                act[m], saved[m] = stage.forward(act[m])
                trainer.meter.see_activations(saved)
            case Kind.SEND_ACT:
                outbox.send(act.pop(m), pp.rank + 1)
            case Kind.LOSS:
                nll, dact[m] = stage.loss(act.pop(m), batch.targets_MN[m], 1 / batch.n_tokens)
                loss += nll / batch.n_tokens
            case Kind.RECV_GRAD:
                dact[m] = stage.empty_activations(batch.ids_MN[m].size)
                pp.recv(dact[m], pp.rank + 1)
            case Kind.BACKWARD:
                dact[m] = stage.backward(dact[m], saved.pop(m))
            case Kind.SEND_GRAD:
                outbox.send(dact.pop(m), pp.rank - 1)
    outbox.flush()
    return loss


def evaluate(stage: Stage, grid: Grid, micro_batches: Iterable[tuple[Array, Array]], n_tokens: int) -> float:
    """Mean loss in nats per token over held-out micro-batches `(ids_BT, targets_BT)`; `n_tokens` counts
    those of all ranks.
    """
    pp, outbox, loss = grid.pp, Outbox(grid.pp), np.zeros(1)
    for ids_BT, targets_BT in micro_batches:
        for kind, _ in forward_only(pp.rank, pp.size, 1):
            match kind:
                case Kind.LOAD:
                    x = ids_BT.ravel()
                case Kind.RECV_ACT:
                    x = stage.empty_activations(ids_BT.size)
                    pp.recv(x, pp.rank - 1)
                case Kind.FORWARD:
                    x = stage.infer(x, ids_BT.shape[1])
                case Kind.SEND_ACT:
                    outbox.send(x, pp.rank + 1)
                case Kind.LOSS:
                    loss += stage.loss_only(x, targets_BT.ravel()) / n_tokens
    outbox.flush()
    for comm in (grid.pp, grid.dp):
        comm.all_reduce(loss)
    return float(loss[0])


def require_finite(numbers: dict[str, float], step: int) -> None:
    """Raises NumericsError for the first that is not. Every rank calls it with the same numbers."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            problem = Problem(f"the {name} is {number}", f"step {step}", "lower optim.lr or change the data")
            raise NumericsError.everywhere([problem], NumericsError.exit_code)
