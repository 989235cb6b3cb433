"""Kernels for whole gradients against the reference (optim/vectors.py)."""

import math

import numpy as np
import pytest
from cuda.numbers import TYPES, random

from minitrain.arrays.device import Gpu
from minitrain.optim.cuda import vectors
from minitrain.optim.cuda.vectors import CudaVectorOps
from minitrain.optim.vectors import NOWHERE, VectorOps

by_type = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
SIZES = [(0, 0), (1, 0), (31, 3), (257, 1), (1000, 8), (9999, 0), (9999, 5)]  # and where the vector starts


@pytest.fixture
def ops(gpu: Gpu) -> CudaVectorOps:
    return CudaVectorOps(gpu)


def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a vector that needs more than are started, so that threads have many elements each."""
    monkeypatch.setattr(vectors, "MOST_PARTS", 2)


@by_type
@pytest.mark.parametrize("n, start", SIZES)
def test_squares(ops: CudaVectorOps, n: int, start: int, dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Added to what is there, in fp64: squares of 32 bits are exact there."""
    few_blocks(monkeypatch)
    vector = random("g", (start + n,), dtype)[start:]
    given, total = vector.copy(), np.array([3.0])
    ops.add_squares(vector, total)
    exact = math.fsum(float(g) ** 2 for g in vector.astype(np.float64))
    assert total[0] == pytest.approx(3 + exact, rel=1e-14)
    ops.add_squares(vector, total)
    assert total[0] == pytest.approx(3 + 2 * exact, rel=1e-14)
    np.testing.assert_array_equal(vector, given)


@by_type
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_squares_of_what_is_not_finite_are_not(ops: CudaVectorOps, bad: float, dtype) -> None:
    for place in (0, 500, 999):
        vector, total = random("g", (1000,), dtype), np.zeros(1)
        vector[place] = bad
        ops.add_squares(vector, total)
        assert not math.isfinite(total[0])


def test_the_same_vector_has_the_same_sum(ops: CudaVectorOps) -> None:
    """To the bit, whose parts are more than the threads that add them up. The emulator lets threads run
    forwards and backwards in turn.
    """
    vector = random("g", (300_000,), TYPES["fp32"])
    totals = [np.zeros(1) for _ in range(2)]
    for total in totals:
        ops.add_squares(vector, total)
    assert totals[0].tobytes() == totals[1].tobytes()
    assert totals[0][0] == pytest.approx(np.sum(vector.astype(np.float64) ** 2), rel=1e-14)


@by_type
@pytest.mark.parametrize("shape", [(0, 256), (1, 256), (5, 256), (33, 31), (3, 1)])
def test_squares_of_rows(
    ops: CudaVectorOps, shape: tuple[int, int], dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_blocks(monkeypatch)
    rows = random("rows", shape, dtype)
    sums = ops.squares_of_rows(rows)
    assert sums.dtype == np.float64 and sums.shape == shape[:1]
    np.testing.assert_allclose(sums, VectorOps().squares_of_rows(rows), rtol=1e-14)


@by_type
@pytest.mark.parametrize("n, start", SIZES)
def test_first_not_finite(
    ops: CudaVectorOps, n: int, start: int, dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_blocks(monkeypatch)
    rng, vector = np.random.default_rng(n), random("g", (start + n,), dtype)[start:]
    first = np.array([NOWHERE])
    ops.first_not_finite(vector, first)
    assert first[0] == NOWHERE
    for bad in (np.inf, -np.inf, np.nan) if n else ():
        places = sorted({0, n // 2, n - 1, *rng.integers(0, n, 5).tolist()})
        for i, place in enumerate(places):
            vector[:] = 1
            vector[places[i:]] = bad
            found, expected = np.array([NOWHERE]), np.array([NOWHERE])
            ops.first_not_finite(vector, found)
            VectorOps().first_not_finite(vector.astype(np.float64), expected)
            assert found[0] == expected[0] == place


def test_a_place_found_before_stays_if_it_is_less(ops: CudaVectorOps) -> None:
    vector, first = np.ones(100, np.float32), np.array([40])
    vector[70] = np.nan
    ops.first_not_finite(vector, first)
    assert first[0] == 40
    vector[30] = np.inf
    ops.first_not_finite(vector, first)
    assert first[0] == 30


@by_type
def test_the_largest_numbers_are_finite(ops: CudaVectorOps, dtype) -> None:
    """And the smallest."""
    largest = {
        "fp64": 1.7976931348623157e308,
        "fp32": 3.4028234663852886e38,
        "fp16": 65504.0,
        "bf16": 3.3895313892515355e38,
    }
    name = next(name for name, other in TYPES.items() if other == dtype)
    vector, first = np.array([largest[name], -largest[name], 0.0, 1e-7], dtype), np.array([NOWHERE])
    ops.first_not_finite(vector, first)
    assert first[0] == NOWHERE
