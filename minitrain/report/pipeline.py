"""Of one step: what every rank did when, and the bubble of the pipeline, measured.

    window     from the first beginning to the last end of a stage's work on micro-batches
    working    forwards, losses and backwards of all stages, the collectives within them too
    idle       stages x window - working

The update after it belongs to no stage's micro-batches and is not counted.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from minitrain.config import Config
from minitrain.observe.banner import place_of
from minitrain.observe.timeline import AFTER
from minitrain.plan.bubble import Bubble, bubble
from minitrain.plan.held import layout_of
from minitrain.report.trace import Collective, Work

FORWARD, LOSS, BACKWARD, UPDATE = "forward", "loss", "backward", "update"
WAITING, MOVING = "waiting for others", "communication"
AT_WORK, IN_CALLS = (FORWARD, LOSS, BACKWARD, UPDATE), (MOVING, WAITING)
COMPUTING = {"forward": FORWARD, "loss": LOSS, "backward": BACKWARD, AFTER: UPDATE}


class Segment(NamedTuple):
    """A rank did one thing. Milliseconds from the beginning of the step."""

    rank: int
    kind: str
    micro: int | None
    start: float
    end: float


class Measured(NamedTuple):
    """The bubble of one step, all pipelines of it together. Milliseconds."""

    idle: float
    working: float
    of_stage: list[float]  # work of a stage of one pipeline in the step, on average

    @property
    def ratio(self) -> float:
        return self.idle / self.working if self.working else math.nan

    @property
    def fraction(self) -> float:
        return self.idle / (self.idle + self.working) if self.working else math.nan


def segments(work: Sequence[Work], made: Sequence[Collective]) -> list[Segment]:
    """What each rank worked at, the calls within it too; and, at the same time, its calls: until the last
    member has come they wait, then data move.
    """
    found = [
        Segment(piece.rank, COMPUTING[piece.phase], piece.micro, piece.start, piece.end)
        for piece in work
        if piece.phase in COMPUTING
    ]
    for collective in made:
        for call in collective.calls:
            turn = call.start + collective.waiting(call)
            found.append(Segment(call.rank, WAITING, call.micro, call.start, turn))
            found.append(Segment(call.rank, MOVING, call.micro, turn, call.end))
    return [piece for piece in found if piece.end > piece.start]


def measured_bubble(config: Config, work: Sequence[Work]) -> Measured:
    """Of the pieces of one step."""
    pipelines = defaultdict(list)
    for piece in work:
        at = place_of(config, piece.rank)
        if piece.phase != AFTER:
            pipelines[at.dp, at.tp].append((at.pp, piece))
    pp = layout_of(config).pp
    of_stage, window = [0.0] * pp, 0.0
    for pieces in pipelines.values():
        window += max(p.end for _, p in pieces) - min(p.start for _, p in pieces)
        for stage, piece in pieces:
            of_stage[stage] += (piece.end - piece.start) * (piece.phase in COMPUTING)
    working = sum(of_stage)
    return Measured(pp * window - working, working, [time / len(pipelines) for time in of_stage])


def predicted_bubble(config: Config) -> Bubble:
    """By the formula, for equal stages and messages that take no time."""
    at = layout_of(config)
    return bubble(config.parallel.schedule, at.pp, at.micro)
