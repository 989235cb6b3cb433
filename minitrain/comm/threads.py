"""N ranks as threads of one process: for tests, for a debugger, for machines without MPI.

Sums are taken in rank order, so results do not depend on timing. A send is complete only when its message
has been received (as MPI_Ssend), so that a pipeline that could deadlock does deadlock here. When one rank
raises, all others are woken and raise too.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm, Reduction
from minitrain.comm.single import SingleComm

Result = TypeVar("Result")


class PeerLostError(RuntimeError):
    """Another rank raised, or did not come within the time limit."""


def run_threads(
    n: int, rank_main: Callable[["ThreadComm"], Result], limit: float | None = None
) -> list[Result]:
    """Runs `rank_main(world)` on `n` threads and returns their results in rank order.

    `limit` is the number of seconds after which a rank that waits for others gives up. Raises the first
    error of any rank.
    """
    hub = _Hub(limit)
    results: list[Result | None] = [None] * n
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        try:
            results[rank] = rank_main(ThreadComm(hub, "world", tuple(range(n)), rank))
        except BaseException as error:  # SystemExit too: the other ranks must not wait for this one
            errors.append(error)
            hub.fail()

    threads = [threading.Thread(target=body, args=(rank,), name=f"rank {rank}") for rank in range(n)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C reaches the main thread only: the ranks end at their next meeting
        hub.fail()
        raise
    if errors:
        raise next((e for e in errors if not isinstance(e, PeerLostError)), errors[0])
    return results  # type: ignore[return-value]


class _Meeting:
    """Where the members of one group meet: a barrier, and a slot each to lay an array down."""

    def __init__(self, size: int, limit: float | None) -> None:
        self.barrier = threading.Barrier(size, timeout=limit)
        self.slots: list[Array | None] = [None] * size


class _Message:
    """A sender's buffer, lent until it has been copied by the receiver."""

    def __init__(self, hub: "_Hub", buffer: Array) -> None:
        self.hub, self.buffer, self.received = hub, buffer, False

    def wait(self) -> None:
        self.hub.wait_until(lambda: self.received)


class _Hub:
    """What all threads share: the meetings and mailboxes of every group, and whether a rank has failed."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.changed = threading.Condition()
        self.failed = False
        self._meetings: dict[tuple[str, tuple[int, ...]], _Meeting] = {}
        self._mailboxes: dict[tuple[str, int, int], deque[_Message]] = {}

    def meeting(self, name: str, members: tuple[int, ...]) -> _Meeting:
        with self.changed:
            return self._meetings.setdefault((name, members), _Meeting(len(members), self.limit))

    def mailbox(self, name: str, source: int, to: int) -> deque[_Message]:
        with self.changed:
            return self._mailboxes.setdefault((name, source, to), deque())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            arrived = self.changed.wait_for(lambda: self.failed or condition(), self.limit)
            if not arrived or not condition():
                raise PeerLostError("another rank failed or did not come")

    def fail(self) -> None:
        """Wakes everyone who waits."""
        with self.changed:
            self.failed = True
            for meeting in self._meetings.values():
                meeting.barrier.abort()
            self.changed.notify_all()


class ThreadComm:
    """One rank of a group of threads."""

    def __init__(self, hub: _Hub, name: str, members: tuple[int, ...], world_rank: int) -> None:
        self.name, self.members = name, members
        self.rank, self.size = members.index(world_rank), len(members)
        self._hub, self._world_rank = hub, world_rank
        self._meeting = hub.meeting(name, members)

    def _meet(self) -> None:
        if self._hub.failed:
            raise PeerLostError("another rank failed")
        try:
            self._meeting.barrier.wait()
        except threading.BrokenBarrierError:
            raise PeerLostError("another rank failed or did not come") from None

    def _show(self, buffer: Array) -> list[Array]:
        """Every member's buffer, in rank order, to be read until the next `_meet`."""
        assert buffer.flags.c_contiguous, "a communication buffer is C-contiguous"
        self._meeting.slots[self.rank] = buffer
        self._meet()
        shown = [slot for slot in self._meeting.slots if slot is not None]
        assert all(s.size == buffer.size and s.dtype == buffer.dtype for s in shown), (
            "ranks brought different buffers"
        )
        return shown

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        shown = self._show(buffer)
        total = shown[0].copy()
        for other in shown[1:]:
            if op == "sum":
                np.add(total, other.reshape(total.shape), out=total)
            else:
                np.maximum(total, other.reshape(total.shape), out=total)
        self._meet()  # nobody overwrites its buffer while another still reads it
        buffer[...] = total.reshape(buffer.shape)

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        shown = self._show(source)
        own = slice(self.rank * shard.size, (self.rank + 1) * shard.size)
        total = shown[0].ravel()[own].copy()
        for other in shown[1:]:
            total += other.ravel()[own]
        self._meet()
        shard[...] = total.reshape(shard.shape)

    def all_gather(self, shard: Array, target: Array) -> None:
        shown = self._show(shard)
        gathered = np.concatenate([s.ravel() for s in shown])
        self._meet()
        target[...] = gathered.reshape(target.shape)

    def broadcast(self, buffer: Array, root: int) -> None:
        shown = self._show(buffer)
        if self.rank != root:
            buffer[...] = shown[root].reshape(buffer.shape)
        self._meet()

    def start_send(self, buffer: Array, to: int) -> _Message:
        assert buffer.flags.c_contiguous, "a communication buffer is C-contiguous"
        message = _Message(self._hub, buffer)
        box = self._hub.mailbox(self.name, self._world_rank, self.members[to])
        with self._hub.changed:
            box.append(message)
            self._hub.changed.notify_all()
        return message

    def send(self, buffer: Array, to: int) -> None:
        self.start_send(buffer, to).wait()

    def recv(self, buffer: Array, source: int) -> None:
        box = self._hub.mailbox(self.name, self.members[source], self._world_rank)
        self._hub.wait_until(lambda: bool(box))
        message = box.popleft()
        assert message.buffer.size == buffer.size and message.buffer.dtype == buffer.dtype, (
            "sent and expected differ"
        )
        buffer[...] = message.buffer.reshape(buffer.shape)
        with self._hub.changed:
            message.received = True
            self._hub.changed.notify_all()

    def barrier(self) -> None:
        self._meet()

    def split(self, color: int | None, name: str) -> Comm:
        colors = np.full(self.size, -1)
        self.all_gather(np.array([-1 if color is None else color]), colors)
        members = tuple(
            m for m, c in zip(self.members, colors, strict=True) if color is not None and c == color
        )
        return _group(self._hub, name, members or (self._world_rank,), self._world_rank)

    def cart(self, dims: Sequence[int]) -> "ThreadCart":
        return ThreadCart(self._hub, np.array(self.members).reshape(dims), self._world_rank)

    def abort(self, exit_code: int) -> None:
        os._exit(exit_code)  # ranks that hang cannot be woken


class ThreadCart:
    """The grid of ranks as an ndarray; a sub-group is a line, plane … of it through this rank's place."""

    def __init__(self, hub: _Hub, grid: Array, world_rank: int) -> None:
        self._hub, self._grid, self._world_rank = hub, grid, world_rank
        self.coords = tuple(int(i) for i in np.argwhere(grid == world_rank)[0])

    def sub(self, keep: Sequence[bool], name: str) -> Comm:
        place = tuple(slice(None) if kept else at for kept, at in zip(keep, self.coords, strict=True))
        members = tuple(int(r) for r in np.ravel(self._grid[place]))
        return _group(self._hub, name, members, self._world_rank)


def _group(hub: _Hub, name: str, members: tuple[int, ...], world_rank: int) -> Comm:
    if len(members) == 1:
        return SingleComm(name, world_rank)
    return ThreadComm(hub, name, members, world_rank)
