"""Sums of fp64 numbers without rounding, so that neither order nor grouping has an effect.

A number of fp64 is an integer of 53 bits times a power of two, at least 2^-1074. So all of them are integers
in units of 2^LOWEST, and integers add up exactly. Such an integer is kept as digits in base 2^32, the lowest
first, each in an int64: digits may be added up, over 2^30 numbers, before anything is carried (Kulisch 2008,
Computer Arithmetic and Validity, chapter 8, has such accumulators in hardware).
"""

import math

import numpy as np

from minitrain.arrays.types import Array

DIGIT = 32  # bits
LOWEST = -1074 - 53  # the smallest number too has 53 bits to the right of its first
N_DIGITS = (1024 - LOWEST) // DIGIT + 2  # for what is finite, and one more
MASK = (1 << DIGIT) - 1


def digits(terms: Array) -> Array:
    """The sum of fp64 numbers that are not negative, as int64 [N_DIGITS]. These may be added up in any order.

    If one is infinite or not a number the sum is more than the largest fp64.
    """
    total = np.zeros(N_DIGITS, np.int64)
    if not np.isfinite(terms).all():
        total[-1] = 1
        return total
    fraction, exponent = np.frexp(terms)
    whole = np.ldexp(fraction, 53).astype(np.int64)
    place, shift = np.divmod(exponent - 53 - LOWEST, DIGIT)
    low, high = (whole & MASK) << shift, (whole >> DIGIT) << shift
    for i, digit in enumerate((low & MASK, (low >> DIGIT) + (high & MASK), high >> DIGIT)):
        np.add.at(total, place + i, digit)
    return total


def value(total: Array) -> float:
    """The fp64 number nearest to a sum of `digits`."""
    whole = sum(int(digit) << DIGIT * i for i, digit in enumerate(total))
    try:
        return whole / (1 << -LOWEST)
    except OverflowError:
        return math.inf
