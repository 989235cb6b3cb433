"""The closed forms that papers print, by themselves. They are not ours: the constants differ by what a system
keeps, and every one here says what that is.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Recipe(NamedTuple):
    """Bytes a parameter: itself, its gradient, a master copy, two moments."""

    name: str
    param: int
    grad: int
    master: int
    moments: int
    source: str


RECIPES = (
    Recipe("mixed, fp16 gradients", 2, 2, 4, 8, "Rajbhandari et al. 2020, 3.1: K = 12; our fp16"),
    Recipe("mixed, fp32 gradients", 2, 4, 4, 8, "Megatron-LM's distributed optimizer; our bf16 and fp8"),
    Recipe("fp32", 4, 4, 0, 8, "no master copy; our fp32"),
    Recipe("pure bf16", 2, 2, 0, 4, "the textbook's: no master copy; our bf16-pure"),
)
TEXTBOOK = 10_000_000_000  # parameters of the textbook's table


def model_states(recipe: Recipe, psi: int, zero: int, ranks: int) -> tuple[float, float, float]:
    """Bytes of parameters, of gradients, and of what the optimizer keeps, on each of `ranks` data-parallel
    ranks: stage 1 of ZeRO cuts the last, stage 2 the second too, stage 3 all (Rajbhandari et al. 2020, 5).
    """
    whole = (recipe.param, recipe.grad, recipe.master + recipe.moments)
    first_cut = 3 - zero
    param, grad, states = (n * psi / (ranks if i >= first_cut else 1) for i, n in enumerate(whole))
    return param, grad, states


class Activations(NamedTuple):
    """Bytes of one layer and micro-batch in 16 bits."""

    case: str
    bytes: float
    formula: str


def activations(s: int, b: int, h: int, a: int, t: int) -> Sequence[Activations]:
    """Korthikanti et al. 2022, table 2: a GPT layer with dropout, s positions, b sequences, width h, a
    heads, t tensor-parallel ranks.

    34 = 11 of attention, 19 of the MLP, 4 of two LayerNorms; 5 a s / h = softmax 2, dropout's mask 1, its
    output 2. At the border of the tensor-parallel region 10 of the 34 are not cut.
    """
    one, scores = s * b * h, 5 * a * s / h
    return (
        Activations("no parallelism", one * (34 + scores), "sbh (34 + 5as/h)"),
        Activations("tensor", one * (10 + 24 / t + scores / t), "sbh (10 + 24/t + 5as/(ht))"),
        Activations("tensor, sequence", one * (34 + scores) / t, "sbh (34 + 5as/h) / t"),
        Activations("tensor, selective", one * (10 + 24 / t), "sbh (10 + 24/t)"),
        Activations("tensor, sequence, selective", one * 34 / t, "sbh 34/t"),
        Activations("full recomputation", one * 2, "sbh 2"),
    )
