"""What collectives cost, counted hop by hop: the rounds, and the bytes of the largest message of each.

    T = rounds alpha + bytes beta

alpha is the time that any message takes, beta that of a byte (Hockney 1994). Ranks are taken to send and
receive at the same time, and messages not to get in each other's way.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.study.algorithms import (
    all_to_all,
    direct,
    halving_doubling,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    tree_broadcast,
)
from minitrain.study.algorithms.hop import Hops
from minitrain.study.page import Page, gather

ALPHA = 10e-6  # seconds
BETA = 1 / 10e9  # seconds a byte
SIZES = {"4 KiB": 2**12, "1 MiB": 2**20, "1 GiB": 2**30}

ALGORITHMS: dict[str, Callable[[Comm, Array], Hops]] = {
    "tree-broadcast": tree_broadcast.broadcast,
    "broadcast, one rank after another": direct.broadcast,
    "reduce-scatter": ring_reduce_scatter.reduce_scatter,
    "reduce-scatter, halving": halving_doubling.reduce_scatter,
    "all-gather": ring_all_gather.all_gather,
    "all-gather, doubling": halving_doubling.all_gather,
    "ring-all-reduce": ring_all_reduce.all_reduce,
    "halving-doubling": halving_doubling.all_reduce,
    "all-reduce, everyone to everyone": direct.all_reduce,
    "all-to-all": lambda comm, buffer: all_to_all.all_to_all(comm, buffer, buffer.copy()),
}
POWERS_OF_TWO = {"reduce-scatter, halving", "all-gather, doubling", "halving-doubling"}


class Cost(NamedTuple):
    rounds: int
    share: float  # of the buffer: the largest messages of all rounds together

    def seconds(self, n_bytes: int) -> float:
        return self.rounds * ALPHA + self.share * n_bytes * BETA


def cost(comm: Comm, algorithm: Callable[[Comm, Array], Hops]) -> Cost:
    """Counted on a buffer of an element a rank. Collective."""
    buffer = np.zeros(comm.size)
    mine = [hop.sent.stop - hop.sent.start for hop in algorithm(comm, buffer)]
    rounds = np.array([json.loads(text) for text in gather(comm, mine)])  # [rank, round]
    return Cost(rounds.shape[1], rounds.max(axis=0).sum() / buffer.size)


def compare(page: Page, comm: Comm, topic: str) -> None:
    """A table of all algorithms that run on so many ranks, that of the topic marked."""
    page.step("what it costs, beside the others")
    page.say(
        "T = rounds x alpha + bytes x beta. Rounds and bytes are counted on this page's ranks: of each round "
        f"its largest message. Assumed are alpha = {ALPHA * 1e6:g} microseconds a message and 1 / beta = "
        f"{1 / BETA / 1e9:g} GB/s."
    )
    rows = [["", "", "rounds", "bytes / buffer", *(f"T of {size}" for size in SIZES)]]
    for name, algorithm in ALGORITHMS.items():
        if name in POWERS_OF_TWO and comm.size.bit_count() > 1:
            continue
        of = cost(comm, algorithm)
        times = [duration(of.seconds(n)) for n in SIZES.values()]
        rows.append([">" if name == topic else "", name, str(of.rounds), f"{of.share:.3f}", *times])
    page.table(rows, left=2)


def duration(seconds: float) -> str:
    """To three digits, in microseconds or milliseconds."""
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"
