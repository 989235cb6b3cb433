"""`ops/embedding.py` on a GPU. Gradients are summed in an order that depends on ids alone, without atomics.

Shapes: N tokens, D model width, V vocabulary rows on this tp rank.
"""

import numpy as np

from minitrain.arrays.device import Gpu
from minitrain.arrays.narrow import compute_type
from minitrain.arrays.threads import row_threads
from minitrain.arrays.types import Array, DType

SOURCE = "ops/cuda/embedding.cu"
DIGIT, TILE, CHUNK = 8, 512, 64  # as in the source: bits, tokens of a block that sorts, of one that adds up


def embedding_forward(gpu: Gpu, ids_N: Array, w_VD: Array, first_id: int) -> Array:
    N, (V, D) = len(ids_N), w_VD.shape
    y_ND = np.empty_like(w_VD, shape=(N, D))
    if N:
        gpu.launch(
            SOURCE, "embedding_forward", {"T": w_VD.dtype, "G": w_VD.dtype}, N, row_threads(y_ND[0].nbytes),
            ids_N, w_VD, y_ND, V, D, first_id,
        )  # fmt: skip
    return y_ND


def embedding_backward(gpu: Gpu, dy_ND: Array, ids_N: Array, dw_VD: Array, first_id: int) -> None:
    N, (V, D) = len(ids_N), dw_VD.shape
    if N == 0:
        return
    types = {"T": dy_ND.dtype, "G": dw_VD.dtype}
    tokens_N = _sorted_tokens(gpu, ids_N, V, first_id, types)
    n_chunks = -(-N // CHUNK)
    from_before, to_next = (
        np.empty_like(dy_ND, shape=(n_chunks, D), dtype=compute_type(dy_ND.dtype)) for _ in range(2)
    )
    gpu.launch(
        SOURCE, "embedding_backward_chunks", types, n_chunks, row_threads(dy_ND[0].nbytes, 256),
        dy_ND, tokens_N, dw_VD, from_before, to_next, N, V, D,
    )  # fmt: skip
    if n_chunks > 1:
        gpu.launch(
            SOURCE, "embedding_backward_join", types, (n_chunks - 1, -(-D // 32)), 256,
            tokens_N, from_before, to_next, dw_VD, N, V, D,
        )  # fmt: skip


def _sorted_tokens(gpu: Gpu, ids_N: Array, V: int, first_id: int, types: dict[str, DType]) -> Array:
    """row 2^32 + n for every token n, in rising order; of ids that are not held here the row is V."""
    N = len(ids_N)
    tokens_N, other_N = np.empty_like(ids_N), np.empty_like(ids_N)
    n_tiles = -(-N // TILE)
    counts = np.empty_like(ids_N, shape=(n_tiles, 2**DIGIT), dtype=np.int32)
    gpu.launch(SOURCE, "embedding_tokens", types, -(-N // 256), 256, ids_N, tokens_N, N, V, first_id)
    for shift in range(32, 32 + V.bit_length(), DIGIT):  # by the lowest digit first
        gpu.launch(SOURCE, "embedding_count_digits", types, n_tiles, 256, tokens_N, counts, N, shift)
        gpu.launch(SOURCE, "embedding_sort", types, n_tiles, 256, tokens_N, counts, other_N, N, shift)
        tokens_N, other_N = other_N, tokens_N
    return tokens_N
