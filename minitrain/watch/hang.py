"""Who keeps whom waiting: from what each rank knows of itself, one sentence for the user.

A rank in a call waits for all others of the group, or for the other end of a message. Of those some have not
come. They may wait for others in turn: best told is a call for which nobody is missing who waits himself. If
there is none, ranks wait for each other in a circle, and any call of it will do.
"""

from collections.abc import Mapping
from typing import NamedTuple

from minitrain.comm.ranks import name_ranks, who_says
from minitrain.comm.traced import Call
from minitrain.errors import Problem
from minitrain.watch.calls import Channel, channel

SILENT = "no sign of life"


class Dump(NamedTuple):
    """What a rank tells of itself when a call does not end."""

    pending: Call | None
    seconds: float  # in which it has been pending
    begun: dict[Channel, int]
    place: str  # where our code stands


class Wait(NamedTuple):
    """A call that some ranks are in."""

    call: Call
    inside: list[int]
    missing: list[int]
    seconds: float


def explain(dumps: Mapping[int, Dump], remedy: str) -> Problem:
    """What is told of a hang. Ranks without a dump have not answered; at least one has, and is in a call."""
    pending = [dump.pending for dump in dumps.values() if dump.pending]
    waits = [_wait(dumps, call) for call in {(channel(call), call.number): call for call in pending}.values()]

    def told_best(wait: Wait) -> tuple[float, float]:
        at_fault = [rank for rank in wait.missing if rank not in dumps or not dumps[rank].pending]
        return len(at_fault) / max(1, len(wait.missing)), wait.seconds

    wait = max(waits, key=told_best)
    call = describe(wait.call)
    patience = f"{name_ranks(wait.inside)} waited {wait.seconds:.0f} s"
    if not wait.missing:
        what = f"{call} does not end, though all have come: {patience}"
        return Problem(what, f"over {wait.call.axis}, {name_ranks(wait.call.ranks)}", remedy)
    doing = {rank: _doing(dumps.get(rank)) for rank in wait.missing}
    verb = "has" if len(wait.missing) == 1 else "have"
    what = f"{name_ranks(wait.missing)} {verb} not come to {call}, for which {patience}"
    return Problem(what, who_says(doing), remedy)


def describe(call: Call) -> str:
    """`all_reduce of 4096 float32 over dp (call 57)`, `recv of 64 float32 over pp from rank 0 to rank 1 …`"""
    what = f" of {call.elements} {call.dtype}" if call.dtype else ""
    if channel(call)[0]:
        verb = "the end of send" if call.verb == "wait" else call.verb
        way = "from rank {} to rank {}".format(*call.ranks)
        return f"{verb}{what} over {call.axis} {way} (message {call.number})"
    return f"{call.verb}{what} over {call.axis} (call {call.number})"


def _wait(dumps: Mapping[int, Dump], call: Call) -> Wait:
    """Of a call that at least one rank is in."""
    inside = [rank for rank in call.ranks if _is_in(dumps.get(rank), call)]
    missing = [rank for rank in call.ranks if not _has_come(dumps.get(rank), call)]
    return Wait(call, inside, missing, max(dumps[rank].seconds for rank in inside))


def _is_in(dump: Dump | None, call: Call) -> bool:
    pending = dump.pending if dump else None
    return pending is not None and (channel(pending), pending.number) == (channel(call), call.number)


def _has_come(dump: Dump | None, call: Call) -> bool:
    return dump is not None and dump.begun.get(channel(call), 0) >= call.number


def _doing(dump: Dump | None) -> str:
    if dump is None:
        return SILENT
    return f"waiting in {describe(dump.pending)}" if dump.pending else f"at {dump.place}"
