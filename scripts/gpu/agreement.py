"""When two contenders that compute in bf16 have computed the same.

Weights and data are the same, and are rounded to bf16 alike. From there on each rounds in its own places. A
number rounded to bf16 is off by at most u = 2^-8 of itself, and by 0.42 u in the root mean square. The
residual stream of L layers is rounded 2 L + 2 times, one error independent of the next, and what is added to
it brings some more of them. So at its end, in two contenders, it differs by about

    e = u sqrt(2 L + 2)

of itself, and a logit, of standard deviation s, by e s. The loss of a token, log sum exp z - z_target, then
differs by sqrt(2) e s; the mean over n tokens, each with its own errors, by 1 / sqrt(n) of that; and as log
sum exp is convex, errors of either raise it by (e s)^2 / 2 at most. The first loss may differ by four times
the one plus the other:

    4 sqrt(2) e s / sqrt(n) + (e s)^2 / 2

A gradient comes through twice as many roundings, and each token's differs by e' = u sqrt(4 L + 4) of itself.
Of the norm of their mean, which errors in all directions raise, that is

    4 e' / sqrt(n) + e'^2 / 2

Later losses and norms have changed by what training did, with such gradients: they may differ by e' of that
change as well.
"""

import math
from typing import NamedTuple

from problems import STD, Problem

CHECKED_STEPS = 3
UNIT = 2.0**-8


class Bounds(NamedTuple):
    first_loss: float  # nats
    first_norm: float  # relative
    change: float  # of a later one since the first, relative


def bounds(problem: Problem, unit: float = UNIT) -> Bounds:
    model = problem.model
    e, s = unit * math.sqrt(2 * model.layers + 2), STD * math.sqrt(model.width)  # logits of normalised rows
    e_gradient, root_n = unit * math.sqrt(4 * model.layers + 4), math.sqrt(problem.tokens)
    return Bounds(
        4 * math.sqrt(2) * e * s / root_n + (e * s) ** 2 / 2,
        4 * e_gradient / root_n + e_gradient**2 / 2,
        e_gradient,
    )


def disagreement(
    ours: tuple[list[float], list[float]], theirs: tuple[list[float], list[float]], allowed: Bounds
) -> str:
    """What differs by more than that of these losses and norms; empty if nothing does."""
    for what, mine, others, first in (
        ("loss", ours[0], theirs[0], allowed.first_loss),
        ("gradient norm", ours[1], theirs[1], allowed.first_norm * ours[1][0]),
    ):
        for step, (one, other) in enumerate(zip(mine, others, strict=True), 1):
            most = first + allowed.change * abs(one - mine[0])
            if not abs(one - other) <= most:  # nor if one is not a number
                return f"{what} of step {step}: {one:.6f} and {other:.6f}, further apart than {most:.1g}"
    return ""
