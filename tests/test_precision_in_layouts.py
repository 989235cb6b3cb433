"""Every precision in every layout: as far from fp64 as one process is, and no further.

How far rounding leads is a property of the model and the type, so it is measured, on one process, and not
chosen: a layout adds its sums up in another order, and may be twice as far away.
"""

import functools
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from layouts import (
    GPT2,
    LIMIT,
    LLAMA,
    LLAMA_TIED,
    Outcome,
    batch_of,
    global_batch,
    layouts,
    mild_weights,
    run_layout,
    tensor_error,
    tiny,
)
from pairwise import pairwise

from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.config import Config, LossScaleConfig
from minitrain.model.spec import model_specs
from minitrain.step import train_step

MODELS = {"llama": LLAMA, "llama-tied": LLAMA_TIED, "gpt2": GPT2}
# Half the distance from 1 to the next number: the error of one rounding. Under fp8 that of gradients, E5M2.
UNIT = {"fp32": 2**-24, "fp16": 2**-11, "bf16": 2**-8, "bf16-pure": 2**-8, "fp8": 2**-3}
ON_ONE_RANK = {"fp32": 32, "fp16": 32, "bf16": 32, "bf16-pure": 32, "fp8": 4}  # units, of any gradient
ALL = [
    {"precision": precision, "model": name, **layout}
    for precision, (name, model) in itertools.product(UNIT, MODELS.items())
    for layout in layouts(range(2, 9), model)
]
SAMPLE = pairwise(ALL)


def label(case: dict[str, Any]) -> str:
    return "{precision}-{model}-dp{dp}tp{tp}pp{pp}-zero{zero}/{shard}-{schedule}{0}".format(
        "-sequence" * case["sequence"], **case
    )


def configured(precision: str, model: str, batch: int, **layout: Any) -> Config:
    config = replace(tiny(MODELS[model], **layout), precision=precision)
    train = replace(config.train, global_batch=batch)
    return replace(config, train=train, loss_scale=LossScaleConfig(initial=16))


@functools.cache
def serial(precision: str, model: str, batch: int) -> Outcome:
    return run_layout(configured(precision, model, batch), 1, mild_weights)


def errors(ours: Outcome, precision: str, model: str, batch: int) -> dict[str, float]:
    """Of loss and global norm, and of every gradient by name, against fp64 on one process."""
    exact, scale = serial("fp64", model, batch), 16.0 if precision == "fp16" else 1.0
    whole = float(np.sqrt(sum(np.sum(g * g) for g in exact.grads[0].values())))
    n = len(exact.grads[0])
    found = {
        name: tensor_error(ours.grads[0][name] / scale, grad, whole, n)
        for name, grad in exact.grads[0].items()
        if not name.endswith("attn.k.bias")  # truly zero: there is nothing but rounding
    }
    loss, norm = (abs(a[0] / b[0] - 1) for a, b in ((ours.losses, exact.losses), (ours.norms, exact.norms)))
    return {"loss": loss, "norm": norm, **found}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", UNIT)
def test_one_process_is_as_near_as_its_type_allows(precision: str, model: str) -> None:
    found = errors(serial(precision, model, 8), precision, model, 8)
    unit, most = UNIT[precision], ON_ONE_RANK[precision]
    assert found.pop("loss") <= unit and found.pop("norm") <= most * unit
    name = max(found, key=found.__getitem__)
    assert found[name] <= most * unit, f"{name} is off by {found[name] / unit:.1f} units"
    median = float(np.median(list(found.values())))
    assert median > unit / 2, f"{median / unit:.2f} units: nothing was rounded"


@pytest.mark.parametrize("case", SAMPLE, ids=label)
def test_a_layout_is_no_further_from_fp64(case: dict[str, Any]) -> None:
    """A sample in which every pair of values of any two fields occurs."""
    precision, model = case["precision"], case["model"]
    fields = {k: v for k, v in case.items() if k not in ("precision", "model")}
    batch = global_batch(case["dp"])
    ours = run_layout(configured(precision, model, batch, **fields), 1, mild_weights)
    on_one = errors(serial(precision, model, batch), precision, model, batch)
    for name, error in errors(ours, precision, model, batch).items():
        limit = 2 * on_one[name] + UNIT[precision]
        assert error <= limit, f"{name} is off by {error:.1e}, on one process by {on_one[name]:.1e}"


def moved(precision: str, optimizer: str, initial: float = 16) -> dict[str, Array]:
    """How far one step moves the master copies."""
    config = configured(precision, "llama", 8)
    config = replace(
        config,
        optim=replace(config.optim, name=optimizer, lr=1e-2, weight_decay=0.0, clip=0.5),  # type: ignore[arg-type]
        loss_scale=LossScaleConfig(initial=initial),
    )
    start = {spec.name: mild_weights(spec, tuple(map(slice, spec.shape))) for spec in model_specs(LLAMA)}
    end = run_layout(config, 1, mild_weights).weights
    return {name: end[name] - values for name, values in start.items()}


def test_the_loss_scale_leaves_the_update_alone() -> None:
    """SGD's, as Adam's does not depend on the size of the gradient. The clipping is at work."""
    exact = moved("fp64", "sgd")
    for initial in (1, 16, 1024):
        for name, step in moved("fp16", "sgd", initial).items():
            assert np.linalg.norm(step - exact[name]) <= 0.05 * np.linalg.norm(exact[name]), name


@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize("precision", UNIT)
def test_parameters_are_their_master_copies_rounded(precision: str, zero: int) -> None:
    config = configured(precision, "llama", 8, dp=2, zero=zero)

    @np.errstate(all="ignore")
    def rank_main(world: Comm) -> None:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, mild_weights)
        before = [unit.param_shard.copy() for unit in trainer.stage.units]
        train_step(trainer, batch_of(config, 1, grid.dp.rank), 1e-2, 1)
        for unit, old in zip(trainer.stage.units, before, strict=True):
            assert np.array_equal(unit.param_shard, unit.master.astype(unit.param_shard.dtype))
            assert not np.array_equal(unit.param_shard, old)
            with unit.params() as views:  # of all ranks
                first = next(iter(views.values())).reshape(-1)
                assert grid.shard.rank or np.array_equal(first[:8], unit.param_shard[:8])

    run_threads(2, rank_main, LIMIT)
