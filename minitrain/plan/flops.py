"""Operations of a token, forward and backward, under each convention in use. The same run has another MFU by
each of them.

A matrix element takes a multiplication and an addition forward, and twice as many backward: 6. In attention
a query meets all T keys, or half of them where those that come after it are left out: 12 L C T, or 6 L C T,
in L layers of C channels. Conventions differ in which parameters count, and in T or T / 2.
"""

from typing import NamedTuple

from minitrain.config import ModelConfig
from minitrain.model.spec import block_specs
from minitrain.observe.flops import flops_per_token
from minitrain.plan.held import n_parameters


class Convention(NamedTuple):
    name: str
    flops: int  # of a token
    formula: str
    source: str
    of_the_model: bool = True  # not of what hardware does again


def conventions(model: ModelConfig) -> list[Convention]:
    """The second is the one of `mfu` in metrics.jsonl."""
    L, C, T, V = model.layers, model.width, model.seq_len, model.vocab
    N = n_parameters(model) - (0 if model.tied else V * C)
    n = f"N = {N:,}, all parameters" + ("" if model.tied else " but the embedding, whose rows are looked up")
    assert 6 * N + 6 * L * C * T == flops_per_token(model)
    products = products_of_a_token(model)
    return [
        Convention("6N", 6 * N, n, "Kaplan et al. 2020, 2.1, who leave out all embeddings"),
        Convention("6N + 6LCT", 6 * N + 6 * L * C * T, n, "llm.c; here"),
        Convention("6N + 12LCT", 6 * N + 12 * L * C * T, n, "Chowdhery et al. 2022, appendix B; nanoGPT"),
        Convention(
            "products, causal",
            6 * products + 6 * L * C * T,
            f"6 x {products:,} elements of matrices that are multiplied by + 6LCT",
            "Megatron-LM's counter now",
        ),
        Convention(
            "products, all keys",
            6 * products + 12 * L * C * T,
            f"6 x {products:,} + 12LCT; for ffn = 4h 72 L h^2 (1 + s/(6h) + V/(12Lh))",
            "Narayanan et al. 2021, appendix, without recomputation",
        ),
        Convention(
            "the same, recomputed",
            8 * (products - V * C) + 6 * V * C + 16 * L * C * T,
            "8 and 16 in the blocks, whose forward is done twice; 96 L h^2 (1 + s/(6h) + V/(16Lh))",
            "Narayanan et al. 2021, equation 3: operations of the hardware (HFU)",
            of_the_model=False,
        ),
    ]


def products_of_a_token(model: ModelConfig) -> int:
    """Elements of all matrices that a token is multiplied by: those of the blocks, and the head's."""
    in_block = sum(spec.size for spec in block_specs(model, 0) if spec.group == "matrix")
    return model.layers * in_block + model.vocab * model.width
