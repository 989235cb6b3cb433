"""What the directory of a run holds, read and checked: it may be of a run that is still going on."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from minitrain.arguments import Arguments
from minitrain.config import Config
from minitrain.errors import DataError, Problem
from minitrain.observe.chrome_trace import TRACE
from minitrain.observe.run_directory import METRICS
from minitrain.report.trace import Trace, read_trace
from minitrain.resolve import ranks_wanted, resolve
from minitrain.settings import read_settings
from minitrain.validate import validate

CONFIG = "config.toml"
NO_STEP = "No step is done yet."


class Step(NamedTuple):
    """A line of metrics.jsonl that is of a step. Bytes are those of rank 0."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    skipped: bool
    mfu: float | None
    memory_bytes: dict[str, int]
    comm_bytes: dict[str, dict[str, int]]


class Evaluation(NamedTuple):
    """A line of a validation."""

    step: int
    loss: float


class RunFiles(NamedTuple):
    """All that a report is made of."""

    directory: Path
    config: Config
    steps: list[Step]
    evaluations: list[Evaluation]
    trace: Trace | None  # None: the run wrote none, has not ended, or noted no step


def read_run(directory: Path) -> RunFiles:
    """Raises DataError if this is no run's directory, or a file of it is damaged."""
    if not directory.is_dir():
        _refuse(f"{directory} is {'no directory' if directory.exists() else 'not there'}", "RUN")
    for name in (CONFIG, METRICS):
        if not (directory / name).is_file():
            _refuse(f"{directory} is not the directory of a run: it has no {name}", "RUN")
    config = _read_config(directory / CONFIG)
    steps, evaluations = _read_metrics(directory / METRICS)
    path = directory / TRACE
    trace = read_trace(path, ranks_wanted(config.parallel)) if path.is_file() else None
    return RunFiles(directory, config, steps, evaluations, trace if trace and trace.work else None)


def _read_config(path: Path) -> Config:
    """A run's config.toml is resolved. It may have been edited since, or be of another version."""
    settings = read_settings(Arguments("report", set(), config=str(path)))
    config, problems = settings.config, settings.problems
    if not problems:
        n_ranks = ranks_wanted(config.parallel)
        resolved = resolve(config, settings.given, n_ranks, None, settings.doubtful)
        config = resolved.config
        problems = resolved.problems + validate(config, n_ranks, resolved.doubtful)
    if problems:
        where = f"{path}, {problems[0].where}" if str(path) not in problems[0].where else problems[0].where
        raise DataError(problems[0].what, where, problems[0].remedy)
    return config


def _read_metrics(path: Path) -> tuple[list[Step], list[Evaluation]]:
    """A last line without an end is still being written."""
    steps, evaluations = list[Step](), list[Evaluation]()
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                    if "eval_loss" in entry:
                        evaluations.append(Evaluation(int(entry["step"]), _number(entry["eval_loss"])))
                    else:
                        steps.append(_step(entry))
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                    _refuse(f"line {number} of {path} is not of a run's metrics", str(path))
    except OSError as error:
        _refuse(f"cannot read {path}: {error.strerror}", str(path))
    return steps, evaluations


def _number(value: Any) -> float:
    """The recorder writes null for what is not finite."""
    return math.nan if value is None else float(value)


def _step(entry: dict[str, Any]) -> Step:
    return Step(
        step=int(entry["step"]),
        loss=_number(entry["loss"]),
        grad_norm=_number(entry["grad_norm"]),
        lr=float(entry["lr"]),
        tokens=int(entry["tokens"]),
        seconds=float(entry["seconds"]),
        skipped=bool(entry["skipped"]),
        mfu=None if entry["mfu"] is None else float(entry["mfu"]),
        memory_bytes={str(name): int(n) for name, n in entry["memory_bytes"].items()},
        comm_bytes={
            str(axis): {str(verb): int(n) for verb, n in verbs.items()}
            for axis, verbs in entry["comm_bytes"].items()
        },
    )


def _refuse(what: str, where: str) -> NoReturn:
    raise DataError(*Problem(what, where, "name the directory of a run, with config.toml and metrics.jsonl"))
