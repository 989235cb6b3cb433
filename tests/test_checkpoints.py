"""Checkpoints on threads: from any layout to any other; a resumed run is the unbroken one, bit for bit."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from layouts import GPT2, LIMIT, LLAMA, LLAMA_TIED, batch_of, mild_weights, tiny
from pairwise import pairwise
from safetensors.numpy import load_file

from minitrain.build import make_trainer
from minitrain.checkpoint.catalogue import checkpoint_name, checkpoints_in
from minitrain.checkpoint.listing import verify
from minitrain.checkpoint.manifest import DataSeen, read_manifest
from minitrain.checkpoint.resuming import check_files, restore, saved_values
from minitrain.checkpoint.saving import Saver
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.config import Config, DataConfig, LossScaleConfig, OptimConfig, RunConfig
from minitrain.curvature import curvature_is_due, estimate_curvature
from minitrain.defaults import OPTIMIZERS
from minitrain.precision import PRECISIONS
from minitrain.resolve import fill_optim
from minitrain.step import train_step

DATA = DataSeen(1, "0" * 32)
MODELS = {
    "llama": replace(LLAMA, layers=3),
    "tied": replace(LLAMA_TIED, layers=3),
    "gpt2": replace(GPT2, layers=3),
}


class Job(NamedTuple):
    """Some steps of a run, all checkpoints of which are kept."""

    config: Config
    directory: Path
    last: int
    saved_at: tuple[int, ...]
    resume: Path | None = None
    background: bool = False


def run(job: Job) -> list[tuple[float, float]]:
    """Losses and norms of the steps that were taken."""
    p = job.config.parallel
    assert p.dp and p.tp and p.pp
    results = run_threads(p.dp * p.tp * p.pp, lambda world: _on_rank(world, job), LIMIT)
    assert all(result == results[0] for result in results)
    return results[0]


@np.errstate(all="ignore")
def _on_rank(world: Comm, job: Job) -> list[tuple[float, float]]:
    config, begun, seen = job.config, 0, []
    grid = make_grid(world, config)
    trainer = make_trainer(config, grid, saved_values(config, job.resume) if job.resume else mild_weights)
    if job.resume:
        manifest = read_manifest(job.resume)
        check_files(job.resume, manifest, world)
        restore(config, trainer, job.resume, manifest)
        begun = manifest.step
    saver = Saver(config, trainer, job.directory, DATA, "ids")
    if begun in job.saved_at:
        assert not saver.save(begun, begun)
    for step in range(begun + 1, job.last + 1):
        batch = batch_of(config, step, grid.dp.rank)
        if curvature_is_due(config.optim, trainer, step):
            estimate_curvature(trainer, batch, config.train.seed, step)
        assert config.optim.lr
        result = train_step(trainer, batch, config.optim.lr / step, step)
        seen.append((result.loss, result.grad_norm))
        if step in job.saved_at:
            assert not saver.save(step, step, job.background)
    assert not saver.finish()
    return seen


def configured(case: dict[str, object], prefix: str = "") -> Config:
    """A configuration from the fields of a case; layout fields may have a prefix."""
    layout = {name: case[prefix + name] for name in ("dp", "tp", "pp", "zero", "shard", "sequence")}
    name, precision = str(case["optim"]), str(case["precision"])
    config = tiny(MODELS[str(case["model"])], **layout)
    optim = replace(OptimConfig(name=name, clip=1.0, schedule="constant", warmup=0, curvature_every=2))
    if precision == "bf16-pure" and case.get("stochastic"):
        optim = replace(optim, stochastic_rounding=True)
    scale = LossScaleConfig(initial=2.0**14, growth_interval=2) if precision == "fp16" else LossScaleConfig()
    return replace(
        config,
        optim=fill_optim(optim, 10),
        train=replace(config.train, global_batch=8),
        loss_scale=scale,
        precision=precision,  # type: ignore[arg-type]
        data=DataConfig(path="/ids.bin"),  # 37 ids are too few for bytes
        run=RunConfig(keep=10),
    )


def files_of(directory: Path) -> tuple[bytes, ...]:
    return tuple((directory / name).read_bytes() for name in ("model.safetensors", "state.safetensors"))


def legal_layouts(prefix: str = "") -> Iterator[dict[str, object]]:
    for dp, tp, pp in itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 3)):
        if dp * tp * pp > 8:
            continue
        zeros = [(0, 1), *((zero, shard) for zero in (1, 2, 3) for shard in {2, dp} if dp > 1)]
        for (zero, shard), sequence in itertools.product(zeros, (False, True) if tp > 1 else (False,)):
            fields = dict(dp=dp, tp=tp, pp=pp, zero=zero, shard=shard, sequence=sequence)
            yield {prefix + name: value for name, value in fields.items()}


def sampled(cases: list[dict[str, object]], n: int) -> list[object]:
    """The first `n`, and the others with --long alone."""
    return [case if i < n else pytest.param(case, marks=pytest.mark.long) for i, case in enumerate(cases)]


def combinations() -> Iterator[dict[str, object]]:
    """Optimizers, precisions, models."""
    for optim, precision, model in itertools.product(OPTIMIZERS, PRECISIONS, MODELS):
        if optim != "sophia-h" or precision in ("fp64", "fp32"):
            yield dict(optim=optim, precision=precision, model=model)


def moves() -> list[dict[str, object]]:
    """From one layout to another; all of them are some millions, so each half is sampled first."""
    starts = pairwise({**a, **b} for a, b in itertools.product(legal_layouts("from_"), combinations()))
    ends = list(legal_layouts("to_"))
    return [{**start, **ends[(7 * i) % len(ends)]} for i, start in enumerate(starts)]


@pytest.mark.parametrize("case", sampled(moves(), 40), ids=lambda case: "-".join(map(str, case.values())))
def test_any_layout_to_any_layout(case: dict[str, object], tmp_path: Path) -> None:
    """Saved in one layout, loaded in another, saved again: the same bytes. Training goes on as it would."""
    before, after = configured(case, "from_"), configured(case, "to_")
    first = run(Job(before, tmp_path / "a", 3, saved_at=(2, 3)))
    at_2 = tmp_path / "a" / checkpoint_name(2)
    second = run(Job(after, tmp_path / "b", 3, saved_at=(2, 3), resume=at_2))
    if (
        case["optim"] != "adam8bit" or case["from_tp"] == case["to_tp"]
    ):  # whose blocks are not cut by tp alike
        assert files_of(at_2) == files_of(tmp_path / "b" / checkpoint_name(2))
    assert "complete" in verify(tmp_path / "b" / checkpoint_name(2))
    if case["precision"] == "fp64":
        (loss, norm), (other_loss, other_norm) = first[2], second[0]
        assert abs(loss - other_loss) <= 1e-13 * loss
        tolerance = (
            1e-12 if case["optim"] not in ("adam8bit", "lion", "sage", "sophia-g", "sophia-h") else 1e-9
        )
        assert abs(norm - other_norm) <= tolerance * norm


def resumptions() -> list[dict[str, object]]:
    cases = (
        {**a, **b, "background": c} for a in legal_layouts() for b in combinations() for c in (False, True)
    )
    return pairwise(cases)


@pytest.mark.parametrize(
    "case", sampled(resumptions(), 40), ids=lambda case: "-".join(map(str, case.values()))
)
def test_a_resumed_run_is_the_unbroken_one(case: dict[str, object], tmp_path: Path) -> None:
    """From any of its checkpoints: losses, norms, and every bit of what is saved in the end."""
    config, end = configured(case | {"stochastic": True}), 4
    whole = run(Job(config, tmp_path / "whole", end, (1, 2, 3, end), background=bool(case["background"])))
    assert len(checkpoints_in(tmp_path / "whole")) == end
    for begun in (1, 2, 3):
        start = tmp_path / "whole" / checkpoint_name(begun)
        rest = run(Job(config, tmp_path / f"from {begun}", end, (end,), resume=start))
        assert rest == whole[begun:]
        written = [files_of(tmp_path / name / checkpoint_name(end)) for name in ("whole", f"from {begun}")]
        assert written[0] == written[1]


@pytest.mark.parametrize("before, after", list(itertools.permutations(PRECISIONS, 2)))
def test_any_precision_to_any_precision(before: str, after: str, tmp_path: Path) -> None:
    """Weights and moments are those of the file, rounded where the new type is narrower."""
    case: dict[str, object] = dict(
        dp=2, tp=1, pp=1, zero=2, shard=2, sequence=False, optim="adamw", model="tied"
    )
    run(Job(configured(case | {"precision": before}), tmp_path / "a", 2, (2,)))
    config = configured(case | {"precision": after, "zero": 0, "shard": 1})
    run(Job(config, tmp_path / "b", 3, (2, 3), resume=tmp_path / "a" / checkpoint_name(2)))
    for name in ("model.safetensors", "state.safetensors"):
        old, new = (load_file(tmp_path / run / checkpoint_name(2) / name) for run in "ab")
        assert {n for n in old if not n.startswith("fp8")} == {n for n in new if not n.startswith("fp8")}
        for tensor in new:
            if not tensor.startswith("fp8"):
                dtype = PRECISIONS[after].master
                rounded = old[tensor].astype(np.float32 if dtype.itemsize == 2 else dtype).astype(dtype)
                assert new[tensor].dtype == dtype and np.array_equal(new[tensor], rounded)


def test_the_background_writes_what_was_there_at_that_step(tmp_path: Path) -> None:
    case: dict[str, object] = dict(
        dp=2, tp=2, pp=1, zero=1, shard=2, sequence=True, optim="adam8bit", precision="fp8", model="llama"
    )
    config = configured(case)
    run(Job(config, tmp_path / "now", 4, (2,)))
    run(Job(config, tmp_path / "later", 4, (2,), background=True))
    assert files_of(tmp_path / "now" / checkpoint_name(2)) == files_of(
        tmp_path / "later" / checkpoint_name(2)
    )
