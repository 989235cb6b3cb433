"""The second passes of Sophia (Liu et al. 2023, section 2.3): every few steps, before the step itself, an
estimate of the Hessian's diagonal at the present weights, for the optimizer's state to take in.

Gauss-Newton-Bartlett (Algorithm 2), sophia-g: labels are drawn from the model's own prediction; with g^ the
gradient of the mean loss on them over B tokens, B g^ * g^ estimates the diagonal of the Gauss-Newton matrix.
g^ is summed over micro-batches and ranks before it is squared.

Hutchinson (Algorithm 1), sophia-h: u * (H u) with u from N(0, 1). The product of the Hessian with u is a
central difference of the gradient,

    H u = (g(w + h u) - g(w - h u)) / 2h

What is drawn is a function of (seed, step, place in the whole) alone, so every layout estimates the same.
"""

import numpy as np

from minitrain.arrays.device import put
from minitrain.arrays.narrow import wide
from minitrain.arrays.types import Array
from minitrain.config import OptimConfig
from minitrain.data.philox import normal, uniform
from minitrain.optim.optimizer import Curvature, Elementwise
from minitrain.optim.vectors import NOWHERE
from minitrain.parallel.unit import Unit
from minitrain.step import Batch, Trainer, backpropagate, reduce_gradients

STEP = 1e-4  # h, for weights of order 0.02 to 1


def curvature_is_due(optim: OptimConfig, trainer: Trainer, step: int) -> bool:
    """At the first step, and then every `curvature_every` steps, for an optimizer that wants it."""
    return _wanted(trainer) is not None and (step - 1) % optim.curvature_every == 0


def estimate_curvature(trainer: Trainer, batch: Batch, seed: int, step: int) -> None:
    """Lets the optimizer take in an estimate from `batch`. The gradients are zero before and after.

    Collective over all ranks. An estimate that overflows (fp16) is dropped.
    """
    if _wanted(trainer) == "hutchinson":
        _hutchinson(trainer, batch, seed, step)
    else:
        _gauss_newton_bartlett(trainer, batch, seed, step)


def _wanted(trainer: Trainer) -> Curvature | None:
    optimizer = trainer.updater.optimizer
    return optimizer.curvature if isinstance(optimizer, Elementwise) else None


def _gauss_newton_bartlett(trainer: Trainer, batch: Batch, seed: int, step: int) -> None:
    n_tokens, grid = batch.n_tokens, trainer.grid
    before = grid.dp.rank * batch.ids_MN.size  # of the global batch's tokens
    drawn_MN = uniform(seed, f"labels {step}", before, batch.ids_MN.size).reshape(batch.ids_MN.shape)
    device = trainer.stage.memory.device
    backpropagate(trainer, batch._replace(drawn_MN=device.to_device(drawn_MN)))
    reduce_gradients(trainer)
    units = trainer.stage.units
    first = device.xp.full(1, NOWHERE, np.int64)
    for unit in units:
        unit.first_not_finite(first)
    overflow = (first != NOWHERE).astype(np.int64)
    grid.world.all_reduce(overflow, "max")
    for unit in units:
        g = wide(unit.grad_shard)
        ghat = np.divide(g, trainer.judge.scale, dtype=g.dtype)
        trainer.updater.absorb(unit, n_tokens * ghat * ghat, overflow)
        unit.zero_grads()


def _hutchinson(trainer: Trainer, batch: Batch, seed: int, step: int) -> None:
    units = trainer.stage.units
    weights = [unit.master.copy() for unit in units]
    directions = [_direction(unit, seed, step) for unit in units]
    gradients: list[list[Array]] = []
    for sign in (1, -1):
        for unit, w, u in zip(units, weights, directions, strict=True):
            np.add(w, sign * STEP * u, out=unit.master)
            _gather(trainer, unit)
        backpropagate(trainer, batch)
        reduce_gradients(trainer)
        gradients.append([unit.grad_shard.copy() for unit in units])
        for unit in units:
            unit.zero_grads()
    taken = trainer.stage.memory.device.xp.zeros(1, np.int64)
    for unit, w, u, ahead, behind in zip(units, weights, directions, *gradients, strict=True):
        unit.master[...] = w
        _gather(trainer, unit)
        trainer.updater.absorb(unit, u * (ahead - behind) / (2 * STEP), taken)


def _direction(unit: Unit, seed: int, step: int) -> Array:
    """u of the own part of the unit; zero where there is padding."""
    u: Array = np.zeros_like(unit.master)
    for held in unit.held:
        name, shape = f"hutchinson {step} {held.spec.name}", held.spec.shape
        put(u[held.where], normal(seed, name, shape, held.box, 1.0, u.dtype).reshape(-1)[held.run])
    return u


def _gather(trainer: Trainer, unit: Unit) -> None:
    """Under ZeRO 0 the own part is all of it, under ZeRO 3 it is gathered on use."""
    if unit.param is not None:
        trainer.grid.shard.all_gather(unit.param_shard, unit.param)
