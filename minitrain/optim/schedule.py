"""The learning rate as a function of the step alone."""

import math

from minitrain.config import OptimConfig


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """lr at step t (from 1) of `steps`.

    Warm-up: lr t / warmup for t < warmup. Then, from lr at t = warmup to min_lr at t = steps:

        constant   lr
        cosine     min_lr + (lr - min_lr) (1 + cos(pi (t - warmup) / (steps - warmup))) / 2
        linear     lr + (min_lr - lr) (t - warmup) / (steps - warmup)
        wsd        lr, then linear over the last `decay` steps

    Cosine: Loshchilov & Hutter 2017; WSD (warm-up, stable, decay): Hu et al. 2024, MiniCPM.
    """
    lr, low, warmup = optim.lr, optim.min_lr, optim.warmup
    assert lr is not None and warmup is not None, "the configuration is resolved"
    if step < warmup:
        return lr * step / warmup
    if optim.schedule == "constant":
        return lr
    if optim.schedule == "wsd":
        return low + (lr - low) * min(1.0, (steps - step) / optim.decay) if optim.decay else lr
    progress = (step - warmup) / max(1, steps - warmup)
    if optim.schedule == "linear":
        return lr + (low - lr) * progress
    return low + (lr - low) * (1 + math.cos(math.pi * progress)) / 2
