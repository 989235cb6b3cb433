"""Vectors of any type, in blocks: nothing larger than a block is made, and nothing narrow is computed in."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from minitrain.arrays.blocks import BLOCK_BYTES
from minitrain.arrays.types import Array
from minitrain.optim.adam8bit import adam8bit
from minitrain.optim.adamw import adamw
from minitrain.optim.apply import apply
from minitrain.optim.optimizer import Elementwise, Hyper

BF16, N = np.dtype(ml_dtypes.bfloat16), 2_000_000
HYPER = Hyper(1e-2, 0.1, 3)


def vectors(dtype: type | np.dtype, grad_dtype: type | np.dtype) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    return rng.standard_normal(N).astype(dtype), rng.standard_normal(N).astype(grad_dtype)


@pytest.mark.parametrize(
    "optimizer, dtype, grad_dtype, n_temporaries",
    [
        (adamw((0.9, 0.95), 1e-8), np.float32, np.float32, 1),
        (adamw((0.9, 0.95), 1e-8), BF16, BF16, 2 * 5 + 1),  # loaded and to be stored, each in fp32
        (adam8bit((0.9, 0.95), 1e-8), np.float32, np.float16, 16),
    ],
    ids=["fp32", "bf16", "8 bits"],
)
def test_no_temporary_is_larger_than_a_block(
    optimizer: Elementwise, dtype: type, grad_dtype: type, n_temporaries: int
) -> None:
    w, g = vectors(dtype, grad_dtype)
    state = optimizer.init(w)
    tracemalloc.start()
    apply(optimizer, w, g, state, slice(0, N), HYPER, grad_scale=0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= (n_temporaries + 0.1) * BLOCK_BYTES < 4 * N


def test_narrow_vectors_are_computed_in_fp32_and_rounded_once() -> None:
    (w, g), optimizer = vectors(BF16, BF16), adamw((0.9, 0.95), 1e-8)
    state = optimizer.init(w)
    wide = {name: np.zeros(N, np.float32) for name in ("m", "v")}
    expected, wide_g = w.astype(np.float32), g.astype(np.float32) * np.float32(0.5)
    apply(optimizer, w, g, state, slice(0, N), HYPER, grad_scale=0.5)
    optimizer.update(expected, wide_g, wide, HYPER)
    assert w.dtype == BF16 and np.array_equal(w, expected.astype(BF16))
    for name, values in wide.items():
        assert np.array_equal(state[name], values.astype(BF16))


def test_only_the_elements_asked_for_change() -> None:
    (w, g), optimizer = vectors(np.float32, np.float32), adamw((0.9, 0.95), 1e-8)
    before, state = w.copy(), optimizer.init(w)
    apply(optimizer, w, g, state, slice(10, N - 7), HYPER, grad_scale=1.0)
    changed = np.flatnonzero(w != before)
    assert (changed[0], changed[-1]) == (10, N - 8) and not state["v"][:10].any()
