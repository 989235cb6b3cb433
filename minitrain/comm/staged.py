"""Device arrays over an MPI that knows nothing of devices: each verb copies its buffers into host memory,
runs there, and copies the results back.

    device --copy--> page-locked memory --MPI--> page-locked memory --copy--> device

Copies are enqueued on the device's stream and return at once. MPI does not know that stream, so
before it may touch anything the stream must have come to its end: `Staging.lend` waits for that, before every
host verb and nowhere else. It is also why page-locked memory may be used again as soon as the copy out of it
is enqueued: what comes next is either another copy, later on the same stream, or a host verb, for which
`lend` has waited.

An MPI that does take device arrays (`direct`) gets them, after the very same wait. Sums of 16-bit floats
still go through host memory, since their arithmetic is the host communicator's own (mpi.py).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from minitrain.arrays.types import Array, DType
from minitrain.comm.interface import Comm, Handle, Reduction


class Copies(Protocol):
    """What staging needs of a device. Copies are between contiguous arrays of as many elements and one dtype,
    in the order of the device's stream.
    """

    def pinned(self, size: int, dtype: DType) -> Array:
        """A NumPy vector of undefined contents in page-locked host memory."""

    def copy_to_host(self, source: Array, target: Array) -> None:
        """Enqueues target <- source; `target` is pinned."""

    def copy_to_device(self, source: Array, target: Array) -> None:
        """Enqueues target <- source; `source` is pinned."""

    def synchronize(self) -> None:
        """Returns when everything enqueued on the stream is done."""


class Use(NamedTuple):
    """What a verb does with a device array."""

    buffer: Array
    read: bool
    written: bool


class Staging:
    """The page-locked memory of this process. `direct`: MPI takes device arrays as they are."""

    def __init__(self, device: Copies, direct: bool = False) -> None:
        self._device, self._direct = device, direct
        self._free: defaultdict[tuple[int, DType], list[Array]] = defaultdict(list)

    def connect(self, host: Comm) -> "StagedTransport":
        """The transport of a group (device.py)."""
        return StagedTransport(host, self)

    def lend(self, uses: Sequence[Use], adds: bool = False) -> list[Array]:
        """For each device array one that MPI may touch now, with the same elements where they are read.
        `adds`: the verb does arithmetic.
        """
        lent = [use.buffer if self._is_direct(use.buffer, adds) else self._take(use.buffer) for use in uses]
        for use, array in zip(uses, lent, strict=True):
            if use.read and array is not use.buffer:
                self._device.copy_to_host(use.buffer, array)
        self._device.synchronize()
        return lent

    def take_back(self, uses: Sequence[Use], lent: Sequence[Array]) -> None:
        """After the verb: what it has written goes to the device."""
        for use, array in zip(uses, lent, strict=True):
            if array is not use.buffer:
                if use.written:
                    self._device.copy_to_device(array, use.buffer)
                self._free[array.size, array.dtype].append(array)

    def _is_direct(self, buffer: Array, adds: bool) -> bool:
        return self._direct and not (adds and buffer.dtype.itemsize == 2)

    def _take(self, buffer: Array) -> Array:
        free = self._free[buffer.size, buffer.dtype]
        return free.pop() if free else self._device.pinned(buffer.size, buffer.dtype)


class StagedTransport:
    """The verbs of one group, run by its host communicator."""

    def __init__(self, host: Comm, staging: Staging) -> None:
        self._host, self._staging = host, staging

    def all_reduce(self, buffer: Array, op: Reduction) -> None:
        with self._lent(Use(buffer, read=True, written=True), adds=True) as (array,):
            self._host.all_reduce(array, op)

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        uses = Use(source, read=True, written=False), Use(shard, read=False, written=True)
        with self._lent(*uses, adds=True) as (whole, part):
            self._host.reduce_scatter(whole, part)

    def all_gather(self, shard: Array, target: Array) -> None:
        uses = Use(shard, read=True, written=False), Use(target, read=False, written=True)
        with self._lent(*uses) as (part, whole):
            self._host.all_gather(part, whole)

    def broadcast(self, buffer: Array, root: int) -> None:
        mine = self._host.rank == root
        with self._lent(Use(buffer, read=mine, written=not mine)) as (array,):
            self._host.broadcast(array, root)

    def start_send(self, buffer: Array, to: int) -> Handle:
        uses = (Use(buffer, read=True, written=False),)
        lent = self._staging.lend(uses)
        return _StagedHandle(self._host.start_send(lent[0], to), self._staging, uses, lent)

    def recv(self, buffer: Array, source: int) -> None:
        with self._lent(Use(buffer, read=False, written=True)) as (array,):
            self._host.recv(array, source)

    @contextmanager
    def _lent(self, *uses: Use, adds: bool = False) -> Iterator[list[Array]]:
        """Arrays for the host's verb. After an error nobody uses them again."""
        lent = self._staging.lend(uses, adds)
        yield lent
        self._staging.take_back(uses, lent)


class _StagedHandle:
    """A started send, and the memory that it is sent from."""

    def __init__(self, sent: Handle, staging: Staging, uses: Sequence[Use], lent: Sequence[Array]) -> None:
        self._sent, self._staging, self._uses, self._lent = sent, staging, uses, lent

    def wait(self) -> None:
        self._sent.wait()
        self._staging.take_back(self._uses, self._lent)
        self._uses = self._lent = ()
