"""Which calls take the time: alike ones added up, over all steps of a trace."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from minitrain.report.trace import Collective


class Cost(NamedTuple):
    """Calls of one kind in a step. Milliseconds are an average over all ranks."""

    axis: str
    verb: str
    phase: str
    part: str  # of the model: layers.* for all blocks
    site: str
    bytes: int  # of the buffer
    calls: float  # of one step, of all ranks together: collectives and messages
    waiting: float  # until the last member had come
    moving: float

    @property
    def time(self) -> float:
        return self.waiting + self.moving


def costs(made: Sequence[Collective], n_steps: int, n_ranks: int) -> list[Cost]:
    """The most expensive first. Over all kinds times add up to what a rank spends in calls, on average."""
    kinds = defaultdict(list)
    for collective in made:
        call = collective.first
        part = re.sub(r"^layers\.\d+", "layers.*", call.part)
        kinds[call.axis, call.verb, call.phase, part, call.site, call.bytes].append(collective)
    found = []
    for kind, alike in kinds.items():
        calls = [(c, call) for c in alike for call in c.calls]
        waiting = sum(c.waiting(call) for c, call in calls)
        whole = sum(call.end - call.start for _, call in calls)
        spread = n_steps * n_ranks
        found.append(Cost(*kind, len(alike) / n_steps, waiting / spread, (whole - waiting) / spread))
    return sorted(found, key=lambda cost: cost.time, reverse=True)
