"""The nonlinearity of the MLP: SwiGLU (Llama) and GELU (GPT-2).

Shapes: N tokens, F ffn width on this tp rank. All passes over a block of rows happen while it is in cache.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minitrain.arrays.blocks import row_blocks
from minitrain.arrays.narrow import scratch, store, wide
from minitrain.arrays.types import Array


class SwigluSaved(NamedTuple):
    gate_NF: Array
    up_NF: Array
    sigmoid_NF: Array


def swiglu_forward(gate_NF: Array, up_NF: Array) -> tuple[Array, SwigluSaved]:
    """h = silu(gate) up, where silu(z) = z s(z) and s(z) = 1 / (1 + e^-z) (Shazeer 2020, eq. 6).

    s is computed as (1 + tanh(z/2)) / 2, which cannot overflow.
    """
    h_NF, sigmoid_NF = np.empty_like(gate_NF), np.empty_like(gate_NF)
    for rows in _blocks(gate_NF):
        gate, up = wide(gate_NF[rows]), wide(up_NF[rows])
        s, h = scratch(sigmoid_NF[rows]), scratch(h_NF[rows])
        np.multiply(gate, 0.5, out=s)
        np.tanh(s, out=s)
        s *= 0.5
        s += 0.5
        np.multiply(gate, s, out=h)
        h *= up
        store(s, sigmoid_NF[rows])
        store(h, h_NF[rows])
    return h_NF, SwigluSaved(gate_NF, up_NF, sigmoid_NF)


def swiglu_backward(dh_NF: Array, saved: SwigluSaved) -> tuple[Array, Array]:
    """Forward was h = silu(gate) up, so now dup = dh silu and dgate = dh up silu', silu' = s + silu - silu s.

    Returns (dgate, dup).
    """
    dgate_NF, dup_NF = np.empty_like(dh_NF), np.empty_like(dh_NF)
    for rows in _blocks(dh_NF):
        dh, up, s = wide(dh_NF[rows]), wide(saved.up_NF[rows]), wide(saved.sigmoid_NF[rows])
        dgate, dup = scratch(dgate_NF[rows]), scratch(dup_NF[rows])
        silu = np.multiply(wide(saved.gate_NF[rows]), s)
        np.multiply(dh, silu, out=dup)
        np.multiply(silu, s, out=dgate)
        np.subtract(silu, dgate, out=dgate)
        dgate += s
        dgate *= up
        dgate *= dh
        store(dgate, dgate_NF[rows])
        store(dup, dup_NF[rows])
    return dgate_NF, dup_NF


class GeluSaved(NamedTuple):
    x_NF: Array
    tanh_NF: Array


GELU_C = math.sqrt(2 / math.pi)
GELU_A = 0.044715


def gelu_forward(x_NF: Array) -> tuple[Array, GeluSaved]:
    """h = x (1 + tanh u) / 2, where u = c (x + a x^3), c = sqrt(2/pi), a = 0.044715.

    The tanh approximation of Hendrycks & Gimpel 2016, section 2, which GPT-2 uses.
    """
    h_NF, tanh_NF = np.empty_like(x_NF), np.empty_like(x_NF)
    for rows in _blocks(x_NF):
        x, t, h = wide(x_NF[rows]), scratch(tanh_NF[rows]), scratch(h_NF[rows])
        np.multiply(x, x, out=t)
        t *= GELU_C * GELU_A
        t += GELU_C
        t *= x
        np.tanh(t, out=t)
        np.add(t, 1, out=h)
        h *= x
        h *= 0.5
        store(t, tanh_NF[rows])
        store(h, h_NF[rows])
    return h_NF, GeluSaved(x_NF, tanh_NF)


def gelu_backward(dh_NF: Array, saved: GeluSaved) -> Array:
    """Forward was h = x (1 + tanh u) / 2, so now, with t = tanh u and u' = c (1 + 3 a x^2),
    dx = dh (1 + t + x (1 - t^2) u') / 2.
    """
    dx_NF = np.empty_like(dh_NF)
    for rows in _blocks(dh_NF):
        x, t, dx = wide(saved.x_NF[rows]), wide(saved.tanh_NF[rows]), scratch(dx_NF[rows])
        slope = np.multiply(x, x)
        slope *= 3 * GELU_A * GELU_C
        slope += GELU_C
        slope *= x
        np.multiply(t, t, out=dx)
        np.subtract(1, dx, out=dx)
        dx *= slope
        dx += t
        dx += 1
        dx *= wide(dh_NF[rows])
        dx *= 0.5
        store(dx, dx_NF[rows])
    return dx_NF


def _blocks(x_NF: Array) -> Iterator[slice]:
    return row_blocks(len(x_NF), x_NF[0].nbytes)
