"""A training step that cannot go on: numbers that are not finite, and what is left behind."""

import numpy as np
import pytest
from layouts import LIMIT, LLAMA, batch_of, random_weights, tiny

from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.errors import NumericsError
from minitrain.model.spec import ParamSpec
from minitrain.step import require_finite, train_step


def one_nan(spec: ParamSpec, box: tuple[slice, ...]) -> Array:
    """Weights of which one element, on one stage and one tp rank, is not a number."""
    values = random_weights(spec, box)
    if spec.name == "layers.0.mlp.down" and box[1].start == 0:
        values[0, 0] = np.nan
    return values


@pytest.mark.parametrize(
    "parallel", [{}, dict(dp=2, tp=2, pp=2), dict(dp=2, pp=2, zero=3)], ids=["serial", "dp2tp2pp2", "zero3"]
)
def test_every_rank_raises_before_the_update(parallel: dict[str, int]) -> None:
    config = tiny(LLAMA, **parallel)

    def rank_main(world: Comm) -> NumericsError:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, one_nan)
        stage = trainer.stage
        before = [unit.master.copy() for unit in stage.units]
        with np.errstate(all="ignore"), pytest.raises(NumericsError) as caught:
            train_step(trainer, batch_of(config, 1, grid.dp.rank), 1e-2, 1)
        for unit, values in zip(stage.units, before, strict=True):
            assert np.array_equal(unit.master, values, equal_nan=True)
            assert not any(np.any(moment) for moment in unit.state.values())
        return caught.value

    p = config.parallel
    assert p.dp and p.tp and p.pp
    errors = run_threads(p.dp * p.tp * p.pp, rank_main, LIMIT)
    assert all(error.known_everywhere and error.exit_code == 5 for error in errors)
    assert {str(error) for error in errors} == {"the loss is nan; step 1; lower optim.lr or change the data"}


@pytest.mark.parametrize("norm", [np.inf, np.nan])
def test_a_norm_alone_is_enough(norm: float) -> None:
    require_finite({"loss": 5.5, "gradient norm": 1e300}, 7)
    with pytest.raises(NumericsError, match=f"the gradient norm is {norm}; step 7"):
        require_finite({"loss": 5.5, "gradient norm": norm}, 7)


def test_a_loss_alone_is_enough() -> None:
    """Infinite on one replica, with a gradient that is finite: all raise, and nothing is updated."""
    config = tiny(LLAMA, dp=2, pp=2)

    def rank_main(world: Comm) -> str:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, random_weights)
        stage, loss = trainer.stage, trainer.stage.loss
        if stage.is_last and grid.dp.rank == 1:
            stage.loss = lambda *arguments: (np.inf, loss(*arguments)[1])  # type: ignore[method-assign]
        before = [unit.master.copy() for unit in stage.units]
        with pytest.raises(NumericsError) as caught:
            train_step(trainer, batch_of(config, 1, grid.dp.rank), 1e-2, 7)
        assert all(map(np.array_equal, before, (unit.master for unit in stage.units)))
        return str(caught.value)

    assert set(run_threads(4, rank_main, LIMIT)) == {
        "the loss is inf; step 7; lower optim.lr or change the data"
    }
