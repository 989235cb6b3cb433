"""Every operation of the model by name, as one object: what the model calls, wherever its arrays are.

On the host these are the functions of this room. A GPU has kernels of the same names (ops/cuda), and for what
has none the same functions, which NumPy hands over to CuPy.
"""

from minitrain.arrays.device import Device, Gpu
from minitrain.arrays.types import DType
from minitrain.errors import ConfigError, Problem
from minitrain.ops import attention, embedding, fp8, linear, loss, mlp, norm, rope


class Ops:
    """The operations on the host. Formulas and shapes are in their files."""

    linear_forward = staticmethod(linear.linear_forward)
    linear_wide = staticmethod(linear.linear_wide)
    linear_backward = staticmethod(linear.linear_backward)
    bias_backward = staticmethod(linear.bias_backward)
    make_scales = staticmethod(fp8.make_scales)

    rms_norm_forward = staticmethod(norm.rms_norm_forward)
    rms_norm_backward = staticmethod(norm.rms_norm_backward)
    layer_norm_forward = staticmethod(norm.layer_norm_forward)
    layer_norm_backward = staticmethod(norm.layer_norm_backward)

    rope_forward = staticmethod(rope.rope_forward)
    rope_backward = staticmethod(rope.rope_backward)

    attention_forward = staticmethod(attention.attention_forward)
    attention_backward = staticmethod(attention.attention_backward)

    swiglu_forward = staticmethod(mlp.swiglu_forward)
    swiglu_backward = staticmethod(mlp.swiglu_backward)
    gelu_forward = staticmethod(mlp.gelu_forward)
    gelu_backward = staticmethod(mlp.gelu_backward)

    embedding_forward = staticmethod(embedding.embedding_forward)
    embedding_backward = staticmethod(embedding.embedding_backward)

    local_max = staticmethod(loss.local_max)
    exp_and_sums = staticmethod(loss.exp_and_sums)
    cross_entropy = staticmethod(loss.cross_entropy)
    draw = staticmethod(loss.draw)
    logits_backward = staticmethod(loss.logits_backward)


def make_ops(device: Device, attention: str, head_width: int, dtype: DType) -> Ops:
    """Those of the device, with attention as `config.attention` says, for heads of this width and type.

    Raises ConfigError where there is no such attention.
    """
    if isinstance(device, Gpu):
        from minitrain.ops.cuda import CudaOps  # it builds on this file

        return CudaOps(device, attention, head_width, dtype)
    if attention not in ("auto", "materialised"):
        what = f"attention {attention} is of GPUs, but arrays are in the host's memory"
        raise ConfigError([Problem(what, "attention", "leave attention out, or start the run on GPUs")])
    return Ops()
