"""What both sides compute: Llamas of two sizes, their weights, their data, their optimizer."""

from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.config import ModelConfig, OptimConfig
from minitrain.model.spec import model_specs


class Problem(NamedTuple):
    model: ModelConfig
    steps_a_turn: int  # that are timed, so that turns of all problems are about equally long


def llama(layers: int, width: int, ffn: int, seq_len: int) -> ModelConfig:
    return ModelConfig(
        arch="llama", layers=layers, width=width, heads=4, kv_heads=4, ffn=ffn, vocab=256, seq_len=seq_len,
        tied=False,
    )  # fmt: skip


PROBLEMS = {
    "2x128": Problem(llama(layers=2, width=128, ffn=352, seq_len=64), steps_a_turn=20),
    "4x256": Problem(llama(layers=4, width=256, ffn=704, seq_len=256), steps_a_turn=2),
}
BATCH = 8  # sequences of a step, over all ranks
LEARNING_RATE = 1e-3
OPTIM = OptimConfig(name="adamw", betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0)


def weights(model: ModelConfig) -> dict[str, Array]:
    """Random numbers everywhere, the output projections too, which otherwise start at zero."""
    rng = np.random.default_rng(0)
    return {
        spec.name: (rng.normal(size=spec.shape) * 0.02 + (len(spec.shape) == 1)).astype(np.float32)
        for spec in model_specs(model)
    }


def batches(model: ModelConfig) -> list[tuple[Array, Array]]:
    """(ids_BT, targets_BT) of some steps; training starts over after the last."""
    tokens = np.random.default_rng(1).integers(model.vocab, size=(8, BATCH, model.seq_len + 1))
    return [(batch[:, :-1].copy(), batch[:, 1:].copy()) for batch in tokens]
