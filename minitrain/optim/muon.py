"""Muon: momentum whose singular values are all made about 1 (Jordan et al. 2024); AdamW for the rest."""

import math
from collections.abc import Sequence

import numpy as np

from minitrain.arrays.flat import Layout
from minitrain.arrays.types import Array
from minitrain.optim.adamw import adamw
from minitrain.optim.optimizer import Piece, Total, WholeTensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315
STEPS = 5


def muon(betas: tuple[float, float], eps: float) -> WholeTensor:
    """For the matrices of the layers, with Nesterov's momentum in its average form:

        m <- b1 m + (1 - b1) g
        O = orthogonalised(b1 m + (1 - b1) g)
        w <- w (1 - lr decay) - lr 0.2 sqrt(max(rows, columns)) O

    as `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`. The factor (Liu et al. 2025) gives the step the
    root mean square that AdamW's has, so that the same lr and decay serve both. Embeddings, the output matrix
    and vectors take AdamW's step, with the same betas.

    Every rank that holds some of a matrix orthogonalises the whole of it.
    """
    b1, _ = betas
    adam = adamw(betas, eps)

    def init(piece: Piece) -> dict[str, Array]:
        names = ["m"] if piece.group == "matrix" else ["m", "v"]
        return {name: np.zeros_like(piece.w) for name in names}

    def update(pieces: Sequence[Piece], total: Total) -> None:
        matrices = [piece for piece in pieces if piece.group == "matrix"]
        for piece in matrices:
            m, g = piece.moments["m"], piece.g
            m *= b1
            g *= 1 - b1
            m += g
            g += np.multiply(m, b1)
        for piece, direction in zip(matrices, _assembled(matrices, total), strict=True):
            w, hyper = piece.w, piece.hyper
            step = piece.taken(orthogonalised(direction, eps)[piece.box])
            step *= hyper.lr * 0.2 * math.sqrt(max(piece.shape))
            w *= 1 - hyper.lr * hyper.decay
            w -= step
        for piece in pieces:
            if piece.group != "matrix":
                adam.update(piece.w, piece.g, piece.moments, piece.hyper)

    return WholeTensor(init, update)


def _assembled(pieces: Sequence[Piece], total: Total) -> list[Array]:
    """The whole matrices of which `g` are pieces: zeros where other ranks hold them, added up in one go."""
    if not pieces:
        return []
    layout = Layout([(piece.name, piece.shape) for piece in pieces])
    flat = np.zeros_like(pieces[0].g, shape=layout.size)
    whole = layout.views(flat)
    for piece in pieces:
        if piece.counts:
            whole[piece.name][piece.box] = piece.boxed(piece.g)
    total(flat)
    return [whole[piece.name] for piece in pieces]


def orthogonalised(G: Array, eps: float) -> Array:
    """About U V^T, of G = U S V^T: five steps of the Newton-Schulz iteration

        X <- a X + b (X X^T) X + c (X X^T)^2 X          X = G / |G| at first

    which keeps U and V, and takes every singular value s to a s + b s^3 + c s^5. The coefficients do not make
    it converge: they lift small values fast, and leave all above 0.002 between 0.68 and 1.21. Here in the
    type of computation; on GPUs in bf16.
    """
    a, b, c = COEFFICIENTS
    X: Array = G / np.maximum(np.linalg.norm(G), eps)
    tall = X.shape[0] > X.shape[1]
    if tall:
        X = X.T  # X X^T is the smaller of the two products
    for _ in range(STEPS):
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.T if tall else X
