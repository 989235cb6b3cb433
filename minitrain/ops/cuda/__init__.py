"""The operations of the model as kernels: each has the name and the meaning of its reference in `ops`."""

from functools import partial
from types import ModuleType

from minitrain.arrays.device import Gpu
from minitrain.arrays.types import DType
from minitrain.ops.cuda import attention as flash
from minitrain.ops.cuda import cudnn, embedding, fp8, linear, loss, mlp, norm, rope
from minitrain.ops.table import Ops

KERNELS: dict[ModuleType, tuple[str, ...]] = {
    embedding: ("embedding_forward", "embedding_backward"),
    fp8: ("make_scales",),
    linear: ("linear_forward", "linear_wide", "linear_backward", "bias_backward"),
    loss: ("local_max", "exp_and_sums", "cross_entropy", "logits_backward"),
    mlp: ("swiglu_forward", "swiglu_backward", "gelu_forward", "gelu_backward"),
    norm: ("rms_norm_forward", "rms_norm_backward", "layer_norm_forward", "layer_norm_backward"),
    rope: ("rope_forward", "rope_backward"),
}
ATTENTION = {"flash": flash, "cudnn": cudnn}


class CudaOps(Ops):
    """The kernels on one device; what has none is the reference, on CuPy's arrays."""

    def __init__(self, gpu: Gpu, attention: str, head_width: int, dtype: DType) -> None:
        """`attention`: flash, cudnn, or materialised, which is the reference; auto is flash where there are
        kernels of it for heads of this width and type, else materialised. Raises ConfigError.
        """
        if attention == "auto":
            attention = "flash" if flash.supports(head_width, dtype) else "materialised"
        kernels = dict(KERNELS)
        if attention != "materialised":
            module = ATTENTION[attention]
            module.check(head_width, dtype)
            kernels[module] = ("attention_forward", "attention_backward")
        for module, names in kernels.items():
            for name in names:
                setattr(self, name, partial(getattr(module, name), gpu))
