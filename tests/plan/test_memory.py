"""Predicted bytes are measured bytes: every class, every rank, exactly, over what the suite trains."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from layouts import LIMIT, LLAMA, batch_of, random_weights, tiny
from matrix import MODELS, SAMPLE, cases, configured, label

from minitrain.arrays.tree import TreeSum
from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.config import Config
from minitrain.defaults import OPTIMIZERS
from minitrain.model.spec import model_specs
from minitrain.observe.traffic import places
from minitrain.ops.mlp import SwigluSaved, swiglu_backward, swiglu_forward
from minitrain.ops.table import Ops
from minitrain.parallel.unit import Unit
from minitrain.parallel.update import Updater
from minitrain.plan.activations import activations
from minitrain.plan.buffers import buffers
from minitrain.plan.held import SIZES, Spot, layers_of, n_parameters, stage_kinds
from minitrain.plan.memory import heaviest, persistent
from minitrain.precision import PRECISIONS
from minitrain.resolve import resolve
from minitrain.step import train_step

Bytes = dict[str, int]
Plant = Callable[[pytest.MonkeyPatch], None]


def measured(config: Config, steps: int = 1) -> list[Bytes]:
    """By class, of every rank, after so many steps."""

    def rank_main(world: Comm) -> Bytes:
        grid = make_grid(world, config)
        trainer = make_trainer(config, grid, random_weights)
        for step in range(1, steps + 1):
            train_step(trainer, batch_of(config, step, grid.dp.rank), 1e-3, step)
        return trainer.meter.bytes(trainer.stage)

    return run_threads(len(places(config)), rank_main, LIMIT)


def predicted(config: Config, spot: Spot, steps: int = 1) -> Bytes:
    found = persistent(config, spot)._asdict()
    more = {"activations": activations(config, spot), "buffers": buffers(config, spot)}
    return {**found, **(more if steps else dict.fromkeys(more, 0))}


def check(config: Config, ranks: list[Bytes], steps: int = 1) -> None:
    for place, held in zip(places(config), ranks, strict=True):
        assert predicted(config, Spot(place.pp, place.tp, place.shard), steps) == held, place


@pytest.mark.parametrize("case", SAMPLE, ids=label)
def test_predicted_is_measured(case: dict[str, Any]) -> None:
    """A sample in which every pair of values of any two fields occurs."""
    config = configured(**case)
    check(config, measured(config))


@pytest.mark.long
@pytest.mark.parametrize("case", list(cases("2x1")), ids=label)
def test_predicted_is_measured_in_every_layout(case: dict[str, Any]) -> None:
    config = configured(**case)
    check(config, measured(config))


@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_predicted_is_measured_for_every_optimizer_and_type(
    optimizer: str, precision: str, zero: int
) -> None:
    """Before the first step, over 5 shards, which divide no unit."""
    config = tiny(MODELS["gpt2"], dp=5, zero=zero)
    config = replace(config, precision=precision, optim=replace(config.optim, name=optimizer))  # type: ignore[arg-type]
    config = resolve(config, {}, 5).config
    check(config, measured(config, steps=0), steps=0)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("seq_len", [1, 63, 64, 65, 200])
def test_scores_are_kept_in_blocks_of_64_queries(seq_len: int, schedule: str) -> None:
    config = tiny(replace(LLAMA, seq_len=seq_len, layers=2), pp=2, schedule=schedule)
    check(config, measured(config))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("batch", [1, 2, 8, 16])
@pytest.mark.parametrize("layout", [dict(), dict(zero=1, dp=2), dict(zero=3, dp=2), dict(pp=2)], ids=str)
def test_exact_sums_wait_in_pairs(batch: int, layout: dict[str, Any], schedule: str) -> None:
    """log2 of the micro-batches, for every unit of one size."""
    for model in MODELS:
        config = configured(model, "4x1 exact", schedule=schedule, **layout)
        dp = config.parallel.dp
        assert dp
        config = replace(config, train=replace(config.train, global_batch=batch * dp))
        check(config, measured(config))


def test_sizes_are_those_of_the_types() -> None:
    for name, types in PRECISIONS.items():
        wide = max(4, types.activation.itemsize)
        assert types.param == types.activation
        assert SIZES[name] == (types.param.itemsize, types.grad.itemsize, types.master.itemsize, wide)
        assert (types.master == types.param) == (SIZES[name].master == SIZES[name].param)


def test_the_heaviest_rank_of_a_kind_holds_no_less_than_any_other() -> None:
    """What `plan` shows of many ranks, for a sample of layouts."""
    for case in SAMPLE:
        config = configured(**case)
        spots = {Spot(place.pp, place.tp, place.shard) for place in places(config)}
        of_all = {spot: sum(predicted(config, spot).values()) for spot in spots}
        kinds = stage_kinds(config)
        assert sum(kind.number for kind in kinds) == config.parallel.pp
        for kind in kinds:
            stages = range(kind.first, kind.first + kind.number)
            assert len({layers_of(config, stage) for stage in stages}) == 1
            shown = of_all[heaviest(config, kind.first)]
            assert shown == max(n for spot, n in of_all.items() if spot.stage in stages)


def test_kinds_of_stages() -> None:
    """10 blocks over 4 stages are 3, 3, 2, 2; over 6 stages 2, 2, 2, 2, 1, 1."""
    assert stage_kinds(tiny(replace(LLAMA, layers=10), pp=4)) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert stage_kinds(tiny(replace(LLAMA, layers=10), pp=6)) == [(0, 1), (1, 3), (4, 1), (5, 1)]
    assert stage_kinds(tiny(replace(LLAMA, layers=12), pp=6)) == [(0, 1), (1, 4), (5, 1)]
    assert stage_kinds(tiny(LLAMA, pp=2)) == [(0, 1), (1, 1)] and stage_kinds(tiny(LLAMA)) == [(0, 1)]


def test_parameters_are_counted_once() -> None:
    for model in MODELS.values():
        assert n_parameters(model) == sum(spec.size for spec in model_specs(model))


# Bugs: each takes a few bytes more on every rank.


def one_more_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Updater.init

    def init(updater: Updater, unit: Unit) -> None:
        original(updater, unit)
        unit.state["planted"] = unit.master[:1].copy()

    monkeypatch.setattr(Updater, "init", init)


def one_more_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    original = TreeSum.add

    def add(tree: TreeSum, vector: Array) -> Array | None:
        with tree._pool.borrow(1, vector.dtype):
            return original(tree, vector)

    monkeypatch.setattr(TreeSum, "add", add)


def one_more_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(gate_NF: Array, up_NF: Array) -> tuple[Array, Any]:
        h_NF, saved = swiglu_forward(gate_NF, up_NF)
        return h_NF, (*saved, h_NF[:1].copy())

    monkeypatch.setattr(Ops, "swiglu_forward", staticmethod(forward))
    monkeypatch.setattr(
        Ops, "swiglu_backward", staticmethod(lambda dh, saved: swiglu_backward(dh, SwigluSaved(*saved[:3])))
    )


@pytest.mark.parametrize(
    "plant, name",
    [(one_more_vector, "moments"), (one_more_buffer, "buffers"), (one_more_activation, "activations")],
)
def test_one_more_array_is_seen(plant: Plant, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("llama", "2x1", dp=2, tp=2, pp=2, zero=2, shard=2, schedule="1f1b", sequence=True)
    check(config, measured(config))
    plant(monkeypatch)
    more = measured(config)
    for place, held in zip(places(config), more, strict=True):
        expected = predicted(config, Spot(place.pp, place.tp, place.shard))
        assert [key for key in held if held[key] != expected[key]] == [name]
    with pytest.raises(AssertionError):
        check(config, more)
