"""Adagrad: a learning rate for every element, which falls as its gradients add up (Duchi et al. 2011)."""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.optimizer import Elementwise, Hyper, Moments, State


def adagrad(eps: float) -> Elementwise:
    """v, the sum of all g^2 so far:

        v <- v + g^2                        w <- w (1 - lr decay) - lr g / (sqrt(v) + eps)

    The paper's Figure 1 with a diagonal matrix and no constraints; eps, its delta, stands outside the root.
    """

    def init(param: Array) -> State:
        return {"v": np.zeros_like(param)}

    def update(w: Array, g: Array, moments: Moments, hyper: Hyper) -> None:
        v = moments["v"]
        v += np.multiply(g, g)
        denominator = np.sqrt(v)
        denominator += eps
        g /= denominator
        g *= hyper.lr
        w *= 1 - hyper.lr * hyper.decay
        w -= g

    return Elementwise(init, update, Kernel("adagrad", (eps,)))
