"""Optimizers that look at whole tensors: their papers, and tensors cut over ranks."""

import math

import numpy as np
import pytest
from optim.stepping import Cut, Tensors, train, train_cut

from minitrain.arrays.types import Array
from minitrain.optim.adafactor import adafactor
from minitrain.optim.lamb import lamb
from minitrain.optim.muon import COEFFICIENTS, muon, orthogonalised
from minitrain.optim.optimizer import WholeTensor

BETAS, EPS = (0.9, 0.95), 1e-3
N_STEPS = 8
SHAPES = {"by rows": (7, 5), "by columns": (6, 5), "copied": (4, 3), "gain": (5,), "bias": (7,)}


def tensors(n: int, seed: int) -> list[Tensors]:
    rng = np.random.default_rng(seed)
    return [{name: rng.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(n)]


START, GRADIENTS = tensors(1, 0)[0], tensors(N_STEPS, 1)


def cuts() -> list[dict[str, Cut]]:
    """Of four ranks: 2 of tensor parallelism, times 2 that cut every box again, most in the middle of a row.
    The second half of one tensor is everything. Of the copies, one is of a part only, as with uneven heads.
    """

    def halves(n: int, at: int) -> tuple[slice, slice]:
        return slice(0, at), slice(at, n)

    ranks = []
    for tp in range(2):
        boxes = {
            "by rows": (halves(7, 4)[tp], slice(0, 5)),
            "by columns": (slice(0, 6), halves(5, 2)[tp]),
            "copied": (slice(2 * tp, 4), slice(0, 3)),
            "gain": (slice(0, 5),),
            "bias": (halves(7, 3)[tp],),
        }
        for dp in range(2):
            held = {}
            for (name, box), at in zip(boxes.items(), (8, 5, 4, 3, 0), strict=True):
                size = math.prod(s.stop - s.start for s in box)
                counts = tp == 0 or name not in ("copied", "gain")
                held[name] = Cut(box, halves(size, at)[dp], counts)
            ranks.append(held)
    return ranks


@pytest.mark.parametrize(
    "optimizer, n_totals",
    [(lamb(BETAS, EPS), 1), (adafactor(), 2), (muon(BETAS, EPS), 1)],
    ids=["lamb", "adafactor", "muon"],
)
def test_cut_tensors_give_the_same(optimizer: WholeTensor, n_totals: int) -> None:
    whole = train(optimizer, START, GRADIENTS, lr=0.02, decay=0.3)
    cut, totals_per_step = train_cut(optimizer, START, GRADIENTS, 0.02, 0.3, cuts())
    assert totals_per_step == n_totals
    for name in START:
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-12, atol=1e-13)


def test_lamb_is_the_paper_s() -> None:
    """You et al. 2020, Algorithm 2, with phi(x) = x."""
    (b1, b2), lr, decay = BETAS, 0.02, 0.3
    ours = train(lamb(BETAS, EPS), START, GRADIENTS, lr, decay)
    for name, x in START.items():
        m, v = np.zeros_like(x), np.zeros_like(x)
        for t, g in enumerate((g[name] for g in GRADIENTS), 1):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g**2
            r = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + EPS)
            direction = r + decay * x
            x = x - lr * np.linalg.norm(x) / np.linalg.norm(direction) * direction
        np.testing.assert_allclose(ours[name], x, rtol=1e-12)


def test_lamb_of_zeros_takes_adam_s_step() -> None:
    zeros = {"gain": np.zeros(5)}
    end = train(lamb(BETAS, 0.0), zeros, [{"gain": GRADIENTS[0]["gain"]}], lr=0.02)["gain"]
    np.testing.assert_allclose(end, -0.02 * np.sign(GRADIENTS[0]["gain"]), rtol=1e-13)
    end = train(lamb(BETAS, EPS), {"gain": START["gain"]}, [zeros], lr=0.02)["gain"]
    assert np.array_equal(end, START["gain"])


def test_adafactor_is_the_paper_s() -> None:
    """Shazeer & Stern 2018, Algorithms 4 and 5 with the numbers of 6; eps1 = 1e-30 plays no part."""
    ours = train(adafactor(), START, GRADIENTS, lr=0.01)
    for name, x in START.items():
        R, C, V = 0.0, 0.0, 0.0
        for t, G in enumerate((g[name] for g in GRADIENTS), 1):
            b = 1 - t**-0.8
            if G.ndim == 2:
                R = b * R + (1 - b) * (G**2 + 1e-30).sum(axis=1)
                C = b * C + (1 - b) * (G**2 + 1e-30).sum(axis=0)
                V = np.outer(R, C) / np.sum(R)
            else:
                V = b * V + (1 - b) * (G**2 + 1e-30)
            U = G / np.sqrt(V)
            rho, rms = min(1e-2, 1 / math.sqrt(t)), math.sqrt(np.mean(x**2))
            x = x - max(1e-3, rms) * rho * U / max(1.0, math.sqrt(np.mean(U**2)))
        np.testing.assert_allclose(ours[name], x, rtol=1e-12)


def on_singular_values(G: Array) -> Array:
    """Muon's iteration where it is a polynomial of numbers: U p(p(...p(S / |G|))) V^T."""
    a, b, c = COEFFICIENTS
    U, s, Vh = np.linalg.svd(G, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return (U * s) @ Vh


def test_muon_is_exact() -> None:
    (b, _), lr, decay = BETAS, 0.02, 0.3
    ours = train(muon(BETAS, EPS), START, GRADIENTS, lr, decay)
    for name in ("by rows", "by columns", "copied"):
        x, m = START[name], np.zeros(SHAPES[name])
        for G in (g[name] for g in GRADIENTS):
            m = b * m + (1 - b) * G
            O = on_singular_values(b * m + (1 - b) * G)
            x = x - lr * decay * x - lr * 0.2 * math.sqrt(max(G.shape)) * O
        np.testing.assert_allclose(ours[name], x, rtol=1e-11)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_orthogonalised(shape: tuple[int, int]) -> None:
    """Singular values of very different size all become about 1; of zeros come zeros."""
    rng = np.random.default_rng(0)
    U, _, Vh = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    G = (U * np.geomspace(1, 0.01, 20)) @ Vh
    s = np.linalg.svd(orthogonalised(G, 1e-8), compute_uv=False)
    assert 0.68 < s.min() and s.max() < 1.21
    assert np.array_equal(orthogonalised(np.zeros(shape), 1e-8), np.zeros(shape))
    assert orthogonalised(G.astype(np.float32), 1e-8).dtype == np.float32


def test_muon_s_step_has_the_root_mean_square_of_adamw_s() -> None:
    """0.2, whatever the shape (Liu et al. 2025), times lr."""
    G = np.random.default_rng(0).standard_normal((40, 160))
    step = train(muon(BETAS, 1e-8), {"w": np.zeros_like(G)}, [{"w": G}], lr=1.0)["w"]
    assert 0.15 < math.sqrt(np.mean(step**2)) < 0.25
