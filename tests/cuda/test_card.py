"""What runs kernels on a real GPU for tests, on one that is none; and products of views there."""

import numpy as np
import pytest
from cuda.card import Card
from cuda.devices import array_gpu
from cuda.emulator import Emulator, needs_emulator
from cuda.numbers import TYPES, assert_rounded, random
from cuda.strict import StrictGpu

from minitrain.arrays.device import on_host

pytestmark = needs_emulator
SOURCE, FP32 = "ops/cuda/mlp.cu", {"T": np.dtype(np.float32)}


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_a_kernel_finds_its_arrays_and_their_alignment(offset: int) -> None:
    n = 1000
    results = []
    for gpu in (Emulator(), Card(StrictGpu())):
        memory = random("gate", (2 * n + 64,), FP32["T"])
        gate, up = memory[offset : offset + n], memory[n + offset : 2 * n + offset]
        h = np.zeros(n + 8, np.float32)
        gpu.launch(SOURCE, "swiglu_forward", FP32, 2, 256, gate, up, h[4:-4][:n], n)
        assert gpu.launches == 1
        results.append(h)
    assert np.array_equal(*results) and results[0].any()


def test_who_writes_outside_is_found_out() -> None:
    x = np.ones(100, np.float32)
    with pytest.raises(AssertionError, match="swiglu_forward wrote outside of its arrays"):
        Card(StrictGpu()).launch(SOURCE, "swiglu_forward", FP32, 1, 256, x, x, np.zeros(90, np.float32), 100)


@pytest.mark.parametrize("types", [("bf16", "fp32"), ("fp16", "fp16"), ("fp64", "fp64")])
def test_products_of_views(types: tuple[str, str]) -> None:
    """Rows apart, columns of a larger array, every transposition, and what was there before."""
    gpu, (dtype, out_dtype) = array_gpu(), (TYPES[name] for name in types)
    M, N, K = 24, 40, 56
    for ta in (False, True):
        for tb in (False, True):
            whole = random("ab", (2, 64, 96), dtype)
            there = gpu.to_device(whole)
            a = (slice(0, K), slice(8, 8 + M)) if ta else (slice(0, M), slice(8, 8 + K))
            b = (slice(0, N), slice(16, 16 + K)) if tb else (slice(0, K), slice(16, 16 + N))
            before = random("out", (M, 2 * N), out_dtype)
            out = gpu.to_device(before)
            gpu.gemm.product(there[0][a], there[1][b], out[:, N:], transpose_a=ta, transpose_b=tb, add=True)
            left, right = (whole[i][cut].astype(np.float64) for i, cut in ((0, a), (1, b)))
            exact = (left.T if ta else left) @ (right.T if tb else right) + before[:, N:].astype(np.float64)
            result = on_host(out)
            assert np.array_equal(result[:, :N], before[:, :N])
            assert_rounded(np.ascontiguousarray(result[:, N:]), exact, terms=K)
