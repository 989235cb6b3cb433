"""The directory of a run: its name, whether it may be used, and that it exists before the first step."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from minitrain.config import Config
from minitrain.errors import ConfigError, Problem

METRICS = "metrics.jsonl"
RUNS = "runs"  # where runs go whose directory the user does not name


def check_run_directory(path: str | None) -> list[Problem]:
    """What speaks against writing a run to `path`, or below `runs` if that is None. Changes nothing."""
    remedy = "choose another run.dir"
    if path is not None and (Path(path) / METRICS).exists():
        return [Problem(f"{path} holds a run already", "run.dir", f"{remedy}: nothing is overwritten")]
    wanted = Path(RUNS if path is None else path).absolute()
    nearest = next(place for place in (wanted, *wanted.parents) if os.path.lexists(place))
    if not nearest.is_dir():
        what = "is a link to nothing" if not nearest.exists() else "is a file, not a directory"
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
    missing = [path for path in (wanted, *wanted.parents) if not path.exists()]
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        if config.run.dir is not None:
            return Claim(wanted, missing)
        numbered = _make_numbered(wanted, run_name(config))
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


def _make_numbered(parent: Path, name: str) -> Path:
    number = 1
    while True:
        directory = parent / f"{name}-{number:03}"
        with suppress(FileExistsError):  # the parent exists: it is the number that is taken
            directory.mkdir()
            return directory
        number += 1
