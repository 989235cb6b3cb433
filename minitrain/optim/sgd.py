"""Stochastic gradient descent (Robbins & Monro 1951)."""

from minitrain.arrays.types import Array
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.optimizer import Elementwise, Hyper, Moments, State


def sgd() -> Elementwise:
    """w <- w (1 - lr decay) - lr g. No state."""

    def init(param: Array) -> State:
        return {}

    def update(w: Array, g: Array, moments: Moments, hyper: Hyper) -> None:
        w *= 1 - hyper.lr * hyper.decay
        g *= hyper.lr
        w -= g

    return Elementwise(init, update, Kernel("sgd"))
