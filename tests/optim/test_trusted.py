"""Optimizers against PyTorch's and pytorch_optimizer's, step by step in fp64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from optim.stepping import Tensors, train

from minitrain.optim.adafactor import adafactor
from minitrain.optim.adagrad import adagrad
from minitrain.optim.adamw import adamw
from minitrain.optim.lamb import lamb
from minitrain.optim.lion import lion
from minitrain.optim.momentum import momentum, nesterov
from minitrain.optim.muon import muon
from minitrain.optim.optimizer import Optimizer
from minitrain.optim.radam import radam
from minitrain.optim.rmsprop import rmsprop
from minitrain.optim.sgd import sgd
from minitrain.optim.sophia import sophia

torch = pytest.importorskip("torch", reason="the oracle is PyTorch: install the extra `parity`")
trusted = pytest.importorskip(
    "pytorch_optimizer", reason="the oracle is pytorch_optimizer: install the extra `parity`"
)

BETAS, EPS = (0.9, 0.95), 1e-3  # eps large enough to show where it stands
SHAPES = {"wide": (5, 7), "tall": (9, 4), "vector": (6,)}
N_STEPS = 12


def tensors(n: int, seed: int) -> list[Tensors]:
    rng = np.random.default_rng(seed)
    return [{name: rng.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(n)]


START, GRADIENTS, CURVATURES = tensors(1, 0)[0], tensors(N_STEPS, 1), tensors(N_STEPS, 2)


def reference(make: Callable[[list[Any]], Any], start: Tensors, with_curvature: bool = False) -> Tensors:
    params = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in start.items()}
    optimizer = make(list(params.values()))
    for g, curvature in zip(GRADIENTS, CURVATURES, strict=True):
        for name, param in params.items():
            param.grad = torch.tensor(g[name])
        if with_curvature:
            optimizer.step(hessian=[torch.tensor(curvature[name]) for name in params])
        else:
            optimizer.step()
    return {name: param.detach().numpy() for name, param in params.items()}


class Pair(NamedTuple):
    ours: Optimizer
    lr: float
    decay: float
    theirs: Callable[[list[Any]], Any]


LR = 0.02
PAIRS = {
    "sgd": Pair(sgd(), LR, 0.3, lambda p: torch.optim.SGD(p, LR, weight_decay=0.3)),
    "momentum classical": Pair(momentum(0.9, True), LR, 0, lambda p: torch.optim.SGD(p, LR, momentum=0.9)),
    "momentum average": Pair(  # its learning rate is the classical one over 1 - beta
        momentum(0.9, False), LR, 0, lambda p: torch.optim.SGD(p, LR * (1 - 0.9), momentum=0.9)
    ),
    "nesterov classical": Pair(
        nesterov(0.9, True), LR, 0, lambda p: torch.optim.SGD(p, LR, momentum=0.9, nesterov=True)
    ),
    "nesterov average": Pair(
        nesterov(0.9, False), LR, 0, lambda p: torch.optim.SGD(p, LR * (1 - 0.9), momentum=0.9, nesterov=True)
    ),
    "adagrad": Pair(adagrad(EPS), LR, 0, lambda p: torch.optim.Adagrad(p, LR, eps=EPS)),
    "rmsprop": Pair(rmsprop(0.95, EPS), LR, 0, lambda p: torch.optim.RMSprop(p, LR, alpha=0.95, eps=EPS)),
    "adam": Pair(adamw(BETAS, EPS), LR, 0, lambda p: torch.optim.Adam(p, LR, BETAS, EPS)),
    "adamw": Pair(adamw(BETAS, EPS), LR, 0.3, lambda p: torch.optim.AdamW(p, LR, BETAS, EPS, 0.3)),
    "radam": Pair(
        radam(BETAS, EPS), LR, 0.3,
        lambda p: torch.optim.RAdam(p, LR, BETAS, EPS, 0.3, decoupled_weight_decay=True),
    ),
    "adafactor": Pair(adafactor(), LR, 0.3, lambda p: torch.optim.Adafactor(p, LR, weight_decay=0.3)),
    "adafactor, lr over 1/sqrt(t)": Pair(adafactor(), 0.4, 0, lambda p: torch.optim.Adafactor(p, 0.4)),
    "lion": Pair(lion(BETAS), LR, 0.3, lambda p: trusted.Lion(p, LR, BETAS, weight_decay=0.3)),
    # pytorch_optimizer's Lamb does not correct the moments for their start at zero, nor lr with adam_debias.
    # Without decay and eps the trust ratio makes up for it.
    "lamb": Pair(lamb(BETAS, 0.0), LR, 0, lambda p: trusted.Lamb(p, LR, BETAS, eps=0.0, adam_debias=True)),
}  # fmt: skip


def assert_same(ours: Tensors, theirs: Tensors, tolerance: float) -> None:
    for name, start in START.items():
        if name in ours:
            assert not np.allclose(ours[name], start, rtol=1e-2)
            np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PAIRS)
def test_is_the_trusted_one(name: str) -> None:
    pair = PAIRS[name]
    ours = train(pair.ours, START, GRADIENTS, pair.lr, pair.decay)
    assert_same(ours, reference(pair.theirs, START), 1e-13)


def test_sophia_is_the_trusted_one() -> None:
    """pytorch_optimizer clips m / max(h, eps) at p; the paper m / max(p h, eps) at 1, 1/p times that."""
    rho, eps, decay = 0.5, 1e-3, 0.3
    ours = train(sophia(BETAS, eps, rho, "hutchinson"), START, GRADIENTS, LR, decay, CURVATURES)
    theirs = reference(
        lambda p: trusted.SophiaH(p, LR / rho, BETAS, weight_decay=decay * rho, p=rho, eps=eps / rho),
        START,
        with_curvature=True,
    )
    assert_same(ours, theirs, 1e-13)


def test_adafactor_of_zeros_and_of_tiny_gradients() -> None:
    """Where the small numbers of the definition rule: PyTorch's, not the paper's."""
    rows = {"wide": np.zeros((5, 7))}
    for scale in (1e-10, 1e-14, 1e-20):
        small = [{"wide": scale * g["wide"]} for g in GRADIENTS]
        ours = train(adafactor(), rows, small, LR)["wide"]
        param = torch.nn.Parameter(torch.tensor(rows["wide"]))
        optimizer = torch.optim.Adafactor([param], LR)
        for g in small:
            param.grad = torch.tensor(g["wide"])
            optimizer.step()
        assert np.any(ours != 0)
        np.testing.assert_allclose(ours, param.detach().numpy(), rtol=1e-12)


def test_muon_is_the_trusted_one_but_for_bf16() -> None:
    """PyTorch iterates in bf16, which costs it 1% of a step. `test_whole_tensor.py` has the exact one."""
    matrices = {name: w for name, w in START.items() if w.ndim == 2}
    theirs = reference(
        lambda p: torch.optim.Muon(
            p, LR, weight_decay=0.3, momentum=BETAS[0], eps=1e-7, adjust_lr_fn="match_rms_adamw"
        ),
        matrices,
    )
    gradients = [{name: g[name] for name in matrices} for g in GRADIENTS]
    ours = train(muon(BETAS, 1e-7), matrices, gradients, LR, 0.3)
    for name, start in matrices.items():
        moved, error = (np.linalg.norm(ours[name] - other) for other in (start, theirs[name]))
        assert error < 0.01 * moved, (error, moved)


def test_muon_s_vectors_take_adamw_s_step() -> None:
    vectors = {"vector": START["vector"]}
    theirs = reference(lambda p: torch.optim.AdamW(p, LR, BETAS, EPS, 0.3), vectors)
    ours = train(muon(BETAS, EPS), vectors, [{"vector": g["vector"]} for g in GRADIENTS], LR, 0.3)
    assert_same(ours, theirs, 1e-13)
