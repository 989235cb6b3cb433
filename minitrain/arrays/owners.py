"""The memory behind arrays, of which they may be views."""

from typing import Any

from minitrain.arrays.device import is_array
from minitrain.arrays.types import Array


def owner(array: Any) -> Array:
    """The array whose memory it sees."""
    while is_array(array.base):
        array = array.base
    found: Array = array
    return found


def owners(tree: Any) -> dict[int, int]:
    """Bytes of the memory that the arrays in nested tuples and lists keep alive, by the id of its owner. A
    slice keeps the whole array, and what several views share is there once.
    """
    found: dict[int, int] = {}

    def visit(node: Any) -> None:
        if is_array(node):
            found[id(owner(node))] = owner(node).nbytes
        elif isinstance(node, tuple | list):
            for child in node:
                visit(child)

    visit(tree)
    return found
