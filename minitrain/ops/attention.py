"""Causal grouped-query attention (Vaswani et al. 2017, section 3.2; Ainslie et al. 2023).

Shapes: B sequences, T positions, H query heads, G key/value heads, R = H/G query heads for each of them, K head
width. Query head h attends with key/value head h // R. Queries are taken in blocks i:j of positions, which see keys
0:j: the part of the score matrix beyond a block's end, masked anyway, is never computed.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minitrain.arrays.blocks import row_blocks
from minitrain.arrays.types import Array

QUERY_BLOCK = 128


class AttentionSaved(NamedTuple):
    """q is scaled by 1/sqrt(K). `exps` holds, for each query block, e^(s - max s) of shape [B, G, R, j-i, j];
    times `reciprocal_sum_BGRT` they are the probabilities.
    """

    q_BTHK: Array
    k_BTGK: Array
    v_BTGK: Array
    o_BTHK: Array
    exps: list[Array]
    reciprocal_sum_BGRT: Array


def attention_forward(q_BTHK: Array, k_BTGK: Array, v_BTGK: Array) -> tuple[Array, AttentionSaved]:
    """o_t = sum_u p_tu v_u, p_t = softmax over u <= t of q_t . k_u / sqrt(K).

    The division of softmax is done on o, which is narrower than p: o = (e^s v) / sum(e^s).
    """
    B, T, H, K = q_BTHK.shape
    G = k_BTGK.shape[2]
    q_BTHK = q_BTHK * (1 / math.sqrt(K))
    o_BTHK = np.empty_like(q_BTHK)
    q_BGRTK, o_BGRTK = _by_kv_head(q_BTHK, G), _by_kv_head(o_BTHK, G)
    k_BGRTK, v_BGRTK = _by_kv_head(k_BTGK, G), _by_kv_head(v_BTGK, G)  # R = 1: broadcast over query heads
    reciprocal_sum_BGRT = np.empty_like(q_BTHK, shape=(B, G, H // G, T))
    exps = []
    for i, j in _query_blocks(T):
        exps.append(np.empty_like(q_BTHK, shape=(B, G, H // G, j - i, j)))
        masked = np.triu(np.full_like(q_BTHK, -np.inf, shape=(j - i, j - i)), 1)
        for b in row_blocks(B, H * (j - i) * j * q_BTHK.itemsize):
            s = np.matmul(q_BGRTK[b, :, :, i:j], k_BGRTK[b, :, :, :j].swapaxes(-1, -2), out=exps[-1][b])
            s[..., i:] += masked
            s -= s.max(axis=-1, keepdims=True)
            np.exp(s, out=s)
            r = np.reciprocal(s.sum(axis=-1), out=reciprocal_sum_BGRT[b, :, :, i:j])
            o = np.matmul(s, v_BGRTK[b, :, :, :j], out=o_BGRTK[b, :, :, i:j])
            o *= r[..., None]
    return o_BTHK, AttentionSaved(q_BTHK, k_BTGK, v_BTGK, o_BTHK, exps, reciprocal_sum_BGRT)


def attention_backward(do_BTHK: Array, saved: AttentionSaved) -> tuple[Array, Array, Array]:
    """Forward was o = p v, p = softmax(s), s = q k^T / sqrt(K), so now dv = p^T do, dp = do v^T,
    ds = p (dp - sum_u p dp), dq = ds k / sqrt(K), dk = ds^T q / sqrt(K); dk, dv summed over R query heads.

    sum_u p dp = o . do (Dao et al. 2022, appendix B.2), and p = e^s r has its r moved to do and to o . do.
    """
    B, T, H, K = do_BTHK.shape
    G = saved.k_BTGK.shape[2]
    dq_BTHK = np.empty_like(saved.q_BTHK)
    dk_BTGK, dv_BTGK = np.zeros_like(saved.k_BTGK), np.zeros_like(saved.v_BTGK)
    q_BGRTK, dq_BGRTK = _by_kv_head(saved.q_BTHK, G), _by_kv_head(dq_BTHK, G)
    k_BGRTK, v_BGRTK = _by_kv_head(saved.k_BTGK, G), _by_kv_head(saved.v_BTGK, G)
    dk_BGTK, dv_BGTK = dk_BTGK.swapaxes(1, 2), dv_BTGK.swapaxes(1, 2)
    r_BGRT1 = saved.reciprocal_sum_BGRT[..., None]
    y_BGRTK = _by_kv_head(do_BTHK, G) * r_BGRT1
    mean_BGRT1 = np.vecdot(_by_kv_head(saved.o_BTHK, G), y_BGRTK)[..., None]
    for (i, j), exp in zip(_query_blocks(T), saved.exps, strict=True):
        for b in row_blocks(B, H * (j - i) * j * do_BTHK.itemsize):
            y, q = y_BGRTK[b, :, :, i:j], q_BGRTK[b, :, :, i:j]
            ds = np.matmul(y, v_BGRTK[b, :, :, :j].swapaxes(-1, -2))
            ds -= mean_BGRT1[b, :, :, i:j]
            ds *= exp[b]
            np.matmul(ds, k_BGRTK[b, :, :, :j], out=dq_BGRTK[b, :, :, i:j])
            dk_BGTK[b, :, :j] += np.matmul(ds.swapaxes(-1, -2), q).sum(axis=2)
            dv_BGTK[b, :, :j] += np.matmul(exp[b].swapaxes(-1, -2), y).sum(axis=2)
    dq_BTHK *= 1 / math.sqrt(K)
    return dq_BTHK, dk_BTGK, dv_BTGK


def _query_blocks(n_positions: int) -> Iterator[tuple[int, int]]:
    for i in range(0, n_positions, QUERY_BLOCK):
        yield i, min(i + QUERY_BLOCK, n_positions)


def _by_kv_head(x_BTHK: Array, n_kv_heads: int) -> Array:
    """A view [B, G, R, T, K]: query heads that share a key/value head are neighbours."""
    B, T, H, K = x_BTHK.shape
    return x_BTHK.reshape(B, T, n_kv_heads, H // n_kv_heads, K).transpose(0, 2, 3, 1, 4)
