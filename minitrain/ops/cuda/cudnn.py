"""`ops/attention.py` by cuDNN, through NVIDIA's package `nvidia-cudnn-frontend`, which is not always there.

A computation is described as a graph, for which cuDNN chooses a plan; both are made once for each shape. Of
the plans for the backward only those are asked for that give the same bits every time.

Shapes: B sequences, T positions, H query heads, G key/value heads, K head width. cuDNN names dimensions in
the order B, heads, T, K, wherever they are in memory.
"""

import importlib
import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minitrain.arrays.device import Gpu
from minitrain.arrays.types import Array, DType
from minitrain.errors import ConfigError, Problem


class Computation(NamedTuple):
    """The arrays of a graph. Their numbers in it, from 1, are in this order, the outputs last."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


FORWARD = Computation(("q", "k", "v"), ("o", "stats"))
BACKWARD = Computation(("q", "k", "v", "o", "stats", "do"), ("dq", "dk", "dv"))


class Saved(NamedTuple):
    q_BTHK: Array
    k_BTGK: Array
    v_BTGK: Array
    o_BTHK: Array
    stats_BHT: Array  # log of the sum of e^s, fp32


class Shape(NamedTuple):
    B: int
    T: int
    H: int
    G: int
    K: int
    dtype: str


def supports(head_width: int, dtype: DType) -> bool:
    """Whether cuDNN computes heads so wide of this type on a Hopper GPU (older ones take half the width)."""
    return head_width % 8 == 0 and 0 < head_width <= 256 and dtype.name in ("float16", "bfloat16")


def check(head_width: int, dtype: DType) -> None:
    """Raises ConfigError for heads that cuDNN does not compute, and where its package is not installed."""
    if not supports(head_width, dtype):
        what = f"cuDNN has no attention for heads of width {head_width} in {dtype.name}"
        remedy = "leave attention out, or use 16 bits and a width up to 256 that is a multiple of 8"
        raise _refusal(what, remedy)
    package()


def attention_forward(gpu: Gpu, q_BTHK: Array, k_BTGK: Array, v_BTGK: Array) -> tuple[Array, Saved]:
    """All arrays are C-contiguous."""
    B, T, H, K = q_BTHK.shape
    assert supports(K, q_BTHK.dtype)
    o_BTHK = np.empty_like(q_BTHK)
    stats_BHT = np.empty_like(q_BTHK, shape=(B, H, T), dtype=np.float32)
    saved = Saved(q_BTHK, k_BTGK, v_BTGK, o_BTHK, stats_BHT)
    _execute(gpu, FORWARD, saved)
    return o_BTHK, saved


def attention_backward(gpu: Gpu, do_BTHK: Array, saved: Saved) -> tuple[Array, Array, Array]:
    """Returns (dq, dk, dv), C-contiguous."""
    if do_BTHK.shape[1] == 1:
        remedy = "use longer sequences, or leave attention out"
        raise _refusal("cuDNN has no backward for sequences of one position", remedy)
    dq_BTHK, dk_BTGK, dv_BTGK = (np.empty_like(x) for x in saved[:3])
    _execute(gpu, BACKWARD, (*saved, do_BTHK, dq_BTHK, dk_BTGK, dv_BTGK))
    return dq_BTHK, dk_BTGK, dv_BTGK


def _execute(gpu: Gpu, computation: Computation, arrays: tuple[Array, ...]) -> None:
    """On the stream of the device. The workspace is free for others as soon as they come later on it."""
    q_BTHK, k_BTGK = arrays[:2]
    if not q_BTHK.size:
        return
    B, T, H, K = q_BTHK.shape
    handle = _handle(*_place(gpu))
    graph, n_bytes = _plan(computation, Shape(B, T, H, k_BTGK.shape[2], K, q_BTHK.dtype.name), handle)
    workspace = gpu.xp.empty(max(n_bytes, 1), np.uint8)
    addresses = {uid: _address(x) for uid, x in enumerate(arrays, 1)}
    graph.execute(addresses, _address(workspace), handle=handle)


@cache
def _plan(computation: Computation, shape: Shape, handle: Any) -> tuple[Any, int]:
    """The graph, ready to be executed, and the bytes of workspace that it needs."""
    cudnn = package()
    graph = make_graph(cudnn, computation, shape, handle)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    return graph, int(graph.get_workspace_size())


def make_graph(cudnn: Any, computation: Computation, shape: Shape, handle: Any) -> Any:
    """The description of a computation, of which nothing is planned or checked yet."""
    types = cudnn.data_type
    own = {"bfloat16": types.BFLOAT16, "float16": types.HALF}[shape.dtype]
    graph = cudnn.pygraph(
        io_data_type=own, intermediate_data_type=types.FLOAT, compute_data_type=types.FLOAT, handle=handle
    )
    inputs = {}
    for uid, name in enumerate(computation.inputs, 1):
        dim, stride = _layout(name, shape)
        data_type = types.FLOAT if name == "stats" else own
        inputs[name] = graph.tensor(name=name, uid=uid, dim=dim, stride=stride, data_type=data_type)
    causal = {
        "attn_scale": 1 / math.sqrt(shape.K),
        "diagonal_alignment": cudnn.diagonal_alignment.TOP_LEFT,  # the first query sees the first key alone
        "diagonal_band_right_bound": 0,
    }
    if computation == FORWARD:
        outputs = graph.sdpa(**inputs, generate_stats=True, **causal)
    else:
        inputs["dO"] = inputs.pop("do")
        outputs = graph.sdpa_backward(**inputs, use_deterministic_algorithm=True, **causal)
    named = zip(computation.outputs, outputs, strict=True)
    for uid, (name, tensor) in enumerate(named, 1 + len(computation.inputs)):
        dim, stride = _layout(name, shape)
        data_type = types.FLOAT if name == "stats" else own
        tensor.set_output(True).set_uid(uid).set_data_type(data_type).set_dim(dim).set_stride(stride)
    return graph


def _layout(name: str, shape: Shape) -> tuple[list[int], list[int]]:
    """Sizes and strides in the order B, heads, T, K, of arrays [B, T, heads, K] and [B, H, T]."""
    B, T, H, G, K, _ = shape
    if name == "stats":
        return [B, H, T, 1], [H * T, T, 1, 1]
    heads = G if name in ("k", "v", "dk", "dv") else H
    return [B, heads, T, K], [T * heads * K, K, heads * K, 1]


@cache
def package() -> Any:
    """NVIDIA's module. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("cudnn")
    except ImportError as error:
        what = f"attention by cuDNN needs a package that cannot be imported ({error})"
        remedy = "docs/gpu.md says how to install it; or leave attention out"
        raise _refusal(what, remedy) from None


def _refusal(what: str, remedy: str) -> ConfigError:
    return ConfigError([Problem(what, "attention cudnn", remedy)])


@cache
def _handle(device: int, stream: int) -> Any:
    """cuDNN's handle for `device`, which is the current one of the thread, bound to a stream. Ranks that are
    threads may have devices of their own, whose streams have the same number.
    """
    cudnn = package()
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=stream)
    return handle


def _place(gpu: Any) -> tuple[int, int]:
    """Device and stream."""
    return gpu.index, int(gpu.stream.ptr)


def _address(x: Any) -> int:
    return int(x.data.ptr)
