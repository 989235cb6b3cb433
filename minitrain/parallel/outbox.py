"""Messages to the neighbouring stages that are still on their way."""

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm, Handle


class Outbox:
    """Starts sends, at most one pending for each neighbour.

    A stage must not wait for its send before it receives: in 1F1B two neighbours send to each other at the
    same time, and if each waited for the other's receive both would wait for ever. Waiting for the
    *previous* message to the same neighbour is safe: the neighbour takes it before it needs the next one.
    (`tests/parallel/test_schedule.py` plays every schedule with sends that complete only when received.)
    """

    def __init__(self, pp: Comm) -> None:
        self._pp = pp
        self._pending: dict[int, Handle] = {}

    def send(self, buffer: Array, to: int) -> None:
        """Starts to send `buffer`, which nobody may write to any more."""
        if to in self._pending:
            self._pending[to].wait()
        self._pending[to] = self._pp.start_send(buffer, to)

    def flush(self) -> None:
        """Waits until all has been received."""
        for handle in self._pending.values():
            handle.wait()
        self._pending.clear()
