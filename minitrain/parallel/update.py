"""The optimizer's step on what a rank holds of a unit: which rate and decay each tensor gets, and how an
optimizer that looks at whole tensors sees them though they are cut.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minitrain.arrays.narrow import compute_type, store, wide
from minitrain.arrays.types import Array
from minitrain.comm.grid import Grid
from minitrain.config import OptimConfig
from minitrain.model.spec import ParamSpec
from minitrain.optim.apply import Rounding, absorb, apply, to_nearest
from minitrain.optim.judge import Verdict
from minitrain.optim.optimizer import Elementwise, Hyper, Moments, Optimizer, Piece
from minitrain.optim.stochastic import stochastic_rounding
from minitrain.parallel.unit import Held, Unit


class Updater(NamedTuple):
    """An optimizer with what it needs to know of the run."""

    optimizer: Optimizer
    optim: OptimConfig
    grid: Grid
    seed: int

    def init(self, unit: Unit) -> None:
        """Gives the unit a state."""
        if isinstance(self.optimizer, Elementwise):
            unit.state = self.optimizer.init(unit.master)
            return
        for piece in self._pieces(unit, None, 0.0, 0.0, 0):
            for name, moment in self.optimizer.init(piece).items():
                unit.state[f"{piece.name}.{name}"] = moment.astype(unit.master.dtype, copy=False)

    def update(self, unit: Unit, lr: float, verdict: Verdict) -> None:
        """One step, in place on the own part of the unit; nothing if it is rejected. The gradient is used up.

        Collective over shard and tp if the optimizer looks at whole tensors, otherwise local.
        """
        numbers = verdict.numbers()
        if not numbers.accepted:
            return
        if isinstance(self.optimizer, Elementwise):
            for held in unit.held:
                hyper = self._hyper(held.spec, lr, numbers.updates)
                rounding = self._rounding(numbers.updates, held)
                apply(
                    self.optimizer, unit.master, unit.grad_shard, unit.state, held.where, hyper,
                    numbers.factor, rounding,
                )  # fmt: skip
        else:
            pieces = list(self._pieces(unit, unit.grad_shard, lr, numbers.factor, numbers.updates))
            self.optimizer.update(pieces, self._total)
            for held, piece in zip(unit.held, pieces, strict=True):
                self._put_back(unit, held, piece, numbers.updates)
        unit.publish()

    def absorb(self, unit: Unit, estimate: Array) -> None:
        """The state takes in an estimate of the Hessian's diagonal, for the own part of the unit."""
        assert isinstance(self.optimizer, Elementwise)
        absorb(self.optimizer, unit.state, estimate)

    def _hyper(self, spec: ParamSpec, lr: float, count: int) -> Hyper:
        optim = self.optim
        assert optim.weight_decay is not None
        groups = {"vector": optim.lr_vectors, "embedding": optim.lr_embeddings, "head": optim.lr_head}
        decays = spec.decays or optim.decay_vectors
        return Hyper(lr * groups.get(spec.group, 1.0), optim.weight_decay if decays else 0.0, count)

    def _rounding(self, count: int, held: Held) -> Rounding:
        if not self.optim.stochastic_rounding:
            return to_nearest
        return stochastic_rounding(self.seed, count, held.spec.name, held.places)

    def _pieces(
        self, unit: Unit, grad: Array | None, lr: float, factor: float, count: int
    ) -> Iterator[Piece]:
        computed = compute_type(unit.master.dtype)
        for held in unit.held:
            name = held.spec.name.removeprefix(unit.prefix)
            g = np.zeros(0, computed)
            if grad is not None:
                g = np.multiply(grad[held.where], factor, dtype=computed)
            yield Piece(
                name, held.spec.group, held.spec.shape, held.box, held.run, held.speaks,
                wide(unit.master[held.where]), g, self._moments(unit, name),
                self._hyper(held.spec, lr, count),
            )  # fmt: skip

    def _moments(self, unit: Unit, name: str) -> Moments:
        moments = {}
        for key, stored in unit.state.items():
            tensor, _, moment = key.rpartition(".")
            if tensor == name:
                assert isinstance(stored, np.ndarray)
                moments[moment] = wide(stored)
        return moments

    def _put_back(self, unit: Unit, held: Held, piece: Piece, count: int) -> None:
        """Stores what was computed wide. Where it was computed in place there is nothing to store."""
        if piece.w.dtype == unit.master.dtype:
            return
        self._rounding(count, held)({"": piece.w}, held.where, {"": unit.master[held.where]})
        for name, values in piece.moments.items():
            vector = unit.state[f"{piece.name}.{name}"]
            assert isinstance(vector, np.ndarray)
            store(values, vector)

    def _total(self, array: Array) -> None:
        """Over all ranks that hold pieces of a unit's tensors."""
        self.grid.shard.all_reduce(array)
        self.grid.tp.all_reduce(array)
