"""Bytes of the buffers that a rank borrows while a micro-batch visits its units, and keeps for the next one.

    ZeRO 3         the full parameters of a unit, while they are read
    ZeRO 2, 3      its full gradient during a backward, and the own part of it when it is complete
    run.exact      the same at every stage of ZeRO; of M micro-batches log2 M full gradients of every unit
                   wait to be added up in pairs (`arrays/tree.py`)

A buffer that is given back serves whoever next wants one of its size and type. So what counts is how many of
one size and type are lent at once: that is found by playing a step with counters in the place of arrays.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from minitrain.config import Config
from minitrain.parallel.schedule import SCHEDULES, Kind
from minitrain.plan.held import SIZES, Spot, Unit, layout_of, units_of

Key = tuple[int, int]
"""Of a buffer the bytes of an element, which tell its type, and the number of elements."""


def buffers(config: Config, spot: Spot) -> int:
    """Of the rank at `spot`, once a step has been taken."""
    at, exact = layout_of(config), config.run.exact
    if at.zero < 2 and not exact:
        return 0
    units = {unit.name: unit for unit in units_of(config, spot)}
    lent = _Lent(config, leaves=at.micro if exact else 1)
    ends = [units[name] for name in ("embedding", "positions") if name in units and spot.stage == 0]
    head = [units["head"]] if "head" in units else []
    if config.model.tied and head:
        head.append(units.get("output", units["embedding"]))
    # Without run.exact nothing is kept from visit to visit: one block and one micro-batch show all.
    n_blocks, n_micro = (units["blocks"].number, at.micro) if exact else (1, 1)
    for kind, _ in SCHEDULES[config.parallel.schedule](spot.stage, at.pp, n_micro):
        match kind:
            case Kind.FORWARD:
                for unit in [*ends, units["blocks"]]:
                    lent.visit([unit], reads=True)
            case Kind.LOSS:
                lent.visit(head, reads=True, writes=True)
            case Kind.BACKWARD:
                for number in range(n_blocks):
                    lent.visit([units["blocks"]], reads=True, writes=True, number=number)
                for unit in reversed(ends):
                    lent.visit([unit], writes=True)
    return lent.bytes


class _Lent:
    """Counts the buffers that are lent, and remembers the most of each kind."""

    def __init__(self, config: Config, leaves: int) -> None:
        self._zero, self._leaves, self._sizes = config.parallel.zero, leaves, SIZES[config.precision]
        self._now: Counter[Key] = Counter()
        self._most: Counter[Key] = Counter()
        self._waiting: defaultdict[tuple[str, int], list[int]] = defaultdict(list)

    @property
    def bytes(self) -> int:
        return sum(number * item * elements for (item, elements), number in self._most.items())

    def visit(
        self, units: Sequence[Unit], reads: bool = False, writes: bool = False, number: int = 0
    ) -> None:
        """All of the units are there at once. `number` tells equal ones apart."""
        params = [(self._sizes.param, unit.full) for unit in units] if reads and self._zero == 3 else []
        for key in params:
            self._take(key)
        if writes:
            for unit in units:
                self._take((self._sizes.grad, unit.full))
            for unit in reversed(units):
                self._add_up(unit, number)
        self._now.subtract(params)

    def _add_up(self, unit: Unit, number: int) -> None:
        """Of a complete gradient: pairs of sums of equally many, like a binary counter (`TreeSum`)."""
        full, own = (self._sizes.grad, unit.full), (self._sizes.grad, unit.own)
        waiting, count = self._waiting[unit.name, number], 1
        while waiting and waiting[-1] == count:
            waiting.pop()
            self._now[full] -= 1
            count *= 2
        if count < self._leaves:
            waiting.append(count)
            return
        self._take(own)
        self._now[own] -= 1
        self._now[full] -= 1

    def _take(self, key: Key) -> None:
        self._now[key] += 1
        self._most[key] = max(self._most[key], self._now[key])
