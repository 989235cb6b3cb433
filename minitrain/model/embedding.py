"""Tokens to activations: the vocabulary-parallel embedding, and GPT-2's learned positions.

Shapes: N = B*T rows of a micro-batch, S rows of it held by this rank, V rows of the vocabulary on this
rank, T positions, D model width.
"""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.model.tensor import TensorParallel
from minitrain.ops import embedding


def embed_forward(ids_N: Array, w_VD: Array, first_id: int, tp: TensorParallel) -> Array:
    """x_SD = E[ids]. Each rank has the rows of its own part of the vocabulary and zeros for the others: a
    partial sum.
    """
    return tp.leave(embedding.embedding_forward(ids_N, w_VD, first_id))


def embed_backward(dx_SD: Array, ids_N: Array, dw_VD: Array, first_id: int, tp: TensorParallel) -> None:
    """Forward was a sum over ranks, so now each has the gradient of the sum, for the ids that it holds."""
    embedding.embedding_backward(tp.leave_backward(dx_SD), ids_N, dw_VD, first_id)


def positions_forward(x_SD: Array, w_TD: Array, n_rows: int, seq_len: int, tp: TensorParallel) -> Array:
    """x_SD + P[t] for the rows held here."""
    x_SD += embedding.embedding_forward(_positions(n_rows, seq_len, tp), w_TD, 0)
    return x_SD


def positions_backward(dx_SD: Array, dw_TD: Array, n_rows: int, seq_len: int, tp: TensorParallel) -> None:
    """Forward was x + P[t], so now dP[t] += dx of every row at t: under sequence parallelism partial, of
    the rows held here.
    """
    embedding.embedding_backward(dx_SD, _positions(n_rows, seq_len, tp), dw_TD, 0)


def _positions(n_rows: int, seq_len: int, tp: TensorParallel) -> Array:
    rows = tp.rows(n_rows)
    return np.arange(rows.start, rows.stop) % seq_len
