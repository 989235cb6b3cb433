"""What is timed of a contender, whoever it is: steps that are started one after the other, and waited for at
the end of a round.
"""

import statistics
import time
from typing import Any, NamedTuple, Protocol

from agreement import CHECKED_STEPS


class Result(NamedTuple):
    loss: float  # mean nats per token of the step's batch
    norm: float  # of the gradient, before clipping


class Contender(Protocol):
    def start(self, number: int) -> None:
        """Starts a step, counted from 1. On a GPU it returns while the step is under way."""

    def finish(self) -> list[Result]:
        """Waits for the GPU. Of every step since the last call."""

    def pool_bytes(self) -> int:
        """Memory that its allocator has taken so far."""


class Plan(NamedTuple):
    """`rounds` times `steps` steps are timed. Between the checked steps and these come some that compile,
    choose algorithms and fill the allocator's pool.
    """

    warmup: int
    steps: int
    rounds: int


def measure(contender: Contender, plan: Plan) -> dict[str, Any]:
    """Losses and norms of the first steps, and times. Within a round nobody waits for the GPU but the
    contender itself: the clock is read twice, each time with nothing under way.
    """
    number = 0

    def run(n_steps: int) -> tuple[float, list[Result]]:
        nonlocal number
        begun = time.perf_counter()
        for _ in range(n_steps):
            number += 1
            contender.start(number)
        results = contender.finish()
        return time.perf_counter() - begun, results

    contender.finish()
    first, results = run(1)
    results += run(CHECKED_STEPS - 1)[1]
    run(plan.warmup)
    seconds = [run(plan.steps)[0] / plan.steps for _ in range(plan.rounds)]
    launches = []
    for _ in range(plan.rounds):
        begun = time.perf_counter()
        number += 1
        contender.start(number)
        launches.append(time.perf_counter() - begun)
        contender.finish()
    return {
        "losses": [result.loss for result in results],
        "norms": [result.norm for result in results],
        "first_step": first,
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "steps": plan.steps * plan.rounds,
        "launch": statistics.median(launches),
        "pool_bytes": contender.pool_bytes(),
    }
