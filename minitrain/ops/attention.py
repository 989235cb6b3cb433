"""Causal grouped-query attention (Vaswani et al. 2017, section 3.2; Ainslie et al. 2023).

Shapes: B sequences, T positions, H query heads, G key/value heads, R = H/G query heads for each of them,
K head width. Query head h attends with key/value head h // R.

Queries are taken in blocks i:j of positions, which see keys 0:j: the scores beyond a block's end, masked
anyway, are never computed.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minitrain.arrays.blocks import row_blocks
from minitrain.arrays.narrow import compute_type, narrow, scratch, store, wide
from minitrain.arrays.rows import row_dot, row_max, row_sum
from minitrain.arrays.types import Array

QUERY_BLOCK = 64


class AttentionSaved(NamedTuple):
    """The operands and the probabilities p = e r, e = e^(s - max s), r = 1 / sum e (in fp32 or fp64)."""

    q_BTHK: Array
    k_BTGK: Array
    v_BTGK: Array
    o_BTHK: Array
    exps: list[Array]  # e of each query block i:j, [B, G, R, j-i, j]
    r_BGRT: Array


def attention_forward(q_BTHK: Array, k_BTGK: Array, v_BTGK: Array) -> tuple[Array, AttentionSaved]:
    """o_t = sum_u p_tu v_u, where p_t = softmax over u <= t of s_tu = q_t . k_u / sqrt(K). o is C-contiguous.

    The division of the softmax is done on o, which is narrower than p: o = (e^s v) / sum e^s.
    """
    B, T, H, _ = q_BTHK.shape
    G = k_BTGK.shape[2]
    o_BTHK = np.empty_like(q_BTHK, order="C")
    q_scaled, values = _over_root(q_BTHK), scratch(o_BTHK)
    r_BGRT = np.empty_like(q_scaled, shape=(B, G, H // G, T))
    q, k, v, o = (_by_kv_head(x, G) for x in (q_scaled, wide(k_BTGK), wide(v_BTGK), values))
    exps = []
    for i, j in _query_blocks(T):
        exp = np.empty_like(q_BTHK, shape=(B, G, H // G, j - i, j))
        future = np.triu(np.full_like(q_scaled, -np.inf, shape=(j - i, j - i)), 1)
        for b in _sequence_blocks(exp):
            s = scratch(exp[b])
            np.matmul(q[b, :, :, i:j], k[b, :, :, :j].swapaxes(-1, -2), out=s)
            s[..., i:] += future
            s -= row_max(s)
            np.exp(s, out=s)
            r = np.reciprocal(row_sum(s), out=r_BGRT[b, :, :, i:j])
            store(s, exp[b])
            np.matmul(wide(exp[b]), v[b, :, :, :j], out=o[b, :, :, i:j])
            o[b, :, :, i:j] *= r[..., None]
        exps.append(exp)
    store(values, o_BTHK)
    return o_BTHK, AttentionSaved(q_BTHK, k_BTGK, v_BTGK, o_BTHK, exps, r_BGRT)


def attention_backward(do_BTHK: Array, saved: AttentionSaved) -> tuple[Array, Array, Array]:
    """Forward was o = p v, p = softmax(s), s = q k^T / sqrt(K), so now dv = p^T do, dp = do v^T,
    ds = p (dp - sum_u p dp), dq = ds k / sqrt(K), dk = ds^T q / sqrt(K); dk, dv summed over R query heads.

    sum_u p dp = o . do (Dao et al. 2022, appendix B.2), and the factor r of p = e r is put on do once for
    all: ds = e (r do v^T - o . r do). Returns C-contiguous (dq, dk, dv).
    """
    B, T, _, K = do_BTHK.shape
    G = saved.k_BTGK.shape[2]
    q_scaled = _over_root(saved.q_BTHK)
    dq_BTHK = np.empty_like(q_scaled)
    dk_BTGK, dv_BTGK = (np.zeros_like(q_scaled, shape=(B, T, G, K)) for _ in range(2))
    dk, dv = dk_BTGK.swapaxes(1, 2), dv_BTGK.swapaxes(1, 2)
    q, k, v, dq = (_by_kv_head(x, G) for x in (q_scaled, wide(saved.k_BTGK), wide(saved.v_BTGK), dq_BTHK))
    rdo = _by_kv_head(wide(do_BTHK), G) * saved.r_BGRT[..., None]
    mean = row_dot(_by_kv_head(wide(saved.o_BTHK), G), rdo)[..., None]
    for (i, j), exp in zip(_query_blocks(T), saved.exps, strict=True):
        for b in _sequence_blocks(exp):
            block = (b, slice(None), slice(None), slice(i, j))
            ds = np.matmul(rdo[block], v[b, :, :, :j].swapaxes(-1, -2))
            ds -= mean[block]
            e = wide(exp[b])
            ds *= e
            ds = wide(narrow(ds, do_BTHK.dtype))  # as it enters the next products
            np.matmul(ds, k[b, :, :, :j], out=dq[block])
            dk[b, :, :j] += np.matmul(_join(ds).swapaxes(-1, -2), _join(q[block]))
            dv[b, :, :j] += np.matmul(_join(e).swapaxes(-1, -2), _join(rdo[block]))
    dq_BTHK *= 1 / math.sqrt(K)
    dq, dk, dv = (narrow(x, do_BTHK.dtype) for x in (dq_BTHK, dk_BTGK, dv_BTGK))
    return dq, dk, dv


def _over_root(q_BTHK: Array) -> Array:
    """q / sqrt(K) in the type of computation, C-contiguous."""
    q_scaled = np.empty_like(q_BTHK, dtype=compute_type(q_BTHK.dtype), order="C")
    return np.multiply(wide(q_BTHK), 1 / math.sqrt(q_BTHK.shape[-1]), out=q_scaled)


def _query_blocks(n_positions: int) -> Iterator[tuple[int, int]]:
    for i in range(0, n_positions, QUERY_BLOCK):
        yield i, min(i + QUERY_BLOCK, n_positions)


def _sequence_blocks(exp_BGRTU: Array) -> Iterator[slice]:
    """Blocks of sequences whose e, and temporaries of that size, fit a core's cache. On a GPU all of them."""
    B, on_host = len(exp_BGRTU), isinstance(exp_BGRTU, np.ndarray)
    return row_blocks(B, exp_BGRTU.nbytes // B) if on_host else iter([slice(0, B)])


def _by_kv_head(x_BTHK: Array, n_kv_heads: int) -> Array:
    """A view [B, G, R, T, K]: query heads that share a key/value head are neighbours (R = 1 for k and v)."""
    B, T, H, K = x_BTHK.shape
    return x_BTHK.reshape(B, T, n_kv_heads, H // n_kv_heads, K).transpose(0, 2, 3, 1, 4)


def _join(x_BGRTU: Array) -> Array:
    """[B, G, R*T, U]: a product over these rows also sums over the R query heads of a key/value head."""
    B, G, R, T, U = x_BGRTU.shape
    return x_BGRTU.reshape(B, G, R * T, U)
