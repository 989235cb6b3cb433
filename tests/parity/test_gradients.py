"""Logits, loss and every gradient by name equal those of transformers on the same weights, in fp64."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from layouts import LIMIT, Part, assemble, gradient_parts, remembering, worst_gradient_error
from parity.ours import config_for, logits
from parity.reference import (
    MODELS,
    VOCAB,
    OnlyDouble,
    logits_and_loss,
    random_model,
    read_named,
    torch,
    worst_row_error,
)

from minitrain.arrays.types import Array
from minitrain.build import make_trainer
from minitrain.checkpoint.weights import initial_values
from minitrain.comm.grid import make_grid
from minitrain.comm.interface import Comm
from minitrain.comm.threads import run_threads
from minitrain.step import Batch, train_step

TOLERANCE = 1e-10
SEQ_LEN = 8  # below the models' own 12
GLOBAL_BATCH, MICRO_BATCH = 8, 2

LAYOUTS = {
    "serial": {},
    "dp2-tp2-pp2": dict(dp=2, tp=2, pp=2),
    "dp2-tp2-pp2-zero3-sequence": dict(dp=2, tp=2, pp=2, zero=3, sequence=True),
}


class Reference(NamedTuple):
    directory: Path  # of the weights
    ids_BT: Array
    targets_BT: Array
    logits_NV: Array
    loss: float
    grads: dict[str, Array]  # under our names


@pytest.fixture(scope="module", params=MODELS)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    directory = tmp_path_factory.mktemp(request.param)
    model = random_model(request.param, std=0.3, dtype=torch.float64)
    model.save_pretrained(directory / "weights")
    rng = np.random.default_rng(0)
    ids_BT, targets_BT = rng.integers(0, VOCAB, (2, GLOBAL_BATCH, SEQ_LEN))
    with OnlyDouble():
        logits_NV, loss = logits_and_loss(model, ids_BT, targets_BT)
        loss.backward()
    for p in model.parameters():
        p.data.copy_(p.grad)
    model.save_pretrained(directory / "gradients")
    grads = read_named(directory / "gradients", SEQ_LEN)
    theirs_NV = logits_NV.detach().numpy()
    return Reference(directory / "weights", ids_BT, targets_BT, theirs_NV, loss.item(), grads)


def test_logits(reference: Reference) -> None:
    ours_NV = logits(reference.directory, reference.ids_BT)
    assert worst_row_error(ours_NV, reference.logits_NV) <= TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_loss_and_every_gradient(reference: Reference, layout: dict[str, object]) -> None:
    loss, grads = loss_and_gradients(reference, layout)
    assert abs(loss - reference.loss) <= TOLERANCE * reference.loss
    error, name = worst_gradient_error(grads, reference.grads)
    assert error <= TOLERANCE, f"gradient of {name} is off by {error:.2e}"


def test_no_reference_gradient_is_zero_unless_it_must_be(reference: Reference) -> None:
    """Zero would be right for many wrong models. A key bias has it: softmax ignores a shift."""
    zero = {name for name, grad in reference.grads.items() if np.linalg.norm(grad) < 1e-12}
    assert zero == {name for name in reference.grads if name.endswith("attn.k.bias")}


def test_transformers_llama_alone_is_not_in_fp64() -> None:
    """What `in_double` is for, and that `OnlyDouble` would notice if it left something out."""
    model, ids_BT = MODELS["llama"]().to(torch.float64), np.zeros((1, SEQ_LEN), np.int64)
    with pytest.raises(AssertionError, match="float32"), OnlyDouble():
        model(input_ids=torch.from_numpy(ids_BT))


def loss_and_gradients(reference: Reference, layout: dict[str, object]) -> tuple[float, dict[str, Array]]:
    """Of the global batch in several micro-batches, by one step on as many threads as there are ranks."""
    config = config_for(reference.directory, SEQ_LEN, **layout)
    config = replace(config, train=replace(config.train, global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH))

    def rank_main(world: Comm) -> tuple[float, list[Part]]:
        grid = make_grid(world, config)
        trainer = remembering(make_trainer(config, grid, initial_values(config)))
        each = GLOBAL_BATCH // grid.dp.size
        own = slice(grid.dp.rank * each, (grid.dp.rank + 1) * each)
        ids_MN, targets_MN = (
            x_BT[own].reshape(-1, MICRO_BATCH * SEQ_LEN) for x_BT in (reference.ids_BT, reference.targets_BT)
        )
        batch = Batch(ids_MN, targets_MN, reference.ids_BT.size)
        result = train_step(trainer, batch, config.optim.lr, 1)
        return result.loss, gradient_parts(trainer)

    parallel = config.parallel
    ranks = run_threads(parallel.dp * parallel.tp * parallel.pp, rank_main, LIMIT)
    return ranks[0][0], assemble(config, [parts_of_rank for _, parts_of_rank in ranks])
