"""Is a hand-written gradient right? It is compared with directional derivatives of the forward, in fp64."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from minitrain.arrays.types import Array

OP = 1e-9  # largest allowed error of one operation
COMPOSITE = 1e-8  # of a block, a stage, a whole loss

STEP = 1e-2
COMPOSITE_STEP = 1e-3  # several norms and softmaxes in a row have larger high derivatives

Scalar = Callable[[Sequence[Array]], float]


def check_directional(
    f: Scalar,
    x: Sequence[Array],
    dx: Sequence[Array],
    tolerance: float = OP,
    seed: int = 0,
    step: float = STEP,
) -> None:
    """Asserts that the arrays `dx` are the gradient of the scalar function `f` at the fp64 arrays `x`.

    `f` is called with a list like `x`, of fresh arrays that it may overwrite.
    """
    error = gradient_error(f, x, dx, seed, step)
    assert error <= tolerance, f"gradient error {error:.2e} above {tolerance:.0e}"


def gradient_error(
    f: Scalar, x: Sequence[Array], dx: Sequence[Array], seed: int = 0, step: float = STEP
) -> float:
    """max over directions u, |u| = 1, of |df/du - g . u| / |g|, where g is the claimed gradient `dx` of f
    at `x`.

    Each array is tried alone, in its gradient's own direction (which shows a wrong factor) and in random
    ones (which show a wrong direction), then all together. |g| is that of the arrays tried, but at least 1e-3
    of an array's fair share of the whole: some gradients are truly zero (that of a key bias, say).
    """
    for a, d in zip(x, dx, strict=True):
        assert a.dtype == d.dtype == np.float64, "an oracle needs fp64"
        assert a.shape == d.shape
    whole = _norm(dx)
    assert whole > 0, "a gradient of zeros is equal to many wrong ones"
    rng = np.random.default_rng(seed)
    errors = []
    for tried in [*([i] for i in range(len(x))), range(len(x))]:
        g = [d if i in tried else np.zeros_like(d) for i, d in enumerate(dx)]
        floor = 1e-3 * whole / math.sqrt(len(x))
        directions = [g] if any(d.any() for d in g) else []
        for _ in range(3):
            noise = (rng.standard_normal(d.shape) for d in dx)
            directions.append([n if i in tried else np.zeros_like(n) for i, n in enumerate(noise)])
        for direction in directions:
            length = _norm(direction)
            u = [a / length for a in direction]
            claimed = sum(float(np.vdot(a, b)) for a, b in zip(g, u, strict=True))
            errors.append(abs(directional_derivative(f, x, u, step) - claimed) / max(_norm(g), floor))
    return max(errors)


def directional_derivative(f: Scalar, x: Sequence[Array], u: Sequence[Array], step: float = STEP) -> float:
    """d/dt f(x + t u) at t = 0 for |u| = 1, from central differences at steps h, h/2, h/4 (Richardson 1911).

    A central difference is wrong by c2 h^2 + c4 h^4 + c6 h^6 + ...; the combination below cancels c2 and c4
    and leaves c6 h^6 / 64. So h can be as large as 1e-2, where that is 1e-14 c6 and rounding eps |f| / h is
    1e-14 |f|. The best plain central difference (h near 1e-5) would be wrong by 1e-10: too near 1e-9.
    """

    def central(h: float) -> float:
        ahead = f([a + h * b for a, b in zip(x, u, strict=True)])
        behind = f([a - h * b for a, b in zip(x, u, strict=True)])
        return (ahead - behind) / (2 * h)

    d1, d2, d4 = central(step), central(step / 2), central(step / 4)
    e1, e2 = (4 * d2 - d1) / 3, (4 * d4 - d2) / 3
    return (16 * e2 - e1) / 15


def _norm(arrays: Sequence[Array]) -> float:
    return math.sqrt(sum(float(np.vdot(a, a)) for a in arrays))
