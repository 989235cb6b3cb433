"""How many operations training takes, and how many its GPUs could do: their ratio is the MFU (Chowdhery et
al. 2022, PaLM, appendix B).

    FLOPs a token = 6 N + 6 L C T

6 N: a matrix element takes a multiplication and an addition in the forward pass, and twice as many in the
backward. N counts every parameter once, but no embedding that is not the head too: its rows are looked up.

6 L C T: in each of L layers a query meets T / 2 keys on average, as it sees none that come after it, and the
two products of attention are over C channels: 2 * 2 C T / 2 forward, three times that with the backward.

What is computed again, for want of memory, does not count, nor does anything of the optimizer. These are the
numbers of llm.c for GPT-2.
"""

from collections.abc import Sequence
from typing import NamedTuple

from minitrain.config import ModelConfig
from minitrain.model.spec import model_specs


class Peak(NamedTuple):
    """TFLOP/s of products of matrices without sparsity, sums in fp32 or wider. fp32 is not TF32. None: it has
    none, or NVIDIA does not say.
    """

    fp64: float | None
    fp32: float
    half: float  # fp16, bf16
    fp8: float | None


# As CUDA names the cards: of another name, such as a part of a card (MIG), nothing is known. From NVIDIA's
# data sheets of each, halved where they tell of sparse matrices alone; of the RTX 4090 from the white paper
# of its architecture, Ada. fp64 is that of tensor cores, which cuBLAS uses.
A100 = Peak(19.5, 19.5, 312, None)
H100_SXM = Peak(67, 67, 1979 / 2, 3958 / 2)
H100_NVL = Peak(60, 60, 1671 / 2, 3341 / 2)
PEAKS = {
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA A100-PCIE-40GB": A100,
    "NVIDIA A100 80GB PCIe": A100,
    "NVIDIA H100 80GB HBM3": H100_SXM,
    "NVIDIA H100 PCIe": Peak(51, 51, 1513 / 2, 3026 / 2),
    "NVIDIA H100 NVL": H100_NVL,
    "NVIDIA H200": H100_SXM,
    "NVIDIA H200 NVL": H100_NVL,
    "NVIDIA B200": Peak(37, 75, 4500 / 2, 9000 / 2),
    "NVIDIA L40S": Peak(None, 91.6, 362, 733),
    "NVIDIA GeForce RTX 4090": Peak(None, 82.6, 165.2, 330.3),
}
OF_PRECISION = {
    "fp64": "fp64", "fp32": "fp32", "fp16": "half", "bf16": "half", "bf16-pure": "half", "fp8": "fp8",
}  # fmt: skip


def flops_per_token(model: ModelConfig) -> int:
    """Of the whole model, forward and backward."""
    counted = (spec for spec in model_specs(model) if model.tied or spec.name != "embedding")
    return 6 * sum(spec.size for spec in counted) + 6 * model.layers * model.width * model.seq_len


def peak_flops(cards: Sequence[str], precision: str) -> float | None:
    """FLOP/s of all these cards together; None if that of one is not known."""
    total = 0.0
    for card in cards:
        peak = getattr(PEAKS[card], OF_PRECISION[precision]) if card in PEAKS else None
        if peak is None:
            return None
        total += peak * 1e12
    return total
