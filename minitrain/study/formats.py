"""Floating-point formats of 64 to 8 bits, read off their bit patterns, and what they make of a few numbers.

A number is a sign, E bits of exponent e and M bits of mantissa m, from the highest bit to the lowest:

    normal      (-1)^sign  2^(e - bias)  (1 + m / 2^M)      e > 0
    subnormal   (-1)^sign  2^(1 - bias)  (m / 2^M)          e = 0

bias = 2^(E-1) - 1, so that 1 lies in the middle. The largest e is kept for infinities and NaN (IEEE 754), but
for E4M3, which has no infinities and only m = all ones for NaN (Micikevicius et al. 2022). Without a sign,
patterns read as whole numbers are in the order of their values: the next larger float is the next pattern.
"""

from fractions import Fraction
from typing import NamedTuple

import ml_dtypes
import numpy as np

from minitrain.observe.console import show
from minitrain.tables import table


class Format(NamedTuple):
    """A type of `dtype`, the last `unused` bits of which are zero."""

    name: str
    dtype: np.dtype[np.generic]
    unused: int = 0

    @property
    def bits(self) -> int:
        return self.dtype.itemsize * 8 - self.unused

    def value(self, pattern: int) -> float:
        """The number that these bits stand for."""
        whole = np.array(pattern << self.unused, self._unsigned)
        return float(whole.view(self.dtype))

    def pattern(self, value: float) -> int:
        """The bits of a number that the format holds."""
        return int(np.array(value, self.dtype).view(self._unsigned)) >> self.unused

    def nearest(self, value: float) -> float:
        """The number rounded to the format: to the nearest, of two equally near ones to the one whose last
        bit is 0.
        """
        with np.errstate(over="ignore"):  # too large becomes infinite
            stored = np.array(value).astype(self.dtype)
        if self.unused:  # add a half less one, or a half where the last bit is 1, and cut off
            bits, last = stored.view(self._unsigned), 1 << self.unused
            bits += last // 2 - 1 + ((bits >> self.unused) & 1)
            bits &= ~np.array(last - 1, bits.dtype)
        return float(stored)

    @property
    def _unsigned(self) -> str:
        return f"u{self.dtype.itemsize}"


FP32 = Format("fp32", np.dtype(np.float32))
BF16 = Format("bf16", np.dtype(ml_dtypes.bfloat16))
FORMATS = (
    Format("fp64", np.dtype(np.float64)),
    FP32,
    Format("tf32", np.dtype(np.float32), unused=13),  # what tensor cores read of an fp32
    Format("fp16", np.dtype(np.float16)),
    BF16,
    Format("fp8 E4M3", np.dtype(ml_dtypes.float8_e4m3fn)),
    Format("fp8 E5M2", np.dtype(ml_dtypes.float8_e5m2)),
)


NUMBERS = {name: Fraction(name) for name in ("0.1", "1/3", "65520", "1e-8")}


class Facts(NamedTuple):
    """What a format can hold."""

    exponent: int  # bits
    mantissa: int  # bits
    bias: int
    largest: float  # finite
    normal: float  # the smallest
    subnormal: float  # the smallest
    epsilon: float  # from 1 to the next larger number
    infinities: bool


def facts(form: Format) -> Facts:
    """Read off the bits."""
    one = form.pattern(1.0)
    epsilon = form.value(one + 1) - 1
    mantissa = int(-np.log2(epsilon))
    exponent = form.bits - 1 - mantissa
    top = ((1 << exponent) - 1) << mantissa  # the largest exponent, and a mantissa of zeros
    infinities = bool(np.isinf(form.value(top)))
    last = top - 1 if infinities else top + (1 << mantissa) - 2
    return Facts(
        exponent=exponent,
        mantissa=mantissa,
        bias=one >> mantissa,
        largest=form.value(last),
        normal=form.value(1 << mantissa),
        subnormal=form.value(1),
        epsilon=epsilon,
        infinities=infinities,
    )


def study_formats() -> None:
    """Prints the table of formats, a few numbers in each, and what half a last digit means for training."""
    show("\n\n".join([_what_they_hold(), _what_is_stored(), _half_a_last_digit()]))


def _what_they_hold() -> str:
    head = "format,bits,exponent,mantissa,bias,largest,smallest normal,and subnormal,epsilon,infinities"
    rows = [head.split(",")]
    for form in FORMATS:
        f = facts(form)
        counts = [str(n) for n in (form.bits, f.exponent, f.mantissa, f.bias)]
        powers = [f"{_power(x)} = {x:.1e}" for x in (f.normal, f.subnormal, f.epsilon)]
        rows.append([form.name, *counts, f"{f.largest:.8g}", *powers, "yes" if f.infinities else "no"])
    return table(rows)


def _power(x: float) -> str:
    return f"2^{int(np.log2(x))}"


def _what_is_stored() -> str:
    rows = [["what is stored of", *(cell for name in NUMBERS for cell in (name, "error"))]]
    for form in FORMATS:
        cells = []
        for exact in NUMBERS.values():
            stored = form.nearest(float(exact))
            cells += [f"{stored:.9g}", _error(stored, exact)]
        rows.append([form.name, *cells])
    return table(rows)


def _error(stored: float, exact: Fraction) -> str:
    """Relative."""
    if not np.isfinite(stored):
        return "overflow"
    error = abs(Fraction(stored) - exact) / exact
    return "0" if error == 0 else "100%" if error == 1 else f"{float(error):.0e}"


def _half_a_last_digit() -> str:
    """What becomes of a weight to which little is added."""
    sums = {form.name: 1.0 for form in (BF16, FP32)}
    for form in (BF16, FP32):
        for _ in range(100):
            sums[form.name] = form.nearest(sums[form.name] + 2**-8)
    above, half, more = BF16.value(BF16.pattern(1.0) + 1), BF16.nearest(1 + 2**-8), BF16.nearest(1 + 2**-7.9)
    return (
        f"After 1 the next number of bf16 is {above:.8g}. Half way to it, 1 + 2^-8 is stored as {half:g},\n"
        f"and 1 + 2^-7.9 as {more:.8g}. A weight of 1 to which 2^-8 is added a hundred times\n"
        f"is {sums['bf16']:g} in bf16 and {sums['fp32']:.8g} in fp32."
    )
