"""The table of formats against ml_dtypes and NumPy, its examples against exact fractions."""

from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from launch import run_minitrain

from minitrain.study.formats import BF16, FORMATS, NUMBERS, Format, facts

EVERY = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
WHOLE = pytest.mark.parametrize("form", [f for f in FORMATS if not f.unused], ids=lambda form: form.name)


@WHOLE
def test_facts_are_those_of_finfo(form: Format) -> None:
    ours, known = facts(form), ml_dtypes.finfo(form.dtype)
    assert (form.bits, ours.exponent, ours.mantissa) == (known.bits, known.nexp, known.nmant)
    assert ours.bias == 1 - known.minexp
    for value, other in (
        (ours.largest, known.max),
        (ours.normal, known.smallest_normal),
        (ours.subnormal, known.smallest_subnormal),
        (ours.epsilon, known.eps),
    ):
        assert value == float(other)
    with np.errstate(over="ignore"):
        assert ours.infinities == bool(np.isinf(np.array(np.inf).astype(form.dtype)))


def test_facts_of_tf32() -> None:
    """8 bits of exponent as fp32 has, 10 of mantissa as fp16 has."""
    tf32 = next(form for form in FORMATS if form.unused)
    assert tf32.bits == 19
    assert facts(tf32) == (8, 10, 127, (2 - 2**-10) * 2.0**127, 2.0**-126, 2.0**-136, 2**-10, True)


@EVERY
def test_bits_and_numbers_are_one_to_one(form: Format) -> None:
    last = form.pattern(facts(form).largest)
    for pattern in {0, 1, 2, last // 3, last // 2, last - 1, last}:
        assert form.pattern(form.value(pattern)) == pattern
        assert form.value(pattern) < form.value(pattern + 1) or pattern == last


@EVERY
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_stored_is_the_nearest(form: Format, name: str) -> None:
    """No neighbour is nearer to the exact number."""
    exact, stored = NUMBERS[name], form.nearest(float(NUMBERS[name]))
    f = facts(form)
    if not np.isfinite(stored):
        assert exact >= Fraction(f.largest) + Fraction(form.value(1)) / 2
        assert np.isinf(stored) == f.infinities
        return
    pattern = form.pattern(stored)
    error = abs(Fraction(stored) - exact)
    for neighbour in {max(pattern - 1, 0), pattern + 1}:
        assert error <= abs(Fraction(form.value(neighbour)) - exact)
    assert error > 0 or name == "65520", "too coarse a test"


def test_rounding_to_tf32_is_to_nearest_even() -> None:
    tf32 = next(form for form in FORMATS if form.unused)
    ulp = 2.0**-10
    halves = {1 + 0.5 * ulp: 1.0, 1 + 1.5 * ulp: 1 + 2 * ulp, 1 + 0.501 * ulp: 1 + ulp, -1 - 0.5 * ulp: -1.0}
    assert {x: tf32.nearest(x) for x in halves} == halves
    assert tf32.nearest(2.0**128 - 2.0**116) == np.inf
    assert BF16.nearest(1 + 2**-8) == 1.0


def test_the_command_prints_the_numbers(tmp_path: Path) -> None:
    done = run_minitrain("study", "formats", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    rows = {line[:10].strip(): line[10:].split() for line in done.stdout.splitlines()[1:8]}
    assert rows["fp16"] == "16 5 10 15 65504 2^-14 = 6.1e-05 2^-24 = 6.0e-08 2^-10 = 9.8e-04 yes".split()
    assert rows["fp8 E4M3"] == "8 4 3 7 448 2^-6 = 1.6e-02 2^-9 = 2.0e-03 2^-3 = 1.2e-01 no".split()
    assert "is 1 in bf16 and 1.390625 in fp32" in done.stdout
    assert list(tmp_path.iterdir()) == []
