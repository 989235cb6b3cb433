"""Stochastic gradient descent (Robbins & Monro 1951)."""

import numpy as np

from minitrain.arrays.blocks import row_blocks
from minitrain.arrays.types import Array
from minitrain.optim.optimizer import Optimizer, State


def sgd() -> Optimizer:
    """w <- w (1 - lr decay) - lr g. No state."""

    def init(param: Array) -> State:
        return {}

    def update(
        param: Array, grad: Array, state: State, *, lr: float, decay: float, grad_scale: float, step: int
    ) -> None:
        for block in row_blocks(param.size, param.itemsize):
            w = param[block]
            w *= 1 - lr * decay
            w -= np.multiply(grad[block], lr * grad_scale)

    return Optimizer(init, update)
