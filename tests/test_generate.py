"""Text is the same whatever the layout, and distributed as the softmax says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import GPT2, LIMIT, LLAMA, random_weights, tiny

from minitrain.arrays.types import Array
from minitrain.checkpoint.huggingface import HFWriter, commit_hf, create_hf, partial_directory
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.config import ModelConfig
from minitrain.errors import CheckpointError, NumericsError
from minitrain.generate import continue_tokens, generate_text
from minitrain.model.spec import ParamSpec, model_specs
from minitrain.parallel.stage import Stage
from minitrain.parallel.unit import Fill

MODELS = {"llama": LLAMA, "gpt2": GPT2}
PROMPT = np.array([5, 1, 30])


def text(
    model: ModelConfig,
    temperature: float = 0.7,
    seed: int = 0,
    fill: Fill = random_weights,
    prompt: Array = PROMPT,
    **parallel: Any,
) -> Array:
    """Longer than the model's 8 positions, so that its window slides."""
    config = tiny(model, **parallel)

    def rank_main(world: Comm) -> Array:
        grid = make_grid(world, config)
        stage = Stage(config, grid, fill)
        return continue_tokens(stage, grid, prompt, 12, temperature, seed)

    p = config.parallel
    assert p.dp and p.tp and p.pp
    ranks = run_threads(p.dp * p.tp * p.pp, rank_main, LIMIT)
    assert all(np.array_equal(other, ranks[0]) for other in ranks)
    return ranks[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_every_layout_writes_the_same_text(name: str, temperature: float) -> None:
    model = MODELS[name]
    serial = text(model, temperature)
    assert np.array_equal(serial[:3], PROMPT) and (temperature == 0 or len(set(serial.tolist())) > 3)
    for parallel in (
        dict(tp=4),
        dict(tp=2, sequence=True),
        dict(pp=3),
        dict(dp=2, tp=2, pp=2, zero=3, sequence=True),
    ):
        assert np.array_equal(text(model, temperature, **parallel), serial), parallel


def test_of_equal_logits_every_layout_takes_the_first() -> None:
    """A head of zeros makes all logits 0."""

    def fill(spec: ParamSpec, box: tuple[slice, ...]) -> Array:
        return random_weights(spec, box) * (spec.name != "head")

    for parallel in ({}, dict(tp=4)):
        assert not text(LLAMA, 0.0, fill=fill, **parallel)[3:].any()


@pytest.mark.parametrize("parallel", [{}, dict(tp=2, pp=2)], ids=["serial", "tp2pp2"])
def test_logits_that_are_no_numbers_are_refused(parallel: dict[str, int]) -> None:
    with pytest.raises(NumericsError, match="no logit is a number; token 3 of the text"):
        text(LLAMA, fill=lambda spec, box: random_weights(spec, box) * np.nan, **parallel)


def test_a_vocabulary_smaller_than_tp() -> None:
    model = replace(LLAMA, vocab=3)
    prompt = np.array([0, 2, 1])
    assert np.array_equal(text(model, tp=4, prompt=prompt), text(model, prompt=prompt))


def test_another_seed_another_text() -> None:
    assert not np.array_equal(text(LLAMA, seed=1), text(LLAMA))


def test_the_next_token_follows_the_softmax() -> None:
    """Frequencies of the first new token over 2,000 seeds, within 4 standard deviations of softmax(logits /
    temperature).
    """
    config = tiny(LLAMA)

    def rank_main(world: Comm) -> tuple[Array, Array]:
        grid = make_grid(world, config)
        stage = Stage(config, grid, random_weights)
        drawn = [continue_tokens(stage, grid, PROMPT, 1, 2.0, seed)[-1] for seed in range(2000)]
        logits_NV, _ = stage.logits(stage.infer(PROMPT, PROMPT.size))
        return np.bincount(drawn, minlength=config.model.vocab) / 2000, logits_NV[-1]

    frequency, logits_V = run_threads(1, rank_main)[0]
    p = np.exp(logits_V / 2.0 - (logits_V / 2.0).max())
    p /= p.sum()
    assert np.all(np.abs(frequency - p) <= 4 * np.sqrt(p * (1 - p) / 2000) + 1e-3)
    assert np.abs(frequency - p[::-1]).max() > 0.05  # another distribution would be seen


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A Hugging Face directory of LLAMA with random weights; it has 37 ids and no tokenizer."""
    directory = tmp_path / "hf"
    partial = partial_directory(directory)
    create_hf(partial, LLAMA, np.dtype(np.float32), None)
    writer = HFWriter(partial, LLAMA)
    for spec in model_specs(LLAMA):
        box = tuple(slice(0, n) for n in spec.shape)
        writer.write(spec, box, random_weights(spec, box))
    writer.flush()
    commit_hf(partial, directory)
    return directory


def test_generate_continues_a_prompt_of_ids(weights: Path) -> None:
    assert generate_text(str(weights), "5 1 30", 12, 0.0, 0) == " ".join(map(str, text(LLAMA, 0.0).tolist()))


def test_generate_takes_a_run_directory(weights: Path, tmp_path: Path) -> None:
    assert weights == tmp_path / "hf"
    assert generate_text(str(tmp_path), "5 1", 3, 0.0, 0) == generate_text(str(weights), "5 1", 3, 0.0, 0)


@pytest.mark.parametrize("prompt", ["In the beginning", "5 37", "-1", " "])
def test_generate_refuses_a_prompt_that_the_model_does_not_know(weights: Path, prompt: str) -> None:
    with pytest.raises(CheckpointError, match="ids"):
        generate_text(str(weights), prompt, 3, 0.0, 0)
