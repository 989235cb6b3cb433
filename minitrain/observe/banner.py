"""What a run is, in a dozen lines: model, data, optimizer, layout, and which rank holds what."""

from typing import NamedTuple

import numpy as np

from minitrain.config import Config
from minitrain.model.spec import model_specs, stage_layers
from minitrain.observe.run_directory import run_name
from minitrain.precision import PRECISIONS

MOST_ROWS = 16  # ranks that the table shows
GAP = -1  # in the place of the ranks that it leaves out


class Place(NamedTuple):
    """Where a rank is in the grid, and what it holds."""

    rank: int
    dp: int
    pp: int
    tp: int
    layers: range
    heads: range
    ffn: range
    vocab: range


def banner(config: Config, notices: list[str], gpus: str = "") -> str:
    """The text that is printed before the first step. `gpus`: on which, if it is on any."""
    where = config.run.dir or f"runs/{run_name(config)}, numbered"
    lines = [
        *facts(config).items(),
        *([("gpus", gpus)] if gpus else []),
        ("run", where),
        *(("note", notice) for notice in notices),
    ]
    return "\n".join(["minitrain", *(f"  {label:<11}{text}" for label, text in lines), *_table(config), ""])


def facts(config: Config) -> dict[str, str]:
    """What a (resolved) configuration comes to, in words."""
    texts = {
        "model": _model(config),
        "precision": _precision(config),
        "data": _data(config),
        "batch": _batch(config),
        "optimizer": _optimizer(config),
        "layout": _layout(config),
    }
    if config.run.drill != "none":
        texts["drill"] = f"{config.run.drill} is planted: this run is wrong on purpose"
    return texts


def place_of(config: Config, rank: int) -> Place:
    """The place of a world rank: tp varies fastest, then pp, then dp."""
    parallel, model = config.parallel, config.model
    assert parallel.tp and parallel.pp and model.ffn
    tp, pp, dp = rank % parallel.tp, rank // parallel.tp % parallel.pp, rank // parallel.tp // parallel.pp
    return Place(
        rank, dp, pp, tp,
        layers=stage_layers(model.layers, pp, parallel.pp),
        heads=_share(model.heads, tp, parallel.tp),
        ffn=_share(model.ffn, tp, parallel.tp),
        vocab=_share(model.vocab, tp, parallel.tp),
    )  # fmt: skip


def _model(config: Config) -> str:
    m = config.model
    parameters = sum(spec.size for spec in model_specs(m))
    grouped = "" if m.kv_heads == m.heads else f" ({m.kv_heads} kv)"
    tied = ", tied" if m.tied else ""
    shape = f"{_count(m.layers, 'layer')} x {m.width}, {_count(m.heads, 'head')}{grouped}, ffn {m.ffn}"
    return f"{m.arch}, {shape}, vocab {m.vocab}{tied}: {parameters:,} parameters"


def _precision(config: Config) -> str:
    """The row of the table in `precision.py`, tensors of one type together."""
    types = PRECISIONS[config.precision]
    of = {
        "parameters": types.param, "activations": types.activation, "gradients": types.grad,
        "reduction": types.grad, "master copies": types.master, "moments": types.master,
    }  # fmt: skip
    if types.master == types.param:
        del of["master copies"]
    named = {what: _name(dtype) for what, dtype in of.items()}
    if config.optim.name == "adam8bit":
        named["moments"] = "8 bits"
    text = "; ".join(
        f"{name} {', '.join(what for what in named if named[what] == name)}"
        for name in dict.fromkeys(named.values())
    )
    if types.scales_loss:
        scale = config.loss_scale
        text += f"; loss scale {scale.initial:g}" + (", dynamic" if scale.dynamic else ", fixed")
    if types.fp8:
        text += "; matrices multiply in e4m3, gradients in e5m2"
    return f"{config.precision}: {text}"


def _name(dtype: np.dtype[np.generic]) -> str:
    return {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype.name]


def _data(config: Config) -> str:
    data = config.data
    source = f"{data.corpus}, the King James Bible" if data.path is None else data.path
    order = f"shuffled with seed {config.train.seed}" if data.shuffle else "in file order"
    held_out = f"the last {100 * data.holdout:.3g}% held out" if data.holdout else "nothing held out"
    return f"{source}; {order}; {held_out}"


def _batch(config: Config) -> str:
    train, dp, T = config.train, config.parallel.dp, config.model.seq_len
    assert train.global_batch and dp
    micro_steps = train.global_batch // (dp * train.micro_batch)
    split = f"{_count(dp, 'replica')} x {_count(micro_steps, 'micro-batch', 'es')} of {train.micro_batch:,}"
    return f"{train.global_batch:,} sequences of {T:,} = {train.global_batch * T:,} tokens a step ({split})"


def _optimizer(config: Config) -> str:
    optim, steps = config.optim, config.train.steps
    schedule = optim.schedule if optim.schedule == "constant" else f"{optim.schedule} to {optim.min_lr:g}"
    clip = f"clip {optim.clip:g}" if optim.clip else "no clipping"
    rest = f"{optim.warmup:,} of warm-up, weight decay {optim.weight_decay:g}, {clip}"
    return f"{optim.name}, lr {optim.lr:g} {schedule}, {_count(steps, 'step')}, {rest}"


def _layout(config: Config) -> str:
    p = config.parallel
    assert p.dp and p.pp and p.tp and p.shard
    text = f"{_count(p.dp * p.pp * p.tp, 'rank')} = dp {p.dp} x pp {p.pp} x tp {p.tp}"
    if p.zero:
        text += f", ZeRO-{p.zero} over " + ("all of dp" if p.shard == p.dp else f"{p.shard} of dp {p.dp}")
    if p.pp > 1:
        text += f", {p.schedule}"
    if p.sequence and p.tp > 1:
        text += ", sequence parallel"
    if p.recompute != "none":
        text += f", {p.recompute} recomputation"
    return text


def _table(config: Config) -> list[str]:
    """A row for each rank; of many ranks the first and the last. No table for one: it holds everything."""
    p = config.parallel
    assert p.dp and p.pp and p.tp
    n_ranks = p.dp * p.pp * p.tp
    if n_ranks == 1:
        return []
    if n_ranks <= MOST_ROWS:
        shown = [*range(n_ranks)]
    else:
        shown = [*range(MOST_ROWS - 4), GAP, *range(n_ranks - 3, n_ranks)]
    header = ("rank", "dp", "pp", "tp", "layers", "heads", "ffn", "embedding", "head")
    rows = [header] + [("...",) + ("",) * 8 if rank == GAP else _row(config, rank) for rank in shown]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return ["", *(f"  {line.rstrip()}" for line in lines)]


def _row(config: Config, rank: int) -> tuple[str, ...]:
    at, pp = place_of(config, rank), config.parallel.pp
    assert pp
    embedding = _span(at.vocab) if at.pp == 0 else "-"
    head = _span(at.vocab) if at.pp == pp - 1 else "-"
    held = (_span(at.layers), _span(at.heads), _span(at.ffn), embedding, head)
    return (str(rank), str(at.dp), str(at.pp), str(at.tp), *held)


def _share(n: int, rank: int, size: int) -> range:
    """Which of `n` pieces a tp rank holds."""
    start = n * rank // size
    return range(start, max(start + 1, n * (rank + 1) // size))


def _span(r: range) -> str:
    if len(r) == 0:
        return "none"
    return f"{r.start}" if len(r) == 1 else f"{r.start}-{r.stop - 1}"


def _count(n: int, noun: str, plural: str = "s") -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else plural)
