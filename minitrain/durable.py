"""Files that are there after a power cut: what is written reaches the disk before it gets its name."""

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Hands to the disk what was written to a file, or which names a directory holds. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Gives the file this content in one step: a reader sees the old one or the new one, even after a crash.
    Raises OSError, and the old one stays.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def make_directory(path: Path) -> None:
    """Makes it and its parents where they are not there, with names that stay. Raises OSError."""
    missing = [place for place in (path, *path.parents) if not os.path.exists(place)]
    path.mkdir(parents=True, exist_ok=True)
    for place in missing:
        flush(place.parent)


def rename(source: Path, target: Path) -> None:
    """Gives a complete, flushed directory its name in one step. Raises OSError."""
    source.rename(target)
    flush(target.parent)
