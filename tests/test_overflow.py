"""An overflow anywhere in fp16: every rank skips the same step, and nothing of it remains but a lower scale.

In other precisions a gradient that is not finite ends the run, named.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from layouts import LIMIT, LLAMA, batch_of, overflow, random_weights, tiny

from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.comm.grid import Grid, make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import PeerLostError, run_threads
from minitrain.config import Config, LossScaleConfig
from minitrain.errors import MinitrainError
from minitrain.optim.judge import Judge
from minitrain.optim.loss_scale import LossScale
from minitrain.step import train_step

STEPS, BAD = 4, 2
LAYOUTS = {"zero0": dict(zero=0), "zero1": dict(zero=1), "zero2": dict(zero=2), "zero3": dict(zero=3)}
Where = Callable[[Grid], bool]
PLACES: dict[str, Where] = {
    "one tp rank": lambda g: (g.tp.rank, g.pp.rank, g.dp.rank) == (1, 0, 0),
    "one pp stage": lambda g: g.pp.rank == 1,
    "one dp rank": lambda g: (g.tp.rank, g.pp.rank, g.dp.rank) == (0, 0, 1),
}


class Seen(NamedTuple):
    """What one rank saw of a run."""

    skipped: list[bool]
    scales: list[float]  # of every step, and after the last
    master: list[Array]
    param: list[Array]
    moments: list[Array]
    n_updates: int


def configured(precision: str = "fp16", **parallel: object) -> Config:
    config = tiny(LLAMA, dp=2, tp=2, pp=2, **parallel)
    return replace(config, precision=precision, loss_scale=LossScaleConfig(initial=64.0))


def run(config: Config, plant: Where | None, leave_out: bool = False) -> list[Seen]:
    """With an overflow at step BAD where `plant` says; or without that step at all, but for its scale."""

    @np.errstate(all="ignore")
    def rank_main(world: Comm) -> Seen:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, random_weights)
        judge = trainer.judge
        assert isinstance(judge, Judge) and judge.loss_scale
        skipped, scales = [], []
        for step in range(1, STEPS + 1):
            scales.append(judge.scale)
            if step == BAD and leave_out:
                judge.loss_scale.update(overflow=True)
                skipped.append(True)
                continue
            if step == BAD and plant and plant(grid):
                overflow(trainer.stage)
            skipped.append(train_step(trainer, batch_of(config, step, grid.dp.rank), 1e-2, step).skipped)
        units = trainer.stage.units
        moments = [m for u in units for m in u.state.values() if isinstance(m, np.ndarray)]
        return Seen(
            skipped,
            [*scales, judge.scale],
            [u.master for u in units],
            [u.param if u.param is not None else u.param_shard for u in units],
            moments,
            judge.updates,
        )

    return run_threads(8, rank_main, LIMIT)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_ranks_skip_the_same_step(layout: str, place: str) -> None:
    config = configured(**LAYOUTS[layout])
    ranks, reference = run(config, PLACES[place]), run(config, None, leave_out=True)
    for seen, never_saw_it in zip(ranks, reference, strict=True):
        assert seen.skipped == [False, True, False, False]
        assert seen.scales == [64, 64, 32, 32, 32]
        assert seen.n_updates == STEPS - 1
        for name in ("master", "param", "moments"):
            ours, theirs = getattr(seen, name), getattr(never_saw_it, name)
            assert len(ours) > 0 and all(map(np.array_equal, ours, theirs)), name
    without = run(config, None)
    assert without[0].skipped == [False] * STEPS
    assert not np.array_equal(without[0].master[1], ranks[0].master[1]), "the step would have done something"


def test_replicas_whose_norms_differ_skip_together() -> None:
    """As by a library whose sums depend on where the ranks are. One replica's norm is infinite."""
    config = configured()

    @np.errstate(all="ignore")
    def rank_main(world: Comm) -> list[bool]:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, random_weights)
        if grid.dp.rank == 1:
            trainer.stage.units[0].add_squares = lambda total: total.fill(np.inf)  # type: ignore[method-assign]
        return [
            train_step(trainer, batch_of(config, step, grid.dp.rank), 1e-2, step).skipped for step in (1, 2)
        ]

    try:
        skipped = run_threads(8, rank_main, limit=5.0)
    except PeerLostError as error:
        raise AssertionError("ranks waited for others that had skipped the step") from error
    assert skipped == [[True, True]] * 8


def test_hysteresis_2_tolerates_one_overflow() -> None:
    config = configured()
    config = replace(config, loss_scale=replace(config.loss_scale, hysteresis=2))
    for seen in run(config, PLACES["one tp rank"]):
        assert seen.skipped == [False, True, False, False] and seen.scales == [64] * 5


def scales(overflows: str, **fields: float) -> list[float]:
    """The scale after each step; `x` is an overflow."""
    scale = LossScale(replace(LossScaleConfig(initial=64), **fields))  # type: ignore[arg-type]
    found = []
    for step in overflows:
        scale.update(step == "x")
        found.append(scale.scale)
    return found


def test_the_scale_s_rules() -> None:
    assert scales("xx..", backoff=0.25) == [16, 4, 4, 4]
    assert scales("...x..", growth_interval=2) == [64, 128, 128, 64, 64, 128], "an overflow starts anew"
    assert scales("xxx", minimum=20) == [32, 20, 20]
    assert scales("x.xx", hysteresis=2) == [64, 64, 32, 16], "spread out, and then every one counts"
    assert scales("xx..xx", hysteresis=2, growth_interval=2) == [64, 32, 32, 64, 64, 32], "growth forgives"
    assert scales("x.x", dynamic=False, growth_interval=1) == [64, 64, 64]
    assert LossScale(LossScaleConfig(initial=2)).may_overflow
    assert not LossScale(LossScaleConfig(initial=1)).may_overflow
    assert not LossScale(LossScaleConfig(initial=2, dynamic=False)).may_overflow


@pytest.mark.parametrize(
    "precision, loss_scale",
    [
        ("fp64", {}),
        ("fp32", {}),
        ("bf16", {}),
        ("bf16-pure", {}),
        ("fp8", {}),
        ("fp16", dict(dynamic=False)),
        ("fp16", dict(minimum=64.0)),
    ],
)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("zero", [0, 3])
def test_elsewhere_every_rank_raises_naming_it(
    precision: str, loss_scale: dict[str, float], place: str, zero: int
) -> None:
    config = configured(precision, zero=zero)
    config = replace(config, loss_scale=replace(config.loss_scale, **loss_scale))  # type: ignore[arg-type]

    @np.errstate(all="ignore")
    def rank_main(world: Comm) -> str:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, random_weights)
        if PLACES[place](grid):
            overflow(trainer.stage)
        before = [unit.master.copy() for unit in trainer.stage.units]
        with pytest.raises(MinitrainError) as caught:
            train_step(trainer, batch_of(config, 1, grid.dp.rank), 1e-2, 7)
        assert all(map(np.array_equal, before, (unit.master for unit in trainer.stage.units)))
        assert caught.value.known_everywhere and caught.value.exit_code == 5
        return str(caught.value)

    (message,) = set(run_threads(8, rank_main, LIMIT))
    rank, layer = {"one tp rank": (1, 0), "one pp stage": (2, 3), "one dp rank": (4, 0)}[place]
    assert message.startswith(f"rank {rank}: the gradient of layers.{layer}.mlp.up is not finite; step 7")
