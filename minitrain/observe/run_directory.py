"""The directory of a run: its name, whether it may be used, and that it exists before the first step."""

import itertools
import os
from pathlib import Path
from typing import NamedTuple

from minitrain.config import Config
from minitrain.errors import ConfigError, Problem

METRICS = "metrics.jsonl"


def check_run_directory(path: str) -> list[Problem]:
    """What speaks against writing a run to `path`. Changes nothing."""
    directory = Path(path)
    if (directory / METRICS).exists():
        return [
            Problem(
                f"{path} holds a run already", "run.dir", "choose another run.dir: nothing is overwritten"
            )
        ]
    nearest = next(p for p in (directory.absolute(), *directory.absolute().parents) if p.exists())
    if not nearest.is_dir():
        return [Problem(f"{nearest} is a file, not a directory", "run.dir", "choose another run.dir")]
    if not os.access(nearest, os.W_OK | os.X_OK):
        return [Problem(f"{nearest} is not writable", "run.dir", "choose another run.dir")]
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
    try:
        if config.run.dir is not None:
            return _make(Path(config.run.dir))
        for number in itertools.count(1):
            directory = Path("runs") / f"{run_name(config)}-{number:03}"
            try:
                return _make(directory, exclusive=True)
            except FileExistsError:
                continue
        raise AssertionError("numbers do not end")
    except OSError as error:
        what = f"the run directory cannot be made: {error.strerror}: {error.filename}"
        raise ConfigError([Problem(what, "run.dir", "choose another run.dir")]) from error


def release_run_directory(made: list[Path]) -> None:
    """Takes unused directories away again; leaves one in which anything was written."""
    for directory in made:
        try:
            directory.rmdir()
        except OSError:
            return


def _make(directory: Path, exclusive: bool = False) -> Claim:
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(exist_ok=not exclusive)
    return Claim(directory, missing)
