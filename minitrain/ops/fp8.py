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

from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np

from minitrain.arrays.types import Array

E4M3: np.dtype[np.generic] = np.dtype(ml_dtypes.float8_e4m3fn)
E5M2: np.dtype[np.generic] = np.dtype(ml_dtypes.float8_e5m2)
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
HISTORY = 16  # steps whose maxima count
# The smallest number of 8 bits, 2^-16, is then scaled back to no less than 2^-126, from where on fp32, bf16
# have all their digits. And what is below 2^-126, which GPUs take for zero, is rounded to zero anyway.
MOST_DOUBLINGS = 100


class Rounding(Protocol):
    """How one tensor is rounded: `Scaled8`, or what stands for it on a GPU (ops/cuda/fp8.py)."""

    history: Array  # largest magnitudes of the last steps, the latest first; fp32 [HISTORY]

    def rounded(self, x: Array) -> Array: ...

    def restore(self, history: Array) -> None: ...


class Fp8Linear(NamedTuple):
    """The three factors of a linear map's products: input, weights, gradient of the output."""

    x: Rounding
    w: Rounding
    dy: Rounding


class Fp8Scales(Protocol):
    """Those of several linear maps: `HostScales`, or on a GPU `DeviceScales` (ops/cuda/fp8.py).

    In a step, ranks first agree on the largest magnitudes, `end_step(all-reduce max of seen())`.
    """

    maps: list[Fp8Linear]

    def seen(self) -> Array:
        """max|x| of each factor in this step on this rank: x, w, dy of the first map, of the second, ...;
        infinite if a NaN was among them. fp32.
        """

    def end_step(self, amax_n: Array) -> None:
        """The scales of the next step follow from what all ranks have `seen`."""

    def forget(self) -> None:
        """What was seen in this step so far."""


class Scaled8:
    """One tensor's scale, and the largest magnitudes of it in the last steps."""

    def __init__(self, dtype: np.dtype[np.generic]) -> None:
        self.dtype = dtype
        self.largest = LARGEST[dtype]
        self.scale: float | None = None  # at the first step, without a history, that of the array at hand
        self.amax = 0.0  # max|x| seen in this step, so far; infinite if a NaN was
        self.history = np.zeros(HISTORY, np.float32)  # of the steps before, the latest first

    def rounded(self, x: Array) -> Array:
        """x8 / s in fp32: what a product of 8-bit numbers computes with. Notes max|x|.

        A NaN stays one; the products do not hide it.
        """
        values = x.astype(np.float32)
        amax = float(np.abs(values).max(initial=0))
        if np.isnan(amax):
            amax = np.inf  # as no number, it would be lost in every comparison
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
        """The largest power of two, up to 2^MOST_DOUBLINGS, that leaves `amax` in range: scaling itself
        rounds nothing.
        """
        if not 0 < amax < np.inf:
            return 1.0
        return float(2.0 ** min(np.floor(np.log2(self.largest / amax)), MOST_DOUBLINGS))


class HostScales:
    """`Fp8Scales` on the host."""

    def __init__(self, n_maps: int) -> None:
        self._tensors = [Scaled8(dtype) for _ in range(n_maps) for dtype in (E4M3, E4M3, E5M2)]
        self.maps = [Fp8Linear(*self._tensors[i : i + 3]) for i in range(0, 3 * n_maps, 3)]

    def seen(self) -> Array:
        return np.array([tensor.amax for tensor in self._tensors], np.float32)

    def end_step(self, amax_n: Array) -> None:
        for tensor, amax in zip(self._tensors, amax_n, strict=True):
            tensor.end_step(float(amax))

    def forget(self) -> None:
        for tensor in self._tensors:
            tensor.amax = 0.0


def make_scales(n_maps: int) -> Fp8Scales:
    return HostScales(n_maps)
