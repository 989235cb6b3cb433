"""One transformer block, forward and backward, with its tensor-parallel collectives.

    y = x + attention(norm(x)) Wo
    z = y + mlp(norm(y)) Wdown

Pre-norm residual blocks, as in GPT-2 (Radford et al. 2019) and Llama (Touvron et al. 2023).

The matrices that read (q, k, v, gate, up) are column-parallel, those that write back (o, down) row-parallel
(Shoeybi et al. 2019): a rank computes whole heads and a slice of the MLP, and only the border of the region
(`tensor.py`) communicates.

Shapes: N = B*T rows of a micro-batch, S rows of it held outside the tensor-parallel region, D model width,
H query heads and G kv heads on this rank, K head width, F ffn width on this rank. Weights are [out, in].
`w` and `g` hold a block's parameters and their gradients; `f8` the scales of its matrices under fp8, else
nothing.
"""

from typing import Any, NamedTuple

from minitrain.arrays.types import Array
from minitrain.model.norm import norm_backward, norm_forward
from minitrain.model.tensor import TensorParallel
from minitrain.ops.fp8 import Fp8Linear
from minitrain.ops.table import Ops

Views = dict[str, Array]
Scales = dict[str, Fp8Linear]


class BlockContext(NamedTuple):
    """What every block of a stage needs besides its weights."""

    ops: Ops
    tp: TensorParallel
    seq_len: int  # T
    head_width: int  # K
    norm_eps: float
    rope_TC: Array | None  # rotary table (llama), or None (gpt2)
    keeps_scores: bool = True  # or computes attention's inner part once more in the backward


class AttentionSaved(NamedTuple):
    norm: Any
    a_SD: Array  # normalised input
    core: Any  # what its backward needs; or its operands q, k, v
    o_NI: Array  # attention output, I = H*K


class MlpSaved(NamedTuple):
    norm: Any
    a_SD: Array
    activation: Any
    h_NF: Array


class BlockSaved(NamedTuple):
    attention: AttentionSaved
    mlp: MlpSaved


def block_forward(x_SD: Array, w: Views, f8: Scales, c: BlockContext) -> tuple[Array, BlockSaved]:
    """Both halves, one after the other. The sum with the residual x is taken where it is next read: between
    the halves by the norm of the second.
    """
    y_SD, attention_saved = attention_sublayer_forward(x_SD, w, f8, c)
    z_SD, mlp_saved = mlp_sublayer_forward(y_SD, x_SD, w, f8, c)  # y <- y + x
    z_SD += y_SD
    return z_SD, BlockSaved(attention_saved, mlp_saved)


def block_backward(dz_SD: Array, saved: BlockSaved, w: Views, g: Views, f8: Scales, c: BlockContext) -> Array:
    """Forward was attention, then MLP, so now the other way round. Returns dx_SD, adds to `g`."""
    dy_SD = mlp_sublayer_backward(dz_SD, saved.mlp, w, g, f8, c)
    return attention_sublayer_backward(dy_SD, saved.attention, w, g, f8, c)


def attention_sublayer_forward(
    x_SD: Array, w: Views, f8: Scales, c: BlockContext
) -> tuple[Array, AttentionSaved]:
    """attention(norm(x)) Wo."""
    a_SD, norm_saved = norm_forward(c.ops, x_SD, w, "attn.norm", c.norm_eps)
    a_ND = c.tp.enter(a_SD)
    q_BTHK, k_BTGK, v_BTGK = (
        _heads(_column_forward(a_ND, n, w, f8, c), c) for n in ("attn.q", "attn.k", "attn.v")
    )
    if c.rope_TC is not None:
        q_BTHK, k_BTGK = (c.ops.rope_forward(x_BTHK, c.rope_TC) for x_BTHK in (q_BTHK, k_BTGK))
    o_BTHK, core_saved = c.ops.attention_forward(q_BTHK, k_BTGK, v_BTGK)
    o_NI = o_BTHK.reshape(a_ND.shape[0], -1)
    y_ND = c.ops.linear_forward(o_NI, w["attn.o"], fp8=f8.get("attn.o"))
    y_SD = c.tp.leave(y_ND)  # row parallel: a partial sum over this rank's heads
    if "attn.o.bias" in w:
        y_SD += w["attn.o.bias"]  # after the sum over ranks, so that it is added once
    core = core_saved if c.keeps_scores else (q_BTHK, k_BTGK, v_BTGK)
    return y_SD, AttentionSaved(norm_saved, a_SD, core, o_NI)


def attention_sublayer_backward(
    dy_SD: Array, saved: AttentionSaved, w: Views, g: Views, f8: Scales, c: BlockContext
) -> Array:
    """Forward was x + f(x), so now dx = dy + (what comes back through f)."""
    if "attn.o.bias" in w:
        c.ops.bias_backward(dy_SD, g["attn.o.bias"])
    dy_ND = c.tp.leave_backward(dy_SD)
    do_NI = c.ops.linear_backward(dy_ND, saved.o_NI, w["attn.o"], g["attn.o"], fp8=f8.get("attn.o"))
    do_BTHK = _heads(do_NI, c)
    core = saved.core if c.keeps_scores else c.ops.attention_forward(*saved.core)[1]
    dq_BTHK, dk_BTGK, dv_BTGK = c.ops.attention_backward(do_BTHK, core)
    if c.rope_TC is not None:
        dq_BTHK, dk_BTGK = (c.ops.rope_backward(dx_BTHK, c.rope_TC) for dx_BTHK in (dq_BTHK, dk_BTGK))
    a_ND = c.tp.enter(saved.a_SD)  # only S rows were kept: under sequence parallelism all are gathered again
    rows = a_ND.shape[0]
    da_ND = _column_backward(dq_BTHK.reshape(rows, -1), a_ND, "attn.q", w, g, f8, c)
    da_ND += _column_backward(dk_BTGK.reshape(rows, -1), a_ND, "attn.k", w, g, f8, c)
    da_ND += _column_backward(dv_BTGK.reshape(rows, -1), a_ND, "attn.v", w, g, f8, c)
    da_SD = c.tp.enter_backward(da_ND)  # column parallel: a partial sum over this rank's heads
    return norm_backward(c.ops, da_SD, saved.norm, w, g, "attn.norm", dresidual_SD=dy_SD)


def mlp_sublayer_forward(
    y_SD: Array, x_SD: Array, w: Views, f8: Scales, c: BlockContext
) -> tuple[Array, MlpSaved]:
    """y <- y + x, in place; then swiglu(norm(y)) Wdown (llama), gelu(norm(y) Wup) Wdown (gpt2)."""
    a_SD, norm_saved = norm_forward(c.ops, y_SD, w, "mlp.norm", c.norm_eps, residual_SD=x_SD)
    a_ND = c.tp.enter(a_SD)
    up_NF = _column_forward(a_ND, "mlp.up", w, f8, c)
    activation_saved: Any
    if "mlp.gate" in w:
        gate_NF = _column_forward(a_ND, "mlp.gate", w, f8, c)
        h_NF, activation_saved = c.ops.swiglu_forward(gate_NF, up_NF)
    else:
        h_NF, activation_saved = c.ops.gelu_forward(up_NF)
    z_ND = c.ops.linear_forward(h_NF, w["mlp.down"], fp8=f8.get("mlp.down"))
    z_SD = c.tp.leave(z_ND)  # row parallel: a partial sum over this rank's F
    if "mlp.down.bias" in w:
        z_SD += w["mlp.down.bias"]
    return z_SD, MlpSaved(norm_saved, a_SD, activation_saved, h_NF)


def mlp_sublayer_backward(
    dz_SD: Array, saved: MlpSaved, w: Views, g: Views, f8: Scales, c: BlockContext
) -> Array:
    """Forward was y + f(y), so now dy = dz + (what comes back through f)."""
    if "mlp.down.bias" in w:
        c.ops.bias_backward(dz_SD, g["mlp.down.bias"])
    dz_ND = c.tp.leave_backward(dz_SD)
    dh_NF = c.ops.linear_backward(dz_ND, saved.h_NF, w["mlp.down"], g["mlp.down"], fp8=f8.get("mlp.down"))
    a_ND = c.tp.enter(saved.a_SD)
    if "mlp.gate" in w:
        dgate_NF, dup_NF = c.ops.swiglu_backward(dh_NF, saved.activation)
        da_ND = _column_backward(dgate_NF, a_ND, "mlp.gate", w, g, f8, c)
        da_ND += _column_backward(dup_NF, a_ND, "mlp.up", w, g, f8, c)
    else:
        dup_NF = c.ops.gelu_backward(dh_NF, saved.activation)
        da_ND = _column_backward(dup_NF, a_ND, "mlp.up", w, g, f8, c)
    da_SD = c.tp.enter_backward(da_ND)
    return norm_backward(c.ops, da_SD, saved.norm, w, g, "mlp.norm", dresidual_SD=dz_SD)


def _heads(x_NI: Array, c: BlockContext) -> Array:
    """[N, heads*K] seen as [B, T, heads, K]."""
    return x_NI.reshape(-1, c.seq_len, x_NI.shape[1] // c.head_width, c.head_width)


def _column_forward(a_ND: Array, name: str, w: Views, f8: Scales, c: BlockContext) -> Array:
    """The outputs of the column-parallel matrix `name` that this rank holds."""
    return c.ops.linear_forward(a_ND, w[name], w.get(f"{name}.bias"), f8.get(name))


def _column_backward(
    dy_NO: Array, a_ND: Array, name: str, w: Views, g: Views, f8: Scales, c: BlockContext
) -> Array:
    """This rank's part of da_ND, through the outputs of the column-parallel matrix `name` that it holds."""
    return c.ops.linear_backward(dy_NO, a_ND, w[name], g[name], g.get(f"{name}.bias"), f8.get(name))
