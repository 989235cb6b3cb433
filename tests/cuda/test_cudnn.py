"""Attention by cuDNN: the graphs by NVIDIA's package, where it is installed, and all else with a stand-in."""

import ctypes
import math
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from cuda.numbers import TYPES, random
from cuda.strict import StrictGpu

from minitrain.errors import ConfigError
from minitrain.ops import attention as reference
from minitrain.ops.cuda import cudnn
from minitrain.ops.table import make_ops

SHAPES = [(2, 128, 4, 4, 64, "bfloat16"), (2, 33, 8, 2, 128, "float16"), (1, 1, 1, 1, 32, "bfloat16")]


@pytest.mark.parametrize("computation", [cudnn.FORWARD, cudnn.BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("shape", SHAPES)
def test_graphs_are_valid(shape: tuple, computation: cudnn.Computation) -> None:
    package = pytest.importorskip("cudnn")
    if shape[1] == 1 and computation == cudnn.BACKWARD:
        pytest.skip("refused")
    cudnn.make_graph(package, computation, cudnn.Shape(*shape), None).validate()


class Tensor:
    """What cuDNN knows of an array."""

    def __init__(self, **known) -> None:
        self.known = known

    def __getattr__(self, name: str):
        assert name.startswith("set_"), name

        def setter(value):
            self.known[name.removeprefix("set_")] = value
            return self

        return setter

    def at(self, addresses: dict[int, int]) -> np.ndarray:
        """The array as it lies in memory, [B, heads, T, K]."""
        dtype = np.dtype({"b": ml_dtypes.bfloat16, "h": np.float16, "f": np.float32}[self.known["data_type"]])
        dim, stride = self.known["dim"], self.known["stride"]
        size = 1 + sum((n - 1) * step for n, step in zip(dim, stride, strict=True))
        memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(addresses[self.known["uid"]])
        flat = np.frombuffer(memory, dtype)
        return np.lib.stride_tricks.as_strided(flat, dim, [step * dtype.itemsize for step in stride])


class Graph:
    """Attention by the reference, at the addresses that it is given."""

    def __init__(self, handle, **types) -> None:
        assert types["intermediate_data_type"] == types["compute_data_type"] == "f"
        self.handle, self.steps, self.executed = handle, [], 0

    def tensor(self, **known) -> Tensor:
        return Tensor(**known)

    def sdpa(self, q, k, v, generate_stats, **how) -> list[Tensor]:
        assert generate_stats
        return self._outputs(2, how, q=q, k=k, v=v)

    def sdpa_backward(self, q, k, v, o, stats, dO, use_deterministic_algorithm, **how) -> list[Tensor]:
        assert use_deterministic_algorithm
        return self._outputs(3, how, q=q, k=k, v=v, o=o, stats=stats, do=dO)

    def _outputs(self, n: int, how: dict, **inputs: Tensor) -> list[Tensor]:
        K = inputs["q"].known["dim"][-1]
        assert how == {
            "attn_scale": 1 / math.sqrt(K),
            "diagonal_alignment": "top left",
            "diagonal_band_right_bound": 0,
        }
        self.inputs, self.outputs = inputs, [Tensor() for _ in range(n)]
        return self.outputs

    def __getattr__(self, name: str):
        return lambda *modes: self.steps.append(name)

    def get_workspace_size(self) -> int:
        return 1000

    def execute(self, addresses: dict[int, int], workspace: int, handle) -> None:
        plan = "validate build_operation_graph create_execution_plans check_support build_plans"
        assert self.steps == plan.split() and workspace and handle is self.handle
        assert len(addresses) == len(self.inputs) + len(self.outputs)
        self.executed += 1
        x = {
            name: tensor.at(addresses).swapaxes(1, 2).astype(np.float64)
            for name, tensor in self.inputs.items()
        }
        o, saved = reference.attention_forward(x["q"], x["k"], x["v"])
        if "do" in x:
            results = reference.attention_backward(x["do"], saved)
            assert (np.abs(x["o"] - o) < 0.02).all() and (x["stats"] == 7).all()
        else:
            results = (o, np.full((*o.shape[:3], 1), 7))
        for tensor, result in zip(self.outputs, results, strict=True):
            assert tensor.known["output"]
            tensor.at(addresses).swapaxes(1, 2)[...] = result


@pytest.fixture
def graphs(monkeypatch) -> list[Graph]:
    """Stands in for NVIDIA's package. The graphs that it is asked for."""
    made: list[Graph] = []

    def pygraph(**known) -> Graph:
        made.append(Graph(**known))
        return made[-1]

    streams = []
    package = SimpleNamespace(
        pygraph=pygraph,
        data_type=SimpleNamespace(BFLOAT16="b", HALF="h", FLOAT="f"),
        diagonal_alignment=SimpleNamespace(TOP_LEFT="top left"),
        heur_mode=SimpleNamespace(A="a"),
        create_handle=lambda: f"handle {len(streams)}",
        set_stream=lambda handle, stream: streams.append((handle, stream)),
    )
    monkeypatch.setitem(sys.modules, "cudnn", package)
    monkeypatch.setattr(cudnn, "_address", lambda x: x.ctypes.data)
    caches = (cudnn._plan, cudnn._handle, cudnn.package)
    for cached in caches:
        cached.cache_clear()
    yield made
    bound = [(handle, 99) for handle in dict.fromkeys(graph.handle for graph in made)]
    assert streams == bound, "once for each device, to its stream"
    for cached in caches:
        cached.cache_clear()


GPU, OTHER = (SimpleNamespace(xp=np, index=i, stream=SimpleNamespace(ptr=99)) for i in (0, 1))


@pytest.mark.parametrize("dtype", [TYPES["bf16"], TYPES["fp16"]], ids=["bf16", "fp16"])
def test_attention(graphs: list[Graph], dtype: np.dtype) -> None:
    B, T, H, G, K = 2, 7, 6, 2, 8
    q, k, v, do = (random(f"{heads}", (B, T, heads, K), dtype) for heads in (H, G, G, H))
    for _ in range(2):
        o, saved = cudnn.attention_forward(GPU, q, k, v)
        results = [o, *cudnn.attention_backward(GPU, do, saved)]
    o64, saved64 = reference.attention_forward(*(x.astype(np.float64) for x in (q, k, v)))
    exact = [o64, *reference.attention_backward(do.astype(np.float64), saved64)]
    for value, right in zip(results, exact, strict=True):
        assert value.dtype == dtype and value.flags.c_contiguous
        np.testing.assert_array_equal(value, right.astype(dtype))
    assert [graph.executed for graph in graphs] == [2, 2], "graphs are made once for a shape"
    cudnn.attention_forward(GPU, q[:1], k[:1], v[:1])
    assert len(graphs) == 3
    cudnn.attention_forward(OTHER, q, k, v)
    assert [graph.handle for graph in graphs[2:]] == ["handle 0", "handle 1"]


def test_it_is_taken_where_it_is_asked_for(graphs: list[Graph]) -> None:
    ops = make_ops(StrictGpu(), "cudnn", 64, TYPES["bf16"])
    assert ops.attention_forward.func is cudnn.attention_forward
    assert ops.attention_backward.func is cudnn.attention_backward


def test_nothing_to_do(graphs: list[Graph]) -> None:
    q, k = np.zeros((0, 7, 6, 8), np.float16), np.zeros((0, 7, 2, 8), np.float16)
    o, saved = cudnn.attention_forward(GPU, q, k, k)
    assert [x.shape for x in cudnn.attention_backward(GPU, o, saved)] == [q.shape, k.shape, k.shape]
    assert graphs == []


@pytest.mark.parametrize("K, dtype", [(64, "fp32"), (20, "bf16"), (264, "fp16")])
def test_what_cudnn_cannot_compute_is_refused(graphs: list[Graph], K: int, dtype: str) -> None:
    cudnn.check(256, TYPES["bf16"])
    with pytest.raises(ConfigError, match=f"no attention for heads of width {K} in {TYPES[dtype].name}"):
        cudnn.check(K, TYPES[dtype])


def test_a_backward_over_one_position_is_refused(graphs: list[Graph]) -> None:
    q = np.zeros((2, 1, 4, 8), np.float16)
    o, saved = cudnn.attention_forward(GPU, q, q, q)
    with pytest.raises(ConfigError, match="no backward for sequences of one position"):
        cudnn.attention_backward(GPU, o, saved)


def test_a_package_that_is_not_there_is_named(graphs, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", None)
    with pytest.raises(ConfigError) as refused:
        cudnn.check(64, TYPES["fp16"])
    assert str(refused.value).startswith("attention by cuDNN needs a package that cannot be imported (")
    assert str(refused.value).endswith(
        "; attention cudnn; docs/gpu.md says how to install it; or leave attention out"
    )
