"""The loss scale of fp16: gradients are multiplied by it on their way back, and divided by it before use.

Gradients below 2^-25 are zero in fp16, and many are. Multiplying the loss multiplies them all (the chain rule
is linear), so that they keep their digits; too large a scale makes the largest overflow. The largest scale
that does not is looked for all the time: after an overflow the step is skipped and the scale lowered, after
`growth_interval` steps without one it is doubled (Micikevicius et al. 2018, section 3.2; the rules for
growth and hysteresis are Megatron-LM's).
"""

from minitrain.config import LossScaleConfig

GROWTH = 2.0


class LossScale:
    """The scale now, and what it remembers of the steps before."""

    def __init__(self, config: LossScaleConfig) -> None:
        self._config = config
        self.scale = config.initial
        self.good_steps = 0  # without overflow since the last overflow or growth
        self.tolerated = config.hysteresis  # overflows left until the scale is lowered

    @property
    def may_overflow(self) -> bool:
        """Whether a lower scale could help."""
        return self._config.dynamic and self.scale > self._config.minimum

    def update(self, overflow: bool) -> None:
        """After every step. Every rank calls it with the same `overflow`."""
        config = self._config
        if not config.dynamic:
            return
        if overflow:
            self.good_steps = 0
            self.tolerated -= 1
            if self.tolerated <= 0:
                self.scale = max(self.scale * config.backoff, config.minimum)
            return
        self.good_steps += 1
        if self.good_steps == config.growth_interval:
            self.good_steps, self.tolerated = 0, config.hysteresis
            self.scale *= GROWTH
