"""The directory of a run's checkpoints: `step-00000100` and so on, each complete or absent.

A checkpoint is written under another name (`.JOB.partial`) and renamed when all of it is on the disk; it is
renamed again (`.deleting`) before it is removed. What has the right name is therefore whole, unless something
else damaged it later, and that its checksums show.
"""

import os
import re
import shutil
from pathlib import Path

from minitrain.durable import flush, write_text
from minitrain.errors import CheckpointError
from minitrain.observe.run_directory import CHECKPOINTS

MANIFEST, STATE = "manifest.json", "state.safetensors"
LATEST = "latest"  # the name of the newest, for people and scripts; nothing here relies on it
_NAME = re.compile(r"step-([0-9]{8,})")
_UNFINISHED = re.compile(r"step-[0-9]{8,}\.([0-9a-f]+\.partial|deleting)")


def checkpoint_name(step: int) -> str:
    return f"step-{step:08}"


def checkpoints_in(directory: Path) -> list[Path]:
    """Those of `directory`, the oldest first."""
    named = _named(directory)
    return sorted((path for path in named if path.is_dir() and not path.is_symlink()), key=step_of)


def _named(directory: Path) -> list[Path]:
    """What has a checkpoint's name."""
    if not os.path.isdir(directory):  # Path.is_dir raises OSError for a name that is too long
        return []
    return [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says, whatever comes after it."""
    match = _NAME.match(path.name)
    assert match
    return int(match[1])


def is_own(checkpoint: Path, run_dir: str | None) -> bool:
    """Whether it is one of that run, which goes on then; else a branch begins."""
    return run_dir is not None and checkpoint.resolve().parent == (Path(run_dir) / CHECKPOINTS).resolve()


def find_checkpoint(resume: str, run_dir: str | None) -> Path | None:
    """The directory that `run.resume` means; None if `auto` finds none. Raises CheckpointError."""
    if resume == "auto":
        assert run_dir is not None
        return _newest(Path(run_dir) / CHECKPOINTS)
    path = Path(resume)
    if os.path.lexists(path / MANIFEST):
        return path
    if newest := _newest(path / CHECKPOINTS) or _newest(path):
        return newest
    if os.path.exists(path / STATE):
        what, remedy = f"it has no {MANIFEST}", remedy_for(path)
    elif os.path.exists(path / "config.json"):
        what, remedy = f"it has no {MANIFEST}", "start from its weights with run.init_from instead"
    else:
        what, remedy = "there is no checkpoint", "give a directory such as RUN/checkpoints/step-00000100"
    raise CheckpointError(what, str(path), remedy)


def _newest(directory: Path) -> Path | None:
    """None if there is none. Raises CheckpointError rather than pass over a link or file of a newer name."""
    newest = next(reversed(checkpoints_in(directory)), None)
    last = max(_named(directory), key=step_of, default=None)
    if last and (newest is None or step_of(last) > step_of(newest)):
        remedy = "put the directory itself there, or remove that"
        if newest:
            remedy += f", or go on from an earlier one: --run.resume {newest}"
        what = "it is a link or a file, not a checkpoint's directory"
        raise CheckpointError(what, str(last), remedy)
    return newest


def remedy_for(directory: Path) -> str:
    """What to do about a damaged checkpoint: the newest before it, if there is one."""
    if _NAME.match(directory.name):
        earlier = [p for p in checkpoints_in(directory.parent) if step_of(p) < step_of(directory)]
        if earlier:
            return f"copy it again, or go on from an earlier one: --run.resume {earlier[-1]}"
    return "copy it again; there is no earlier one beside it"


def clean(directory: Path) -> None:
    """Removes what a crash left unfinished. Raises OSError."""
    if directory.is_dir():
        for path in directory.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path)


def set_aside(directory: Path, step: int) -> list[Path]:
    """Those after `step` get another name, since a run goes on from before them. Raises OSError."""
    later = [path for path in checkpoints_in(directory) if step_of(path) > step]
    moved = []
    for path in reversed(later):  # the newest first: what is left to do is then done at the next start
        number = 1
        while (target := path.with_name(f"{path.name}.superseded-{number}")).exists():
            number += 1
        moved.append(path.rename(target))
    if moved:
        _name_latest(directory)
    return moved


def keep_newest(directory: Path, n: int) -> None:
    """Removes all but the newest `n`, and says which is the newest. Raises OSError."""
    _name_latest(directory)
    for path in checkpoints_in(directory)[:-n]:
        doomed = path.with_name(path.name + ".deleting")
        path.rename(doomed)
        flush(directory)
        shutil.rmtree(doomed)


def _name_latest(directory: Path) -> None:
    present = checkpoints_in(directory)
    if present:
        write_text(directory / LATEST, present[-1].name + "\n")
    else:
        (directory / LATEST).unlink(missing_ok=True)
        flush(directory)
