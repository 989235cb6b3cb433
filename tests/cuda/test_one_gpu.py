"""What only a real GPU can show: `pytest --gpu`."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.devices import array_gpu
from cuda.numbers import TYPES, random

from minitrain.arrays.device import on_host, put

pytestmark = pytest.mark.gpu


def alone() -> Any:
    """The host's communicator of a group of one."""
    return SimpleNamespace(
        name="world", rank=0, size=1, members=(0,), broadcast=lambda buffer, root: None
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [*TYPES.values(), np.dtype(np.int64), np.dtype(np.uint8)], ids=str)
def test_nccl_of_one_rank(dtype: np.dtype) -> None:
    """Every verb, in order with kernels before and after it on the stream."""
    from minitrain.comm.nccl import Nccl

    gpu = array_gpu()
    nccl = Nccl(gpu)
    group = nccl.connect(alone())
    values = np.abs(9 * random("x", (4099,), TYPES["fp64"])).astype(dtype)
    x = gpu.to_device(values)
    y, z = np.empty_like(x), np.empty_like(x)
    x += x  # a kernel before
    group.all_reduce(x, "sum")
    group.all_reduce(x, "max")
    group.reduce_scatter(x, y)
    group.all_gather(y, z)
    group.broadcast(z, 0)
    z += z  # and one after
    nccl.check()
    assert np.array_equal(on_host(z), (values + values) + (values + values))
    sent = group.start_send(z, 0)
    received = np.empty_like(z)
    group.recv(received, 0)
    sent.wait()
    assert np.array_equal(on_host(received), on_host(z))
    gpu.synchronize()
    nccl.close()


@pytest.mark.parametrize("kind", ["gemmex", "cublaslt"])
@pytest.mark.parametrize(
    "types", [("bf16", "fp32"), ("bf16", "bf16"), ("fp16", "fp16"), ("fp32", "fp32"), ("fp64",) * 2]
)
def test_libraries_of_products_agree(kind: str, types: str) -> None:
    """In sums of 4096 terms, which no library may round to 16 bits on the way; batches too."""
    from minitrain.ops.cuda.cublaslt import CublasLt
    from minitrain.ops.cuda.gemm_ex import GemmEx

    gpu = array_gpu()
    gemm: Any = GemmEx.of_cupy() if kind == "gemmex" else CublasLt.of_cupy()
    dtype, out_dtype = (TYPES[name] for name in types.split())
    a, b = random("a", (6, 128, 4096), dtype), random("b", (6, 64, 4096), dtype)
    out = gpu.to_device(np.zeros((6, 128, 64), out_dtype))
    gemm.batched(gpu.to_device(a), gpu.to_device(b), out, transpose_b=True)
    exact = np.matmul(a.astype(np.float64), b.astype(np.float64).swapaxes(-1, -2))
    unit = {"fp64": 2.0**-53, "fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}[types.split()[1]]
    error = np.abs(on_host(out).astype(np.float64) - exact)
    assert (error <= np.abs(exact) * unit * 1.01 + 64 * 4096 * min(unit, 2.0**-24)).all()


def test_what_is_read_is_what_was_there() -> None:
    """A reading that was started keeps the values of that moment."""
    gpu = array_gpu()
    x = gpu.to_device(np.arange(7.0))
    reading = gpu.start_reading(x)
    x.fill(-1)
    assert reading.wait().tolist() == [0, 1, 2, 3, 4, 5, 6]
    put(x, np.ones(7))
    assert on_host(x).tolist() == [1] * 7
