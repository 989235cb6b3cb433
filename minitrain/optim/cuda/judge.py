"""`optim/judge.py` on a GPU: what becomes of a step is decided there, where the update reads it, and the host
reads it when it likes. No call here but `numbers` and `kept` waits for the GPU.
"""

import numpy as np

from minitrain.arrays.device import Gpu, Reading, on_host
from minitrain.arrays.types import Array
from minitrain.config import LossScaleConfig
from minitrain.optim.judge import Kept, Numbers

SOURCE = "optim/cuda/judge.cu"


class CudaVerdict:
    """`Numbers` of a step, in the GPU's memory and on their way to the host."""

    def __init__(self, array: Array, rejected: Array, number: int) -> None:
        self.array = array  # fp64, in the order of `Numbers`
        self.rejected, self.number = rejected, number
        self.reading: Reading | None = None
        self._numbers: Numbers | None = None

    def numbers(self) -> Numbers:
        assert self.reading, "it is not decided yet"
        if self._numbers is None:
            loss, norm, factor, accepted, updates, scale, may_overflow = self.reading.wait().tolist()
            self._numbers = Numbers(
                loss, norm, factor, bool(accepted), int(updates), scale, bool(may_overflow)
            )
        return self._numbers


class CudaJudge:
    def __init__(self, gpu: Gpu, loss_scale: LossScaleConfig | None, clip: float) -> None:
        """`loss_scale` of fp16 alone; `clip` 0: off."""
        self._gpu, self._config, self._clip = gpu, loss_scale, float(clip)
        scale, tolerated = (loss_scale.initial, loss_scale.hysteresis) if loss_scale else (1.0, 0)
        self._number = 0
        self._kept = gpu.to_device(np.zeros(len(Kept._fields)))
        self._set(Kept(0, scale, 0, tolerated))

    @property
    def scale(self) -> Array:
        """What the loss, and with it every gradient, is multiplied by. fp64 [1]"""
        return self._kept[1:2]

    def look(self, losses: Array, square: Array) -> CudaVerdict:
        """fp64: what micro-batches add to the mean loss, one after another; the gradient's square [1]."""
        if isinstance(square, np.ndarray):
            square = self._gpu.to_device(square)
        self._number += 1
        array = np.empty_like(self._kept, shape=len(Numbers._fields))
        rejected = np.empty_like(self._kept, shape=1, dtype=np.int64)
        self._gpu.launch(SOURCE, "look", {}, 1, 32, losses, square, self._kept, array, rejected, losses.size)
        return CudaVerdict(array, rejected, self._number)

    def decide(self, verdict: CudaVerdict) -> None:
        """Collects what `look` began. Every rank decides alike."""
        rules = self._config or LossScaleConfig(dynamic=False)
        growth, backoff, minimum = rules.growth_interval, float(rules.backoff), float(rules.minimum)
        self._gpu.launch(
            SOURCE, "decide", {}, 1, 32, verdict.rejected, self._kept, verdict.array, self._clip,
            rules.dynamic, growth, backoff, rules.hysteresis, minimum,
        )  # fmt: skip
        verdict.reading = self._gpu.start_reading(verdict.array)

    def kept(self) -> Kept:
        updates, scale, good_steps, tolerated = on_host(self._kept).tolist()
        return Kept(int(updates), scale, int(good_steps), int(tolerated))

    def restore(self, kept: Kept) -> None:
        self._set(kept if self._config else Kept(kept.updates, 1.0, 0, 0))

    def _set(self, kept: Kept) -> None:
        self._kept[...] = self._gpu.to_device(np.array(kept, np.float64))
        self._number = kept.updates
