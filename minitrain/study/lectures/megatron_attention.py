"""Attention cut over ranks by heads, with the same f and g at its border as the MLP (Shoeybi et al. 2019).

Shapes: T positions of one sequence, D model width, H heads in all, h of them on this rank, K head width.
Weights are [outputs, inputs].
"""

from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.comm.traced import ring_bytes
from minitrain.model.block import BlockContext, attention_sublayer_backward, attention_sublayer_forward
from minitrain.model.tensor import TensorParallel
from minitrain.ops.attention import attention_backward, attention_forward
from minitrain.ops.linear import linear_backward, linear_forward
from minitrain.study.lectures.sublayer import Shapes, Views, compare_with_training
from minitrain.study.page import Counted, Page, close

K = 2
READERS = ("attn.q", "attn.k", "attn.v")


class Way(NamedTuple):
    """Through attention and back. `_before` is what a rank has before f and g sum anything."""

    last_HT: Array  # how the last position weighs all positions
    y_before: Array
    y: Array
    dx_by: dict[str, Array]  # of each reader of x
    dx_before: Array
    dx: Array
    gradients: Views


def there_and_back(w: Views, x_TD: Array, dy_TD: Array, tp: TensorParallel) -> Way:
    """Forward, and the backward of `dy`, the gradient of the output."""
    g = {name: np.zeros_like(values) for name, values in w.items()}
    x_TD = tp.enter(x_TD)  # f
    q, k, v = (heads(linear_forward(x_TD, w[name])) for name in READERS)
    o_BTHK, saved = attention_forward(q, k, v)
    o_TI = o_BTHK.reshape(len(x_TD), -1)
    part_TD = linear_forward(o_TI, w["attn.o"])
    y_TD = tp.leave(part_TD.copy())  # g

    do_TI = linear_backward(tp.leave_backward(dy_TD), o_TI, w["attn.o"], g["attn.o"])  # g, backward
    dx_by = {}
    for name, dy_BTHK in zip(READERS, attention_backward(heads(do_TI), saved), strict=True):
        dx_by[name] = linear_backward(dy_BTHK.reshape(len(x_TD), -1), x_TD, w[name], g[name])
    before_TD = sum(dx_by.values(), np.zeros_like(x_TD))  # one sum over ranks for all three
    dx_TD = tp.enter_backward(before_TD.copy())  # f, backward
    last_HT = (saved.exps[-1] * saved.r_BGRT[..., None])[0, :, 0, -1]
    return Way(last_HT, part_TD, y_TD, dx_by, before_TD, dx_TD, g)


def heads(x_TI: Array) -> Array:
    """[T, h K] seen as [1, T, h, K]."""
    return x_TI.reshape(1, len(x_TI), -1, K)


def half(c: BlockContext, w: Views, g: Views, x_SD: Array, dz_SD: Array) -> tuple[Array, Array]:
    """The first half of a block, there and back."""
    y_SD, saved = attention_sublayer_forward(x_SD, w, {}, c)
    return y_SD, attention_sublayer_backward(dz_SD, saved, w, g, {}, c)


def study_megatron_attention(page: Page, comm: Comm) -> None:
    n, rank = comm.size, comm.rank
    page.claim(
        "Megatron's attention",
        "Heads do not look at each other: each has its own queries, keys and values. So give every rank "
        "whole heads: their columns of Wq, Wk, Wv and their rows of Wo. f and g at the border are those of "
        "the MLP, and softmax needs no communication.",
    )
    T, D, H = n, 3, n
    random = np.random.default_rng(0)
    w = {name: random.normal(size=(H * K, D)) for name in READERS} | {
        "attn.o": random.normal(size=(D, H * K))
    }
    own = slice(rank * K, (rank + 1) * K)
    part = {name: values[own] for name, values in w.items()}
    part["attn.o"] = np.ascontiguousarray(w["attn.o"][:, own])
    x_TD, dy_TD = random.normal(size=(T, D)), random.normal(size=(T, D))
    counted = Counted(comm)
    way = there_and_back(part, x_TD, dy_TD, TensorParallel(counted.comm, sequence=False))
    verbs, sent = [event.verb for event in counted.verbs], counted.take()
    serial = there_and_back(w, x_TD, dy_TD, TensorParallel(comm.split(None, "alone"), sequence=False))

    page.step("who has what")
    page.say(f"{H} heads of width {K}, one on each rank. All ranks have X, a sequence of {T} positions.")
    page.ranks(Wq=part["attn.q"].T, Wk=part["attn.k"].T, Wv=part["attn.v"].T, Wo=part["attn.o"].T)
    page.ranks(X=x_TD)

    page.step("forward: f copies, g adds up")
    page.say("Every rank's softmax runs over positions, of which it has all, for its own head.")
    page.ranks(weights_of_the_last_position=way.last_HT)
    page.same("they are those of one process for this head", way.last_HT, serial.last_HT[rank : rank + 1])
    page.ranks(before_g=way.y_before, after_g=way.y)
    page.same("after g every rank has the output of one process", way.y, serial.y)

    page.step("backward: g copies, f adds up")
    page.say(
        "Every rank has all of dY, as it had all of Y: g's backward sends nothing. X was read by all "
        "heads: each rank knows what came through its own, by way of q, k and v."
    )
    page.ranks(**{f"dX_by_{name[-1]}": dx for name, dx in way.dx_by.items()}, dX_before_f=way.dx_before)
    page.say(
        "f's backward adds up over ranks what each has added up over q, k and v: one all-reduce for all "
        "three."
    )
    page.ranks(dX_after_f=way.dx)
    page.same("after f every rank has dX as one process finds it", way.dx, serial.dx)
    page.check("before f no rank had it", not close(way.dx_before, serial.dx))
    for name in READERS:
        page.same(
            f"its part of dW{name[-1]} is that of one process",
            way.gradients[name],
            serial.gradients[name][own],
        )
    page.same("and its part of dWo", way.gradients["attn.o"], serial.gradients["attn.o"][:, own])

    page.step("what it costs")
    page.check("one all-reduce forward and one backward", verbs == 2 * ["all_reduce"])
    reduce = ring_bytes("all_reduce", x_TD.nbytes, n)
    page.sent("for both", sent, f"4 (n - 1)/n of {x_TD.nbytes}", 2 * reduce)
    page.loosely(
        "tensor parallelism costs four all-reduces a layer",
        "Attention has two and the MLP two, of N D numbers each, for every micro-batch. Their size does "
        "not fall with n, while the work of a rank does: that is why it is kept within a machine.",
    )

    page.step("as it trains")
    page.say(
        "The same attention as the first half of a block of this package (model/block.py), with its norm."
    )
    norm = {"attn.norm": np.ones(D)}
    compare_with_training(page, comm, half, norm | part, norm | w, Shapes(T, D, head_width=K))
