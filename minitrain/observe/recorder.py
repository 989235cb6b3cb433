"""Rank 0's record of a run: the run directory's files, and what the user sees meanwhile."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from minitrain.config import Config
from minitrain.config_text import repeatable, to_toml
from minitrain.durable import flush, write_text
from minitrain.errors import ConfigError, Problem
from minitrain.observe.banner import banner
from minitrain.observe.chrome_trace import TRACE, trace_text
from minitrain.observe.console import say
from minitrain.observe.flops import flops_per_token
from minitrain.observe.hardware import UNKNOWN, Hardware
from minitrain.observe.progress import Progress, Quiet, make_progress
from minitrain.observe.run_directory import METRICS, cut_metrics


class StepMetrics(NamedTuple):
    """What one step tells. Bytes are those of rank 0."""

    step: int  # from 1
    loss: float  # mean nats per token over the global batch
    grad_norm: float  # before clipping
    lr: float
    tokens: int  # so far
    seconds: float  # this step
    loss_scale: float
    skipped: bool
    memory_bytes: dict[str, int]  # by class
    comm_bytes: dict[str, dict[str, int]]  # axis -> verb -> bytes


class AnyRecorder(Protocol):
    """What `train` calls, in this order; every rank does, and rank 0's recorder alone acts."""

    def begin(self, config: Config, done: int = 0, hardware: Hardware = UNKNOWN) -> None: ...

    def step(self, metrics: StepMetrics) -> None: ...

    def evaluation(self, step: int, eval_loss: float) -> None: ...

    def notice(self, text: str) -> None: ...

    def flush(self) -> None: ...

    def trace(self, events: list[dict[str, Any]] | None) -> None: ...

    def sample(self, text: str) -> None: ...

    def end(self) -> None: ...


class SilentRecorder:
    """That of every rank but the first."""

    def begin(self, config: Config, done: int = 0, hardware: Hardware = UNKNOWN) -> None:
        pass

    def step(self, metrics: StepMetrics) -> None:
        pass

    def evaluation(self, step: int, eval_loss: float) -> None:
        pass

    def notice(self, text: str) -> None:
        pass

    def flush(self) -> None:
        pass

    def trace(self, events: list[dict[str, Any]] | None) -> None:
        pass

    def sample(self, text: str) -> None:
        pass

    def end(self) -> None:
        pass

    def close(self) -> None:
        pass


class Recorder:
    """Writes the run directory and prints. `notices` go to the banner: what `config` does not show."""

    def __init__(self, notices: Sequence[str] = ()) -> None:
        self.notices = list(notices)
        self.progress: Progress = Quiet()  # before there are steps

    def begin(self, config: Config, done: int = 0, hardware: Hardware = UNKNOWN) -> None:
        """Starts the files, or goes on with them after `done` steps, and prints the banner. Raises
        ConfigError if `run.dir` cannot be used, as does every later call that cannot write.
        """
        assert config.run.dir is not None and config.train.global_batch is not None
        self.config, self.directory = config, Path(config.run.dir)
        self.tokens_a_step = config.train.global_batch * config.model.seq_len
        self.flops_a_token, self.peak = flops_per_token(config.model), hardware.peak
        if config.run.resume != "no" and (self.directory / METRICS).exists():
            self._continue_files(done)
        else:
            self._start_files()
        say(banner(config, [*self.notices, *hardware.notes], hardware.text))
        self.progress = make_progress(config.run.progress, config.train.steps, done=done)
        self.started = time.perf_counter()

    def step(self, metrics: StepMetrics) -> None:
        """One line of metrics.jsonl and one of progress."""
        speed = self.tokens_a_step / metrics.seconds if metrics.seconds > 0 else None
        mfu = speed * self.flops_a_token / self.peak if speed and self.peak else None
        derived = {"tokens_per_second": speed, "mfu": mfu}
        self._write(metrics._asdict() | derived)
        self.progress.step(step_line(metrics, self.config.train.steps, speed))

    def evaluation(self, step: int, eval_loss: float) -> None:
        """A validation: a line of its own, that has no key `loss`."""
        self._write({"step": step, "eval_loss": eval_loss})
        steps = self.config.train.steps
        self.progress.note(f"{step:>{len(str(steps))}}/{steps}  held-out loss {eval_loss:.4f} nats per token")

    def notice(self, text: str) -> None:
        """A line for the user between two steps."""
        self.progress.note(text)

    def flush(self) -> None:
        """The lines so far are on the disk: no checkpoint is there without those before it."""
        with _writing(self.directory / METRICS) as path:
            flush(path)

    def trace(self, events: list[dict[str, Any]] | None) -> None:
        """What all ranks have noted of their work."""
        assert events is not None
        with _writing(self.directory / TRACE) as path:
            write_text(path, trace_text(events))

    def sample(self, text: str) -> None:
        """Text that the trained model has written."""
        self.progress.end()
        with _writing(self.directory / "samples.txt") as path:
            path.write_text(text + "\n", encoding="utf-8")
        say(f"\nsample\n{_shown(text)}\n")

    def end(self) -> None:
        """The last line."""
        self.progress.end()
        minutes, seconds = divmod(round(time.perf_counter() - self.started), 60)
        say(f"done in {minutes}:{seconds:02}, see {self.directory}")

    def close(self) -> None:
        """Whichever way the run ends: what is printed from now on starts a line of its own."""
        self.progress.end()

    def _start_files(self) -> None:
        """metrics.jsonl first, which no two runs can make; without config.toml it does not stay."""
        metrics = self.directory / METRICS
        try:
            with _writing(metrics):
                self.directory.mkdir(parents=True, exist_ok=True)
                metrics.touch(exist_ok=False)
        except FileExistsError as error:
            problem = Problem(f"{self.directory} holds a run already", "run.dir", "choose another run.dir")
            raise ConfigError([problem]) from error
        try:
            self._write_config()
        except ConfigError:
            metrics.unlink(missing_ok=True)
            raise

    def _continue_files(self, done: int) -> None:
        with _writing(self.directory / METRICS):
            cut_metrics(self.directory, done)
        self._write_config()

    def _write_config(self) -> None:
        with _writing(self.directory / "config.toml") as path:
            write_text(path, to_toml(repeatable(self.config)))

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(_valid(entry), allow_nan=False) + "\n"
        with _writing(self.directory / METRICS) as path, path.open("a", encoding="utf-8") as metrics:
            metrics.write(line)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """What cannot be written there is explained to the user; a name that is taken is not: FileExistsError."""
    try:
        yield path
    except FileExistsError:
        raise
    except OSError as error:
        what = f"cannot write {path}: {error.strerror}"
        remedy = "free space there or check its permissions, or choose another run.dir"
        raise ConfigError([Problem(what, "run.dir", remedy)]) from error


def step_line(metrics: StepMetrics, steps: int, speed: float | None) -> str:
    """`  12/1000  loss 4.1234  norm  1.234  lr 3.00e-03   12,345 tok/s`"""
    count = f"{metrics.step:>{len(str(steps))}}/{steps}"
    shown_speed = "" if speed is None else f"  {speed:>9,.0f} tok/s"
    skipped = "  skipped: overflow" if metrics.skipped else ""
    loss = f"loss {metrics.loss:7.4f}  norm {metrics.grad_norm:8.3f}  lr {metrics.lr:.2e}"
    return f"{count}  {loss}{shown_speed}{skipped}"


def _valid(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them. Floats keep all their digits."""
    if isinstance(value, dict):
        return {key: _valid(entry) for key, entry in value.items()}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _shown(text: str) -> str:
    """Indented, and without what would command the terminal."""
    lines = text.split("\n")
    return "\n".join("  " + "".join(c if c.isprintable() else "\ufffd" for c in line) for line in lines)
