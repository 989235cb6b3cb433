"""What the user sees of a running training: a line a step, a live bar, or nothing."""

import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from minitrain.observe.console import say

# Under these nobody watches a terminal. (Open MPI gives every rank a terminal as standard output, even when
# mpirun itself writes to a file: isatty(stdout) tells nothing.)
UNATTENDED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_JOB_ID", "CI")


class Progress(Protocol):
    """How lines appear. `step` comes once a step, `note` now and then, `end` once."""

    def step(self, line: str) -> None: ...

    def note(self, line: str) -> None: ...

    def end(self) -> None: ...


def make_progress(
    kind: str,
    steps: int,
    environ: Mapping[str, str] = os.environ,
    terminal: TextIO | None = None,
    done: int = 0,
) -> Progress:
    """The display of `run.progress`; `auto` is a bar where a person watches a terminal, else lines."""
    if kind == "auto":
        watched = _has_size(terminal or sys.stderr) and not any(name in environ for name in UNATTENDED)
        kind = "bar" if watched else "plain"
    return Bar(steps, done) if kind == "bar" else Lines() if kind == "plain" else Quiet()


def _has_size(stream: TextIO) -> bool:
    """Whether it is a terminal, and one that says how large it is: a bar fits in no other."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # no terminal; no file at all
        return False
    return columns > 0 and rows > 0


class Lines:
    """A flushed line a step."""

    def step(self, line: str) -> None:
        say(line)

    def note(self, line: str) -> None:
        say(line)

    def end(self) -> None:
        pass


class Quiet(Lines):
    """Steps go unseen, the rest is printed."""

    def step(self, line: str) -> None:
        pass


class Bar:
    """A bar on standard error, the last step's line beside it."""

    def __init__(self, steps: int, done: int = 0) -> None:
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # no thread of its own
        self._bar: Any = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True)

    def step(self, line: str) -> None:
        self._bar.set_postfix_str(line.split(maxsplit=1)[1], refresh=False)
        self._bar.update()

    def note(self, line: str) -> None:
        self._bar.clear()
        say(line)

    def end(self) -> None:
        self._bar.close()
