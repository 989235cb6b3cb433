"""Half a transformer block as it trains, for the lectures to compare with: which collectives it calls, and
whether cut over ranks it gives what one process gives.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.model.block import BlockContext
from minitrain.model.tensor import TensorParallel
from minitrain.ops.table import Ops
from minitrain.study.page import Counted, Page

Views = dict[str, Array]
Half = Callable[[BlockContext, Views, Views, Array, Array], tuple[Array, Array]]
"""(context, weights, gradients, x, dz) -> (z, dx): forward and backward, the norm before it included."""


class Shapes(NamedTuple):
    """Of one sequence, which divides by the ranks."""

    seq_len: int
    width: int
    head_width: int


def compare_with_training(
    page: Page, comm: Comm, half: Half, mine: Views, whole: Views, shapes: Shapes
) -> None:
    """With weights `mine` on this rank, against `whole` weights in one process; in both forms."""
    random = np.random.default_rng(1)
    N, D, n = shapes.seq_len, shapes.width, comm.size
    x_ND, dz_ND = random.normal(size=(N, D)), random.normal(size=(N, D))

    def run(comm: Comm, w: Views, sequence: bool) -> tuple[Array, Array, slice]:
        tp = TensorParallel(comm, sequence)
        context = BlockContext(Ops(), tp, shapes.seq_len, shapes.head_width, 1e-5, None)
        gradients = {name: np.zeros_like(values) for name, values in w.items()}
        rows = tp.rows(N)
        return *half(context, w, gradients, x_ND[rows].copy(), dz_ND[rows].copy()), rows

    z_ND, dx_ND, _ = run(comm.split(None, "alone"), whole, sequence=False)
    for sequence, form, parts in ((False, "all-reduce", 4), (True, "sequence", 5)):
        counted = Counted(comm)
        z_SD, dx_SD, rows = run(counted.comm, mine, sequence)
        calls = ", ".join(f"{event.verb} of {event.elements}" for event in counted.verbs)
        page.say(f"In the {form} form it calls {calls} elements.")
        page.same("it gives what one process gives, forward", z_SD, z_ND[rows])
        page.same("and backward", dx_SD, dx_ND[rows])
        value = parts * (n - 1) * x_ND.nbytes // n
        page.sent("for it", counted.take(), f"{parts} (n - 1)/n of {x_ND.nbytes}", value)
    page.loosely(
        "sequence parallelism sends as much, since an all-reduce is a reduce-scatter and an all-gather",
        "That is so of f and g. But what it saves is memory: only the own rows of the input are kept, and "
        "for the gradients of the first matrices all rows are gathered once more. That is the fifth part.",
    )
