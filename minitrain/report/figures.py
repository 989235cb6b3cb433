"""The figures of a report. Each is drawn once: as files, and, in colours that follow the page, within it."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minitrain.report.holdings import Cell
from minitrain.report.pipeline import (
    AT_WORK,
    BACKWARD,
    FORWARD,
    IN_CALLS,
    LOSS,
    MOVING,
    UPDATE,
    WAITING,
    Segment,
)
from minitrain.report.predicted import Pair
from minitrain.report.run_files import RunFiles
from minitrain.study.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    SKY,
    draw,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0  # inches
MOST_POINTS = 1000  # of a curve
NARROWEST = 1 / 1500  # of a step: less than a pixel, and not drawn
LABELLED = 1 / 40  # of a step: wide enough for the number of a micro-batch
MOST_ROWS, MOST_COLUMNS = 8, 32  # of the grid

COLOURS = {FORWARD: SKY, LOSS: ORANGE, BACKWARD: BLUE, UPDATE: GREEN, MOVING: PURPLE, WAITING: PALE}
ON = {FORWARD: "#000000", LOSS: "#000000", BACKWARD: "#FFFFFF"}  # of labels; they do not follow the page
VARIABLES = {  # of page.css
    BLACK: "ink", GREY: "soft", PALE: "pale", BLUE: "blue", ORANGE: "orange", GREEN: "green", RED: "red",
    PURPLE: "purple", SKY: "sky",
}  # fmt: skip


class Drawn(NamedTuple):
    """A figure's name, which its files have too, and its SVG for the page."""

    name: str
    svg: str


def drawn(
    directory: Path, name: str, title: str, inches: tuple[float, float], paint: "Callable[[Figure], None]"
) -> Drawn:
    """Writes name.png and name.svg. `title` is for those who cannot see it."""
    _, svg = draw(directory / name, inches, paint)
    return Drawn(name, for_page(svg.read_text(encoding="utf-8"), name, title))


def for_page(svg: str, name: str, title: str) -> str:
    """An SVG file as a part of a page: as wide as there is room, in the page's colours, its ids its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    svg = svg.replace('style="fill: #ffffff"', 'style="fill: none"')  # the paper
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour.lower(), f"var(--{variable})")
    svg = re.sub(r' id="', f' id="{name}-', svg)
    return re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{name}-", svg)


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of neighbouring points, if there are very many."""
    group = -(-len(x) // MOST_POINTS)
    if group <= 1:
        return list(x), list(y)
    parts = range(0, len(x), group)
    return [float(np.mean(x[i : i + group])) for i in parts], [
        float(np.mean(y[i : i + group])) for i in parts
    ]


def loss_figure(run: RunFiles, directory: Path) -> Drawn:
    def paint(figure: "Figure") -> None:
        top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        steps = [s.step for s in run.steps]
        top.plot(*thinned(steps, [s.loss for s in run.steps]), color=BLUE, label="training")
        if run.evaluations:
            at, losses = zip(*run.evaluations, strict=True)
            top.plot(at, losses, "o", color=RED, markersize=4, label="held out")
        top.legend()
        top.set_ylabel("loss, nats per token")
        bottom.plot(*thinned(steps, [s.lr for s in run.steps]), color=GREEN)
        bottom.set_ylabel("learning rate")
        bottom.set_ylim(bottom=0)
        _by_step(bottom)

    return drawn(directory, "loss", "Loss and learning rate by step", (WIDTH, 3.8), paint)


def norm_figure(run: RunFiles, directory: Path) -> Drawn:
    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.plot(*thinned([s.step for s in run.steps], [s.grad_norm for s in run.steps]), color=BLUE)
        if run.config.optim.clip:
            axes.axhline(run.config.optim.clip, color=RED, linestyle="--", label="clipped to")
            axes.legend()
        axes.set_yscale("log")
        axes.set_ylabel("gradient norm")
        _by_step(axes)

    return drawn(directory, "gradient-norm", "Gradient norm by step", (WIDTH, 2.2), paint)


def throughput_figure(run: RunFiles, directory: Path, tokens_a_step: int) -> Drawn:
    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        speeds = [tokens_a_step / s.seconds if s.seconds > 0 else np.nan for s in run.steps]
        axes.plot(*thinned([s.step for s in run.steps], speeds), color=BLUE)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("tokens per second")
        _by_step(axes)

    return drawn(directory, "throughput", "Tokens per second by step", (WIDTH, 2.2), paint)


def _by_step(axes: "Axes") -> None:
    axes.set_xlabel("step")
    axes.locator_params(axis="x", integer=True)


def pipeline_figure(pieces: Sequence[Segment], names: dict[int, str], directory: Path) -> Drawn:
    """A row for each rank in `names`: above its work, below its calls."""
    rows = {rank: row for row, rank in enumerate(names)}
    end = max(piece.end for piece in pieces)
    wide = [p for p in pieces if p.rank in rows and p.end - p.start >= end * NARROWEST]

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for kinds, top, height in ((AT_WORK, -0.42, 0.55), (IN_CALLS, 0.15, 0.25)):
            for kind in kinds:
                for rank, row in rows.items():
                    bars = [(p.start, p.end - p.start) for p in wide if (p.rank, p.kind) == (rank, kind)]
                    axes.broken_barh(bars, (row + top, height), facecolors=COLOURS[kind], linewidth=0)
                axes.broken_barh([], (0, 0), facecolors=COLOURS[kind], label=kind)
        for piece in wide:
            if piece.kind in ON and piece.end - piece.start >= end * LABELLED:
                _label(axes, piece, rows[piece.rank] - 0.145)
        axes.set_yticks(range(len(names)), list(names.values()))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, end)
        axes.set_xlabel("milliseconds; numbers are micro-batches")
        figure.legend(loc="outside upper left", ncols=len(COLOURS), handlelength=1, columnspacing=1)

    title = "What each rank did in one step, over time"
    return drawn(directory, "pipeline", title, (WIDTH, 1.2 + 0.35 * len(names)), paint)


def _label(axes: "Axes", piece: Segment, at: float) -> None:
    middle = (piece.start + piece.end) / 2
    axes.text(middle, at, str(piece.micro), ha="center", va="center", color=ON[piece.kind], fontsize=7)


def pairs_figure(pairs: Sequence[Pair], name: str, title: str, directory: Path) -> Drawn:
    """Predicted and measured bytes, one bar under the other."""

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        at = np.arange(len(pairs))
        axes.barh(at - 0.2, [p.predicted for p in pairs], 0.36, color=SKY, label="predicted")
        axes.barh(at + 0.2, [p.measured for p in pairs], 0.36, color=BLUE, label="measured")
        axes.set_yticks(at, [" ".join(p.name) for p in pairs], parse_math=False)
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
        axes.set_xlabel("bytes of rank 0 (logarithmic)")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return drawn(directory, name, title, (WIDTH, 1.0 + 0.32 * len(pairs)), paint)


def grid_figure(cells: Sequence[Cell], pp: int, tp: int, directory: Path) -> Drawn:
    """Rows are data-parallel ranks, columns pipeline stages and, within them, tensor-parallel ranks."""
    columns = min(pp * tp, MOST_COLUMNS)
    rows = min(len(cells) // (pp * tp), MOST_ROWS)

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for cell in cells:
            row, column = divmod(cell.rank, pp * tp)
            if row >= rows or column >= columns:
                continue
            fill = PALE if cell.place.pp % 2 else "none"
            axes.bar(column, 0.9, 0.94, bottom=row - 0.45, facecolor=fill, edgecolor=GREY, linewidth=0.6)
            text = f"rank {cell.rank}\nlayers {span(cell.layers)}" if columns <= 8 else str(cell.rank)
            axes.text(column, row, text, ha="center", va="center", fontsize=8 if columns <= 8 else 6)
        places = [cells[column].place for column in range(columns)]
        axes.set_xticks(
            range(columns),
            [f"stage {p.pp}\ntp {p.tp}" if columns <= 8 else f"{p.pp}\n{p.tp}" for p in places],
        )
        of_rows = [cells[row * pp * tp].place for row in range(rows)]
        axes.set_yticks(range(rows), [f"replica {p.replica}, shard {p.shard}" for p in of_rows])
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_xlim(-0.55, columns - 0.45)
        axes.xaxis.tick_top()
        if columns > 8:
            axes.set_xlabel("above: stage, and tp rank within it")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    height = 0.6 + 0.55 * rows
    return drawn(directory, "grid", "The ranks as a grid", (min(WIDTH, 2 + 1.2 * columns), height), paint)


def span(numbers: range) -> str:
    """First and last of some numbers in a row."""
    if len(numbers) < 2:
        return f"{numbers.start}" if numbers else "none"
    return f"{numbers.start}–{numbers.stop - 1}"
