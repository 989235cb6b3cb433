"""SAGE: parameters that matter little learn faster (Liang et al. 2022, "No Parameters Left Behind")."""

import math

import numpy as np

from minitrain.arrays.types import Array
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.optimizer import Elementwise, Hyper, Moments, State


def sage(betas: tuple[float, float], beta3: float, eps: float) -> Elementwise:
    """Adam's step times a factor made of the sensitivity |w g|, about the loss that zeroing w would cost. It
    is large where the sensitivity is small on average, or far from its average s:

        m <- b1 m + (1 - b1) g              v <- b2 v + (1 - b2) g^2
        s <- b3 s + (1 - b3) |w g|          mean = s / (1 - b3^t)
        factor = (||w g| - mean| + eps^2) / (mean + eps^2)
        w <- w - lr factor sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)
        w <- w (1 - lr decay)

    AdamW-SAGE as in the authors' code (`UnstructAwareAdamW` with bias correction), which differs from Adam's
    paper: eps is added before v is corrected for its start at zero, and the decay comes last. It differs from
    that code in one thing: there eps^2 stands in the denominator alone, and a parameter that is exactly zero,
    as output projections are at the start here, never moves. Here such a one moves as with Adam.

    At t = 1 the mean is the sensitivity itself, so nothing else moves.
    """
    b1, b2 = betas

    def init(param: Array) -> State:
        return {name: np.zeros_like(param) for name in ("m", "v", "s")}

    def update(w: Array, g: Array, moments: Moments, hyper: Hyper) -> None:
        m, v, s = moments["m"], moments["v"], moments["s"]
        sensitivity = np.multiply(w, g)
        np.abs(sensitivity, out=sensitivity)
        m *= b1
        m += np.multiply(g, 1 - b1)
        v *= b2
        g *= g
        g *= 1 - b2
        v += g
        s *= beta3
        s += np.multiply(sensitivity, 1 - beta3, out=g)
        denominator = np.sqrt(v, out=g)
        denominator += eps
        step = np.divide(m, denominator, out=denominator)
        step *= hyper.lr * math.sqrt(1 - b2**hyper.t) / (1 - b1**hyper.t)
        mean = np.divide(s, 1 - beta3**hyper.t)
        sensitivity -= mean
        factor = np.abs(sensitivity, out=sensitivity)
        factor += eps * eps
        mean += eps * eps
        factor /= mean
        step *= factor
        w -= step
        w *= 1 - hyper.lr * hyper.decay

    return Elementwise(init, update, Kernel("sage", (b1, b2, beta3, eps)))
