"""Numbers for tests of kernels, and how far from a value its rounding to a type may be."""

import hashlib

import ml_dtypes
import numpy as np

TYPES = {
    "fp64": np.dtype(np.float64),
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
EPSILON = {  # of the type, and of that in which it is computed
    "float64": (2.0**-52, 2.0**-52),
    "float32": (2.0**-23, 2.0**-23),
    "float16": (2.0**-10, 2.0**-23),
    "bfloat16": (2.0**-7, 2.0**-23),
}


def types_with_gradients() -> list[tuple[np.dtype, np.dtype]]:
    """Activations and the gradients of parameters, as precisions have them (precision.py)."""
    return [(dtype, dtype) for dtype in TYPES.values()] + [(TYPES["bf16"], TYPES["fp32"])]


def random(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """From N(0, 1), the same for the same name and shape."""
    seed = int.from_bytes(hashlib.sha256(f"{name}{shape}".encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_rounded(computed: np.ndarray, exact: np.ndarray, terms: int = 1, scale: float = 1.0) -> None:
    """`computed` is `exact` (fp64), rounded once to its type, after some 16 operations on numbers of order
    `scale`, which may cancel, and a sum of `terms` of them in the type of computation.
    """
    own, wide = EPSILON[computed.dtype.name]
    values = computed.astype(np.float64)
    assert values.shape == exact.shape
    assert np.isfinite(values).all(), "not finite, or never written"
    size = max(scale, np.sqrt(np.mean(exact.astype(np.float64) ** 2)) if exact.size else 0.0)
    rounding = np.abs(exact) * own / 2 * 1.01
    arithmetic = wide * (16 + np.sqrt(terms)) * (np.abs(exact) + size)
    smallest = 2.0**-24 if computed.dtype == np.float16 else 0.0
    worst = np.abs(values - exact) - (rounding + arithmetic + smallest)
    assert (worst <= 0).all(), (
        f"off by {np.abs(values - exact).max():.3g}, allowed {(rounding + arithmetic).max():.3g}"
    )
