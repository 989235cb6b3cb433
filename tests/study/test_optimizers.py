"""What the textbook says of six optimizers is what they do, and what the command prints."""

from pathlib import Path

import numpy as np
import pytest
from launch import run_minitrain

from minitrain.study.optimizers import ADAPTIVE, PLAIN, SURFACES, Surface, rates, walk

BOWL, BUMP, SADDLE = SURFACES
EVERY = pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)


def measured(surface: Surface, measure: str) -> dict[str, float]:
    lrs, optimizers = rates(surface), PLAIN | ADAPTIVE
    return {
        name: surface.measures[measure](walk(surface, optimizer, lrs[name], surface.steps))
        for name, optimizer in optimizers.items()
    }


@EVERY
def test_gradients_are_those_of_the_function(surface: Surface) -> None:
    """Central differences at random places."""
    for w in np.random.default_rng(0).uniform(-3, 3, (50, 2)):
        for axis, step in enumerate(np.eye(2) * 1e-5):
            slope = (surface.f(w + step) - surface.f(w - step)) / 2e-5
            assert slope == pytest.approx(surface.gradient(w)[axis], rel=1e-6, abs=1e-7)


@EVERY
def test_first_steps_are_as_long_as_sgd_s_and_momentum_has_the_same_rate(surface: Surface) -> None:
    lrs = rates(surface)
    assert {lrs[name] for name in PLAIN} == {surface.lr}
    sgd, *others = (walk(surface, o, lrs[name], 1) for name, o in ({"SGD": PLAIN["SGD"]} | ADAPTIVE).items())
    for path in others:
        assert np.linalg.norm(path[1] - path[0]) == pytest.approx(np.linalg.norm(sgd[1] - sgd[0]))


def test_momentum_damps_the_zigzag_of_sgd() -> None:
    turns, across = measured(BOWL, "turns"), measured(BOWL, "way across")
    assert turns["SGD"] == BOWL.steps, "one at every step"
    assert turns["momentum"] < turns["SGD"] / 5 and turns["Nesterov"] < turns["SGD"] / 5
    assert across["Nesterov"] < across["momentum"] < 0.6 * across["SGD"]
    assert max(measured(BOWL, "f at the end").values()) < 2e-3 * BOWL.f(np.array(BOWL.start))


@pytest.mark.parametrize("lr", [BUMP.lr / 10, BUMP.lr / 3, BUMP.lr])
def test_sgd_stays_before_the_bump_at_any_small_rate(lr: float) -> None:
    path = walk(BUMP, PLAIN["SGD"], lr, 20 * BUMP.steps)
    assert path[-1, 0] == pytest.approx(-2.153, abs=1e-3)
    assert np.all(np.diff(path[:, 0]) >= 0), "it never turns back"


def test_momentum_crosses_the_bump_into_the_better_minimum() -> None:
    ends = measured(BUMP, "f at the end")
    for name in ("momentum", "Nesterov", "Adam"):
        assert ends[name] < 1e-3
    for name in ("SGD", "Adagrad", "RMSProp"):
        assert ends[name] == pytest.approx(1.423, abs=1e-3)


def test_adaptive_rates_leave_the_saddle_first() -> None:
    steps = measured(SADDLE, "steps to leave")
    slowest, fastest = max(steps[name] for name in ADAPTIVE), min(steps[name] for name in PLAIN)
    assert slowest <= 10 and fastest >= 200
    assert max(measured(SADDLE, "f at the end").values()) < -0.04, "all leave it"


def test_no_rate_at_which_sgd_converges_is_as_fast() -> None:
    """Along x its limit is 2."""
    leave = SADDLE.measures["steps to leave"]
    best = min(leave(walk(SADDLE, PLAIN["SGD"], lr, 300)) for lr in np.linspace(0.05, 1.95, 39))
    assert best > max(measured(SADDLE, "steps to leave")[name] for name in ADAPTIVE)
    assert abs(walk(SADDLE, PLAIN["SGD"], 2.05, 300)[-1, 0]) > 1e3


def test_the_command_prints_and_draws_it(tmp_path: Path) -> None:
    (tmp_path / "study-optimizers").mkdir()
    (tmp_path / "study-optimizers" / "bowl.svg").write_text("old")
    done = run_minitrain("study", "optimizers", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    *tables, last = done.stdout.strip().split("\n\n")
    for surface, text in zip(SURFACES, tables, strict=True):
        head, *rows = text.splitlines()
        assert head.startswith(surface.name)
        measure = next(iter(surface.measures))
        for row, (name, value) in zip(rows, measured(surface, measure).items(), strict=True):
            assert row.split()[0] == name and float(row.split()[2]) == pytest.approx(value, rel=1e-3)
    names = [f"{surface.name}.{kind}" for surface in SURFACES for kind in ("png", "svg")]
    assert last == "wrote " + ", ".join(f"study-optimizers/{name}" for name in names)
    for name in names:
        content = (tmp_path / "study-optimizers" / name).read_bytes()
        assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
        assert 1000 < len(content) < (400_000 if name.endswith("png") else 150_000)
