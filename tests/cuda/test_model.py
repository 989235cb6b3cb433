"""The model with kernels in place of the reference: a whole stage, forward and backward, on arrays that do
what CuPy's do (strict.py).
"""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from cuda.emulator import needs_emulator
from cuda.strict import StrictGpu
from layouts import GPT2, LLAMA, LLAMA_TIED, batch_of, mild_weights, random_weights, tiny

from minitrain.arrays.device import HOST, Device, on_host
from minitrain.comm.grid import make_grid
from minitrain.comm.single import SingleComm
from minitrain.config import Config, ModelConfig
from minitrain.errors import ConfigError
from minitrain.ops import attention, embedding, fp8, linear, loss, mlp, norm, rope
from minitrain.ops.cuda import ATTENTION, KERNELS
from minitrain.ops.table import make_ops
from minitrain.parallel.stage import Stage
from minitrain.precision import PRECISIONS


def two_heads_of(width: int, model: ModelConfig) -> ModelConfig:
    return replace(model, layers=2, width=2 * width, heads=2, kv_heads=model.kv_heads // 2)


MODELS = {"llama": LLAMA, "llama-tied": LLAMA_TIED, "gpt2": GPT2}  # their heads have no flash attention
FLASH = {f"llama-{width}": two_heads_of(width, LLAMA) for width in (32, 64)}
FLASH |= {f"gpt2-{width}": two_heads_of(width, GPT2) for width in (32, 64)}
REFERENCES = {
    module.__name__.rpartition(".")[2]: module for module in (embedding, fp8, linear, loss, mlp, norm, rope)
}
# Of the norm of each gradient. fp64 as layouts (docs/testing.md), fp32 as much coarser as its sums are. A
# value of 16 bits passes some eight roundings on its way, which the two do not all have in common. Those of 8
# bits (half a step of E5M2, 2^-3) are as many as in tests/test_precision_in_layouts.py.
WITHIN = {
    "fp64": 1e-12, "fp32": 1e-5, "bf16": 8 * 2.0**-8, "bf16-pure": 8 * 2.0**-8, "fp16": 8 * 2.0**-11,
    "fp8": 4 * 2.0**-3,
}  # fmt: skip


def test_kernels_are_called_as_their_references() -> None:
    functions = [(m, REFERENCES[m.__name__.rpartition(".")[2]], names) for m, names in KERNELS.items()]
    functions += [(m, attention, ("attention_forward", "attention_backward")) for m in ATTENTION.values()]
    for module, reference, names in functions:
        for name in names:
            ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (module, reference))
            renamed = {"x_NF": "saved"} if name == "gelu_backward" else {}  # its record is but the input
            gpu, *called = (renamed.get(parameter, parameter) for parameter in ours)
            assert gpu == "gpu" and called[: len(theirs)] == list(theirs), name
            more = list(ours.values())[1 + len(theirs) :]
            assert all(parameter.default is None for parameter in more), name


def test_attention_is_what_the_setting_says() -> None:
    flash, gpu = ATTENTION["flash"], StrictGpu()
    bf16, fp32 = PRECISIONS["bf16"].activation, PRECISIONS["fp32"].activation
    for setting, width, dtype, module in (
        ("auto", 64, bf16, flash), ("auto", 96, bf16, attention), ("auto", 128, fp32, attention),
        ("materialised", 64, bf16, attention), ("flash", 32, fp32, flash),
    ):  # fmt: skip
        ops = make_ops(gpu, setting, width, dtype)
        for name in ("attention_forward", "attention_backward"):
            function = getattr(ops, name)
            assert getattr(function, "func", function) is getattr(module, name), (setting, width, dtype)
    for setting in ("flash", "cudnn"):
        with pytest.raises(ConfigError, match=r"attention .*heads of width 20 in bfloat16"):
            make_ops(gpu, setting, 20, bf16)
        config = replace(tiny(FLASH["llama-32"]), attention=setting)
        with pytest.raises(ConfigError, match=f"^attention {setting} is of GPUs, but arrays are in the host"):
            Stage(config, make_grid(SingleComm(), config), mild_weights)
    for setting in ("auto", "materialised"):
        assert make_ops(HOST, setting, 64, bf16).attention_forward is attention.attention_forward


def loss_and_gradients(config: Config, device: Device) -> tuple[float, dict[str, np.ndarray]]:
    fill = mild_weights if config.model.width > LLAMA.width else random_weights  # sums have more terms
    stage = Stage(config, make_grid(SingleComm(), config), fill, device=device)
    batch = batch_of(config, 1, 0)
    ids_N, targets_N = (device.to_device(x) for x in (batch.ids_MN[0], batch.targets_MN[0]))
    x_ND, saved = stage.forward(ids_N)
    nll, dx_ND = stage.loss(x_ND, targets_N, 1 / batch.n_tokens)
    stage.backward(dx_ND, saved)
    gradients = {}
    for unit in stage.units:
        assert unit.grad is not None
        for name, view in unit.layout.views(on_host(unit.grad)).items():
            gradients[unit.prefix + name] = view.astype(np.float64)
    return float(on_host(nll.reshape(1))[0]), gradients


CASES = [(name, precision, "auto") for name in MODELS | FLASH for precision in WITHIN]
CASES += [(name, precision, "materialised") for name in FLASH for precision in ("fp32", "bf16")]


@needs_emulator
@pytest.mark.parametrize("name, precision, setting", CASES)
def test_a_stage(name: str, precision: str, setting: str) -> None:
    """In fp64 the same; elsewhere as near as rounding lets them be, which happens in other places."""
    gpu, config = StrictGpu(), replace(tiny((MODELS | FLASH)[name]), precision=precision)
    nll, ours = loss_and_gradients(replace(config, attention=setting), gpu)
    expected, theirs = loss_and_gradients(config, HOST)
    flash = {kernel for kernel in gpu.ran if kernel.startswith("attention_")}
    supported = name in FLASH and (name, precision) not in (("llama-64", "fp64"), ("gpt2-64", "fp64"))
    assert len(flash) == (4 if supported and setting == "auto" else 0)
    assert ("fp8_round" in gpu.ran) == (precision == "fp8") and gpu.launches > 20
    assert abs(nll - expected) <= WITHIN[precision] * abs(expected)
    whole = np.sqrt(sum(np.sum(g**2) for g in theirs.values()) / len(theirs))
    for parameter, gradient in theirs.items():
        rounding_alone = parameter.endswith("attn.k.bias")  # the gradient of a bias of keys is zero
        size = max(np.linalg.norm(gradient), whole * (1 if rounding_alone else 1e-3))
        error = np.linalg.norm(ours[parameter] - gradient) / size
        assert error <= WITHIN[precision], f"{parameter}: {error:.2g}"
