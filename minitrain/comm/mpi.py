"""Ranks as MPI processes: mpi4py's upper-case calls, which move buffers and never pickle. The only file
that imports mpi4py.
"""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from mpi4py import MPI

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm, Handle, Reduction
from minitrain.comm.single import SingleComm

_OPS = {"sum": MPI.SUM, "max": MPI.MAX}
NARROW = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))  # MPI knows no arithmetic of these


def _narrow_op(dtype: np.dtype[np.generic], combine: np.ufunc) -> MPI.Op:
    """A reduction of 16-bit floats that travel as uint16: each sum is taken in fp32 and rounded."""

    def reduce(source: Any, target: Any, _: MPI.Datatype) -> None:
        a, b = np.frombuffer(source, dtype), np.frombuffer(target, dtype)
        b[...] = combine(a.astype(np.float32), b.astype(np.float32))

    return MPI.Op.Create(reduce, commute=True)


_NARROW_OPS = {
    (dtype, name): _narrow_op(dtype, combine)
    for dtype in NARROW
    for name, combine in (("sum", np.add), ("max", np.maximum))
}


def world(synchronous_sends: bool = False) -> "MpiComm":
    """All ranks of the job. With `synchronous_sends` a send is complete only when its receive has started
    (MPI_Ssend): a pipeline that relies on the library's buffering then deadlocks, which is what a test
    wants to see.
    """
    return MpiComm(MPI.COMM_WORLD, "world", synchronous_sends)


def takes_device_buffers() -> bool:
    """Whether MPI says that it takes arrays of CUDA devices (MPI 4.1, mpi_memory_alloc_kinds)."""
    kinds = MPI.COMM_WORLD.Get_info().get("mpi_memory_alloc_kinds") or ""
    return any(kind.partition(":")[0] == "cuda" for kind in kinds.split(","))


class MpiComm:
    """One rank of an MPI communicator."""

    def __init__(self, comm: MPI.Intracomm, name: str, synchronous_sends: bool) -> None:
        self.name, self.rank, self.size = name, comm.rank, comm.size
        ranks = list(range(comm.size))
        self.members = tuple(comm.Get_group().Translate_ranks(ranks, MPI.COMM_WORLD.Get_group()))
        self._comm, self._synchronous_sends = comm, synchronous_sends

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        self._comm.Allreduce(MPI.IN_PLACE, _words(buffer), _op(buffer, op))

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        # MPI forbids that the result overlaps the source. Reduce_scatter with counts, because Open MPI's
        # Reduce_scatter_block takes about twice as long for large buffers.
        target = np.empty_like(shard) if np.may_share_memory(source, shard) else shard
        counts = [shard.size] * self.size
        self._comm.Reduce_scatter(_words(source), _words(target), counts, _op(source, "sum"))
        if target is not shard:
            shard[...] = target

    def all_gather(self, shard: Array, target: Array) -> None:
        in_place = np.may_share_memory(shard, target)
        self._comm.Allgather(MPI.IN_PLACE if in_place else _words(shard), _words(target))

    def broadcast(self, buffer: Array, root: int) -> None:
        self._comm.Bcast(_words(buffer), root)

    def start_send(self, buffer: Array, to: int) -> Handle:
        start = self._comm.Issend if self._synchronous_sends else self._comm.Isend
        return _Request(start(_words(buffer), to))

    def send(self, buffer: Array, to: int) -> None:
        self.start_send(buffer, to).wait()

    def recv(self, buffer: Array, source: int) -> None:
        status = MPI.Status()
        self._comm.Recv(_words(buffer), source, status=status)
        assert status.Get_count(MPI.BYTE) == buffer.nbytes, (
            "sent and expected differ"
        )  # MPI minds only longer ones

    def barrier(self) -> None:
        self._comm.Barrier()

    def split(self, color: int | None, name: str) -> Comm:
        part = self._comm.Split(MPI.UNDEFINED if color is None else color, self.rank)
        return _group(part, name, self.members[self.rank], self._synchronous_sends)

    def cart(self, dims: Sequence[int]) -> "MpiCart":
        return MpiCart(self._comm.Create_cart(list(dims)), self._synchronous_sends)

    def abort(self, exit_code: int) -> None:
        self._comm.Abort(exit_code)


def _words(buffer: Array) -> Array:
    """16-bit floats as the integers that MPI moves; others as they are. The same memory."""
    return buffer.view(np.uint16) if buffer.dtype in NARROW else buffer


def _op(buffer: Array, op: Reduction) -> MPI.Op:
    return _NARROW_OPS[buffer.dtype, op] if buffer.dtype in NARROW else _OPS[op]


class _Request:
    """An MPI request; as long as it lives, mpi4py keeps its buffer alive."""

    def __init__(self, request: MPI.Request) -> None:
        self._request = request

    def wait(self) -> None:
        self._request.Wait()


class MpiCart:
    """A Cartesian communicator (MPI_Cart_create without reordering, so that ranks keep their world order)."""

    def __init__(self, comm: MPI.Cartcomm, synchronous_sends: bool) -> None:
        self._comm, self._synchronous_sends = comm, synchronous_sends
        self.coords = tuple(comm.coords)

    def sub(self, keep: Sequence[bool], name: str) -> Comm:
        return _group(self._comm.Sub(list(keep)), name, MPI.COMM_WORLD.rank, self._synchronous_sends)


def _group(comm: MPI.Comm, name: str, world_rank: int, synchronous_sends: bool) -> Comm:
    if comm == MPI.COMM_NULL:
        return SingleComm(name, world_rank)
    if comm.size == 1:
        comm.Free()
        return SingleComm(name, world_rank)
    assert isinstance(comm, MPI.Intracomm)
    return MpiComm(comm, name, synchronous_sends)
