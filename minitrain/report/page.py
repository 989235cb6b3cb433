"""The page of a report: one file of HTML that needs no other and asks no network."""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from minitrain.observe.banner import facts
from minitrain.observe.chrome_trace import TRACE
from minitrain.report.bytes_part import bytes_part
from minitrain.report.costs import costs
from minitrain.report.figures import loss_figure, norm_figure, throughput_figure
from minitrain.report.grid_part import grid_part
from minitrain.report.holdings import Cell, process_grid
from minitrain.report.html import code, definitions, escape, figure, note, paragraph, section, table
from minitrain.report.pipeline_part import pipeline_part
from minitrain.report.run_files import NO_STEP, RunFiles
from minitrain.report.stepper import MOST, stepper
from minitrain.report.trace import Collective, Trace, collectives, of_step, step_shown

MOST_COSTS = 15  # rows


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
        yield section("pipeline", "Pipeline", *pipeline_part(run, trace, shown, made, step, directory))
    yield section("bytes", "Bytes: predicted and measured", *bytes_part(run, trace, directory))
    yield section("grid", "Who holds what", *grid_part(run, cells, directory))
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
