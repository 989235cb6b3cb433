"""AdamW with moments of 8 bits (Dettmers et al. 2022)."""

from minitrain.arrays.types import Array
from minitrain.optim.adamw import adamw
from minitrain.optim.cuda.kernel import Kernel
from minitrain.optim.optimizer import Elementwise, State
from minitrain.optim.quantised import BLOCK, Quantised


def adam8bit(betas: tuple[float, float], eps: float) -> Elementwise:
    """AdamW's update on moments that are loaded from 8 bits before it and rounded to 8 bits after it. The
    step is taken with the new moments as computed, not as rounded.

    An element whose v rounds to zero next to a much larger one of its block, but whose m does not, takes a
    step of about lr m / eps once its gradient is zero. Therefore the paper, and bitsandbytes, keep the
    moments of embeddings in 32 bits.
    """

    def init(param: Array) -> State:
        m, v = (Quantised(param.size, signed, like=param) for signed in (True, False))
        return {"m": m, "v": v}

    kernel = Kernel("adam8bit", (*betas, eps))
    return Elementwise(init, adamw(betas, eps).update, kernel, align=BLOCK)
