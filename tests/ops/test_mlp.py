import math

import numpy as np
import pytest
from oracle import check_directional

from minitrain.arrays import blocks
from minitrain.ops.mlp import gelu_backward, gelu_forward, swiglu_backward, swiglu_forward

N, F = 11, 5


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Blocks of 3 rows in fp64, so that the last block is a shorter one."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 3 * F * 8)


def arrays(dtype=np.float64):
    return list((2 * np.random.default_rng(0).standard_normal((3, N, F))).astype(dtype))


def test_swiglu_element_by_element():
    gate, up, _ = arrays()
    expected = [g / (1 + math.exp(-g)) * u for g, u in zip(gate.flat, up.flat, strict=True)]
    np.testing.assert_allclose(swiglu_forward(gate, up)[0].ravel(), expected, rtol=1e-13)


def test_gelu_element_by_element():
    x = arrays()[0]
    expected = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.flat]
    np.testing.assert_allclose(gelu_forward(x)[0].ravel(), expected, rtol=1e-12, atol=1e-15)


def test_gelu_is_near_the_exact_one():
    x = np.linspace(-4, 4, 33).reshape(-1, 1)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.flat]
    np.testing.assert_allclose(gelu_forward(x)[0].ravel(), exact, atol=1e-3)


def test_swiglu_gradients():
    gate, up, dh = arrays()
    grads = swiglu_backward(dh, swiglu_forward(gate, up)[1])
    check_directional(lambda a: float(np.vdot(dh, swiglu_forward(*a)[0])), [gate, up], grads)


def test_gelu_gradient():
    x, _, dh = arrays()
    dx = gelu_backward(dh, gelu_forward(x)[1])
    check_directional(lambda a: float(np.vdot(dh, gelu_forward(a[0])[0])), [x], [dx])


def test_large_values_saturate_without_a_warning():
    x = np.array([[-1e4, -100, 100, 1e4]], dtype=np.float32)
    one = np.ones_like(x)
    with np.errstate(all="raise", under="ignore"):
        h, saved = swiglu_forward(x, one)
        dgate, _ = swiglu_backward(one, saved)
        g, gelu_saved = gelu_forward(x)
        dx = gelu_backward(one, gelu_saved)
    for value in (h, g):
        np.testing.assert_array_equal(value, [[0, 0, 100, 1e4]])
    for slope in (dgate, dx):
        np.testing.assert_array_equal(slope, [[0, 0, 1, 1]])


def test_single_precision_stays_single_and_inputs_are_untouched():
    gate, up, dh = arrays(np.float32)
    before = [a.copy() for a in (gate, up, dh)]
    h, saved = swiglu_forward(gate, up)
    g, gelu_saved = gelu_forward(gate)
    results = [h, *saved, *swiglu_backward(dh, saved), g, *gelu_saved, gelu_backward(dh, gelu_saved)]
    assert {a.dtype for a in results} == {np.dtype(np.float32)}
    for a, b in zip((gate, up, dh), before, strict=True):
        np.testing.assert_array_equal(a, b)
