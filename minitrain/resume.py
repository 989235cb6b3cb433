"""What a run takes over from the checkpoint it goes on from, on rank 0, before anything starts.

Fields that the user names count; all others are the checkpoint's, not the defaults: a run is continued by its
directory alone. The model and the optimizer must be the checkpoint's.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from minitrain.checkpoint.catalogue import checkpoint_name, find_checkpoint, is_own
from minitrain.checkpoint.manifest import Manifest, read_manifest
from minitrain.config import Config
from minitrain.config_text import repeatable
from minitrain.errors import CheckpointError, Problem
from minitrain.fields import field_value, known_fields
from minitrain.observe.run_directory import CHECKPOINTS, METRICS
from minitrain.resolve import AXES, ranks_wanted
from minitrain.settings import Settings

OF_ONE_MACHINE = {"backend", "collectives", "gemm", "attention"}
OF_ONE_RUN = {"run.dir", "run.resume", "run.accept_new_data"} | OF_ONE_MACHINE  # never taken over
OF_ONE_LAYOUT = AXES | {"parallel.shard"}


class Start(NamedTuple):
    """A checkpoint to go on from."""

    directory: Path
    manifest: Manifest


def find_start(settings: Settings) -> Start | None:
    """The checkpoint that `run.resume` asks for; None if `auto` finds none. Raises CheckpointError."""
    run = settings.config.run
    if run.resume == "no" or (run.resume == "auto" and not run.dir):
        return None  # of `auto` without a directory `check_resume` speaks
    directory = find_checkpoint(run.resume, run.dir)
    return None if directory is None else Start(directory, read_manifest(directory))


def check_resume(config: Config, start: Start | None) -> list[Problem]:
    """What speaks against going on, once all fields are known."""
    run, steps = config.run, config.train.steps
    if run.resume == "auto" and not run.dir:
        what = "run.resume auto looks for checkpoints in run.dir, which is not given"
        return [Problem(what, "run.resume", "give run.dir, or the path of a checkpoint")]
    if start and is_own(start.directory, run.dir):
        right = checkpoint_name(start.manifest.step)
        if start.directory.resolve().name != right:
            what = f"{start.directory} is a checkpoint of step {start.manifest.step}, but not {right}"
            remedy = "rename it back, or give a new run.dir for a branch"
            return [Problem(what, "run.resume, run.dir", remedy)]
    if start and steps < start.manifest.step:
        what = f"train.steps is {steps}, but the checkpoint has taken {start.manifest.step}"
        return [Problem(what, "train.steps", f"give {start.manifest.step} or more")]
    return []


def continued(settings: Settings, start: Start, n_processes: int) -> Settings:
    """The settings, with the checkpoint's where the user named none. Raises CheckpointError."""
    saved, given = start.manifest.config, settings.given
    _check_same(saved, given, start.directory)
    on_threads = settings.config.collectives == "threads" and n_processes == 1
    same_layout = not given.keys() & AXES and (on_threads or ranks_wanted(saved.parallel) == n_processes)
    left = OF_ONE_RUN | (set() if same_layout else OF_ONE_LAYOUT)
    branches = settings.config.run.dir and not is_own(start.directory, settings.config.run.dir)
    if branches and isinstance(saved.run.export_hf, str):
        left |= {"run.export_hf"}  # a place for one run's weights
    taken = known_fields().keys() - given.keys() - left
    config = settings.config
    for name in taken:
        config = _with(config, name, field_value(saved, name))
    run = replace(config.run, resume=str(start.directory), dir=config.run.dir or _run_of(start.directory))
    return replace(settings, config=replace(config, run=run))


def changes(config: Config, start: Start) -> list[str]:
    """For the banner: where the run goes on from, and what is not as it was."""
    saved, step, config = start.manifest.config, start.manifest.step, repeatable(config)
    notices = [f"goes on from step {step}: {start.directory}"]
    for name in known_fields():
        was, now = field_value(saved, name), field_value(config, name)
        if was != now and name not in OF_ONE_RUN:
            notices.append(f"{name} is {_shown(now)}, was {_shown(was)} up to step {step}")
    return notices


def _shown(value: Any) -> str:
    """As one would type it."""
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _check_same(saved: Config, given: dict[str, Any], directory: Path) -> None:
    problems = []
    for name, value in given.items():
        if (name.startswith("model.") or name == "optim.name") and value != field_value(saved, name):
            what = f"{name} is {value}, but {field_value(saved, name)} in the checkpoint"
            remedy = "leave it out, or start from the weights alone with run.init_from"
            problems.append(Problem(what, str(directory), remedy))
    if problems:
        raise CheckpointError.everywhere(problems, CheckpointError.exit_code)


def _run_of(directory: Path) -> str | None:
    """The run directory that a checkpoint lies in."""
    run = directory.absolute().parent.parent
    inside = directory.absolute().parent.name == CHECKPOINTS and os.path.exists(run / METRICS)
    return str(run) if inside else None


def _with(config: Config, name: str, value: Any) -> Config:
    section, _, field = name.rpartition(".")
    if not section:
        return replace(config, **{field: value})
    return replace(config, **{section: replace(getattr(config, section), **{field: value})})
