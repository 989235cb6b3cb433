"""Momentum (Polyak 1964) and Nesterov's momentum in the form of Sutskever et al. (2013)."""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.optimizer import Elementwise, Hyper, Moments, State


def momentum(beta: float, classical: bool) -> Elementwise:
    """The step follows an average of the gradients:

        m <- b m + (1 - b) g                w <- w (1 - lr decay) - lr m

    Classical momentum adds g instead of (1 - b) g, as `torch.optim.SGD` does: the same steps at a learning
    rate 1 / (1 - b) times as large. m starts at zero (PyTorch's dampening starts it at the first gradient).
    """
    gain = 1.0 if classical else 1 - beta

    def update(w: Array, g: Array, moments: Moments, hyper: Hyper) -> None:
        m = moments["m"]
        m *= beta
        g *= gain
        m += g
        w *= 1 - hyper.lr * hyper.decay
        w -= np.multiply(m, hyper.lr, out=g)

    return Elementwise(_init, update, Kernel("momentum", (beta, gain)))


def nesterov(beta: float, classical: bool) -> Elementwise:
    """The step follows m as it will be if the next gradient is like this one:

        m <- b m + (1 - b) g                w <- w (1 - lr decay) - lr (b m + (1 - b) g)

    Classical: with g instead of (1 - b) g in both places, as `torch.optim.SGD(nesterov=True)`.
    """
    gain = 1.0 if classical else 1 - beta

    def update(w: Array, g: Array, moments: Moments, hyper: Hyper) -> None:
        m = moments["m"]
        m *= beta
        g *= gain
        m += g
        g += np.multiply(m, beta)
        g *= hyper.lr
        w *= 1 - hyper.lr * hyper.decay
        w -= g

    return Elementwise(_init, update, Kernel("nesterov", (beta, gain)))


def _init(param: Array) -> State:
    return {"m": np.zeros_like(param)}
