"""The loss over a vocabulary that is cut over ranks (Shoeybi et al. 2019, section 3): the head that trains,
model/head.py, one collective at a time.

Shapes: N tokens, V words in all, U of them on this rank, D model width.
"""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.comm.traced import ring_bytes
from minitrain.config import ModelConfig
from minitrain.model.head import HeadContext, logits_forward, loss_backward, loss_forward
from minitrain.model.spec import embedding_specs
from minitrain.model.tensor import TensorParallel
from minitrain.ops.table import Ops
from minitrain.study.page import Counted, Page

EPS = 1e-5


def study_vocab_parallel_cross_entropy(page: Page, comm: Comm) -> None:
    n, rank = comm.size, comm.rank
    page.claim(
        "Cross-entropy over a cut vocabulary",
        "The loss of a token is log(sum of exp(logits)) - logit of the target. Cut over the vocabulary it "
        "needs three numbers a token from all ranks: the largest logit, the sum of exponentials, and the "
        "target's logit. No rank ever has all logits.",
    )
    N, V, D = n, 2 * n + 1, 3  # words that do not divide: the last rank has one more
    spec = embedding_specs(ModelConfig(vocab=V, width=D))[0]
    ids = spec.tp_slice(rank, n)[0]
    random = np.random.default_rng(0)
    w_VD, x_ND = random.normal(size=(V, D)), random.normal(size=(N, D))
    targets_N = (3 * np.arange(N) + 1) % V
    counted, ops, gain = Counted(comm), Ops(), {"head.norm": np.ones(D)}
    c = HeadContext(ops, TensorParallel(counted.comm, sequence=False), ids.start, EPS)

    page.step("every rank's logits, and its largest")
    page.say(
        f"A vocabulary of {V} words, and {N} tokens to predict. X, the norm of the last block's output, is "
        "on all."
    )
    logits_NU, _, _ = logits_forward(x_ND, gain, w_VD[ids], c)
    largest_N = ops.local_max(logits_NU)
    page.ranks(words=f"{ids.start} to {ids.stop - 1}", logits=logits_NU, largest=largest_N[:, None])

    page.step("all-reduce (max): the largest logit of all words")
    counted.comm.all_reduce(largest_N, "max")
    page.ranks(largest_m=largest_N[:, None])
    page.say("It is subtracted, so that no exponential can overflow. The loss does not depend on it.")

    page.step("every rank's sum of exponentials, and its logit of the target, if it has the target")
    sums_2N = ops.exp_and_sums(logits_NU, largest_N, targets_N, ids.start)
    words = [str(t) if ids.start <= t < ids.stop else "" for t in targets_N]
    page.ranks(target="\n".join(words), sum_of_exp=sums_2N[0][:, None], target_minus_m=sums_2N[1][:, None])

    page.step("all-reduce (sum) of both: the loss")
    counted.comm.all_reduce(sums_2N)
    nll_N = ops.cross_entropy(sums_2N, targets_N)
    page.ranks(sum_of_exp=sums_2N[0][:, None], target_minus_m=sums_2N[1][:, None], loss=nll_N[:, None])
    sent = counted.take()
    expected_N, dlogits_NV, dx_ND = serial(x_ND, w_VD, targets_N)
    page.same("this is the loss of one process that has all logits", nll_N, expected_N)
    trained_N, saved = loss_forward(x_ND, targets_N, gain, w_VD[ids], c)
    page.same("and what the head of this package gives, which makes the same calls", nll_N, trained_N)
    page.check("so many bytes too", counted.take() == sent)
    page.sent(
        "for it", sent, f"2(n - 1)/n of {3 * nll_N.nbytes}", ring_bytes("all_reduce", 3 * nll_N.nbytes, n)
    )

    page.step("backward: softmax minus one at the target, from what is there")
    dlogits_NU = ops.logits_backward(logits_NU, sums_2N, targets_N, ids.start, 1 / N)
    page.ranks(dlogits=dlogits_NU)
    page.same("it is that of one process, for the rank's own words", dlogits_NU, dlogits_NV[:, ids])
    page.check("nothing was sent for it", counted.take() == 0)
    dw_UD = np.zeros_like(w_VD[ids])
    dx = loss_backward(saved, 1 / N, gain, w_VD[ids], {"head.norm": np.zeros(D)}, dw_UD, c)
    page.say("dX comes through all words: as for any product cut by columns, f's backward adds it up.")
    page.ranks(dX=dx)
    page.same("dX is that of one process", dx, dx_ND)
    page.sent("for dX", counted.take(), f"2(n - 1)/n of {dx.nbytes}", ring_bytes("all_reduce", dx.nbytes, n))

    page.step("what it saves")
    whole = N * V * logits_NU.itemsize
    page.loosely(
        "the logits are gathered for the loss",
        f"The logits of all words are {whole} bytes here, {whole / (3 * nll_N.nbytes):.3g} times what the "
        "three numbers a token take, and the ratio is V/3 whatever else: for a vocabulary of 50257 words, "
        f"{50257 // 3}.",
    )


def serial(x_ND: Array, w_VD: Array, targets_N: Array) -> tuple[Array, Array, Array]:
    """Losses of the tokens, and of their mean the gradients of logits and x, as in a textbook. The norm is
    a = x / rms(x), so that dx = (da - a mean(a da)) / rms(x).
    """
    rms_N1 = np.sqrt((x_ND**2).mean(axis=1, keepdims=True) + EPS)
    a_ND = x_ND / rms_N1
    logits_NV = a_ND @ w_VD.T
    p_NV = np.exp(logits_NV) / np.exp(logits_NV).sum(axis=1, keepdims=True)
    hot_NV = np.eye(len(w_VD))[targets_N]
    dlogits_NV = (p_NV - hot_NV) / len(x_ND)
    da_ND = dlogits_NV @ w_VD
    dx_ND = (da_ND - a_ND * (a_ND * da_ND).mean(axis=1, keepdims=True)) / rms_N1
    return -np.log((p_NV * hot_NV).sum(axis=1)), dlogits_NV, dx_ND
