"""One flipped bit in what several ranks hold alike is found, and the rank and the tensor are named."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from launch import REPOSITORY, run, under_mpirun
from layouts import (
    GPT2,
    LIMIT,
    LLAMA,
    LLAMA_TIED,
    batch_of,
    layouts,
    mild_weights,
    random_weights,
    rank_run,
    tiny,
)
from pairwise import pairwise

from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.config import Config
from minitrain.errors import MinitrainError
from minitrain.optim.quantised import Quantised
from minitrain.parallel.replicas import compare_replicas
from minitrain.parallel.unit import Unit
from minitrain.step import Trainer, train_step

Where = Callable[[Trainer], Array]


def flip(array: Array) -> None:
    """The lowest bit of the middle element."""
    array.reshape(-1).view(np.uint8)[array.size // 2 * array.itemsize] ^= 1


def messages(config: Config, faults: dict[int, Where]) -> list[str]:
    """What each rank is told after a step, when a bit has flipped on some."""
    p = config.parallel
    assert p.dp and p.tp and p.pp

    def rank_main(world: Comm) -> str:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, random_weights)
        with np.errstate(all="ignore"):
            train_step(trainer, batch_of(config, 1, grid.dp.rank), 0.01, 1)
        if world.rank in faults:
            flip(faults[world.rank](trainer))
        try:
            compare_replicas(trainer.stage, trainer.updater.optimizer, grid, 7)
        except MinitrainError as error:
            assert error.known_everywhere and error.exit_code == 5
            return str(error.problems[0])
        return ""

    return run_threads(p.dp * p.tp * p.pp, rank_main, LIMIT)


def only_message(config: Config, faults: dict[int, Where]) -> str:
    told = messages(config, faults)
    assert len(set(told)) == 1, "all ranks are told the same"
    return told[0]


def with_optimizer(config: Config, name: str) -> Config:
    return replace(config, optim=replace(config.optim, name=name))


def weight(name: str) -> Where:
    """A full parameter by its name, where it is kept whole."""

    def where(trainer: Trainer) -> Array:
        for unit in trainer.stage.units:
            if name.startswith(unit.prefix):
                with unit.params() as views:
                    if name.removeprefix(unit.prefix) in views:
                        return views[name.removeprefix(unit.prefix)]
        raise KeyError(name)

    return where


def own(name: str, vector: Callable[[Unit], Array]) -> Where:
    """The own part of a vector that belongs to the parameter of that name."""

    def where(trainer: Trainer) -> Array:
        held = {h.spec.name: (unit, h.where) for unit in trainer.stage.units for h in unit.held}
        unit, place = held[name]
        return vector(unit)[place]

    return where


def quantised(unit: Unit, moment: str) -> Quantised:
    stored = unit.state[moment]
    assert isinstance(stored, Quantised)
    return stored


def block_maximum(trainer: Trainer) -> Array:
    return quantised(trainer.stage.blocks[0], "m").largest[:1]


def of_muon(trainer: Trainer) -> Array:
    unit = trainer.stage.blocks[0]
    vector = unit.state[next(key for key in unit.state if key.startswith("attn.q."))]
    assert isinstance(vector, np.ndarray)
    return vector


Case = tuple[Config, int, Where, str]

# layout, damaged rank, what is damaged there, what is told
CASES: dict[str, Case] = {
    "parameter": (
        tiny(LLAMA, dp=4), 2, weight("layers.3.mlp.up"),
        "rank 2 has other bits in the parameter layers.3.mlp.up than ranks 0-1, 3; step 7, compared over dp",
    ),
    "parameter kept whole under ZeRO 2": (
        tiny(LLAMA, dp=4, zero=2), 1, weight("layers.0.attn.norm"),
        "rank 1 has other bits in the parameter layers.0.attn.norm than ranks 0, 2-3; "
        "step 7, compared over dp",
    ),
    "own part of a parameter under ZeRO 3": (
        tiny(LLAMA, dp=6, zero=3, shard=2), 5, own("head", lambda unit: unit.param_shard),
        "rank 5 has other bits in the parameter head than ranks 1, 3; step 7, compared over replica",
    ),
    "master copy": (
        replace(tiny(LLAMA, dp=3), precision="bf16"), 0, own("embedding", lambda unit: unit.master),
        "rank 0 has other bits in the master copy of embedding than ranks 1-2; step 7, compared over replica",
    ),
    "moment": (
        tiny(LLAMA, dp=6, zero=1, shard=2), 4, own("embedding", lambda unit: unit.state["v"]),  # type: ignore[arg-type, return-value]
        "rank 4 has other bits in v of embedding than ranks 0, 2; step 7, compared over replica",
    ),
    "code of 8 bits": (
        with_optimizer(tiny(LLAMA, dp=3), "adam8bit"), 2,
        own("layers.1.attn.o", lambda unit: quantised(unit, "v").codes),
        "rank 2 has other bits in v of layers.1.attn.o than ranks 0-1; step 7, compared over replica",
    ),
    "maximum of a block of 8 bits": (
        with_optimizer(tiny(LLAMA, dp=3), "adam8bit"), 2, block_maximum,
        "rank 2 has other bits in m of layers.0.attn.norm than ranks 0-1; step 7, compared over replica",
    ),
    "moment of a whole tensor": (
        with_optimizer(tiny(LLAMA, dp=3), "muon"), 1, of_muon,
        "of layers.0.attn.q than ranks 0, 2; step 7, compared over replica",
    ),
    "gain that every tp rank holds": (
        tiny(LLAMA, tp=4), 3, weight("head.norm"),
        "rank 3 has other bits in the parameter head.norm than ranks 0-2; step 7, compared over tp",
    ),
    "copy of a kv head": (
        tiny(LLAMA_TIED, tp=4), 3, weight("layers.2.attn.k"),
        "rank 3 has other bits in the parameter layers.2.attn.k than ranks 0-2; step 7, compared over tp",
    ),
    "copy of one of two kv heads": (
        tiny(LLAMA, tp=4), 3, weight("layers.2.attn.k"),
        "rank 2 and rank 3 hold different bits of the parameter layers.2.attn.k, "
        "and no majority tells who is right; step 7, compared over kv",
    ),
    "tied matrix": (
        tiny(GPT2, pp=3), 2, weight("embedding"),
        "rank 0 and rank 2 hold different bits of the parameter embedding, "
        "and no majority tells who is right; step 7, compared over tied",
    ),
    "under ZeRO 3 a gain is compared over tp": (
        tiny(LLAMA, dp=2, tp=2, zero=3), 1, own("head.norm", lambda unit: unit.param_shard),
        "rank 0 and rank 1 hold different bits of the parameter head.norm, "
        "and no majority tells who is right; step 7, compared over tp",
    ),
}  # fmt: skip


@pytest.mark.parametrize("config, rank, where, told", CASES.values(), ids=CASES)
def test_one_flipped_bit_is_found(config: Config, rank: int, where: Where, told: str) -> None:
    assert told in only_message(config, {rank: where})


@pytest.mark.parametrize("config", [case[0] for case in CASES.values()], ids=CASES)
def test_nothing_is_told_where_nothing_differs(config: Config) -> None:
    assert only_message(config, {}) == ""


MODELS = {"llama": LLAMA, "llama-tied": LLAMA_TIED, "gpt2": GPT2}
SAMPLE = pairwise(
    [
        {"model": model, "optimizer": optimizer, "precision": precision, **layout}
        for model, config in MODELS.items()
        for layout in layouts(range(4, 5), config)
        for optimizer in ("adamw", "adam8bit", "lamb", "adafactor", "muon", "sophia-g")
        for precision in ("fp32", "fp16", "bf16", "bf16-pure", "fp8")
    ]
)


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: "-".join(map(str, case.values())))
def test_no_false_alarm(case: dict[str, Any]) -> None:
    """A sample in which every pair of values of any two fields occurs."""
    fields = {k: v for k, v in case.items() if k not in ("model", "optimizer", "precision")}
    config = with_optimizer(tiny(MODELS[case["model"]], **fields), case["optimizer"])
    config = replace(config, precision=case["precision"])
    run_threads(4, lambda world: rank_run(world, config, 2, fill=mild_weights, compared=True), LIMIT)


def test_several_damaged_tensors_and_ranks() -> None:
    up, gate = weight("layers.0.mlp.up"), weight("layers.0.mlp.gate")
    config = tiny(LLAMA, dp=5)
    assert "ranks 1, 4 have other bits in the parameter layers.0.mlp.gate and 1 more than ranks 0, 2-3" in (
        only_message(config, {1: up, 4: gate})
    )
    assert "rank 0 and rank 1 hold different bits of" in only_message(tiny(LLAMA, dp=2), {1: up})


def test_a_damaged_pipeline_stage_is_told_to_all_stages() -> None:
    told = only_message(tiny(LLAMA, dp=2, pp=3), {5: weight("layers.4.mlp.down")})
    assert "the parameter layers.4.mlp.down" in told and "compared over dp" in told


def test_a_run_ends_with_one_line(tmp_path) -> None:
    faulty = [REPOSITORY / "tests" / "faulty.py", "flip", 2, 3, "--"]
    arguments = "--train.steps 50 --run.compare_every 2 --model.width 32 --data.holdout 0.001 --parallel.dp 3"
    command = [str(part) for part in ("python", *faulty, *arguments.split(), "--run.dir", "run")]
    job = run(under_mpirun(command, 3), cwd=tmp_path, timeout=60)
    assert job.returncode != 0
    lines = [line for line in job.stderr.splitlines() if line.startswith("minitrain: error:")]
    assert len(lines) == 1, job.stderr
    assert (
        "rank 2 has other bits in the parameter embedding than ranks 0-1; step 4, compared over dp"
        in lines[0]
    )
