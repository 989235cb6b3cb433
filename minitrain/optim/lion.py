"""Lion: the sign of a momentum (Chen et al. 2023)."""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.optimizer import Elementwise, Hyper, Moments, State


def lion(betas: tuple[float, float]) -> Elementwise:
    """m remembers longer than the step, which gives the newest gradient more weight:

        w <- w (1 - lr decay) - lr sign(b1 m + (1 - b1) g)
        m <- b2 m + (1 - b2) g

    Algorithm 2 of the paper. Every element moves by lr: the rate is 3 to 10 times smaller than AdamW's, and
    the decay as much larger.
    """
    b1, b2 = betas

    def init(param: Array) -> State:
        return {"m": np.zeros_like(param)}

    def update(w: Array, g: Array, moments: Moments, hyper: Hyper) -> None:
        m = moments["m"]
        step = np.multiply(m, b1)
        step += np.multiply(g, 1 - b1)
        np.sign(step, out=step)
        step *= hyper.lr
        w *= 1 - hyper.lr * hyper.decay
        w -= step
        m *= b2
        g *= 1 - b2
        m += g

    return Elementwise(init, update, Kernel("lion", betas))
