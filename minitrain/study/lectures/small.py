"""Models that are small enough to be shown, and what they are trained with: weights of which none is zero, so
that nothing that is left out goes unseen, and random tokens.
"""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.config import Config
from minitrain.data.philox import normal, uniform
from minitrain.model.spec import ParamSpec
from minitrain.step import Batch


def random_weights(spec: ParamSpec, box: tuple[slice, ...]) -> Array:
    """A function of the name and the place, so that any layout has the same. Gains are about 1."""
    values = normal(1, spec.name, spec.shape, box, 0.3, np.float64)
    return values + 1 if spec.init_std is None else values


def random_batch(config: Config, dp_rank: int) -> Batch:
    """This data-parallel rank's part of a global batch that any layout has in common."""
    model, train, dp = config.model, config.train, config.parallel.dp
    assert train.global_batch and dp, "the configuration is resolved"
    n, rows = train.global_batch * model.seq_len, train.micro_batch * model.seq_len
    own = slice(dp_rank * n // dp, (dp_rank + 1) * n // dp)

    def drawn(name: str) -> Array:
        return (uniform(2, name, 0, n) * model.vocab).astype(np.int64)[own].reshape(-1, rows)

    return Batch(drawn("ids"), drawn("targets"), n)
