"""What it costs to watch a step (run.hang_seconds), to check it (run.check), to note all of it (run.trace),
and to compare replicas (run.compare_every): the same step, on the same ranks, by turns.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from problem import BATCH, LEARNING_RATE, OPTIM, PROBLEMS, batches, weights

from minitrain.arrays.heap import keep_freed_memory
from minitrain.build import make_trainer
from minitrain.comm.checked import checked
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm, World
from minitrain.comm.traced import ByteCounter, traced
from minitrain.config import Config, ParallelConfig, TrainConfig
from minitrain.launch import join
from minitrain.launched import launched
from minitrain.observe.timeline import Both, Timeline
from minitrain.parallel.replicas import compare_replicas
from minitrain.resolve import resolve
from minitrain.step import Batch, Trainer, train_step
from minitrain.train import observed
from minitrain.watch.calls import CallLog

WAYS: dict[str, Callable[[World, Both], Comm]] = {
    "counted": lambda world, both: traced(world, ByteCounter()),
    "watched": lambda world, both: traced(world, ByteCounter(), CallLog()),
    "checked": lambda world, both: traced(checked(world), ByteCounter(), CallLog()),
    "noted": lambda world, both: traced(world, both, both),
}
WARM_UP = 1  # turn


class Contender:
    """A trainer that takes its turns."""

    def __init__(self, name: str, problem: str, world: World, parallel: ParallelConfig) -> None:
        self.model, self.world = PROBLEMS[problem].model, world
        train = TrainConfig(global_batch=BATCH, micro_batch=2)
        config = Config(model=self.model, parallel=parallel, train=train, optim=OPTIM)
        config = resolve(config, {}, world.size).config
        self.timeline, values = Timeline(), weights(self.model)
        both = Both(ByteCounter(), CallLog(), self.timeline)
        self.grid = make_grid(WAYS[name](world, both), config)
        self.trainer: Trainer = make_trainer(config, self.grid, lambda spec, box: values[spec.name][box])
        self.is_noted = name == "noted"
        if self.is_noted:
            self.trainer = observed(self.trainer, self.timeline)
        own = slice(*(BATCH * (self.grid.dp.rank + i) // self.grid.dp.size for i in (0, 1)))
        self.data = [
            Batch(*(x[own].reshape(-1, 2 * self.model.seq_len) for x in batch), n_tokens=batch[0].size)
            for batch in batches(self.model)
        ]
        self.n_steps, self.losses, self.seconds = 0, list[float](), list[float]()

    def turn(self, n: int) -> None:
        for _ in range(n):
            self.world.barrier()
            start = time.perf_counter()
            batch, self.n_steps = self.data[self.n_steps % len(self.data)], self.n_steps + 1
            if self.is_noted:
                self.timeline.begin_step(self.n_steps)
            result = train_step(self.trainer, batch, LEARNING_RATE, self.n_steps)
            self.timeline.end_step({})
            self.seconds.append(time.perf_counter() - start)
            self.losses.append(result.loss)

    def comparison(self) -> float:
        self.world.barrier()
        start = time.perf_counter()
        compare_replicas(self.trainer.stage, self.trainer.updater.optimizer, self.grid, self.n_steps)
        return time.perf_counter() - start


def bench(problem: str, layout: str, world: World, parallel: ParallelConfig, rounds: int) -> list[str]:
    """A line for the table. Raises if the ways do not compute the same."""
    contenders = {name: Contender(name, problem, world, parallel) for name in WAYS}
    n = PROBLEMS[problem].steps_a_turn
    for number in range(WARM_UP + rounds):
        for name in WAYS if number % 2 == 0 else reversed(WAYS):
            contenders[name].turn(n)
    if len({tuple(contender.losses) for contender in contenders.values()}) > 1:
        raise RuntimeError("the losses depend on whether anybody looks")
    ms = [1e3 * statistics.median(c.seconds[WARM_UP * n :]) for c in contenders.values()]
    compare = 1e3 * statistics.median(contenders["watched"].comparison() for _ in range(rounds))
    ratios = [f"{ms[i] / ms[j]:.3f}" for i, j in ((1, 0), (2, 1), (3, 1))]
    return [problem, layout, *(f"{x:.2f}" for x in ms), *ratios, f"{compare:.2f}"]


HEADER = [
    "model", "layout", "counted ms", "watched ms", "checked ms", "noted ms", "watched/counted",
    "checked/watched", "noted/watched", "comparison ms",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench_check", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each (default: 10)")
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    world = join(launched(os.environ))
    if world.size == 1:
        print("scripts/bench_check: nothing is watched on one rank", file=sys.stderr)
        return 1
    layouts = {axis: ParallelConfig(**{axis: world.size}) for axis in ("dp", "tp", "pp")}
    rows = [HEADER]
    with np.errstate(all="ignore"):
        for problem, (model, _) in PROBLEMS.items():
            for axis, parallel in layouts.items():
                if axis != "pp" or world.size <= model.layers:
                    rows.append(bench(problem, f"{axis} {world.size}", world, parallel, rounds))
    if world.rank == 0:
        for row in rows:
            print("  ".join(cell.rjust(len(head)) for cell, head in zip(row, HEADER, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
