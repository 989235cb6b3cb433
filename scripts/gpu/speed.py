"""How fast our own products are, and what a step of ours consists of."""

import math
import statistics
import time
from typing import Any

import numpy as np
from minitrain_side import Ours
from recording import RecordingGpu, Row

from minitrain.precision import BF16

PRODUCTS = 20  # in a round
BUSY_SIZE = 4096  # of products that keep the GPU busy
BUSY_FLOPS = 5e14  # a second, about


def product_flops(gpu: Any, size: int, rounds: int) -> float:
    """FLOP/s of a square product in bf16: the median over rounds."""
    a, b, out = operands(gpu, size)
    seconds = []
    for _ in range(rounds + 1):
        gpu.synchronize()
        begun = time.perf_counter()
        for _ in range(PRODUCTS):
            gpu.gemm.product(a, b, out)
        gpu.synchronize()
        seconds.append((time.perf_counter() - begun) / PRODUCTS)
    return 2 * size**3 / statistics.median(seconds[1:])  # the first chooses an algorithm


def operands(gpu: Any, size: int) -> list[Any]:
    """Random numbers: of zeros a card computes faster, as it takes less power."""
    rng = np.random.default_rng(0)
    return [gpu.to_device(rng.standard_normal((size, size), np.float32).astype(BF16)) for _ in range(3)]


def break_down(ours: Ours, gpu: RecordingGpu, launch_seconds: float) -> list[Row]:
    """One step, by kernel. Before it the GPU gets so much to do that the host, which takes twice as long when
    it notes all that it starts, is always ahead.
    """
    ops = ours.trainer.stage.ops
    for name in ("attention_forward", "attention_backward"):
        setattr(ops, name, gpu.noted(f"{name}, not by launches", getattr(ops, name)))
    a, b, out = operands(gpu, BUSY_SIZE)
    gpu.gemm.product(a, b, out)
    ours.finish()
    for _ in range(math.ceil(3 * launch_seconds * BUSY_FLOPS / (2 * BUSY_SIZE**3))):
        gpu.gemm.product(a, b, out)
    rows = gpu.recorded("other (CuPy)", lambda: ours.start(1))
    ours.finish()
    return rows
