"""The part of the page on who holds what: the grid of ranks, slices of tensors, shards of ZeRO."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from minitrain.plan.held import layout_of
from minitrain.report.figures import grid_figure, span
from minitrain.report.holdings import Cell, Shard, Slices, tensor_slices, zero_shards
from minitrain.report.html import figure, note, table
from minitrain.report.run_files import RunFiles

MOST_COLUMNS = 8  # tp ranks, and shards, of a table


def grid_part(run: RunFiles, cells: Sequence[Cell], directory: Path) -> Iterator[str]:
    at, config = layout_of(run.config), run.config
    drawing = grid_figure(cells, at.pp, at.tp, directory)
    replicas = at.dp // at.shard
    yield figure(
        *drawing,
        f"{len(cells)} ranks = replica {replicas} x shard {at.shard} x pp {at.pp} x tp {at.tp}, "
        "of which tp varies fastest.",
    )
    yield "<h3>Tensors</h3>"
    columns = range(min(at.tp, MOST_COLUMNS))
    yield table(
        ("tensor", "shape", "stages", "cut", *(f"tp {rank}" for rank in columns)),
        [
            (row.name, " × ".join(map(str, row.spec.shape)), row.stages, row.cut or "whole",
             *(slice_text(row, rank) for rank in columns))
            for row in tensor_slices(config)
        ],
        words=4 + len(columns),
    )  # fmt: skip
    yield note(
        "By global row and column, from 0. All blocks are cut alike."
        + (f" Tensor-parallel ranks from {MOST_COLUMNS} on are left out." if at.tp > MOST_COLUMNS else "")
    )
    if shards := zero_shards(config):
        yield "<h3>ZeRO: what each rank of the shard axis updates</h3>"
        yield from _shards(shards, at.zero)


def slice_text(row: Slices, rank: int) -> str:
    """What the tp rank holds, in words."""
    box = row.held[rank]
    if not row.cut:
        return "all"
    assert row.spec.tp_dim is not None
    held = box[row.spec.tp_dim]
    text = f"{('rows', 'columns')[row.spec.tp_dim]} {span(range(held.start, held.stop))}"
    length = row.spec.shape[row.spec.tp_dim] // row.spec.tp_units
    if length > 1:
        heads = range(held.start // length, held.stop // length)
        text += f" (head{'s' if len(heads) > 1 else ''} {span(heads)})"
    return text


ZERO = {
    1: "Parameters and gradients are whole everywhere; the optimizer's state is cut.",
    2: "Parameters are whole everywhere; gradients and the optimizer's state are cut.",
    3: "Parameters, gradients and the optimizer's state are cut.",
}


def _shards(shards: Sequence[Shard], zero: int) -> Iterator[str]:
    columns = range(min(len(shards[0].own), MOST_COLUMNS))
    yield table(
        ("stage", "unit", "elements", *(f"shard {s}" for s in columns)),
        [
            (str(shard.stage), f"{shard.unit}, each of {shard.number}" if shard.number > 1 else shard.unit,
             f"{shard.full:,}", *(shard_text(shard, s) for s in columns))
            for shard in shards
        ],
        words=3 + len(columns),
    )  # fmt: skip
    yield note(
        f"{ZERO[zero]} Elements are those of the unit's flat vector on tp rank 0 (parallel/unit.py): its "
        "tensors one after another. A range may begin and end within one."
        + (f" Shards from {MOST_COLUMNS} on are left out." if len(shards[0].own) > MOST_COLUMNS else "")
    )


def shard_text(shard: Shard, rank: int) -> str:
    """Range of elements, and the tensors in it."""
    whole: dict[str, int] = {}
    for tensors in shard.tensors:
        for name, n in tensors:
            whole[name] = whole.get(name, 0) + n
    named = [
        name if n == whole[name] else f"{name} ({n:,} of {whole[name]:,})" for name, n in shard.tensors[rank]
    ]
    return f"{span(shard.own[rank])}: {', '.join(named) or 'padding'}"
