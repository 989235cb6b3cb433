"""Sophia: momentum over an estimate of the Hessian's diagonal, clipped (Liu et al. 2023)."""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.optimizer import Curvature, Elementwise, Hyper, Moments, State


def sophia(betas: tuple[float, float], eps: float, rho: float, curvature: Curvature) -> Elementwise:
    """h, the running mean of the estimates, one in every few steps. Where it is small or negative the clipped
    step is the sign of m:

        h <- b2 h + (1 - b2) estimate       (only when there is one)
        m <- b1 m + (1 - b1) g
        w <- w (1 - lr decay) - lr clip(m / max(rho h, eps), -1, 1)

    Algorithm 3 of the paper, whose gamma is rho here. Sophia-G estimates h by Gauss-Newton-Bartlett, Sophia-H
    by Hutchinson. The authors' code for Sophia-G divides by rho B h' + 1e-15, with h' the mean of squared
    gradients of B samples; the paper's estimate has this B in it, so both are the same but for eps.
    """
    b1, b2 = betas

    def init(param: Array) -> State:
        return {"m": np.zeros_like(param), "h": np.zeros_like(param)}

    def update(w: Array, g: Array, moments: Moments, hyper: Hyper) -> None:
        m, h = moments["m"], moments["h"]
        m *= b1
        g *= 1 - b1
        m += g
        denominator = np.multiply(h, rho, out=g)
        np.maximum(denominator, eps, out=denominator)
        step = np.divide(m, denominator, out=denominator)
        np.clip(step, -1, 1, out=step)
        step *= hyper.lr
        w *= 1 - hyper.lr * hyper.decay
        w -= step

    def absorb(moments: Moments, estimate: Array) -> None:
        h = moments["h"]
        h *= b2
        estimate *= 1 - b2
        h += estimate

    kernel = Kernel("sophia", (b1, b2, eps, rho))
    return Elementwise(init, update, kernel, curvature=curvature, absorb=absorb)
