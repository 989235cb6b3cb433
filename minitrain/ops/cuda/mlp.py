"""`ops/mlp.py` on a GPU. Only inputs are saved: a backward computes sigmoid and tanh again, which costs less
than to read them, and no memory.

Shapes: N tokens, F ffn width on this tp rank.
"""

from typing import NamedTuple

import numpy as np

from minitrain.arrays.device import Gpu
from minitrain.arrays.threads import THREADS, blocks
from minitrain.arrays.types import Array

SOURCE = "ops/cuda/mlp.cu"


class SwigluSaved(NamedTuple):
    gate_NF: Array
    up_NF: Array


def swiglu_forward(gpu: Gpu, gate_NF: Array, up_NF: Array) -> tuple[Array, SwigluSaved]:
    h_NF = np.empty_like(gate_NF)
    _launch(gpu, "swiglu_forward", gate_NF, up_NF, h_NF)
    return h_NF, SwigluSaved(gate_NF, up_NF)


def swiglu_backward(gpu: Gpu, dh_NF: Array, saved: SwigluSaved) -> tuple[Array, Array]:
    dgate_NF, dup_NF = np.empty_like(dh_NF), np.empty_like(dh_NF)
    _launch(gpu, "swiglu_backward", dh_NF, saved.gate_NF, saved.up_NF, dgate_NF, dup_NF)
    return dgate_NF, dup_NF


def gelu_forward(gpu: Gpu, x_NF: Array) -> tuple[Array, Array]:
    """What is saved is the input."""
    h_NF = np.empty_like(x_NF)
    _launch(gpu, "gelu_forward", x_NF, h_NF)
    return h_NF, x_NF


def gelu_backward(gpu: Gpu, dh_NF: Array, x_NF: Array) -> Array:
    dx_NF = np.empty_like(dh_NF)
    _launch(gpu, "gelu_backward", dh_NF, x_NF, dx_NF)
    return dx_NF


def _launch(gpu: Gpu, kernel: str, *arrays: Array) -> None:
    """For every element; the arrays have one shape and type."""
    x = arrays[0]
    if x.size:
        n = blocks(x.size, x.itemsize)
        gpu.launch(SOURCE, kernel, {"T": x.dtype}, n, THREADS, *arrays, x.size)
