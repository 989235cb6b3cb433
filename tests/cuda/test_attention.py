"""Attention kernels against the reference (ops/attention.py)."""

import numpy as np
import pytest
from cuda.compiler import combinations
from cuda.emulator import Emulator, needs_emulator
from cuda.numbers import EPSILON, TYPES, random

from minitrain.arrays.kernels import CUDA_NAMES, PACKAGE
from minitrain.errors import ConfigError
from minitrain.ops import attention as reference
from minitrain.ops.cuda import attention

pytestmark = needs_emulator
CASES = [  # sequences, positions, query heads, key/value heads, head width
    *[(1, T, 4, 2, 32) for T in (1, 2, 15, 64, 65, 100)],
    *[(2, 33, H, G, 32) for H, G in ((1, 1), (6, 2), (8, 1))],
    *[(1, 130, 2, 1, K) for K in (32, 64, 128)],
    *[(1, 16, 8, 1, K) for K in (64, 128)],
]


@pytest.fixture(scope="module")
def gpu() -> Emulator:
    return Emulator()


def operands(B: int, T: int, H: int, G: int, K: int, dtype: np.dtype) -> list[np.ndarray]:
    heads_of = {"q": H, "k": G, "v": G, "do": H}
    return [random(name, (B, T, heads, K), dtype) for name, heads in heads_of.items()]


@pytest.fixture(autouse=True)
def poison(monkeypatch) -> None:
    """What a kernel does not write is NaN."""
    monkeypatch.setattr(np, "empty_like", lambda x, **kwargs: np.full_like(x, np.nan, **kwargs))


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("B, T, H, G, K", CASES)
def test_attention(gpu: Emulator, B: int, T: int, H: int, G: int, K: int, dtype) -> None:
    if not attention.supports(K, dtype):
        pytest.skip("there is no such kernel")
    q, k, v, do = inputs = operands(B, T, H, G, K, dtype)
    before = [x.copy() for x in inputs]
    o, saved = attention.attention_forward(gpu, q, k, v)
    results = [o, *attention.attention_backward(gpu, do, saved)]

    q64, k64, v64, do64 = (x.astype(np.float64) for x in inputs)
    o64, saved64 = reference.attention_forward(q64, k64, v64)
    exact = [o64, *reference.attention_backward(do64, saved64)]
    rounding = EPSILON[dtype.name][0] / 2 * (1 if dtype.itemsize == 2 else 16)  # or some operations as coarse
    terms = terms_of(q64, k64, v64, do64, o64)
    for name, value, right, sizes in zip(("o", "dq", "dk", "dv"), results, exact, terms, strict=True):
        allowed = rounding * (np.abs(right) + sizes)
        off = np.abs(value.astype(np.float64) - right)
        assert (off <= allowed).all(), (
            f"{name} is off by up to {(off / allowed).max():.3g} times what is allowed"
        )
        assert value.dtype == dtype and value.flags.c_contiguous
    for x, y in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(x, y)


def terms_of(q, k, v, do, o) -> list[np.ndarray]:
    """Of every element of o, dq, dk and dv: the summed sizes of the terms, rounded to the type, that it is a
    sum of. They are p v, ds k, ds q and p do; ds = p (do v - o do), with o rounded too.
    """
    (B, T, H, K), G = q.shape, k.shape[2]
    k, v = (np.repeat(x, H // G, axis=2) for x in (k, v))
    scale = 1 / np.sqrt(K)
    s = np.einsum("bthk,buhk->bhtu", q, k) * scale + np.triu(np.full((T, T), -np.inf), 1)
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    q, k, v, do, o = (np.abs(x) for x in (q, k, v, do, o))
    delta = np.einsum("bthk,bthk->bht", do, o)[..., None]
    ds = p * (np.einsum("bthk,buhk->bhtu", do, v) + 2 * delta)
    shared = [
        np.einsum("bhtu,bthk->buhk", x, y).reshape(B, T, G, H // G, K).sum(3)
        for x, y in ((ds, q * scale), (p, do))
    ]
    return [np.einsum("bhtu,buhk->bthk", p, v), np.einsum("bhtu,buhk->bthk", ds, k * scale), *shared]


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_same_bits_whatever_the_order_of_threads(gpu: Emulator, dtype) -> None:
    """Every second launch runs threads, and warps, in reverse; each kernel here runs in both ways."""
    q, k, v, do = operands(1, 70, 4, 2, 32, dtype)
    (o, saved), (again, _) = (attention.attention_forward(gpu, q, k, v) for _ in range(2))
    np.testing.assert_array_equal(o, again)
    for x, y in zip(*(attention.attention_backward(gpu, do, saved) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_large_scores_neither_overflow_nor_leak_from_the_future(gpu: Emulator) -> None:
    q, k, v, do = operands(1, 70, 2, 2, 32, TYPES["fp32"])
    q *= 100
    expected, _ = attention.attention_forward(gpu, q, k, v)
    k[:, 40:] *= 1e4
    v[:, 40:] = 1e30
    o, saved = attention.attention_forward(gpu, q, k, v)
    np.testing.assert_array_equal(o[:, :40], expected[:, :40])
    v[:, 40:] = 1
    o, saved = attention.attention_forward(gpu, q, k, v)
    assert all(np.isfinite(x).all() for x in (o, *attention.attention_backward(gpu, do, saved)))


@pytest.mark.parametrize("B, T", [(0, 5), (2, 0)])
def test_nothing_to_do(gpu: Emulator, B: int, T: int) -> None:
    q, k, v, do = operands(B, T, 4, 2, 32, TYPES["fp32"])
    launches = gpu.launches
    o, saved = attention.attention_forward(gpu, q, k, v)
    shapes = [x.shape for x in (o, *attention.attention_backward(gpu, do, saved))]
    assert shapes == [x.shape for x in (q, q, k, v)] and gpu.launches == launches


def test_other_widths_are_refused() -> None:
    attention.check(128, TYPES["bf16"])
    for width, name, others in ((48, "bf16", "32, 64, 128"), (128, "fp32", "32, 64"), (64, "fp64", "32")):
        with pytest.raises(ConfigError) as refused:
            attention.check(width, TYPES[name])
        assert str(refused.value) == (
            f"flash attention has no kernel for heads of width {width} in {TYPES[name].name}; "
            "attention, model.heads; "
            f"leave attention out, or make model.width / model.heads one of {others}"
        )


def test_supported_is_what_is_compiled() -> None:
    compiled = {tuple(types.values()) for types in combinations((PACKAGE / attention.SOURCE).read_text())}
    assert compiled == {
        (CUDA_NAMES[dtype.name], str(K))
        for dtype in TYPES.values()
        for K in range(1, 300)
        if attention.supports(K, dtype)
    }
