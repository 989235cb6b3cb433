"""Rounding to 8-bit floats for matrix products, with delayed scaling (Micikevicius et al. 2022, FP8 formats
for deep learning; the scheme of NVIDIA's Transformer Engine).

E4M3 (4 bits of exponent, 3 of mantissa, up to 448) for the factors of the forward, E5M2 (up to 57344) for
gradients. 8 bits cannot hold the range of a tensor and its precision, so each tensor is scaled to fill the
format before it is rounded:

    x8 = round(clamp(x s))        x is then taken to be x8 / s

The scale should be largest(format) / max|x|, but that maximum is known only once the whole tensor (over all
micro-batches and ranks) has been seen. So it is *delayed*: this step's scale comes from the maxima of the
last steps, and what is larger than they were saturates.
"""

import ml_dtypes
import numpy as np

from minitrain.arrays.types import Array

E4M3: np.dtype[np.generic] = np.dtype(ml_dtypes.float8_e4m3fn)
E5M2: np.dtype[np.generic] = np.dtype(ml_dtypes.float8_e5m2)
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
HISTORY = 16  # steps whose maxima count


class Scaled8:
    """One tensor's scale, and the largest magnitudes of it in the last steps."""

    def __init__(self, dtype: np.dtype[np.generic]) -> None:
        self.dtype = dtype
        self.largest = LARGEST[dtype]
        self.scale: float | None = None  # at the first step, without a history, that of the array at hand
        self.amax = 0.0  # max|x| seen in this step, so far
        self.history = np.zeros(HISTORY, np.float32)  # of the steps before, the latest first

    def rounded(self, x: Array) -> Array:
        """x8 / s in fp32: what a product of 8-bit numbers computes with. Notes max|x|.

        A NaN stays one; the products do not hide it.
        """
        values = x.astype(np.float32)
        amax = float(np.abs(values).max(initial=0))
        self.amax = max(self.amax, amax)
        scale = self.scale or self._fitting(amax)
        values *= scale
        np.clip(values, -self.largest, self.largest, out=values)
        values = values.astype(self.dtype).astype(np.float32)
        values *= 1 / scale
        return values

    def end_step(self, amax: float) -> None:
        """`amax` is max|x| over all ranks; the scale of the next step follows from it and those before."""
        self.history[1:] = self.history[:-1].copy()
        self.history[0] = amax if np.isfinite(amax) else 0.0  # of a step that is skipped, or ends the run
        self.amax = 0.0
        self.scale = self._fitting(float(self.history.max()))

    def restore(self, history: Array) -> None:
        """As it was after the steps of which these are the maxima."""
        self.history[...] = history
        self.scale = self._fitting(float(history.max()))

    def _fitting(self, amax: float) -> float:
        """The largest power of two that leaves `amax` in range: scaling itself rounds nothing."""
        if not 0 < amax < np.inf:
            return 1.0
        return float(2.0 ** np.clip(np.floor(np.log2(self.largest / amax)), -126, 126))


class Fp8Linear:
    """The three factors of a linear map's products: input, weights, gradient of the output."""

    def __init__(self) -> None:
        self.x, self.w, self.dy = Scaled8(E4M3), Scaled8(E4M3), Scaled8(E5M2)

    @property
    def tensors(self) -> tuple[Scaled8, Scaled8, Scaled8]:
        return self.x, self.w, self.dy
