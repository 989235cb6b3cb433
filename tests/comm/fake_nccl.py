"""`cupy.cuda.nccl` for threads as ranks and memory of the host, which it addresses by numbers as the real one
does. It is stricter than a GPU:

    a call, or a group of calls, returns only when all of its calls have met their counterparts. On a GPU the
    stream waits so, and the host too while two ranks connect
    all members must make the same collective of the same size and type; messages must be what is expected
    numbers are Python's int: the real one refuses NumPy's

Which calls meet depends on their order alone, never on time: of a program that ends here once no timing can
make a deadlock, and of one that hangs none can free it.
"""

import ctypes
import itertools
import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from minitrain.arrays.types import Array

TYPES: dict[int, Any] = {
    1: np.uint8, 2: np.int32, 4: np.int64, 5: np.uint64,
    6: np.float16, 7: np.float32, 8: np.float64, 9: ml_dtypes.bfloat16,
}  # fmt: skip
INVALID_ARGUMENT, INVALID_USAGE = 4, 5


class StandstillError(AssertionError):
    """Calls that never meet."""


class NcclError(RuntimeError):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"NCCL_ERROR_{status}")


@dataclass
class Call:
    """One that is under way. `what` all its counterparts must agree on."""

    comm: "Communicator"
    verb: str
    what: tuple[int, ...]
    dtype: int
    source: int = 0
    target: int = 0
    peer: int = -1
    done: bool = False


@dataclass
class Shared:
    """What all ranks share. `limit` in seconds: who waits longer stands still."""

    limit: float
    changed: threading.Condition = field(default_factory=threading.Condition)
    failed: bool = False
    joined: defaultdict[bytes, dict[int, "Communicator"]] = field(default_factory=lambda: defaultdict(dict))
    messages: defaultdict[tuple[Any, ...], deque[Call]] = field(default_factory=lambda: defaultdict(deque))
    collectives: defaultdict[tuple[Any, ...], dict[int, Call]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def wait_for(self, condition: Any, what: str) -> None:
        with self.changed:
            came = self.changed.wait_for(lambda: self.failed or condition(), self.limit)
            if not came or (self.failed and not condition()):
                self.failed = True
                self.changed.notify_all()
                raise StandstillError(what)


class Communicator:
    """One rank's. `broken` is what an asynchronous error would be; `streams` those that calls came with."""

    shared: Shared
    owner: "FakeNccl"

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        _ints(ndev, rank)
        assert type(commId) is bytes and len(commId) == 128 and 0 <= rank < ndev
        self._id, self._size, self._rank = commId, ndev, rank
        self._n_collectives, self._alive, self.broken = 0, True, 0
        self.streams: set[int] = set()
        members = self.shared.joined[commId]
        with self.shared.changed:
            assert rank not in members, "two ranks with one number"
            members[rank] = self
            self.shared.changed.notify_all()
        self.shared.wait_for(lambda: len(members) == ndev, f"rank {rank} of {ndev} connects")

    def allReduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int) -> None:
        assert sendbuf == recvbuf or _apart(sendbuf, recvbuf, count, count, datatype)
        self._collective("allReduce", (count, datatype, op), datatype, sendbuf, recvbuf, stream)

    def reduceScatter(
        self, sendbuf: int, recvbuf: int, recvcount: int, datatype: int, op: int, stream: int
    ) -> None:
        own = sendbuf + self._rank * _bytes(recvcount, datatype)
        whole = recvcount * self._size
        assert recvbuf == own or _apart(sendbuf, recvbuf, whole, recvcount, datatype), "in place elsewhere"
        self._collective("reduceScatter", (recvcount, datatype, op), datatype, sendbuf, recvbuf, stream)

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        own = recvbuf + self._rank * _bytes(count, datatype)
        whole = count * self._size
        assert sendbuf == own or _apart(recvbuf, sendbuf, whole, count, datatype), "in place elsewhere"
        self._collective("allGather", (count, datatype), datatype, sendbuf, recvbuf, stream)

    def broadcast(
        self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int
    ) -> None:
        self._collective("broadcast", (count, datatype, root), datatype, sendbuff, recvbuff, stream)

    def bcast(self, buff: int, count: int, datatype: int, root: int, stream: int) -> None:
        self._collective("broadcast", (count, datatype, root), datatype, buff, buff, stream)

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._message("send", sendbuf, count, datatype, peer, stream)

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._message("recv", recvbuf, count, datatype, peer, stream)

    def check_async_error(self) -> None:
        if not self._alive:
            raise NcclError(INVALID_ARGUMENT)
        if self.broken:
            raise NcclError(self.broken)

    def abort(self) -> None:
        """Who waits in a call of this rank is let go."""
        with self.shared.changed:
            self._alive = False
            self.shared.changed.notify_all()

    def destroy(self) -> None:
        self._alive = False

    def size(self) -> int:
        return self._size

    def rank_id(self) -> int:
        return self._rank

    def _collective(
        self, verb: str, what: tuple[int, ...], dtype: int, source: int, target: int, stream: int
    ) -> None:
        _ints(*what, source, target, stream)
        assert source and target and what[0] > 0
        self.owner._post(Call(self, verb, what, dtype, source, target), stream)

    def _message(self, verb: str, at: int, count: int, dtype: int, peer: int, stream: int) -> None:
        _ints(at, count, dtype, peer, stream)
        assert at and count > 0 and 0 <= peer < self._size and peer != self._rank
        self.owner._post(Call(self, verb, (count, dtype), dtype, at, at, peer), stream)

    def _begin(self, call: Call) -> None:
        """Meets whoever is there; with the lock held."""
        if call.peer >= 0:
            way = (self._rank, call.peer) if call.verb == "send" else (call.peer, self._rank)
            there = self.shared.messages[self._id, *way]
            if there and there[0].verb != call.verb:
                other = there.popleft()
                _same(call.what, other.what, f"a message {way}")
                _move(*((call, other) if call.verb == "send" else (other, call)))
                call.done = other.done = True
            else:
                there.append(call)
            return
        self._n_collectives += 1
        there_ = self.shared.collectives[self._id, self._n_collectives]
        there_[self._rank] = call
        if len(there_) == self._size:
            calls = [there_[rank] for rank in range(self._size)]
            for other in calls:
                _same((call.verb, *call.what), (other.verb, *other.what), "a collective")
            _compute(calls)
            for other in calls:
                other.done = True


class FakeNccl:
    """The module."""

    NCCL_SUM, NCCL_MAX = 0, 2
    NCCL_UINT8, NCCL_INT32, NCCL_INT64, NCCL_UINT64 = 1, 2, 4, 5
    NCCL_FLOAT16, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_BFLOAT16 = 6, 7, 8, 9
    NcclError = NcclError
    available = True

    def __init__(self, limit: float = 20.0) -> None:
        self._shared, self._ids, self._thread = Shared(limit), itertools.count(1), threading.local()
        parts = {"shared": self._shared, "owner": self}
        self.NcclCommunicator: type[Communicator] = type("NcclCommunicator", (Communicator,), parts)

    @property
    def communicators(self) -> list[Communicator]:
        """Of all ranks, in the order of their making."""
        return [comm for members in self._shared.joined.values() for comm in members.values()]

    def get_unique_id(self) -> bytes:
        return next(self._ids).to_bytes(128, "little")

    def get_version(self) -> int:
        return 22707

    def groupStart(self) -> None:
        self._thread.depth = getattr(self._thread, "depth", 0) + 1

    def groupEnd(self) -> None:
        if getattr(self._thread, "depth", 0) == 0:
            raise NcclError(INVALID_USAGE)
        self._thread.depth -= 1
        if self._thread.depth == 0:
            calls, self._thread.calls = getattr(self._thread, "calls", []), []
            self._run(calls)

    def _post(self, call: Call, stream: int) -> None:
        if not call.comm._alive:
            raise NcclError(INVALID_ARGUMENT)
        call.comm.streams.add(stream)
        if getattr(self._thread, "depth", 0):
            self._thread.calls = [*getattr(self._thread, "calls", []), call]
        else:
            self._run([call])

    def _run(self, calls: list[Call]) -> None:
        shared = self._shared
        try:
            with shared.changed:
                for call in calls:
                    call.comm._begin(call)
                shared.changed.notify_all()
        except BaseException:
            with shared.changed:
                shared.failed = True
                shared.changed.notify_all()
            raise

        def over() -> bool:
            return all(call.done or not call.comm._alive for call in calls)

        waits = [f"{call.verb} {call.peer if call.peer >= 0 else ''}".strip() for call in calls]
        shared.wait_for(over, f"rank {calls[0].comm._rank if calls else '?'} waits in {', '.join(waits)}")


def _ints(*numbers: int) -> None:
    if any(type(number) is not int for number in numbers):
        raise TypeError("an integer is required")


def _bytes(count: int, dtype: int) -> int:
    return count * np.dtype(TYPES[dtype]).itemsize


def _apart(a: int, b: int, n_a: int, n_b: int, dtype: int) -> bool:
    return a + _bytes(n_a, dtype) <= b or b + _bytes(n_b, dtype) <= a


def _same(mine: tuple[Any, ...], theirs: tuple[Any, ...], where: str) -> None:
    assert mine == theirs, f"ranks disagree about {where}: {mine} and {theirs}"


def _at(address: int, count: int, dtype: int) -> Array:
    """The elements there, to be read and written."""
    memory = (ctypes.c_char * _bytes(count, dtype)).from_address(address)
    return np.frombuffer(memory, TYPES[dtype])


def _move(send: Call, recv: Call) -> None:
    _at(recv.target, recv.what[0], recv.dtype)[...] = _at(send.source, send.what[0], send.dtype)


def _compute(calls: list[Call]) -> None:
    """The collective that all members have called; sums in the order of ranks, rounded each time."""
    verb, count, dtype, n = calls[0].verb, calls[0].what[0], calls[0].dtype, len(calls)
    n_in = count * n if verb == "reduceScatter" else count
    sources = [_at(call.source, n_in, dtype).copy() for call in calls]
    for rank, call in enumerate(calls):
        if verb == "broadcast":
            result = sources[call.what[2]]
        elif verb == "allGather":
            result = np.concatenate(sources)
        else:
            combine = {FakeNccl.NCCL_SUM: np.add, FakeNccl.NCCL_MAX: np.maximum}[call.what[2]]
            result = sources[0]
            for source in sources[1:]:
                result = combine(result, source)
            if verb == "reduceScatter":
                result = result[rank * count : (rank + 1) * count]
        _at(call.target, result.size, dtype)[...] = result
