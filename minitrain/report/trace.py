"""A run's trace.json read back (observe/chrome_trace.py writes it): pieces of computing, and calls.

The calls of several ranks that are one collective are matched by axis, members and number; those of a message
by axis, sender, receiver and number. Times are milliseconds.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minitrain.errors import DataError
from minitrain.observe.chrome_trace import CALLS, COMPUTING

MESSAGE = ("send", "recv", "wait")


class Work(NamedTuple):
    """A piece of computing of a rank, with the calls that it waits for."""

    rank: int
    step: int
    phase: str
    micro: int | None
    start: float
    end: float


class CallOfRank(NamedTuple):
    """A collective or message, as one rank called it."""

    rank: int
    verb: str
    axis: str
    ranks: tuple[int, ...]
    in_group: int
    dtype: str
    elements: int
    bytes: int
    sent_bytes: int
    step: int
    phase: str
    micro: int | None
    part: str
    site: str
    start: float
    end: float


class Collective(NamedTuple):
    """A collective of all its members, or a message of both its ends. Of a message `first` is the sender's
    call, of a collective that of the member that came first.
    """

    first: CallOfRank
    calls: tuple[CallOfRank, ...]

    @property
    def start(self) -> float:
        return self.first.start

    @property
    def complete_from(self) -> float:
        """When the last one had come: before, the others waited."""
        return max(call.start for call in self.calls if call.verb != "wait")

    @property
    def end(self) -> float:
        """Of a message when it is received: its sender may ask for its buffer back much later."""
        return max(call.end for call in self.calls if call.verb != "wait")

    @property
    def moving(self) -> float:
        """How long data moved: from the coming of the last."""
        return self.end - self.complete_from

    def waiting(self, call: CallOfRank) -> float:
        """How long that rank waited for others to come."""
        return min(max(self.complete_from - call.start, 0.0), call.end - call.start)


class Trace(NamedTuple):
    work: list[Work]
    calls: list[CallOfRank]
    memory: dict[int, dict[str, int]]  # by rank: bytes by class, at the last step that was noted

    @property
    def steps(self) -> list[int]:
        return sorted({work.step for work in self.work})

    @property
    def usual_steps(self) -> list[int]:
        """Those after the first, in which memory is touched anew; the first, if it is the only one."""
        return self.steps[1:] or self.steps


def read_trace(path: Path, n_ranks: int) -> Trace:
    """Raises DataError if it is not as `observe/chrome_trace.py` writes it for so many ranks."""
    trace = Trace([], [], {})
    try:
        for event in json.loads(path.read_bytes())["traceEvents"]:
            if event["ph"] == "X" and event["tid"] == COMPUTING:
                trace.work.append(_work(event))
            elif event["ph"] == "X" and event["tid"] == CALLS:
                trace.calls.append(_call(event))
            elif event["ph"] == "C":
                trace.memory[int(event["pid"])] = {str(k): int(n) for k, n in event["args"].items()}
        ranks = {*trace.memory, *(w.rank for w in trace.work)}
        ranks.update(rank for call in trace.calls for rank in (call.rank, *call.ranks))
        if not ranks <= {*range(n_ranks)}:
            raise ValueError("it has ranks that the run has not")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", str(path), "check permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        remedy = "take it away, and the report is made without it"
        raise DataError(f"{path} is not the trace of a run", str(path), remedy) from error
    return trace


def _work(event: dict[str, Any]) -> Work:
    args = event["args"]
    return Work(int(event["pid"]), int(args["step"]), str(args["phase"]), _micro(args), *_times(event))


def _call(event: dict[str, Any]) -> CallOfRank:
    args = event["args"]
    start, end = _times(event)
    return CallOfRank(
        rank=int(event["pid"]),
        verb=str(args["verb"]),
        axis=str(args["axis"]),
        ranks=tuple(int(rank) for rank in args["ranks"]),
        in_group=int(args["in_group"]),
        dtype=str(args["dtype"]),
        elements=int(args["elements"]),
        bytes=int(args["bytes"]),
        sent_bytes=int(args["sent_bytes"]),
        step=int(args["step"]),
        phase=str(args["phase"]),
        micro=_micro(args),
        part=str(args["part"]),
        site=str(args["site"]),
        start=start,
        end=end,
    )


def _times(event: dict[str, Any]) -> tuple[float, float]:
    """Beginning and end."""
    start, duration = float(event["ts"]) / 1e3, float(event["dur"]) / 1e3
    if not (math.isfinite(start) and 0 <= duration < math.inf):
        raise ValueError("no time")
    return start, start + duration


def _micro(args: dict[str, Any]) -> int | None:
    return None if args["micro"] is None else int(args["micro"])


def collectives(calls: Iterable[CallOfRank]) -> list[Collective]:
    """The calls matched, in the order in which they began. What moves nothing (barriers) is left out."""
    groups: dict[tuple[Any, ...], list[CallOfRank]] = defaultdict(list)
    for call in calls:
        groups[call.verb in MESSAGE, call.axis, call.ranks, call.in_group].append(call)
    found = []
    for group in groups.values():
        first = min(group, key=lambda call: (call.verb in ("recv", "wait"), call.start))
        if first.bytes and first.verb not in ("recv", "wait"):
            found.append(Collective(first, tuple(sorted(group, key=lambda call: (call.rank, call.start)))))
    return sorted(found, key=lambda collective: collective.start)


def step_shown(trace: Trace) -> int:
    """One of median duration among the usual ones."""
    durations = {step: _duration([w for w in trace.work if w.step == step]) for step in trace.usual_steps}
    median = statistics.median_low(durations.values())
    return next(step for step, duration in durations.items() if duration == median)


def of_step(trace: Trace, step: int) -> Trace:
    """Its part, with times from the beginning of the step."""
    work = [w for w in trace.work if w.step == step]
    start = min(w.start for w in work)
    return trace._replace(
        work=[w._replace(start=w.start - start, end=w.end - start) for w in work],
        calls=[c._replace(start=c.start - start, end=c.end - start) for c in trace.calls if c.step == step],
    )


def _duration(work: Sequence[Work]) -> float:
    return max(w.end for w in work) - min(w.start for w in work)
