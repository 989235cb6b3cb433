"""The norm of either family: RMSNorm where there is a gain only, LayerNorm where there is a bias as well.

Shapes: S rows of tokens on this rank, D model width.
"""

from typing import Any

from minitrain.arrays.types import Array
from minitrain.ops.norm import layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward


def norm_forward(x_SD: Array, w: dict[str, Array], name: str, eps: float) -> tuple[Array, Any]:
    """y_SD, saved."""
    bias_D = w.get(f"{name}.bias")
    if bias_D is None:
        return rms_norm_forward(x_SD, w[name], eps)
    return layer_norm_forward(x_SD, w[name], bias_D, eps)


def norm_backward(dy_SD: Array, saved: Any, w: dict[str, Array], g: dict[str, Array], name: str) -> Array:
    """dx_SD. Under sequence parallelism the gradients of gain and bias are partial: they come from S of the
    N rows.
    """
    if f"{name}.bias" not in w:
        return rms_norm_backward(dy_SD, saved, w[name], g[name])
    return layer_norm_backward(dy_SD, saved, w[name], g[name], g[f"{name}.bias"])
