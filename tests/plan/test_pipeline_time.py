"""The time of a pipeline, predicted and as real runs take it, on clocks that count work and nothing else.

Each rank has a clock. A forward or a backward puts it forward by what the stage's blocks take, a message
takes the sender's clock along, and who receives it is there no earlier. So the whole of a step's schedule,
waiting and all, is measured in exact numbers, whatever the machine has to do besides.
"""

import threading
from dataclasses import replace
from typing import Any

import pytest
from layouts import LIMIT, LLAMA, batch_of, random_weights, tiny

from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.comm.traced import Call, traced
from minitrain.config import Config
from minitrain.parallel.stage import Stage
from minitrain.plan.bubble import bubble
from minitrain.plan.step_time import pipeline
from minitrain.step import backpropagate

F, B = 1, 2  # of a block


class Clocks(threading.local):
    now = 0


class Waiting:
    """A watch that hands clocks over with messages."""

    def __init__(self, clocks: Clocks, sent: dict[tuple[tuple[int, ...], int], int]) -> None:
        self.clocks, self.sent, self.call = clocks, sent, Call("", "", (), 0)

    def begin(self, call: Call) -> None:
        self.call = call
        if call.verb == "send":
            self.sent[call.ranks, call.number] = self.clocks.now

    def end(self) -> None:
        if self.call.verb == "recv":
            self.clocks.now = max(self.clocks.now, self.sent[self.call.ranks, self.call.number])


def measured(config: Config, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """When each stage is done with its part of a step."""
    clocks, sent = Clocks(), dict[tuple[tuple[int, ...], int], int]()

    def slow(method: str, cost: int) -> None:
        original = getattr(Stage, method)

        def slowed(stage: Stage, *arguments: Any) -> Any:
            clocks.now += cost * len(stage.blocks)
            return original(stage, *arguments)

        monkeypatch.setattr(Stage, method, slowed)

    slow("forward", F)
    slow("backward", B)

    def rank_main(world: Comm) -> int:
        grid = make_grid(traced(world, lambda event: None, Waiting(clocks, sent)), config)
        backpropagate(make_trainer(config, grid, random_weights), batch_of(config, 1, 0))
        return clocks.now

    assert config.parallel.pp
    return run_threads(config.parallel.pp, rank_main, LIMIT)


def configured(layers: int, pp: int, m: int, schedule: str) -> Config:
    config = tiny(replace(LLAMA, layers=layers), pp=pp, schedule=schedule)
    return replace(config, train=replace(config.train, global_batch=m))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.parametrize("pp", [1, 2, 4])
def test_equal_stages_take_what_the_formula_says(
    pp: int, m: int, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """m (F + B) of work and a bubble of (p - 1) (F + B)."""
    each = 4 // pp * (F + B)
    took = max(measured(configured(4, pp, m, schedule), monkeypatch))
    idle = took - m * each
    formula = bubble(schedule, pp, m)
    assert took == pipeline([each] * pp, m) == (m + pp - 1) * each
    assert idle / (m * each) == formula.ratio and idle / took == pytest.approx(formula.fraction, rel=1e-15)


@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.parametrize("pp", [2, 3, 4])
def test_unequal_stages(pp: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 or 6 blocks over 2 to 4 stages. GPipe: exactly. 1F1B takes no longer, and no less than the way to any
    stage, its work, and the way back.
    """
    for layers in (5, 6):
        stages = [(layers // pp + (s < layers % pp)) * (F + B) for s in range(pp)]
        predicted = pipeline(stages, m)
        assert max(measured(configured(layers, pp, m, "gpipe"), monkeypatch)) == predicted
        monkeypatch.undo()
        took = max(measured(configured(layers, pp, m, "1f1b"), monkeypatch))
        monkeypatch.undo()
        least = max(sum(stages[:s]) + m * stages[s] for s in range(pp))
        assert least <= took <= predicted
