"""Vectors of 8 bits: a code for each element, and one fp32 number for each block of 256.

    value = MAP[code] * largest         largest: of |values| in the block

MAP has 256 entries in -1 .. 1, or 0 .. 1 for values that are never negative. They lie densest near zero:
seven decades, up to 10^-6, 10^-5 … 1, each with twice as many entries as the one below, spread evenly over
its 0.1 .. 1; and 0 and 1 themselves, but not -1, whose nearest entry is -0.993.

This is the dynamic tree quantisation of Dettmers et al. (2022), "8-bit Optimizers via Block-wise
Quantization", with the map of bitsandbytes (`create_dynamic_map`). The paper's blocks have 2048 elements; 256
is what bitsandbytes uses now. It moves codes of m that would round across zero; here they may become zero.
"""

import numpy as np

from minitrain.arrays.types import Array

BLOCK = 256
ON_HOST = np.zeros(0)


class Quantised:
    """A vector of n elements in n + 4 ceil(n / 256) bytes, zero at the start.

    It is read and written in slices that begin where a block begins. One that ends within a block ends where
    a tensor does: what is behind it in the block is padding.
    """

    def __init__(self, n: int, signed: bool, like: Array = ON_HOST) -> None:
        """In the memory of the device that `like` is in."""
        zero = int(np.searchsorted(MAPS[signed], 0))
        self.signed = signed
        self.codes: Array = np.full_like(like, zero, dtype=np.uint8, shape=n)
        self.largest: Array = np.zeros_like(like, dtype=np.float32, shape=-(-n // BLOCK))

    @property
    def size(self) -> int:
        return self.codes.size

    @property
    def arrays(self) -> tuple[Array, Array]:
        return self.codes, self.largest

    def load(self, block: slice) -> Array:
        """The values in fp32."""
        values: Array = MAPS[self.signed][self.codes[block]]
        values *= _repeated(self.largest[self.blocks(block)], values.size)
        return values

    def save(self, block: slice, values: Array, known: Array | None = None) -> None:
        """Stores the nearest value that there is for each; of two equally near ones the lower.

        `known`: the blocks' largest magnitudes, where the values come from such a vector. With these they get
        the same codes again; without them not always, as all that is left of the largest may be 0.993 of it.
        """
        if values.size == 0:
            return
        largest = self.largest[self.blocks(block)]
        if known is None:
            np.maximum.reduceat(np.abs(values), np.arange(0, values.size, BLOCK), out=largest)
        else:
            largest[:] = known
        shares = values / _repeated(np.where(largest == 0, 1, largest), values.size)
        self.codes[block] = np.searchsorted(MIDPOINTS[self.signed], shares)

    def blocks(self, block: slice) -> slice:
        """The blocks that these elements are in."""
        assert block.start % BLOCK == 0
        return slice(block.start // BLOCK, -(-block.stop // BLOCK))


def _repeated(largest: Array, n: int) -> Array:
    """One number per element; the last block may be short."""
    return np.repeat(largest, BLOCK)[:n]


def _map(signed: bool) -> Array:
    """The 256 values, ascending."""
    entries = [np.zeros(1), np.ones(1)]
    for i in range(7):
        edges = np.linspace(0.1, 1, (1 if signed else 2) * 2**i + 1)
        centres = 10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2
        entries += [centres, -centres] if signed else [centres]
    return np.sort(np.concatenate(entries)).astype(np.float32)


MAPS = {signed: _map(signed) for signed in (False, True)}
MIDPOINTS = {signed: (MAPS[signed][:-1] + MAPS[signed][1:]) / 2 for signed in (False, True)}
