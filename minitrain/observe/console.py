"""Printing that cannot end a run: the reader may have left, the terminal may lack a letter."""

import os
import sys


def say(text: str) -> None:
    """Prints and flushes. Once nobody reads standard output any more, this and all later text is lost."""
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding or "ascii"
            print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except (OSError, ValueError):  # a closed pipe, a full disk, a closed file
        _discard_output()


def _discard_output() -> None:
    """Lets standard output go nowhere, so that what is still buffered does not fail again at exit."""
    nowhere = open(os.devnull, "w")
    try:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    except (OSError, ValueError):  # not a real file
        sys.stdout = nowhere
