"""What every communicator must do, for any number of ranks: called by the tests of each implementation."""

import ml_dtypes
import numpy as np

from minitrain.comm.interface import Comm


def check_contract(world: Comm) -> None:
    """Every verb, in floats and integers, odd sizes and sub-groups included. All ranks call it."""
    for dtype in (np.float32, np.float64, np.int64, np.float16, ml_dtypes.bfloat16):
        check_collectives(world, np.dtype(dtype))
    check_messages(world)
    check_groups(world)


def check_collectives(comm: Comm, dtype: np.dtype[np.generic]) -> None:
    n, me = comm.size, comm.rank
    few, apart = (8, 1) if dtype.itemsize == 2 else (1000, 10)  # whole numbers that the type can hold
    for length in (1, 5, 1000):
        numbers = np.arange(length) % few
        mine = (numbers + me * apart).astype(dtype)
        total = sum(numbers + r * apart for r in range(n))

        buffer = mine.copy()
        comm.all_reduce(buffer)
        assert np.array_equal(buffer, total)

        buffer = mine if me % 2 else -mine
        buffer = buffer.copy()
        comm.all_reduce(buffer, "max")
        highest = max((r for r in range(n) if r % 2), default=0)
        assert np.array_equal(buffer, numbers + highest * apart if n > 1 else -mine)

        gathered = np.empty(length * n, dtype)
        comm.all_gather(mine, gathered)
        assert np.array_equal(gathered, np.concatenate([numbers + r * apart for r in range(n)]))

        gathered[...] = -1
        own = gathered[me * length : (me + 1) * length]
        own[...] = mine
        comm.all_gather(own, gathered)  # in place
        assert np.array_equal(gathered, np.concatenate([numbers + r * apart for r in range(n)]))

        long = np.arange(length * n) % (7 if few == 8 else length * n)
        source = (long * (me + 1)).astype(dtype)
        expected = (long * (n * (n + 1) // 2))[me * length : (me + 1) * length]
        shard = np.empty(length, dtype)
        comm.reduce_scatter(source, shard)
        assert np.array_equal(shard, expected)
        own = source[me * length : (me + 1) * length]
        comm.reduce_scatter(source, own)  # in place
        assert np.array_equal(own, expected)

        for root in range(n):
            buffer = mine.copy()
            comm.broadcast(buffer, root)
            assert np.array_equal(buffer, numbers + root * apart)
    comm.barrier()


def check_messages(comm: Comm) -> None:
    """A ring of started sends, several to the same neighbour at once, keeps its order; a buffer is free
    after `wait`.
    """
    if comm.size == 1:
        return
    to, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    handles = [comm.start_send(np.full(20_000, 100.0 * comm.rank + i), to) for i in range(3)]
    for i in range(3):
        got = np.empty(20_000)
        comm.recv(got, source)
        assert np.all(got == 100.0 * source + i)
    for handle in handles:
        handle.wait()
    buffer = np.empty((3, 4), np.float32)
    if comm.rank == 0:
        comm.send(np.arange(12, dtype=np.float32).reshape(3, 4), 1)
    elif comm.rank == 1:
        comm.recv(buffer, 0)
        assert np.array_equal(buffer.ravel(), np.arange(12))


def check_groups(world: Comm) -> None:
    """A Cartesian grid and its lines, and a split."""
    assert world.members == tuple(range(world.size))
    rows = 2 if world.size % 2 == 0 else 1
    cart = world.cart((rows, world.size // rows))
    assert cart.coords == divmod(world.rank, world.size // rows)
    line = cart.sub((False, True), "line")
    first = cart.coords[0] * (world.size // rows)
    assert line.members == tuple(range(first, first + world.size // rows))
    assert (line.rank, line.name) == (cart.coords[1], "line")
    numbers = np.array([world.rank])
    line.all_reduce(numbers)
    assert numbers[0] == sum(line.members)

    ends = world.split(0 if world.rank in (0, world.size - 1) else None, "ends")
    at_an_end = world.rank in (0, world.size - 1)
    assert ends.members == ((0, world.size - 1) if at_an_end and world.size > 1 else (world.rank,))
