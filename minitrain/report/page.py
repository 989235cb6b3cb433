"""The page of a report: one file of HTML that needs no other and asks no network."""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from minitrain.observe.banner import facts
from minitrain.observe.chrome_trace import TRACE
from minitrain.plan.held import layout_of
from minitrain.report.costs import costs
from minitrain.report.figures import (
    grid_figure,
    loss_figure,
    norm_figure,
    pairs_figure,
    pipeline_figure,
    span,
    throughput_figure,
)
from minitrain.report.holdings import Cell, Shard, Slices, process_grid, tensor_slices, zero_shards
from minitrain.report.html import (
    DIFFERS,
    code,
    definitions,
    escape,
    figure,
    note,
    paragraph,
    section,
    table,
)
from minitrain.report.pipeline import Measured, measured_bubble, predicted_bubble, segments
from minitrain.report.predicted import (
    Pair,
    bytes_held,
    bytes_held_by_ranks,
    bytes_sent,
    bytes_sent_by_ranks,
    exact_steps,
)
from minitrain.report.run_files import RunFiles
from minitrain.report.stepper import MOST, stepper
from minitrain.report.trace import Collective, Trace, collectives, of_step, step_shown

MOST_RANKS = 32  # rows of the pipeline's figure
MOST_COLUMNS = 8  # tp ranks, and shards, of a table
MOST_COSTS = 15  # rows
NO_STEP = "No step is done yet."


def page(run: RunFiles, directory: Path) -> str:
    """The page. Figures are written to `directory`, too."""
    package = files("minitrain.report")
    title = escape(f"minitrain: {run.directory.absolute().name}")
    sections = _sections(run, directory)
    contents = {"run": "The run", "pipeline": "Pipeline", "bytes": "Bytes", "grid": "Who holds what"}
    contents |= {"collectives-of-a-step": "Collectives", "costs": "Costs"}
    script = package.joinpath("stepper.js").read_text() if run.trace and run.trace.calls else ""
    return Template(package.joinpath("page.html").read_text()).substitute(
        title=title,
        style=package.joinpath("page.css").read_text(),
        outcome=escape(outcome(run)),
        contents="\n".join(f'<a href="#{name}">{text}</a>' for name, text in contents.items()),
        sections="\n".join(sections),
        script=f"<script>\n{script}</script>" if script else "",
    )


def _sections(run: RunFiles, directory: Path) -> Iterator[str]:
    cells = process_grid(run.config)
    yield section("run", "The run", definitions(facts(run.config)), *_curves(run, directory))
    trace = run.trace
    if trace is None:
        yield section("pipeline", "Pipeline", no_trace(run))
    else:
        step = step_shown(trace)
        shown = of_step(trace, step)
        made = collectives(shown.calls)
        yield section("pipeline", "Pipeline", *_pipeline(run, trace, shown, made, step, directory))
    yield section("bytes", "Bytes: predicted and measured", *_bytes(run, trace, directory))
    yield section("grid", "Who holds what", *_grid(run, cells, directory))
    if trace is None:
        yield section("collectives-of-a-step", "Collectives", no_trace(run))
        yield section("costs", "The most expensive calls", no_trace(run))
    else:
        yield section("collectives-of-a-step", "Collectives, one at a time", *_replay(made, cells, step))
        yield section("costs", "The most expensive calls", *_costs(trace, len(cells)))


def no_trace(run: RunFiles) -> str:
    """In the place of what would be drawn from it."""
    if run.config.run.trace:
        return paragraph(f"{code(TRACE)} is written when a run ends: this one goes on, or was cut off.")
    return paragraph(
        f"This run has no {code(TRACE)}. Train with {code('--run.trace true')}, which writes one at the end, "
        "and this part shows what each rank did and called."
    )


def outcome(run: RunFiles) -> str:
    """How it went, in a sentence or two. As text."""
    if not run.steps:
        return NO_STEP
    last, total = run.steps[-1], run.config.train.steps
    seconds = sum(s.seconds for s in run.steps)
    text = f"{last.step:,} of {total:,} steps"
    text += (
        f", {last.tokens:,} tokens. The training loss went from {run.steps[0].loss:.4f} to {last.loss:.4f}"
    )
    text += " nats per token"
    if run.evaluations:
        text += f", that on held-out text to {run.evaluations[-1].loss:.4f}"
    if seconds > 0:
        text += f". {len(run.steps) * _tokens_a_step(run) / seconds:,.0f} tokens per second on average"
    if last.mfu is not None:
        text += f", an MFU of {last.mfu:.1%}"
    skipped = sum(s.skipped for s in run.steps)
    return text + (f". Steps skipped for overflow: {skipped}." if skipped else ".")


def _tokens_a_step(run: RunFiles) -> int:
    batch = run.config.train.global_batch
    assert batch, "the configuration is resolved"
    return batch * run.config.model.seq_len


def _curves(run: RunFiles, directory: Path) -> Iterator[str]:
    if not run.steps:
        yield paragraph(NO_STEP)
        return
    yield figure(*loss_figure(run, directory), "Loss of each step's batch, and learning rate.")
    yield figure(*norm_figure(run, directory), "L2 norm of the whole gradient, before clipping.")
    speed = throughput_figure(run, directory, _tokens_a_step(run))
    yield figure(*speed, "Tokens of a step by its time; validation and checkpoints are not in it.")


def _pipeline(
    run: RunFiles, trace: Trace, shown: Trace, made: Sequence[Collective], step: int, directory: Path
) -> Iterator[str]:
    config = run.config
    pieces = segments(shown.work, made)
    yield figure(
        *pipeline_figure(pieces, _rows(process_grid(config)), directory),
        f"Step {step}, as it was. The upper half of a row is the rank's work, calls within it too; the lower "
        "half its calls: it waits until the last rank has come to the same call, and from then on data move.",
    )
    if layout_of(config).pp == 1:
        yield paragraph("There is one stage, and so no bubble of a pipeline.")
        return
    measured, formula = measured_bubble(config, shown.work), predicted_bubble(config)
    p, m = layout_of(config).pp, layout_of(config).micro
    usual = trace.steps[1:] or trace.steps
    of_steps = [measured_bubble(config, [w for w in trace.work if w.step == s]) for s in usual]
    middle = sorted(of_steps, key=lambda bubble: bubble.ratio)[len(of_steps) // 2]
    yield table(
        ("bubble", "formula", f"p = {p}, m = {m}", f"measured in step {step}", f"median of {len(usual)}"),
        [
            ("idle / working", "(p-1)/m", *_share((formula.ratio, measured.ratio, middle.ratio))),
            ("idle / all", "(p-1)/(m+p-1)", *_share((formula.fraction, measured.fraction, middle.fraction))),
        ],
    )
    yield paragraph(why_they_differ(measured))


def _rows(cells: Sequence[Cell]) -> dict[int, str]:
    """Of the pipeline's figure: all ranks, or of many those of the first replica and first tp rank."""
    few = len(cells) <= MOST_RANKS
    shown = [c for c in cells if few or (c.place.replica, c.place.shard, c.place.tp) == (0, 0, 0)]
    return {c.rank: f"rank {c.rank}, stage {c.place.pp}" for c in shown[:MOST_RANKS]}


def _share(numbers: Sequence[float]) -> list[str]:
    return [f"{number:.3f}" for number in numbers]


def why_they_differ(measured: Measured) -> str:
    """The formula's assumptions, and how far they hold here."""
    times = ", ".join(f"{time:.1f}" for time in measured.of_stage)
    return (
        "The formulas take all stages to be equal and messages to be free. "
        f"Here the stages worked {times} ms in this step: the first has the embedding, the last the head and "
        "the loss, and layers may not divide. Sending, receiving and, on a machine with fewer cores than "
        "ranks, waiting for a core, count as idle or stretch the work."
    )


def _bytes(run: RunFiles, trace: Trace | None, directory: Path) -> Iterator[str]:
    if not run.steps:
        yield paragraph(NO_STEP)
        return
    config, last = run.config, run.steps[-1]
    sent = bytes_sent(config, last)
    yield "<h3>Sent in a step</h3>"
    if sent:
        n_exact = exact_steps(config, run.steps)
        yield _pairs(("axis", "verb"), sent)
        yield note(
            f"Rank 0, step {last.step}. Predicted from the configuration alone (observe/traffic.py). "
            f"All kinds are exact in {n_exact:,} of {len(run.steps):,} steps."
            + (_told(bytes_sent_by_ranks(config, trace), "sends", "send") if trace else "")
        )
        title = "Bytes that rank 0 sends in a step, predicted and measured"
        yield figure(*pairs_figure(sent, "bytes-sent", title, directory), "Sent in a step.")
    else:
        yield paragraph("One rank alone sends nothing.")
    yield "<h3>Held</h3>"
    gpu = config.backend == "cupy" or any(s.mfu is not None for s in run.steps)
    held = bytes_held(config, last, gpu)
    yield _pairs(("class",), held)
    yield note(
        "Rank 0. Activations are the most that was kept at once, from forward to backward."
        + (_told(bytes_held_by_ranks(config, trace.memory, gpu), "holds", "hold") if trace else "")
    )
    title = "Bytes that rank 0 holds, by class, predicted and measured"
    yield figure(*pairs_figure(held, "memory", title, directory), "Held, by class.")


def _pairs(names: tuple[str, ...], pairs: Sequence[Pair]) -> str:
    rows = [
        (*pair.name, f"{pair.predicted:,}", f"{pair.measured:,}", "exact" if pair.exact else DIFFERS)
        for pair in pairs
    ]
    rows.append(
        (
            "all", *[""] * (len(names) - 1),
            f"{sum(p.predicted for p in pairs):,}", f"{sum(p.measured for p in pairs):,}", "",
        )
    )  # fmt: skip
    return table((*names, "predicted", "measured", ""), rows, words=len(names))


def _told(as_predicted: dict[int, bool], verb: str, plural: str) -> str:
    """What the trace says of every rank."""
    others = [str(rank) for rank, exact in as_predicted.items() if not exact]
    if not as_predicted:
        return ""
    if others:
        return f" By the trace these ranks {plural} other than what is predicted: {', '.join(others)}."
    return f" By the trace each of {len(as_predicted)} ranks {verb} what is predicted for it."


def _grid(run: RunFiles, cells: Sequence[Cell], directory: Path) -> Iterator[str]:
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


def _replay(made: Sequence[Collective], cells: Sequence[Cell], step: int) -> Iterator[str]:
    if not made:
        yield paragraph("No rank called another.")
        return
    yield paragraph(
        f"The {len(made):,} collectives and messages of step {step}, in the order in which they began. "
        "Step with the buttons, or with the arrow keys ← and →."
        + (f" The first {MOST:,} are here." if len(made) > MOST else "")
    )
    yield stepper(made, cells, step)
    yield "<noscript><p>This part needs JavaScript.</p></noscript>"


def _costs(trace: Trace, n_ranks: int) -> Iterator[str]:
    found = costs(collectives(trace.calls), len(trace.steps), n_ranks)
    whole = sum(cost.time for cost in found)
    yield table(
        ("axis", "verb", "phase", "part", "called at", "bytes", "calls a step", "waiting, ms", "moving, ms"),
        [
            (c.axis, c.verb, c.phase, c.part, c.site, f"{c.bytes:,}", f"{c.calls:,.4g}", f"{c.waiting:.3f}",
             f"{c.moving:.3f}")
            for c in found[:MOST_COSTS]
        ],
        words=5,
    )  # fmt: skip
    yield note(
        f"Milliseconds of a step, averaged over {n_ranks} ranks and {len(trace.steps):,} steps. All "
        f"{len(found)} kinds of calls together take {whole:.1f} ms. Bytes are those of one buffer; calls "
        "those of all ranks together, a collective counted once."
    )
