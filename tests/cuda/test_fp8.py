"""Rounding to 8 bits on a GPU beside the reference (ops/fp8.py), step by step."""

import ml_dtypes
import numpy as np
import pytest
from cuda.emulator import Emulator, needs_emulator
from cuda.numbers import TYPES, random

from minitrain.arrays.device import on_host
from minitrain.arrays.threads import THREADS
from minitrain.ops.cuda import fp8
from minitrain.ops.cuda.fp8 import FORMATS, DeviceScales
from minitrain.ops.fp8 import E4M3, E5M2, HISTORY, LARGEST, MOST_DOUBLINGS, HostScales

pytestmark = needs_emulator
BF16 = TYPES["bf16"]
FACTORS = pytest.mark.parametrize("factor", ["x", "w", "dy"])


@pytest.fixture(scope="module")
def gpu() -> Emulator:
    return Emulator()


def bits(x: np.ndarray) -> np.ndarray:
    """Of the values in fp32: -0 is not 0 here."""
    return x.astype(np.float32).view(np.uint32)


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
def test_formats(dtype: np.dtype) -> None:
    digits, lowest, top = FORMATS[dtype]
    info = ml_dtypes.finfo(dtype)
    assert (digits, lowest, 1.75 * 2.0**top) == (info.nmant, info.minexp, LARGEST[dtype])


@FACTORS
def test_every_number_of_16_bits_is_rounded_as_by_the_library(gpu: Emulator, factor: str) -> None:
    """With a scale of 1; among them all that lie between two of 8 bits. A NaN stays one."""
    scales = DeviceScales(gpu, 1)
    tensor = getattr(scales.maps[0], factor)
    scales.scale_n[:] = 1
    tensor.has_scale = True
    x = np.arange(2**16, dtype=np.uint16).view(BF16)
    wide, largest = x.astype(np.float32), LARGEST[tensor.dtype]
    with np.errstate(invalid="ignore"):
        expected = np.clip(wide, -largest, largest).astype(tensor.dtype).astype(np.float32)
    nan = np.isnan(expected)
    found = tensor.rounded(x)
    assert found.dtype == BF16 and np.isnan(found[nan].astype(np.float32)).all() and nan.sum() == 254
    np.testing.assert_array_equal(bits(found)[~nan], bits(expected)[~nan])


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
def test_what_is_scaled_back_is_exact_in_16_bits(dtype: np.dtype) -> None:
    """For every number of 8 bits, and every scale that leaves it finite. And a GPU, which takes for zero what
    is below 2^-126, does not see the smallest of them as zero.
    """
    x8 = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64)
    x8 = x8[np.isfinite(x8)]
    for k in range(FORMATS[dtype].top - 127, MOST_DOUBLINGS + 1):
        exact = x8 / 2.0**k
        np.testing.assert_array_equal(exact.astype(BF16).astype(np.float64), exact)
        assert np.abs(exact[exact != 0]).min() >= 2.0**-126


@FACTORS
def test_what_a_gpu_takes_for_zero_is_rounded_to_zero(gpu: Emulator, factor: str) -> None:
    """With the largest scale too: so it makes no difference that this CPU does not take it for zero."""
    scales = DeviceScales(gpu, 1)
    mine, other = (getattr(s.maps[0], factor) for s in (scales, HostScales(1)))
    x = np.array([2.0**-126 * (1 - 2.0**-7), 2.0**-133], BF16)
    for tensor in (mine, other):
        tensor.restore(np.full(HISTORY, 2.0**-126, np.float32))
        np.testing.assert_array_equal(tensor.rounded(x).astype(np.float32), 0)
    assert scales.scale_n[["x", "w", "dy"].index(factor)] == other.scale == 2.0**MOST_DOUBLINGS


ARRAYS = {
    "usual": lambda i: random(f"usual {i}", (37, 5), BF16),
    "small": lambda i: random(f"small {i}", (3, 3), BF16) * BF16.type(1e-20),
    "large": lambda i: random(f"large {i}", (1, 41), BF16) * BF16.type(1e30),
    "zeros": lambda i: np.zeros((4, 4), BF16),
    "minus zeros and ones": lambda i: np.array([-0.0, 1, -1, 1e-6, -1e-6], BF16),
    "the largest": lambda i: np.array([3.3895e38, -1, 1e-30], BF16),
    "a fraction of 1.75": lambda i: np.array([1.75, 0.1], BF16),
    "one more": lambda i: np.array([-1.7578125, 0.1], BF16),
    "infinite": lambda i: np.array([np.inf, -np.inf, 2, -3], BF16),
    "empty": lambda i: np.zeros((0, 7), BF16),
}
STEPS = [
    ["usual", "usual"],
    ["small"],
    ["large", "usual", "small"],
    ["usual"],
    ["minus zeros and ones", "a fraction of 1.75"],
    ["zeros"],
    ["infinite", "usual"],
    ["one more"],
    ["empty"],
    ["the largest", "usual"],
    ["usual"],
    *[["small", "zeros"]] * (HISTORY + 1),  # until all before is forgotten
    ["a fraction of 1.75"],
    ["one more"],
    ["usual", "infinite"],
]


@FACTORS
@pytest.mark.parametrize("first", range(len(STEPS)))
def test_steps_beside_the_reference(gpu: Emulator, factor: str, first: int) -> None:
    """Results, scales, maxima and histories have the same bits. The first step fits each array by itself."""
    scales, host = DeviceScales(gpu, 2), HostScales(1).maps[0]
    mine, other = getattr(scales.maps[1], factor), getattr(host, factor)
    index = 3 + ["x", "w", "dy"].index(factor)
    for number, names in enumerate(STEPS[first : first + HISTORY + 6] if first else STEPS):
        for i, name in enumerate(names):
            x = ARRAYS[name](number * 10 + i)
            given = x.copy()
            with np.errstate(invalid="ignore", over="ignore"):
                np.testing.assert_array_equal(bits(mine.rounded(x)), bits(other.rounded(x)), err_msg=name)
            np.testing.assert_array_equal(bits(x), bits(given))
        assert scales.amax_n[index] == other.amax
        scales.end_step(scales.seen())
        other.end_step(other.amax)
        np.testing.assert_array_equal(bits(on_host(mine.history)), bits(other.history))
        assert scales.scale_n[index] == other.scale
    others = np.delete(scales.history_nH, index, axis=0)
    np.testing.assert_array_equal(others, 0)


@FACTORS
def test_nan(gpu: Emulator, factor: str) -> None:
    """Stays one, also where the scale is that of the array; its step says nothing to those that follow. The
    maximum that is sent to other ranks can be compared, and is above all others.
    """
    scales, host = DeviceScales(gpu, 1), HostScales(1)
    mine, other = getattr(scales.maps[0], factor), getattr(host.maps[0], factor)
    x = np.array([np.nan, 1.0625, -np.nan, 3], BF16)
    for _ in range(2):
        found, expected = (tensor.rounded(x).astype(np.float32) for tensor in (mine, other))
        np.testing.assert_array_equal(np.isnan(found), [True, False, True, False])
        np.testing.assert_array_equal(found, expected)
        for tensor in (mine, other):
            tensor.rounded(np.array([1e30], BF16))
        assert scales.seen().max() == np.inf
        np.testing.assert_array_equal(scales.seen(), host.seen())
        for each in (scales, host):
            each.end_step(each.seen())
            np.testing.assert_array_equal(each.seen(), 0)
        np.testing.assert_array_equal(mine.history, other.history)


@FACTORS
@pytest.mark.parametrize("exponent", [-149, -130, -127, -126, -92, -91, -85, -84])
def test_small_maxima(gpu: Emulator, factor: str, exponent: int) -> None:
    """Histories and scales are the reference's: also for maxima that a GPU takes for zero, and on both sides
    of those for which a scale is the largest.
    """
    scales, host = DeviceScales(gpu, 1), HostScales(1).maps[0]
    other, index = getattr(host, factor), ["x", "w", "dy"].index(factor)
    scales.amax_n[index] = 2.0**exponent
    scales.end_step(scales.seen())
    other.end_step(2.0**exponent)
    np.testing.assert_array_equal(bits(scales.history_nH[index]), bits(other.history))
    assert scales.scale_n[index] == other.scale


def test_maxima_of_many_blocks(gpu: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """More elements than threads; the largest is once here, once there."""
    monkeypatch.setattr(fp8, "MOST_BLOCKS", 3)
    n = 3 * THREADS * 8 + 1000
    x = np.ones(n, BF16)
    for at in (0, n // 2, n - 1):
        scales, host = DeviceScales(gpu, 1), HostScales(1).maps[0]
        x[at] = -7
        found = scales.maps[0].dy.rounded(x)
        assert scales.amax_n.tolist() == [0, 0, 7]
        np.testing.assert_array_equal(found, host.dy.rounded(x).astype(BF16))
        x[at] = 1


@FACTORS
def test_restore(gpu: Emulator, factor: str) -> None:
    """What is saved is the history; the scale follows from it, and no array sets its own."""
    history = np.linspace(3, 0, HISTORY, dtype=np.float32)
    scales, host = DeviceScales(gpu, 2), HostScales(1).maps[0]
    mine, other = getattr(scales.maps[1], factor), getattr(host, factor)
    mine.restore(history)
    other.restore(history)
    x = random("x", (50,), BF16) * BF16.type(4)
    np.testing.assert_array_equal(bits(mine.rounded(x)), bits(other.rounded(x)))
    np.testing.assert_array_equal(np.stack([t.history for t in scales.maps[0]]), 0)


def test_what_is_looked_at_between_steps_is_forgotten(gpu: Emulator) -> None:
    scales = DeviceScales(gpu, 1)
    scales.maps[0].x.rounded(np.array([5.0], BF16))
    scales.forget()
    assert not scales.amax_n.any()
