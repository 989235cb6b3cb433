"""The rotation's kernel against the reference (ops/rope.py)."""

import numpy as np
import pytest
from cuda.numbers import TYPES, assert_rounded, random

from minitrain.arrays.device import Gpu
from minitrain.ops import rope as reference
from minitrain.ops.cuda import rope

SIZES = [(1, 1, 1, 2), (2, 3, 1, 6), (2, 7, 3, 10), (3, 5, 2, 64), (1, 2, 9, 128)]


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("B, T, H, K", SIZES)
def test_rotation(gpu: Gpu, B: int, T: int, H: int, K: int, dtype: np.dtype) -> None:
    x = random("x", (B, T, H, K), dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    table = reference.rope_table(T + 2, K, 100.0, wide)  # longer than the sequences
    given, before = x.copy(), table.copy()
    table64 = table.astype(np.complex128)

    assert rope.rope_forward(gpu, x, table) is x
    assert_rounded(x, reference.rope_forward(given.astype(np.float64), table64))
    turned = x.copy()
    assert rope.rope_backward(gpu, x, table) is x
    assert_rounded(x, reference.rope_backward(turned.astype(np.float64), table64))
    np.testing.assert_array_equal(table, before)


def test_no_sequences(gpu: Gpu) -> None:
    x = np.zeros((0, 4, 2, 8), np.float32)
    assert rope.rope_forward(gpu, x, reference.rope_table(4, 8, 100.0, np.float32)) is x
