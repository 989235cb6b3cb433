"""The end of the model: final norm, vocabulary-parallel logits and their cross-entropy. No rank ever holds
a full row of logits.

    nll = log sum_v exp(l_v) - l_target,   l = norm(x) W^T        (Shoeybi et al. 2019, section 3)

Three numbers a token cross the ranks: the largest logit, the sum of exponentials, and the target's logit.
Shapes: N rows of a micro-batch, S rows of it held outside the tensor-parallel region, V rows of the
vocabulary on this rank, D model width.
"""

from typing import Any, NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.model.norm import norm_backward, norm_forward
from minitrain.model.tensor import TensorParallel
from minitrain.ops.table import Ops

Views = dict[str, Array]


class HeadContext(NamedTuple):
    ops: Ops
    tp: TensorParallel
    first_id: int  # of this rank's part of the vocabulary
    norm_eps: float


class HeadSaved(NamedTuple):
    norm: Any
    a_ND: Array  # all rows: they are few beside the logits, and the backward comes at once
    targets_N: Array
    exp_NV: Array  # exp(logits - largest), in the memory of the logits
    sums_2N: Array  # sum of exponentials, and the target's logit - largest


def logits_forward(x_SD: Array, w: Views, matrix_VD: Array, c: HeadContext) -> tuple[Array, Any, Array]:
    """logits_NV of this rank's part of the vocabulary, not rounded to 16 bits; what the norm saved; its
    output, all rows of it.
    """
    a_SD, norm_saved = norm_forward(c.ops, x_SD, w, "head.norm", c.norm_eps)
    a_ND = c.tp.enter(a_SD)
    return c.ops.linear_wide(a_ND, matrix_VD), norm_saved, a_ND


def loss_forward(
    x_SD: Array, targets_N: Array, w: Views, matrix_VD: Array, c: HeadContext
) -> tuple[Array, HeadSaved]:
    """nll_N in nats per token, the same on every tp rank; 0 where the target is negative."""
    logits_NV, norm_saved, a_ND = logits_forward(x_SD, w, matrix_VD, c)
    largest_N = c.ops.local_max(logits_NV)
    c.tp.comm.all_reduce(largest_N, "max")
    sums_2N = c.ops.exp_and_sums(logits_NV, largest_N, targets_N, c.first_id)
    c.tp.comm.all_reduce(sums_2N)  # partial sums over this rank's part of the vocabulary
    nll_N = c.ops.cross_entropy(sums_2N, targets_N)
    return nll_N, HeadSaved(norm_saved, a_ND, targets_N, logits_NV, sums_2N)


def draw_targets(saved: HeadSaved, drawn_N: Array, c: HeadContext) -> HeadSaved:
    """With other targets: y_n drawn from softmax(logits_n), as the first v whose cumulative probability is
    above drawn_n, uniform in (0, 1). Ignored targets stay ignored.
    """
    size = c.tp.comm.size
    partial_N = saved.exp_NV.sum(axis=1)
    sums_PN = np.empty_like(partial_N, shape=(size, len(partial_N)))
    c.tp.comm.all_gather(partial_N, sums_PN)
    before_N = sums_PN[: c.tp.comm.rank].sum(axis=0)  # of the ids that other ranks hold, below those here
    targets_N = c.ops.draw(saved.exp_NV, before_N, drawn_N * sums_PN.sum(axis=0), c.first_id)
    c.tp.comm.all_reduce(targets_N, "max")  # one rank found it, the others say -1
    targets_N[saved.targets_N < 0] = -1
    return saved._replace(targets_N=targets_N)


def loss_backward(
    saved: HeadSaved,
    scale: float | Array,
    w: Views,
    matrix_VD: Array,
    g: Views,
    dmatrix_VD: Array,
    c: HeadContext,
) -> Array:
    """dx_SD of scale * sum(nll_N). `saved` is used up."""
    dtype = saved.a_ND.dtype  # as it enters the products
    dlogits_NV = c.ops.logits_backward(saved.exp_NV, saved.sums_2N, saved.targets_N, c.first_id, scale, dtype)
    da_ND = c.ops.linear_backward(dlogits_NV, saved.a_ND, matrix_VD, dmatrix_VD)
    da_SD = c.tp.enter_backward(da_ND)  # column parallel: a partial sum over this rank's vocabulary
    return norm_backward(c.ops, da_SD, saved.norm, w, g, "head.norm")
