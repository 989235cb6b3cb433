"""Is the backward right? Directional derivatives in fp64 of composites: a block, a stage, the whole loss."""

from collections.abc import Callable

import numpy as np
import pytest
from layouts import GPT2, LLAMA, LLAMA_TIED, random_weights, tiny
from oracle import COMPOSITE, COMPOSITE_STEP, check_directional

from minitrain.arrays.types import Array
from minitrain.comm.grid import make_grid
from minitrain.comm.single import SingleComm
from minitrain.config import ModelConfig
from minitrain.model.block import BlockContext, block_backward, block_forward
from minitrain.model.spec import block_specs
from minitrain.model.tensor import TensorParallel
from minitrain.ops.rope import rope_table
from minitrain.ops.table import Ops
from minitrain.parallel.stage import Stage

MODELS = {"llama": LLAMA, "llama-tied": LLAMA_TIED, "gpt2": GPT2}
RNG = np.random.default_rng(0)


def block_context(model: ModelConfig) -> BlockContext:
    head_width = model.width // model.heads
    table = (
        rope_table(model.seq_len, head_width, model.rope_theta, np.dtype(np.float64))
        if model.arch == "llama"
        else None
    )
    return BlockContext(
        Ops(), TensorParallel(SingleComm(), False), model.seq_len, head_width, model.norm_eps, table
    )


@pytest.mark.parametrize("name", MODELS)
def test_block(name: str) -> None:
    model = MODELS[name]
    context = block_context(model)
    names = [s.name.removeprefix("layers.0.") for s in block_specs(model, 0)]
    weights = [random_weights(s, tuple(slice(0, n) for n in s.shape)) for s in block_specs(model, 0)]
    x_ND = RNG.standard_normal((2 * model.seq_len, model.width))
    dy_ND = RNG.standard_normal(x_ND.shape)

    def scalar(arrays: list[Array]) -> float:
        y_ND, _ = block_forward(arrays[0], dict(zip(names, arrays[1:], strict=True)), {}, context)
        return float(np.vdot(dy_ND, y_ND))

    w = dict(zip(names, weights, strict=True))
    g = {n: np.zeros_like(a) for n, a in w.items()}
    _, saved = block_forward(x_ND, w, {}, context)
    dx_ND = block_backward(dy_ND.copy(), saved, w, g, {}, context)
    check_directional(scalar, [x_ND, *weights], [dx_ND, *g.values()], COMPOSITE, step=COMPOSITE_STEP)


def serial_stage(model: ModelConfig) -> Stage:
    config = tiny(model)
    return Stage(config, make_grid(SingleComm(), config), random_weights)


def set_weights(stage: Stage, vectors: list[Array]) -> None:
    for unit, vector in zip(stage.units, vectors, strict=True):
        assert unit.param is not None
        unit.param[...] = vector


def check_stage(stage: Stage, scalar: Callable[[], float]) -> None:
    """Compares the gradients in the units with the directional derivative of `scalar()` in the units'
    parameters.
    """
    weights = [u.param.copy() for u in stage.units if u.param is not None]
    grads = [u.grad.copy() for u in stage.units if u.grad is not None]

    def function(arrays: list[Array]) -> float:
        set_weights(stage, arrays)
        return scalar()

    try:
        check_directional(function, weights, grads, COMPOSITE, step=COMPOSITE_STEP)
    finally:
        set_weights(stage, weights)


@pytest.mark.parametrize("name", MODELS)
def test_stage_from_tokens_to_activations(name: str) -> None:
    model = MODELS[name]
    stage = serial_stage(model)
    ids_N = RNG.integers(0, model.vocab, 2 * model.seq_len)
    dy_ND = RNG.standard_normal((ids_N.size, model.width))
    _, saved = stage.forward(ids_N)
    stage.backward(dy_ND.copy(), saved)
    check_stage(stage, lambda: float(np.vdot(dy_ND, stage.forward(ids_N)[0])))


@pytest.mark.parametrize("name", MODELS)
def test_whole_loss(name: str) -> None:
    """Tied and untied, an ignored target among the others, and a scale."""
    model = MODELS[name]
    stage = serial_stage(model)
    ids_N, targets_N = RNG.integers(0, model.vocab, (2, 2 * model.seq_len))
    targets_N[3] = -1
    scale = 1 / 7
    x_ND, saved = stage.forward(ids_N)
    nll, dx_ND = stage.loss(x_ND, targets_N, scale)
    stage.backward(dx_ND, saved)
    assert nll == stage.loss_only(stage.forward(ids_N)[0], targets_N)
    check_stage(stage, lambda: scale * stage.loss_only(stage.forward(ids_N)[0], targets_N))
