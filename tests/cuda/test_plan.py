"""What a rank keeps on a GPU is what is predicted, by class and to the byte, with each form of attention."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from cuda.devices import on_gpu
from layouts import GPT2, LIMIT, LLAMA, LLAMA_TIED, batch_of, mild_weights, on_device, tiny
from pairwise import pairwise

from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import World
from minitrain.comm.threads import run_threads
from minitrain.config import Config
from minitrain.observe.traffic import places
from minitrain.ops.cuda.attention import ROW_BYTES, WIDTHS, supports
from minitrain.plan.activations import FLASH, FLASH_ROW, activations
from minitrain.plan.buffers import buffers
from minitrain.plan.held import Spot
from minitrain.plan.memory import persistent
from minitrain.precision import PRECISIONS
from minitrain.step import train_step

pytestmark = pytest.mark.usefixtures("gpu")  # skips where there is none

WIDE = dict(width=64, heads=2, kv_heads=2)  # heads of 32, which flash attention has kernels for
MODELS = {
    "llama": replace(LLAMA, layers=2),
    "llama of wide heads": replace(LLAMA, layers=2, **WIDE),
    "gpt2": replace(GPT2, layers=3),
    "gpt2 of wide heads": replace(GPT2, layers=3, **WIDE),
    "tied": replace(LLAMA_TIED, layers=2),
}


def measured(config: Config) -> list[dict[str, int]]:
    def rank_main(world: World) -> dict[str, int]:
        device, world = on_gpu(world)
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, mild_weights, device)
        train_step(trainer, on_device(batch_of(config, 1, grid.dp.rank), device), 1e-3, 1)
        return trainer.meter.bytes(trainer.stage)

    return run_threads(len(places(config)), rank_main, LIMIT)


LAYOUTS: dict[str, dict[str, Any]] = {
    "alone": dict(),
    "sharded": dict(dp=2, tp=2, zero=3, sequence=True),
    "pipeline": dict(pp=2),
    "recomputed": dict(pp=2, tp=2, recompute="full"),
    "scores recomputed": dict(pp=2, recompute="selective"),
}
CASES = itertools.product(MODELS, LAYOUTS, ("auto", "materialised"), ("fp32", "fp16", "bf16", "fp8"))
SAMPLE = pairwise(
    dict(zip(("model", "layout", "attention", "precision"), case, strict=True)) for case in CASES
)


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: "-".join(case.values()))
def test_predicted_is_measured(case: dict[str, Any]) -> None:
    """A sample in which every pair of values of any two fields occurs."""
    config = tiny(MODELS[case["model"]], **LAYOUTS[case["layout"]])
    config = replace(config, precision=case["precision"], attention=case["attention"])
    for place, held in zip(places(config), measured(config), strict=True):
        spot = Spot(place.pp, place.tp, place.shard)
        more = {"activations": activations(config, spot, gpu=True), "buffers": buffers(config, spot)}
        assert {**persistent(config, spot)._asdict(), **more} == held


def test_flash_attention_is_where_the_plan_says() -> None:
    assert FLASH == WIDTHS and FLASH_ROW == ROW_BYTES
    for types in PRECISIONS.values():
        for width in (16, 32, 64, 96, 128, 256):
            assert supports(width, types.activation) == (
                width in FLASH and width * types.param.itemsize <= FLASH_ROW
            )
