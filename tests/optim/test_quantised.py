"""Vectors of 8 bits, and Adam on them, against a quantisation that looks at every entry of the map."""

import numpy as np
import pytest
from optim.stepping import train

from minitrain.arrays.types import Array
from minitrain.optim.adam8bit import adam8bit
from minitrain.optim.quantised import BLOCK, Quantised


def dynamic_map(signed: bool) -> Array:
    """Entry by entry, as bitsandbytes' `create_dynamic_map` makes it."""
    entries = [0.0, 1.0]
    for decade in range(7):
        n = 2**decade if signed else 2 ** (decade + 1)
        for i in range(n):
            value = (0.1 + 0.9 * (i + 0.5) / n) * 10.0 ** (decade - 6)
            entries += [value, -value] if signed else [value]
    return np.array(sorted(entries), np.float32)


def rounded(values: Array, signed: bool) -> Array:
    """What is left of the values after 8 bits, in blocks of 256."""
    entries = dynamic_map(signed)
    out = np.zeros(values.size, np.float32)
    for start in range(0, values.size, 256):
        block = values[start : start + 256].astype(np.float32)
        largest = np.max(np.abs(block))
        if largest > 0:
            nearest = np.argmin(np.abs(entries[None, :] - (block / largest)[:, None]), axis=1)
            out[start : start + 256] = entries[nearest] * largest
    return out


def some_values(n: int, signed: bool) -> Array:
    """Of many magnitudes; the second block all zero."""
    rng = np.random.default_rng(0)
    values = (10.0 ** rng.uniform(-9, 0, n) * np.where(rng.random(n) < 0.5, 1, -1)).astype(np.float32)
    values[256:512] = 0
    return values if signed else np.abs(values)


def test_the_map() -> None:
    for signed in (True, False):
        entries = dynamic_map(signed)
        assert entries.size == np.unique(entries).size == 256
        assert np.count_nonzero(entries < 0) == (127 if signed else 0)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 1000])
def test_every_value_is_the_nearest_one(n: int, signed: bool) -> None:
    values, vector = some_values(n, signed), Quantised(n, signed)
    vector.save(slice(0, n), values)
    loaded = vector.load(slice(0, n))
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, rounded(values, signed), rtol=3e-7)


@pytest.mark.parametrize("signed", [True, False])
def test_the_error_of_a_value_in_the_highest_decade_is_small(signed: bool) -> None:
    """Half the distance of two entries: 0.9 / 64 / 2 of the largest, or half of that without a sign."""
    values = np.linspace(0.1, 1, 256, dtype=np.float32)
    vector = Quantised(256, signed)
    vector.save(slice(0, 256), values)
    worst = np.max(np.abs(vector.load(slice(0, 256)) - values))
    assert worst == pytest.approx(0.9 / 128 / (1 if signed else 2), rel=0.05)


@pytest.mark.parametrize("signed", [True, False])
def test_what_is_stored_stays(signed: bool) -> None:
    """Rounding twice is rounding once, so a moment does not drift when nothing happens to it. There is no -1
    in the map: the largest value of a block must not be negative.
    """
    vector, values = Quantised(1000, signed), some_values(1000, signed)
    values[::256] = 1.0
    vector.save(slice(0, 1000), values)
    once = vector.load(slice(0, 1000))
    vector.save(slice(0, 1000), once)
    assert np.array_equal(vector.load(slice(0, 1000)), once)


def test_zero_at_the_start_and_blocks_on_their_own() -> None:
    vector, values = Quantised(1000, True), some_values(1000, True)
    assert np.array_equal(vector.load(slice(0, 1000)), np.zeros(1000))
    vector.save(slice(512, 768), values[512:768])
    vector.save(slice(768, 1000), values[768:])
    np.testing.assert_array_equal(vector.load(slice(0, 512)), np.zeros(512))
    np.testing.assert_allclose(vector.load(slice(512, 1000)), rounded(values[512:], True), rtol=3e-7)
    with pytest.raises(AssertionError):
        vector.load(slice(1, 257))


def test_a_block_may_end_in_padding() -> None:
    """Where a tensor ends within a block, what is behind it stays zero."""
    vector, values = Quantised(512, True), some_values(200, True)
    vector.save(slice(0, 200), values)
    expected = np.concatenate([rounded(values, True), np.zeros(312)])
    np.testing.assert_allclose(vector.load(slice(0, 512)), expected, rtol=3e-7)


def test_size() -> None:
    assert BLOCK == 256
    for n, n_blocks in ((0, 0), (1, 1), (256, 1), (257, 2), (1000, 4)):
        vector = Quantised(n, False)
        assert vector.size == n and [x.nbytes for x in vector.arrays] == [n, 4 * n_blocks]
        vector.save(slice(0, n), np.zeros(n, np.float32))


def test_adam8bit_is_adamw_with_rounded_moments() -> None:
    b1, b2, eps, lr, decay, n = 0.9, 0.95, 1e-8, 1e-2, 0.1, 600
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal(n), list(rng.standard_normal((9, n)))
    theta, m, v = start, np.zeros(n), np.zeros(n)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        theta = theta - lr * decay * theta
        theta = theta - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        m, v = rounded(m, True).astype(np.float64), rounded(v, False).astype(np.float64)
    ours = train(adam8bit((b1, b2), eps), {"w": start}, [{"w": g} for g in grads], lr, decay)["w"]
    np.testing.assert_allclose(ours, theta, rtol=1e-5)
