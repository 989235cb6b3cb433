"""The process grid, and who holds which slice of which tensor."""

from typing import NamedTuple

from minitrain.config import Config
from minitrain.model.spec import (
    ParamSpec,
    block_specs,
    embedding_specs,
    head_specs,
    position_specs,
    stage_layers,
)
from minitrain.observe.traffic import Place, places
from minitrain.plan.held import Spot, Unit, layers_of, layout_of, units_of


class Cell(NamedTuple):
    """A rank in the grid."""

    rank: int
    place: Place
    layers: range


class Slices(NamedTuple):
    """A tensor, and what each tp rank holds of it. `stages`: the pipeline stages on which it is."""

    name: str
    spec: ParamSpec
    cut: str  # by what tensor parallelism cuts it; empty if it does not
    stages: str
    held: list[tuple[slice, ...]]  # by tp rank


class Shard(NamedTuple):
    """What one rank of the shard axis updates of a unit: elements of its flat vector."""

    stage: int
    unit: str
    number: int  # of equal units on the stage
    full: int  # elements of the vector, padding too
    own: list[range]  # by rank of the shard axis
    tensors: list[list[tuple[str, int]]]  # by the same: which, and how many elements of each


def process_grid(config: Config) -> list[Cell]:
    """In rank order."""
    layers, pp = config.model.layers, layout_of(config).pp
    return [
        Cell(rank, place, stage_layers(layers, place.pp, pp)) for rank, place in enumerate(places(config))
    ]


def tensor_slices(config: Config) -> list[Slices]:
    """Of the embedding, one block (all are alike) and the head."""
    model, at = config.model, layout_of(config)
    last = at.pp - 1
    everywhere = "all" if at.pp > 1 else "0"
    ends = "0" if last == 0 else f"0 and {last}"
    table = [(spec, ends if model.tied else "0") for spec in embedding_specs(model)]
    if model.arch == "gpt2":
        table += [(spec, "0") for spec in position_specs(model)]
    table += [(spec, everywhere) for spec in block_specs(model, 0)]
    table += [(spec, str(last)) for spec in head_specs(model)]
    return [
        Slices(
            spec.name.replace("layers.0.", "layers.*."),
            spec,
            cut_of(spec, at.tp),
            stages,
            [spec.tp_slice(rank, at.tp) for rank in range(at.tp)],
        )
        for spec, stages in table
    ]


def cut_of(spec: ParamSpec, tp: int) -> str:
    """In words."""
    if spec.tp_dim is None or tp == 1:
        return ""
    copies = spec.tp_replicas(tp)
    side = "columns (inputs)" if spec.tp_dim else "rows (outputs)"
    by = f", {spec.tp_units} heads" if spec.tp_units != spec.shape[spec.tp_dim] else ""
    return side + by + (f", each held by {copies}" if copies > 1 else "")


def zero_shards(config: Config) -> list[Shard]:
    """Of every unit of every stage, on tp rank 0; empty without ZeRO."""
    at = layout_of(config)
    if at.shard == 1:
        return []
    return [
        _shard(unit, stage, at.shard)
        for stage in range(at.pp)
        for unit in units_of(config, Spot(stage, 0))
        if unit.name != "blocks" or layers_of(config, stage)
    ]


def _shard(unit: Unit, stage: int, n_shards: int) -> Shard:
    return Shard(
        stage,
        unit.name,
        unit.number,
        unit.full,
        [range(s * unit.own, (s + 1) * unit.own) for s in range(n_shards)],
        [
            [(spec.name.removeprefix("layers.0."), n) for spec, n in unit.own_elements(s) if n]
            for s in range(n_shards)
        ],
    )
