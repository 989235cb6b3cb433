"""One training step, with every collective on this screen or named here; and one validation.

tp         inside `stage.forward`, `.loss`, `.backward` (model/tensor.py, model/head.py)
kv, tp     inside `unit.reduce_scatter`: gradients of copies of kv heads; under sequence parallelism, of what
           every tp rank holds whole (parallel/unit.py)
shard      inside `unit.params()` under ZeRO 3 and `unit.grads()` under ZeRO 2 and 3, else below
shard, tp  inside `updater.update`, if the optimizer looks at whole tensors (parallel/update.py)
pp, replica, tied, world, and the sums for loss and norm: below

run.exact changes when gradients are summed (`unit.grads()`), in which order (comm/tree.py), and what the sums
for loss and norm are of (parallel/sums.py). What is below stays as it is.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from minitrain.arrays.device import on_host
from minitrain.arrays.types import Array
from minitrain.comm.agree import agree
from minitrain.comm.grid import Grid
from minitrain.errors import NumericsError, Problem
from minitrain.observe.memory import MemoryMeter
from minitrain.optim.judge import AnyJudge, Numbers, Verdict, total_loss
from minitrain.parallel.outbox import Outbox
from minitrain.parallel.schedule import Kind, Schedule, forward_only
from minitrain.parallel.stage import Stage, StageSaved
from minitrain.parallel.update import Updater


class Batch(NamedTuple):
    """This data-parallel rank's part of the global batch: M micro-batches of N = B*T tokens."""

    ids_MN: Array
    targets_MN: Array
    n_tokens: int  # of the global batch, over all ranks
    drawn_MN: Array | None = None  # uniform numbers: targets are drawn from the prediction instead


class MicroBatches(Protocol):
    """Pairs (ids_BT, targets_BT), equally many on every rank."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Array, Array]]: ...


class Trainer(NamedTuple):
    """What this rank trains with."""

    stage: Stage
    grid: Grid
    schedule: Schedule
    updater: Updater
    judge: AnyJudge
    meter: MemoryMeter


class StepResult(NamedTuple):
    loss: float  # mean nats per token of the global batch
    grad_norm: float  # of the whole model, before clipping
    loss_scale: float  # in this step
    skipped: bool = False  # a gradient overflowed in fp16: no update


class StartedStep(NamedTuple):
    """A step that a GPU may still be at work on. On the host it is done."""

    trainer: Trainer
    step: int
    verdict: Verdict
    not_finite: Array  # of each unit, the first element of the gradient that was not; int64

    def result(self) -> StepResult:
        """Waits for the GPU. Raises as `train_step`, and then later steps, if any, are of no use."""
        numbers = self.verdict.numbers()
        if not numbers.accepted:
            skip_or_raise(self, numbers)
        return StepResult(numbers.loss, numbers.norm, numbers.loss_scale, skipped=not numbers.accepted)


def train_step(trainer: Trainer, batch: Batch, lr: float, step: int) -> StepResult:
    """One step, to its end. If loss or gradient is not finite nothing is updated: fp16 skips the step and
    lowers its loss scale, else every rank raises the same NumericsError.
    """
    return start_step(trainer, batch, lr, step).result()


def start_step(trainer: Trainer, batch: Batch, lr: float, step: int) -> StartedStep:
    """Forward and backward of every micro-batch, sums over ranks, clipping, update. `step` counts from 1.

    Losses are divided by the *global* number of tokens before the backward, so every sum over micro-batches
    and ranks is a plain sum.
    """
    stage, grid, sums = trainer.stage, trainer.grid, trainer.stage.sums
    losses = backpropagate(trainer, batch)
    reduce_gradients(trainer)

    squares = sums.squares(stage.units)
    for comm in (grid.shard, grid.tp, grid.pp):
        comm.all_reduce(squares)
    for comm in (grid.pp, grid.dp):
        comm.all_reduce(losses)  # of the last stages, over all sequences
    verdict = trainer.judge.look(losses, sums.square(squares))
    grid.world.all_reduce(verdict.rejected, "max")  # a step is taken by all ranks or none
    trainer.judge.decide(verdict)

    if stage.precision.fp8:
        amax = stage.fp8.seen()
        for comm in (grid.dp, grid.tp):
            comm.all_reduce(amax, "max")
        stage.fp8.end_step(amax)
    started = StartedStep(trainer, step, verdict, stage.not_finite())
    for unit in stage.units:
        trainer.updater.update(unit, lr, verdict)  # of a rejected step: nothing
        if unit.param is not None:  # ZeRO 3 gathers on use instead
            grid.shard.all_gather(unit.param_shard, unit.param)
        unit.zero_grads()
    return started


def reduce_gradients(trainer: Trainer) -> None:
    """Every rank holds a partial sum of dL/dw; now each has the sum, of its own part."""
    stage, grid = trainer.stage, trainer.grid
    for unit in stage.units:
        if unit.grad is not None:  # ZeRO 0 and 1; under 2, 3 and run.exact the backwards have done it
            unit.reduce_scatter(unit.grad, unit.grad_shard)
        grid.replica.all_reduce(unit.grad_shard)
        if unit is stage.embedding:
            grid.tied.all_reduce(unit.grad_shard)  # the tied matrix works in the first stage and in the last
    stage.sum_tied()  # and under run.exact in two units of one stage


def skip_or_raise(started: StartedStep, numbers: Numbers) -> None:
    """What comes of a step whose gradient is not finite: nothing, as the loss scale will be lower next time;
    or NumericsError, naming the gradient that was the first on the lowest rank that had one.
    """
    trainer, step = started.trainer, started.step
    stage, world = trainer.stage, trainer.grid.world
    if numbers.may_overflow:
        return
    where, remedy = f"step {step}", "lower optim.lr or change the data"
    require_finite({"loss": numbers.loss}, step)
    if stage.precision.scales_loss:
        where += f", loss scale {numbers.loss_scale:g}"
        remedy = "lower optim.lr, or choose bf16; or loss_scale.dynamic true with a lower loss_scale.minimum"
    name = stage.first_name(on_host(started.not_finite))
    what = f"rank {world.rank}: the gradient of {name} is not finite"
    agree(world, NumericsError(what, where, remedy) if name else None)
    raise NumericsError.everywhere([Problem(f"the gradient norm is {numbers.norm}", where, remedy)], 5)


def backpropagate(trainer: Trainer, batch: Batch) -> Array:
    """Adds the gradients of all micro-batches, times the loss scale, to the units. Returns this rank's part
    of the mean loss, to be added up over ranks (parallel/sums.py).
    """
    stage, pp, sums = trainer.stage, trainer.grid.pp, trainer.stage.sums
    outbox, losses = Outbox(pp), sums.losses(len(batch.ids_MN))
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
                drawn_N = None if batch.drawn_MN is None else batch.drawn_MN[m]
                targets_N, scale = batch.targets_MN[m], trainer.judge.scale / batch.n_tokens
                nll, dact[m] = stage.loss(act.pop(m), targets_N, scale, drawn_N)
                losses[sums.place(m)] += nll / batch.n_tokens
            case Kind.RECV_GRAD:
                dact[m] = stage.empty_activations(batch.ids_MN[m].size)
                pp.recv(dact[m], pp.rank + 1)
            case Kind.BACKWARD:
                dact[m] = stage.backward(dact[m], saved.pop(m))
            case Kind.SEND_GRAD:
                outbox.send(dact.pop(m), pp.rank - 1)
    outbox.flush()
    return losses


def evaluate(stage: Stage, grid: Grid, micro_batches: MicroBatches, n_tokens: int) -> float:
    """Mean loss in nats per token over held-out micro-batches `(ids_BT, targets_BT)`, in the host's memory;
    `n_tokens` counts those of all ranks.
    """
    pp, outbox, losses = grid.pp, Outbox(grid.pp), stage.sums.losses(len(micro_batches))
    to_device = stage.memory.device.to_device
    for m, (ids_BT, targets_BT) in enumerate(micro_batches):
        for kind, _ in forward_only(pp.rank, pp.size, 1):
            match kind:
                case Kind.LOAD:
                    x = to_device(ids_BT.ravel())
                case Kind.RECV_ACT:
                    x = stage.empty_activations(ids_BT.size)
                    pp.recv(x, pp.rank - 1)
                case Kind.FORWARD:
                    x = stage.infer(x, ids_BT.shape[1])
                case Kind.SEND_ACT:
                    outbox.send(x, pp.rank + 1)
                case Kind.LOSS:
                    nll = stage.loss_only(x, to_device(targets_BT.ravel()))
                    losses[stage.sums.place(m)] += nll / n_tokens
    outbox.flush()
    for comm in (grid.pp, grid.dp):
        comm.all_reduce(losses)
    return total_loss(losses)


def require_finite(numbers: dict[str, float], step: int) -> None:
    """Raises NumericsError for the first that is not. Every rank calls it with the same numbers."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            problem = Problem(f"the {name} is {number}", f"step {step}", "lower optim.lr or change the data")
            raise NumericsError.everywhere([problem], NumericsError.exit_code)
