"""`ops/rope.py` on a GPU. The table is the reference's, which a kernel reads as pairs (cos, sin).

Shapes: B sequences, T positions, H heads, K head width, C = K/2 complex components.
"""

from minitrain.arrays.device import Gpu
from minitrain.arrays.threads import row_threads
from minitrain.arrays.types import Array


def rope_forward(gpu: Gpu, x_BTHK: Array, table_TC: Array) -> Array:
    """In place."""
    return _rotate(gpu, x_BTHK, table_TC, 1.0)


def rope_backward(gpu: Gpu, dx_BTHK: Array, table_TC: Array) -> Array:
    """In place."""
    return _rotate(gpu, dx_BTHK, table_TC, -1.0)


def _rotate(gpu: Gpu, x_BTHK: Array, table_TC: Array, direction: float) -> Array:
    B, T, H, K = x_BTHK.shape
    assert T <= len(table_TC) and table_TC.shape[1] * 2 == K
    complex_bytes = 16 if x_BTHK.itemsize == 8 else 8  # two numbers of the type of computation
    assert table_TC.itemsize == complex_bytes and table_TC.flags.c_contiguous and x_BTHK.flags.c_contiguous
    if x_BTHK.size:
        gpu.launch(
            "ops/cuda/rope.cu", "rope", {"T": x_BTHK.dtype}, B * T, row_threads(H * K * x_BTHK.itemsize, 256),
            x_BTHK, table_TC, T, H, K, direction,
        )  # fmt: skip
    return x_BTHK
