"""RMSProp: the gradient over its running root mean square (Tieleman & Hinton 2012, lecture 6.5)."""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.optimizer import Elementwise, Hyper, Moments, State


def rmsprop(beta: float, eps: float) -> Elementwise:
    """v, the running mean of g^2, not corrected for its start at zero, so that the first steps are large:

        v <- b v + (1 - b) g^2              w <- w (1 - lr decay) - lr g / (sqrt(v) + eps)

    The lecture's rule, without momentum and not centred; eps outside the root, as in PyTorch.
    """

    def init(param: Array) -> State:
        return {"v": np.zeros_like(param)}

    def update(w: Array, g: Array, moments: Moments, hyper: Hyper) -> None:
        v = moments["v"]
        v *= beta
        square = np.multiply(g, g)
        square *= 1 - beta
        v += square
        denominator = np.sqrt(v, out=square)
        denominator += eps
        g /= denominator
        g *= hyper.lr
        w *= 1 - hyper.lr * hyper.decay
        w -= g

    return Elementwise(init, update, Kernel("rmsprop", (beta, eps)))
