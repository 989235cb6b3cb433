"""Are the bytes right? What each rank sends in a step, as traced, equals the closed form, call by call."""

import functools
import itertools
import subprocess
import sys
from collections import Counter

import pytest
from layouts import LIMIT, rank_run
from matrix import BATCHES, SAMPLE, cases, configured, label

from minitrain.comm.grid import make_grid
from minitrain.comm.threads import run_threads
from minitrain.comm.traced import ByteCounter, Event, TracedComm
from minitrain.config import Config
from minitrain.observe.traffic import places, sent_bytes, traffic


def trace(config: Config, steps: int = 1) -> list[list[Event]]:
    """What every rank calls."""

    def rank_main(world):
        events: list[Event] = []
        rank_run(world, config, steps, events.append)
        return events

    return run_threads(len(places(config)), rank_main, LIMIT)


def check(config: Config, ranks: list[list[Event]]) -> None:
    for place, events in zip(places(config), ranks, strict=True):
        rows = traffic(config, place)
        traced = Counter((e.axis, e.verb, e.bytes) for e in events)
        expected = Counter({(r.axis, r.verb, r.bytes): 0 for r in rows})
        for row in rows:
            expected[row.axis, row.verb, row.bytes] += row.calls
        differences = [
            f"{verb} over {axis} of {n_bytes} bytes: {traced[call]} traced, {expected[call]} expected"
            for call in sorted(traced | expected)
            for axis, verb, n_bytes in [call]
            if traced[call] != expected[call]
        ]
        assert not differences, f"{place}: {differences}"
        counter = ByteCounter()
        for event in events:
            counter(event)
        assert counter.take() == sent_bytes(rows), place


@pytest.mark.parametrize("case", SAMPLE, ids=label)
def test_traced_bytes_are_the_closed_form(case):
    """A sample in which every pair of values of any two fields occurs."""
    config = configured(**case)
    check(config, trace(config))


def test_the_sample_has_cases_of_every_batch():
    """What is refused is left out of it; so a configuration that is never legal would go unseen."""
    assert {case["batch"] for case in SAMPLE} == set(BATCHES)


@pytest.mark.long
@pytest.mark.parametrize("case", list(cases("2x1")), ids=label)
def test_traced_bytes_are_the_closed_form_in_every_layout(case):
    config = configured(**case)
    check(config, trace(config))


# Between them these two use every axis with every verb.
RICH = {
    "sequence": dict(model="llama-tied", batch="2x1", dp=4, tp=2, pp=1, zero=2, shard=2, sequence=True),
    "pipeline": dict(model="llama-tied", batch="2x1", dp=2, tp=2, pp=2, zero=1, shard=2, sequence=False),
}
CALLS = [
    *itertools.product(["sequence"], ["tp", "shard"], ["all_gather", "reduce_scatter"]),
    *itertools.product(["sequence"], ["tp", "kv", "replica", "shard", "dp", "world"], ["all_reduce"]),
    *itertools.product(["pipeline"], ["tp", "kv", "shard", "pp", "tied", "dp", "world"], ["all_reduce"]),
    *itertools.product(["pipeline"], ["shard"], ["all_gather", "reduce_scatter"]),
]


@functools.cache
def rich_trace(name: str) -> list[list[Event]]:
    return trace(configured(**RICH[name]))


def test_every_step_sends_the_same():
    for one, two in zip(rich_trace("pipeline"), trace(configured(**RICH["pipeline"]), 2), strict=True):
        assert two == 2 * one


def test_the_planted_bugs_below_touch_every_axis_and_verb():
    called = {(name, e.axis, e.verb) for name in RICH for events in rich_trace(name) for e in events}
    assert called == {*CALLS, ("pipeline", "pp", "send")}
    assert {axis for _, axis, _ in called} == {"replica", "shard", "dp", "pp", "tp", "kv", "tied", "world"}


@pytest.mark.parametrize("name", RICH)
def test_one_event_more_or_less_on_one_rank_is_seen(name):
    """Of every kind of event, on every rank."""
    config, ranks = configured(**RICH[name]), rich_trace(name)
    check(config, ranks)
    for rank, events in enumerate(ranks):
        for event in set(events):
            at = events.index(event)
            for tampered in ([*events, event], events[:at] + events[at + 1 :]):
                with pytest.raises(
                    AssertionError, match=f"{event.verb} over {event.axis} of {event.bytes} bytes"
                ):
                    check(config, [*ranks[:rank], tampered, *ranks[rank + 1 :]])


@pytest.mark.parametrize("times", [0, 2], ids=["omitted", "repeated"])
@pytest.mark.parametrize("name, axis, verb", CALLS)
def test_a_collective_omitted_or_repeated_is_seen(monkeypatch, name, axis, verb, times):
    """The first one of its kind, on all ranks."""
    original = getattr(TracedComm, verb)
    done: set[TracedComm] = set()

    def tampered(comm, *arguments):
        if comm.name != axis or comm in done:
            original(comm, *arguments)
            return
        done.add(comm)
        if not times and verb != "all_reduce":
            arguments[1].fill(0)  # nothing arrives in a buffer that may not have been written yet
        for _ in range(times):
            original(comm, *arguments)

    monkeypatch.setattr(TracedComm, verb, tampered)
    config = configured(**RICH[name])
    with pytest.raises(AssertionError, match=f"{verb} over {axis}"):
        check(config, trace(config))


@pytest.mark.parametrize("case", RICH.values(), ids=RICH)
def test_places_are_those_of_the_grid(case):
    config = configured(**case)

    def rank_main(world):
        grid = make_grid(world, config)
        return grid.replica.rank, grid.shard.rank, grid.pp.rank, grid.tp.rank

    assert run_threads(8, rank_main, LIMIT) == places(config)


@pytest.mark.parametrize("case", SAMPLE, ids=label)
def test_a_row_is_one_kind_of_collective_and_says_what_for(case):
    config = configured(**case)
    for place in places(config):
        rows = traffic(config, place)
        assert len({(row.axis, row.verb, row.what) for row in rows}) == len(rows)


def test_one_rank_sends_nothing():
    config = configured("llama", "2x1", zero=3, sequence=True)
    assert traffic(config, *places(config)) == [] and sent_bytes([]) == {}


def test_the_closed_form_imports_neither_what_it_checks_nor_arrays():
    program = "import sys, minitrain.observe.traffic; print(*sys.modules, sep='\\n')"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100
    )
    ours = {name for name in run.stdout.split() if name.startswith("minitrain")}
    assert ours == {"minitrain", "minitrain.config", "minitrain.observe", "minitrain.observe.traffic"}
    assert "numpy" not in run.stdout.split()
