"""Bytes that a rank holds from step to step, by class, as `parallel/unit.py` allocates them.

Of each unit with n elements in its padded vector, of which n / N_s are this rank's own:

    stage       parameters  gradients   master copy  moments
    ZeRO 0      q n         g n         k n          m n
    ZeRO 1      q n         g n         k n / N_s    m n / N_s
    ZeRO 2      q n         g n / N_s   k n / N_s    m n / N_s
    ZeRO 3      q n / N_s   g n / N_s   k n / N_s    m n / N_s

with q, g, k the bytes of an element of each (k = 0 where the parameters are their own master copy), and m
what the optimizer remembers of one: `MOMENTS` times k's type for most. Rajbhandari et al. 2020, figure 1.
Under run.exact gradients are cut at every stage of ZeRO.
"""

from typing import NamedTuple

from minitrain.config import Config
from minitrain.plan.held import BLOCK, SIZES, Spot, Unit, layout_of, units_of

MOMENTS = {
    "sgd": 0, "momentum": 1, "nesterov": 1, "adagrad": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "radam": 2,
    "sage": 3, "sophia-g": 2, "sophia-h": 2, "lion": 1,
}  # fmt: skip
"""Of optimizers that remember as many numbers of every element, padding too."""


class Persistent(NamedTuple):
    """Bytes."""

    parameters: int
    gradients: int
    master: int
    moments: int

    @property
    def total(self) -> int:
        return sum(self)


def persistent(config: Config, spot: Spot) -> Persistent:
    """Of the rank at `spot`."""
    zero, exact, sizes = layout_of(config).zero, config.run.exact, SIZES[config.precision]
    own_master = sizes.master if sizes.master > sizes.param else 0
    total = Persistent(0, 0, 0, 0)
    for unit in units_of(config, spot):
        of_one = (
            (unit.full if zero < 3 else unit.own) * sizes.param,
            (unit.full if zero < 2 and not exact else unit.own) * sizes.grad,
            unit.own * own_master,
            _moments(config, unit, spot.shard),
        )
        total = Persistent(*(a + unit.number * b for a, b in zip(total, of_one, strict=True)))
    return total


def heaviest(config: Config, stage: int) -> Spot:
    """Of the ranks of a stage one that holds most. The last slice of a cut is never smaller than another, and
    padding ends the last shard; but with gaps between tensors too (run.exact) what Muon remembers of a shard
    depends on which tensors lie there.
    """
    at = layout_of(config)
    shards = range(at.shard if config.run.exact and config.optim.name == "muon" else 1)
    return max((Spot(stage, at.tp - 1, i) for i in shards), key=lambda spot: persistent(config, spot).total)


def _moments(config: Config, unit: Unit, shard: int) -> int:
    """Optimizers that look at whole tensors remember nothing of padding."""
    name, master = config.optim.name, SIZES[config.precision].master
    if name in MOMENTS:
        return MOMENTS[name] * unit.own * master
    if name == "adam8bit":  # twice a byte for each element, and four for each block of 256
        return 2 * (unit.own + 4 * (unit.own // BLOCK))
    if name == "adafactor":  # a number for each row and each column, on every rank alike
        return master * sum(sum(spec.shape) for spec, _ in unit.tensors)
    own = unit.own_elements(shard)
    if name == "lamb":
        return 2 * master * sum(n for _, n in own)
    assert name == "muon", name  # one moment of the matrices of blocks, two of the rest
    return master * sum(n * (1 if spec.group == "matrix" else 2) for spec, n in own)
