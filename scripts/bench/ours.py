"""minitrain's side: the step of `python -m minitrain train`, on one rank or data-parallel on several."""

import os
from collections.abc import Callable

import numpy as np
from problem import BATCH, LEARNING_RATE, OPTIM, PROBLEMS, batches, weights

from minitrain.arrays.heap import keep_freed_memory
from minitrain.build import make_trainer
from minitrain.comm.grid import make_grid
from minitrain.comm.traced import ByteCounter, traced
from minitrain.config import Config, ParallelConfig, TrainConfig
from minitrain.launch import join
from minitrain.launched import launched
from minitrain.step import Batch, train_step


def make_step(name: str) -> Callable[[int], float]:
    """A function of the step's number, from 1, that trains and returns the loss."""
    keep_freed_memory()
    world, model = join(launched(os.environ)), PROBLEMS[name].model
    config = Config(
        model=model,
        parallel=ParallelConfig(dp=world.size, tp=1, pp=1, shard=1),
        train=TrainConfig(global_batch=BATCH, micro_batch=BATCH // world.size),
        optim=OPTIM,
    )
    grid, values = make_grid(traced(world, ByteCounter()), config), weights(model)
    trainer = make_trainer(config, grid, lambda spec, box: values[spec.name][box])
    own = slice(BATCH * world.rank // world.size, BATCH * (world.rank + 1) // world.size)
    data = [
        Batch(ids_BT[own].reshape(1, -1), targets_BT[own].reshape(1, -1), ids_BT.size)
        for ids_BT, targets_BT in batches(model)
    ]

    def step(number: int) -> float:
        with np.errstate(all="ignore"):
            return train_step(trainer, data[number % len(data)], LEARNING_RATE, number).loss

    return step
