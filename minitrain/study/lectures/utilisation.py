"""Of a step's seconds, how many multiply: MFU and HFU by each convention, and where the other seconds went.

The step is one of training, its clock the timeline of run.trace (observe/timeline.py). What is counted is the
same in every run; what is measured is not.
"""

import json
import time
from typing import NamedTuple

import numpy as np

from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.traced import traced
from minitrain.config import Config, ModelConfig, ParallelConfig, TrainConfig
from minitrain.observe.timeline import AFTER, CallMade, Timeline, Work
from minitrain.plan.flops import Convention, conventions
from minitrain.plan.held import layout_of
from minitrain.resolve import resolve
from minitrain.step import train_step
from minitrain.study.lectures.small import random_batch, random_weights
from minitrain.study.listening import Products, listening
from minitrain.study.page import Page, gather
from minitrain.train import observed

MODES = ("none", "full")  # of parallel.recompute
SIDE, ROUNDS = 512, 5  # of the products whose best time is the peak
COMPUTING = {"load": "forward", "forward": "forward", "loss": "loss", "backward": "backward", AFTER: "update"}
"""Instructions of the schedule, and what is left of a step after them, by what they compute."""
CALLS = {"tp": "tp", "pp": "pp", "replica": "data", "shard": "data", "dp": "data", "world": "world"}
"""Axes by what their calls are for."""
REST = "rest"
COLUMNS = 80  # of a strip


def configured(n: int, recompute: str) -> Config:
    """A model of which a step takes a moment, in the layout of n ranks that has most axes at work."""
    model = ModelConfig(layers=4, width=64, heads=4, vocab=256, seq_len=64)
    asked = Config(
        model=model,
        parallel=ParallelConfig(recompute=recompute),  # type: ignore[arg-type]
        train=TrainConfig(micro_batch=2),
        precision="fp32",
    )
    return resolve(asked, {}, world_size=n).config


class Span(NamedTuple):
    """A step of one rank, in seconds of its clock."""

    start: float
    end: float
    timeline: Timeline

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def parts(self) -> dict[str, float]:
        """Seconds of computing, by what, without the calls in it; of calls, by what for; and the rest: work
        that is none of these, without its calls, and what lies between pieces of work.
        """
        parts = dict.fromkeys((*COMPUTING.values(), *CALLS.values(), REST), 0.0)
        at = self.start
        for work in self.timeline.work:
            parts[REST] += work.start - at
            parts[COMPUTING.get(work.purpose.phase, REST)] += work.end - work.start
            at = work.end
        parts[REST] += self.end - at
        for call in self.timeline.calls:
            parts[CALLS[call.call.axis]] += call.end - call.start
            parts[COMPUTING.get(call.purpose.phase, REST)] -= call.end - call.start
        return parts

    def strip(self, columns: int) -> str:
        """At the middle of each column the first letter of the part that was at work."""
        pieces = [(call.start, call.end, CALLS[call.call.axis]) for call in self.timeline.calls]
        pieces += [
            (work.start, work.end, COMPUTING[work.purpose.phase])
            for work in self.timeline.work
            if work.purpose.phase in COMPUTING
        ]
        moments = (self.start + (column + 0.5) * self.seconds / columns for column in range(columns))
        names = (next((name for a, b, name in pieces if a <= now < b), ".") for now in moments)
        return "".join(name[0] for name in names)

    def is_in_order(self) -> bool:
        """Whether work follows on work, within the step, and every call lies within the work it was for."""
        work, calls = self.timeline.work, self.timeline.calls
        times = [self.start, *(time for piece in work for time in (piece.start, piece.end)), self.end]

        def holds(piece: Work, call: CallMade) -> bool:
            inside = piece.start <= call.start <= call.end <= piece.end
            return inside and piece.purpose.phase == call.purpose.phase

        return times == sorted(times) and all(any(holds(piece, call) for piece in work) for call in calls)


class Measured(NamedTuple):
    """Of one step. Seconds are those of the rank that took longest."""

    seconds: float
    span: Span
    products: int  # operations, of all ranks


def measure(comm: Comm, config: Config) -> Measured:
    """The second step, after a first one in which products are counted."""
    timeline, products = Timeline(), Products()
    grid = make_grid(traced(comm, timeline, timeline), config)
    trainer = observed(make_trainer(config, grid, random_weights), timeline)
    batch = random_batch(config, grid.dp.rank)
    with listening(trainer.stage.ops, products):
        train_step(trainer, batch, 1e-3, 1)
    comm.barrier()
    start = time.perf_counter()
    timeline.begin_step(2)
    train_step(trainer, batch, 1e-3, 2)
    timeline.end_step({})
    span = Span(start, time.perf_counter(), timeline)
    seconds = max(json.loads(text) for text in gather(comm, span.seconds))
    done = gather(comm, products.of_matrices + products.of_attention)
    return Measured(seconds, span, sum(map(int, done)))


def peak(comm: Comm) -> float:
    """Operations a second of a product of fp32 matrices, on rank 0 while the others wait."""
    best = 0.0
    if comm.rank == 0:
        a = np.ones((SIDE, SIDE), np.float32)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            np.matmul(a, a)
            best = max(best, 2 * SIDE**3 / (time.perf_counter() - start))
    return float(json.loads(gather(comm, best)[0]))


def study_utilisation(page: Page, comm: Comm) -> None:
    n = comm.size
    configs = {mode: configured(n, mode) for mode in MODES}
    steps = {mode: measure(comm, config) for mode, config in configs.items()}
    best, config = peak(comm), configs["none"]
    at, model, train = layout_of(config), config.model, config.train
    assert train.global_batch, "the configuration is resolved"
    tokens = train.global_batch * model.seq_len
    known = {convention.name: convention for convention in conventions(model)}
    page.claim(
        "Utilisation",
        "A step takes some seconds, in which the hardware could do so many operations. Model FLOPs "
        "utilisation (MFU) is the share of them that a formula says the model needs (Chowdhery et al. 2022); "
        "hardware FLOPs utilisation (HFU) counts what is computed again as well.",
    )
    page.say(
        f"A step as it trains, in fp32: {model.layers} layers of width {model.width}, {train.global_batch} "
        f"sequences of {model.seq_len} positions; dp {at.dp} x pp {at.pp} x tp {at.tp}."
    )
    operations(page, list(known.values()), tokens, steps)

    page.step("the share of the peak")
    page.say(
        f"Measured here and now: on one rank a product of two matrices of {SIDE} x {SIDE} reaches "
        f"{best / 1e9:.1f} GFLOP/s; that times {n} is taken for the peak. Ranks that share a core have not "
        "as much."
    )

    def share(name: str, mode: str) -> float:
        return known[name].flops * tokens / (steps[mode].seconds * n * best)

    done = {"none": "products, all keys", "full": "the same, recomputed"}
    rows = [["recompute", *MODES], ["seconds", *(f"{steps[mode].seconds:.4f}" for mode in MODES)]]
    rows.append(["tokens a second", *(f"{tokens / steps[mode].seconds:.0f}" for mode in MODES)])
    by_convention = ("6N", "6N + 6LCT", "products, all keys")
    rows += [[f"MFU, {name}", *(f"{share(name, mode):.2%}" for mode in MODES)] for name in by_convention]
    rows.append(["HFU, all that was done", *(f"{share(done[mode], mode):.2%}" for mode in MODES)])
    page.table(rows)
    page.say(
        "MFU = operations a token x tokens / (seconds x ranks x peak), and the seconds are those of the rank "
        "that took longest."
    )
    parts = where_seconds_went(page, comm, steps["none"].span)

    page.step("where the common statement is loose")
    shares = [share(name, "none") for name in by_convention]
    page.loosely(
        "MFU says how well the hardware is used",
        f"It says what share of a peak a formula accounts for. This one step has {min(shares):.2%} or "
        f"{max(shares):.2%}, by formulas in use; the peak is a choice too, here what a product reaches and "
        "elsewhere a data sheet's number; and what is computed again is not counted, though it is done.",
    )
    more = known[done["full"]].flops / known[done["none"]].flops
    page.loosely(
        "full recomputation raises utilisation",
        f"HFU is {more:.3f} times the MFU then, by operations that are done a second time. What counts is "
        "tokens a second: these operations lower it, unless the memory that is saved allows what is faster.",
    )
    waited = [sum(of_rank[name] for name in set(CALLS.values())) for of_rank in parts]
    page.loosely(
        "a rank communicates for as long as its calls take",
        "A call ends when the others have come. Part of it, here of up to "
        f"{max(waited) / steps['none'].seconds:.0%} of the step, is waiting for ranks that still compute: "
        "faster wires would not shorten that, equal shares of the work would.",
    )


def operations(page: Page, known: list[Convention], tokens: int, steps: dict[str, Measured]) -> None:
    """By formula, and counted."""
    page.step("operations of a token")
    rows = [["", "a token", "a step", "of the first"]]
    for convention in known:
        cells = f"{convention.flops:,}", f"{convention.flops * tokens:,}"
        rows.append([convention.name, *cells, f"{convention.flops / known[0].flops:.3f}"])
    page.table(rows)
    page.say(
        f"Forward and backward, by the conventions of plan/flops.py, and for the {tokens} tokens of a step. "
        f"{known[0].formula}; L layers of C channels, sequences of T positions."
    )
    by_name = {convention.name: convention for convention in known}
    for mode, name in (("none", "products, all keys"), ("full", "the same, recomputed")):
        page.check(
            f"with recompute {mode} all ranks together have done {steps[mode].products:,} operations in "
            f'products, counted; "{name}" says {by_name[name].flops * tokens:,}',
            steps[mode].products == by_name[name].flops * tokens,
        )


def where_seconds_went(page: Page, comm: Comm, span: Span) -> list[dict[str, float]]:
    """Of all ranks."""
    page.step("where the seconds went")
    mine = span.parts()
    parts: list[dict[str, float]] = [json.loads(text) for text in gather(comm, mine)]
    rows = [["", *mine, "step"]]
    for rank, of_rank in enumerate(parts):
        row = [*of_rank.values(), sum(of_rank.values())]
        rows.append([f"rank {rank}", *(f"{seconds * 1e3:.2f}" for seconds in row)])
    page.table(rows)
    strips = [str(json.loads(text)) for text in gather(comm, span.strip(COLUMNS))]
    page.table([[f"rank {rank}", strip] for rank, strip in enumerate(strips)], left=2)
    page.say(
        "Milliseconds; and, in the order of time, the first letters of what was at work. Computing is "
        "without the calls in it: forward and backward of the blocks and the embedding, the loss with the "
        "head there and back, sums of gradients and the update. Calls to others over tp, pp, data-parallel "
        "groups and the world are with the time that they wait. The rest (dots) is between them."
    )
    page.check(
        "on every rank work follows on work within the step, and calls lie within the work they are for",
        span.is_in_order(),
    )
    page.check(
        "no part is negative, and the parts add up to the step",
        min(mine.values()) >= 0 and abs(sum(mine.values()) - span.seconds) <= 1e-9 * span.seconds,
    )
    totals = {name: sum(of_rank[name] for of_rank in parts) for name in mine}
    most = max(totals, key=lambda name: totals[name])
    page.say(f"Most of the ranks' time, {totals[most] / sum(totals.values()):.0%}, went to: {most}.")
    return parts
