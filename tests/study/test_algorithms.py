"""Collectives made of messages give what the communicators' own verbs give, in the hops and with the bytes
that are said of them, for sizes that divide and sizes that do not.
"""

from collections.abc import Callable
from math import ceil, log2

import numpy as np
import pytest
from contract import check_contract

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.comm.traced import Event, ring_bytes, traced
from minitrain.study.algorithms import (
    all_to_all,
    direct,
    halving_doubling,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    tree_broadcast,
)
from minitrain.study.algorithms.hop import Hop, Hops, cut
from minitrain.study.hopping import hopping

LIMIT = 20.0
RANKS = pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
POWERS_OF_TWO = pytest.mark.parametrize("n", [2, 4, 8])
RING_OR_HALVING = [("ring", n) for n in (2, 3, 4, 5, 8)] + [("halving", n) for n in (2, 4, 8)]
SIZES = (1, 5, 8, 24, 37)  # elements: fewer than ranks, odd ones, whole slices for some numbers of ranks

Algorithm = Callable[[Comm, Array], Hops]


def own(comm: Comm, size: int) -> Array:
    """What a rank brings: other numbers in every place, and sums that are exact."""
    return np.arange(size) * 1.0 + 100.0 * comm.rank + 1


def do(comm: Comm, algorithm: Algorithm, buffer: Array) -> tuple[list[Hop], int]:
    """The hops that this rank made, and the bytes that it sent."""
    events: list[Event] = []
    hops = list(algorithm(traced(comm, events.append), buffer))
    assert all(event.verb == "send" for event in events)
    assert len(events) <= len(hops), "more than one message in a hop"
    sent = sum(event.bytes for event in events)
    assert sent == sum(hop.sent.stop - hop.sent.start for hop in hops) * buffer.itemsize
    return hops, sent


def assert_hops_fit(of_ranks: list[list[Hop]]) -> None:
    """What one rank sends in a hop another receives in that hop, as many elements."""
    assert len({len(hops) for hops in of_ranks}) == 1
    for hops in zip(*of_ranks, strict=True):
        for rank, hop in enumerate(hops):
            if hop.to is not None:
                there = hops[hop.to]
                assert there.source == rank
                assert there.received.stop - there.received.start == hop.sent.stop - hop.sent.start
        assert sum(hop.to is not None for hop in hops) == sum(hop.source is not None for hop in hops)


def check_all_reduce(n: int, algorithm: Algorithm, n_hops: int, bytes_of: Callable[[int], int]) -> None:
    def on_rank(comm: Comm, size: int) -> tuple[list[Hop], int]:
        buffer, expected = own(comm, size), own(comm, size)
        made = do(comm, algorithm, buffer)
        comm.all_reduce(expected)
        assert np.array_equal(buffer, expected)
        return made

    for size in SIZES:
        made = run_threads(n, lambda comm, size=size: on_rank(comm, size), LIMIT)
        assert_hops_fit([hops for hops, _ in made])
        assert len(made[0][0]) == n_hops
        sent = [n_bytes for _, n_bytes in made]
        assert sum(sent) == bytes_of(size)
        if size % n == 0:
            assert sent == n * [bytes_of(size) // n]


@RANKS
def test_ring_all_reduce(n: int) -> None:
    """All slices go around twice, whatever their sizes are."""
    check_all_reduce(n, ring_all_reduce.all_reduce, 2 * (n - 1), lambda size: 2 * (n - 1) * size * 8)
    assert ring_bytes("all_reduce", 8 * n, n) == 2 * (n - 1) * 8


@POWERS_OF_TWO
def test_halving_doubling(n: int) -> None:
    bytes_of = lambda size: 2 * (n - 1) * size * 8  # noqa: E731
    check_all_reduce(n, halving_doubling.all_reduce, 2 * int(log2(n)), bytes_of)


@RANKS
def test_direct_all_reduce(n: int) -> None:
    check_all_reduce(n, direct.all_reduce, n - 1, lambda size: n * (n - 1) * size * 8)


@RANKS
def test_maximum_in_a_ring(n: int) -> None:
    def on_rank(comm: Comm) -> None:
        buffer = own(comm, 7) * (-1) ** comm.rank
        expected = buffer.copy()
        comm.all_reduce(expected, "max")
        for _ in ring_all_reduce.all_reduce(comm, buffer, np.maximum):
            pass
        assert np.array_equal(buffer, expected)

    run_threads(n, on_rank, LIMIT)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm, n", RING_OR_HALVING)
def test_reduce_scatter(algorithm: str, n: int, size: int) -> None:
    run = {"ring": ring_reduce_scatter, "halving": halving_doubling}[algorithm].reduce_scatter

    def on_rank(comm: Comm) -> tuple[list[Hop], int]:
        buffer, slices = own(comm, size), cut(size, n)
        made = do(comm, run, buffer)
        expected = own(comm, size)
        comm.all_reduce(expected)
        assert np.array_equal(buffer[slices[comm.rank]], expected[slices[comm.rank]])
        if size % n == 0:
            shard = np.empty(size // n)
            comm.reduce_scatter(own(comm, size), shard)
            assert np.array_equal(buffer[slices[comm.rank]], shard)
            assert made[1] == ring_bytes("reduce_scatter", buffer.nbytes, n)
        return made

    made = run_threads(n, on_rank, LIMIT)
    assert_hops_fit([hops for hops, _ in made])
    assert len(made[0][0]) == (n - 1 if algorithm == "ring" else log2(n))
    assert sum(sent for _, sent in made) == (n - 1) * size * 8


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm, n", RING_OR_HALVING)
def test_all_gather(algorithm: str, n: int, size: int) -> None:
    run = {"ring": ring_all_gather, "halving": halving_doubling}[algorithm].all_gather

    def on_rank(comm: Comm) -> tuple[list[Hop], int]:
        slices = cut(size, n)
        buffer = np.full(size, np.nan)
        buffer[slices[comm.rank]] = own(comm, size)[slices[comm.rank]]
        made = do(comm, run, buffer)
        everyone = np.empty((n, size))
        comm.all_gather(own(comm, size), everyone)
        assert np.array_equal(buffer, np.concatenate([everyone[r, slices[r]] for r in range(n)]))
        if size % n == 0:
            assert made[1] == ring_bytes("all_gather", buffer.nbytes, n)
        return made

    made = run_threads(n, on_rank, LIMIT)
    assert_hops_fit([hops for hops, _ in made])
    assert len(made[0][0]) == (n - 1 if algorithm == "ring" else log2(n))
    assert sum(sent for _, sent in made) == (n - 1) * size * 8


@RANKS
@pytest.mark.parametrize("algorithm", [tree_broadcast, direct], ids=["tree", "direct"])
def test_broadcast(n: int, algorithm: object) -> None:
    def on_rank(comm: Comm, root: int) -> tuple[list[Hop], int]:
        buffer, expected = own(comm, 5), own(comm, 5)
        made = do(comm, lambda c, b: algorithm.broadcast(c, b, root), buffer)  # type: ignore[attr-defined]
        comm.broadcast(expected, root)
        assert np.array_equal(buffer, expected)
        return made

    for root in range(n):
        made = run_threads(n, lambda comm, root=root: on_rank(comm, root), LIMIT)
        assert_hops_fit([hops for hops, _ in made])
        assert len(made[0][0]) == (ceil(log2(n)) if algorithm is tree_broadcast else n - 1)
        assert sum(sent for _, sent in made) == (n - 1) * 5 * 8


@RANKS
@pytest.mark.parametrize("each", [1, 3])
def test_all_to_all(n: int, each: int) -> None:
    def on_rank(comm: Comm) -> tuple[list[Hop], int]:
        source, target = own(comm, n * each), np.full(n * each, np.nan)
        made = do(comm, lambda c, b: all_to_all.all_to_all(c, b, target), source)
        everyone = np.empty((n, n, each))
        comm.all_gather(source, everyone)
        assert np.array_equal(target.reshape(n, each), everyone[:, comm.rank])
        assert np.array_equal(source, own(comm, n * each))
        return made

    made = run_threads(n, on_rank, LIMIT)
    assert_hops_fit([hops for hops, _ in made])
    assert [sent for _, sent in made] == n * [(n - 1) * each * 8]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_a_communicator_of_messages_keeps_the_contract(n: int) -> None:
    run_threads(n, lambda world: check_contract(hopping(world)), LIMIT)


def test_groups_of_a_communicator_of_messages_send_messages_too() -> None:
    def on_rank(world: Comm) -> None:
        events: list[Event] = []
        comm = hopping(traced(world, events.append))
        events.clear()
        for group in (comm.split(0, "half"), comm.cart((2, 2)).sub((True, False), "column")):
            group.all_reduce(np.ones(4))
        assert {(event.verb, event.axis) for event in events} == {("send", "half"), ("send", "column")}

    run_threads(4, on_rank, LIMIT)


@pytest.mark.mpi(min_size=2)
def test_over_mpi() -> None:
    """With sends that are complete only when their receive has started."""
    from minitrain.comm.mpi import world

    comm = world(synchronous_sends=True)
    check_contract(hopping(comm))
    for algorithm in (ring_all_reduce.all_reduce, halving_doubling.all_reduce, direct.all_reduce):
        for size in SIZES:
            buffer, expected = own(comm, size), own(comm, size)
            do(comm, algorithm, buffer)
            comm.all_reduce(expected)
            assert np.array_equal(buffer, expected)
