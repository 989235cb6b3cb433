"""On the default text, from the default weights: every optimizer learns, and what each precision costs.

A loss is the mean of the last 20 steps, in nats per byte. A model that knows nothing but the frequencies of
bytes has 3.0, one of 256 equally likely bytes 5.5.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest

from minitrain.comm.single import SingleComm
from minitrain.config import Config, DataConfig, LossScaleConfig, OptimConfig, RunConfig, TrainConfig
from minitrain.defaults import OPTIMIZERS
from minitrain.observe.recorder import SilentRecorder, StepMetrics
from minitrain.resolve import resolve
from minitrain.train import train

LEARNT = {"momentum": 3.3, "sophia-g": 3.3, "sophia-h": 3.3}  # after 60 steps: slower than the others
LAST = 20


class Memo(SilentRecorder):
    def __init__(self) -> None:
        self.steps: list[StepMetrics] = []

    def step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)


def run(config: Config, steps: int) -> list[StepMetrics]:
    memo = Memo()
    config = replace(
        config,
        train=TrainConfig(steps=steps, eval_every=0),
        data=DataConfig(holdout=0),
        run=RunConfig(export_hf=False, sample_tokens=0),
    )
    train(resolve(config, {}, 1).config, SingleComm(), memo)
    return memo.steps


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_with_its_defaults(name: str) -> None:
    losses = [m.loss for m in run(Config(optim=OptimConfig(name=name)), 60)]  # type: ignore[arg-type]
    assert losses[0] > 5.4 and np.mean(losses[-LAST:]) < LEARNT.get(name, 2.9)


# At the default rate, 0.005, training amplifies every difference: that of fp32 to itself, if it adds up in
# another order, to 0.4% (docs/numerical-types.md).
CALM = OptimConfig(lr=1e-3)
SMALL = OptimConfig(lr=3e-4, betas=(0.9, 0.999), schedule="constant")


@functools.cache
def metrics(precision: str, optim: OptimConfig, loss_scale: LossScaleConfig) -> list[StepMetrics]:
    return run(Config(precision=precision, optim=optim, loss_scale=loss_scale), 300)  # type: ignore[arg-type]


def loss(precision: str, optim: OptimConfig) -> float:
    steps = metrics(precision, optim, LossScaleConfig())
    return float(np.mean([m.loss for m in steps[-LAST:]]))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_ends_within_1_percent_of_fp32(precision: str) -> None:
    assert abs(loss(precision, CALM) / loss("fp32", CALM) - 1) < 0.01
    assert not any(m.skipped for m in metrics(precision, CALM, LossScaleConfig()))


def test_pure_bf16_at_a_small_rate_loses_3_percent_and_stochastic_rounding_finds_most_of_it() -> None:
    fp32 = loss("fp32", SMALL)
    nearest = loss("bf16-pure", SMALL) / fp32 - 1
    stochastic = loss("bf16-pure", replace(SMALL, stochastic_rounding=True)) / fp32 - 1
    assert nearest >= 0.03
    assert abs(stochastic) < 0.2 * nearest


def test_the_scale_finds_its_height_from_above() -> None:
    """An impatient one: every skipped step halves it, 20 good ones double it."""
    impatient = LossScaleConfig(initial=2.0**30, growth_interval=20)
    optim = OptimConfig(lr=1e-3)
    steps = run(Config(precision="fp16", optim=optim, loss_scale=impatient), 60)
    scales = [m.loss_scale for m in steps]
    assert scales[0] == 2.0**30 and steps[0].skipped
    good = 0
    for step, after in zip(steps, scales[1:], strict=False):
        good = 0 if step.skipped else good % 20 + 1
        expected = step.loss_scale / 2 if step.skipped else step.loss_scale * (2 if good == 20 else 1)
        assert after == expected
    assert 5 < sum(m.skipped for m in steps) < 20 and not steps[20].skipped
