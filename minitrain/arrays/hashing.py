"""An integer hash, written out here so that what depends on it depends on no library's version."""

import numpy as np

from minitrain.arrays.types import Array

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio


def splitmix64(x: Array) -> Array:
    """SplitMix64 (Steele, Lea and Flood 2014): every bit in reaches every bit out. uint64, modulo 2^64."""
    z = x + np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
