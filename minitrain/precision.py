"""Which type each tensor of a run has. One row of this table is one `precision` of the configuration."""

from typing import NamedTuple

import numpy as np


class Precision(NamedTuple):
    """Types of parameters and activations (`param`) and of gradients and their reduction (`grad`).

    Master copies and moments have the type of the gradients. Where the parameter has it too, the master
    copy *is* the parameter.
    """

    param: np.dtype[np.generic]
    grad: np.dtype[np.generic]


PRECISIONS = {
    "fp64": Precision(np.dtype(np.float64), np.dtype(np.float64)),
    "fp32": Precision(np.dtype(np.float32), np.dtype(np.float32)),
}
