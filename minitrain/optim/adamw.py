"""Adam and AdamW: bias-corrected moments of the gradient."""

import math

import numpy as np

from minitrain.arrays.types import Array
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.optimizer import Elementwise, Hyper, Moments, State


def adamw(betas: tuple[float, float], eps: float) -> Elementwise:
    """m and v, the running means of g and g^2, corrected for their start at zero:

        m <- b1 m + (1 - b1) g              v <- b2 v + (1 - b2) g^2
        w <- w (1 - lr decay) - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    With decay 0 this is Adam (Kingma & Ba 2015, Algorithm 1); the decoupled decay makes it AdamW (Loshchilov
    & Hutter 2019, Algorithm 2). Decay is in units of lr, PyTorch's convention; Loshchilov & Hutter's own is
    not. The rate lr / (1 - b1^t) goes into the denominator, which saves a pass over the vectors.
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
        if hyper.lr == 0:
            return
        rate = hyper.lr / (1 - b1**hyper.t)
        denominator = np.sqrt(v, out=g)
        denominator *= 1 / (rate * math.sqrt(1 - b2**hyper.t))
        denominator += eps / rate
        step = np.divide(m, denominator, out=denominator)
        w *= 1 - hyper.lr * hyper.decay
        w -= step

    return Elementwise(init, update, Kernel("adamw", (b1, b2, eps)))
