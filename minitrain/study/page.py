"""What a lecture is made of: claims, steps, what every rank holds, checks, and bytes beside their formula.

A lecture is a function of a page and a communicator that every rank runs. All ranks make the same calls of
the page, each with what it holds itself; that is gathered, and rank 0 writes it down, as screens of text.
What is checked is checked on every rank, and a check that fails ends the lecture with an error.
"""

import json
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.comm.ranks import grouped, name_ranks
from minitrain.comm.traced import Event, traced
from minitrain.errors import InternalError
from minitrain.study.hopping import hopping
from minitrain.tables import table

WIDTH = 100


class Page:
    """The screens of a lecture so far, on rank 0 of `comm`; on the others they stay empty."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self.screens: list[str] = []

    def claim(self, title: str, text: str) -> None:
        """Begins the lecture: what is to be shown, in a sentence or two."""
        self._write(f"{title}, on {self._comm.size} ranks\n\n{textwrap.fill(text, WIDTH)}", new_screen=True)

    def loosely(self, common: str, exactly: str) -> None:
        """A statement that one often hears, and what is not quite so about it."""
        self._write(textwrap.fill(f'Loosely one says "{common}". {exactly}', WIDTH))

    def step(self, title: str) -> None:
        """Begins a screen."""
        self._write(f"-- {title} ".ljust(WIDTH, "-"), new_screen=True)

    def say(self, text: str) -> None:
        self._write(textwrap.fill(text, WIDTH))

    def ranks(self, **cells: Array | str) -> None:
        """A row for each rank: what it holds by name, and words. Ranks that hold the same share a row."""
        mine = [cell if isinstance(cell, str) else digits(cell) for cell in cells.values()]
        groups = sorted(grouped(dict(enumerate(gather(self._comm, mine)))))
        columns = zip(*(json.loads(text) for _, text in groups), strict=True)  # of the groups' cells
        texts = zip(*(_of_one_width(column) for column in columns), strict=True)
        rows = [["", *(name.replace("_", " ") for name in cells)]]
        for (ranks, _), of_group in zip(groups, texts, strict=True):
            rows += _lines([name_ranks(ranks), *of_group])
        self._write(table(rows, left=len(rows[0])))

    def whole(self, **arrays: Array) -> None:
        """Arrays that nobody has to hold whole, side by side."""
        rows = [[name.replace("_", " ") for name in arrays]]
        self._write(table(rows + _lines([numbers(x) for x in arrays.values()]), left=len(rows[0])))

    def table(self, rows: Sequence[Sequence[str]], left: int = 1) -> None:
        """Words and numbers that rank 0 knows."""
        self._write(table(rows, left))

    def check(self, what: str, holds: bool) -> None:
        """Writes `what`, a sentence, if it holds on every rank; otherwise raises on every rank."""
        self.require(what, holds)
        self._write(
            textwrap.fill(f"Checked: {what}.", WIDTH, subsequent_indent=9 * " "), line_of_its_kind="Checked"
        )

    def require(self, what: str, holds: bool) -> None:
        """The same for what a table says already: nothing is written."""
        failed = [rank for rank, ok in enumerate(gather(self._comm, bool(holds))) if not json.loads(ok)]
        if failed:
            where = f"study, {name_ranks(failed)}"
            error = InternalError(f"not true: {what}", where, "this is a defect")
            error.known_everywhere = True
            raise error

    def same(self, what: str, mine: Array, expected: Array) -> None:
        """A check that two arrays are equal but for rounding: sums are taken in other orders."""
        self.check(what, close(mine, expected))

    def sent(self, what: str, n_bytes: int, formula: str, value: float) -> None:
        """The bytes that a rank has sent, beside a formula, which must give the same on every rank."""
        self.check(
            f"{what}, every rank has sent {n_bytes} bytes, counted; {formula} = {value:g}", n_bytes == value
        )

    def _write(self, text: str, new_screen: bool = False, line_of_its_kind: str = "") -> None:
        """With a blank line before it, but not between two that begin with the same `line_of_its_kind`."""
        if self._comm.rank != 0:
            return
        if new_screen:
            self.screens.append(text)
            return
        last = self.screens[-1].rpartition("\n\n")[2]
        together = line_of_its_kind and last.startswith(line_of_its_kind)
        self.screens[-1] += ("\n" if together else "\n\n") + text


class Counted:
    """A communicator whose collectives are made of messages, and the bytes of these as this rank sends them.

    `verbs` are the collectives as the ledger of a run notes them.
    """

    def __init__(self, comm: Comm) -> None:
        self._messages: list[Event] = []
        self.verbs: list[Event] = []
        self.comm = traced(hopping(traced(comm, self._messages.append)), self.verbs.append)

    def take(self) -> int:
        """Bytes sent since the last `take`."""
        sent = sum(event.bytes for event in self._messages)
        self._messages.clear()
        self.verbs.clear()
        return sent


def gather(comm: Comm, value: Any) -> list[str]:
    """The value of every rank as JSON, in rank order, on every rank."""
    mine = json.dumps(value).encode()
    lengths = np.empty(comm.size, np.int64)
    comm.all_gather(np.array([len(mine)]), lengths)
    longest = int(lengths.max())
    rows = np.empty((comm.size, longest), np.uint8)
    comm.all_gather(np.frombuffer(mine.ljust(longest), np.uint8).copy(), rows)
    return [row.tobytes().decode().rstrip() for row in rows]


def close(a: Array, b: Array) -> bool:
    """Whether two arrays are equal but for rounding in fp64."""
    return a.shape == b.shape and bool(np.linalg.norm(a - b) <= 1e-12 * float(np.linalg.norm(b)))


def numbers(x: Array, decimals: int = 2) -> str:
    """The rows of a vector or a matrix as lines."""
    return _of_one_width([digits(x, decimals)])[0]


def digits(x: Array, decimals: int = 2) -> list[list[str]]:
    """The numbers of a vector or a matrix, without decimals if all are whole."""
    x = np.atleast_2d(x)
    decimals = 0 if np.array_equal(x, np.round(x)) else decimals
    return [[f"{round(float(value), decimals) + 0.0:.{decimals}f}" for value in row] for row in x]


def _of_one_width(cells: Sequence[str | list[list[str]]]) -> list[str]:
    """Texts as they are, and matrices of words as lines, in all of which a word takes as much room."""
    words = [word for cell in cells if not isinstance(cell, str) for row in cell for word in row]
    width = max(map(len, words), default=0)

    def text(cell: str | list[list[str]]) -> str:
        if isinstance(cell, str):
            return cell
        return "\n".join(" ".join(word.rjust(width) for word in row) for row in cell)

    return [text(cell) for cell in cells]


def _lines(cells: Sequence[str]) -> list[list[str]]:
    """A row of cells of several lines as rows of cells of one line."""
    columns = [cell.split("\n") for cell in cells]
    height = max(map(len, columns))
    return [[column[i] if i < len(column) else "" for column in columns] for i in range(height)]
