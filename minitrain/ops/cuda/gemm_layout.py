"""How the operands of a matrix product lie in memory, in the terms of a BLAS: leading dimensions, and for
stacks of matrices the distances between them. All in elements.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from minitrain.arrays.types import Array

Offsets = tuple[int, int, int]  # of a, b and out


class Layout(NamedTuple):
    """A call does `n_matrices` products, `stride_*` apart; there is a call for each of `starts`."""

    ld_a: int
    ld_b: int
    ld_out: int
    n_matrices: int
    stride_a: int
    stride_b: int
    stride_out: int
    starts: tuple[Offsets, ...]


def layout(a: Array, b: Array, out: Array) -> Layout:
    """Of out[..., :, :] = op(a[..., :, :]) op(b[..., :, :]). Strides of empty arrays mean nothing."""
    n_matrices, strides, starts = _calls(a, b, out)
    distances = leading_dimension(a), leading_dimension(b), leading_dimension(out)
    return Layout(*distances, n_matrices, *strides, starts)


def leading_dimension(x: Array) -> int:
    """How far apart the rows of the matrices x[..., :, :] are. The elements of a row are neighbours."""
    n_rows, n_columns = x.shape[-2:]
    assert n_columns == 1 or x.strides[-1] == x.itemsize, "rows are not contiguous"
    if n_rows == 1:
        return int(n_columns)  # any distance: there is no second row
    ld: int = x.strides[-2] // x.itemsize
    assert ld >= n_columns, "rows overlap"
    return ld


def _calls(a: Array, b: Array, out: Array) -> tuple[int, Offsets, tuple[Offsets, ...]]:
    """The longest run of matrices that lie at equal distances, those distances, and where its repetitions
    start.
    """
    dims: list[tuple[int, Offsets]] = []
    for n, strides in _leading_dims(a, b, out):
        if n == 1:
            continue
        if dims and dims[-1][1] == tuple(n * stride for stride in strides):
            dims[-1] = (dims[-1][0] * n, strides)  # the dimension before goes on where this one ends
        else:
            dims.append((n, strides))
    if not dims:
        return 1, (0, 0, 0), ((0, 0, 0),)
    n_matrices, strides = dims.pop(max(range(len(dims)), key=lambda d: dims[d][0]))
    starts = []
    for index in product(*(range(n) for n, _ in dims)):
        at = [sum(i * d[1][x] for i, d in zip(index, dims, strict=True)) for x in range(3)]
        starts.append((at[0], at[1], at[2]))
    return n_matrices, strides, tuple(starts)


def _leading_dims(a: Array, b: Array, out: Array) -> Iterator[tuple[int, Offsets]]:
    """Length and strides of each dimension before the matrix; stride 0 where one matrix serves all of out."""
    for dim, n in enumerate(out.shape[:-2]):
        assert {a.shape[dim], b.shape[dim]} <= {1, n}, (a.shape, b.shape, out.shape)
        at_a, at_b, at_out = (0 if x.shape[dim] == 1 else x.strides[dim] // x.itemsize for x in (a, b, out))
        yield n, (at_a, at_b, at_out)
