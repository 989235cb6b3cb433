"""The learning rate of every step, and clipping."""

import itertools

import pytest

from minitrain.config import OptimConfig
from minitrain.optim.clip import clip_scale
from minitrain.optim.schedule import learning_rate


def test_clip_scale() -> None:
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(4.0, 1.0) == 1.0 / (4.0 + 1e-6)
    assert clip_scale(4.0, 0) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_learning_rate(schedule: str) -> None:
    """The warm-up, the last step, and the middle, in numbers."""
    optim = OptimConfig(lr=1.0, min_lr=0.1, warmup=10, decay=20, schedule=schedule)  # type: ignore[arg-type]
    rate = [learning_rate(t, 110, optim) for t in range(1, 111)]
    assert rate[:10] == [t / 10 for t in range(1, 11)]
    last, middle = {"constant": (1.0, 1.0), "cosine": (0.1, 0.55), "linear": (0.1, 0.55), "wsd": (0.1, 1.0)}[
        schedule
    ]
    assert rate[-1] == pytest.approx(last, abs=1e-15) and rate[59] == pytest.approx(middle, abs=1e-15)
    if schedule == "wsd":
        assert rate[89] == 1.0 and rate[99] == pytest.approx(0.55)
    assert all(a >= b for a, b in itertools.pairwise(rate[9:]))


def test_wsd_without_decay_is_constant() -> None:
    assert learning_rate(5, 5, OptimConfig(lr=1.0, warmup=0, decay=0, schedule="wsd")) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_learning_rate_without_warm_up(schedule: str) -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.0, warmup=0, decay=1, schedule=schedule)  # type: ignore[arg-type]
    assert 0 < learning_rate(1, 5, optim) <= 1.0
    assert learning_rate(1, 1, optim) >= 0
