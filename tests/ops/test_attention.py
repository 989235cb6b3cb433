import math

import numpy as np
import pytest
from oracle import check_directional

from minitrain.arrays import blocks
from minitrain.ops import attention
from minitrain.ops.attention import attention_backward, attention_forward

B, K = 3, 5
CASES = [(4, 2, 7), (6, 3, 8), (3, 3, 9), (4, 1, 1), (2, 1, 4)]  # query heads, key/value heads, positions


@pytest.fixture(autouse=True, params=["one block", "many blocks"])
def block_size(request, monkeypatch):
    """Also with one sequence at a time and query blocks of 4 positions: T = 7, 8, 9 take two or three."""
    if request.param == "many blocks":
        monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)


def arrays(H, G, T, dtype=np.float64):
    rng = np.random.default_rng(H * 100 + T)
    return [rng.standard_normal((B, T, heads, K)).astype(dtype) for heads in (H, G, G, H)]  # q, k, v, do


def naive(q, k, v):
    """One query of one head at a time, over the keys it may see."""
    o = np.empty_like(q)
    heads_per_kv = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        scores = [math.fsum(q[b, t, h] * k[b, u, h // heads_per_kv]) / math.sqrt(K) for u in range(t + 1)]
        weights = np.exp(scores) / np.sum(np.exp(scores))
        o[b, t, h] = sum(w * v[b, u, h // heads_per_kv] for u, w in enumerate(weights))
    return o


@pytest.mark.parametrize("H, G, T", CASES)
def test_forward_equals_one_query_at_a_time(H, G, T):
    q, k, v, _ = arrays(H, G, T)
    np.testing.assert_allclose(attention_forward(q, k, v)[0], naive(q, k, v), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("H, G, T", CASES)
def test_gradients(H, G, T):
    q, k, v, do = arrays(H, G, T)
    grads = attention_backward(do, attention_forward(q, k, v)[1])
    check_directional(lambda a: float(np.vdot(do, attention_forward(*a)[0])), [q, k, v], grads)


def test_large_scores_neither_overflow_nor_leak_from_the_future():
    q, k, v, do = arrays(2, 2, 7)
    k[:, -1] *= 1e4  # seen by the last query only
    q *= 100
    with np.errstate(all="raise", under="ignore"):
        o, saved = attention_forward(q, k, v)
        grads = attention_backward(do, saved)
    np.testing.assert_allclose(o[:, :-1], naive(q[:, :-1], k[:, :-1], v[:, :-1]), rtol=1e-11)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("H, G, T", CASES)
def test_single_precision_stays_single_rows_are_contiguous_and_inputs_untouched(H, G, T):
    inputs = arrays(H, G, T, np.float32)
    before = [a.copy() for a in inputs]
    o, saved = attention_forward(*inputs[:3])
    results = [o, *attention_backward(inputs[3], saved)]
    for got, like in zip(results, [inputs[0], *inputs[:3]], strict=True):
        assert got.dtype == np.float32 and got.flags.c_contiguous and got.shape == like.shape
    assert saved.r_BGRT.dtype == np.float32 and {e.dtype for e in saved.exps} == {np.dtype(np.float32)}
    for a, b in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_inputs_may_be_parts_of_wider_rows():
    q, k, v, do = arrays(4, 2, 7)
    rows = np.concatenate([a.reshape(B, 7, -1) for a in (q, k, v)], axis=2)
    parts = np.split(rows, [4 * K, 6 * K], axis=2)
    o, saved = attention_forward(*(p.reshape(B, 7, -1, K) for p in parts))
    expected, expected_saved = attention_forward(q, k, v)
    np.testing.assert_allclose(o, expected, rtol=1e-13)
    for a, b in zip(attention_backward(do, saved), attention_backward(do, expected_saved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
        assert a.flags.c_contiguous


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    q, k, v, do = arrays(6, 3, 9)
    tq, tk, tv = (torch.tensor(a, requires_grad=True) for a in (q, k, v))
    wide = [a.transpose(1, 2).repeat_interleave(6 // a.shape[2], dim=1) for a in (tq, tk, tv)]
    to = torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=True).transpose(1, 2)
    to.backward(torch.tensor(do))
    o, saved = attention_forward(q, k, v)
    for ours, theirs in zip(
        [o, *attention_backward(do, saved)], [to.detach(), tq.grad, tk.grad, tv.grad], strict=True
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-13)
