"""Device arrays over NCCL (`cupy.cuda.nccl`): GPU to GPU, on the stream of the kernels.

Every call only enqueues work on the device's stream. Kernels before it have written what is sent, kernels
after it find what was received, and a buffer given back to the device's memory pool is used again by later
work of that stream only: order alone keeps everything right, without events.

Order is also the danger. A send occupies the stream until its receive has come, and the first call between
two ranks makes the host wait too, while they connect. Two pipeline stages that send to each other at once and
receive afterwards would wait for ever. NCCL's remedy is a group: calls between groupStart and groupEnd make
progress independently of each other. So a started send is held back, and issued

    with the next receive of its rank, in one group, or
    when its handle is waited for, or
    before the next collective of its axis

and whenever one is, the oldest to every peer goes along: that peer may be waiting for it. Only one to each,
since within a group messages to the same peer are not independent. (`tests/comm/test_nccl.py` plays every
schedule with groups that end only when all of their calls have met.)

The cost: what a first stage sends in the warm-up, and a last stage of gpipe in the cool-down, leaves one
micro-batch late, as there is nothing to receive meanwhile.

A message of host arrays issues nothing here. A rank that waits for one, whose sender waits in turn for what
this rank holds back, waits for ever.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm, Reduction
from minitrain.comm.ranks import name_ranks
from minitrain.errors import ConfigError, InternalError, MinitrainError, Problem, TryAgainError

ID_BYTES = 128  # of what lets the members of a group find each other

TYPES = {
    np.dtype(np.float64): "NCCL_FLOAT64",
    np.dtype(np.float32): "NCCL_FLOAT32",
    np.dtype(np.float16): "NCCL_FLOAT16",
    np.dtype(ml_dtypes.bfloat16): "NCCL_BFLOAT16",
    np.dtype(np.int64): "NCCL_INT64",
    np.dtype(np.int32): "NCCL_INT32",
    np.dtype(np.uint8): "NCCL_UINT8",
    np.dtype(np.uint64): "NCCL_UINT64",
}
OPS = {"sum": "NCCL_SUM", "max": "NCCL_MAX"}
IN_PROGRESS = 7  # ncclInProgress
DEFECTS = (4, 5)  # ncclInvalidArgument, ncclInvalidUsage: of the call; all others are of the machines


class HasStream(Protocol):
    """What NCCL needs of a device, which is the current one of the process."""

    stream: Any  # of CuPy


def pointer(array: Array) -> int:
    """Where the elements of a device array begin, as a CuPy array has it."""
    memory: Any = array.data
    return int(memory.ptr)


def load() -> Any:
    """The module `cupy.cuda.nccl`. Raises ConfigError if it has no library to call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's, that it has no library, would be ten lines
        from cupy.cuda import nccl

    if not nccl.available:
        remedy = "pip install nvidia-nccl-cu13, or choose --collectives mpi"
        raise ConfigError([Problem("there is no libnccl.so.2", "collectives nccl", remedy)])
    return nccl


class Nccl:
    """NCCL in this process: one communicator for every set of ranks that is a group. Axes of the same ranks
    share it, as each takes memory on the GPU.
    """

    def __init__(self, device: HasStream, library: Any = None) -> None:
        """`library` has the names of `cupy.cuda.nccl`."""
        self._device, self._library = device, library or load()
        self._groups: dict[tuple[int, ...], NcclTransport] = {}

    def connect(self, host: Comm) -> "NcclTransport":
        """The transport of a group (device.py). All members make it together, in the same order as others."""
        group = self._groups.get(host.members)
        if group is None:
            group = NcclTransport(self._device, self._library, host)
            self._groups[host.members] = group
        elif host.name not in group.axes:
            group.axes.append(host.name)
        return group

    def check(self) -> None:
        """Raises TryAgainError if NCCL has noticed since that something is broken, such as a peer's end. A
        call tells no such thing, having returned long before. May be called by another thread.
        """
        for group in list(self._groups.values()):
            with group.errors("a call that was under way"):
                try:
                    group.communicator.check_async_error()
                except self._library.NcclError as error:
                    if error.status != IN_PROGRESS:
                        raise

    def abort_all(self) -> None:
        """Ends what is under way on the GPU, done or not, so that this process can end. Others are not told.
        May be called by another thread.
        """
        while self._groups:
            self._groups.popitem()[1].communicator.abort()

    def close(self) -> None:
        """Gives back what the communicators hold, once all their work is done. Every rank calls it, at the
        end of a run that went well; after an error it might wait for ever, and `abort_all` does not.
        """
        while self._groups:
            self._groups.popitem()[1].communicator.destroy()


class NcclTransport:
    """The verbs of one group on device arrays. Collectives keep NCCL's rules: counts are in elements, and in
    place means that the shard is this rank's part of the whole, as it is for `Comm`.
    """

    def __init__(self, device: HasStream, library: Any, host: Comm) -> None:
        self.axes, self._members, self._size = [host.name], host.members, host.size
        self._device, self._library = device, library
        self._held: deque[_HeldSend] = deque()
        try:
            mark = np.zeros(ID_BYTES, np.uint8)
            if host.rank == 0:
                mark = np.frombuffer(library.get_unique_id(), np.uint8).copy()
            host.broadcast(mark, 0)
            self.communicator = library.NcclCommunicator(host.size, mark.tobytes(), host.rank)
        except library.NcclError as error:
            remedy = "run again with NCCL_DEBUG=INFO to see why, or choose --collectives mpi"
            raise ConfigError([Problem(f"NCCL cannot connect: {error}", self._where(), remedy)]) from error

    def all_reduce(self, buffer: Array, op: Reduction) -> None:
        at, n, dtype = self._words(buffer)
        with self._collective("all_reduce"):
            self.communicator.allReduce(at, at, n, dtype, self._code(OPS[op]), self._stream())

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        at, n, dtype = self._words(shard)
        assert source.size == n * self._size and source.dtype == shard.dtype, "shards make up the whole"
        with self._collective("reduce_scatter"):
            add = self._code(OPS["sum"])
            self.communicator.reduceScatter(pointer(source), at, n, dtype, add, self._stream())

    def all_gather(self, shard: Array, target: Array) -> None:
        at, n, dtype = self._words(shard)
        assert target.size == n * self._size and target.dtype == shard.dtype, "shards make up the whole"
        with self._collective("all_gather"):
            self.communicator.allGather(at, pointer(target), n, dtype, self._stream())

    def broadcast(self, buffer: Array, root: int) -> None:
        at, n, dtype = self._words(buffer)
        with self._collective("broadcast"):
            self.communicator.bcast(at, n, dtype, root, self._stream())

    def start_send(self, buffer: Array, to: int) -> "_HeldSend":
        self._words(buffer)  # what cannot be sent is refused here, and not where it is issued
        self._held.append(_HeldSend(buffer, to, self._issue))
        return self._held[-1]

    def recv(self, buffer: Array, source: int) -> None:
        at, n, dtype = self._words(buffer)
        self._issue(lambda: self.communicator.recv(at, n, dtype, source, self._stream()))

    def _issue(self, receive: Callable[[], None] | None = None) -> None:
        """The oldest held send of every peer, and perhaps a receive, in one group."""
        oldest: dict[int, _HeldSend] = {}
        for send in self._held:
            oldest.setdefault(send.to, send)
        with self.errors("a message"):
            self._library.groupStart()
            for to, send in oldest.items():
                assert send.buffer is not None
                at, n, dtype = self._words(send.buffer)
                self.communicator.send(at, n, dtype, to, self._stream())
            if receive:
                receive()
            self._library.groupEnd()
        for send in oldest.values():
            self._held.remove(send)
            send.buffer = None  # from here on the order of the stream protects it

    @contextmanager
    def _collective(self, verb: str) -> Iterator[None]:
        while self._held:
            self._issue()
        with self.errors(verb):
            yield

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """NCCL's own as one of ours, which names the axis."""
        try:
            yield
        except self._library.NcclError as error:
            kind: type[MinitrainError] = TryAgainError
            remedy = "restart from the last checkpoint with --run.resume auto"
            if error.status in DEFECTS:
                kind, remedy = InternalError, "this is a defect: run again with NCCL_DEBUG=WARN to see more"
            raise kind(f"NCCL failed in {what}: {error}", self._where(), remedy) from error

    def _words(self, buffer: Array) -> tuple[int, int, int]:
        """Where a buffer begins, how many elements it has, and NCCL's number of their type."""
        if buffer.dtype not in TYPES:
            raise InternalError(
                f"NCCL knows no {buffer.dtype.name}", self._where(), "send it as another type"
            )
        return pointer(buffer), int(buffer.size), self._code(TYPES[buffer.dtype])

    def _where(self) -> str:
        return f"over {' and '.join(self.axes)}, {name_ranks(self._members)}"

    def _stream(self) -> int:
        return int(self._device.stream.ptr)

    def _code(self, name: str) -> int:
        code: int = getattr(self._library, name)
        return code


class _HeldSend:
    """A started send. `buffer` is None once it is issued."""

    def __init__(self, buffer: Array, to: int, issue: Callable[[], None]) -> None:
        self.buffer: Array | None = buffer
        self.to, self._issue = to, issue

    def wait(self) -> None:
        """Until then what is written to the buffer would be sent; kernels enqueued afterwards may do so."""
        while self.buffer is not None:
            self._issue()
