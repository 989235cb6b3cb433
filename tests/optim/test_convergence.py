"""What textbooks say: how far each optimizer comes on a parabola and in Rosenbrock's valley."""

from typing import NamedTuple

import numpy as np
import pytest
from optim.stepping import minimise, train
from optim.test_optimizers import OPTIMIZERS

from minitrain.arrays.types import Array
from minitrain.optim.adafactor import adafactor
from minitrain.optim.adagrad import adagrad
from minitrain.optim.lamb import lamb
from minitrain.optim.lion import lion
from minitrain.optim.momentum import momentum
from minitrain.optim.optimizer import Optimizer
from minitrain.optim.rmsprop import rmsprop
from minitrain.optim.sgd import sgd

CURVATURE = np.geomspace(1, 100, 20).reshape(4, 5)  # of the parabola: the condition number is 100
RIM = np.random.default_rng(0).standard_normal((4, 5))
VALLEY = np.array([[-1.2, 1.0]])  # where everyone starts; the minimum is at 1, 1


def parabola(w: Array) -> float:
    return float(0.5 * np.sum(CURVATURE * w * w))


def rosenbrock(w: Array) -> float:
    x, y = w[0].tolist()
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


def rosenbrock_gradient(w: Array) -> Array:
    x, y = w[0].tolist()
    return np.array([[-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]])


def rosenbrock_curvature(w: Array) -> Array:
    x, y = w[0].tolist()
    return np.array([[2 - 400 * (y - 3 * x * x), 200.0]])


class Reached(NamedTuple):
    """From a value of 173 resp. 24, in 1000 resp. 3000 steps of a rate that falls linearly to zero."""

    lr: float
    parabola: float
    valley_lr: float
    valley: float


# The signs of Lion and the singular values of Muon make steps of one size: they come as near as the last ones
# are small. The way down the valley passes zero, where LAMB's steps, in proportion to w, are too short if lr
# is smaller still. SAGE's factor dies out where the sensitivity changes smoothly, as it does without noise.
TABLE = {
    "sgd": Reached(0.01, 1e-6, 0.002, 0.05),
    "momentum": Reached(0.1, 1e-30, 0.02, 1e-10),
    "nesterov": Reached(0.1, 1e-30, 0.01, 1e-5),
    "adagrad": Reached(0.5, 1e-30, 0.5, 0.1),
    "rmsprop": Reached(0.05, 1e-30, 0.01, 1e-3),
    "adam": Reached(0.1, 1e-8, 0.02, 1e-9),
    "adamw": Reached(0.1, 1e-8, 0.02, 1e-9),
    "radam": Reached(0.01, 1e-10, 0.005, 1e-10),
    "adafactor": Reached(0.2, 1e-3, 0.05, 0.01),
    "adam8bit": Reached(0.1, 1e-8, 0.02, 1e-9),
    "sage": Reached(0.5, 100.0, 0.5, 1.0),
    "sophia-g": Reached(0.05, 1e-12, 0.05, 1e-2),
    "sophia-h": Reached(0.05, 1e-12, 0.05, 1e-2),
    "lion": Reached(0.05, 1e-4, 0.01, 1e-4),
    "lamb": Reached(0.1, 1e-20, 0.05, 1e-4),
    "muon": Reached(0.1, 1e-5, 0.02, 1e-8),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reached(name: str) -> None:
    reached, optimizer = TABLE[name], OPTIMIZERS[name]
    w = minimise(
        optimizer, RIM, lambda w: CURVATURE * w, lambda w: CURVATURE.copy(), 1000,
        lambda t: reached.lr * (1 - t / 1000),
    )  # fmt: skip
    v = minimise(
        optimizer, VALLEY, rosenbrock_gradient, rosenbrock_curvature, 3000,
        lambda t: reached.valley_lr * (1 - t / 3000),
    )  # fmt: skip
    print(f"{name:10} {parabola(w):.1e} {rosenbrock(v):.1e}")
    assert parabola(w) < reached.parabola and rosenbrock(v) < reached.valley


def contraction(optimizer: Optimizer, lr: float, steps: int) -> float:
    """By how much a step brings the slowest element of the parabola nearer to zero, on average."""
    w = minimise(optimizer, RIM, lambda w: CURVATURE * w, lambda w: w, steps, lambda t: lr)
    return float(np.max(np.abs(w / RIM))) ** (1 / steps)


def test_sgd_and_momentum_contract_as_in_the_textbook() -> None:
    """At the best rates (k - 1) / (k + 1) for gradient descent, (sqrt(k) - 1) / (sqrt(k) + 1) with momentum
    (Polyak 1964), k = 100 being the condition number.
    """
    assert contraction(sgd(), 2 / (1 + 100), 500) == pytest.approx(99 / 101, rel=1e-12)
    with_momentum = momentum((9 / 11) ** 2, classical=True)
    assert contraction(with_momentum, 4 / (1 + 10) ** 2, 200) == pytest.approx(9 / 11, rel=0.03)


@pytest.mark.parametrize("lr", [1e-2, 1e-3])
def test_lion_stops_at_a_distance_of_lr(lr: float) -> None:
    """A step is never shorter, so at a constant rate it walks about the minimum."""
    w = minimise(lion((0.9, 0.99)), RIM, lambda w: CURVATURE * w, lambda w: w, 5000, lambda t: lr)
    assert 0.1 * lr < np.median(np.abs(w)) < 10 * lr


def test_adagrad_s_steps_fall_with_the_root_of_their_number() -> None:
    """A gradient that stays: the steps are lr / sqrt(t)."""
    g = np.array([1e-3, -1.0, 50.0])
    w = train(adagrad(0.0), {"w": np.zeros(3)}, [{"w": g}] * 100, lr=0.1)["w"]
    np.testing.assert_allclose(w, -np.sign(g) * 0.1 * sum(t**-0.5 for t in range(1, 101)), rtol=1e-12)


def test_rmsprop_begins_with_large_steps() -> None:
    """lr / sqrt(1 - b), because v starts at zero."""
    g = np.array([1e-3, -1.0, 50.0])
    w = train(rmsprop(0.99, 0.0), {"w": np.zeros(3)}, [{"w": g}], lr=0.1)["w"]
    np.testing.assert_allclose(w, -np.sign(g), rtol=1e-12)


def test_lamb_and_adafactor_step_in_proportion_to_the_tensor() -> None:
    """LAMB: |step| = lr |w|. Adafactor: the root mean square of a step is lr times that of w, at most."""
    for size in (1e-2, 1.0, 1e2):
        w, g = {"w": size * RIM}, [{"w": CURVATURE * RIM}]
        moved = np.linalg.norm(train(lamb((0.9, 0.999), 1e-8), w, g, lr=0.1)["w"] - w["w"])
        assert moved == pytest.approx(0.1 * np.linalg.norm(w["w"]), rel=1e-12)
        moved = np.linalg.norm(train(adafactor(), w, g, lr=0.1)["w"] - w["w"])
        assert 0.03 < moved / np.linalg.norm(w["w"]) < 0.1 * (1 + 1e-12)
