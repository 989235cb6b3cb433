"""The norm of either family: RMSNorm where there is a gain only, LayerNorm where there is a bias as well.

Shapes: S rows of tokens on this rank, D model width.
"""

from typing import Any

from minitrain.arrays.types import Array
from minitrain.ops.table import Ops


def norm_forward(
    ops: Ops, x_SD: Array, w: dict[str, Array], name: str, eps: float, residual_SD: Array | None = None
) -> tuple[Array, Any]:
    """y_SD, saved. With a residual, x <- x + residual first, in place."""
    bias_D = w.get(f"{name}.bias")
    if bias_D is None:
        return ops.rms_norm_forward(x_SD, w[name], eps, residual_SD)
    return ops.layer_norm_forward(x_SD, w[name], bias_D, eps, residual_SD)


def norm_backward(
    ops: Ops,
    dy_SD: Array,
    saved: Any,
    w: dict[str, Array],
    g: dict[str, Array],
    name: str,
    dresidual_SD: Array | None = None,
) -> Array:
    """dx_SD, and what came back by the residual is in it. Under sequence parallelism the gradients of gain
    and bias are partial: they come from S of the N rows.
    """
    if f"{name}.bias" not in w:
        return ops.rms_norm_backward(dy_SD, saved, w[name], g[name], dresidual_SD)
    return ops.layer_norm_backward(dy_SD, saved, w[name], g[name], g[f"{name}.bias"], dresidual_SD)
