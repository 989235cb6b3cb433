"""run.exact: every layout has the bits of one process. Losses, gradient norms, all weights and all moments
after three steps, for any dp, pp, schedule, ZeRO stage and shard, at equal tp; in every precision, with every
optimizer that it takes.

8 sequences in micro-batches of one, so dp 1, 2, 4 and 8 cut the tree of 8 leaves at every height.
"""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from launch import REPOSITORY, run_minitrain
from layouts import (
    GPT2,
    LIMIT,
    LLAMA,
    LLAMA_TIED,
    Part,
    assemble,
    batch_of,
    layouts,
    mild_weights,
    parts_of,
    tiny,
)
from pairwise import pairwise

from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.single import SingleComm
from minitrain.comm.threads import run_threads
from minitrain.config import Config, LossScaleConfig, OptimConfig, RunConfig
from minitrain.curvature import curvature_is_due, estimate_curvature
from minitrain.defaults import OPTIMIZERS
from minitrain.errors import MinitrainError
from minitrain.observe.memory import MemoryMeter
from minitrain.optim.optimizer import Elementwise
from minitrain.optim.quantised import Quantised
from minitrain.precision import PRECISIONS
from minitrain.resolve import resolve
from minitrain.step import Trainer, train_step

STEPS = 3
MODELS = {"llama": LLAMA, "llama-tied": LLAMA_TIED, "gpt2": GPT2}
ADAMW = "fp64", "adamw"  # in fp32 sums of few losses round nothing, as they are in fp64
VARIANTS = [
    *((precision, "adamw") for precision in PRECISIONS if precision != "fp64"),
    ("bf16-pure", "stochastic"),  # adamw with stochastic rounding
    ("bf16", "adam8bit"),
    ("fp16", "muon"),
    *(("fp32", name) for name in OPTIMIZERS if name not in ("adamw", "adafactor", "lamb")),
]
MIXED = [
    dict(dp=8, tp=1, pp=1, zero=0, shard=1, schedule="1f1b", sequence=False),
    dict(dp=4, tp=2, pp=1, zero=3, shard=2, schedule="1f1b", sequence=True),
    dict(dp=2, tp=2, pp=2, zero=1, shard=2, schedule="gpipe", sequence=False),
    dict(dp=2, tp=1, pp=4, zero=2, shard=2, schedule="1f1b", sequence=False),
]


def cases() -> Iterator[dict[str, Any]]:
    """AdamW in fp64 in every layout."""
    for name, model in MODELS.items():
        for layout in layouts(range(2, 9), model):
            if layout["dp"] in (1, 2, 4, 8) and (layout["dp"], layout["pp"]) != (1, 1):
                yield {"variant": ADAMW, "model": name, **layout}


ALL = list(cases())
SAMPLE = pairwise(ALL)
OTHERS = [
    {"variant": variant, "model": model, **layout}
    for variant, model, layout in itertools.product(VARIANTS, MODELS, MIXED)
]
SOME_OTHERS = OTHERS[:: len(MIXED) + 1]  # of every variant and model about one, each time in the next layout


def label(case: dict[str, Any]) -> str:
    return "{0}-{model}-dp{dp}tp{tp}pp{pp}-zero{zero}/{shard}-{schedule}{1}".format(
        "-".join(case["variant"]), "-sequence" * case["sequence"], **case
    )


def configured(variant: tuple[str, str], model: str, exact: bool = True, **layout: Any) -> Config:
    """Sophia estimates the curvature at steps 1 and 3."""
    precision, name = variant
    stochastic = name == "stochastic"
    optim = OptimConfig(
        name="adamw" if stochastic else name,  # type: ignore[arg-type]
        curvature_every=2,
        clip=0.5,
        stochastic_rounding=stochastic,
    )
    config = replace(
        tiny(MODELS[model], **layout),
        precision=precision,  # type: ignore[arg-type]
        optim=optim,
        loss_scale=LossScaleConfig(initial=16) if precision == "fp16" else LossScaleConfig(),
        run=RunConfig(exact=exact),
    )
    p = config.parallel
    assert p.dp and p.tp and p.pp and config.train.global_batch == 8
    return resolve(config, {}, p.dp * p.tp * p.pp).config


class Bits(NamedTuple):
    """What a run computed: losses and norms in hexadecimal, tensors by vector (weights, m, ...) and name."""

    losses: list[str]
    norms: list[str]
    tensors: dict[str, dict[str, Array]]


@np.errstate(all="ignore")  # as train() does
def rank_main(world: Comm, config: Config) -> tuple[list[str], list[str], dict[str, list[Part]]]:
    grid = make_grid(world, config)
    trainer = make_trainer(config, grid, mild_weights)
    results = []
    assert config.optim.lr is not None
    for step in range(1, STEPS + 1):
        batch = batch_of(config, step, grid.dp.rank)
        if curvature_is_due(config.optim, trainer, step):
            estimate_curvature(trainer, batch, config.train.seed, step)
        results.append(train_step(trainer, batch, config.optim.lr / step, step))
    assert not any(result.skipped for result in results)
    losses, norms = (
        [x.hex() for x in xs] for xs in zip(*((r.loss, r.grad_norm) for r in results), strict=True)
    )
    return losses, norms, {name: parts_of(trainer.stage, grid, of) for name, of in vectors(trainer).items()}


def vectors(trainer: Trainer) -> dict[str, dict[str, Array]]:
    """The own parts of weights and, where all are as long, of every moment, by the first parameter of their
    unit.
    """
    found: dict[str, dict[str, Array]] = {}
    elementwise = isinstance(trainer.updater.optimizer, Elementwise)
    for unit in trainer.stage.units:
        for name, vector in {"weights": unit.master, **(unit.state if elementwise else {})}.items():
            values = vector.load(slice(0, vector.size)) if isinstance(vector, Quantised) else vector
            found.setdefault(name, {})[unit.specs[0].name] = values
    return found


def bits(config: Config) -> Bits:
    p = config.parallel
    assert p.dp and p.tp and p.pp
    ranks = run_threads(p.dp * p.tp * p.pp, lambda world: rank_main(world, config), LIMIT)
    losses, norms, own = ranks[0]
    assert all((other[0], other[1]) == (losses, norms) for other in ranks)
    return Bits(losses, norms, {v: assemble(config, [rank[2][v] for rank in ranks]) for v in own})


def differences(ours: Bits, theirs: Bits) -> list[str]:
    """What has other bits."""
    found = [what for what in ("losses", "norms") if getattr(ours, what) != getattr(theirs, what)]
    assert ours.tensors.keys() == theirs.tensors.keys()
    for vector, tensors in theirs.tensors.items():
        for name, values in tensors.items():
            if not np.array_equal(ours.tensors[vector][name], values):
                found.append(f"{vector} of {name}")
    return found


@functools.cache
def of_one_process(variant: tuple[str, str], model: str, tp: int, sequence: bool, exact: bool = True) -> Bits:
    """Or of one for each tp rank."""
    return bits(configured(variant, model, exact, tp=tp, sequence=sequence))


def check(case: dict[str, Any]) -> None:
    reference = of_one_process(case["variant"], case["model"], case["tp"], case["sequence"])
    assert differences(bits(configured(**case)), reference) == []


@pytest.mark.parametrize("case", SAMPLE, ids=label)
def test_layout_has_the_bits_of_one_process(case: dict[str, Any]) -> None:
    """A sample in which every pair of values of any two fields occurs."""
    check(case)


@pytest.mark.parametrize("case", SOME_OTHERS, ids=label)
def test_variant_has_the_bits_of_one_process(case: dict[str, Any]) -> None:
    check(case)


@pytest.mark.long
@pytest.mark.parametrize("case", ALL + OTHERS, ids=label)
def test_everything_has_the_bits_of_one_process(case: dict[str, Any]) -> None:
    check(case)


@pytest.mark.parametrize("model, layout, what", [
    ("llama", dict(dp=2), "losses"),
    ("gpt2", MIXED[1], "norms"),
    ("llama-tied", dict(pp=2), "weights of embedding"),
], ids=str)  # fmt: skip
def test_without_it_the_bits_differ(model: str, layout: dict[str, Any], what: str) -> None:
    """The comparison sees what it is there for."""
    config = configured(ADAMW, model, exact=False, **layout)
    tp, sequence = layout.get("tp", 1), layout.get("sequence", False)
    assert what in differences(bits(config), of_one_process(ADAMW, model, tp, sequence, exact=False))


def test_the_norm_is_right() -> None:
    """Not only the same everywhere: as without run.exact, to rounding."""
    exact, plain = (of_one_process(ADAMW, "gpt2", 1, False, exact) for exact in (True, False))
    for ours, theirs in zip(exact.norms, plain.norms, strict=True):
        assert abs(float.fromhex(ours) - float.fromhex(theirs)) <= 1e-12 * float.fromhex(theirs)


@pytest.mark.parametrize("layout", [{}, *MIXED], ids=str)
def test_an_overflow_is_skipped_alike(layout: dict[str, Any]) -> None:
    """The scale of fp16 falls until nothing overflows, at the same step everywhere."""
    tp = layout.get("tp", 1)
    seen = [skipped_and_scale(tp=tp, sequence=layout.get("sequence", False)), skipped_and_scale(**layout)]
    assert seen[0] == seen[1]
    skipped, _ = seen[0]
    assert skipped[0] and not skipped[-1]


def skipped_and_scale(**layout: Any) -> tuple[list[bool], float]:
    config = replace(configured(("fp16", "adamw"), "gpt2", **layout), loss_scale=LossScaleConfig(2.0**22))
    p = config.parallel

    @np.errstate(all="ignore")
    def rank_main(world: Comm) -> tuple[list[bool], float]:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, mild_weights)
        skipped = [
            train_step(trainer, batch_of(config, step, grid.dp.rank), 1e-2, step).skipped
            for step in range(1, 12)
        ]
        return skipped, trainer.judge.scale

    assert p.dp and p.tp and p.pp
    ranks = run_threads(p.dp * p.tp * p.pp, rank_main, LIMIT)
    assert all(other == ranks[0] for other in ranks)
    return ranks[0]


def test_what_is_not_finite_ends_the_run() -> None:
    config = configured(("fp32", "adamw"), "llama", **MIXED[3])

    @np.errstate(all="ignore")
    def rank_main(world: Comm) -> str:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, lambda spec, box: mild_weights(spec, box) * 1e30)
        with pytest.raises(MinitrainError) as caught:
            train_step(trainer, batch_of(config, 1, grid.dp.rank), 1e-2, 7)
        assert caught.value.known_everywhere and caught.value.exit_code == 5
        return str(caught.value)

    (message,) = set(run_threads(8, rank_main, LIMIT))
    assert "is not finite; step 7" in message


@pytest.mark.parametrize("n_micro, levels", [(1, 0), (2, 1), (8, 3)])
def test_full_gradients_wait_for_their_siblings(n_micro: int, levels: int) -> None:
    """Up to one for each level of a rank's own tree, in every unit; and that of the backward at work. Blocks
    lend each other theirs.
    """
    config = configured(ADAMW, "llama", dp=8 // n_micro)

    def rank_main(world: Comm) -> None:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, mild_weights)
        train_step(trainer, batch_of(config, 1, grid.dp.rank), 1e-2, 1)
        full = Counter(unit.grad_shard.nbytes for unit in trainer.stage.units)
        held = MemoryMeter().bytes(trainer.stage)
        assert held["gradients"] == sum(size * n for size, n in full.items())
        at_work = 1 if levels else 2  # and the part to be added, in a buffer that a sibling has left
        assert held["buffers"] == sum(size * (n * levels + at_work) for size, n in full.items())

    run_threads(8 // n_micro, rank_main, LIMIT)


COMMON = (
    "--run.exact", "--train.steps", 4, "--train.eval_every", 2, "--model.width", 32, "--model.tied",
    "--data.holdout", 0.0015, "--run.sample_tokens", 0, "--run.progress", "none",
)  # fmt: skip
FOUR = ("--parallel.dp", 2, "--parallel.pp", 2, "--parallel.zero", 2)


def test_over_mpi_files_are_the_same_bytes(tmp_path: Path) -> None:
    """From the command line: one process, four ranks, and two that go on from the four's checkpoint in a
    layout of their own. Held-out losses too, of sequences that no number of ranks divides.
    """
    jobs = {
        "one": run_minitrain(*COMMON, "--run.dir", "one", cwd=tmp_path),
        "four": run_minitrain(
            *COMMON, *FOUR, "--run.dir", "four", "--run.save_every", 2, ranks=4, cwd=tmp_path
        ),
        "two": run_minitrain(
            *COMMON, "--parallel.dp", 2, "--parallel.zero", 3, "--run.dir", "two",
            "--run.resume", "four/checkpoints/step-00000002", ranks=2, cwd=tmp_path,
        ),
    }  # fmt: skip
    for name, job in jobs.items():
        assert job.returncode == 0, f"{name}: {job.stderr}"
    reference = numbers(tmp_path / "one")
    assert [step for step, *_ in reference] == [1, 2, 2, 3, 4, 4]
    assert numbers(tmp_path / "four") == reference
    assert numbers(tmp_path / "two") == reference[3:]
    for file in ("hf/model.safetensors", "checkpoints/step-00000004/state.safetensors"):
        assert len({(tmp_path / name / file).read_bytes() for name in jobs}) == 1, file


def numbers(run: Path) -> list[tuple[int, float | None, float | None, float | None]]:
    """Step, loss, norm and held-out loss of every line of its metrics."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(x["step"], x.get("loss"), x.get("grad_norm"), x.get("eval_loss")) for x in lines]


def test_what_the_bench_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts" / "bench")
    import exact

    cells = exact.bench("2x128", SingleComm(), zero=0, rounds=1)
    row = dict(zip(exact.HEADER, cells, strict=False))
    assert len(cells) == len(exact.HEADER) and row["model"] == "2x128" and row["layout"] == "dp 1, zero 0"
    assert float(row["exact/plain"]) > 0
    assert cells[5:7] == ["0.00", "0.00"] and float(cells[8]) > float(cells[7]), "bytes sent, and memory"
    float.fromhex(cells[-1])
