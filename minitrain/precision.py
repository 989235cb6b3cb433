"""Which type each tensor of a run has. One row of this table is one `precision` of the configuration.

                 parameters  activations  gradients  master copies  moments   bytes a parameter with Adam
    fp64         fp64        fp64         fp64       = parameters   fp64      8 + 8 + 0 + 16 = 32
    fp32         fp32        fp32         fp32       = parameters   fp32      4 + 4 + 0 + 8  = 16
    fp16         fp16        fp16         fp16       fp32           fp32      2 + 2 + 4 + 8  = 16
    bf16         bf16        bf16         fp32       fp32           fp32      2 + 4 + 4 + 8  = 18
    bf16-pure    bf16        bf16         bf16       = parameters   bf16      2 + 2 + 0 + 4  = 8
    fp8          as bf16, and the matrices of a block multiply in 8 bits (ops/fp8.py)

Gradients are summed over micro-batches and ranks in their own type. Activations are summed over tensor
parallel ranks in theirs. Logits and losses are fp32 where activations have 16 bits, as are the statistics of
norms and softmaxes. fp16 comes with a loss scale (optim/loss_scale.py). Micikevicius et al. 2018 (fp16),
Kalamkar et al. 2019 (bf16).
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np

DType = np.dtype[np.generic]
FP64, FP32, FP16 = np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16)
BF16: DType = np.dtype(ml_dtypes.bfloat16)


class Precision(NamedTuple):
    """Where `master` is the type of the parameters, the master copy *is* the parameter."""

    param: DType
    activation: DType
    grad: DType  # and of its reduction
    master: DType  # and of the moments
    scales_loss: bool = False
    fp8: bool = False


PRECISIONS = {
    "fp64": Precision(FP64, FP64, FP64, FP64),
    "fp32": Precision(FP32, FP32, FP32, FP32),
    "fp16": Precision(FP16, FP16, FP16, FP32, scales_loss=True),
    "bf16": Precision(BF16, BF16, FP32, FP32),
    "bf16-pure": Precision(BF16, BF16, BF16, BF16),
    "fp8": Precision(BF16, BF16, FP32, FP32, fp8=True),
}
