"""What becomes of a step: from its loss and its gradient, whether the weights move, and by how much of it.

    norm   = sqrt(sum of squares) / s                s: the loss scale of fp16, else 1
    reject   if loss or norm is not finite           then nothing is updated, and s may be lowered
    factor = clip / s                                what the gradient is multiplied by in the update

`Judge` does so on the host. That of a GPU (optim/cuda/judge.py) leaves all of it there: nobody waits, the
update is a kernel that looks whether the step was accepted, and the host reads the numbers a step later.
"""

import math
from typing import Any, NamedTuple, Protocol

import numpy as np

from minitrain.arrays.device import Device, Gpu, on_host
from minitrain.arrays.types import Array
from minitrain.config import LossScaleConfig
from minitrain.optim.clip import clip_scale
from minitrain.optim.loss_scale import LossScale


class Numbers(NamedTuple):
    """Of one step."""

    loss: float  # mean nats per token of the global batch
    norm: float  # of the gradient of the whole model, before clipping
    factor: float
    accepted: bool
    updates: int  # accepted steps, this one included
    loss_scale: float  # in this step
    may_overflow: bool  # a lower loss scale could help


class Verdict(Protocol):
    """On one step. First `rejected` is to be made the maximum over all ranks, then it is decided."""

    rejected: Array  # int64 [1]
    number: int  # what `updates` is if no step was rejected before

    def numbers(self) -> Numbers:
        """Once it is decided. On a GPU the host waits for them."""


class Kept(NamedTuple):
    """What outlives a step, and is part of a checkpoint: the steps accepted, and the loss scale's memory."""

    updates: int
    scale: float
    good_steps: int
    tolerated: int


class AnyJudge(Protocol):
    """That of the host or of a GPU. A verdict goes back to the judge that began it."""

    @property
    def scale(self) -> Any:
        """What the loss, and with it every gradient, is multiplied by: a number, or fp64 [1] on a GPU."""

    def look(self, losses: Array, square: Array) -> Any: ...

    def decide(self, verdict: Any) -> None: ...

    def kept(self) -> Kept: ...

    def restore(self, kept: Kept) -> None: ...


class HostVerdict:
    """Is decided as soon as the ranks agree."""

    def __init__(self, loss: float, norm: float, scale: float, number: int) -> None:
        self.loss, self.norm, self.scale, self.number = loss, norm, scale, number
        self.rejected = np.array([not (math.isfinite(loss) and math.isfinite(norm))], np.int64)
        self.decided: Numbers | None = None

    def numbers(self) -> Numbers:
        assert self.decided, "the ranks have not agreed yet"
        return self.decided


def total_loss(losses: Array) -> float:
    """One after the other: zeros, as of a validation's padding, change nothing wherever they are."""
    return float(np.cumsum(on_host(losses))[-1])


def make_judge(loss_scale: LossScaleConfig | None, clip: float, device: Device) -> AnyJudge:
    """`loss_scale` of fp16 alone; `clip` 0: off."""
    if not isinstance(device, Gpu):
        return Judge(LossScale(loss_scale) if loss_scale else None, clip)
    from minitrain.optim.cuda.judge import CudaJudge  # it builds on this file

    return CudaJudge(device, loss_scale, clip)


class Judge:
    """On the host."""

    def __init__(self, loss_scale: LossScale | None, clip: float) -> None:
        """`loss_scale` of fp16 alone; `clip` 0: off."""
        self.loss_scale, self._clip, self.updates = loss_scale, clip, 0

    @property
    def scale(self) -> float:
        """What the loss, and with it every gradient, is multiplied by."""
        return self.loss_scale.scale if self.loss_scale else 1.0

    def look(self, losses: Array, square: Array) -> HostVerdict:
        """fp64: what micro-batches add to the mean loss, one after another; the gradient's square [1]."""
        loss, norm = total_loss(losses), math.sqrt(square[0]) / self.scale
        return HostVerdict(loss, norm, self.scale, self.updates + 1)

    def decide(self, verdict: HostVerdict) -> None:
        """Collects what `look` began. Every rank decides alike."""
        accepted, may_overflow = not verdict.rejected[0], False
        if self.loss_scale:
            may_overflow = self.loss_scale.may_overflow
            if accepted or may_overflow:
                self.loss_scale.update(overflow=not accepted)
        self.updates += accepted
        factor = clip_scale(verdict.norm, self._clip) / verdict.scale if accepted else 0.0
        verdict.decided = Numbers(
            verdict.loss, verdict.norm, factor, accepted, self.updates, verdict.scale, may_overflow
        )

    def kept(self) -> Kept:
        scale = self.loss_scale
        return Kept(
            self.updates, *((scale.scale, scale.good_steps, scale.tolerated) if scale else (1.0, 0, 0))
        )

    def restore(self, kept: Kept) -> None:
        self.updates, scale = kept.updates, self.loss_scale
        if scale:
            scale.scale, scale.good_steps, scale.tolerated = kept.scale, kept.good_steps, kept.tolerated
