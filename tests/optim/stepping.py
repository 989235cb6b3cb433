"""Optimizers on small tensors: in one process, or cut into pieces over ranks on threads."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.threads import ThreadComm, run_threads
from minitrain.optim.optimizer import Elementwise, Hyper, Optimizer, Piece, State, Total, WholeTensor
from minitrain.optim.quantised import Quantised

Tensors = dict[str, Array]


class Cut(NamedTuple):
    """What a rank holds of a tensor: see `Piece`."""

    box: tuple[slice, ...]
    run: slice
    counts: bool = True

    def of(self, tensor: Array) -> Array:
        return tensor[self.box].reshape(-1)[self.run]


class Rank:
    """An optimizer, and the pieces of all tensors that one rank holds: without `cuts`, all of them."""

    def __init__(
        self, optimizer: Optimizer, start: Tensors, cuts: dict[str, Cut] | None = None, total: Total = id
    ) -> None:
        self.optimizer, self.total = optimizer, total
        self.shapes = {name: tensor.shape for name, tensor in start.items()}
        self.cuts = cuts or {
            name: Cut(tuple(slice(0, n) for n in tensor.shape), slice(0, tensor.size))
            for name, tensor in start.items()
        }
        self.w = {name: self.cuts[name].of(tensor).copy() for name, tensor in start.items()}
        self.state: dict[str, Any] = {
            name: optimizer.init(w if isinstance(optimizer, Elementwise) else self._piece(name))
            for name, w in self.w.items()
        }

    def _piece(
        self, name: str, g: Array | None = None, moments: Any = None, hyper: Hyper | None = None
    ) -> Piece:
        group = "matrix" if len(self.shapes[name]) == 2 else "vector"
        return Piece(name, group, self.shapes[name], *self.cuts[name], self.w[name], g, moments, hyper)  # type: ignore[arg-type]

    def step(self, grads: Tensors, hyper: Hyper) -> None:
        g = {name: self.cuts[name].of(grad).copy() for name, grad in grads.items()}
        if isinstance(self.optimizer, WholeTensor):
            pieces = [self._piece(name, g[name], self.state[name], hyper) for name in self.w]
            self.optimizer.update(pieces, self.total)
        else:
            for name, w in self.w.items():
                step_vector(self.optimizer, w, g[name], self.state[name], hyper)

    def absorb(self, estimates: Tensors) -> None:
        assert isinstance(self.optimizer, Elementwise) and self.optimizer.absorb
        for name, estimate in estimates.items():
            self.optimizer.absorb(self.state[name], self.cuts[name].of(estimate).copy())


def step_vector(optimizer: Elementwise, w: Array, g: Array, state: State, hyper: Hyper) -> None:
    """One step, the vector being one block."""
    block = slice(0, w.size)
    moments: Any = {name: v.load(block) if isinstance(v, Quantised) else v for name, v in state.items()}
    optimizer.update(w, g, moments, hyper)
    for name, vector in state.items():
        if isinstance(vector, Quantised):
            vector.save(block, moments[name])


def train(
    optimizer: Optimizer,
    start: Tensors,
    gradients: Sequence[Tensors],
    lr: float,
    decay: float = 0.0,
    curvatures: Sequence[Tensors] = (),
) -> Tensors:
    """The tensors after a step with each of the gradients, each after absorbing the curvature, if any."""
    rank = Rank(optimizer, start)
    for t, g in enumerate(gradients, 1):
        if curvatures:
            rank.absorb(curvatures[t - 1])
        rank.step(g, Hyper(lr, decay, t))
    return {name: w.reshape(start[name].shape) for name, w in rank.w.items()}


def minimise(
    optimizer: Optimizer,
    start: Array,
    gradient: Callable[[Array], Array],
    curvature: Callable[[Array], Array],
    steps: int,
    lr: Callable[[int], float],
) -> Array:
    """Where the optimizer is after so many steps; lr as a function of the step, from 0."""
    rank = Rank(optimizer, {"w": start})
    w = rank.w["w"].reshape(start.shape)
    for t in range(steps):
        if isinstance(optimizer, Elementwise) and optimizer.absorb:
            rank.absorb({"w": curvature(w)})
        rank.step({"w": gradient(w)}, Hyper(lr(t), 0.0, t + 1))
    return w


def train_cut(
    optimizer: Optimizer,
    start: Tensors,
    gradients: Sequence[Tensors],
    lr: float,
    decay: float,
    cuts: Sequence[dict[str, Cut]],
) -> tuple[Tensors, float]:
    """`train` with the tensors cut over len(cuts) ranks and put together again at the end, and the number of
    totals in a step.
    """

    def rank_main(world: ThreadComm) -> tuple[Tensors, int]:
        totals = 0

        def total(array: Array) -> None:
            nonlocal totals
            totals += 1
            world.all_reduce(array)

        rank = Rank(optimizer, start, cuts[world.rank], total)
        for t, g in enumerate(gradients, 1):
            rank.step(g, Hyper(lr, decay, t))
        return rank.w, totals

    results = run_threads(len(cuts), rank_main, limit=60)
    end = {name: np.full_like(tensor, np.nan) for name, tensor in start.items()}
    for held, (w, _) in zip(cuts, results, strict=True):
        for name, tensor in end.items():
            box = tensor[held[name].box].copy()
            box.reshape(-1)[held[name].run] = w[name]
            tensor[held[name].box] = box
    return end, results[0][1] / len(gradients)
