"""Drills on a GPU of the tests: what goes wrong is what goes wrong on the host."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from cuda.devices import on_gpu
from layouts import LIMIT, LLAMA, Part, Place, assemble, batch_of, mild_weights, on_device, tiny, weight_parts

from minitrain.arrays.device import HOST
from minitrain.build import Run, make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import World
from minitrain.comm.threads import PeerLostError, run_threads
from minitrain.comm.traced import ByteCounter, traced
from minitrain.config import Config
from minitrain.drills import plant
from minitrain.step import train_step

pytestmark = pytest.mark.usefixtures("gpu")  # skips where there is none

STEPS = 3
LAYOUTS: dict[str, dict[str, Any]] = {
    "skipped-all-reduce": dict(dp=2),
    "partial-sum": dict(tp=2),
    "swapped-shard": dict(dp=2, zero=1),
    "flipped-bit": dict(dp=2),
    "same-data": dict(dp=2),
    "sum-for-mean": dict(dp=2),
}


def on_host(world: World) -> tuple[Any, World]:
    return HOST, world


def trained(config: Config, drill: str, place: Place, limit: float = LIMIT) -> list[dict[str, np.ndarray]]:
    """The weights as each replica has them in the end, those of all tp ranks together."""

    @np.errstate(all="ignore")
    def rank_main(world: World) -> list[Part]:
        device, world = place(world)
        grid = make_grid(traced(world, ByteCounter()), config, device)
        trainer = make_trainer(config, grid, mild_weights, device)
        loader = SimpleNamespace(batch=lambda step, rank, size: batch_of(config, step, rank))
        run = cast(Run, SimpleNamespace(trainer=trainer, loader=loader))
        plant(drill, run)
        for step in range(1, STEPS + 1):
            batch = run.loader.batch(step, grid.dp.rank, grid.dp.size)
            train_step(trainer, on_device(batch, device), 0.01, step)  # type: ignore[arg-type]
        return weight_parts(trainer.stage, grid)

    p = config.parallel
    assert p.dp and p.tp and p.pp
    parts = run_threads(p.dp * p.tp * p.pp, rank_main, limit)
    if p.tp > 1:
        for rank in parts[1:]:  # copies that differ are what a drill makes
            rank[:] = [part for part in rank if any(s.start > 0 for s in part.box)]
        return [assemble(config, parts)]
    return [assemble(config, [rank]) for rank in parts]


@pytest.mark.parametrize("drill", LAYOUTS)
def test_a_drill_does_the_same_as_on_the_host(drill: str) -> None:
    config = tiny(LLAMA, **LAYOUTS[drill])
    ours, theirs = trained(config, drill, on_gpu), trained(config, drill, on_host)
    changed = False
    for mine, on_cpu, healthy in zip(ours, theirs, trained(config, "none", on_gpu), strict=True):
        for name in healthy:
            np.testing.assert_allclose(mine[name], on_cpu[name], rtol=0, atol=1e-9)
            changed |= not np.array_equal(mine[name], healthy[name])
    assert changed


def test_a_message_is_lost_there_too() -> None:
    with pytest.raises(PeerLostError):
        trained(tiny(LLAMA, pp=2), "dropped-receive", on_gpu, limit=3.0)
