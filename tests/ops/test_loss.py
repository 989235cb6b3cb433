import math
from itertools import pairwise

import numpy as np
import pytest
from oracle import check_directional

from minitrain.arrays import blocks
from minitrain.ops.loss import cross_entropy, exp_and_sums, local_max, logits_backward

N, V, SCALE = 7, 11, 0.37
TARGETS = np.array([0, 3, -1, 10, 4, -100, 4])
CUTS = [[0, 11], [0, 4, 11], [0, 0, 5, 11], [0, 3, 4, 8, 11]]  # vocabulary ranges; a rank may have none


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Blocks of 2 rows or more, so that N = 7 takes several."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2 * V * 8)


def logits(dtype=np.float64):
    return (3 * np.random.default_rng(0).standard_normal((N, V))).astype(dtype)


def all_ranks(z, cut):
    """What the model room does, one rank after another in place of the collectives. Returns nll, dlogits."""
    parts = [(a, z[:, a:b].copy()) for a, b in pairwise(cut)]
    m = np.max([local_max(part) for _, part in parts], axis=0)
    sums = np.sum([exp_and_sums(part, m, TARGETS, a) for a, part in parts], axis=0)
    nll = cross_entropy(sums, TARGETS)
    return nll, np.concatenate([logits_backward(part, sums, TARGETS, a, SCALE) for a, part in parts], axis=1)


@pytest.mark.parametrize("cut", CUTS)
def test_forward_is_minus_log_probability_of_the_target(cut):
    z = logits()
    expected = np.zeros(N)
    for n in np.flatnonzero(TARGETS >= 0):
        expected[n] = -math.log(math.exp(z[n, TARGETS[n]]) / sum(map(math.exp, z[n])))
    np.testing.assert_allclose(all_ranks(z, cut)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("cut", CUTS)
def test_gradient(cut):
    z = logits()
    dz = all_ranks(z, cut)[1]
    check_directional(lambda a: SCALE * float(all_ranks(a[0], cut)[0].sum()), [z], [dz])
    assert not dz[TARGETS < 0].any() and dz[TARGETS >= 0].all()


def test_works_in_place():
    z = logits()
    sums = exp_and_sums(z, local_max(z), TARGETS, 0)
    assert z.max() == 1
    assert logits_backward(z, sums, TARGETS, 0, SCALE) is z


def test_large_logits_do_not_overflow():
    z = logits() + 1e4
    with np.errstate(all="raise", under="ignore"):
        nll, dz = all_ranks(z, [0, 4, 11])
    np.testing.assert_allclose(nll, all_ranks(logits(), [0, 4, 11])[0], rtol=1e-10)
    assert np.isfinite(dz).all()


@pytest.mark.parametrize("cut", CUTS)
def test_single_precision_stays_single(cut):
    nll, dz = all_ranks(logits(np.float32), cut)
    assert nll.dtype == dz.dtype == np.float32
    np.testing.assert_allclose(nll, all_ranks(logits(), cut)[0], rtol=1e-5)


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    z = torch.tensor(logits(), requires_grad=True)
    targets = torch.tensor(np.where(TARGETS < 0, -100, TARGETS))
    theirs = torch.nn.functional.cross_entropy(z, targets, reduction="none", ignore_index=-100)
    (SCALE * theirs.sum()).backward()
    nll, dz = all_ranks(logits(), [0, 4, 11])
    np.testing.assert_allclose(nll, theirs.detach().numpy(), rtol=1e-13)
    np.testing.assert_allclose(dz, z.grad.numpy(), rtol=1e-12, atol=1e-15)
