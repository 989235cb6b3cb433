"""Bytes held, by class."""

from collections import Counter
from collections.abc import Mapping

from minitrain.arrays.owners import owners
from minitrain.parallel.stage import Stage, StageSaved


class MemoryMeter:
    """The most that activations, kept from forward to backward, took in any step so far."""

    def __init__(self) -> None:
        self._one = 0
        self.activations = 0

    def see_activations(self, saved: Mapping[int, StageSaved]) -> None:
        """Every micro-batch keeps equally much, so one is measured, once, and the rest counted."""
        if not self._one:
            self._one = sum(owners(next(iter(saved.values())).blocks).values())
        self.activations = max(self.activations, len(saved) * self._one)

    def bytes(self, stage: Stage) -> dict[str, int]:
        """By class, on this rank."""
        total: Counter[str] = Counter()
        for unit in stage.units:
            total.update(unit.bytes())
        return {**total, "activations": self.activations, "buffers": stage.memory.pool.bytes}
