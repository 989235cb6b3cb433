"""The embedding's kernels against the reference (ops/embedding.py)."""

import numpy as np
import pytest
from cuda.numbers import TYPES, assert_rounded, random, types_with_gradients

from minitrain.arrays.device import Gpu
from minitrain.ops import embedding as reference
from minitrain.ops.cuda import embedding
from minitrain.ops.cuda.embedding import CHUNK, TILE

SIZES = [(1, 1, 1), (5, 3, 31), (33, 300, 33), (2 * TILE + 3, 70, 16), (CHUNK, 9, 40)]  # N, V, D


def ids_around(N: int, V: int, first_id: int) -> np.ndarray:
    """Some below and some above those that the rank holds."""
    return np.random.default_rng(N).integers(first_id - V // 2 - 1, first_id + V + V // 2 + 1, N)


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("N, V, D", SIZES)
def test_forward(gpu: Gpu, N: int, V: int, D: int, dtype: np.dtype) -> None:
    w = random("w", (V, D), dtype)
    ids, given = ids_around(N, V, 100), w.copy()
    y = embedding.embedding_forward(gpu, ids, w, 100)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, reference.embedding_forward(ids, w, 100))
    np.testing.assert_array_equal(w, given)


@pytest.mark.parametrize("dtype, grad_dtype", types_with_gradients())
@pytest.mark.parametrize("N, V, D", SIZES)
def test_backward(gpu: Gpu, N: int, V: int, D: int, dtype, grad_dtype) -> None:
    dy, dw = random("dy", (N, D), dtype), random("dw", (V, D), grad_dtype)
    ids, given = ids_around(N, V, 100), dy.copy()
    dw64, before = dw.astype(np.float64), dw.copy()
    reference.embedding_backward(dy.astype(np.float64), ids, dw64, 100)
    embedding.embedding_backward(gpu, dy, ids, dw, 100)
    assert_rounded(dw, dw64, terms=N)
    untouched = np.setdiff1d(np.arange(V), ids - 100)
    np.testing.assert_array_equal(dw[untouched], before[untouched])
    np.testing.assert_array_equal(dy, given)


NAMES = {
    "one id": lambda N, V: np.full(N, V - 1),
    "no id that is held": lambda N, V: np.full(N, V),
    "few ids, one of them of most tokens": lambda N, V: np.random.default_rng(0).zipf(1.5, N) % V,
    "positions": lambda N, V: np.arange(N) % V,
    "runs that end with chunks": lambda N, V: np.arange(N) // CHUNK % V,
    "runs of some chunks and a bit": lambda N, V: np.arange(N) // (3 * CHUNK + 1),
    "all different": lambda N, V: np.random.default_rng(1).permutation(V)[:N],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("N, V, D", [(1500, 1600, 36), (21 * CHUNK, 70000, 1)])
def test_every_token_counts_once(gpu: Gpu, name: str, N: int, V: int, D: int) -> None:
    """In whole numbers, whose sums are exact, so that order has no part in it."""
    ids = np.asarray(NAMES[name](N, V), np.int64)
    dy = np.random.default_rng(2).integers(-100, 100, (N, D)).astype(np.float32)
    dw, exact = np.ones((V, D), np.float32), np.ones((V, D), np.float32)
    reference.embedding_backward(dy, ids, exact, 0)
    embedding.embedding_backward(gpu, dy, ids, dw, 0)
    np.testing.assert_array_equal(dw, exact)


def test_sorted_tokens(gpu: Gpu) -> None:
    """By row, and of one row in their order; three digits."""
    N, V = 3 * TILE + 7, 70000
    ids = np.random.default_rng(0).choice([0, 1, 255, 256, 257, 65536, 69999, 70000, -1], N)
    tokens = embedding._sorted_tokens(gpu, ids, V, 0, {"T": np.dtype(np.float32), "G": np.dtype(np.float32)})
    rows = np.where((ids >= 0) & (ids < V), ids, V)
    np.testing.assert_array_equal(tokens >> 32, np.sort(rows))
    np.testing.assert_array_equal(tokens & 0xFFFFFFFF, np.argsort(rows, kind="stable"))


def test_same_bits_every_time(gpu: Gpu) -> None:
    """Whatever the order in which threads come: the emulator reverses it at every second launch."""
    N, V, D = 1000, 3, 33
    dy, ids = random("dy", (N, D), TYPES["fp32"]), np.random.default_rng(0).integers(0, V, N)
    dw = [np.zeros((V, D), np.float32) for _ in range(2)]
    for i in range(2):
        embedding.embedding_backward(gpu, dy, ids, dw[i], 0)
        gpu.launches += 1
    np.testing.assert_array_equal(*dw)


def test_no_tokens(gpu: Gpu) -> None:
    w, ids = np.ones((3, 4), np.float32), np.zeros(0, np.int64)
    y = embedding.embedding_forward(gpu, ids, w, 0)
    assert y.shape == (0, 4)
    embedding.embedding_backward(gpu, y, ids, w, 0)
    np.testing.assert_array_equal(w, 1)
