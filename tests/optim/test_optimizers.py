"""Optimizers against a transcription of their papers, element by element, and against each other's blocks."""

import itertools

import numpy as np
import pytest

from minitrain.arrays.types import Array
from minitrain.config import OptimConfig
from minitrain.optim import make_optimizer
from minitrain.optim.adamw import adamw
from minitrain.optim.clip import clip_scale
from minitrain.optim.optimizer import Optimizer
from minitrain.optim.schedule import learning_rate
from minitrain.optim.sgd import sgd

RNG = np.random.default_rng(0)


def run(optimizer: Optimizer, param: Array, grads: list[Array], **kwargs: float) -> Array:
    param = param.copy()
    state = optimizer.init(param)
    for step, grad in enumerate(grads, 1):
        optimizer.update(param, grad, state, step=step, **kwargs)  # type: ignore[arg-type]
    return param


def test_adamw_is_the_paper_s() -> None:
    """Kingma & Ba 2015, Algorithm 1, with the decay of Loshchilov & Hutter 2019, line 12, in units of lr."""
    b1, b2, eps, lr, decay, scale = 0.9, 0.95, 1e-8, 1e-2, 0.1, 0.5
    start, grads = RNG.standard_normal(50), list(RNG.standard_normal((7, 50)))
    theta, m, v = start.copy(), np.zeros(50), np.zeros(50)
    for t, grad in enumerate(grads, 1):
        g = scale * grad
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        theta = theta - lr * m_hat / (np.sqrt(v_hat) + eps) - lr * decay * theta
    ours = run(adamw((b1, b2), eps), start, grads, lr=lr, decay=decay, grad_scale=scale)
    np.testing.assert_allclose(ours, theta, rtol=1e-13, atol=1e-15)


def test_sgd() -> None:
    start, grads = RNG.standard_normal(50), list(RNG.standard_normal((3, 50)))
    theta = start
    for grad in grads:
        theta = theta - 0.1 * 0.5 * grad - 0.1 * 0.3 * theta
    np.testing.assert_allclose(run(sgd(), start, grads, lr=0.1, decay=0.3, grad_scale=0.5), theta, rtol=1e-13)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_vector_in_parts_is_the_same_to_the_bit(name: str, dtype: type) -> None:
    """Longer than a block; cut where no block ends. So ZeRO shards do not change an update."""
    optimizer = make_optimizer(OptimConfig(name=name))  # type: ignore[arg-type]
    n, cut = 100_003, 33_333
    start, grads = RNG.standard_normal(n).astype(dtype), list(RNG.standard_normal((3, n)).astype(dtype))
    arguments = dict(lr=1e-2, decay=0.1, grad_scale=0.7)
    whole = run(optimizer, start, grads, **arguments)
    parts = [
        run(optimizer, start[s], [g[s] for g in grads], **arguments) for s in (slice(cut), slice(cut, n))
    ]
    assert whole.dtype == dtype
    assert np.array_equal(whole, np.concatenate(parts))


def test_clip_scale() -> None:
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(4.0, 1.0) == 1.0 / (4.0 + 1e-6)
    assert clip_scale(4.0, 0) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_learning_rate(schedule: str) -> None:
    """The warm-up, the last step, and the middle, in numbers."""
    optim = OptimConfig(lr=1.0, min_lr=0.1, warmup=10, decay=20, schedule=schedule)  # type: ignore[arg-type]
    rate = [learning_rate(t, 110, optim) for t in range(1, 111)]
    assert rate[:10] == [t / 10 for t in range(1, 11)]
    last, middle = {"constant": (1.0, 1.0), "cosine": (0.1, 0.55), "linear": (0.1, 0.55), "wsd": (0.1, 1.0)}[
        schedule
    ]
    assert rate[-1] == pytest.approx(last, abs=1e-15) and rate[59] == pytest.approx(middle, abs=1e-15)
    if schedule == "wsd":
        assert rate[89] == 1.0 and rate[99] == pytest.approx(0.55)
    assert all(a >= b for a, b in itertools.pairwise(rate[9:]))


def test_wsd_without_decay_is_constant() -> None:
    assert learning_rate(5, 5, OptimConfig(lr=1.0, warmup=0, decay=0, schedule="wsd")) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_learning_rate_without_warm_up(schedule: str) -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.0, warmup=0, decay=1, schedule=schedule)  # type: ignore[arg-type]
    assert 0 < learning_rate(1, 5, optim) <= 1.0
    assert learning_rate(1, 1, optim) >= 0
