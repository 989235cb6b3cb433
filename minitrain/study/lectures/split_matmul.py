"""A matrix product cut over ranks, in the two ways that there are.

Y = X W. Shapes: N rows, I inputs, O outputs; J and P are this rank's parts of I and of O.
"""

import numpy as np

from minitrain.comm.interface import Comm
from minitrain.comm.traced import ring_bytes
from minitrain.model.tensor import TensorParallel
from minitrain.study.page import Counted, Page


def study_split_matmul(page: Page, comm: Comm) -> None:
    n, rank = comm.size, comm.rank
    page.claim(
        "A split matrix product",
        "Y = X W can be cut along the columns of W or along its rows. By columns every rank gets columns "
        "of Y, complete: an all-gather puts them together. By rows every rank gets all of Y, but only a "
        "part of each sum: an all-reduce adds the parts up, or a reduce-scatter if a part of Y is enough.",
    )
    N, I, O = n, 2 * n, n
    random = np.random.default_rng(0)
    x_NI = random.integers(-3, 4, (N, I)).astype(float)
    w_IO = random.integers(-3, 4, (I, O)).astype(float)
    y_NO, counted = x_NI @ w_IO, Counted(comm)
    page.whole(X=x_NI, W=w_IO, Y=y_NO)

    page.step("by columns: every rank reads all of X")
    w_IP = w_IO[:, rank : rank + 1]
    y_NP = x_NI @ w_IP
    page.ranks(columns_of_W=w_IP, columns_of_Y=y_NP)

    page.step("by columns: all-gather")
    gathered = np.empty((n, *y_NP.shape))
    counted.comm.all_gather(y_NP, gathered)
    columns_NO = gathered.transpose(1, 0, 2).reshape(N, O)  # parts come one after another, not side by side
    page.ranks(Y=columns_NO)
    page.same("this is X W", columns_NO, y_NO)
    gather = ring_bytes("all_gather", y_NO.nbytes, n)
    page.sent("for it", counted.take(), f"(n - 1)/n of {y_NO.nbytes}", gather)

    page.step("by rows: every rank reads columns of X")
    own = slice(2 * rank, 2 * rank + 2)
    x_NJ, w_JO = x_NI[:, own], w_IO[own]
    partial_NO = x_NJ @ w_JO
    page.ranks(columns_of_X=x_NJ, rows_of_W=w_JO, part_of_every_sum=partial_NO)

    page.step("by rows: all-reduce")
    rows_NO = TensorParallel(counted.comm, sequence=False).leave(partial_NO.copy())
    page.ranks(Y=rows_NO)
    page.same("this is X W", rows_NO, y_NO)
    reduce = ring_bytes("all_reduce", y_NO.nbytes, n)
    page.sent("for it", counted.take(), f"2(n - 1)/n of {y_NO.nbytes}", reduce)

    page.step("by rows: reduce-scatter")
    own_rows_SO = TensorParallel(counted.comm, sequence=True).leave(partial_NO)
    page.ranks(rows_of_Y=own_rows_SO)
    page.same("rank r has row r of X W", own_rows_SO, y_NO[rank : rank + 1])
    scatter = ring_bytes("reduce_scatter", y_NO.nbytes, n)
    page.sent("for it", counted.take(), f"(n - 1)/n of {y_NO.nbytes}", scatter)
    page.loosely(
        "a split product costs an all-reduce",
        f"By columns it costs half of one, {gather} bytes and not {reduce}, and by rows too, if whoever "
        "comes next is content with a part of Y. A product by columns whose result is read by one by rows "
        "costs nothing in between: see megatron-mlp. (This package stores W transposed, a row for each "
        "output.)",
    )
