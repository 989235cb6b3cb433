"""The flat memory of a part of the model."""

from dataclasses import replace

import numpy as np
from layouts import LLAMA, tiny

from minitrain.comm.grid import make_grid
from minitrain.comm.single import SingleComm
from minitrain.parallel.stage import Stage


def test_the_norm_of_a_long_vector_in_fp32() -> None:
    """Ten million elements, to a millionth: one sum in fp32 would be wrong by 3e-5, and clipping with it."""
    config = replace(tiny(replace(LLAMA, layers=1, vocab=100_000, width=96, tied=True)), precision="fp32")
    stage = Stage(config, make_grid(SingleComm(), config), lambda spec, box: np.zeros(1, np.float32))
    unit = stage.embedding
    assert unit is not None and unit.grad is not None
    unit.grad[...] = np.random.default_rng(0).standard_normal(unit.grad.size, np.float32)
    exact = float(np.sum(unit.grad.astype(np.float64) ** 2))
    total = np.zeros(1)
    unit.add_squares(total)
    assert abs(total[0] - exact) <= 1e-6 * exact
