"""Adafactor: the second moments of a matrix from those of its rows and columns (Shazeer & Stern 2018)."""

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from minitrain.arrays.types import Array
from minitrain.optim.optimizer import Piece, Total, WholeTensor

BETA2_DECAY = 0.8
SMALLEST_RMS = 1e-3  # the paper's eps2: a tensor moves even if it is zero
CLIP = 1.0  # the paper's d

MOMENTS = {1: ("v",), 2: ("rows", "columns")}
"""Names by the number of dimensions: a vector for every axis, as long as the whole tensor is."""


def adafactor() -> WholeTensor:
    """rows and columns, the running means of g^2 along a matrix; a vector keeps v, that of g^2 itself:

        b = 1 - t^-0.8
        rows <- b rows + (1 - b) mean of g^2 over a row         columns likewise
        v = rows columns^T / mean(rows)
        u = g / sqrt(v)
        w <- w (1 - lr decay) - min(lr, 1 / sqrt(t)) max(RMS(w), 1e-3) u / max(1, RMS(u))

    Algorithms 4 and 5 of the paper, without momentum, as `torch.optim.Adafactor` computes them. This differs
    from the paper in its small numbers: where that adds 1e-30 to g^2, mean(rows) and sqrt(v) are at least the
    machine epsilon. lr is an upper bound of the relative step, 0.01 in the paper.
    """

    def init(piece: Piece) -> dict[str, Array]:
        names = MOMENTS[len(piece.shape)]
        return {name: np.zeros_like(piece.w, shape=n) for name, n in zip(names, piece.shape, strict=True)}

    def update(pieces: Sequence[Piece], total: Total) -> None:
        means = _mean_squares(pieces, total)
        squares_P2 = np.zeros_like(pieces[0].w, dtype=np.float64, shape=(len(pieces), 2))  # |w|^2 and |u|^2
        for i, piece in enumerate(pieces):
            share = piece.hyper.t**-BETA2_DECAY
            for name, mean in means[piece.name].items():
                moment = piece.moments[name]
                moment *= 1 - share
                moment += np.multiply(mean, share)
            w, u = piece.w, piece.g
            u /= _root_of_v(piece)
            if piece.counts:
                squares_P2[i, 0], squares_P2[i, 1] = np.dot(w, w), np.dot(u, u)
        total(squares_P2)
        for i, piece in enumerate(pieces):
            w, u, hyper = piece.w, piece.g, piece.hyper
            w_rms, u_rms = np.sqrt(squares_P2[i] / math.prod(piece.shape))  # arrays: nobody waits for a GPU
            length = min(hyper.lr, 1 / math.sqrt(hyper.t)) * np.maximum(SMALLEST_RMS, w_rms)
            u *= (length / np.maximum(1.0, u_rms / CLIP)).astype(u.dtype)
            w *= 1 - hyper.lr * hyper.decay
            w -= u

    return WholeTensor(init, update)


def _mean_squares(pieces: Sequence[Piece], total: Total) -> dict[str, dict[str, Array]]:
    """By names of tensor and moment: for every index of an axis, the mean of g^2 over the rest of the whole
    tensor.
    """
    sizes = [n for piece in pieces for n in piece.shape]
    flat = np.zeros_like(pieces[0].g, shape=sum(sizes))
    parts = iter(np.split(flat, list(accumulate(sizes))))
    means = {piece.name: {name: next(parts) for name in MOMENTS[len(piece.shape)]} for piece in pieces}
    for piece in pieces:
        if piece.counts:
            squares = piece.boxed(np.multiply(piece.g, piece.g))
            for axis, mean in enumerate(means[piece.name].values()):
                rest = tuple(other for other in range(len(piece.shape)) if other != axis)
                n_rest = math.prod(piece.shape[other] for other in rest)
                mean[piece.box[axis]] = squares.sum(axis=rest) / n_rest
    total(flat)
    return means


def _root_of_v(piece: Piece) -> Array:
    """For the elements of the run, at least the machine epsilon."""
    smallest = float(np.finfo(piece.w.dtype).eps)
    if len(piece.shape) == 1:
        v = piece.taken(piece.moments["v"][piece.box[0]])
    else:
        rows, columns = piece.moments["rows"], piece.moments["columns"]
        scale = 1 / np.maximum(rows.mean(), smallest)
        v = piece.taken(np.outer(rows[piece.box[0]] * scale, columns[piece.box[1]]))
    return np.sqrt(np.maximum(v, smallest * smallest))
