"""A whole run on threads, as the recorder sees it: steps, validations, the sample; memory and bytes."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from layouts import LIMIT, LLAMA, tiny

from minitrain.comm.threads import run_threads
from minitrain.config import Config, DataConfig, RunConfig
from minitrain.data.philox import uniform
from minitrain.model.spec import model_specs
from minitrain.observe.recorder import SilentRecorder, StepMetrics
from minitrain.observe.traffic import places, sent_bytes, traffic
from minitrain.train import train

MODEL = replace(LLAMA, layers=2, vocab=256)


class Memo(SilentRecorder):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[StepMetrics] = []
        self.evaluations: list[tuple[int, float]] = []
        self.text = ""
        self.events: list[dict[str, Any]] = []

    def trace(self, events: list[dict[str, Any]] | None) -> None:
        self.events = events or []

    def step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)

    def evaluation(self, step: int, eval_loss: float) -> None:
        self.evaluations.append((step, eval_loss))

    def sample(self, text: str) -> None:
        self.text = text


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """Random letters. The 103 held out make 12 sequences: 6 micro-batches, for 4 ranks one and a half."""
    path = tmp_path / "text.txt"
    path.write_bytes(bytes((uniform(0, "text", 0, 1030) * 26 + 97).astype("u1")))
    return DataConfig(path=str(path), holdout=0.1)


def configured(data: DataConfig, **parallel: object) -> Config:
    """3 steps of 16 sequences, in micro-batches of 2."""
    config = tiny(MODEL, **parallel)
    schedule = replace(config.train, global_batch=16, micro_batch=2, eval_every=2, eval_sequences=0)
    return replace(config, train=schedule, data=data, run=RunConfig(sample_tokens=12, export_hf=False))


def run(config: Config) -> Memo:
    """What rank 0's recorder was told."""
    memo, p = Memo(), config.parallel
    assert p.dp and p.tp and p.pp
    run_threads(
        p.dp * p.tp * p.pp,
        lambda world: train(config, world, SilentRecorder() if world.rank else memo),
        LIMIT,
    )
    return memo


@pytest.mark.parametrize("parallel", [
    dict(dp=4),
    dict(dp=2, tp=2, pp=2, zero=1),
    dict(dp=4, pp=2, zero=3, shard=2),
    dict(tp=4, pp=2, sequence=True),
], ids=str)  # fmt: skip
def test_every_layout_tells_the_same(parallel: dict[str, object], data: DataConfig) -> None:
    serial, ours = run(configured(data)), run(configured(data, **parallel))
    assert [m.step for m in ours.steps] == [1, 2, 3] and [s for s, _ in ours.evaluations] == [2, 3]
    for a, b in zip(ours.steps, serial.steps, strict=True):
        assert abs(a.loss - b.loss) <= 1e-12 * b.loss
        assert abs(a.grad_norm - b.grad_norm) <= 1e-12 * b.grad_norm
        assert (a.lr, a.tokens, a.skipped) == (b.lr, b.tokens, b.skipped)
    for (_, loss), (_, expected) in zip(ours.evaluations, serial.evaluations, strict=True):
        assert abs(loss - expected) <= 1e-12 * expected
    assert ours.text == serial.text and len(ours.text) > 1


def test_a_step_s_bytes_are_its_own(data: DataConfig) -> None:
    """Not those of the validation after step 2."""
    config = configured(data, dp=2, tp=2, pp=2, zero=2)
    expected = sent_bytes(traffic(config, places(config)[0]))
    assert [m.comm_bytes for m in run(config).steps] == [expected] * 3


def test_a_timeline_of_the_first_steps(data: DataConfig) -> None:
    """What is in it of rank 0 adds up to the step's metrics; every rank is in it."""
    config = configured(data, dp=2, tp=2, pp=2, zero=2)
    config = replace(config, run=replace(config.run, trace=True, trace_steps=2))
    memo = run(config)
    for step in (1, 2, 3):
        sent: dict[str, Counter[str]] = {}
        for event in memo.events:
            if event["ph"] == "X" and event["pid"] == 0 and event["args"]["step"] == step and event["tid"]:
                call = event["args"]
                sent.setdefault(call["axis"], Counter())[call["verb"]] += call["sent_bytes"]
        sums = {axis: {verb: n for verb, n in verbs.items() if n} for axis, verbs in sent.items()}
        assert sums == (memo.steps[step - 1].comm_bytes if step < 3 else {})
    assert {event["pid"] for event in memo.events} == set(range(8))
    assert run(configured(data)).events == []


@pytest.mark.parametrize("zero, parameters, gradients, moments", [
    (0, 1, 1, 2),
    (1, 1, 1, 1),
    (2, 1, 1 / 2, 1),
    (3, 1 / 2, 1 / 2, 1),
])  # fmt: skip
def test_memory_of_zero_over_two_ranks(
    zero: int, parameters: float, gradients: float, moments: float, data: DataConfig
) -> None:
    """In units of all parameters (Rajbhandari et al. 2020, figure 1). No unit is odd: there is no padding."""
    whole = sum(spec.size for spec in model_specs(MODEL)) * 8
    memory = run(configured(data, dp=2, zero=zero)).steps[-1].memory_bytes
    assert memory["parameters"] == parameters * whole and memory["gradients"] == gradients * whole
    assert memory["moments"] == moments * whole and memory["master"] == 0
    assert (memory["buffers"] > 0) == (zero >= 2)


def test_activations_of_the_schedules(data: DataConfig) -> None:
    """On the first of two stages GPipe keeps all 8 micro-batches, 1F1B two."""
    gpipe, one_f_one_b = (
        run(configured(data, pp=2, schedule=name)).steps[-1].memory_bytes["activations"]
        for name in ("gpipe", "1f1b")
    )
    assert gpipe == 4 * one_f_one_b > 0
