"""How far the clocks of ranks are apart, so that what happened at once is drawn at one time.

Each rank in turn plays ping-pong with rank 0. A message that goes out at t0 by rank 0's clock, is there at t1
by the other's, and whose answer is back at t2, was there at about (t0 + t2) / 2, if both ways are as long as
each other: the error is at most half of t2 - t0, so the fastest of some rounds counts (Cristian 1989).
"""

import time
from typing import NamedTuple

import numpy as np

from minitrain.comm.interface import Comm

ROUNDS = 20


class Offset(NamedTuple):
    """To add to this rank's `time.perf_counter` for rank 0's. Both in seconds."""

    seconds: float
    error: float  # at most


def clock_offset(world: Comm) -> Offset:
    """This rank's. Collective over `world`."""
    if world.rank == 0:
        for rank in range(1, world.size):
            _ask(world, rank)
        return Offset(0.0, 0.0)
    return _answer(world)


def _ask(world: Comm, rank: int) -> None:
    theirs, best = np.empty(1), np.array([0.0, np.inf])
    for _ in range(ROUNDS):
        t0 = time.perf_counter()
        world.send(theirs, rank)
        world.recv(theirs, rank)
        t2 = time.perf_counter()
        if t2 - t0 < 2 * best[1]:
            best[:] = (t0 + t2) / 2 - theirs[0], (t2 - t0) / 2
    world.send(best, rank)


def _answer(world: Comm) -> Offset:
    mine, best = np.empty(1), np.empty(2)
    for _ in range(ROUNDS):
        world.recv(mine, 0)
        mine[0] = time.perf_counter()
        world.send(mine, 0)
    world.recv(best, 0)
    return Offset(float(best[0]), float(best[1]))
