"""A directory for a case to be damaged in, beside one that must stay as it is; what is asked of any reader.

SANDBOX/case/…                  what is read
SANDBOX/elsewhere/canary.txt    what nobody is to touch
"""

import os
import shutil
import stat
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple, TypeVar

from fuzz.guard import guarded

from minitrain.errors import MinitrainError, render
from minitrain.failure import problems_of

T = TypeVar("T")

LONGEST = 2_500  # letters of a problem: a path of 1,000 may occur twice


class Sandbox(NamedTuple):
    """Where cases happen, one after another."""

    root: Path

    @property
    def case(self) -> Path:
        return self.root / "case"

    @property
    def elsewhere(self) -> Path:
        return self.root / "elsewhere"

    def renew(self, original: Path) -> None:
        """A fresh copy of `original` as the case."""
        for path in (self.case, self.elsewhere):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(original, self.case)
        self.elsewhere.mkdir()
        (self.elsewhere / "canary.txt").write_text("of somebody else")

    def read(self, action: Callable[[], T], codes: Collection[int], *more: Path) -> T | None:
        """What `action` returns; None after an error as it should be: with one of the exit `codes`.

        Raises AssertionError if it ends in another way, took too much memory, opened a file to be written, or
        one that is neither in the case nor in `more`, or if anything in the sandbox has changed.
        """
        before, result, error = snapshot(self.root), None, None
        with warnings.catch_warnings(), guarded() as seen:
            warnings.simplefilter("error")
            try:
                result = action()
            except MinitrainError as problem:
                error = problem
        complaints = seen.complaints(self.root, self.case, *more)
        assert not complaints, "; ".join(complaints)
        assert snapshot(self.root) == before, "reading has changed something"
        if error is not None:
            assert error.exit_code in codes, f"exit code {error.exit_code}: {error}"
            require_readable(error)
        return result


def require_readable(error: MinitrainError) -> None:
    """One line, or one for each problem after the first line; nothing in it that a terminal obeys."""
    problems = problems_of(error)
    lines = render(problems).split("\n")
    assert len(lines) == (1 if len(problems) == 1 else 1 + len(problems)), lines
    for line in lines:
        assert line.isprintable() and len(line) <= LONGEST, f"{len(line)} letters: {line[:200]!r}"


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Every entry below `root`: its kind, and of a file size, inode and the time of its last change."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, _, names in os.walk(root):
        found[directory] = ("directory",)
        for name in names:
            status = os.lstat(os.path.join(directory, name))
            kind = stat.S_IFMT(status.st_mode)
            found[os.path.join(directory, name)] = (kind, status.st_size, status.st_ino, status.st_mtime_ns)
    return found
