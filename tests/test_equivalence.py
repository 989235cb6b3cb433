"""Is the parallel right? Every layout against one process, in fp64: losses, every gradient by name, the
global norm.
"""

import functools
from dataclasses import replace
from typing import Any

import pytest
from layouts import GPT2, LLAMA, LLAMA_TIED, Outcome, assert_same, global_batch, layouts, run_layout, tiny
from pairwise import pairwise

from minitrain.config import ModelConfig

MODELS = {"llama": LLAMA, "llama-tied": LLAMA_TIED, "gpt2": GPT2}
ALL = [{"model": name, **layout} for name, model in MODELS.items() for layout in layouts(range(2, 9), model)]
SAMPLE = pairwise(ALL)


@functools.cache
def serial(model: str, batch: int) -> Outcome:
    config = tiny(MODELS[model])
    return run_layout(replace(config, train=replace(config.train, global_batch=batch)))


def label(layout: dict[str, Any]) -> str:
    return "{model}-dp{dp}tp{tp}pp{pp}-zero{zero}/{shard}-{schedule}{0}".format(
        "-sequence" * layout["sequence"], **layout
    )


def check(layout: dict[str, Any]) -> None:
    fields = {k: v for k, v in layout.items() if k != "model"}
    reference = serial(layout["model"], global_batch(layout["dp"]))
    assert_same(run_layout(tiny(MODELS[layout["model"]], **fields)), reference)


@pytest.mark.parametrize("layout", SAMPLE, ids=label)
def test_layout_equals_one_process(layout: dict[str, Any]) -> None:
    """A sample in which every pair of values of any two fields occurs."""
    check(layout)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_rank_that_holds_nothing_but_padding(zero: int) -> None:
    """Every unit has 14, 26 or 2 elements: 8 shards of 2, 4 or 1, and of the last nothing is left."""
    model = replace(LLAMA_TIED, layers=1, width=2, heads=1, ffn=1, vocab=7, seq_len=7)
    assert_same(run_layout(tiny(model, dp=8, zero=zero)), run_layout(tiny(model)))


@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=lambda model: model.arch)
@pytest.mark.parametrize(
    "parallel", [dict(tp=4), dict(dp=2, tp=2, pp=2, zero=3)], ids=["tp4", "dp2tp2pp2-zero3"]
)
def test_rows_of_several_sequences_are_cut_anywhere(model: ModelConfig, parallel: dict[str, int]) -> None:
    """Micro-batches of two sequences of 6: under `sequence` 4 tp ranks hold 3 rows each, half a sequence."""
    model = replace(model, seq_len=6)
    train = replace(tiny().train, micro_batch=2, global_batch=8)
    serial, ours = (
        replace(tiny(model, **fields), train=train) for fields in ({}, {**parallel, "sequence": True})
    )
    assert_same(run_layout(ours), run_layout(serial))


@pytest.mark.parametrize("name", MODELS)
def test_ranks_without_a_part_of_the_vocabulary_or_of_the_mlp(name: str) -> None:
    """3 ids and an ffn of 2 over 4 tp ranks: some hold nothing."""
    model = replace(MODELS[name], vocab=3, ffn=2)
    reference = run_layout(tiny(model))
    for layout in (
        dict(tp=4),
        dict(tp=4, sequence=True),
        dict(dp=2, tp=4, zero=1),
        dict(dp=2, tp=4, zero=3),
        dict(tp=4, pp=2),
    ):
        assert_same(run_layout(tiny(model, **layout)), reference)


@pytest.mark.long
@pytest.mark.parametrize("layout", ALL, ids=label)
def test_every_layout_equals_one_process(layout: dict[str, Any]) -> None:
    check(layout)
