"""Which sequences a step takes: a pure function of (seed, step), the same on every rank and in every layout.

A shuffled epoch is a pseudo-random permutation that is *computed*, index by index, and never stored: a
Feistel network (Luby and Rackoff 1988) over the smallest even number of bits that holds n, with cycle walking
(Black and Rogaway 2002, section 3) where the result is not below n. Any step is found at once.
"""

import numpy as np

from minitrain.arrays.hashing import GOLDEN, MASK, splitmix64
from minitrain.arrays.types import Array

ROUNDS = 6


def sequence_indices(step: int, global_batch: int, n_sequences: int, seed: int, shuffle: bool) -> Array:
    """Indices of the sequences of `step` (from 1), int64 [global_batch].

    Position p = (step - 1) * global_batch + b, epoch = p // n: an epoch visits every sequence once, in file
    order or in a permutation of its own. A batch may span epochs.
    """
    first = (step - 1) * global_batch
    position = np.arange(first, first + global_batch, dtype=np.int64)
    epoch, index = np.divmod(position, n_sequences)
    return _permute(index, epoch, n_sequences, seed) if shuffle else index


def _permute(index: Array, epoch: Array, n: int, seed: int) -> Array:
    """Where the permutation of range(n) that (seed, epoch) choose sends `index`. All arrays int64 [B]."""
    half = max(2, ((n - 1).bit_length() + 1) // 2)  # bits: 4^half is n .. 4 n, but 16 for the smallest n
    key = splitmix64(splitmix64(np.full(len(index), seed & MASK, np.uint64)) + epoch.astype(np.uint64))
    x = _feistel(index.astype(np.uint64), key, half)
    while (outside := x >= n).any():  # the cycle of a permutation comes back to range(n), so this ends
        x[outside] = _feistel(x[outside], key[outside], half)
    return x.astype(np.int64)


def _feistel(x: Array, key: Array, half: int) -> Array:
    """A keyed bijection of [0, 4^half): (left, right) -> (right, left ^ f(right)) is invertible for any f."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> bits, x & mask
    for r in range(ROUNDS):
        round_key = key + np.uint64(GOLDEN * (r + 1) & MASK)
        left, right = right, left ^ (splitmix64(right + round_key) & mask)
    return left << bits | right
