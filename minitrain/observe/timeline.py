"""What a rank does, and when: its computing, piece by piece, and every one of its calls to others.

A `Timeline` listens at two places. To the communicator (comm/traced.py), of which it notes each call with its
beginning and its end. And to the schedule (`observed_schedule`), which tells which micro-batch is at work and
with what, and the units (`observe_units`), which tell what part of the model is. So each call is noted with
what it was for, and neither the step nor the model knows of it.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from minitrain.arrays.types import Array
from minitrain.comm.traced import Call, Event, Ledger, Watch
from minitrain.parallel.schedule import Instruction, Schedule
from minitrain.parallel.stage import Stage
from minitrain.parallel.unit import Unit

PACKAGE = Path(__file__).parents[1]
INSIDE = tuple(str(PACKAGE / name) for name in ("comm", "observe", "watch", "drills"))  # no call site is here

BETWEEN = "between steps"
AFTER = "gradients and update"  # of a step, when all micro-batches are done


class Purpose(NamedTuple):
    """What is going on."""

    step: int
    phase: str  # an instruction of the schedule, or AFTER, or BETWEEN
    micro: int | None  # micro-batch
    part: str  # of the model: "layers.3", "embedding", ...; or ""


class Work(NamedTuple):
    """A piece of computing, with the calls that it waits for. Times in seconds of `time.perf_counter`."""

    purpose: Purpose
    start: float
    end: float


class CallMade(NamedTuple):
    """A call to others, from 0 on in the order in which the rank made them."""

    number: int
    call: Call
    bytes: int  # of the whole buffer; 0 if the call sends nothing
    sent_bytes: int  # by this rank, as in a ring
    purpose: Purpose
    site: str  # file, line and function
    start: float
    end: float


class Memory(NamedTuple):
    """Bytes by class, at the end of a step."""

    at: float
    bytes: dict[str, int]


class Timeline:
    """Of this rank, from `begin_step` to `end_step` of every step that is to be noted; else it sleeps."""

    def __init__(self) -> None:
        self.work: list[Work] = []
        self.calls: list[CallMade] = []
        self.memory: list[Memory] = []
        self._awake = False
        self._purpose = Purpose(0, BETWEEN, None, "")
        self._since = 0.0
        self._event: Event | None = None
        self._pending: tuple[Call, Event | None, str, float] | None = None

    def begin_step(self, step: int) -> None:
        self._awake = True
        self._purpose, self._since = Purpose(step, BETWEEN, None, ""), time.perf_counter()

    def end_step(self, memory_bytes: dict[str, int]) -> None:
        if not self._awake:
            return
        self._turn(Purpose(self._purpose.step, BETWEEN, None, ""))
        self.memory.append(Memory(self._since, memory_bytes))
        self._awake = False

    def turn_to(self, phase: str, micro: int | None = None) -> None:
        """What is done from now on."""
        if self._awake:
            self._turn(Purpose(self._purpose.step, phase, micro, ""))

    @contextmanager
    def in_part(self, part: str) -> Iterator[None]:
        """Computing with one part of the model."""
        before = self._purpose
        self._purpose = before._replace(part=part)
        try:
            yield
        finally:
            self._purpose = self._purpose._replace(part=before.part)

    def _turn(self, purpose: Purpose) -> None:
        now = time.perf_counter()
        if self._purpose.phase != BETWEEN:
            self.work.append(Work(self._purpose._replace(part=""), self._since, now))
        self._purpose, self._since = purpose, now

    # A ledger and a watch of the communicator (comm/traced.py).

    def __call__(self, event: Event) -> None:
        self._event = event

    def begin(self, call: Call) -> None:
        event, self._event = self._event, None
        if self._awake:
            self._pending = call, event, call_site(sys._getframe(1)), time.perf_counter()

    def end(self) -> None:
        if self._pending is None:
            return
        end = time.perf_counter()
        (call, event, site, start), self._pending = self._pending, None
        whole, sent = (event.bytes, event.sent_bytes) if event else (0, 0)
        made = CallMade(len(self.calls), call, whole, sent, self._purpose, site, start, end)
        self.calls.append(made)


class Both:
    """A ledger and a watch, and a timeline that hears of everything too."""

    def __init__(self, ledger: Ledger, watch: Watch, timeline: Timeline) -> None:
        self._ledger, self._watch, self._timeline = ledger, watch, timeline

    def __call__(self, event: Event) -> None:
        self._ledger(event)
        self._timeline(event)

    def begin(self, call: Call) -> None:
        self._watch.begin(call)
        self._timeline.begin(call)

    def end(self) -> None:
        self._timeline.end()
        self._watch.end()


def call_site(frame: FrameType | None) -> str:
    """Where a call was made: the innermost place outside of what passes calls on."""
    while frame is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame = frame.f_back
    return _place(frame.f_code, frame.f_lineno) if frame else ""


@cache
def _place(code: CodeType, line: int) -> str:
    path = Path(code.co_filename)
    shown = path.relative_to(PACKAGE.parent) if PACKAGE in path.parents else path.name
    return f"{shown}:{line} in {code.co_name}"


def observed_schedule(schedule: Schedule, timeline: Timeline) -> Schedule:
    """`schedule`, whose every instruction the timeline hears of as it is begun."""

    def instructions(stage: int, n_stages: int, n_micro: int) -> Iterator[Instruction]:
        for instruction in schedule(stage, n_stages, n_micro):
            timeline.turn_to(instruction.kind.value, instruction.micro)
            yield instruction
        timeline.turn_to(AFTER)

    return instructions


def observe_units(stage: Stage, timeline: Timeline) -> None:
    """From now on the timeline hears which unit's parameters and gradients are in use."""
    for unit in stage.units:
        part = unit.prefix.removesuffix(".") or unit.specs[0].name.partition(".")[0]
        for name in ("params", "grads"):
            setattr(unit, name, _told(unit, name, part, timeline))


def _told(unit: Unit, name: str, part: str, timeline: Timeline) -> Any:
    views_of = getattr(unit, name)

    @contextmanager
    def views() -> Iterator[dict[str, Array]]:
        inner: AbstractContextManager[dict[str, Array]] = views_of()
        with timeline.in_part(part), inner as found:
            yield found

    return views
