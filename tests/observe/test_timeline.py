"""Does the timeline of a run tell what happened? On threads, and compared with what was called."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from layouts import LIMIT, LLAMA, batch_of, random_weights, tiny

from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import World
from minitrain.comm.threads import run_threads
from minitrain.comm.traced import Event, traced
from minitrain.config import Config
from minitrain.observe.chrome_trace import gather_timelines, rank_events, trace_text
from minitrain.observe.clocks import Offset, clock_offset
from minitrain.observe.timeline import AFTER, Timeline
from minitrain.parallel.schedule import one_f_one_b
from minitrain.step import train_step
from minitrain.train import observed

LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2tp2pp2-zero1": dict(dp=2, tp=2, pp=2, zero=1),
    "dp2pp2-zero3": dict(dp=2, pp=2, zero=3),
    "tp2pp2-sequence": dict(tp=2, pp=2, sequence=True),
}


def noted(config: Config, steps: int = 2) -> list[tuple[Timeline, list[Event]]]:
    """What each rank noted of some steps, and what it sent by another ledger."""

    def rank_main(world: World) -> tuple[Timeline, list[Event]]:
        timeline, events = Timeline(), list[Event]()

        def ledger(event: Event) -> None:
            timeline(event)
            events.append(event)

        grid = make_grid(traced(world, ledger, timeline), config)
        trainer = observed(make_trainer(config, grid, random_weights), timeline)
        events.clear()
        for step in range(1, steps + 1):
            timeline.begin_step(step)
            train_step(trainer, batch_of(config, step, grid.dp.rank), 1e-3, step)
            timeline.end_step(trainer.meter.bytes(trainer.stage))
        train_step(trainer, batch_of(config, 9, grid.dp.rank), 1e-3, 9)  # not to be noted
        return timeline, events[: len(events) * steps // (steps + 1)]

    p = config.parallel
    assert p.dp and p.tp and p.pp
    return run_threads(p.dp * p.tp * p.pp, rank_main, LIMIT)


@pytest.fixture(scope="module", params=LAYOUTS)
def run(request: pytest.FixtureRequest) -> tuple[Config, list[tuple[Timeline, list[Event]]]]:
    config = tiny(replace(LLAMA, layers=3), **LAYOUTS[request.param])
    return config, noted(config)


def test_every_call_is_there_once(run: Any) -> None:
    for timeline, events in run[1]:
        sent = [(c.call.verb, c.call.axis, c.bytes, c.sent_bytes) for c in timeline.calls if c.bytes]
        assert sent == [(e.verb, e.axis, e.bytes, e.sent_bytes) for e in events]
        assert [made.number for made in timeline.calls] == list(range(len(timeline.calls)))


def test_work_is_that_of_the_schedule(run: Any) -> None:
    config, ranks = run
    pp, tp = config.parallel.pp, config.parallel.tp
    for rank, (timeline, _) in enumerate(ranks):
        stage, n_micro = rank // tp % pp, 8 // config.parallel.dp
        expected = [(i.kind.value, i.micro) for i in one_f_one_b(stage, pp, n_micro)]
        for step in (1, 2):
            work = [w for w in timeline.work if w.purpose.step == step]
            assert [(w.purpose.phase, w.purpose.micro) for w in work] == [*expected, (AFTER, None)]
            assert all(a.end == b.start for a, b in pairwise(work))
            for made in (made for made in timeline.calls if made.purpose.step == step):
                inside = [w for w in work if w.start <= made.start and made.end <= w.end]
                assert [(w.purpose.phase, w.purpose.micro) for w in inside] == [
                    (made.purpose.phase, made.purpose.micro)
                ]


def test_calls_know_what_they_are_for(run: Any) -> None:
    config, ranks = run
    for rank, (timeline, _) in enumerate(ranks):
        first = rank // config.parallel.tp % config.parallel.pp == 0
        layers = {
            made.purpose.part for made in timeline.calls if made.call.axis == "tp" and made.purpose.part
        }
        if config.parallel.tp > 1:
            held = {"layers.0", "layers.1"} if first else {"layers.2"}
            assert held <= layers <= held | {"embedding", "head"}
        for made in timeline.calls:
            if made.purpose.phase in ("send_act", "recv_act", "send_grad", "recv_grad"):
                assert made.call.verb in ("send", "recv", "wait") and made.call.axis == "pp"
            assert made.site.startswith("minitrain/") and "/comm/" not in made.site
    sites = {made.site.partition(":")[0] for timeline, _ in ranks for made in timeline.calls}
    assert "minitrain/step.py" in sites


def test_a_message_has_an_arrow_from_each_end(run: Any) -> None:
    events = [e for rank, (t, _) in enumerate(run[1]) for e in rank_events(t, rank, Offset(0.0, 0.0))]
    starts, ends = (Counter(e["id"] for e in events if e["ph"] == ph) for ph in "sf")
    assert starts == ends and set(starts.values()) == {1}
    slices = [e for e in events if e["ph"] == "X"]
    for arrow in (e for e in events if e["ph"] in "sf"):
        assert any(
            e["pid"] == arrow["pid"]
            and e["tid"] == arrow["tid"]
            and e["ts"] <= arrow["ts"] <= e["ts"] + e["dur"]
            for e in slices
        )
    assert '"traceEvents"' in trace_text(events)


def test_clocks() -> None:
    """Ranks on threads share one; the difference that is found is no more than it says."""
    for offset in run_threads(4, clock_offset, LIMIT):
        assert abs(offset.seconds) <= offset.error < 1.0


def test_all_ranks_come_together() -> None:
    def rank_main(world: World) -> list[dict[str, Any]] | None:
        timeline = Timeline()
        timeline.begin_step(1)
        timeline.turn_to("forward", world.rank)
        timeline.end_step({"parameters": 8})
        return gather_timelines(timeline, Offset(float(world.rank), 0.0), world)

    first, *others = run_threads(3, rank_main, LIMIT)
    assert others == [None, None] and first is not None
    assert [e["name"] for e in first] == ["forward 0", "memory", "forward 1", "memory", "forward 2", "memory"]
    assert np.diff([e["ts"] for e in first if e["ph"] == "X"]) == pytest.approx([1e6, 1e6], abs=1e5)
