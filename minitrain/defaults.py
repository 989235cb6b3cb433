"""What each optimizer's numbers are if the user does not say, and which of them it has at all.

Betas, epsilon and rho are those of the paper, or of the implementation that made it known. The rate is one
that trains the default model: the best of a few over 300 steps (`docs/optimizers.md` has the losses), but for
adam, which has its paper's.
"""

from typing import NamedTuple


class Defaults(NamedTuple):
    """None: the optimizer has no such number, and it is refused if given."""

    lr: float
    betas: tuple[float, float] | None
    eps: float | None
    weight_decay: float | None
    rho: float | None = None
    also: tuple[str, ...] = ()  # fields that belong to it and a few others


OPTIMIZERS = {
    "sgd": Defaults(0.5, None, None, 0.0),
    "momentum": Defaults(3.0, (0.9, 0.0), None, 0.0, also=("classical",)),
    "nesterov": Defaults(1.0, (0.9, 0.0), None, 0.0, also=("classical",)),
    "adagrad": Defaults(2e-2, None, 1e-10, 0.0),
    "rmsprop": Defaults(1e-3, (0.0, 0.99), 1e-8, 0.0),
    "adam": Defaults(1e-3, (0.9, 0.999), 1e-8, None),
    "adamw": Defaults(5e-3, (0.9, 0.95), 1e-8, 0.1),
    "radam": Defaults(1e-2, (0.9, 0.999), 1e-8, 0.0),
    "adafactor": Defaults(1e-1, None, None, 0.0),
    "adam8bit": Defaults(5e-3, (0.9, 0.95), 1e-8, 0.1),
    "sage": Defaults(5e-3, (0.9, 0.999), 1e-6, 0.01, also=("beta3",)),
    "sophia-g": Defaults(5e-4, (0.96, 0.99), 1e-12, 0.2, 0.05, also=("curvature_every",)),
    "sophia-h": Defaults(5e-4, (0.96, 0.99), 1e-12, 0.2, 0.01, also=("curvature_every",)),
    "lion": Defaults(1e-3, (0.9, 0.99), None, 1.0),
    "lamb": Defaults(3e-2, (0.9, 0.999), 1e-6, 0.01),
    "muon": Defaults(1e-2, (0.95, 0.95), 1e-8, 0.1),
}
