"""Optimizers on flat vectors, the learning-rate schedule, clipping."""

from minitrain.config import OptimConfig
from minitrain.optim.adafactor import adafactor
from minitrain.optim.adagrad import adagrad
from minitrain.optim.adam8bit import adam8bit
from minitrain.optim.adamw import adamw
from minitrain.optim.lamb import lamb
from minitrain.optim.lion import lion
from minitrain.optim.momentum import momentum, nesterov
from minitrain.optim.muon import muon
from minitrain.optim.optimizer import Optimizer
from minitrain.optim.radam import radam
from minitrain.optim.rmsprop import rmsprop
from minitrain.optim.sage import sage
from minitrain.optim.sgd import sgd
from minitrain.optim.sophia import sophia


def make_optimizer(optim: OptimConfig) -> Optimizer:
    """The optimizer of a resolved configuration."""
    b1, b2 = optim.betas or (0.0, 0.0)  # none where the optimizer has none
    eps, rho = optim.eps or 0.0, optim.rho or 0.0
    match optim.name:
        case "sgd":
            return sgd()
        case "momentum":
            return momentum(b1, optim.classical)
        case "nesterov":
            return nesterov(b1, optim.classical)
        case "adagrad":
            return adagrad(eps)
        case "rmsprop":
            return rmsprop(b2, eps)
        case "adam" | "adamw":  # adam's decay is 0
            return adamw((b1, b2), eps)
        case "radam":
            return radam((b1, b2), eps)
        case "adafactor":
            return adafactor()
        case "adam8bit":
            return adam8bit((b1, b2), eps)
        case "sage":
            return sage((b1, b2), optim.beta3, eps)
        case "sophia-g":
            return sophia((b1, b2), eps, rho, "gauss-newton-bartlett")
        case "sophia-h":
            return sophia((b1, b2), eps, rho, "hutchinson")
        case "lion":
            return lion((b1, b2))
        case "lamb":
            return lamb((b1, b2), eps)
        case "muon":
            return muon((b1, b2), eps)
