"""Cross-entropy over a vocabulary cut over the tp ranks: the local pieces between the collectives.

    m    = all-reduce max of local_max       (the collectives are in the model room)
    sums = all-reduce sum of exp_and_sums
    nll  = cross_entropy                     (the same on every rank)

so that no rank ever holds the whole logits (Shoeybi et al. 2019, section 3).
Logits are in the type of computation: fp32 where activations have 16 bits.
Shapes: N tokens, V vocabulary rows on this tp rank (ids first_id .. first_id + V - 1). A negative target is
ignored: its loss and its gradient are zero.
"""

import numpy as np

from minitrain.arrays.blocks import row_blocks
from minitrain.arrays.narrow import narrow
from minitrain.arrays.types import Array, DType


def local_max(logits_NV: Array) -> Array:
    """m_n = max_v z_nv over this rank's ids: the partial maximum, -inf where it holds none. [N]"""
    m_N: Array = logits_NV.max(axis=1, initial=-np.inf)
    return m_N


def exp_and_sums(logits_NV: Array, m_N: Array, targets_N: Array, first_id: int) -> Array:
    """Overwrites the logits z with e^(z - m) and returns, as two rows, what is to be summed over tp. [2, N]

    Row 0: sum_v e^(z_v - m). Row 1: z_target - m where this rank holds the target, else 0.
    """
    sums_2N = np.zeros_like(m_N, shape=(2, len(m_N)))
    here, columns = _held_targets(targets_N, first_id, logits_NV.shape[1])
    sums_2N[1, here] = logits_NV[here, columns] - m_N[here]
    ones_V = np.ones_like(logits_NV, shape=logits_NV.shape[1])
    for rows in row_blocks(len(m_N), logits_NV[0].nbytes):
        z = logits_NV[rows]
        z -= m_N[rows, None]
        np.exp(z, out=z)
        np.matmul(z, ones_V, out=sums_2N[0, rows])  # BLAS adds up short rows several times faster than `sum`
    return sums_2N


def cross_entropy(sums_2N: Array, targets_N: Array) -> Array:
    """-log softmax(z)_target = log sum_v e^(z_v - m) - (z_target - m), in nats; 0 for ignored targets. [N]"""
    nll_N: Array = np.log(sums_2N[0]) - sums_2N[1]
    nll_N[targets_N < 0] = 0
    return nll_N


def draw(exp_NV: Array, before_N: Array, limit_N: Array, first_id: int) -> Array:
    """The first id v with sum of exp over ids up to v above `limit`, if it is among this rank's; else -1.

    `before_N` is the sum over the ids below first_id. int64 [N].
    """
    sums_NV = np.cumsum(exp_NV, axis=1)
    sums_NV += before_N[:, None]
    column_N = (sums_NV <= limit_N[:, None]).sum(axis=1)
    here_N = (column_N < exp_NV.shape[1]) & (before_N <= limit_N)
    return np.where(here_N, first_id + column_N, -1)


def logits_backward(
    exp_NV: Array,
    sums_2N: Array,
    targets_N: Array,
    first_id: int,
    scale: float | Array,
    dtype: DType | None = None,
) -> Array:
    """Forward was nll = log sum_v e^z_v - z_target, so now dz = scale (softmax(z) - onehot(target)), rounded
    to `dtype`.

    `exp_NV` is overwritten. If it has that type, or none is given, it is returned.
    """
    factor_N = scale / sums_2N[0]
    factor_N[targets_N < 0] = 0
    exp_NV *= factor_N[:, None]
    here, columns = _held_targets(targets_N, first_id, exp_NV.shape[1])
    exp_NV[here, columns] -= scale
    return exp_NV if dtype is None else narrow(exp_NV, dtype)


def _held_targets(targets_N: Array, first_id: int, n_ids: int) -> tuple[Array, Array]:
    """The tokens whose target this rank holds, and the column of each; no ignored ones, as first_id >= 0."""
    here = np.flatnonzero((targets_N >= first_id) & (targets_N < first_id + n_ids))
    return here, targets_N[here] - first_id
