"""What a rank remembers of its calls, to be read by another thread: the one it is in, and the last few.

A call on arrays of a GPU, over NCCL, returns when it is enqueued. It has ended when the GPU has done it: a
rank that has gone on, and waits for the GPU or for room in its queue, waits for the oldest of these.
"""

import threading
import time
from collections import deque
from contextlib import suppress
from typing import NamedTuple, Protocol

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


class Mark(Protocol):
    """A place in what a GPU has to do."""

    def passed(self) -> bool:
        """Whether it has come there. For any thread."""


class Gpu(Protocol):
    """A GPU on which calls go on after they have returned."""

    def mark(self) -> Mark:
        """The place that the rank's thread, which asks, has come to."""

    def check(self) -> None:
        """Raises MinitrainError if a call there is known never to end. For any thread."""


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
        self.gpu: Gpu | None = None
        self._enqueued: deque[tuple[Pending, Mark]] = deque()

    def begin(self, call: Call) -> None:
        self.begun[channel(call)] = call.number
        self.pending = Pending(call, time.perf_counter())

    def end(self) -> None:
        assert self.pending is not None
        pending, self.pending = self.pending, None
        call, since = pending
        if self.gpu and call.on_device:
            self._enqueue(pending, self.gpu)
        seconds = time.perf_counter() - since
        self.inside += seconds
        self.last.append((call, seconds))

    def _enqueue(self, pending: Pending, gpu: Gpu) -> None:
        while self._enqueued and self._enqueued[0][1].passed():
            self._enqueued.popleft()
        with suppress(Exception):  # of a GPU that has failed: what it is used for next will tell
            self._enqueued.append((pending, gpu.mark()))

    def unended(self) -> Pending | None:
        """The call that this rank waits for: the oldest that a GPU has not done, else the one it is in."""
        for pending, mark in self._enqueued.copy():
            if not mark.passed():
                return pending
        return self.pending
