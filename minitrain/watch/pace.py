"""Which rank is slow: not the one that waits long, but the one for which others wait.

A collective ends at the same time for all, so the time of a step tells nothing. The time that a rank spends
outside of calls does: it is its own. Ranks of one pipeline stage do the same work, and are compared by the
medians of many steps, to which neither a pause nor a first step counts. Different stages do different work;
a stage of one rank is compared with nobody.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.watch.calls import CallLog

SLOW = 2.0  # times the median of the others


class Pace:
    """This rank's seconds of computing in each step since the last comparison."""

    def __init__(self, calls: CallLog) -> None:
        self._calls, self._seconds, self._told = calls, list[float](), False

    @contextmanager
    def step(self) -> Iterator[None]:
        start, inside = time.perf_counter(), self._calls.inside
        yield
        self._seconds.append(time.perf_counter() - start - (self._calls.inside - inside))

    def warnings(self, world: Comm, stage: int) -> list[str]:
        """A sentence about the slowest rank, if it is slow: the same on every rank, and once in a run.
        Collective over `world`.
        """
        medians, n_steps = np.empty((world.size, 2)), len(self._seconds)
        world.all_gather(np.array([statistics.median(self._seconds), stage]), medians)
        self._seconds.clear()
        found = None if self._told else slowest(medians)
        if found is None:
            return []
        self._told = True
        rank, own, others = found
        return [
            f"rank {rank} is slow: it computes {1e3 * own:.3g} ms a step, others of its pipeline stage "
            f"{1e3 * others:.3g} ms (medians, the last {n_steps} steps)"
        ]


def slowest(medians: Array) -> tuple[int, float, float] | None:
    """(rank, its seconds, the median of the others of its stage) of the rank furthest from its others, if
    that is more than `SLOW` times. A row a rank: seconds, stage.
    """
    found, worst = None, SLOW
    for rank, (seconds, stage) in enumerate(medians):
        others = np.delete(medians, rank, axis=0)
        others = others[others[:, 1] == stage, 0]
        if others.size and seconds > worst * np.median(others):
            found = rank, float(seconds), float(np.median(others))
            worst = found[1] / found[2]
    return found
