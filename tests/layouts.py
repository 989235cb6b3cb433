"""Runs a tiny model in any layout on threads, and puts its gradients and weights together again by name."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from minitrain.arrays.device import HOST, Device, on_host
from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.comm.grid import Grid, make_grid
from minitrain.comm.interface import Comm, World
from minitrain.comm.threads import run_threads
from minitrain.comm.traced import Event, traced
from minitrain.config import Config, ModelConfig, OptimConfig, ParallelConfig, TrainConfig
from minitrain.curvature import curvature_is_due, estimate_curvature
from minitrain.data.philox import normal, uniform
from minitrain.model.spec import ParamSpec, model_specs
from minitrain.optim.judge import HostVerdict, Numbers, Verdict
from minitrain.optim.optimizer import Optimizer
from minitrain.parallel.replicas import compare_replicas
from minitrain.parallel.stage import Stage
from minitrain.parallel.unit import Fill, Unit
from minitrain.parallel.update import Updater
from minitrain.step import Batch, Trainer, train_step

Place = Callable[[World], tuple[Device, World]]
"""Gives a rank the device of its arrays, and a world that moves them."""

LIMIT = 120.0  # seconds a rank waits for another before a test calls it a deadlock

LLAMA = ModelConfig(
    arch="llama", layers=5, width=24, heads=4, kv_heads=2, ffn=22, vocab=37, seq_len=8, tied=False
)  # 5 layers over 2 or 4 stages, 37 ids over 2 or 4 ranks: nothing divides
LLAMA_TIED = replace(LLAMA, tied=True, kv_heads=1)
GPT2 = ModelConfig(
    arch="gpt2", layers=5, width=24, heads=4, kv_heads=4, ffn=30, vocab=37, seq_len=8, tied=True
)

OPTIM = OptimConfig(
    name="adamw",
    lr=1e-2,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.1,
    clip=1.0,
    schedule="linear",
    warmup=2,
)
MICRO_BATCH, STEPS = 1, 3


class Part(NamedTuple):
    """A box of a global tensor, as one rank holds it."""

    name: str
    box: tuple[slice, ...]
    values: Array


class Outcome(NamedTuple):
    losses: list[float]
    norms: list[float]
    grads: list[dict[str, Array]]  # of every step, by name, before clipping
    weights: dict[str, Array]  # at the end


def tiny(model: ModelConfig = LLAMA, **parallel: object) -> Config:
    """A resolved configuration. `parallel` holds fields of ParallelConfig; dp, tp, pp are 1 where absent."""
    fields = {"dp": 1, "tp": 1, "pp": 1, "zero": 0, **parallel}
    fields.setdefault("shard", fields["dp"] if fields["zero"] else 1)
    return Config(
        model=model,
        parallel=ParallelConfig(**fields),  # type: ignore[arg-type]
        train=TrainConfig(steps=STEPS, global_batch=global_batch(fields["dp"]), micro_batch=MICRO_BATCH),
        optim=OPTIM,
        precision="fp64",
    )


def global_batch(dp: int) -> int:
    """8 sequences, or as few more as dp divides."""
    return -(-8 // dp) * dp


def random_weights(spec: ParamSpec, box: tuple[slice, ...]) -> Array:
    """Non-zero everywhere, gains and biases too, so that every gradient is non-zero and no mix-up goes
    unseen.
    """
    return _weights(spec, box, 0.3)


def mild_weights(spec: ParamSpec, box: tuple[slice, ...]) -> Array:
    """Smaller ones, through which rounding grows less."""
    return _weights(spec, box, 0.1)


def _weights(spec: ParamSpec, box: tuple[slice, ...], std: float) -> Array:
    values = normal(1, spec.name, spec.shape, box, std, np.float64)
    return values + 1 if spec.init_std is None else values


def batch_of(config: Config, step: int, dp_rank: int) -> Batch:
    """Random tokens, a function of the step and the place in the global batch."""
    model, train = config.model, config.train
    assert train.global_batch and config.parallel.dp
    shape = (train.global_batch, model.seq_len)
    n = train.global_batch * model.seq_len
    ids = (uniform(2, f"ids {step}", 0, n) * model.vocab).astype(np.int64).reshape(shape)
    targets = (uniform(2, f"targets {step}", 0, n) * model.vocab).astype(np.int64).reshape(shape)
    each = train.global_batch // config.parallel.dp
    own = slice(dp_rank * each, (dp_rank + 1) * each)
    rows = train.micro_batch * model.seq_len
    return Batch(ids[own].reshape(-1, rows), targets[own].reshape(-1, rows), n)


def on_device(batch: Batch, device: Device) -> Batch:
    return batch._replace(
        ids_MN=device.to_device(batch.ids_MN), targets_MN=device.to_device(batch.targets_MN)
    )


def accepted(factor: float, updates: int = 1) -> Verdict:
    """On a step whose gradient is to be multiplied by `factor`."""
    verdict = HostVerdict(loss=1.0, norm=1.0, scale=1.0, number=updates)
    verdict.decided = Numbers(1.0, 1.0, factor, True, updates, 1.0, False)
    return verdict


class Remembering(NamedTuple):
    """An updater that keeps the last gradient of every unit."""

    inner: Updater
    grads: dict[str, Array]

    @property
    def optimizer(self) -> Optimizer:
        return self.inner.optimizer

    def update(self, unit: Unit, lr: float, verdict: Verdict) -> None:
        self.grads[unit.specs[0].name] = unit.grad_shard.copy()
        self.inner.update(unit, lr, verdict)

    def absorb(self, unit: Unit, estimate: Array, rejected: Array) -> None:
        self.inner.absorb(unit, estimate, rejected)


def remembering(trainer: Trainer) -> Trainer:
    """A trainer whose gradients `gradient_parts` can show after a step."""
    return trainer._replace(updater=Remembering(trainer.updater, {}))  # type: ignore[arg-type]


@np.errstate(all="ignore")  # as train() does: what is not finite is the step's to report
def overflow(stage: Stage) -> None:
    """The next gradient of this rank's first block that goes to other ranks has an infinity in it."""
    unit = stage.blocks[0]
    sum_over_tp = unit.sum_over_tp

    def tampered(full: Array) -> None:
        unit.layout.views(full)["mlp.up"][0, 0] = np.inf
        del unit.sum_over_tp
        sum_over_tp(full)

    unit.sum_over_tp = tampered  # type: ignore[method-assign]


def rank_run(
    world: Comm,
    config: Config,
    steps: int,
    ledger: Callable[[Event], None] | None = None,
    fill: Fill = random_weights,
    compared: bool = False,
    device: Device = HOST,
) -> tuple[list[float], list[float], list[list[Part]], list[Part]]:
    """What one rank does; returns losses, norms, and its parts of gradients and weights. If `compared`, what
    several ranks hold alike must be alike at the end.
    """
    grid = make_grid(traced(world, ledger) if ledger else world, config, device)
    trainer = remembering(make_trainer(config, grid, fill, device))
    losses, norms, grads = [], [], []
    assert config.optim.lr is not None
    for step in range(1, steps + 1):
        batch = on_device(batch_of(config, step, grid.dp.rank), device)
        if curvature_is_due(config.optim, trainer, step):
            estimate_curvature(trainer, batch, config.train.seed, step)
        result = train_step(trainer, batch, config.optim.lr / step, step)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        if ledger is None:  # gathering the parts would be noted as well
            grads.append(gradient_parts(trainer))
    if compared:
        compare_replicas(trainer.stage, trainer.updater.optimizer, grid, steps)
    return losses, norms, grads, [] if ledger else weight_parts(trainer.stage, grid)


def gradient_parts(trainer: Trainer) -> list[Part]:
    """Those of the last step, of a `remembering` trainer."""
    assert isinstance(trainer.updater, Remembering)
    shards = {unit.specs[0].name: trainer.updater.grads[unit.specs[0].name] for unit in trainer.stage.units}
    return parts_of(trainer.stage, trainer.grid, shards)


def weight_parts(stage: Stage, grid: Grid) -> list[Part]:
    """Those of the master copies."""
    return parts_of(stage, grid, {unit.specs[0].name: unit.master for unit in stage.units})


def parts_of(stage: Stage, grid: Grid, shards: dict[str, Array]) -> list[Part]:
    """Full tensors of this rank's tp box, gathered over the shard axis."""
    found = []
    for unit in stage.units:
        shard = shards[unit.specs[0].name]
        full = np.empty_like(shard, shape=shard.size * grid.shard.size)
        grid.shard.all_gather(shard, full)
        views = unit.layout.views(on_host(full)).values()
        for spec, box, view in zip(unit.specs, unit.boxes, views, strict=True):
            found.append(Part(spec.name, box, view.copy()))
    return found


def assemble(config: Config, ranks: list[list[Part]]) -> dict[str, Array]:
    """Global tensors from all ranks' parts: every element covered, and copies equal to rounding."""
    whole = {spec.name: np.full(spec.shape, np.nan) for spec in model_specs(config.model)}
    for part in itertools.chain.from_iterable(ranks):
        target = whole[part.name][part.box]
        known = ~np.isnan(target)
        scale = np.abs(part.values).max(initial=0)
        assert np.all(np.abs(target[known] - part.values[known]) <= 1e-12 * scale), (
            f"copies of {part.name} differ"
        )
        target[...] = part.values
    for name, values in whole.items():
        assert not np.isnan(values).any(), f"{name} is not held whole"
    return whole


def run_layout(
    config: Config,
    steps: int = STEPS,
    fill: Fill = random_weights,
    place: Place = lambda world: (HOST, world),
) -> Outcome:
    """The configuration on as many threads as it has ranks."""
    p = config.parallel
    assert p.dp and p.tp and p.pp

    def rank_main(world: World) -> tuple[list[float], list[float], list[list[Part]], list[Part]]:
        device, world = place(world)
        return rank_run(world, config, steps, None, fill, device=device)

    results = run_threads(p.dp * p.tp * p.pp, rank_main, LIMIT)
    losses, norms = results[0][:2]
    for other in results:
        assert other[0] == losses and other[1] == norms, "loss and norm are one number on every rank"
    grads = [assemble(config, [r[2][s] for r in results]) for s in range(steps)]
    return Outcome(losses, norms, grads, assemble(config, [r[3] for r in results]))


def tensor_error(a: Array, b: Array, all_norm: float, n_tensors: int) -> float:
    """|a - b| / max(|b|, 1e-3 |all| / sqrt(n)): some gradients are truly zero (a key bias's), so the whole
    sets a floor.
    """
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3 * all_norm / n_tensors**0.5))


def worst_gradient_error(ours: dict[str, Array], reference: dict[str, Array]) -> tuple[float, str]:
    """The largest error of any tensor, and its name."""
    assert ours.keys() == reference.keys()
    all_norm = float(np.sqrt(sum(np.sum(g * g) for g in reference.values())))
    assert all_norm > 0
    errors = [(tensor_error(ours[n], reference[n], all_norm, len(reference)), n) for n in reference]
    return max(errors)


def assert_same(ours: Outcome, reference: Outcome) -> None:
    """Loss <= 1e-13, every gradient by name <= 1e-12, global norm <= 1e-12 (relative, fp64).

    The weights after the last step <= 1e-9: where a gradient is truly zero (a key bias's), Adam divides its
    rounding, some 1e-17, by eps = 1e-8.
    """
    for a, b in zip(ours.losses, reference.losses, strict=True):
        assert abs(a - b) <= 1e-13 * abs(b), f"loss {a} is not {b}"
    for a, b in zip(ours.norms, reference.norms, strict=True):
        assert abs(a - b) <= 1e-12 * abs(b), f"global norm {a} is not {b}"
    for step, (mine, theirs) in enumerate(zip(ours.grads, reference.grads, strict=True), 1):
        error, name = worst_gradient_error(mine, theirs)
        assert error <= 1e-12, f"step {step}: gradient of {name} is off by {error:.2e}"
    for name, values in reference.weights.items():
        error = tensor_error(ours.weights[name], values, 0, 1)
        assert error <= 1e-9, f"{name} is off by {error:.2e} at the end"


def layouts(world_sizes: range, model: ModelConfig) -> Iterator[dict[str, object]]:
    """Every legal combination of dp, tp, pp, zero, shard, schedule, sequence for the given world sizes."""
    for world in world_sizes:
        for dp, tp, pp in itertools.product(range(1, world + 1), repeat=3):
            if dp * tp * pp != world or model.heads % tp or model.layers < pp:
                continue
            zeros = [(0, 1)] + [(z, s) for z in (1, 2, 3) for s in range(1, dp + 1) if dp % s == 0]
            for (zero, shard), schedule, sequence in itertools.product(
                zeros, ("gpipe", "1f1b"), (False, True)
            ):
                yield dict(dp=dp, tp=tp, pp=pp, zero=zero, shard=shard, schedule=schedule, sequence=sequence)
