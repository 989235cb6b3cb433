"""Idle time of pipeline schedules, for p equal stages and messages that take no time.

F and B are the times of a forward and of a whole backward of one stage and micro-batch, W the part of B that
makes the gradients of weights. Each stage works m (F + B); what it is idle beside that is the bubble. Two
ratios are in use, and both are called the bubble: idle / working, and idle / all.
"""

from typing import NamedTuple


class Work(NamedTuple):
    """Times of one stage and micro-batch. A backward has two matrix products for each one of the forward."""

    F: float = 1.0
    B: float = 2.0
    W: float = 1.0


USUAL = Work()


class Bubble(NamedTuple):
    """`kept`: micro-batches' worth of activations of a stage that the first stage keeps, at most."""

    schedule: str
    idle: float
    ratio: float  # idle / working
    fraction: float  # idle / all
    kept: float
    formula: str
    source: str


def bubble(schedule: str, p: int, m: int, work: Work = USUAL, chunks: int = 2) -> Bubble:
    """`chunks`: v, the parts of the model on each stage of the interleaved schedule."""
    F, B, W = work
    idle, kept, formula, source = {
        "gpipe": ((p - 1) * (F + B), m, "(p-1)(F+B)", "Huang et al. 2019"),
        "1f1b": ((p - 1) * (F + B), min(m, p), "(p-1)(F+B)", "Narayanan et al. 2021, 2.2.1"),
        "interleaved": (
            (p - 1) * (F + B) / chunks,
            min(m, p * (1 + (p - 1) / (p * chunks))),
            f"(p-1)(F+B)/v, v = {chunks}",
            "Narayanan et al. 2021, 2.2.2; kept: Korthikanti et al. 2022, 4.2.3",
        ),
        "zb-h1": (
            (p - 1) * (F + B - 2 * W),
            min(m, p),
            "(p-1)(F+B-2W)",
            "Qi et al. 2023, Zero Bubble Pipeline Parallelism",
        ),
        "zb-h2": (
            (p - 1) * (F + B - 3 * W),
            min(m, 2 * p - 1),
            "(p-1)(F+B-3W)",
            "Qi et al. 2023, Zero Bubble Pipeline Parallelism",
        ),
    }[schedule]
    ideal = m * (F + B)
    return Bubble(schedule, idle, idle / ideal, idle / (ideal + idle), kept, formula, source)


SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2")
"""The first two are built here (`parallel/schedule.py`)."""
