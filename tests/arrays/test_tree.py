"""A sum in the order of a binary tree has the same bits however it is dealt out."""

import numpy as np
import pytest

from minitrain.arrays.pool import Pool
from minitrain.arrays.tree import TreeSum
from minitrain.arrays.types import Array

VECTORS = np.random.default_rng(0).standard_normal((16, 1000), np.float32)


def added(vectors: Array, pool: Pool) -> Array:
    tree = TreeSum(len(vectors), pool)
    totals = []
    for vector in vectors:
        mine = pool.take(vector.size, vector.dtype)
        mine[...] = vector
        totals.append(tree.add(mine))
    assert totals[-1] is not None and all(total is None for total in totals[:-1])
    pool.give_back(totals[-1])
    return totals[-1].copy()


@pytest.mark.parametrize("parts", [1, 2, 4, 8, 16])
def test_sums_of_parts_are_nodes_of_the_tree(parts: int) -> None:
    partial = [added(part, Pool()) for part in np.split(VECTORS, parts)]
    assert np.array_equal(added(np.stack(partial), Pool()), added(VECTORS, Pool()))


def test_siblings_may_come_in_either_order() -> None:
    expected = added(VECTORS, Pool())
    assert np.array_equal(added(VECTORS[::-1], Pool()), expected)
    for rank in range(16):
        assert np.array_equal(added(VECTORS[rank ^ np.arange(16)], Pool()), expected)


def test_another_order_has_other_bits() -> None:
    assert not np.array_equal(VECTORS.cumsum(axis=0)[-1], added(VECTORS, Pool()))
    assert not np.array_equal(added(VECTORS[np.roll(np.arange(16), 1)], Pool()), added(VECTORS, Pool()))


@pytest.mark.parametrize("n, kept", [(1, 1), (2, 2), (4, 3), (8, 4), (16, 5)])
def test_it_needs_a_buffer_for_every_level(n: int, kept: int) -> None:
    """And none the second time."""
    pool = Pool()
    for _ in range(2):
        added(VECTORS[:n], pool)
        assert pool.bytes == kept * VECTORS[0].nbytes


def test_as_many_as_no_tree_has_are_refused() -> None:
    with pytest.raises(AssertionError, match="3 vectors"):
        TreeSum(3, Pool())
