"""The vocabulary-parallel embedding: each tp rank looks up the ids it holds; the sum over ranks is the embedding.

Shapes: N tokens, D model width, V vocabulary rows on this tp rank (ids first_id .. first_id + V - 1).
Shoeybi et al. 2019, section 3.
"""

import numpy as np

from minitrain.arrays.types import Array


def embedding_forward(ids_N: Array, w_VD: Array, first_id: int) -> Array:
    """y_n = w[ids_n - first_id] where this rank holds the id, else 0: a partial sum over tp."""
    local_N = ids_N - first_id
    here = np.flatnonzero((local_N >= 0) & (local_N < len(w_VD)))
    y_ND = np.zeros_like(w_VD, shape=(len(ids_N), w_VD.shape[1]))
    y_ND[here] = w_VD[local_N[here]]
    return y_ND


def embedding_backward(dy_ND: Array, ids_N: Array, dw_VD: Array, first_id: int) -> None:
    """Forward was y_n = w[id_n], so now dw[v] += the sum of dy_n over the tokens n that have id v.

    Tokens are sorted by id (stably: the order of addition, hence the rounding, is always the same) and runs of
    equal ids are added up at once; `np.add.at` would do the same an element at a time.
    """
    local_N = ids_N - first_id
    here = np.flatnonzero((local_N >= 0) & (local_N < len(dw_VD)))
    if not len(here):
        return
    here = here[np.argsort(local_N[here], kind="stable")]
    ids = local_N[here]
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    dw_VD[ids[starts]] += np.add.reduceat(dy_ND[here], starts, axis=0)
