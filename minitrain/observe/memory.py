"""Bytes held, by class."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from minitrain.arrays.device import is_array
from minitrain.parallel.stage import Stage, StageSaved


def array_bytes(tree: Any) -> int:
    """Bytes of all arrays in nested tuples and lists; memory that several views share counts once."""
    found: dict[int, int] = {}

    def visit(node: Any) -> None:
        if is_array(node):
            while is_array(node.base):
                node = node.base
            found[id(node)] = node.nbytes
        elif isinstance(node, tuple | list):
            for child in node:
                visit(child)

    visit(tree)
    return sum(found.values())


class MemoryMeter:
    """The most that activations, kept from forward to backward, took in any step so far."""

    def __init__(self) -> None:
        self._one = 0
        self.activations = 0

    def see_activations(self, saved: Mapping[int, StageSaved]) -> None:
        """Every micro-batch keeps equally much, so one is measured, once, and the rest counted."""
        if not self._one:
            self._one = array_bytes(next(iter(saved.values())).blocks)
        self.activations = max(self.activations, len(saved) * self._one)

    def bytes(self, stage: Stage) -> dict[str, int]:
        """By class, on this rank."""
        total: Counter[str] = Counter()
        for unit in stage.units:
            total.update(unit.bytes())
        return {**total, "activations": self.activations, "buffers": stage.memory.pool.bytes}
