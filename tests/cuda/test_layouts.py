"""Whole steps on a GPU of the tests, whose arrays refuse what CuPy's would (strict.py): layouts, precisions,
optimizers, and what a step leaves behind that is rejected.
"""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda.devices import array_gpu, on_gpu
from cuda.strict import WAITS
from layouts import (
    GPT2,
    LLAMA,
    LLAMA_TIED,
    Outcome,
    assert_same,
    batch_of,
    mild_weights,
    on_device,
    overflow,
    random_weights,
    run_layout,
    tensor_error,
    tiny,
)

from minitrain.arrays.device import HOST, Device, on_host, put
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.single import SingleComm
from minitrain.config import Config, LossScaleConfig, OptimConfig
from minitrain.curvature import estimate_curvature
from minitrain.data.philox import normal
from minitrain.defaults import OPTIMIZERS
from minitrain.errors import MinitrainError, NumericsError
from minitrain.optim.optimizer import Elementwise
from minitrain.resolve import resolve
from minitrain.step import Trainer, start_step

pytestmark = pytest.mark.usefixtures("gpu")  # skips where there is none

MODELS = {
    name: replace(model, layers=2) for name, model in (("llama", LLAMA), ("tied", LLAMA_TIED), ("gpt2", GPT2))
}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-dp2tp2-zero1-sequence": ("llama", dict(dp=2, tp=2, zero=1, sequence=True)),
    "llama-tp4": ("llama", dict(tp=4)),  # each kv head on two ranks
    "tied-dp2pp2-zero3": ("tied", dict(dp=2, pp=2, zero=3)),
    "gpt2-dp2pp2-zero2": ("gpt2", dict(dp=2, pp=2, zero=2)),
    "gpt2-tp2pp2-sequence-gpipe": ("gpt2", dict(tp=2, pp=2, sequence=True, schedule="gpipe")),
    "llama-tp2-selective": ("llama", dict(tp=2, recompute="selective")),
    "gpt2-tp2pp2-full": ("gpt2", dict(tp=2, pp=2, recompute="full")),
}
STEPS = 3
ALL = (slice(None),)


@functools.cache
def on_one_host(name: str, precision: str = "fp64") -> Outcome:
    return run_layout(replace(tiny(MODELS[name]), precision=precision), STEPS, mild_weights)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    """Gradients and weights in fp64 are those of one process on the host."""
    model, layout = LAYOUTS[name]
    config = tiny(MODELS[model], **layout)
    assert_same(run_layout(config, STEPS, mild_weights, on_gpu), on_one_host(model))


@pytest.mark.parametrize("name", [*LAYOUTS][:3])
def test_sums_in_a_fixed_order(name: str) -> None:
    """Under run.exact a layout of GPUs has the bits of one GPU."""
    model, layout = LAYOUTS[name]
    config = tiny(MODELS[model], **layout)
    exact = replace(config.run, exact=True)
    single = tiny(MODELS[model], tp=config.parallel.tp, sequence=config.parallel.sequence)
    ours, theirs = (
        run_layout(replace(c, run=exact, train=config.train), STEPS, mild_weights, on_gpu)
        for c in (config, single)
    )
    assert ours.losses == theirs.losses and ours.norms == theirs.norms
    for parameter, values in theirs.weights.items():
        assert np.array_equal(ours.weights[parameter], values), parameter


UNIT = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8, "bf16-pure": 2.0**-8}  # half an ulp of 1


@pytest.mark.parametrize("precision", UNIT)
def test_precisions(precision: str) -> None:
    """No further from fp64 than 32 roundings, which is what the host's gradients are given too."""
    config = replace(
        tiny(MODELS["llama"], dp=2, tp=2), precision=precision, loss_scale=LossScaleConfig(initial=16)
    )
    ours, exact = run_layout(config, 1, mild_weights, on_gpu), on_one_host("llama")
    scale = 16.0 if precision == "fp16" else 1.0
    whole = float(np.sqrt(sum(np.sum(g * g) for g in exact.grads[0].values())))
    for name, gradient in exact.grads[0].items():
        error = tensor_error(ours.grads[0][name] / scale, gradient, whole, len(exact.grads[0]))
        assert error <= 32 * UNIT[precision], f"{name} is off by {error:.2g}"


def optimizing(name: str, precision: str, **layout: Any) -> Config:
    """A rate is the optimizer's own; the curvature is estimated at steps 1 and 3."""
    config = replace(tiny(MODELS["llama"], **layout), precision=precision)
    optim = OptimConfig(name=name, curvature_every=2, lr_vectors=0.5, lr_embeddings=2.0, clip=0.5)  # type: ignore[arg-type]
    p = config.parallel
    assert p.dp and p.tp and p.pp
    return resolve(replace(config, optim=optim), {}, p.dp * p.tp * p.pp).config


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    """Weights after three steps are those of the host, wherever tensors are cut."""
    layout = dict(tp=2) if name == "adam8bit" else dict(dp=2, tp=2, zero=2)  # 8 bits: blocks of a tp rank
    ours = run_layout(optimizing(name, "fp64", **layout), STEPS, mild_weights, on_gpu)
    theirs = run_layout(optimizing(name, "fp64", tp=layout["tp"]), STEPS, mild_weights)
    for parameter, values in theirs.weights.items():
        error = tensor_error(ours.weights[parameter], values, 0, 1)
        assert error <= (1e-5 if name == "adam8bit" else 1e-9), f"{parameter} is off by {error:.2g}"


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon", "lamb"])
def test_stochastic_rounding(name: str) -> None:
    """By the same chances as on the host: from one gradient come the same bits."""
    config = optimizing(name, "bf16-pure")
    config = replace(config, optim=replace(config.optim, stochastic_rounding=True))
    weights = []
    for device in (HOST, array_gpu()):
        trainer = trainer_on(device, config)
        verdict = trainer.judge.look(*(device.to_device(np.array([x])) for x in (1.0, 4.0)))
        trainer.judge.decide(verdict)
        for unit in trainer.stage.units:
            put(unit.grad_shard, normal(3, unit.prefix, (unit.grad_shard.size,), ALL, 1.0, np.float32))
            trainer.updater.update(unit, 1e-2, verdict)
        weights.append([on_host(unit.param_shard) for unit in trainer.stage.units])
    for theirs, ours in zip(*weights, strict=True):
        assert np.array_equal(theirs, ours)


def trainer_on(device: Device, config: Config) -> Trainer:
    return make_trainer(config, make_grid(SingleComm(), config), random_weights, device)


@pytest.mark.skipif("config.option.gpu", reason="waits are counted by the arrays of the tests")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_leaves_the_gpu_alone(name: str) -> None:
    """No wait from its beginning to its end; one, for the verdict, if an optimizer looks at whole tensors."""
    config = optimizing(name, "fp32")
    trainer = trainer_on(array_gpu(), config)
    batch = on_device(batch_of(config, 1, 0), trainer.stage.memory.device)
    elementwise = isinstance(trainer.updater.optimizer, Elementwise)
    WAITS.n = 0
    started = start_step(trainer, batch, 1e-3, 1)
    assert WAITS.n == (0 if elementwise else 1)
    started.result()
    assert WAITS.n == 1
    if isinstance(trainer.updater.optimizer, Elementwise) and trainer.updater.optimizer.curvature:
        estimate_curvature(trainer, batch, 0, 2)
        assert WAITS.n == 1


def state_of(trainer: Trainer) -> list[np.ndarray]:
    found = []
    for unit in trainer.stage.units:
        found += [unit.master.get(), unit.param_shard.get()]  # type: ignore[attr-defined]
        found += [moment.get() for moment in unit.state.values()]  # type: ignore[union-attr]
    return found


def spoiled(trainer: Trainer, batch: Any, step: int) -> Any:
    """A started step whose gradient has an infinity in it."""
    overflow(trainer.stage)
    return start_step(trainer, batch, 1e-2, step)


def test_a_step_that_overflows_in_fp16() -> None:
    """Nothing of it remains but a lower scale; the host hears of it when the next step is under way."""
    config = replace(optimizing("adamw", "fp16"), loss_scale=LossScaleConfig(initial=64.0))
    trainer = trainer_on(array_gpu(), config)
    batch = on_device(batch_of(config, 1, 0), trainer.stage.memory.device)
    first = start_step(trainer, batch, 1e-2, 1)
    before = state_of(trainer)
    second = spoiled(trainer, batch, 2)
    for one, other in zip(before, state_of(trainer), strict=True):
        assert np.array_equal(one, other)
    third = start_step(trainer, batch, 1e-2, 3)
    assert not first.result().skipped and second.result().skipped and not third.result().skipped
    assert [s.result().loss_scale for s in (first, second, third)] == [64.0, 64.0, 32.0]
    assert trainer.judge.kept().updates == 2


def test_a_gradient_that_is_not_finite_is_named_a_step_later() -> None:
    config = optimizing("adamw", "bf16")
    trainer = trainer_on(array_gpu(), config)
    batch = on_device(batch_of(config, 1, 0), trainer.stage.memory.device)
    before = state_of(trainer)
    first = spoiled(trainer, batch, 7)
    for one, other in zip(before, state_of(trainer), strict=True):
        assert np.array_equal(one, other)
    start_step(trainer, batch, 1e-2, 8)
    with pytest.raises(MinitrainError, match=r"layers\.0\.mlp\.up is not finite; step 7") as error:
        first.result()
    assert error.value.exit_code == NumericsError.exit_code
