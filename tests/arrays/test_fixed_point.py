"""Sums of fp64 numbers without rounding."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain.arrays.fixed_point import digits, value

FP64 = np.finfo(np.float64)
EDGES = [0.0, FP64.smallest_subnormal, FP64.smallest_normal, 1.0, 1 + FP64.eps, FP64.max]


@settings(deadline=None)
@given(st.lists(st.floats(0, FP64.max) | st.sampled_from(EDGES), max_size=20))
def test_the_sum_is_rounded_once(terms: list[float]) -> None:
    exact = sum(map(Fraction, terms), Fraction())
    try:
        expected = float(exact)
    except OverflowError:
        expected = math.inf
    assert value(digits(np.array(terms, np.float64))) == expected


def test_neither_order_nor_grouping_has_an_effect() -> None:
    rng = np.random.default_rng(0)
    terms = np.exp(rng.uniform(-200, 200, 1000))
    whole = digits(terms)
    assert value(whole) == math.fsum(terms)
    for parts in (1, 3, 10):
        pieces = np.array_split(rng.permutation(terms), parts)
        assert np.array_equal(sum(digits(piece) for piece in pieces), whole)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    """Also after other ranks' digits were added."""
    assert value(digits(np.array([1.0, bad])) + digits(np.array([2.0]))) == math.inf


def test_no_digit_overflows() -> None:
    """A million numbers with all bits set, where 2^30 are allowed."""
    assert digits(np.full(1 << 20, np.nextafter(2.0, 0))).max() < 1 << 53
