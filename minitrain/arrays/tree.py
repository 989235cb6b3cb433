"""A sum whose order is that of a binary tree, ((0 + 1) + (2 + 3)) + ..., however it is dealt out.

Rounding makes a + b + c depend on the order, so a sum over micro-batches and ranks has other bits wherever
it is cut elsewhere. In a tree over 2^k terms every run of 2^j terms that starts at a multiple of 2^j is a
node: who holds such a run adds it up alone, and the rest of the tree is over these sums. Which of two
siblings comes first does not matter, since addition commutes.
"""

from minitrain.arrays.pool import Pool
from minitrain.arrays.types import Array


class TreeSum:
    """Adds up `n` = 2^k vectors of one size and type, given one by one in the order of the tree, or in any
    other that visits siblings one after the other.

    It works like a binary counter: of the vectors seen so far it keeps a partial sum for each bit of their
    number, k at most.
    """

    def __init__(self, n: int, pool: Pool) -> None:
        assert n & (n - 1) == 0, f"{n} vectors make no complete binary tree"
        self._n, self._pool = n, pool
        self._partial: list[tuple[int, Array]] = []  # sums, each with the number of vectors that it is of

    def add(self, vector: Array) -> Array | None:
        """Takes the vector, lent by the pool, over. The sum, if this was the last of the n; the caller is to
        give it back.
        """
        count = 1
        while self._partial and self._partial[-1][0] == count:
            _, sibling = self._partial.pop()
            vector += sibling
            self._pool.give_back(sibling)
            count *= 2
        if count == self._n:
            return vector
        self._partial.append((count, vector))
        return None
