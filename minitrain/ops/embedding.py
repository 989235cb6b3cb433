"""The vocabulary-parallel embedding: each tp rank looks up the ids it holds; the sum over ranks is the whole.

Shapes: N tokens, D model width, V vocabulary rows on this tp rank (ids first_id .. first_id + V - 1).
Shoeybi et al. 2019, section 3.
"""

import numpy as np

from minitrain.arrays.narrow import wide
from minitrain.arrays.types import Array


def embedding_forward(ids_N: Array, w_VD: Array, first_id: int) -> Array:
    """y_n = w[ids_n - first_id] where this rank holds the id, else 0: a partial sum over tp."""
    here, rows = _held(ids_N, first_id, len(w_VD))
    if len(here) == len(ids_N):
        return w_VD[rows]
    y_ND = np.zeros_like(w_VD, shape=(len(ids_N), w_VD.shape[1]))
    y_ND[here] = w_VD[rows]
    return y_ND


def embedding_backward(dy_ND: Array, ids_N: Array, dw_VD: Array, first_id: int) -> None:
    """Forward was y_n = w[id_n], so now dw[v] += the sum of dy_n over the tokens n with id v.

    Tokens are sorted by id and each run of equal ids is added up at once, much faster than `np.add.at`.
    The sort is stable, so that the order of addition, hence the rounding, is always the same.
    """
    here, rows = _held(ids_N, first_id, len(dw_VD))
    if len(here) == 0:
        return
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    dw_VD[rows[starts]] += np.add.reduceat(wide(dy_ND[here[order]]), starts, axis=0)


def _held(ids_N: Array, first_id: int, n_ids: int) -> tuple[Array, Array]:
    """The tokens whose id this rank holds, and the row of each."""
    here = np.flatnonzero((ids_N >= first_id) & (ids_N < first_id + n_ids))
    return here, ids_N[here] - first_id
