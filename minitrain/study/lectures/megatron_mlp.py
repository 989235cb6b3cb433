"""The MLP of a transformer cut over ranks, and the pair f and g at its border (Shoeybi et al. 2019).

Y = gelu(X A) B. Shapes: N rows, D model width, F the whole inner width, P this rank's part of it. Weights are
[outputs, inputs], as everywhere in this package.
"""

from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.comm.traced import ring_bytes
from minitrain.model.block import BlockContext, mlp_sublayer_backward, mlp_sublayer_forward
from minitrain.model.tensor import TensorParallel
from minitrain.ops.linear import linear_backward, linear_forward
from minitrain.ops.mlp import gelu_backward, gelu_forward
from minitrain.study.lectures.sublayer import Shapes, Views, compare_with_training
from minitrain.study.page import Counted, Page, close


class Mlp(NamedTuple):
    a_FD: Array
    b_DF: Array

    def part(self, own: slice) -> "Mlp":
        """The outputs `own` of A, and the inputs of B that they become."""
        return Mlp(self.a_FD[own], np.ascontiguousarray(self.b_DF[:, own]))


class Way(NamedTuple):
    """Through the MLP and back. `_before` is what a rank has before f and g sum anything."""

    y_before: Array
    y: Array
    dy: Array
    dx_before: Array
    dx: Array
    da_FD: Array
    db_DF: Array


def there_and_back(mlp: Mlp, x_SD: Array, dz_SD: Array, tp: TensorParallel) -> Way:
    """Forward, and the backward of `dz`, the gradient of Y."""
    a_FD, b_DF = mlp
    x_ND = tp.enter(x_SD)  # f
    up_NF = linear_forward(x_ND, a_FD)
    h_NF, saved = gelu_forward(up_NF)
    y_ND = linear_forward(h_NF, b_DF)
    y_SD = tp.leave(y_ND.copy())  # g

    da_FD, db_DF = np.zeros_like(a_FD), np.zeros_like(b_DF)
    dy_ND = tp.leave_backward(dz_SD)  # g, backward
    dh_NF = linear_backward(dy_ND, h_NF, b_DF, db_DF)
    dx_ND = linear_backward(gelu_backward(dh_NF, saved), x_ND, a_FD, da_FD)
    dx_SD = tp.enter_backward(dx_ND.copy())  # f, backward
    return Way(y_ND, y_SD, dy_ND, dx_ND, dx_SD, da_FD, db_DF)


def study_megatron_mlp(page: Page, comm: Comm) -> None:
    n, rank = comm.size, comm.rank
    page.claim(
        "Megatron's MLP",
        "In Y = gelu(X A) B, cut A by columns and B by rows: then gelu works on complete numbers, and "
        "nothing is sent between the two products. At the border stand f, which copies X to all ranks, and "
        "g, which adds up their parts of Y. Each is the other's backward.",
    )
    N, D, F = n, 3, 2 * n
    random = np.random.default_rng(0)
    mlp = Mlp(random.normal(size=(F, D)), random.normal(size=(D, F)))
    x_ND, dy_ND = random.normal(size=(N, D)), random.normal(size=(N, D))
    own = slice(2 * rank, 2 * rank + 2)
    counted, part = Counted(comm), mlp.part(own)
    way = there_and_back(part, x_ND, dy_ND, TensorParallel(counted.comm, sequence=False))
    verbs, sent = list(counted.verbs), counted.take()
    serial = there_and_back(mlp, x_ND, dy_ND, TensorParallel(comm.split(None, "alone"), sequence=False))

    page.step("who has what")
    page.ranks(columns_of_A=part.a_FD.T, rows_of_B=part.b_DF.T)
    page.ranks(X=x_ND)

    page.step("forward: f copies, g adds up")
    page.say("f has nothing to do: every rank has X. Each rank's Y is a sum over its own columns of A alone.")
    page.ranks(before_g=way.y_before, after_g=way.y)
    page.same("after g every rank has gelu(X A) B as one process finds it", way.y, serial.y)
    up_ND = linear_forward(x_ND, mlp.a_FD)
    first_NF, second_NF = up_ND / 3, up_ND * 2 / 3  # as two ranks could have them, had A been cut by rows
    off = np.abs(gelu_forward(first_NF)[0] + gelu_forward(second_NF)[0] - gelu_forward(up_ND)[0]).max()
    page.say(
        "Why A by columns? By rows each rank would have parts of the sums X A, and gelu of parts is not "
        "part of gelu: cut into a third and two thirds, gelu(u/3) + gelu(2u/3) differs from gelu(u) by up "
        f"to {off:.2f} here."
    )

    page.step("backward: g copies, f adds up")
    page.say(
        "g's backward has nothing to send. Y = Y0 + Y1 + ..., so dY0 = dY1 = ... = dY, and every rank has "
        "all of dY, because every rank had all of Y and computed the rest of the model with it."
    )
    page.ranks(dY=way.dy)
    page.say(
        "f's backward must add up. All ranks read the same X, so a change of X changes Y along every "
        "rank's columns of A, and each rank knows only what came through its own."
    )
    page.ranks(dX_before_f=way.dx_before, dX_after_f=way.dx)
    page.same("after f every rank has dX as one process finds it", way.dx, serial.dx)
    page.same("its part of dA is that of one process", way.da_FD, serial.da_FD[own])
    page.same("and so is its part of dB", way.db_DF, serial.db_DF[:, own])

    page.step("if it were the other way round")
    missing = np.linalg.norm(way.dx_before - serial.dx) / np.linalg.norm(serial.dx)
    summed_ND = dy_ND.copy()
    comm.all_reduce(summed_ND)
    times = float((summed_ND / dy_ND).mean())
    page.ranks(dX_without_f=f"wrong by {missing:.0%}", dY_if_g_added_up=f"{times:g} times too large")
    page.check("without the all-reduce of f dX is wrong on every rank", not close(way.dx_before, serial.dx))
    page.same("with one in g all gradients inside would be n times too large", summed_ND, n * dy_ND)

    page.step("what it costs")
    reduce = ring_bytes("all_reduce", x_ND.nbytes, n)
    page.check("one all-reduce forward and one backward", [v.verb for v in verbs] == 2 * ["all_reduce"])
    page.sent("for both", sent, f"2 x 2(n - 1)/n of {x_ND.nbytes}", 2 * reduce)
    sequence = TensorParallel(counted.comm, sequence=True)
    rows = sequence.rows(N)
    cut = there_and_back(part, x_ND[rows], dy_ND[rows], sequence)
    kinds = sorted({event.verb for event in counted.verbs})
    page.say(
        "There is another form of the pair, sequence parallelism (Korthikanti et al. 2022): outside every "
        "rank keeps 1/n of the rows."
    )
    page.table([["", "all-reduce form", "", "sequence form", ""],
                ["", "forward", "backward", "forward", "backward"],
                ["f", "nothing", "all-reduce", "all-gather", "reduce-scatter"],
                ["g", "all-reduce", "nothing", "reduce-scatter", "all-gather"]], left=5)  # fmt: skip
    page.same("every rank has its rows of Y", cut.y, serial.y[rows])
    page.same("and of dX", cut.dx, serial.dx[rows])
    page.check(f"the collectives are {' and '.join(kinds)}", kinds == ["all_gather", "reduce_scatter"])
    page.sent("in this form", counted.take(), f"4 (n - 1)/n of {x_ND.nbytes}", 2 * reduce)

    page.step("as it trains")
    page.say(
        "The same MLP as the second half of a block of this package (model/block.py), with its norm, its "
        "residual and other inputs."
    )
    names = {"mlp.norm": np.ones(D), "mlp.up": mlp.a_FD, "mlp.down": mlp.b_DF}
    own_names = names | {"mlp.up": part.a_FD, "mlp.down": part.b_DF}
    compare_with_training(page, comm, half, own_names, names, Shapes(N, D, head_width=D))


def half(c: BlockContext, w: Views, g: Views, x_SD: Array, dz_SD: Array) -> tuple[Array, Array]:
    """The second half of a block, there and back, with a residual of zeros beside it."""
    z_SD, saved = mlp_sublayer_forward(x_SD, np.zeros_like(x_SD), w, {}, c)
    return z_SD, mlp_sublayer_backward(dz_SD, saved, w, g, {}, c)
