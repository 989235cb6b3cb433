"""Printing: `say` for what a run tells on its way, heard or not, `show` for what the user asked to see."""

import errno
import os
import sys

from minitrain.errors import ConfigError, Problem


def say(text: str) -> None:
    """Prints and flushes. Once nobody reads standard output any more, this and all later text is lost."""
    try:
        _print(text)
    except (OSError, ValueError):  # a closed pipe, a full disk, a closed file
        _discard_output()


def show(text: str) -> None:
    """Prints what the user asked for. Raises ConfigError if it cannot be written; but a reader of a pipe may
    leave when it has seen enough.
    """
    try:
        if sys.stdout is None:  # closed before the start: `print` would print nothing
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        _print(text)
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()
        problem = Problem(f"cannot write: {error.strerror}", "standard output", "send it to another place")
        raise ConfigError([problem]) from error


def _print(text: str) -> None:
    """With a substitute for every letter that the terminal lacks."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding or "ascii"
        print(text.encode(encoding, "replace").decode(encoding), flush=True)


def _discard_output() -> None:
    """Lets standard output go nowhere, so that what is still buffered does not fail again at exit."""
    nowhere = open(os.devnull, "w")
    try:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # not a real file, or None
        sys.stdout = nowhere
