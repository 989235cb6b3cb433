"""What is alive: the arrays that the operations of a stage have made and somebody still holds.

Nothing is asked of the model. An array counts until it is freed, whoever held it.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from minitrain.arrays.device import is_array
from minitrain.arrays.owners import owner
from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.parallel.unit import Unit


class Visit(NamedTuple):
    """Of a block or the loss, in bytes of the arrays that are alive."""

    what: str
    before: int
    most: int


class Living:
    """A listener that remembers what operations have made, and with it the bytes of what is still held.

    To look at them is a call of all ranks: threads that have just summed an array may hold it a little longer
    than its owner, but not beyond their next call.
    """

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self._made: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()
        self._most = 0
        self.visits: list[Visit] = []

    def bytes(self) -> int:
        self._comm.all_reduce(np.zeros(1))
        return sum(array.nbytes for array in list(self._made.values()))

    def __call__(self, name: str, operands: tuple[Any, ...], result: Any) -> None:
        for array in made_of(result):
            self._made[id(owner(array))] = owner(array)
        self._most = max(self._most, self.bytes())

    @contextmanager
    def visit(self, what: str) -> Iterator[None]:
        before = self._most = self.bytes()
        yield
        self.visits.append(Visit(what, before, self._most))

    def watch(self, unit: Unit, number: int, verbs: Iterator[str]) -> None:
        """Whenever the parameters of the unit are in use, that is a visit."""
        params = unit.params

        @contextmanager
        def watched() -> Iterator[dict[str, Array]]:
            with self.visit(f"{next(verbs)} {number}"), params() as views:
                yield views

        unit.params = watched  # type: ignore[method-assign]


def made_of(result: Any) -> Iterator[Array]:
    """The arrays in what an operation returns."""
    if is_array(result):
        yield result
    elif isinstance(result, tuple | list):
        for part in result:
            yield from made_of(part)
