"""Tokens to activations: the vocabulary-parallel embedding, and GPT-2's learned positions.

Shapes: N = B*T rows of a micro-batch, S rows of it held by this rank, V rows of the vocabulary on this
rank, T positions, D model width.
"""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.model.tensor import TensorParallel
from minitrain.ops.table import Ops


def embed_forward(ops: Ops, ids_N: Array, w_VD: Array, first_id: int, tp: TensorParallel) -> Array:
    """x_SD = E[ids]. Each rank has the rows of its own part of the vocabulary and zeros for the others: a
    partial sum.
    """
    return tp.leave(ops.embedding_forward(ids_N, w_VD, first_id))


def embed_backward(
    ops: Ops, dx_SD: Array, ids_N: Array, dw_VD: Array, first_id: int, tp: TensorParallel
) -> None:
    """Forward was a sum over ranks, so now each has the gradient of the sum, for the ids that it holds."""
    ops.embedding_backward(tp.leave_backward(dx_SD), ids_N, dw_VD, first_id)


def positions_forward(
    ops: Ops, x_SD: Array, w_TD: Array, n_rows: int, seq_len: int, tp: TensorParallel
) -> Array:
    """x_SD + P[t] for the rows held here."""
    x_SD += ops.embedding_forward(_positions(x_SD, n_rows, seq_len, tp), w_TD, 0)
    return x_SD


def positions_backward(
    ops: Ops, dx_SD: Array, dw_TD: Array, n_rows: int, seq_len: int, tp: TensorParallel
) -> None:
    """Forward was x + P[t], so now dP[t] += dx of every row at t: under sequence parallelism partial, of
    the rows held here.
    """
    ops.embedding_backward(dx_SD, _positions(dx_SD, n_rows, seq_len, tp), dw_TD, 0)


def _positions(x_SD: Array, n_rows: int, seq_len: int, tp: TensorParallel) -> Array:
    """Of the rows held here, in the memory that x is in."""
    rows = tp.rows(n_rows)
    return np.arange(rows.start, rows.stop, like=x_SD) % seq_len
