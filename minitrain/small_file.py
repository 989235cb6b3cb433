"""Text files that others wrote: settings, manifests, descriptions of models. They are small, or they are not
what they are taken for.
"""

import os
import stat
from pathlib import Path


def read_small(path: str | Path, most: int, follow: bool = True) -> str:
    """The text of a plain file of no more than `most` bytes. With `follow` false no link leads to it.

    Never waits, as a pipe without a writer would make it, and never takes more memory than it must. Raises
    OSError, and ValueError for another kind of file, a longer one, or one that is not UTF-8.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no plain file")
        if status.st_size > most:
            raise ValueError(f"it has {status.st_size} bytes, more than {most}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most).decode("utf-8")
    finally:
        os.close(descriptor)
