"""The judge on a GPU against that on the host (optim/judge.py), to the bit."""

import math
from dataclasses import replace

import numpy as np
import pytest

from minitrain.arrays.device import Gpu
from minitrain.config import LossScaleConfig
from minitrain.optim.cuda.judge import CudaJudge
from minitrain.optim.judge import Judge, Kept
from minitrain.optim.loss_scale import LossScale

DYNAMIC = LossScaleConfig(initial=2.0**10, growth_interval=3, hysteresis=2, minimum=2.0**-3, backoff=0.25)
CONFIGS = {
    "none": None,
    "dynamic": DYNAMIC,
    "default": LossScaleConfig(),
    "one overflow": replace(DYNAMIC, hysteresis=1, growth_interval=1, backoff=0.7),
    "constant": LossScaleConfig(dynamic=False, initial=128.0),
    "whole numbers": replace(DYNAMIC, minimum=1, initial=1024),
}


def judges(gpu: Gpu, config: LossScaleConfig | None, clip: float) -> tuple[CudaJudge, Judge]:
    return CudaJudge(gpu, config, clip), Judge(LossScale(config) if config else None, clip)


@pytest.mark.parametrize("clip", [0.0, 1.0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_long_runs(gpu: Gpu, name: str, clip: float) -> None:
    """Overflows by chance, now seldom, now mostly, in loss, gradient, or on another rank alone."""
    for seed, share in enumerate((0.0, 0.1, 0.4, 0.9)):
        rng, (ours, theirs) = np.random.default_rng(seed), judges(gpu, CONFIGS[name], clip)
        seen = set()
        for _ in range(200):
            assert ours.kept() == theirs.kept() and float(ours.scale[0]) == theirs.scale
            losses = rng.lognormal(size=(int(rng.integers(1, 3)), int(rng.integers(1, 9))))
            square = rng.lognormal(0, 3, 1) * theirs.scale**2
            bad = rng.choice(["loss", "gradient", "other rank"]) if rng.random() < share else ""
            if bad == "loss":
                losses[0, rng.integers(losses.shape[1])] = rng.choice([np.inf, np.nan])
            if bad == "gradient":
                square[0] = rng.choice([np.inf, np.nan])
            given, verdicts = (losses.copy(), square.copy()), []
            for judge in (ours, theirs):
                verdicts.append(judge.look(losses, square))
                assert verdicts[-1].rejected.tolist() == [bad in ("loss", "gradient")]
                verdicts[-1].rejected[0] |= bad == "other rank"  # as their maximum says
                judge.decide(verdicts[-1])
            numbers, expected = (verdict.numbers() for verdict in verdicts)
            np.testing.assert_array_equal(numbers, expected)
            assert type(numbers.accepted) is bool and type(numbers.updates) is int
            np.testing.assert_array_equal(verdicts[0].array, numbers)  # where the update reads them
            for array, before in zip((losses, square), given, strict=True):
                np.testing.assert_array_equal(array, before)
            seen.add(numbers.accepted)
        assert seen == ({True} if share == 0 else {True, False})


def test_scales_rise_and_fall_to_their_minimum(gpu: Gpu) -> None:
    """What the long runs compare does happen."""
    ours, scales = CudaJudge(gpu, DYNAMIC, 1.0), []
    for square in [1.0] * 3 + [math.inf] * 12 + [1.0] * 3:
        verdict = ours.look(np.ones((1, 1)), np.array([square]))
        ours.decide(verdict)
        scales.append(verdict.numbers().loss_scale)
    falling = [2.0**k for k in (11, 9, 7, 5, 3, 1, -1, -3)]
    assert scales == [2.0**10] * 3 + [2.0**11, *falling] + [2.0**-3] * 6
    assert ours.kept() == Kept(6, 2.0**-2, 0, 2)


def test_a_verdict_outlives_the_next(gpu: Gpu) -> None:
    """The host reads a step's numbers when the next is under way."""
    ours = CudaJudge(gpu, None, 0.0)
    verdicts = []
    for loss in (1.0, 2.0):
        verdicts.append(ours.look(np.full((1, 1), loss), np.ones(1)))
        ours.decide(verdicts[-1])
    assert [verdict.numbers().loss for verdict in verdicts] == [1.0, 2.0]
    assert [verdict.number for verdict in verdicts] == [1, 2]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_kept_comes_back(gpu: Gpu, name: str) -> None:
    """The scale itself stays where the backward has found it."""
    ours, theirs = judges(gpu, CONFIGS[name], 1.0)
    scale, kept = ours.scale, Kept(7, 64.0, 2, 1)
    for judge in (ours, theirs):
        judge.restore(kept)
    assert ours.kept() == theirs.kept() == (kept if CONFIGS[name] else Kept(7, 1.0, 0, 0))
    assert scale.shape == (1,) and scale[0] == theirs.scale
    assert ours.look(np.ones((1, 1)), np.ones(1)).number == 8


def test_no_numbers_before_it_is_decided(gpu: Gpu) -> None:
    with pytest.raises(AssertionError, match="not decided"):
        CudaJudge(gpu, None, 0.0).look(np.ones((1, 1)), np.ones(1)).numbers()
