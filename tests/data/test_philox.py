import math

import ml_dtypes
import numpy as np
import pytest

from minitrain.data import philox
from minitrain.data.philox import normal, uniform

SHAPES = [(1,), (7,), (1000,), (5, 3), (17, 9), (33, 65), (4, 3, 5)]


def whole(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in shape)


def test_known_answers() -> None:
    """Initial weights must stay the same for ever; 1 ulp is left to the machine's log and cos."""
    np.testing.assert_allclose(
        normal(0, "embedding", (5,), (slice(0, 5),), 1.0, np.float64), NORMALS, rtol=1e-15
    )
    assert uniform(7, "sample", 3, 3).tolist() == UNIFORMS


NORMALS = [
    1.7300259874671016,
    -0.06521777186053342,
    0.05641772049972505,
    0.5747127294074039,
    0.16355503897838242,
]
UNIFORMS = [0.7899860175509906, 0.29110742569415893, 0.12629099043139347]


@pytest.mark.parametrize("chunk", [1, 4, 10, 64, 1 << 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_box_is_the_slice_of_the_whole(
    shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = normal(3, "w", shape, whole(shape), 0.02, np.float64)
    assert full.shape == shape and full.flags.c_contiguous
    monkeypatch.setattr(philox, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    for _ in range(20):
        cuts = [sorted(rng.integers(0, n + 1, 2).tolist()) for n in shape]
        box = tuple(slice(a, b) for a, b in cuts)
        part = normal(3, "w", shape, box, 0.02, np.float64)
        assert part.shape == full[box].shape and part.flags.c_contiguous
        np.testing.assert_allclose(part, full[box], rtol=1e-14)


def test_boxes_of_several_blocks_are_equal_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(philox, "CHUNK", 1000)
    shape = (301, 37)
    full = normal(0, "w", shape, whole(shape), 1.0, np.float64)
    for tp in (2, 3, 8):
        for r in range(tp):
            rows, columns = (slice(n * r // tp, n * (r + 1) // tp) for n in shape)
            assert np.array_equal(normal(0, "w", shape, (rows, slice(0, 37)), 1.0, np.float64), full[rows])
            assert np.array_equal(
                normal(0, "w", shape, (slice(0, 301), columns), 1.0, np.float64), full[:, columns]
            )


def test_value_depends_on_seed_name_and_index_only() -> None:
    flat = normal(1, "w", (60,), (slice(0, 60),), 1.0, np.float64)
    np.testing.assert_allclose(
        normal(1, "w", (4, 15), whole((4, 15)), 1.0, np.float64).ravel(), flat, rtol=1e-14
    )
    for seed, name in ((2, "w"), (1, "v"), (11, "w"), (1, "1:w")):
        assert not np.isclose(normal(seed, name, (60,), (slice(0, 60),), 1.0, np.float64), flat).any()


def test_types() -> None:
    exact = normal(1, "w", (40,), (slice(0, 40),), 0.02, np.float64)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        part = normal(1, "w", (40,), (slice(0, 40),), 0.02, dtype)
        assert part.dtype == dtype and np.array_equal(part, exact.astype(dtype))


def test_moments() -> None:
    n = 1 << 20
    x = normal(5, "moments", (n,), (slice(0, n),), 1.0, np.float64)
    expected = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}  # power: mean and variance of x^power
    for power, (mean, variance) in expected.items():
        assert abs(np.mean(x**power) - mean) < 5 * math.sqrt(variance / n)
    for lag in (1, 2, 3, 4, 8):
        assert abs(np.mean(x[lag:] * x[:-lag])) < 5 / math.sqrt(n)
    for bound in (0.1, 0.5, 1, 2, 3, 4):
        inside = math.erf(bound / math.sqrt(2))
        assert abs(np.mean(np.abs(x) < bound) - inside) < 5 * math.sqrt(inside * (1 - inside) / n)
    assert 4.4 < np.abs(x).max() < 6.8


def test_uniform() -> None:
    n = 1 << 20
    u = uniform(0, "u", 0, n)
    assert 0 < u.min() and u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * n)
    counts = np.histogram(u, 64, (0, 1))[0]
    assert abs(((counts - n / 64) ** 2 / (n / 64)).sum() - 63) < 6 * math.sqrt(2 * 63)
    for start in (1, 2, 3, 4, 5, 1001):
        assert np.array_equal(uniform(0, "u", start, 50), u[start : start + 50])


def test_uniform_is_open_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = np.array([0, 2**64 - 1], np.uint64)
    monkeypatch.setattr(philox, "_words", lambda *args: extremes)
    low, high = uniform(0, "u", 0, 2)
    assert 0 < low and high < 1
    assert np.isfinite(normal(0, "w", (2,), (slice(0, 2),), 1.0, np.float64)).all()
