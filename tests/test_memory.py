"""Persistent bytes of a rank, counted from its arrays, equal the closed forms exactly.

Psi is the rank's number of parameters, each unit padded to equal shards (and, for 8-bit Adam, each tensor to
blocks of 256); N the number of shards.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from layouts import GPT2, LIMIT, LLAMA, LLAMA_TIED, random_weights, tiny

from minitrain.arrays.flat import padded
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.config import Config
from minitrain.defaults import OPTIMIZERS
from minitrain.model.spec import ParamSpec, block_specs, embedding_specs, head_specs, position_specs
from minitrain.observe.memory import MemoryMeter
from minitrain.precision import PRECISIONS
from minitrain.resolve import resolve

MODELS = {"llama": LLAMA, "llama-tied": LLAMA_TIED, "gpt2": GPT2}

# a Psi + b Psi / N bytes with Adam, by ZeRO stage (Rajbhandari et al. 2020, figure 1, with these types)
WITH_ADAM = {
    "fp64": [(32, 0), (16, 16), (8, 24), (0, 32)],
    "fp32": [(16, 0), (8, 8), (4, 12), (0, 16)],
    "fp16": [(16, 0), (4, 12), (2, 14), (0, 16)],
    "bf16": [(18, 0), (6, 12), (2, 16), (0, 18)],
    "bf16-pure": [(8, 0), (4, 4), (2, 6), (0, 8)],
    "fp8": [(18, 0), (6, 12), (2, 16), (0, 18)],
}
# Bytes of a parameter: parameter, gradient, master copy of its own, and of each moment.
TYPES = {
    "fp64": (8, 8, 0, 8),
    "fp32": (4, 4, 0, 4),
    "fp16": (2, 2, 4, 4),
    "bf16": (2, 4, 4, 4),
    "bf16-pure": (2, 2, 0, 2),
    "fp8": (2, 4, 4, 4),
}
MOMENTS = {  # of those that keep as many of them for every parameter
    "sgd": 0, "momentum": 1, "nesterov": 1, "adagrad": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "radam": 2,
    "sage": 3, "sophia-g": 2, "sophia-h": 2, "lion": 1,
}  # fmt: skip


def units(config: Config, tp_rank: int) -> Iterator[list[tuple[ParamSpec, int]]]:
    """The tensors of every unit, without a pipeline, with the elements that a tp rank holds of each."""
    model, tp = config.model, config.parallel.tp
    assert tp
    positions = [position_specs(model)] if model.arch == "gpt2" else []
    blocks = [block_specs(model, i) for i in range(model.layers)]
    for specs in [embedding_specs(model), *positions, *blocks, head_specs(model)]:
        boxes = [spec.tp_slice(tp_rank, tp) for spec in specs]
        yield [(s, math.prod(b.stop - b.start for b in box)) for s, box in zip(specs, boxes, strict=True)]


def psi(config: Config, tp_rank: int) -> int:
    align = 256 if config.optim.name == "adam8bit" else 1
    assert config.parallel.shard
    return sum(
        padded(sum(padded(n, align) for _, n in unit), config.parallel.shard * align)
        for unit in units(config, tp_rank)
    )


def measured(config: Config) -> list[tuple[int, dict[str, int]]]:
    """Of every rank its tp rank, and bytes by class."""

    def rank_main(world: Comm) -> tuple[int, dict[str, int]]:
        grid = make_grid(world, config)
        return grid.tp.rank, MemoryMeter().bytes(make_trainer(config, grid, random_weights).stage)

    p = config.parallel
    assert p.dp and p.tp and p.pp
    return run_threads(p.dp * p.tp * p.pp, rank_main, LIMIT)


def configured(model: str, precision: str, optimizer: str, zero: int, tp: int = 1) -> Config:
    config = tiny(MODELS[model], dp=3, tp=tp, zero=zero)
    config = replace(config, precision=precision, optim=replace(config.optim, name=optimizer))  # type: ignore[arg-type]
    return resolve(config, {}, 3 * tp).config


EVERY = pytest.mark.parametrize("zero", range(4))
OF_ANY = pytest.mark.parametrize("precision", PRECISIONS)


@EVERY
@OF_ANY
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tp", [1, 4])
def test_with_adam_it_is_the_textbook_s(model: str, precision: str, zero: int, tp: int) -> None:
    config = configured(model, precision, "adamw", zero, tp)
    of_each, of_shards = WITH_ADAM[precision][zero]
    for tp_rank, held in measured(config):
        n = psi(config, tp_rank)
        total = sum(held[name] for name in ("parameters", "gradients", "master", "moments"))
        assert total == of_each * n + of_shards * n // 3 and (zero == 0 or n % 3 == 0)


@EVERY
@OF_ANY
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_class_of_every_optimizer(precision: str, optimizer: str, zero: int) -> None:
    config = configured("gpt2", precision, optimizer, zero)
    n, N = psi(config, 0), 3 if zero else 1
    p, g, k, m = TYPES[precision]
    ranks = [held for _, held in measured(config)]
    for held in ranks:
        assert held["parameters"] == p * n // (3 if zero == 3 else 1)
        assert held["gradients"] == g * n // (3 if zero >= 2 else 1)
        assert held["master"] == k * n // N
        assert held["activations"] == held["buffers"] == 0
    moments = [held["moments"] for held in ranks[:N]]
    tensors = [spec for unit in units(config, 0) for spec, _ in unit]
    if optimizer in MOMENTS:
        assert moments == [MOMENTS[optimizer] * m * n // N] * N
    elif optimizer == "adam8bit":  # a byte an element, four a block of 256, for each of two moments
        assert moments == [2 * (n // N + 4 * (n // N // 256))] * N
    elif optimizer == "adafactor":  # a number for every row and column: on every rank the same
        assert moments == [m * sum(sum(spec.shape) for spec in tensors)] * N
    elif optimizer == "lamb":  # without padding; together
        assert sum(moments) == 2 * m * sum(spec.size for spec in tensors)
    else:  # of matrices muon keeps one moment, of the rest two
        assert optimizer == "muon"
        assert sum(moments) == m * sum(spec.size * (1 if spec.group == "matrix" else 2) for spec in tensors)


def test_the_table_of_types_is_that_of_the_papers() -> None:
    for name, (p, g, k, m) in TYPES.items():
        assert [(p + g + k + 2 * m, 0), (p + g, k + 2 * m), (p, g + k + 2 * m), (0, p + g + k + 2 * m)] == (
            WITH_ADAM[name]
        )
