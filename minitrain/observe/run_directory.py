"""The directory of a run: its name, whether it may be used, and that it exists before the first step."""

import fcntl
import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from minitrain.config import Config
from minitrain.durable import flush, make_directory
from minitrain.errors import ConfigError, Problem

METRICS = "metrics.jsonl"
CUT_METRICS = "metrics.cut.jsonl"  # what was after a checkpoint that a run went on from
CHECKPOINTS = "checkpoints"  # what lies in it: checkpoint/catalogue.py
LOCK = ".lock"
JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
RUNS = "runs"  # where runs go whose directory the user does not name


def check_run_directory(path: str | None, goes_on: bool = False) -> list[Problem]:
    """What speaks against writing a run to `path`, or below `runs` if that is None. Changes nothing.

    `goes_on`: it may hold a run, which is continued.
    """
    remedy = "choose another run.dir"
    if path is not None:
        checkpoints = Path(path, CHECKPOINTS)
        if not goes_on and (os.path.lexists(Path(path, METRICS)) or os.path.lexists(checkpoints)):
            remedy = "choose another run.dir, or go on with --run.resume auto: nothing is overwritten"
            return [Problem(f"{path} holds a run already", "run.dir", remedy)]
        if os.path.lexists(checkpoints) and not os.path.isdir(checkpoints):
            return [Problem(f"{checkpoints} is no directory", "run.dir", remedy)]
    wanted = Path(RUNS if path is None else path).absolute()
    nearest = next(place for place in (wanted, *wanted.parents) if os.path.lexists(place))
    if not os.path.isdir(nearest):
        what = "is a link to nothing" if not os.path.exists(nearest) else "is a file, not a directory"
        return [Problem(f"{nearest} {what}", "run.dir", remedy)]
    if not os.access(nearest, os.W_OK | os.X_OK):
        return [Problem(f"{nearest} is not writable", "run.dir", remedy)]
    return []


def run_name(config: Config) -> str:
    """What a run is called if the user does not say."""
    model = config.model
    return f"{model.arch}-{model.layers}x{model.width}"


class Claim(NamedTuple):
    """A directory for a run, and those that had to be made for it, innermost first."""

    directory: Path
    made: list[Path]


def claim_run_directory(config: Config) -> Claim:
    """Makes `run.dir`, or else the first `runs/NAME-001`, -002 ... that is free, which no other run gets."""
    wanted = Path(RUNS if config.run.dir is None else config.run.dir)
    missing = [path for path in (wanted, *wanted.parents) if not os.path.exists(path)]
    try:
        make_directory(wanted)
        if config.run.dir is not None:
            return Claim(wanted, missing)
        numbered = _make_numbered(wanted, run_name(config))
        flush(wanted)
        return Claim(numbered, [numbered, *missing])
    except OSError as error:
        release_run_directory(missing)
        what = f"the run directory cannot be made: {error.strerror}: {error.filename}"
        raise ConfigError([Problem(what, "run.dir", "choose another run.dir")]) from error


def release_run_directory(made: list[Path]) -> None:
    """Takes unused directories away again; leaves one in which anything was written."""
    for directory in made:
        with suppress(OSError):
            directory.rmdir()


def cut_metrics(directory: Path, step: int) -> None:
    """Takes what came after `step` out of metrics.jsonl, and adds it to metrics.cut.jsonl. Raises OSError."""
    metrics, partial = directory / METRICS, directory / f"{METRICS}.partial"
    with (
        metrics.open("rb") as lines,
        partial.open("wb") as kept,
        (directory / CUT_METRICS).open("ab") as cut,
    ):
        for line in lines:
            (kept if line.endswith(b"\n") and _step_of(line) <= step else cut).write(line)
        for file in (kept, cut):
            file.flush()
            os.fsync(file.fileno())
    partial.replace(metrics)
    flush(directory)


def _step_of(line: bytes) -> float:
    """Infinity for what a crash left half written."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Meanwhile no other job gets the directory, as long as this process lives. Raises ConfigError."""
    path = directory / LOCK
    try:
        file = _lock(path)
    except BlockingIOError:
        holder = ""
        with suppress(OSError):
            holder = path.read_text(encoding="utf-8", errors="replace")[:200].strip()
        what = f"another job writes to {directory}: {holder or 'unknown'}"
        raise ConfigError([Problem(what, "run.dir", "wait for its end, or choose another run.dir")]) from None
    except OSError as error:
        what = f"cannot lock {path}: {error.strerror}"
        remedy = "check permissions there, or choose another run.dir"
        raise ConfigError([Problem(what, "run.dir", remedy)]) from error
    job = next((f", job {os.environ[name]}" for name in JOB_IDS if name in os.environ), "")
    try:
        with suppress(OSError):  # a full disk: the lock holds, without a name
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}{job}\n")
            file.flush()
        yield
    finally:
        with suppress(OSError):
            if _is_at(path, file):
                path.unlink()
        with suppress(OSError):
            file.close()


def _lock(path: Path) -> IO[str]:
    """Raises BlockingIOError if another process has it, and other OSErrors."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):
                return file
        except OSError:
            file.close()
            raise
        file.close()  # the job that had it has ended, and its file with it


def _is_at(path: Path, file: IO[str]) -> bool:
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))


def _make_numbered(parent: Path, name: str) -> Path:
    number = 1
    while True:
        directory = parent / f"{name}-{number:03}"
        with suppress(FileExistsError):  # the parent exists: it is the number that is taken
            directory.mkdir()
            return directory
        number += 1
