"""`ops/attention.py` on a GPU, without a matrix of probabilities (Dao 2023, "FlashAttention-2").

What is saved grows with the length of the sequence and not with its square: beside the operands and o one
number a row. All sums have a fixed order, also those of dk and dv over query heads.

Shapes: B sequences, T positions, H query heads, G key/value heads, K head width.
"""

import math
from typing import NamedTuple

import numpy as np

from minitrain.arrays.device import Gpu
from minitrain.arrays.narrow import compute_type
from minitrain.arrays.types import Array, DType
from minitrain.errors import ConfigError, Problem

SOURCE = "ops/cuda/attention.cu"
WIDTHS = (32, 64, 128)  # K
ROW_BYTES = 256  # of a head at most: more does not fit into registers


class Saved(NamedTuple):
    q_BTHK: Array
    k_BTGK: Array
    v_BTGK: Array
    o_BTHK: Array
    L_BHT: Array  # log of the sum of e^(s_tu) over u, in the type of computation


def supports(head_width: int, dtype: DType) -> bool:
    """Whether there are kernels for heads so wide of this type."""
    return head_width in WIDTHS and head_width * dtype.itemsize <= ROW_BYTES


def check(head_width: int, dtype: DType) -> None:
    """Raises ConfigError for heads that there are no kernels for."""
    if not supports(head_width, dtype):
        widths = ", ".join(str(width) for width in WIDTHS if supports(width, dtype))
        what = f"flash attention has no kernel for heads of width {head_width} in {dtype.name}"
        remedy = f"leave attention out, or make model.width / model.heads one of {widths}"
        raise ConfigError([Problem(what, "attention, model.heads", remedy)])


def attention_forward(gpu: Gpu, q_BTHK: Array, k_BTGK: Array, v_BTGK: Array) -> tuple[Array, Saved]:
    """All arrays are C-contiguous."""
    B, T, H, K = q_BTHK.shape
    G = k_BTGK.shape[2]
    assert supports(K, q_BTHK.dtype)
    o_BTHK = np.empty_like(q_BTHK)
    L_BHT = np.empty_like(q_BTHK, shape=(B, H, T), dtype=compute_type(q_BTHK.dtype))
    types, blocks, threads = _launch(q_BTHK)
    if blocks:
        gpu.launch(
            SOURCE, "attention_forward", types, (blocks, H, B), threads,
            q_BTHK, k_BTGK, v_BTGK, o_BTHK, L_BHT, T, H, G, 1 / math.sqrt(K),
        )  # fmt: skip
    return o_BTHK, Saved(q_BTHK, k_BTGK, v_BTGK, o_BTHK, L_BHT)


def attention_backward(gpu: Gpu, do_BTHK: Array, saved: Saved) -> tuple[Array, Array, Array]:
    """Forward was o = p v, p = e^(s - L), s = q k^T / sqrt(K), so now what ops/attention.py says, block by
    block: once over the keys of every query for dq, once over the queries of every key for dk and dv.
    """
    q_BTHK, k_BTGK, v_BTGK, o_BTHK, L_BHT = saved
    B, T, H, K = q_BTHK.shape
    G, scale = k_BTGK.shape[2], 1 / math.sqrt(K)
    dq_BTHK, dk_BTGK, dv_BTGK = (np.empty_like(x) for x in (q_BTHK, k_BTGK, v_BTGK))
    delta_BHT = np.empty_like(L_BHT)
    types, blocks, threads = _launch(q_BTHK)
    if blocks:
        operands = q_BTHK, k_BTGK, v_BTGK, do_BTHK, L_BHT, delta_BHT
        gpu.launch(
            SOURCE, "attention_backward_delta", types, -(-B * T * H // 8), 256,
            o_BTHK, do_BTHK, delta_BHT, B * T * H, T, H,
        )  # fmt: skip
        gpu.launch(
            SOURCE, "attention_backward_queries", types, (blocks, H, B), threads,
            *operands, dq_BTHK, T, H, G, scale,
        )  # fmt: skip
        gpu.launch(
            SOURCE, "attention_backward_keys", types, (blocks, G, B), threads,
            *operands, dk_BTGK, dv_BTGK, T, H, G, scale,
        )  # fmt: skip
    return dq_BTHK, dk_BTGK, dv_BTGK


def _launch(x_BTHK: Array) -> tuple[dict[str, DType | int], int, int]:
    """Types, blocks for the positions of a head (0 of an empty array), and threads, 32 for 16 positions."""
    T, K = x_BTHK.shape[1], x_BTHK.shape[3]
    warps = 4 if x_BTHK.dtype.itemsize == 8 else 8
    return {"T": x_BTHK.dtype, "HEAD": K}, -(-T // (16 * warps)) if x_BTHK.size else 0, 32 * warps
