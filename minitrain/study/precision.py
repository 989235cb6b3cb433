"""What narrow types do to a real run: the default model on the default text, in one process.

1. every precision beside fp32, and fp16 without its loss scale; as a yardstick fp32 in micro-batches of half
   the size, which adds up the same numbers in another order
2. bf16 alone at a small rate, where most updates are too small for it, and what stochastic rounding mends
3. which gradients fp16 cannot hold
4. how the dynamic loss scale finds its height

The numbers go into `runs.json` beside the figures, so that these can be drawn again.
"""

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from minitrain.arrays.heap import keep_freed_memory
from minitrain.arrays.types import Array
from minitrain.build import build, load_batch
from minitrain.comm.single import SingleComm
from minitrain.config import Config, DataConfig, LossScaleConfig, OptimConfig, RunConfig, TrainConfig
from minitrain.model.spec import model_specs
from minitrain.observe.console import say, show
from minitrain.observe.recorder import SilentRecorder, StepMetrics
from minitrain.optim.schedule import learning_rate
from minitrain.resolve import resolve
from minitrain.step import backpropagate, train_step
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
    make_directory,
    write,
)
from minitrain.tables import table
from minitrain.train import train

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAST = 20  # steps of which the mean loss is compared
NORMAL, SMALLEST, LARGEST = -14, -24, 65520.0  # of fp16: the first two as powers of 2; the last is too large

UNSCALED = LossScaleConfig(initial=1.0, dynamic=False)
IMPATIENT = LossScaleConfig(initial=2.0**24, growth_interval=20)  # too high at first, and soon again
CALM = OptimConfig(lr=1e-3)  # at the default 0.005 training amplifies any difference: fp32's own too
SMALL_RATE = OptimConfig(lr=3e-4, betas=(0.9, 0.999), schedule="constant")

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "fp32, another order": {"precision": "fp32", "micro_batch": TrainConfig().micro_batch // 2},
    "fp16": {"precision": "fp16"},
    "fp16, no loss scale": {"precision": "fp16", "loss_scale": UNSCALED},
    "bf16": {"precision": "bf16"},
    "bf16-pure": {"precision": "bf16-pure"},
    "fp8": {"precision": "fp8"},
}
AT_A_SMALL_RATE: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "optim": SMALL_RATE},
    "bf16-pure": {"precision": "bf16-pure", "optim": SMALL_RATE},
    "bf16-pure, stochastic": {
        "precision": "bf16-pure",
        "optim": replace(SMALL_RATE, stochastic_rounding=True),
    },
}
COLOURS = {
    "fp32": BLACK,
    "fp32, another order": GREY,
    "fp16": BLUE,
    "fp16, no loss scale": SKY,
    "bf16": GREEN,
    "bf16-pure": ORANGE,
    "bf16-pure, stochastic": PURPLE,
    "fp8": RED,
}


class Notes(SilentRecorder):
    """Keeps what every step tells."""

    def __init__(self) -> None:
        self.steps: list[StepMetrics] = []

    def step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)


def study_precision(out: str, steps: int) -> None:
    """Runs, tables, figures."""
    directory = make_directory(out)
    keep_freed_memory()
    runs = {name: _train(name, _config(steps, **fields)) for name, fields in PRECISIONS.items()}
    small = {
        name: _train(f"{name} at a small rate", _config(steps, **fields))
        for name, fields in AT_A_SMALL_RATE.items()
    }
    climbing = _train("fp16, impatient", _config(steps, precision="fp16", loss_scale=IMPATIENT))
    data = {
        "precisions": {name: [m.loss for m in run] for name, run in runs.items()},
        "small rate": {name: [m.loss for m in run] for name, run in small.items()},
        "gradients": _gradients(_config(steps), scale=runs["fp16"][-1].loss_scale),
        "loss scale": {"scale": [m.loss_scale for m in climbing], "skipped": [m.skipped for m in climbing]},
    }
    show("\n" + "\n\n".join([_compare("precision", runs), _compare("at a small rate", small)]))
    show("\n" + _underflow(data["gradients"]) + "\n")
    written = [write(directory / "runs.json", json.dumps(data).encode())]
    written += draw(directory / "losses", (7.2, 3.0), lambda figure: _losses(figure, data["precisions"]))
    written += draw(directory / "small-rate", (7.2, 3.0), lambda figure: _losses(figure, data["small rate"]))
    written += draw(directory / "gradients", (7.2, 3.0), lambda figure: _histogram(figure, data["gradients"]))
    written += draw(directory / "loss-scale", (7.2, 2.6), lambda figure: _stairs(figure, data["loss scale"]))
    say("wrote " + ", ".join(map(str, written)))


def _config(steps: int, micro_batch: int = TrainConfig().micro_batch, **fields: Any) -> Config:
    config = Config(
        optim=CALM,
        train=TrainConfig(steps=steps, micro_batch=micro_batch, eval_every=0),
        data=DataConfig(holdout=0.0),
        run=RunConfig(export_hf=False, sample_tokens=0),
    )
    return resolve(replace(config, **fields), given={}, world_size=1).config


def _train(name: str, config: Config) -> list[StepMetrics]:
    notes, start = Notes(), time.perf_counter()
    train(config, SingleComm(), notes)
    say(f"{name}: {config.train.steps} steps, {time.perf_counter() - start:.0f} s")
    return notes.steps


def _gradients(config: Config, scale: float) -> dict[str, Any]:
    """How many gradients there are of each size, 2^e <= |g| < 2^(e + 1), after a run in fp32; and what
    becomes of them in fp16, as they are and multiplied by `scale`.
    """
    run, steps = build(config, SingleComm()), config.train.steps
    for step in range(1, steps + 1):
        train_step(run.trainer, load_batch(config, run, step), learning_rate(step, steps, config.optim), step)
    backpropagate(run.trainer, load_batch(config, run, steps + 1))
    say(f"gradients: of step {steps + 1}")
    vectors = [unit.grad for unit in run.trainer.stage.units if unit.grad is not None]
    size = np.abs(np.concatenate(vectors), dtype=np.float64)
    size = size[size > 0]  # the others are of letters that do not occur
    exponents, counts = np.unique(np.frexp(size)[1] - 1, return_counts=True)
    return {
        "exponents": exponents.tolist(),
        "counts": counts.tolist(),
        "fates": [{"scale": s} | fates(size * s) for s in (1.0, scale)],
    }


def fates(size: Array) -> dict[str, float]:
    """Shares of the numbers that fp16 makes zero (up to half its smallest one), and holds with fewer digits
    than 11, or not at all.
    """
    lost = size <= 2.0 ** (SMALLEST - 1)
    shares = {"lost": lost, "subnormal": ~lost & (size < 2.0**NORMAL), "too large": size >= LARGEST}
    return {name: float(share.mean()) for name, share in shares.items()}


def _compare(title: str, runs: dict[str, list[StepMetrics]]) -> str:
    """The mean loss of the last steps beside that of fp32, and what a parameter takes."""
    losses = {name: float(np.mean([m.loss for m in run[-LAST:]])) for name, run in runs.items()}
    fp32, n_parameters = losses["fp32"], sum(spec.size for spec in model_specs(_config(1).model))
    rows = [[title, "loss", "difference", "bytes a parameter"]]
    for name, loss in losses.items():
        memory = runs[name][-1].memory_bytes
        n_bytes = sum(memory[kind] for kind in ("parameters", "gradients", "master", "moments"))
        cells = (f"{loss:.4f}", f"{loss / fp32 - 1:+.2%}", f"{n_bytes / n_parameters:.3g}")
        rows.append([name, *cells])
    return table(rows)


def _underflow(gradients: dict[str, Any]) -> str:
    rows = [["gradients in fp16, times", "lost", "subnormal", "too large"]]
    for fate in gradients["fates"]:
        shares = (f"{fate[name]:.2%}" for name in rows[0][1:])
        rows.append([f"{fate['scale']:g}", *shares])
    return table(rows)


def _losses(figure: "Figure", runs: dict[str, list[float]]) -> None:
    """Losses, and how far they are from those of fp32."""
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    reference = smooth(runs["fp32"])
    for name, losses in runs.items():
        mean = smooth(losses)
        steps = np.arange(len(losses) - mean.size, len(losses)) + 1
        left.plot(steps, mean, color=COLOURS[name])
        right.plot(steps, 100 * (mean - reference) / reference, color=COLOURS[name], label=name)
    _name(left, "step", "loss, nats per byte")
    _name(right, "step", "difference from fp32, %")
    right.legend(loc="upper left", bbox_to_anchor=(1, 1))


def smooth(losses: list[float]) -> Array:
    """Running means of the last steps."""
    n = min(LAST, len(losses))
    return np.convolve(losses, np.full(n, 1 / n), mode="valid")


def _histogram(figure: "Figure", gradients: dict[str, Any]) -> None:
    """Sizes of gradients, as they are and scaled, and what fp16 holds."""
    panel = figure.subplots()
    exponents, counts = np.array(gradients["exponents"]), np.array(gradients["counts"])
    percent = 100 * counts / counts.sum()
    top = percent.max()
    panel.axvspan(SMALLEST - 1, NORMAL, color=PALE, linewidth=0, alpha=0.3)
    panel.axvspan(NORMAL, np.log2(LARGEST), color=PALE, linewidth=0, alpha=0.7)
    for x, text in ((SMALLEST - 8, "zero in fp16"), (SMALLEST - 1, "subnormal"), (NORMAL, "normal")):
        panel.text(x + 0.4, 1.25 * top, text)
    for fate, colour in zip(gradients["fates"], (BLACK, BLUE), strict=True):
        shift = np.log2(fate["scale"])
        label = f"times $2^{{{shift:.0f}}}$" if shift else "as they are"
        panel.step(exponents + shift, percent, where="post", color=colour)
        panel.text(exponents[percent.argmax()] + shift, 1.05 * top, label, color=colour)
    panel.set(xlim=(SMALLEST - 8, np.log2(LARGEST) + 2), ylim=(0, 1.35 * top))
    _name(panel, "log2 of a gradient's magnitude", "% of gradients")


def _stairs(figure: "Figure", loss_scale: dict[str, Any]) -> None:
    """The loss scale, with a mark at every step that was skipped."""
    panel = figure.subplots()
    scale, skipped = np.array(loss_scale["scale"]), np.array(loss_scale["skipped"])
    steps = np.arange(scale.size) + 1
    panel.step(steps, scale, where="mid", color=BLUE)
    panel.plot(steps[skipped], scale[skipped], "x", color=RED, markersize=4, label="overflow: step skipped")
    panel.set_yscale("log", base=2)
    panel.legend(loc="upper right")
    _name(panel, "step", "loss scale")


def _name(panel: "Axes", x: str, y: str) -> None:
    panel.set_xlabel(x)
    panel.set_ylabel(y)
