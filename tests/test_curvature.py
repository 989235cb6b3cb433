"""Sophia's estimates of the Hessian's diagonal: what they are of, and what they cost the run besides."""

from dataclasses import replace

import numpy as np
import pytest
from layouts import LLAMA, Remembering, batch_of, mild_weights, tiny

from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.single import SingleComm
from minitrain.curvature import curvature_is_due, estimate_curvature
from minitrain.data.philox import normal, uniform
from minitrain.ops.loss import draw
from minitrain.optim.judge import total_loss
from minitrain.parallel.unit import Unit
from minitrain.resolve import resolve
from minitrain.step import Trainer, backpropagate

SEED, STEP = 3, 11


class Estimates(Remembering):
    """An updater that keeps the estimates it is given."""

    def absorb(self, unit: Unit, estimate: Array, rejected: Array) -> None:
        self.grads[unit.specs[0].name] = estimate.copy()
        self.inner.absorb(unit, estimate, rejected)


def trainer_of(name: str, precision: str = "fp64") -> Trainer:
    config = replace(tiny(replace(LLAMA, layers=2)), precision=precision)
    config = resolve(replace(config, optim=replace(config.optim, name=name)), {}, 1).config  # type: ignore[arg-type]
    trainer = make_trainer(config, make_grid(SingleComm(), config), mild_weights)
    return trainer._replace(updater=Estimates(trainer.updater, {}))  # type: ignore[arg-type]


def estimated(trainer: Trainer) -> list[Array]:
    batch = batch_of(tiny(LLAMA), 1, 0)
    estimate_curvature(trainer, batch, SEED, STEP)
    assert isinstance(trainer.updater, Estimates)
    assert not any(unit.grad_shard.any() for unit in trainer.stage.units), "the step begins with no gradient"
    return [trainer.updater.grads[unit.specs[0].name] for unit in trainer.stage.units]


def directions(trainer: Trainer) -> list[Array]:
    found = []
    for unit in trainer.stage.units:
        names = [(f"hutchinson {STEP} {spec.name}", spec.shape) for spec in unit.specs]
        boxes = [tuple(slice(0, n) for n in shape) for _, shape in names]
        parts = [
            normal(SEED, name, shape, box, 1.0, np.float64).ravel()
            for (name, shape), box in zip(names, boxes, strict=True)
        ]
        found.append(np.concatenate(parts))
    return found


def test_hutchinson_is_the_second_derivative_along_its_direction() -> None:
    """sum of u * (H u) = u^T H u, from three values of the loss alone."""
    trainer = trainer_of("sophia-h")
    weights, u = [unit.master.copy() for unit in trainer.stage.units], directions(trainer)

    def loss(t: float) -> float:
        for unit, w, direction in zip(trainer.stage.units, weights, u, strict=True):
            unit.master[...] = w + t * direction
        value = total_loss(backpropagate(trainer, batch_of(tiny(LLAMA), 1, 0)))
        for unit in trainer.stage.units:
            unit.zero_grads()
        return value

    h = 1e-4
    second = (loss(h) - 2 * loss(0) + loss(-h)) / h**2
    loss(0)
    total = sum(float(part.sum()) for part in estimated(trainer))
    assert abs(second) > 1 and abs(total - second) <= 1e-3 * abs(second)
    assert all(map(np.array_equal, weights, (unit.master for unit in trainer.stage.units)))


def test_hutchinson_in_fp32_is_that_of_fp64() -> None:
    exact, ours = (np.concatenate(estimated(trainer_of("sophia-h", p))) for p in ("fp64", "fp32"))
    assert ours.dtype == np.float32
    assert np.linalg.norm(ours - exact) <= 1e-3 * np.linalg.norm(exact)


def test_gauss_newton_bartlett_squares_the_gradient_on_drawn_labels() -> None:
    trainer, batch = trainer_of("sophia-g"), batch_of(tiny(LLAMA), 1, 0)
    drawn = uniform(SEED, f"labels {STEP}", 0, batch.ids_MN.size).reshape(batch.ids_MN.shape)
    targets = np.empty_like(batch.targets_MN)
    for m, ids_N in enumerate(batch.ids_MN):
        x, _ = trainer.stage.forward(ids_N)
        logits_NV, _ = trainer.stage.logits(x)
        p = np.exp(logits_NV - logits_NV.max(axis=1, keepdims=True))
        cumulative = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)
        targets[m] = [
            int(np.searchsorted(c, r, side="right")) for c, r in zip(cumulative, drawn[m], strict=True)
        ]
    assert len(np.unique(targets)) > 10
    backpropagate(trainer, batch._replace(targets_MN=targets))
    expected = []
    for unit in trainer.stage.units:
        expected.append(batch.n_tokens * unit.grad_shard**2)
        unit.zero_grads()
    for ours, theirs in zip(estimated(trainer), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-300)


def test_labels_are_drawn_with_the_probabilities_of_softmax() -> None:
    p = np.array([0.5, 0.25, 0.0, 0.25])
    r = uniform(0, "draw", 0, 40_000)
    exp_NV = np.tile(3 * p, (r.size, 1))
    counts = np.bincount(draw(exp_NV, np.zeros(r.size), 3 * r, 7), minlength=11)[7:]
    assert counts.sum() == r.size and counts[2] == 0
    assert np.all(np.abs(counts / r.size - p) < 5 * np.sqrt(0.25 / r.size))


def test_a_rank_finds_only_labels_of_its_own() -> None:
    """Two ranks, two ids each: the sum before the second one's is 0.75."""
    exp_NV = np.array([[0.5, 0.25], [0.5, 0.25], [0.5, 0.25]])
    limit = np.array([0.4, 0.6, 0.75])
    assert draw(exp_NV, np.zeros(3), limit, 0).tolist() == [0, 1, -1]
    assert draw(np.array([[0.1, 0.15]] * 3), np.full(3, 0.75), limit, 2).tolist() == [-1, -1, 2]


@pytest.mark.parametrize("name, steps", [("sophia-g", [1, 4, 7]), ("sophia-h", [1, 4, 7]), ("adamw", [])])
def test_when(name: str, steps: list[int]) -> None:
    trainer = trainer_of(name)
    optim = replace(tiny(LLAMA).optim, name=name, curvature_every=3)  # type: ignore[arg-type]
    assert [step for step in range(1, 9) if curvature_is_due(optim, trainer, step)] == steps


def test_an_estimate_that_overflows_is_dropped() -> None:
    config = replace(tiny(replace(LLAMA, layers=2)), precision="fp16")
    config = resolve(replace(config, optim=replace(config.optim, name="sophia-g")), {}, 1).config
    config = replace(config, loss_scale=replace(config.loss_scale, initial=2.0**40))
    trainer = make_trainer(config, make_grid(SingleComm(), config), mild_weights)
    with np.errstate(all="ignore"):
        estimate_curvature(trainer, batch_of(tiny(LLAMA), 1, 0), SEED, STEP)
    assert not any(np.any(unit.state["h"]) for unit in trainer.stage.units)
