"""What all contenders compute: models, batches, weights, data, optimizer."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.config import ModelConfig, OptimConfig
from minitrain.model.spec import model_specs
from minitrain.resolve import fill_model

LEARNING_RATE = 1e-4
OPTIM = OptimConfig(name="adamw", betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0)
STD = 0.02
DIFFERENT_BATCHES = 4  # then they come again


class Problem(NamedTuple):
    """A step takes `micro_batches` micro-batches of `micro_batch` sequences."""

    model: ModelConfig
    micro_batch: int
    micro_batches: int
    ids: int  # those below it occur in the data

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.micro_batches * self.micro_batch * self.model.seq_len


def gpt2(layers: int, width: int, heads: int) -> ModelConfig:
    """The vocabulary is padded to a multiple of 128, as is usual on GPUs."""
    return fill_model(
        ModelConfig(arch="gpt2", layers=layers, width=width, heads=heads, vocab=50304, seq_len=1024)
    )


LLAMA = ModelConfig(
    arch="llama", layers=16, width=2048, heads=32, kv_heads=8, ffn=8192, vocab=32768, seq_len=2048, tied=False
)
# Micro-batches with which every contender fits into 80 GB.
PROBLEMS = {
    "gpt2-124M": Problem(gpt2(layers=12, width=768, heads=12), 32, 2, ids=50257),
    "gpt2-350M": Problem(gpt2(layers=24, width=1024, heads=16), 16, 2, ids=50257),
    "gpt2-1.5B": Problem(gpt2(layers=48, width=1600, heads=25), 8, 2, ids=50257),
    "llama-1B": Problem(LLAMA, 4, 2, ids=32768),
}


def make_weights(model: ModelConfig) -> Callable[[str], Array]:
    """A function of a parameter's name that gives all of it, fp32.

    Random numbers everywhere, the output projections too, which otherwise start at zero. To draw 1.5 billion
    would take longer than the comparison, so there are 2^24 and some, of which each tensor takes a run of its
    own, from the beginning again after the last.
    """
    noise = np.random.default_rng(0).standard_normal(2**24 + 43, np.float32)
    noise *= STD
    specs = model_specs(model)
    places = {spec.name: 10007 * i % (noise.size // 2) for i, spec in enumerate(specs)}
    by_name = {spec.name: spec for spec in specs}

    def weights(name: str) -> Array:
        spec = by_name[name]
        values = np.resize(noise[places[name] :], spec.shape)
        return values + np.float32(1) if spec.init_std is None else values

    return weights


def make_batches(problem: Problem) -> list[tuple[Array, Array]]:
    """(ids_MN, targets_MN) of some steps, int64. The probability of an id falls with its number as that of
    words with their rank: some rows of the embedding are read, and their gradients added up, very often.
    """
    model = problem.model
    shape = (DIFFERENT_BATCHES, problem.micro_batches, problem.micro_batch, model.seq_len + 1)
    uniform = np.random.default_rng(1).random(shape)
    tokens = np.exp(uniform * math.log(problem.ids + 1)).astype(np.int64) - 1
    assert tokens.min() >= 0 and tokens.max() < problem.ids
    rows = (problem.micro_batches, -1)
    return [
        (
            np.ascontiguousarray(batch[..., :-1]).reshape(rows),
            np.ascontiguousarray(batch[..., 1:]).reshape(rows),
        )
        for batch in tokens
    ]
