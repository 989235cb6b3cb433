import numpy as np
import pytest
from oracle import check_directional

from minitrain.ops.linear import linear_backward, linear_forward

N, I, O = 7, 5, 3


def arrays(dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = (N, I), (O, I), (O,), (N, O)  # x, w, bias, dy
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def test_forward_is_a_sum_over_inputs():
    x, w, bias, _ = arrays()
    np.testing.assert_allclose(linear_forward(x, w), np.einsum("ni,oi->no", x, w), rtol=1e-13)
    np.testing.assert_allclose(linear_forward(x, w, bias), np.einsum("ni,oi->no", x, w) + bias, rtol=1e-13)


@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients(with_bias):
    x, w, bias, dy = arrays()
    inputs = [x, w, bias] if with_bias else [x, w]
    grads = [np.zeros_like(a) for a in inputs[1:]]
    dx = linear_backward(dy, x, w, *grads)
    check_directional(lambda a: float(np.vdot(dy, linear_forward(*a))), inputs, [dx, *grads])


def test_parameter_gradients_accumulate_and_inputs_are_untouched():
    x, w, bias, dy = arrays()
    before = [a.copy() for a in (x, w, bias, dy)]
    dw, dbias, dw2, dbias2 = np.zeros_like(w), np.zeros_like(bias), np.ones_like(w), np.ones_like(bias)
    linear_backward(dy, x, w, dw, dbias)
    linear_backward(dy, x, w, dw2, dbias2)
    np.testing.assert_allclose(dw2, 1 + dw, rtol=1e-14)
    np.testing.assert_allclose(dbias2, 1 + dbias, rtol=1e-14)
    for a, b in zip((x, w, bias, dy), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_single_precision_stays_single_and_rows_contiguous():
    x, w, bias, dy = arrays(np.float32)
    dw, dbias = np.zeros_like(w), np.zeros_like(bias)
    y, dx = linear_forward(x, w, bias), linear_backward(dy, x, w, dw, dbias)
    assert {a.dtype for a in (y, dx, dw, dbias)} == {np.dtype(np.float32)}
    assert y.flags.c_contiguous and dx.flags.c_contiguous
