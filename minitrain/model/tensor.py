"""The border of a tensor-parallel region: Megatron's conjugate pairs f and g, in two forms.

Inside the region a matrix is cut over the tp ranks and every rank computes with all N rows of tokens.
Outside it

  - all-reduce form (Shoeybi et al. 2019): every rank holds the same N rows;
  - sequence-parallel form (Korthikanti et al. 2022, section 4.2): every rank holds N/tp of the rows. What
    Korthikanti et al. cut along the positions of a sequence is cut here along the rows b*T+t of the whole
    micro-batch: nothing outside the region looks at two rows at once, and a run of rows is contiguous, so
    the collectives need no transposition.

                     enter (f)                        leave (g)
                     forward        backward          forward           backward
    all-reduce       identity       all-reduce        all-reduce        identity
    sequence         all-gather     reduce-scatter    reduce-scatter    all-gather

Shapes: N = B*T rows of a micro-batch, S = the rows this rank holds outside the region (N or N/tp), D model
width.
"""

from typing import NamedTuple

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm


class TensorParallel(NamedTuple):
    """The tp axis and the form of its border."""

    comm: Comm
    sequence: bool

    def rows(self, n_rows: int) -> slice:
        """Which of N rows this rank holds outside the region."""
        if not self.sequence:
            return slice(0, n_rows)
        return slice(
            n_rows * self.comm.rank // self.comm.size, n_rows * (self.comm.rank + 1) // self.comm.size
        )

    def enter(self, x_SD: Array) -> Array:
        """f, forward: all N rows, for a column-parallel matrix to read."""
        return self._gather(x_SD) if self.sequence else x_SD

    def enter_backward(self, dx_ND: Array) -> Array:
        """f, backward. Forward was: every rank read the same rows; so now their gradients, one part per
        rank, are summed.
        """
        return self._sum(dx_ND)

    def leave(self, y_ND: Array) -> Array:
        """g, forward: a row-parallel matrix left each rank a partial sum over its own inputs. `y_ND` may be
        overwritten.
        """
        return self._sum(y_ND)

    def leave_backward(self, dy_SD: Array) -> Array:
        """g, backward. Forward was: a sum over ranks; so now every rank's part has the gradient of the sum,
        for all N rows.
        """
        return self._gather(dy_SD) if self.sequence else dy_SD

    def _gather(self, x_SD: Array) -> Array:
        x_ND = np.empty_like(x_SD, shape=(x_SD.shape[0] * self.comm.size, x_SD.shape[1]))
        self.comm.all_gather(x_SD, x_ND)
        return x_ND

    def _sum(self, x_ND: Array) -> Array:
        if not self.sequence:
            self.comm.all_reduce(x_ND)
            return x_ND
        x_SD = np.empty_like(x_ND, shape=(x_ND.shape[0] // self.comm.size, x_ND.shape[1]))
        self.comm.reduce_scatter(x_ND, x_SD)
        return x_SD
