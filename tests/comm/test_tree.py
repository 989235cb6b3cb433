"""The tree-ordered communicator keeps the contract of all others, and its sums have the tree's order."""

import numpy as np
import pytest
from contract import check_contract

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.comm.single import SingleComm
from minitrain.comm.threads import run_threads
from minitrain.comm.tree import tree_ordered

VECTORS = np.random.default_rng(0).standard_normal((8, 48), np.float32)


def summed(comm: Comm, n: int) -> tuple[Array, Array]:
    """By either verb, where each rank brings the sum of its part of the first n vectors."""
    parts = VECTORS[:n].reshape(comm.size, -1, 48)[comm.rank]
    while len(parts) > 1:
        parts = parts[::2] + parts[1::2]
    whole, shard = parts[0].copy(), np.empty(48 // comm.size, np.float32)
    comm.reduce_scatter(whole, shard)
    comm.all_reduce(whole)
    gathered = np.empty(48, np.float32)
    comm.all_gather(shard, gathered)
    return whole, gathered


def test_sums_have_the_same_bits_on_any_number_of_ranks() -> None:
    expected, _ = summed(SingleComm(), 8)
    assert not np.array_equal(expected, VECTORS.cumsum(axis=0)[-1])
    for size in (2, 4, 8):
        for pair in run_threads(size, lambda world: summed(tree_ordered(world), 8), 20.0):
            assert all(np.array_equal(total, expected) for total in pair)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_contract(size: int) -> None:
    run_threads(size, lambda world: check_contract(tree_ordered(world)), 20.0)
