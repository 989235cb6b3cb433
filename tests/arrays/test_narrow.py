"""Every rounding to 16 and 8 bits, bit for bit, against an oracle that knows the layout of the bits alone."""

from bisect import bisect_right
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

from minitrain.arrays.narrow import compute_type, narrow, scratch, store, wide
from minitrain.arrays.types import Array
from minitrain.ops.fp8 import E5M2, Scaled8


class Form(NamedTuple):
    """A sign, then `exponent` and `mantissa` bits. `last` is the pattern of the largest finite number; what
    would be rounded to a later one becomes `overflow`.
    """

    dtype: np.dtype[np.generic]
    exponent: int
    mantissa: int
    last: int
    overflow: float

    def number(self, pattern: int) -> Fraction:
        """What the bits after the sign stand for, also where the format gives them to infinity or NaN."""
        e, m = divmod(pattern, 2**self.mantissa)
        lead, e = (1, e) if e else (0, 1)
        return (lead + Fraction(m, 2**self.mantissa)) * Fraction(2) ** (e - (2 ** (self.exponent - 1) - 1))

    def numbers(self) -> list[Fraction]:
        """Finite ones without a sign, and one more to round towards, in order: the index is the pattern."""
        return [self.number(pattern) for pattern in range(self.last + 2)]


FORMS = [
    Form(np.dtype(np.float16), 5, 10, 0x7BFF, np.inf),
    Form(np.dtype(ml_dtypes.bfloat16), 8, 7, 0x7F7F, np.inf),
    Form(np.dtype(ml_dtypes.float8_e4m3fn), 4, 3, 0x7E, np.nan),
    Form(np.dtype(ml_dtypes.float8_e5m2), 5, 2, 0x7B, np.inf),
]
EVERY = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.dtype.name)


def nearest_pattern(x: Fraction, numbers: list[Fraction]) -> int:
    """Of a number without a sign: the nearest pattern, of two equally near ones the even one."""
    below = min(bisect_right(numbers, x) - 1, len(numbers) - 2)
    twice = 2 * x - numbers[below] - numbers[below + 1]
    return below + (twice > 0 or (twice == 0 and below % 2 == 1))


def nearest_patterns(x: Array, numbers: list[Fraction]) -> Array:
    """The same for many fp32 at once: in fp64 no sum of three of these numbers is rounded."""
    table, x = np.array([float(n) for n in numbers]), np.minimum(x.astype(np.float64), float(numbers[-1]))
    below = np.minimum(np.searchsorted(table, x, side="right") - 1, len(numbers) - 2)
    twice = (x - table[below]) - (table[below + 1] - x)
    return below + ((twice > 0) | ((twice == 0) & (below % 2 == 1)))


def bits(x: Array) -> Array:
    return x.view(f"u{x.dtype.itemsize}")


def expected(x: Array, form: Form) -> Array:
    """Bits of x rounded, with its sign; NaN may have any bits of a NaN."""
    pattern = nearest_patterns(np.abs(np.nan_to_num(x, nan=0, posinf=3e38, neginf=-3e38)), form.numbers())
    whole = pattern.astype(f"u{form.dtype.itemsize}").view(form.dtype)
    whole[pattern > form.last] = form.overflow
    whole[np.isinf(x)], whole[np.isnan(x)] = form.overflow, np.nan
    return np.copysign(whole.astype(np.float32), x)


def hard_cases(form: Form) -> Array:
    """fp32: every number of the format, the middle between it and the next, and their neighbours in fp32."""
    numbers = form.numbers()
    exact = numbers + [(a + b) / 2 for a, b in pairwise(numbers)]
    exact = [n for n in exact if n < 2**128]  # but for what fp32 lacks: bf16's first number that is too large
    x = np.array([float(n) for n in exact]).astype(np.float32)
    assert [Fraction(float(value)) for value in x] == exact
    beyond = np.array([np.inf, np.nan, np.finfo(np.float32).max], np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf)), beyond])
    return np.concatenate([x, -x])


def random_fp32(n: int) -> Array:
    """All bits by chance: every exponent, infinities and NaN too."""
    return np.random.default_rng(0).integers(0, 2**32, n, np.uint32).view(np.float32)


def assert_rounded(x: Array, form: Form) -> None:
    with np.errstate(all="ignore"):
        ours = narrow(x, form.dtype)
        wanted = expected(x, form).astype(form.dtype)
    assert ours.dtype == form.dtype
    no_number = np.isnan(wanted.astype(np.float32))
    assert np.array_equal(np.isnan(ours.astype(np.float32)), no_number)
    wrong = np.flatnonzero((bits(ours) != bits(wanted)) & ~no_number)
    assert wrong.size == 0, [(x[i], ours[i], wanted[i]) for i in wrong[:5]]


@EVERY
def test_rounding_at_every_number_and_every_middle(form: Form) -> None:
    assert_rounded(hard_cases(form), form)


@EVERY
def test_rounding_of_random_numbers(form: Form) -> None:
    assert_rounded(random_fp32(1_000_000), form)


@EVERY
def test_the_fast_oracle_is_the_exact_one(form: Form) -> None:
    numbers = form.numbers()
    x = np.concatenate([hard_cases(form)[::37], random_fp32(2000)])
    x = np.abs(x[np.isfinite(x)])
    exact = [nearest_pattern(min(Fraction(float(value)), numbers[-1]), numbers) for value in x]
    assert nearest_patterns(x, numbers).tolist() == exact
    assert len(set(exact)) > 60, "too few different results"


@EVERY
def test_what_is_narrow_survives_being_wide(form: Form) -> None:
    """Every pattern, through fp32 and back."""
    patterns = np.arange(2 ** (8 * form.dtype.itemsize), dtype=f"u{form.dtype.itemsize}").view(form.dtype)
    with np.errstate(invalid="ignore"):  # some of them are signalling NaN
        values = wide(patterns)
    assert values.dtype == np.float32
    finite = np.isfinite(values)
    assert finite.sum() == 2 * (form.last + 1)
    assert np.array_equal(bits(narrow(values[finite], form.dtype)), bits(patterns[finite]))
    magnitude = np.array([float(n) for n in form.numbers()[:-1]])
    assert np.array_equal(values[: form.last + 1], magnitude)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_copied_of_what_is_not_narrow(dtype: type) -> None:
    x = np.ones(3, dtype)
    assert compute_type(x.dtype) == dtype
    assert wide(x) is x and narrow(x, x.dtype) is x and scratch(x) is x
    store(x, x)
    assert x.tolist() == [1, 1, 1]


def test_a_narrow_array_is_computed_in_fp32_and_stored_once() -> None:
    x = np.zeros(2, ml_dtypes.bfloat16)
    values = scratch(x)
    assert values.dtype == np.float32 and values.shape == x.shape and not np.shares_memory(values, x)
    values[:] = 1 + 2**-8, 1 + 2**-8 + 2**-16  # half way, and a little more
    store(values, x)
    assert x.astype(np.float64).tolist() == [1, 1 + 2**-7]


@pytest.mark.parametrize("form", FORMS[2:], ids=lambda form: form.dtype.name)
def test_scaled_rounding_is_that_of_the_scaled_number(form: Form) -> None:
    """The scale is the largest power of two with which the largest magnitude fits; none becomes too large."""
    x = (np.random.default_rng(1).standard_normal(4000) * 3e-4).astype(np.float32)
    tensor, largest = Scaled8(form.dtype), float(form.number(form.last))
    tensor.end_step(float(np.abs(x).max()))
    scale = tensor.scale
    assert np.log2(scale) % 1 == 0 and largest / 2 < np.abs(x).max() * scale <= largest
    assert np.array_equal(tensor.rounded(x), expected(x * np.float32(scale), form) / np.float32(scale))
    louder = tensor.rounded(1e6 * x)  # than the last steps were: it saturates
    assert np.abs(louder).max() == largest / scale
    assert tensor.amax == np.abs(1e6 * x).max()


@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-38])
def test_scaling_of_next_to_nothing_makes_no_nan(tiny: float) -> None:
    x, tensor = np.array([0, tiny, -tiny], np.float32), Scaled8(E5M2)
    tensor.end_step(float(x.max()))
    assert np.all(np.abs(tensor.rounded(x) - x) <= np.abs(x))
