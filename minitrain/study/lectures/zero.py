"""ZeRO over one step: who holds what, before and after each collective (Rajbhandari et al. 2020).

The memory is a `Unit` of parallel/unit.py, as in training, with one tensor in it.
"""

from typing import NamedTuple

import numpy as np

from minitrain.arrays.device import HOST
from minitrain.arrays.types import Array
from minitrain.comm.grid import Grid
from minitrain.comm.interface import Comm
from minitrain.comm.single import SingleComm
from minitrain.model.spec import ParamSpec
from minitrain.optim.adamw import adamw
from minitrain.optim.apply import apply
from minitrain.optim.optimizer import Hyper
from minitrain.parallel.unit import Memory, Unit
from minitrain.precision import PRECISIONS, Precision
from minitrain.study.page import Counted, Page, numbers

ADAM = adamw((0.9, 0.999), 1e-8)
LR = 0.5
STAGES = (
    "ZeRO 0, plain data parallelism",
    "ZeRO 1: the optimizer state is cut",
    "ZeRO 2: gradients are cut too",
    "ZeRO 3: parameters are cut too",
)
FOUND = "Rank r has found the gradient r + 1 for every element, from its part of the batch."
OLD = "Every rank has updated its own part. The other parameters are still old."
TOLD = {  # of a moment, by stage
    "before": 4 * ("What is kept from step to step.",),
    "forward": 4 * ("An all-gather has brought the parameters, for the time of their use.",),
    "backward": (
        FOUND,
        FOUND,
        f"{FOUND} The whole vector is borrowed for the time of the backward.",
        f"{FOUND} The whole vector is borrowed. Another all-gather has brought the parameters.",
    ),
    "after the gradients' sum": (
        "An all-reduce: every rank has all sums.",
        "A reduce-scatter: every rank has the sums of its own part. What is left in the others is of no use.",
        "A reduce-scatter, at the end of the backward: every rank has the sums of its own part.",
        "A reduce-scatter, at the end of the backward. The parameters were given back too.",
    ),
    "after the update": (
        "Every rank has updated everything: all have done the same work.",
        OLD,
        OLD,
        "Every rank has updated its own part, and holds no other.",
    ),
    "after the parameters' all-gather": 4 * ("All parameters are new, on every rank.",),
}


def make_grid(comm: Comm, zero: int) -> Grid:
    """All ranks are data parallel: copies of everything, or from ZeRO 1 on owners of a part each."""
    alone = SingleComm("alone", comm.members[comm.rank])
    replica, shard = (alone, comm) if zero else (comm, alone)
    return Grid(comm, replica, shard, comm, pp=alone, tp=alone, kv=alone, tied=alone)


def make_unit(grid: Grid, zero: int, precision: Precision) -> Unit:
    """A tensor w of two elements a rank, 1, 2, 3 ..., and Adam's state for what this rank updates."""
    n = 2 * grid.world.size
    memory = Memory(HOST, grid, zero, sequence=False, precision=precision, align=1, leaves=None)
    unit = Unit(
        "", [ParamSpec("w", (n,), None, 1, 0.0)], memory, lambda spec, box: np.arange(1.0, n + 1)[box]
    )
    unit.state = ADAM.init(unit.master)
    return unit


class Teller(NamedTuple):
    """Writes on a page, if there is one, what every rank holds of a unit."""

    page: Page | None
    unit: Unit
    grid: Grid
    zero: int

    def tell(self, moment: str, **borrowed: Array) -> None:
        """`borrowed` are whole vectors that are there at this moment only."""
        if self.page is None:
            return
        unit, m = self.unit, self.unit.state["m"]
        assert isinstance(m, np.ndarray)
        held = {
            "parameters": unit.param_shard if unit.param is None else unit.param,
            "gradients": unit.grad_shard if unit.grad is None else unit.grad,
            "m_of_Adam": m,
        }
        self.page.step(f"{STAGES[self.zero]}, {moment}")
        self.page.say(TOLD[moment][self.zero])
        self.page.ranks(**{name: self._placed(vector) for name, vector in (held | borrowed).items()})

    def _placed(self, vector: Array) -> str:
        """In the places of the whole vector, with dots for what this rank does not hold."""
        n, shard = 2 * self.grid.world.size, self.grid.shard
        cells = numbers(vector, 1).split()
        before = 0 if len(cells) == n else n * shard.rank // shard.size
        row = ["."] * before + cells + ["."] * (n - before - len(cells))
        width = max(map(len, cells))
        return " ".join(cell.rjust(width) for cell in row)


def take_step(page: Page | None, unit: Unit, grid: Grid, zero: int, n_micro: int) -> None:
    """Forward and backward of `n_micro` micro-batches, sums over ranks, the update: as in step.py."""
    teller = Teller(page, unit, grid, zero)
    teller.tell("before")
    for _ in range(n_micro):
        with unit.params() as w:
            if unit.param is None:
                teller.tell("forward", parameters=w["w"])
        with unit.params() as w, unit.grads() as g:
            g["w"] += grid.world.rank + 1.0
            teller.tell("backward", parameters=w["w"], gradients=g["w"])
    if unit.grad is not None:  # ZeRO 0 and 1; under 2 and 3 the backwards have done it
        unit.reduce_scatter(unit.grad, unit.grad_shard)
    grid.replica.all_reduce(unit.grad_shard)
    teller.tell("after the gradients' sum")
    apply(ADAM, unit.master, unit.grad_shard, unit.state, slice(0, unit.master.size), Hyper(LR, 0.0, 1), 1.0)
    unit.publish()
    unit.zero_grads()
    teller.tell("after the update")
    if unit.param is not None and grid.shard.size > 1:
        grid.shard.all_gather(unit.param_shard, unit.param)
        teller.tell("after the parameters' all-gather")


def bytes_of_element(types: Precision) -> tuple[int, int, int]:
    """p, g, K: of a parameter, a gradient, and what the optimizer remembers."""
    copies = 2 if types.master == types.param else 3  # the moments, and a master copy
    return types.param.itemsize, types.grad.itemsize, copies * types.master.itemsize


def kept_bytes(zero: int, types: Precision, elements: int, n: int) -> int:
    """What a rank keeps from step to step."""
    own = elements // n
    p, g, K = bytes_of_element(types)
    return (
        p * (own if zero > 2 else elements)
        + g * (own if zero > 1 else elements)
        + K * (own if zero else elements)
    )


def study_zero(page: Page, comm: Comm) -> None:
    n, elements = comm.size, 2 * comm.size
    page.claim(
        "ZeRO over one step",
        "Under data parallelism all ranks hold the same parameters, gradients and optimizer state. ZeRO "
        "gives each rank 1/n of them to own: the optimizer state (1), the gradients too (2), the "
        "parameters too (3). What it does not own it gets when it needs it, by collectives; the result is "
        "the same.",
    )
    page.say(f"One tensor of {elements} elements, 1, 2, 3 ...; Adam with a rate of {LR:g}; fp64.")
    expected = one_process(n)
    for zero in range(4):
        grid = make_grid(comm, zero)
        unit = make_unit(grid, zero, PRECISIONS["fp64"])
        take_step(page, unit, grid, zero, n_micro=1)
        with unit.params() as w:
            page.same(
                "the parameters are those of one process that has added up all gradients", w["w"], expected
            )

    page.step("what is kept, in bytes of a rank")
    rows = [["", *(f"ZeRO {zero}" for zero in range(4)), "p + g + K"]]
    for name in ("fp32", "bf16", "bf16-pure"):
        types, cells = PRECISIONS[name], []
        for zero in range(4):
            kept = sum(make_unit(make_grid(comm, zero), zero, types).bytes().values())
            page.require(
                f"{name}, ZeRO {zero}: as the formula has it", kept == kept_bytes(zero, types, elements, n)
            )
            cells.append(str(kept))
        rows.append([name, *cells, " + ".join(map(str, bytes_of_element(types)))])
    rows.append(["formula", "(p+g+K) P", "(p+g) P + K P/n", "p P + (g+K) P/n", "(p+g+K) P/n", ""])
    page.table(rows)
    page.say(
        f"Counted on the arrays of a tensor of P = {elements} elements, and equal to the formulas. An "
        "element takes p bytes as a parameter, g as a gradient, and K for what the optimizer remembers: "
        "two moments, and under bf16 a copy of the parameter in fp32."
    )
    page.loosely(
        "ZeRO 3 divides memory by the number of ranks",
        "It divides what is kept. While a unit is used it is there as a whole, on every rank, and "
        "activations are not divided at all.",
    )

    page.step("what is sent")
    counted = Counted(comm)
    rows = [["", "one micro-batch", "two"]]
    for zero in range(4):
        cells = []
        for n_micro in (1, 2):
            grid = make_grid(counted.comm, zero)
            take_step(None, make_unit(grid, zero, PRECISIONS["fp64"]), grid, zero, n_micro)
            sent, moves = counted.take(), (2, 2, n_micro + 1, 3 * n_micro)[zero]
            value = moves * (n - 1) * elements * 8 // n
            page.require(
                f"ZeRO {zero}, {n_micro} micro-batches: bytes are as the formula has it", sent == value
            )
            cells.append(f"{sent} = {moves} (n - 1)/n x {elements * 8}")
        rows.append([f"ZeRO {zero}", *cells])
    page.table(rows, left=3)
    page.say(
        "Bytes that every rank has sent, counted, and equal to the formulas: a vector takes 8 bytes an "
        "element."
    )
    page.loosely(
        "ZeRO 1 and 2 send as much as plain data parallelism, and ZeRO 3 half as much again",
        "So it is with one micro-batch. ZeRO 2 adds up over ranks at each backward, and ZeRO 3 gathers at "
        "each use too: with many micro-batches, as a pipeline wants them, they send many times as much.",
    )


def one_process(n: int) -> Array:
    """The parameters after the step of a process that has the gradients of all n ranks."""
    w, grad = np.arange(1.0, 2 * n + 1), np.full(2 * n, float(sum(range(1, n + 1))))
    apply(ADAM, w, grad, ADAM.init(w), slice(0, w.size), Hyper(LR, 0.0, 1), 1.0)
    return w
