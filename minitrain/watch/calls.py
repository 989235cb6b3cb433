"""What a rank remembers of its calls, to be read by another thread: the one it is in, and the last few."""

import threading
import time
from collections import deque
from typing import NamedTuple

from minitrain.comm.traced import Call

KEPT = 50  # calls

Channel = tuple[bool, str, tuple[int, ...]]  # whether messages, axis, ranks
"""What is counted together: the collectives of a group; the messages from one rank to another."""


def channel(call: Call) -> Channel:
    return call.verb in ("send", "wait", "recv"), call.axis, call.ranks


class Pending(NamedTuple):
    """A call that has not ended. Its identity is that of the call: no two calls share one."""

    call: Call
    since: float  # time.perf_counter


class CallLog:
    """A watch (`comm/traced.py`) of the rank whose thread makes it. Everything here is replaced or appended
    in one go, so that another thread may read at any time.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.pending: Pending | None = None
        self.last: deque[tuple[Call, float]] = deque(maxlen=KEPT)  # and their seconds
        self.begun: dict[Channel, int] = {}  # the number of the last call
        self.inside = 0.0  # seconds in calls so far

    def begin(self, call: Call) -> None:
        self.begun[channel(call)] = call.number
        self.pending = Pending(call, time.perf_counter())

    def end(self) -> None:
        assert self.pending is not None
        (call, since), self.pending = self.pending, None
        seconds = time.perf_counter() - since
        self.inside += seconds
        self.last.append((call, seconds))
