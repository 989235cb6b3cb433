import numpy as np
import pytest
from oracle import check_directional

from minitrain.arrays import blocks
from minitrain.ops.norm import layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward

N, D = 11, 7
EPS = 1e-3  # large enough for a wrong place of eps to show


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Blocks of 3 rows in fp64, so that the last block is a shorter one."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 3 * D * 8)


def arrays(n_params, dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = [(N, D), (N, D)] + [(D,)] * n_params  # dy, x, gain, bias
    dy, x, *params = (rng.standard_normal(s).astype(dtype) for s in shapes)
    return dy, x + 0.5, params


CASES = [(rms_norm_forward, rms_norm_backward, 1), (layer_norm_forward, layer_norm_backward, 2)]


def backward_of(forward, backward, dy, x, params, grads):
    return backward(dy, forward(x, *params, EPS)[1], params[0], *grads)


def test_rms_norm_row_by_row():
    _, x, (gain,) = arrays(1)
    expected = [gain * row / np.sqrt(sum(v * v for v in row) / D + EPS) for row in x]
    np.testing.assert_allclose(rms_norm_forward(x, gain, EPS)[0], expected, rtol=1e-13)


def test_layer_norm_row_by_row():
    _, x, (gain, bias) = arrays(2)
    expected = [gain * (row - np.mean(row)) / np.sqrt(np.var(row) + EPS) + bias for row in x]
    np.testing.assert_allclose(layer_norm_forward(x, gain, bias, EPS)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("forward, backward, n_params", CASES)
def test_gradients(forward, backward, n_params):
    dy, x, params = arrays(n_params)
    grads = [np.zeros(D) for _ in params]
    dx = backward_of(forward, backward, dy, x, params, grads)
    check_directional(lambda a: float(np.vdot(dy, forward(*a, EPS)[0])), [x, *params], [dx, *grads])


@pytest.mark.parametrize("forward, backward, n_params", CASES)
def test_parameter_gradients_accumulate_and_inputs_are_untouched(forward, backward, n_params):
    dy, x, params = arrays(n_params)
    before = [a.copy() for a in (dy, x, *params)]
    once, onto_ones = [np.zeros(D) for _ in params], [np.ones(D) for _ in params]
    backward_of(forward, backward, dy, x, params, once)
    backward_of(forward, backward, dy, x, params, onto_ones)
    for a, b in zip(once, onto_ones, strict=True):
        np.testing.assert_allclose(b, 1 + a, rtol=1e-13)
    for a, b in zip((dy, x, *params), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("forward, backward, n_params", CASES)
def test_single_precision_stays_single(forward, backward, n_params):
    dy, x, params = arrays(n_params, np.float32)
    grads = [np.zeros_like(p) for p in params]
    y, saved = forward(x, *params, EPS)
    dx = backward(dy, saved, params[0], *grads)
    assert {a.dtype for a in (y, *saved, dx, *grads)} == {np.dtype(np.float32)}
