"""Recomputation is no other computation: the bits are those of a run that keeps everything, in every layout
and every precision. What it keeps instead is held to a closed form in tests/plan/test_memory.py, and what it
sends in tests/observe/test_traffic.py.
"""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from layouts import GPT2, LLAMA, LLAMA_TIED, layouts, mild_weights, run_layout, tiny
from pairwise import pairwise

from minitrain.config import Config, LossScaleConfig

MODELS = {"llama": LLAMA, "llama-tied": LLAMA_TIED, "gpt2": GPT2}
PRECISIONS = ("fp64", "fp32", "fp16", "bf16", "bf16-pure", "fp8")
SAMPLE = pairwise(
    {"recompute": recompute, "precision": precision, "model": name, "exact": exact, **layout}
    for recompute, precision, exact in itertools.product(("selective", "full"), PRECISIONS, (False, True))
    for name, model in MODELS.items()
    for layout in layouts(range(1, 5), model)
    if not exact or layout["dp"] in (1, 2, 4)
)
STEPS = 2


def label(case: dict[str, Any]) -> str:
    return "{recompute}-{precision}-{model}{1}-dp{dp}tp{tp}pp{pp}-zero{zero}/{shard}-{schedule}{0}".format(
        "-sequence" * case["sequence"], "-exact" * case["exact"], **case
    )


def configured(model: str, precision: str, exact: bool, recompute: str, **layout: Any) -> Config:
    config = tiny(MODELS[model], recompute=recompute, **layout)
    run, scale = replace(config.run, exact=exact), LossScaleConfig(initial=16)
    return replace(config, precision=precision, run=run, loss_scale=scale)


@pytest.mark.parametrize("case", SAMPLE, ids=label)
def test_the_bits_are_those_of_a_run_that_keeps_all(case: dict[str, Any]) -> None:
    ours, kept = (
        run_layout(configured(**{**case, "recompute": recompute}), STEPS, mild_weights)
        for recompute in (case["recompute"], "none")
    )
    assert ours.losses == kept.losses and ours.norms == kept.norms
    for mine, theirs in zip((*ours.grads, ours.weights), (*kept.grads, kept.weights), strict=True):
        for name, values in theirs.items():
            assert np.array_equal(mine[name], values), name
