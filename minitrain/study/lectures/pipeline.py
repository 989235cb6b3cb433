"""GPipe against 1F1B: the step that trains, with stages that take a known time, and a clock.

The model is tiny, so a stage sleeps: UNIT seconds in a forward and twice that in a backward, which has two
matrix products for each of the forward.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.checkpoint.weights import initial_values
from minitrain.comm.grid import Grid, make_grid
from minitrain.comm.interface import Comm
from minitrain.config import Config, ModelConfig, ParallelConfig, TrainConfig
from minitrain.parallel.schedule import SCHEDULES
from minitrain.parallel.stage import Stage, StageSaved
from minitrain.resolve import resolve
from minitrain.step import Batch, backpropagate
from minitrain.study.page import Page, gather

NAMES = {"gpipe": "GPipe", "1f1b": "1F1B"}
UNIT = 0.02  # seconds
LETTERS = "abcdefghijklmnop"


class Event(NamedTuple):
    kind: str  # "forward" or "backward"
    micro: int
    start: float  # seconds, by the clock of the host: hosts should agree on the time
    stop: float


class SlowStage(Stage):
    """A stage that takes its time, and notes when it worked at what."""

    def __init__(self, config: Config, grid: Grid) -> None:
        super().__init__(config, grid, initial_values(config))
        self.events: list[Event] = []

    def forward(self, x: Array) -> tuple[Array, StageSaved]:
        with self._taking("forward", UNIT):
            return super().forward(x)

    def backward(self, dx_SD: Array, saved: StageSaved) -> Array:
        with self._taking("backward", 2 * UNIT):
            return super().backward(dx_SD, saved)

    @contextmanager
    def _taking(self, kind: str, seconds: float) -> Iterator[None]:
        micro = sum(event.kind == kind for event in self.events)  # either kind takes them in order
        start = time.time()
        yield
        time.sleep(max(0.0, start + seconds - time.time()))
        self.events.append(Event(kind, micro, start, time.time()))


class Step(NamedTuple):
    """What came of a step: by stage, its events and what it kept at most from forward to backward."""

    events: list[list[Event]]
    in_flight: list[int]  # micro-batches
    kept: list[int]  # bytes

    @property
    def seconds(self) -> float:
        stages = [event for stage in self.events for event in stage]
        return max(event.stop for event in stages) - min(event.start for event in stages)

    @property
    def working(self) -> float:
        """Seconds, on average over stages."""
        return sum(event.stop - event.start for stage in self.events for event in stage) / len(self.events)

    def timeline(self, stage: int, columns: int) -> str:
        """At the middle of each column what the stage does: digits for forwards, letters for backwards."""
        first, row = min(event.start for events in self.events for event in events), ""
        for column in range(columns):
            now = first + (column + 0.5) * self.seconds / columns
            at = next((event for event in self.events[stage] if event.start <= now < event.stop), None)
            row += "." if at is None else LETTERS[at.micro] if at.kind == "backward" else str(at.micro % 10)
        return row


def run_step(comm: Comm, schedule: str, n_micro: int) -> Step:
    """Forward and backward of a batch, a stage on each rank. The same answer on every rank."""
    model = ModelConfig(layers=comm.size, width=4, heads=1, ffn=4, vocab=8, seq_len=2)
    train = TrainConfig(global_batch=n_micro, micro_batch=1)
    asked = Config(model=model, parallel=ParallelConfig(dp=1, tp=1, pp=comm.size), train=train)
    config = resolve(asked, {}, world_size=comm.size).config
    grid = make_grid(comm, config)
    stage = SlowStage(config, grid)
    trainer = make_trainer(config, grid, initial_values(config))
    trainer = trainer._replace(stage=stage, schedule=SCHEDULES[schedule])
    ids = np.zeros((n_micro, model.seq_len), np.int64)
    comm.barrier()
    backpropagate(trainer, Batch(ids, ids, ids.size))

    in_flight = np.cumsum([1 if event.kind == "forward" else -1 for event in stage.events]).max()
    mine = (stage.events, int(in_flight), trainer.meter.activations)
    events, flying, kept = zip(*map(json.loads, gather(comm, mine)), strict=True)
    return Step([[Event(*event) for event in of_stage] for of_stage in events], list(flying), list(kept))


def study_pipeline(page: Page, comm: Comm) -> None:
    p, few, many = comm.size, comm.size, 2 * comm.size
    page.claim(
        "Pipelines, GPipe and 1F1B",
        "In a pipeline every rank holds some layers, and micro-batches pass through them one after "
        "another. At the beginning and the end stages wait: the bubble. GPipe does all forwards first, "
        "then all backwards; 1F1B one forward and one backward in turn. The bubble is the same. What "
        "differs is how many micro-batches' activations must be kept.",
    )
    steps = {}
    for n_micro in (few, many):
        for schedule in NAMES:
            step = run_step(comm, schedule, n_micro)
            steps[n_micro, schedule] = step
            page.step(f"{NAMES[schedule]}, {p} stages, {n_micro} micro-batches")
            page.say(
                f"Measured: {step.seconds:.3f} s. Digits are forwards (last digit of the micro-batch), "
                "letters backwards (a is micro-batch 0), dots waiting."
            )
            columns = 3 * (n_micro + p - 1)  # a forward is one wide if nothing takes longer than it should
            rows = [["", "", "in flight", "bytes kept"]]
            for s in range(p):
                row = step.timeline(s, columns)
                rows.append([f"stage {s}", row, str(step.in_flight[s]), str(step.kept[s])])
            page.table(rows, left=2)
            if schedule == "gpipe":
                page.check("every stage keeps all m micro-batches", step.in_flight == p * [n_micro])
            else:
                formula = [min(n_micro, p - s) for s in range(p)]
                page.check("stage s keeps min(m, p - s) micro-batches", step.in_flight == formula)

    page.step("the bubble, measured and by its formula")
    page.say(
        "Two ratios are in use: idle to working time, (p - 1)/m, and idle to whole time, (p - 1)/(m + p - "
        "1). They take equal stages and messages that cost nothing; measured is with all that costs time "
        "on this machine."
    )
    rows = [["", "m", "working", "whole", "idle/working", "(p-1)/m", "idle/whole", "(p-1)/(m+p-1)"]]
    for (m, schedule), step in steps.items():
        idle, whole, working = step.seconds - step.working, step.seconds, step.working
        ratios = [idle / working, (p - 1) / m, idle / whole, (p - 1) / (m + p - 1)]
        times = [f"{working:.3f} s", f"{whole:.3f} s", *(f"{ratio:.3f}" for ratio in ratios)]
        rows.append([NAMES[schedule], str(m), *times])
    page.table(rows)
    page.loosely(
        "a pipeline of p stages wastes (p - 1)/p of the time",
        f"With one micro-batch it does. The bubble shrinks with more of them: from {few} to {many} its "
        f"ratio to the work falls from {(p - 1) / few:.3f} to {(p - 1) / many:.3f}.",
    )
    most = {schedule: max(steps[many, schedule].kept) for schedule in NAMES}
    page.loosely(
        "1F1B is faster than GPipe",
        f"It has the same bubble. It keeps less: at most {most['1f1b']} bytes on a stage, and GPipe "
        f"{most['gpipe']}; so it can afford more micro-batches, and these make the bubble small.",
    )
