"""The one array type of the package: a NumPy array, or anything that answers NumPy's protocols (CuPy)."""

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
DType: TypeAlias = np.dtype[Any]
