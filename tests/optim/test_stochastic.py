"""Stochastic rounding: right on average, and the same in every layout."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from layouts import GPT2, LIMIT, LLAMA_TIED, Part, accepted, assemble, mild_weights, tiny, weight_parts

from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.config import Config
from minitrain.data.philox import normal
from minitrain.optim.stochastic import round_up_or_down, stochastic_rounding
from minitrain.resolve import resolve

BF16 = np.dtype(ml_dtypes.bfloat16)


def rounded(x: Array, seed: int = 0, count: int = 1, name: str = "w") -> Array:
    target = np.zeros(x.size, BF16)
    places = np.arange(x.size, dtype=np.uint64)
    stochastic_rounding(seed, count, name, lambda cut, like: places[cut])(
        {"": x}, slice(0, x.size), {"": target}
    )
    return target


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_up_as_often_as_it_is_near(share: float, sign: int) -> None:
    """Between 1 and its neighbour 1 + 2^-7, or 2^-120 times that."""
    n = 100_000
    for unit in (1.0, 2.0**-120):
        x = np.full(n, sign * unit * (1 + share * 2.0**-7), np.float32)
        found = rounded(x).astype(np.float32) / (sign * unit)
        assert set(found) == {1.0, 1 + 2.0**-7}
        ups = np.mean(found > 1)
        assert abs(ups - share) < 5 * np.sqrt(share * (1 - share) / n)


def test_what_bf16_can_hold_stays() -> None:
    everything = np.arange(1 << 16, dtype=np.uint16).view(BF16).astype(np.float32)
    numbers = everything[~np.isnan(everything)]
    assert np.array_equal(rounded(numbers).astype(np.float32), numbers)
    assert np.isnan(rounded(np.array([np.nan, -np.nan], np.float32)).astype(np.float32)).all()


def test_chances_are_independent_of_one_another() -> None:
    """Those of updates, tensors, seeds, and of the vectors of one update: no two alike, none related."""
    x, n = np.full(20_000, 1 + 2.0**-8, np.float32), 20_000
    targets = {name: np.zeros(n, BF16) for name in ("", "m", "v")}
    places = np.arange(n, dtype=np.uint64)
    stochastic_rounding(0, 1, "w", lambda cut, like: places[cut])(
        dict.fromkeys(targets, x), slice(0, n), targets
    )
    drawn = [*targets.values(), rounded(x, seed=1), rounded(x, count=2), rounded(x, name="v")]
    signs = np.array([np.where(d.astype(np.float32) > 1, 1.0, -1.0) for d in drawn])
    correlation = np.abs(signs @ signs.T / n - np.eye(len(drawn)))
    assert correlation.max() < 5 / np.sqrt(n)
    assert np.array_equal(targets[""], rounded(x)), "the same once more"


def test_rounding_is_away_from_zero_where_chance_and_rest_add_up() -> None:
    x = np.array([1 + 2.0**-8] * 3, np.float32)  # the rest is half of the 16 bits
    chance = np.array([0, 2**15 - 1, 2**15], np.uint16)
    assert round_up_or_down(x, chance).tolist() == [1, 1, 1 + 2.0**-7]


MODELS = {"llama-tied": LLAMA_TIED, "gpt2": GPT2}
LAYOUTS = [
    dict(tp=2), dict(tp=4), dict(dp=3, zero=1), dict(dp=2, tp=2, zero=2, sequence=True),
    dict(dp=3, zero=3), dict(dp=2, tp=2, pp=2, zero=3),
]  # fmt: skip


def updated(model: str, optimizer: str, stochastic: bool, **layout: Any) -> dict[str, Array]:
    """All weights after three updates with given gradients, each a function of the place in the whole."""
    config: Config = replace(tiny(MODELS[model], **layout), precision="bf16-pure")
    optim = replace(config.optim, name=optimizer, lr=1e-4, stochastic_rounding=stochastic)
    p = config.parallel
    n_ranks = (p.dp or 1) * (p.tp or 1) * (p.pp or 1)
    config = resolve(replace(config, optim=optim), {}, n_ranks).config

    def rank_main(world: Comm) -> list[Part]:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, mild_weights)
        for step in (1, 2, 3):
            for unit in trainer.stage.units:
                for held in unit.held:
                    whole = normal(step, held.spec.name, held.spec.shape, held.box, 1.0, np.float32)
                    unit.grad_shard[held.where] = whole.ravel()[held.run]
                trainer.updater.update(unit, 1e-4, accepted(1.0, step))
        return weight_parts(trainer.stage, grid)

    parts = run_threads(n_ranks, rank_main, LIMIT)
    wide = [[part._replace(values=part.values.astype(np.float64)) for part in rank] for rank in parts]
    return assemble(config, wide)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_every_layout_rounds_alike_to_the_bit(optimizer: str, model: str, layout: dict[str, Any]) -> None:
    ours, theirs = updated(model, optimizer, True, **layout), updated(model, optimizer, True)
    for name, values in theirs.items():
        assert np.array_equal(ours[name], values), name
    if optimizer == "adamw":
        nearest = updated(model, optimizer, False)
        assert not np.array_equal(nearest["embedding"], theirs["embedding"])
