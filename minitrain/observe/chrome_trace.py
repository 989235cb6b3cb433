"""A run's timelines as a file that browsers draw: `trace.json`, in the Trace Event Format of Chrome, which
Perfetto (https://ui.perfetto.dev) reads too.

A process for each rank, with two lanes: what it computes, and its calls to others. An arrow leads from each
message's sending to its receiving. Memory is a counter. Times are microseconds from the first event.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from minitrain.comm.interface import Comm
from minitrain.observe.clocks import Offset
from minitrain.observe.timeline import CallMade, Purpose, Timeline, Work

COMPUTING, CALLS = 0, 1  # lanes
TRACE = "trace.json"
EDGE = 0.01  # microseconds from the end of a slice that are surely in it


def gather_timelines(timeline: Timeline, offset: Offset, world: Comm) -> list[dict[str, Any]] | None:
    """On rank 0 what every rank has noted, as events, by rank 0's clock; None on the others. Collective."""
    mine = json.dumps(list(rank_events(timeline, world.rank, offset))).encode()
    if world.rank != 0:
        world.send(np.array([len(mine)]), 0)
        world.send(np.frombuffer(mine, np.uint8).copy(), 0)
        return None
    events: list[dict[str, Any]] = json.loads(mine)
    for rank in range(1, world.size):
        length = np.empty(1, np.int64)
        world.recv(length, rank)
        text = np.empty(int(length[0]), np.uint8)
        world.recv(text, rank)
        events += json.loads(text.tobytes())
    return events


def trace_text(events: Sequence[dict[str, Any]]) -> str:
    """The file: an event a line, in the order of time, after the names of ranks and lanes."""
    first = min((event["ts"] for event in events), default=0.0)
    arrows = {e["id"]: number for number, e in enumerate(events, 1) if "id" in e}  # Perfetto wants numbers
    numbered = ({**e, "id": arrows[e["id"]]} if "id" in e else e for e in events)
    shifted = sorted((_shifted(event, first) for event in numbered), key=lambda e: e["ts"])
    ranks = sorted({event["pid"] for event in events})
    lines = [json.dumps(event, separators=(",", ":")) for event in (*_names(ranks), *shifted)]
    return '{"displayTimeUnit":"ms","traceEvents":[\n' + ",\n".join(lines) + "\n]}\n"


def _shifted(event: dict[str, Any], first: float) -> dict[str, Any]:
    """In whole nanoseconds from `first`. Slices end one early: Perfetto cuts off what it cannot hold, takes
    two that touch for overlapping, and leaves the second out.
    """
    start = round(1e3 * (event["ts"] - first))
    if "dur" not in event:
        return {**event, "ts": start / 1e3}
    end = round(1e3 * (event["ts"] + event["dur"] - first))
    return {**event, "ts": start / 1e3, "dur": max(end - start - 1, 0) / 1e3}


def rank_events(timeline: Timeline, rank: int, offset: Offset) -> Iterator[dict[str, Any]]:
    """Of one rank. `ts` and `dur` in microseconds."""

    def at(seconds: float) -> float:
        return 1e6 * (seconds + offset.seconds)

    for work in timeline.work:
        yield _slice(work, COMPUTING, rank, at, _title(work.purpose), "compute", work.purpose._asdict())
    for made in timeline.calls:
        yield _slice(made, CALLS, rank, at, f"{made.call.verb} {made.call.axis}", "call", arguments(made))
        yield from _arrow(made, rank, at)
    for memory in timeline.memory:
        yield {"ph": "C", "name": "memory", "pid": rank, "ts": at(memory.at), "args": memory.bytes}


def arguments(made: CallMade) -> dict[str, Any]:
    """All that is known of a call: a line of the ledger."""
    call = made.call
    return {
        "number": made.number,
        "verb": call.verb,
        "axis": call.axis,
        "ranks": call.ranks,
        "in_group": call.number,
        "dtype": call.dtype,
        "elements": call.elements,
        "bytes": made.bytes,
        "sent_bytes": made.sent_bytes,
        **made.purpose._asdict(),
        "site": made.site,
    }


def _slice(
    timed: Work | CallMade, lane: int, rank: int, at: Any, name: str, category: str, args: dict[str, Any]
) -> dict[str, Any]:
    start, end = at(timed.start), at(timed.end)
    return {
        "ph": "X", "name": name, "cat": category, "pid": rank, "tid": lane, "ts": start, "dur": end - start,
        "args": args,
    }  # fmt: skip


def _title(purpose: Purpose) -> str:
    return purpose.phase if purpose.micro is None else f"{purpose.phase} {purpose.micro}"


def _arrow(made: CallMade, rank: int, at: Any) -> Iterator[dict[str, Any]]:
    """From the beginning of a send to just before the end of its receive, which is later, whoever came first:
    a viewer looks for the slice that an end is in, and for the beginning before the end.
    """
    if made.call.verb not in ("send", "recv"):
        return
    source, to = made.call.ranks
    starts = made.call.verb == "send"
    arrow: dict[str, Any] = {
        "ph": "s" if starts else "f", "name": "message", "cat": "message",
        "id": f"{made.call.axis} {source}-{to} {made.call.number}",
        "pid": rank, "tid": CALLS,
        "ts": at(made.start) if starts else max(at(made.end) - EDGE, at(made.start)),
    }  # fmt: skip
    yield arrow if starts else {**arrow, "bp": "e"}


def _names(ranks: Iterable[int]) -> Iterator[dict[str, Any]]:
    for rank in ranks:
        name = {"name": f"rank {rank}"}
        yield {"ph": "M", "name": "process_name", "pid": rank, "args": name}
        yield {"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}}
        for lane, title in ((COMPUTING, "computing"), (CALLS, "calls to others")):
            yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": lane, "args": {"name": title}}
