"""The part of the page on the pipeline: one step over time, and its bubble beside the formulas."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from minitrain.plan.held import layout_of
from minitrain.report.figures import pipeline_figure
from minitrain.report.holdings import Cell, process_grid
from minitrain.report.html import figure, paragraph, table
from minitrain.report.pipeline import Measured, measured_bubble, predicted_bubble, segments
from minitrain.report.run_files import RunFiles
from minitrain.report.trace import Collective, Trace

MOST_RANKS = 32  # rows of the figure


def pipeline_part(
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
    usual = trace.usual_steps
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
