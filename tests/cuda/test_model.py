"""The model with kernels in place of the reference: a whole stage, forward and backward."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from cuda.emulator import Emulator, needs_emulator
from layouts import GPT2, LLAMA, LLAMA_TIED, batch_of, random_weights, tiny

from minitrain.arrays.device import HOST, Device
from minitrain.comm.grid import make_grid
from minitrain.comm.single import SingleComm
from minitrain.config import ModelConfig
from minitrain.ops import embedding, linear, loss, mlp, norm, rope
from minitrain.ops.cuda import KERNELS
from minitrain.parallel.stage import Stage

MODELS = {"llama": LLAMA, "llama-tied": LLAMA_TIED, "gpt2": GPT2}
REFERENCES = {
    module.__name__.rpartition(".")[2]: module for module in (embedding, linear, loss, mlp, norm, rope)
}
# Of the norm of each gradient. fp64 as layouts (docs/testing.md), fp32 as much coarser as its sums are. A
# value of 16 bits passes some eight roundings on its way, which the two do not all have in common.
WITHIN = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 8 * 2.0**-8, "bf16-pure": 8 * 2.0**-8, "fp16": 8 * 2.0**-11}


def test_kernels_are_called_as_their_references() -> None:
    for module, names in KERNELS.items():
        reference = REFERENCES[module.__name__.rpartition(".")[2]]
        for name in names:
            ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (module, reference))
            renamed = {"x_NF": "saved"} if name == "gelu_backward" else {}  # its record is but the input
            gpu, *called = (renamed.get(parameter, parameter) for parameter in ours)
            assert gpu == "gpu" and called[: len(theirs)] == list(theirs), name
            more = list(ours.values())[1 + len(theirs) :]
            assert all(parameter.default is None for parameter in more), name


def loss_and_gradients(
    model: ModelConfig, precision: str, device: Device
) -> tuple[float, dict[str, np.ndarray]]:
    config = replace(tiny(model), precision=precision)
    stage = Stage(config, make_grid(SingleComm(), config), random_weights, device=device)
    batch = batch_of(config, 1, 0)
    x_ND, saved = stage.forward(batch.ids_MN[0])
    nll, dx_ND = stage.loss(x_ND, batch.targets_MN[0], 1 / batch.n_tokens)
    stage.backward(dx_ND, saved)
    gradients = {}
    for unit in stage.units:
        assert unit.grad is not None
        for name, view in unit.layout.views(unit.grad).items():
            gradients[unit.prefix + name] = view.astype(np.float64)
    return float(nll), gradients


@needs_emulator
@pytest.mark.parametrize("precision", WITHIN)
@pytest.mark.parametrize("name", MODELS)
def test_a_stage(name: str, precision: str) -> None:
    """In fp64 the same; elsewhere as near as rounding lets them be, which happens in other places."""
    gpu = Emulator()
    nll, ours = loss_and_gradients(MODELS[name], precision, gpu)
    expected, theirs = loss_and_gradients(MODELS[name], precision, HOST)
    assert gpu.launches > 20
    assert abs(nll - expected) <= WITHIN[precision] * abs(expected)
    whole = np.sqrt(sum(np.sum(g**2) for g in theirs.values()) / len(theirs))
    for parameter, gradient in theirs.items():
        rounding_alone = parameter.endswith("attn.k.bias")  # the gradient of a bias of keys is zero
        size = max(np.linalg.norm(gradient), whole * (1 if rounding_alone else 1e-3))
        error = np.linalg.norm(ours[parameter] - gradient) / size
        assert error <= WITHIN[precision], f"{parameter}: {error:.2g}"
