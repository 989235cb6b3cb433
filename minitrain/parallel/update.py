"""The optimizer's step on what a rank holds of a unit: which rate and decay each tensor gets, and how an
optimizer that looks at whole tensors sees them though they are cut.

On a GPU an element-wise step is a kernel that reads the verdict where it is; the host does not know yet what
it says. Whoever looks at whole tensors waits for the verdict, once a step.
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
from minitrain.optim.cuda.chance import NEAREST, Chance, chance
from minitrain.optim.cuda.elementwise import Range, Updates, together
from minitrain.optim.cuda.judge import CudaVerdict
from minitrain.optim.judge import Numbers, Verdict
from minitrain.optim.optimizer import Elementwise, Hyper, Moments, Optimizer, Piece
from minitrain.optim.quantised import Quantised
from minitrain.optim.stochastic import stochastic_rounding
from minitrain.parallel.unit import Held, Unit


class Updater(NamedTuple):
    """An optimizer with what it needs to know of the run."""

    optimizer: Optimizer
    optim: OptimConfig
    grid: Grid
    seed: int
    kernels: Updates | None = None  # on a GPU

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
        if isinstance(self.optimizer, Elementwise) and self.kernels:
            assert isinstance(verdict, CudaVerdict), "on a GPU, a GPU's verdict"
            self._launch(self.optimizer, self.kernels, unit, lr, verdict)
        elif (numbers := verdict.numbers()).accepted:
            if isinstance(self.optimizer, Elementwise):
                self._apply(self.optimizer, unit, lr, numbers)
            else:
                pieces = list(self._pieces(unit, unit.grad_shard, lr, numbers.factor, numbers.updates))
                self.optimizer.update(pieces, self._total)
                for held, piece in zip(unit.held, pieces, strict=True):
                    self._put_back(unit, held, piece, numbers.updates)
            unit.publish()

    def _apply(self, optimizer: Elementwise, unit: Unit, lr: float, numbers: Numbers) -> None:
        """On the host, tensor by tensor."""
        for held in unit.held:
            hyper = self._hyper(held.spec, lr, numbers.updates)
            rounding = self._rounding(numbers.updates, held)
            apply(
                optimizer, unit.master, unit.grad_shard, unit.state, held.where, hyper, numbers.factor,
                rounding,
            )  # fmt: skip

    def _launch(
        self, optimizer: Elementwise, kernels: Updates, unit: Unit, lr: float, verdict: CudaVerdict
    ) -> None:
        """On a GPU: a launch for each run of tensors of one rate and decay. It writes the parameters too."""
        copy = None if unit.master is unit.param_shard else unit.param_shard
        ranges = [Range(held.where, *self._hyper(held.spec, lr, 0)[:2]) for held in unit.held]
        chances = [NEAREST]
        if self.optim.stochastic_rounding:  # by the place in the tensor: each is a launch of its own
            chances = [self._chance(verdict.number, held) for held in unit.held]
        else:
            ranges = together(ranges)
            chances *= len(ranges)
        for of, by in zip(ranges, chances, strict=True):
            kernels.apply(
                optimizer.kernel, unit.master, unit.grad_shard, unit.state, of, verdict.array, copy, by
            )

    def absorb(self, unit: Unit, estimate: Array, rejected: Array) -> None:
        """The state takes in an estimate of the Hessian's diagonal, for the own part of the unit; of one that
        is rejected (int64 [1], not zero) nothing.
        """
        optimizer = self.optimizer
        assert isinstance(optimizer, Elementwise)
        if self.kernels:
            self.kernels.absorb(optimizer.kernel, unit.state, estimate, rejected)
        elif not rejected[0]:
            absorb(optimizer, unit.state, estimate)

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

    def _chance(self, count: int, held: Held) -> Chance:
        return chance(self.seed, count, held.spec.name, held.spec.shape, held.box, held.run)

    def _pieces(
        self, unit: Unit, grad: Array | None, lr: float, factor: float, count: int
    ) -> Iterator[Piece]:
        computed = compute_type(unit.master.dtype)
        for held in unit.held:
            name = held.spec.name.removeprefix(unit.prefix)
            g = np.zeros_like(unit.master, dtype=computed, shape=0)
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
                assert not isinstance(stored, Quantised)
                moments[moment] = wide(stored)
        return moments

    def _put_back(self, unit: Unit, held: Held, piece: Piece, count: int) -> None:
        """Stores what was computed wide. Where it was computed in place there is nothing to store."""
        if piece.w.dtype == unit.master.dtype:
            return
        self._rounding(count, held)({"": piece.w}, held.where, {"": unit.master[held.where]})
        for name, values in piece.moments.items():
            vector = unit.state[f"{piece.name}.{name}"]
            assert not isinstance(vector, Quantised)
            store(values, vector)

    def _total(self, array: Array) -> None:
        """Over all ranks that hold pieces of a unit's tensors."""
        self.grid.shard.all_reduce(array)
        self.grid.tp.all_reduce(array)
