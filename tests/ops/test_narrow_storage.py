"""Operations on 16-bit arrays: computed in fp32, rounded where they store, and nowhere else.

What is rounded once is off by half an ulp at most; where something inside is rounded too, by a few.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from minitrain.arrays.types import Array
from minitrain.ops.attention import attention_backward, attention_forward
from minitrain.ops.embedding import embedding_backward, embedding_forward
from minitrain.ops.linear import linear_backward, linear_forward
from minitrain.ops.mlp import gelu_backward, gelu_forward, swiglu_backward, swiglu_forward
from minitrain.ops.norm import layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward
from minitrain.ops.rope import rope_forward, rope_table

BF16, FP16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
HALF_ULP = {BF16: 2.0**-8, FP16: 2.0**-11}  # relative to the power of two below
NARROW = pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
N, D, F = 24, 40, 56


def arrays(dtype: np.dtype, *shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def linear(x: Array, w: Array, b: Array, dy: Array) -> list[Array]:
    dw, db = np.zeros_like(w), np.zeros_like(b)
    return [linear_forward(x, w, b), linear_backward(dy, x, w, dw, db), dw, db]


def rms_norm(x: Array, gain: Array, dy: Array) -> list[Array]:
    y, saved = rms_norm_forward(x, gain, 1e-5)
    assert saved.r_N.dtype == (np.float64 if x.dtype == np.float64 else np.float32)
    return [y, saved.xhat_ND]


def layer_norm(x: Array, gain: Array, bias: Array) -> list[Array]:
    y, saved = layer_norm_forward(x, gain, bias, 1e-5)
    return [y, saved.xhat_ND]


def swiglu(gate: Array, up: Array, dh: Array) -> list[Array]:
    h, saved = swiglu_forward(gate, up)
    return [h, saved.sigmoid_NF]


def gelu(x: Array, dh: Array) -> list[Array]:
    h, saved = gelu_forward(x)
    return [h, saved.tanh_NF]


def rope(x: Array) -> list[Array]:
    q = x.reshape(2, 3, 4, 40).copy()
    return [rope_forward(q, rope_table(3, 40, 10000.0, x.dtype))]


def embedding(w: Array, dy: Array) -> list[Array]:
    ids, dw = np.arange(N) % 5, np.zeros_like(w)
    embedding_backward(dy, ids, dw, 0)
    return [embedding_forward(ids, w, 0), dw]


ONCE: dict[str, tuple[Callable[..., list[Array]], list[tuple[int, ...]]]] = {
    "linear": (linear, [(N, D), (F, D), (F,), (N, F)]),
    "rms norm": (rms_norm, [(N, D), (D,), (N, D)]),
    "layer norm": (layer_norm, [(N, D), (D,), (D,)]),
    "swiglu": (swiglu, [(N, F), (N, F), (N, F)]),
    "gelu": (gelu, [(N, F), (N, F)]),
    "rope": (rope, [(N, D)]),
    "embedding": (embedding, [(5, D), (N, D)]),
}


@NARROW
@pytest.mark.parametrize("name", ONCE)
def test_rounded_once(name: str, dtype: np.dtype) -> None:
    operation, shapes = ONCE[name]
    inputs = arrays(dtype, *shapes)
    ours = operation(*inputs)
    exact = operation(*(x.astype(np.float64) for x in inputs))
    for y, reference in zip(ours, exact, strict=True):
        assert y.dtype == dtype
        ulp = HALF_ULP[dtype] * 2.0 ** np.floor(np.log2(np.abs(reference) + 1e-30))
        error = np.abs(y.astype(np.float64) - reference)
        fp32 = 1e-5 * np.abs(reference).max()  # of sums that cancel
        assert np.all(error <= ulp + fp32)
        assert name == "embedding" or error.max() > 0.9 * ulp.max() / 2


def rms_norm_gradients(x: Array, gain: Array, dy: Array) -> list[Array]:
    _, saved = rms_norm_forward(x, gain, 1e-5)
    dgain = np.zeros_like(gain)
    return [rms_norm_backward(dy, saved, gain, dgain), dgain]


def layer_norm_gradients(x: Array, gain: Array, bias: Array, dy: Array) -> list[Array]:
    _, saved = layer_norm_forward(x, gain, bias, 1e-5)
    dgain, dbias = np.zeros_like(gain), np.zeros_like(bias)
    return [layer_norm_backward(dy, saved, gain, dgain, dbias), dgain, dbias]


def swiglu_gradients(gate: Array, up: Array, dh: Array) -> list[Array]:
    return list(swiglu_backward(dh, swiglu_forward(gate, up)[1]))


def gelu_gradients(x: Array, dh: Array) -> list[Array]:
    return [gelu_backward(dh, gelu_forward(x)[1])]


def attention(q: Array, k: Array, v: Array, do: Array) -> list[Array]:
    o, saved = attention_forward(q, k, v)
    assert all(e.dtype == q.dtype for e in saved.exps)
    return [o, *attention_backward(do, saved)]


HEADS, KV_HEADS = (2, 70, 4, 8), (2, 70, 2, 8)
INSIDE: dict[str, tuple[Callable[..., list[Array]], list[tuple[int, ...]]]] = {
    "rms norm": (rms_norm_gradients, [(N, D), (D,), (N, D)]),
    "layer norm": (layer_norm_gradients, [(N, D), (D,), (D,), (N, D)]),
    "swiglu": (swiglu_gradients, [(N, F), (N, F), (N, F)]),
    "gelu": (gelu_gradients, [(N, F), (N, F)]),
    "attention": (attention, [HEADS, KV_HEADS, KV_HEADS, HEADS]),
}


@NARROW
@pytest.mark.parametrize("name", INSIDE)
def test_off_by_what_was_rounded_inside(name: str, dtype: np.dtype) -> None:
    operation, shapes = INSIDE[name]
    inputs = arrays(dtype, *shapes)
    exact = operation(*(x.astype(np.float64) for x in inputs))
    for y, reference in zip(operation(*inputs), exact, strict=True):
        assert y.dtype == dtype
        error = np.linalg.norm(y.astype(np.float64) - reference) / np.linalg.norm(reference)
        assert HALF_ULP[dtype] / 10 < error < 2 * HALF_ULP[dtype]


@NARROW
def test_gradients_add_up_in_their_own_type(dtype: np.dtype) -> None:
    """fp32 gradients of 16-bit factors are not rounded to 16 bits on their way; 16-bit ones are."""
    x, dy = arrays(dtype, (N, D), (N, F))
    w = arrays(dtype, (F, D))[0]
    product = dy.astype(np.float64).T @ x.astype(np.float64)
    dw = np.zeros((F, D), np.float32)
    for _ in range(3):
        linear_backward(dy, x, w, dw)
    np.testing.assert_allclose(dw, 3 * product, rtol=1e-4, atol=1e-4)
    narrow = np.zeros((F, D), dtype)
    linear_backward(dy, x, w, narrow)
    assert np.array_equal(narrow, (dy.astype(np.float32).T @ x.astype(np.float32)).astype(dtype))
