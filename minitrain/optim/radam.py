"""RAdam: Adam that waits with its denominator until it can be trusted (Liu et al. 2020)."""

import math

import numpy as np

from minitrain.arrays.types import Array
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.optimizer import Elementwise, Hyper, Moments, State


def radam(betas: tuple[float, float], eps: float) -> Elementwise:
    """Adam's m and v; the step depends on rho, the number of gradients of which v is worth the average:

        rho_inf = 2 / (1 - b2) - 1          rho = rho_inf - 2 t b2^t / (1 - b2^t)
        rho <= 5:   w <- w - lr / (1 - b1^t) m
        rho > 5:    w <- w - lr / (1 - b1^t) m r sqrt(1 - b2^t) / (sqrt(v) + eps)
        r^2 = (rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho)

    before which w <- w (1 - lr decay). The paper's Algorithm 2 as `torch.optim.RAdam` computes it: the bound
    is 5 where the paper has 4, and eps is added before v is corrected for its start at zero. The step is a
    plain one, of the size of the gradient, while rho is small: a warm-up where gradients are.
    """
    b1, b2 = betas

    def init(param: Array) -> State:
        return {"m": np.zeros_like(param), "v": np.zeros_like(param)}

    def update(w: Array, g: Array, moments: Moments, hyper: Hyper) -> None:
        m, v = moments["m"], moments["v"]
        m *= b1
        m += np.multiply(g, 1 - b1)
        v *= b2
        g *= g
        g *= 1 - b2
        v += g
        rate = hyper.lr / (1 - b1**hyper.t)
        factor = _rectification(b2, hyper.t)
        if factor is None:
            step = np.multiply(m, rate, out=g)
        else:
            denominator = np.sqrt(v, out=g)
            denominator += eps
            step = np.divide(m, denominator, out=denominator)
            step *= rate * factor * math.sqrt(1 - b2**hyper.t)
        w *= 1 - hyper.lr * hyper.decay
        w -= step

    return Elementwise(init, update, Kernel("radam", (b1, b2, eps)))


def _rectification(b2: float, count: int) -> float | None:
    """The paper's r; None while v is of too few gradients."""
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * count * b2**count / (1 - b2**count)
    if rho <= 5:
        return None
    return math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
