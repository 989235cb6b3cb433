"""Optimizers on flat vectors, the learning-rate schedule, clipping."""

from minitrain.config import OptimConfig
from minitrain.optim.adamw import adamw
from minitrain.optim.optimizer import Optimizer
from minitrain.optim.sgd import sgd


def make_optimizer(optim: OptimConfig) -> Optimizer:
    """The optimizer of the configuration."""
    match optim.name:
        case "sgd":
            return sgd()
        case "adamw":
            return adamw(optim.betas, optim.eps)
