"""Ranks as MPI processes: mpi4py's upper-case calls, which move buffers and never pickle. The only file
that imports mpi4py.
"""

from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm, Handle, Reduction
from minitrain.comm.single import SingleComm

_OPS = {"sum": MPI.SUM, "max": MPI.MAX}


def world(synchronous_sends: bool = False) -> "MpiComm":
    """All ranks of the job. With `synchronous_sends` a send is complete only when its receive has started
    (MPI_Ssend): a pipeline that relies on the library's buffering then deadlocks, which is what a test
    wants to see.
    """
    return MpiComm(MPI.COMM_WORLD, "world", synchronous_sends)


class MpiComm:
    """One rank of an MPI communicator."""

    def __init__(self, comm: MPI.Intracomm, name: str, synchronous_sends: bool) -> None:
        self.name, self.rank, self.size = name, comm.rank, comm.size
        ranks = list(range(comm.size))
        self.members = tuple(comm.Get_group().Translate_ranks(ranks, MPI.COMM_WORLD.Get_group()))
        self._comm, self._synchronous_sends = comm, synchronous_sends

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        self._comm.Allreduce(MPI.IN_PLACE, buffer, _OPS[op])

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        # MPI forbids that the result overlaps the source. Reduce_scatter with counts, because Open MPI's
        # Reduce_scatter_block takes about twice as long for large buffers.
        target = np.empty_like(shard) if np.may_share_memory(source, shard) else shard
        self._comm.Reduce_scatter(source, target, [shard.size] * self.size, MPI.SUM)
        if target is not shard:
            shard[...] = target

    def all_gather(self, shard: Array, target: Array) -> None:
        in_place = np.may_share_memory(shard, target)
        self._comm.Allgather(MPI.IN_PLACE if in_place else shard, target)

    def broadcast(self, buffer: Array, root: int) -> None:
        self._comm.Bcast(buffer, root)

    def start_send(self, buffer: Array, to: int) -> Handle:
        start = self._comm.Issend if self._synchronous_sends else self._comm.Isend
        return _Request(start(buffer, to))

    def send(self, buffer: Array, to: int) -> None:
        self.start_send(buffer, to).wait()

    def recv(self, buffer: Array, source: int) -> None:
        status = MPI.Status()
        self._comm.Recv(buffer, source, status=status)
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
