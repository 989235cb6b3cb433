"""LAMB: Adam's direction, and a step as long as the tensor is large (You et al. 2020)."""

import math
from collections.abc import Sequence

import numpy as np

from minitrain.arrays.types import Array
from minitrain.optim.optimizer import Piece, Total, WholeTensor


def lamb(betas: tuple[float, float], eps: float) -> WholeTensor:
    """m and v as in Adam. With norms of the whole tensor, and |w| / |r| = 1 where either is zero:

        r = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w
        w <- w - lr |w| / |r| r

    Algorithm 2 of the paper with phi(x) = x: the moments are corrected for their start at zero, the decay is
    part of r, and |w| has no upper bound (some implementations have 10).
    """

    def init(piece: Piece) -> dict[str, Array]:
        return {"m": np.zeros_like(piece.w), "v": np.zeros_like(piece.w)}

    def update(pieces: Sequence[Piece], total: Total) -> None:
        squares_P2 = np.zeros_like(pieces[0].w, dtype=np.float64, shape=(len(pieces), 2))  # |w|^2 and |r|^2
        for i, piece in enumerate(pieces):
            w, r = piece.w, piece.g
            _direction(piece, betas, eps, out=r)
            if piece.counts:
                squares_P2[i, 0], squares_P2[i, 1] = np.dot(w, w), np.dot(r, r)
        total(squares_P2)
        trust_P = _ratio_of_norms(squares_P2)
        for i, piece in enumerate(pieces):
            w, r = piece.w, piece.g
            r *= (piece.hyper.lr * trust_P[i]).astype(w.dtype)
            w -= r

    return WholeTensor(init, update)


def _ratio_of_norms(squares_P2: Array) -> Array:
    """|w| / |r|, as arrays so that nobody waits for a GPU."""
    w_square, r_square = squares_P2[:, 0], squares_P2[:, 1]
    known = (w_square > 0) & (r_square > 0)
    ratio: Array = np.where(known, np.sqrt(w_square / np.where(known, r_square, 1.0)), 1.0)
    return ratio


def _direction(piece: Piece, betas: tuple[float, float], eps: float, out: Array) -> None:
    """r, in the place of the gradient."""
    (b1, b2), m, v, g = betas, piece.moments["m"], piece.moments["v"], piece.g
    m *= b1
    m += np.multiply(g, 1 - b1)
    v *= b2
    g *= g
    g *= 1 - b2
    v += g
    np.sqrt(v, out=out)
    out *= 1 / math.sqrt(1 - b2**piece.hyper.t)
    out += eps
    np.divide(m, out, out=out)
    out *= 1 / (1 - b1**piece.hyper.t)
    out += np.multiply(piece.w, piece.hyper.decay)
