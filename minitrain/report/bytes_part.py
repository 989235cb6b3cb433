"""The part of the page on bytes, sent and held: predicted beside measured."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from minitrain.report.figures import pairs_figure
from minitrain.report.html import DIFFERS, figure, note, paragraph, table
from minitrain.report.predicted import (
    Pair,
    bytes_held,
    bytes_held_by_ranks,
    bytes_sent,
    bytes_sent_by_ranks,
    exact_steps,
)
from minitrain.report.run_files import NO_STEP, RunFiles
from minitrain.report.trace import Trace


def bytes_part(run: RunFiles, trace: Trace | None, directory: Path) -> Iterator[str]:
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
