"""AdamW: Adam with decoupled weight decay (Kingma & Ba 2015, Algorithm 1; Loshchilov & Hutter 2019,
Algorithm 2).
"""

import math

import numpy as np

from minitrain.arrays.blocks import row_blocks
from minitrain.arrays.types import Array
from minitrain.optim.optimizer import Optimizer, State


def adamw(betas: tuple[float, float], eps: float) -> Optimizer:
    """Bias-corrected moments of the gradient, as PyTorch's AdamW computes them:

        m <- b1 m + (1 - b1) g              v <- b2 v + (1 - b2) g^2
        w <- w (1 - lr decay) - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    Decay is in units of lr (PyTorch's convention); Loshchilov & Hutter's own is not.
    """
    b1, b2 = betas

    def init(param: Array) -> State:
        return {"m": np.zeros_like(param), "v": np.zeros_like(param)}

    def update(
        param: Array, grad: Array, state: State, *, lr: float, decay: float, grad_scale: float, step: int
    ) -> None:
        rate = lr / (1 - b1**step)
        v_scale = 1 / math.sqrt(1 - b2**step)
        for block in row_blocks(param.size, 4 * param.itemsize):  # four vectors share the cache
            w, m, v = param[block], state["m"][block], state["v"][block]
            g = grad[block] * grad_scale
            m *= b1
            m += np.multiply(g, 1 - b1)
            v *= b2
            g *= g
            g *= 1 - b2
            v += g
            denominator = np.sqrt(v, out=g)
            denominator *= v_scale
            denominator += eps
            step_w = np.divide(m, denominator, out=denominator)
            step_w *= rate
            w *= 1 - lr * decay
            w -= step_w

    return Optimizer(init, update)
