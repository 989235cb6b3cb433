"""What run.exact costs: the same step with and without it, on the same ranks, by turns. Time, bytes that a
rank sends in a step, and memory that it has for gradients. The last loss is shown to the last bit: with
run.exact it is that of every other layout.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import statistics
import sys
import time

import numpy as np
from problem import BATCH, LEARNING_RATE, OPTIM, PROBLEMS, batches, weights

from minitrain.arrays.heap import keep_freed_memory
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import World
from minitrain.comm.traced import ByteCounter, traced
from minitrain.config import Config, ParallelConfig, RunConfig, TrainConfig
from minitrain.launch import join
from minitrain.launched import launched
from minitrain.resolve import resolve
from minitrain.step import Batch, train_step

WARM_UP = 2  # turns


class Contender:
    """A trainer that takes its turns. Micro-batches of one sequence."""

    def __init__(self, problem: str, world: World, zero: int, exact: bool) -> None:
        self.model, self.world, self.counter = PROBLEMS[problem].model, world, ByteCounter()
        config = Config(
            model=self.model,
            parallel=ParallelConfig(dp=world.size, zero=zero),  # type: ignore[arg-type]
            train=TrainConfig(global_batch=BATCH, micro_batch=1),
            optim=OPTIM,
            run=RunConfig(exact=exact),
        )
        config, values = resolve(config, {}, world.size).config, weights(self.model)
        grid = make_grid(traced(world, self.counter), config)
        self.trainer = make_trainer(config, grid, lambda spec, box: values[spec.name][box])
        own = slice(*(BATCH * (grid.dp.rank + i) // grid.dp.size for i in (0, 1)))
        self.data = [Batch(*(x[own] for x in batch), n_tokens=batch[0].size) for batch in batches(self.model)]
        self.n_steps, self.losses, self.seconds, self.sent = 0, list[float](), list[float](), 0

    def turn(self, n: int) -> None:
        for _ in range(n):
            self.world.barrier()
            self.counter.take()
            start = time.perf_counter()
            batch, self.n_steps = self.data[self.n_steps % len(self.data)], self.n_steps + 1
            self.losses.append(train_step(self.trainer, batch, LEARNING_RATE, self.n_steps).loss)
            self.seconds.append(time.perf_counter() - start)
        self.sent = sum(sum(verbs.values()) for verbs in self.counter.take().values())

    def memory(self) -> int:
        held = self.trainer.meter.bytes(self.trainer.stage)
        return held["gradients"] + held["buffers"]


def bench(problem: str, world: World, zero: int, rounds: int) -> list[str]:
    """A line for the table. Raises if the two do not compute the same, to rounding."""
    pair = [Contender(problem, world, zero, exact) for exact in (False, True)]
    n = PROBLEMS[problem].steps_a_turn
    for number in range(WARM_UP + rounds):
        for contender in pair if number % 2 == 0 else reversed(pair):
            contender.turn(n)
    if not np.allclose(*(contender.losses[:3] for contender in pair), rtol=1e-4, atol=0):
        raise RuntimeError("run.exact computes something else")
    ms = [1e3 * statistics.median(contender.seconds[WARM_UP * n :]) for contender in pair]
    sent = [f"{contender.sent / 2**20:.2f}" for contender in pair]
    memory = [f"{contender.memory() / 2**20:.2f}" for contender in pair]
    layout = f"dp {world.size}, zero {zero}"
    times = [*(f"{x:.2f}" for x in ms), f"{ms[1] / ms[0]:.3f}"]
    return [problem, layout, *times, *sent, *memory, pair[1].losses[-1].hex()]


HEADER = [
    "model", "layout", "plain ms", "exact ms", "exact/plain", "sent MiB", "exact", "gradient MiB", "exact",
    "last loss, exact",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench_exact", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each (default: 10)")
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    world = join(launched(os.environ))
    rows = [HEADER]
    with np.errstate(all="ignore"):
        for problem in PROBLEMS:
            for zero in (0, 2) if world.size > 1 else (0,):
                rows.append(bench(problem, world, zero, rounds))
    if world.rank == 0:
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
        for row in rows:
            print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
