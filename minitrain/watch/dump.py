"""What a rank writes down of itself when a call does not end: `hang-rank-N.json`, and how it is read."""

import json
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from minitrain.comm.traced import Call
from minitrain.watch.calls import CallLog
from minitrain.watch.hang import Dump, describe

PACKAGE = Path(__file__).parents[1]


def write_dump(directory: Path, rank: int, calls: CallLog) -> None:
    """Complete or not at all: others may read it at any time."""
    path = dump_path(directory, rank)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(look(rank, calls), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def dump_path(directory: Path, rank: int) -> Path:
    return directory / f"hang-rank-{rank}.json"


def read_dumps(directory: Path, n_ranks: int) -> dict[int, Dump]:
    """Those that are there."""
    paths = {rank: dump_path(directory, rank) for rank in range(n_ranks)}
    return {
        rank: to_dump(json.loads(path.read_text(encoding="utf-8")))
        for rank, path in paths.items()
        if path.exists()
    }


def look(rank: int, calls: CallLog) -> dict[str, Any]:
    """All that another thread can tell of a rank, at this moment."""
    pending, frames = calls.unended(), sys._current_frames()
    call = None
    if pending:
        seconds = time.perf_counter() - pending.since
        call = pending.call._asdict() | {"seconds": seconds, "since": time.time() - seconds}
    return {
        "rank": rank,
        "pending": call,
        "place": place(frames[calls.thread]) if calls.thread in frames else "its end",
        "begun": [[*key, number] for key, number in list(calls.begun.items())],
        "last": [f"{describe(call)}: {seconds:.6f} s" for call, seconds in list(calls.last)],
        "stacks": {
            thread.name: [line.rstrip() for line in traceback.format_stack(frames[thread.ident])]
            for thread in threading.enumerate()
            if thread.ident in frames
        },
    }


def to_dump(entry: dict[str, Any]) -> Dump:
    """What `look` has seen, as far as it matters for `explain`. Ranks look at different times: how long each
    has waited is told as of now.
    """
    begun = {(is_message, axis, tuple(ranks)): number for is_message, axis, ranks, number in entry["begun"]}
    if entry["pending"] is None:
        return Dump(None, 0.0, begun, entry["place"])
    pending = entry["pending"]
    fields = {name: pending[name] for name in Call._fields} | {"ranks": tuple(pending["ranks"])}
    return Dump(Call(**fields), time.time() - pending["since"], begun, entry["place"])


def place(frame: FrameType) -> str:
    """File, line and function: the innermost of this package, or the innermost of all."""
    stack = traceback.extract_stack(frame)
    ours = [entry for entry in stack if PACKAGE in Path(entry.filename).parents]
    inner = (ours or stack)[-1]
    path = Path(inner.filename)
    shown = path.relative_to(PACKAGE.parent) if ours else path.name
    return f"{shown}:{inner.lineno} in {inner.name}"
