"""Data parallelism: everybody has the whole model and a part of the batch, and gradients are added up.

Shapes: N examples of the global batch, n of them on this rank, I inputs.
"""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.comm.traced import ring_bytes
from minitrain.ops.linear import linear_backward, linear_forward
from minitrain.study.page import Counted, Page, close


def gradient(x_NI: Array, y_N: Array, w_I: Array, divisor: int) -> Array:
    """Of sum_n (x_n . w - y_n)^2 / (2 divisor): forward and backward of a linear model."""
    error_N = linear_forward(x_NI, w_I[None])[:, 0] - y_N
    dw_I = np.zeros_like(w_I)
    linear_backward(error_N[:, None] / divisor, x_NI, w_I[None], dw_I[None])
    return dw_I


def study_data_parallel(page: Page, comm: Comm) -> None:
    n, rank = comm.size, comm.rank
    page.claim(
        "Data parallelism",
        "Every rank has all weights and a part of the batch. The gradient of a sum over examples is the "
        "sum of their gradients: so one all-reduce of the gradients makes each rank take the step that one "
        "process would take on the whole batch.",
    )
    N, I = 2 * n - 1, n  # not divisible: the last rank has one example, the others two
    random = np.random.default_rng(0)
    x_NI, y_N = random.integers(-2, 3, (N, I)).astype(float), random.integers(-5, 6, N).astype(float)
    w_I = np.ones(I)
    mine = slice(2 * rank, min(2 * rank + 2, N))

    page.step("who has what")
    page.say("The model is y = x . w, with the mean over the batch of (x . w - y)^2 / 2 as its loss.")
    page.ranks(w=w_I[None], x=x_NI[mine], y=y_N[mine, None])

    page.step("forward and backward, each on its own examples")
    page.say(
        f"Every rank divides by the number of examples in the global batch, {N}, not by that of its own."
    )
    counted, dw_I = Counted(comm), gradient(x_NI[mine], y_N[mine], w_I, N)
    page.ranks(dw_before_the_all_reduce=dw_I)

    page.step("all-reduce")
    counted.comm.all_reduce(dw_I)
    page.ranks(dw_after_it=dw_I)
    serial_I = gradient(x_NI, y_N, w_I, N)
    page.same("this is the gradient that one process finds on the whole batch", dw_I, serial_I)
    formula = ring_bytes("all_reduce", dw_I.nbytes, n)
    page.sent("for it", counted.take(), f"2(n - 1)/n of {dw_I.nbytes}", formula)

    page.step("the step")
    w_I -= 0.5 * dw_I
    page.ranks(w=w_I[None])
    page.same("these are the weights of one process", w_I, np.ones(I) - 0.5 * serial_I)
    page.say("From the same weights and the same gradient all ranks make the same step: no weights are sent.")

    page.step("where the common statement is loose")
    mean_I = gradient(x_NI[mine], y_N[mine], np.ones(I), mine.stop - mine.start) / n
    comm.all_reduce(mean_I)
    off = np.linalg.norm(mean_I - serial_I) / np.linalg.norm(serial_I)
    page.loosely(
        "gradients are averaged over ranks",
        "The mean of means is the mean only if all ranks have equally many examples. Here the last has one "
        "and the others two: each example of theirs would count half as much, and the gradient would be "
        f"{off:.0%} off.",
    )
    page.check("the mean of the ranks' means is another gradient", not close(mean_I, serial_I))
