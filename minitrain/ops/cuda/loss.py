"""`ops/loss.py` on a GPU, where passes over the logits are what it costs. Each reads them once.

    m    = all-reduce max of local_max             read
    sums = all-reduce sum of exp_and_sums          read, write
    dz   = logits_backward(exp)                    read, write

One rank with the whole vocabulary has nothing to wait for between the first two:

    m, sums = max_and_sums                         read
    dz      = logits_backward(logits, m_N=m)       read, write

Shapes: N tokens, V vocabulary rows on this tp rank (ids first_id .. first_id + V - 1).
"""

import numpy as np

from minitrain.arrays.device import Gpu
from minitrain.arrays.threads import row_threads
from minitrain.arrays.types import Array, DType

SOURCE = "ops/cuda/loss.cu"


def local_max(gpu: Gpu, logits_NV: Array) -> Array:
    m_N = np.empty_like(logits_NV, shape=len(logits_NV))
    _launch_rows(gpu, "local_max", logits_NV, logits_NV.dtype, m_N, logits_NV.shape[1])
    return m_N


def exp_and_sums(gpu: Gpu, logits_NV: Array, m_N: Array, targets_N: Array, first_id: int) -> Array:
    N, V = logits_NV.shape
    sums_2N = np.empty_like(m_N, shape=(2, N))
    _launch_rows(gpu, "exp_and_sums", logits_NV, logits_NV.dtype, m_N, targets_N, sums_2N, N, V, first_id)
    return sums_2N


def max_and_sums(gpu: Gpu, logits_NV: Array, targets_N: Array, first_id: int) -> tuple[Array, Array]:
    """local_max, and what exp_and_sums returns for this m_N; the logits stay as they are."""
    N, V = logits_NV.shape
    m_N, sums_2N = np.empty_like(logits_NV, shape=N), np.empty_like(logits_NV, shape=(2, N))
    _launch_rows(gpu, "max_and_sums", logits_NV, logits_NV.dtype, targets_N, m_N, sums_2N, N, V, first_id)
    return m_N, sums_2N


def cross_entropy(gpu: Gpu, sums_2N: Array, targets_N: Array) -> Array:
    N = sums_2N.shape[1]
    nll_N = np.empty_like(sums_2N, shape=N)
    if N:
        types = {"T": sums_2N.dtype, "O": sums_2N.dtype}
        gpu.launch(SOURCE, "cross_entropy", types, -(-N // 256), 256, sums_2N, targets_N, nll_N, N)
    return nll_N


def logits_backward(
    gpu: Gpu,
    exp_NV: Array,
    sums_2N: Array,
    targets_N: Array,
    first_id: int,
    scale: float | Array,
    dtype: DType | None = None,
    m_N: Array | None = None,
) -> Array:
    """dz rounded to `dtype`: a new array, or `exp_NV` overwritten if that is its type or none is given.

    With m_N what is given are the logits. `scale` may be an fp64 array of one element.
    """
    V = exp_NV.shape[1]
    in_place = dtype is None or dtype == exp_NV.dtype
    dz_NV = exp_NV if in_place else np.empty_like(exp_NV, dtype=dtype)
    scales, number = (None, float(scale)) if isinstance(scale, int | float) else (scale, 0.0)
    _launch_rows(
        gpu, "logits_backward", exp_NV, dz_NV.dtype,
        m_N, sums_2N, targets_N, dz_NV, V, first_id, scales, number,
    )  # fmt: skip
    return dz_NV


def _launch_rows(
    gpu: Gpu, kernel: str, z_NV: Array, out_type: DType, *args: Array | int | float | None
) -> None:
    """A block for each row of z, the kernel's first argument."""
    N, V = z_NV.shape
    if N:
        types = {"T": z_NV.dtype, "O": out_type}
        gpu.launch(SOURCE, kernel, types, N, row_threads(V * z_NV.itemsize), z_NV, *args)
