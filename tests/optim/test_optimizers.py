"""Elementwise optimizers against a transcription of their papers, and the rules that all of them keep."""

import numpy as np
import pytest
from optim.stepping import train

from minitrain.arrays.types import Array
from minitrain.config import OptimConfig
from minitrain.optim import make_optimizer
from minitrain.optim.adafactor import adafactor
from minitrain.optim.adagrad import adagrad
from minitrain.optim.adam8bit import adam8bit
from minitrain.optim.adamw import adamw
from minitrain.optim.lamb import lamb
from minitrain.optim.lion import lion
from minitrain.optim.momentum import momentum, nesterov
from minitrain.optim.muon import muon
from minitrain.optim.optimizer import Elementwise, Optimizer
from minitrain.optim.radam import radam
from minitrain.optim.rmsprop import rmsprop
from minitrain.optim.sage import sage
from minitrain.optim.sgd import sgd
from minitrain.optim.sophia import sophia

BETAS, EPS, BETA3, RHO = (0.9, 0.95), 1e-3, 0.75, 0.04  # eps large enough to show where it stands
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": sgd(),
    "momentum": momentum(0.9, classical=False),
    "nesterov": nesterov(0.9, classical=False),
    "adagrad": adagrad(EPS),
    "rmsprop": rmsprop(0.95, EPS),
    "adam": adamw(BETAS, EPS),
    "adamw": adamw(BETAS, EPS),
    "radam": radam(BETAS, EPS),
    "adafactor": adafactor(),
    "adam8bit": adam8bit(BETAS, EPS),
    "sage": sage(BETAS, BETA3, EPS),
    "sophia-g": sophia(BETAS, EPS, RHO, "gauss-newton-bartlett"),
    "sophia-h": sophia(BETAS, EPS, RHO, "hutchinson"),
    "lion": lion(BETAS),
    "lamb": lamb(BETAS, EPS),
    "muon": muon(BETAS, EPS),
}
ELEMENTWISE = [name for name, optimizer in OPTIMIZERS.items() if isinstance(optimizer, Elementwise)]
N_STEPS = 9  # beyond the sixth, from which RAdam has a denominator


def vectors(n: int, dtype: type = np.float64) -> tuple[Array, list[Array]]:
    """A start and some gradients."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(n).astype(dtype), list(rng.standard_normal((N_STEPS, n)).astype(dtype))


def after(optimizer: Optimizer, start: Array, grads: list[Array], lr: float, decay: float) -> Array:
    return train(optimizer, {"w": start}, [{"w": g} for g in grads], lr, decay)["w"]


def test_adamw_is_the_paper_s() -> None:
    """Kingma & Ba 2015, Algorithm 1, with the decay of Loshchilov & Hutter 2019, line 12, in units of lr."""
    b1, b2, eps, lr, decay = 0.9, 0.95, 1e-8, 1e-2, 0.1
    start, grads = vectors(50)
    theta, m, v = start.copy(), np.zeros(50), np.zeros(50)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        theta = theta - lr * m_hat / (np.sqrt(v_hat) + eps) - lr * decay * theta
    ours = after(adamw((b1, b2), eps), start, grads, lr, decay)
    np.testing.assert_allclose(ours, theta, rtol=1e-13, atol=1e-15)


def test_sgd() -> None:
    start, grads = vectors(50)
    theta = start
    for g in grads:
        theta = theta - 0.1 * g - 0.1 * 0.3 * theta
    np.testing.assert_allclose(after(sgd(), start, grads, lr=0.1, decay=0.3), theta, rtol=1e-13)


@pytest.mark.parametrize("classical", [False, True])
def test_momentum(classical: bool) -> None:
    """Nesterov's point of view: the step is the one that momentum takes next if the gradient stays."""
    b, lr, decay = 0.9, 1e-2, 0.1
    gain = 1 if classical else 1 - b
    start, grads = vectors(50)
    theta, theta_nesterov, m = start, start, np.zeros(50)
    for g in grads:
        m = b * m + gain * g
        theta = theta - lr * m - lr * decay * theta
        theta_nesterov = theta_nesterov - lr * (b * m + gain * g) - lr * decay * theta_nesterov
    ours = [after(make(b, classical), start, grads, lr, decay) for make in (momentum, nesterov)]
    np.testing.assert_allclose(ours, [theta, theta_nesterov], rtol=1e-13)


def test_lion_is_the_paper_s() -> None:
    """Chen et al. 2023, Algorithm 2."""
    b1, b2, lr, decay = 0.9, 0.99, 1e-2, 0.5
    start, grads = vectors(50)
    theta, m = start, np.zeros(50)
    for g in grads:
        c = b1 * m + (1 - b1) * g
        theta = theta - lr * (np.sign(c) + decay * theta)
        m = b2 * m + (1 - b2) * g
    np.testing.assert_allclose(after(lion((b1, b2)), start, grads, lr, decay), theta, rtol=1e-13)


def test_sage_is_the_authors() -> None:
    """`UnstructAwareAdamW.step` of github.com/cliang1453/SAGE with correct_bias, in its order, but for the
    first eps**2.
    """
    b1, b2, b3, eps, lr, decay = 0.9, 0.98, 0.75, 1e-2, 1e-2, 0.3
    start, grads = vectors(50)
    p, m, v, s = start, np.zeros(50), np.zeros(50), np.zeros(50)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        denominator = np.sqrt(v) + eps
        sensitivity = np.abs(p * g)
        s = b3 * s + (1 - b3) * sensitivity
        mean = s / (1 - b3**t)
        rate = lr * (np.abs(sensitivity - mean) + eps**2) / (mean + eps**2)
        rate = rate * np.sqrt(1 - b2**t) / (1 - b1**t)
        p = p - m / denominator * rate
        p = p - lr * decay * p
    ours = after(sage((b1, b2), b3, eps), start, grads, lr, decay)
    np.testing.assert_allclose(ours, p, rtol=1e-12)


def test_sage_moves_zeros_at_first_and_nothing_else() -> None:
    """By Adam's first step, which is lr."""
    start, grads = vectors(50)
    start[:10] = 0
    end = after(sage(BETAS, BETA3, 1e-8), start, grads[:1], lr=1e-2, decay=0.0)
    np.testing.assert_allclose(end[10:], start[10:], rtol=1e-12)
    np.testing.assert_allclose(np.abs(end[:10]), 1e-2, rtol=1e-4)


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_sophia_is_the_paper_s(eps: float) -> None:
    """Liu et al. 2023, Algorithm 3, with an estimate at every step, some of them negative."""
    b1, b2, rho, lr, decay = 0.96, 0.99, 0.5, 1e-2, 0.2
    start, grads = vectors(50)
    estimates = list(3 * np.random.default_rng(1).standard_normal((N_STEPS, 50)))
    theta, m, h = start, np.zeros(50), np.zeros(50)
    clipped = 0
    for g, estimate in zip(grads, estimates, strict=True):
        m = b1 * m + (1 - b1) * g
        h = b2 * h + (1 - b2) * estimate
        theta = theta - lr * decay * theta
        ratio = m / np.maximum(rho * h, eps)
        clipped += np.count_nonzero(np.abs(ratio) > 1)
        theta = theta - lr * np.clip(ratio, -1, 1)
    assert 0 < clipped < N_STEPS * 50, "both sides of the clip are seen"
    optimizer = sophia((b1, b2), eps, rho, "hutchinson")
    ours = train(optimizer, {"w": start}, [{"w": g} for g in grads], lr, decay, [{"w": e} for e in estimates])
    np.testing.assert_allclose(ours["w"], theta, rtol=1e-12)


def test_sophia_with_the_exact_curvature_is_newton() -> None:
    """On a parabola, without averages and with lr = rho, one step leads to the minimum."""
    curvature, start = np.logspace(-2, 2, 20), np.linspace(-0.9, 0.9, 20)
    optimizer = sophia((0.0, 0.0), 1e-12, 1.0, "hutchinson")
    end = train(optimizer, {"w": start}, [{"w": curvature * start}], 1.0, 0.0, [{"w": curvature}])
    np.testing.assert_allclose(end["w"], 0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_vector_in_parts_is_the_same_to_the_bit(name: str, dtype: type) -> None:
    """So ZeRO shards and cache blocks do not change an update. They are cut where the optimizer allows it."""
    optimizer = OPTIMIZERS[name]
    assert isinstance(optimizer, Elementwise)
    cut = 3 * optimizer.align if optimizer.align > 1 else 333
    start, grads = vectors(1003, dtype)
    whole = after(optimizer, start, grads, lr=1e-2, decay=0.1)
    parts = [
        after(optimizer, start[s], [g[s] for g in grads], lr=1e-2, decay=0.1)
        for s in (slice(cut), slice(cut, None))
    ]
    assert whole.dtype == dtype and not np.array_equal(whole, start)
    assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_shrinks_the_start_by_lr_decay(name: str) -> None:
    """Decoupled: it does not pass through the moments. LAMB has it in its update."""
    start, grads = vectors(50)
    lr, decay = 1e-2, 0.3
    with_decay, without = (after(OPTIMIZERS[name], start, grads[:1], lr, d) for d in (decay, 0.0))
    decaying = without if name == "sage" else start  # there it comes after the step
    same = np.allclose(with_decay, without - lr * decay * decaying, rtol=1e-13, atol=1e-15)
    assert same == (name != "lamb")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_configuration_s_optimizer(name: str) -> None:
    """`make_optimizer` hands every number to its place. b1 and b2 differ, so that swapped ones are seen."""
    b1, b2 = BETAS
    optim = OptimConfig(
        name=name, lr=1.0, betas=(b1, b2), eps=EPS, beta3=BETA3, rho=RHO, weight_decay=0.0  # type: ignore[arg-type]
    )  # fmt: skip
    start, grads = vectors(12)
    made, explicit = make_optimizer(optim), OPTIMIZERS[name]
    tensors = {"matrix": start.reshape(3, 4), "vector": start}
    gradients = [{"matrix": g.reshape(3, 4), "vector": g} for g in grads]
    ends = [train(optimizer, tensors, gradients, lr=1e-2, decay=0.1) for optimizer in (made, explicit)]
    for tensor in tensors:
        assert np.array_equal(ends[0][tensor], ends[1][tensor])
    if isinstance(made, Elementwise) and isinstance(explicit, Elementwise):
        assert made.curvature == explicit.curvature and made.align == explicit.align


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_the_configuration_s_classical_momentum(name: str) -> None:
    start, grads = vectors(12)
    made = make_optimizer(OptimConfig(name=name, betas=(0.9, 0.0), classical=True))  # type: ignore[arg-type]
    explicit = {"momentum": momentum, "nesterov": nesterov}[name](0.9, classical=True)
    ends = [after(optimizer, start, grads, lr=1e-2, decay=0.1) for optimizer in (made, explicit)]
    assert np.array_equal(*ends)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_rate_of_zero_moves_nothing(name: str) -> None:
    """As at the end of a linear schedule, with decay too."""
    start, grads = vectors(50)
    assert np.array_equal(after(OPTIMIZERS[name], start, grads, lr=0.0, decay=0.1), start)
